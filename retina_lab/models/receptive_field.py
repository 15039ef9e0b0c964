"""What one output pixel sees: receptive fields by formula, and measured by gradient.

An input pixel belongs to the receptive field of an output pixel if changing it can change the
output. For a plain chain of layers a formula gives the extent (:func:`field_by_formula`). Any
other network is asked: an input pixel is seen exactly if the gradient of the output by it is not
zero (:func:`receptive_field`). How *much* each pixel counts in a trained network is
:func:`input_gradient`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)
POINTWISE = (
    *NORMS,
    *(nn.Identity, nn.Dropout, nn.Dropout2d),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh),
)


class View(NamedTuple):
    """What the outputs of a chain of layers see; (rows, columns) each, in pixels of the input.

    Attributes:
        extent: of the receptive field, the same for every output.
        step: from the field of one output to that of the next.
        start: where the field of the first output begins; negative in the padding.
    """

    extent: tuple[int, int]
    step: tuple[int, int]
    start: tuple[int, int]


def view_by_formula(chain: nn.Module) -> View:
    """Where the receptive fields of a plain chain of convolutions and poolings lie.

    Each layer adds (kernel − 1) · dilation steps on its own grid, and a step on its grid is as
    long as the product of the strides before it (Araujo et al. 2019, equation 2):

        side = 1 + Σ (kernel − 1) · dilation · (product of the strides before)

    Its padding moves the first field outwards by as many of these steps.

    Args:
        chain: a layer, or an ``nn.Sequential`` of layers, nested or not.

    Raises:
        ValueError: if a layer is neither a convolution, a pooling nor pixel by pixel; the
            message names it.
    """
    extent, step, start = [1, 1], [1, 1], [0, 0]
    for layer in _in_order(chain):
        if isinstance(layer, POINTWISE):
            continue
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            raise ValueError(
                f"there is no formula for {type(layer).__name__} in a chain; measure the network "
                "with receptive_field"
            )
        kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
        dilation = _pair(getattr(layer, "dilation", 1))
        reach = tuple((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
        padding = {"valid": (0, 0), "same": (reach[0] // 2, reach[1] // 2)}.get(
            layer.padding, layer.padding
        )
        for axis in range(2):
            extent[axis] += reach[axis] * step[axis]
            start[axis] -= _pair(padding)[axis] * step[axis]
            step[axis] *= stride[axis]
    return View(*((row, column) for row, column in (extent, step, start)))


def field_by_formula(chain: nn.Module) -> tuple[int, int]:
    """The extent of the receptive field of a plain chain, (rows, columns) in pixels of the input.

    See :func:`view_by_formula`.
    """
    return view_by_formula(chain).extent


def receptive_field(
    model: nn.Module,
    size: int | tuple[int, int] = 128,
    at: tuple[int, int] | None = None,
    channels: int = 3,
) -> np.ndarray:
    """Measure by gradient which pixels of the input one output pixel can see.

    The gradient of the trained network would do, were it not that taps may cancel and that a
    ReLU or a maximum hides what it does not pass on today. So the plan of the network is
    measured rather than its weights, on a copy in double precision:

    * every weight is a positive constant (every convolution an average of its inputs), every
      bias 0 and the image 1 everywhere. Nothing cancels and every ReLU is open;
    * a maximum is replaced by a mean: max-pooling passes on one pixel of its window, but any of
      them may be the one;
    * normalisation is left out. In prediction BatchNorm scales a channel and looks at no other
      pixel; that InstanceNorm and GroupNorm look at the whole map is, as usual, not counted.
      Dropout is off.

    A layer that looks at the whole map, such as channel attention, makes the field the whole
    image: that is the truth, if not the whole of it. Where a network samples at places that it
    computes itself (deformable convolution) the field depends on the image, and is not measured
    here.

    Args:
        model: any module that takes (N, channels, H, W) and returns (N, C, H′, W′). It is not
            changed. Widths do not matter, so measure a slim one.
        size: of the test image in pixels, side or (height, width); larger than the field. A
            strip as narrow as the network allows, such as (800, 16), is enough for the extent
            in one direction, and much faster.
        at: (row, column) of the output pixel, None for the middle. Networks that halve their
            maps see a pixel more on one side at some places than at others.
        channels: of the input.

    Returns:
        (H, W) ``bool``, true where a pixel is seen. For its extent: :func:`extent`.
    """
    network = copy.deepcopy(model).double().cpu()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NORMS):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            taps = parameter.shape[1:].numel()  # 1 for a scale, so that it scales nothing
            parameter.fill_(0.0 if name.endswith("bias") else 1 / taps)
    with _MeanForMaximum():
        image = torch.ones(1, channels, *_pair(size), dtype=torch.float64)
        return input_gradient(network, image, at) > 0


def extent(field: np.ndarray) -> tuple[int, int]:
    """Height and width of the smallest box around what is seen.

    Args:
        field: (H, W) ``bool`` from :func:`receptive_field`.

    Returns:
        (rows, columns) in pixels.

    Raises:
        ValueError: if nothing is seen, or if the field touches the frame of the test image: then
            it may be larger than measured.
    """
    rows, columns = np.flatnonzero(field.any(axis=1)), np.flatnonzero(field.any(axis=0))
    if not rows.size:
        raise ValueError("the field is empty: the output depends on no pixel")
    if field[[0, -1]].any() or field[:, [0, -1]].any():
        raise ValueError(
            f"the field touches the frame of the {field.shape[0]}×{field.shape[1]} test image and "
            "may be larger; measure with a larger size (a global layer sees every image whole)"
        )
    return int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


def input_gradient(
    model: nn.Module, image: torch.Tensor, at: tuple[int, int] | None = None
) -> np.ndarray:
    """How strongly one output pixel answers to each pixel of an image: |∂ output / ∂ input|.

    Of a trained network this is its *effective* receptive field at one place of one image
    (Luo et al. 2016).

    Args:
        model: returns (N, C, H′, W′); is used in eval mode and left as it was.
        image: (1, channels, H, W), on the model's device.
        at: (row, column) of the output pixel, None for the middle.

    Returns:
        (H, W) ``float64``, ≥ 0, summed over the channels of input and output.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        image = image.detach().clone().requires_grad_()
        output = model(image)  # 1×C×H′×W′
        row, column = at or (output.shape[-2] // 2, output.shape[-1] // 2)
        (gradient,) = torch.autograd.grad(output[0, :, row, column].sum(), image)
    finally:
        for module, training in modes:
            module.training = training
    return gradient[0].abs().sum(dim=0).double().cpu().numpy()


class _MeanForMaximum(TorchFunctionMode):
    """Answers every maximum over pixels or channels by the mean of the same values."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (F.max_pool2d, torch.max_pool2d):
            if kwargs.pop("dilation", 1) not in (1, (1, 1), [1, 1]):
                raise ValueError("dilated max-pooling cannot be measured by gradients")
            kwargs.pop("return_indices", None)
            return F.avg_pool2d(*args[:4], **kwargs)
        if function in (torch.amax, torch.Tensor.amax):
            return torch.mean(*args, **kwargs)
        return function(*args, **kwargs)


def _in_order(chain: nn.Module) -> Iterator[nn.Module]:
    if isinstance(chain, nn.Sequential):
        for layer in chain:
            yield from _in_order(layer)
    else:
        yield chain


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
