"""From a network to probability maps: whole images, sliding windows, test-time flips."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from retina_lab.datasets.sample import FundusSample
from retina_lab.metrics import quantise
from retina_lab.preprocess import at_working_scale, normalise, to_batch

if TYPE_CHECKING:
    from retina_lab.train import Run

# Above this many pixels a whole image through a full-width U-Net needs several GiB.
WHOLE_IMAGE_PIXELS = 1_500_000
FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))


def pick_device(device: str = "auto") -> torch.device:
    """``"auto"`` is CUDA where there is one, then Apple's MPS, then the CPU.

    Raises:
        ValueError: if a device is asked for that this machine lacks.
    """
    there = {
        "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True,
    }  # fmt: skip
    if device != "auto":
        if not there.get(device.split(":")[0]):
            found = ", ".join(name for name, is_there in there.items() if is_there)
            raise ValueError(f"there is no device {device!r} here; there are: auto, {found}")
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@torch.inference_mode()
def predict_tensor(
    model: nn.Module, image: torch.Tensor, *, tta: bool = False, window: int | None = None
) -> torch.Tensor:
    """Vessel probabilities of normalised images.

    Args:
        model: returns logits (N, 1, H, W); is used in eval mode and left as it was.
        image: (N, 3, H, W), normalised.
        tta: average the probabilities over the four flips of the image.
        window: side of a sliding window in pixels, overlapping by half and blended with
            Gaussian weights (MONAI); None sends the whole image through at once, unless
            it has more than ``WHOLE_IMAGE_PIXELS`` pixels.

    Returns:
        (N, 1, H, W) ``float32`` in [0, 1], on the CPU.

    Raises:
        ValueError: if the window is smaller than 32 pixels.
    """
    if window is not None and window < 32:
        raise ValueError(f"the window must be at least 32 pixels, not {window}")
    if window is None and image.shape[-2] * image.shape[-1] > WHOLE_IMAGE_PIXELS:
        window = 1024
    device = next(model.parameters()).device

    def probability(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if window is None:
            return model(x).float().sigmoid()
        from monai.inferers import sliding_window_inference  # two seconds to import

        return sliding_window_inference(
            x,
            roi_size=(window, window),
            sw_batch_size=1,
            predictor=lambda patch: model(patch).float().sigmoid(),
            overlap=0.5,
            mode="gaussian",
        )

    training = model.training
    model.eval()
    try:
        image = image.to(device)
        total = torch.zeros(image.shape[0], 1, *image.shape[2:], device=device)
        flips = FLIPS if tta else FLIPS[:1]
        for axes in flips:
            total += probability(image.flip(axes)).flip(axes)
    finally:
        model.train(training)
    # Blending weights that do not sum to one in the last bit may step over the edge.
    return (total / len(flips)).clamp(0, 1).cpu()


def predict_sample(
    network: nn.Module,
    sample: FundusSample,
    normalisation: str,
    width: int | None = None,
    *,
    tta: bool = False,
    window: int | None = None,
) -> np.ndarray:
    """The map of one photograph at the network's working scale, on the network's device.

    Args:
        network: as in :func:`predict_tensor`.
        sample: of any size.
        normalisation: see :func:`retina_lab.preprocess.normalise`.
        width: see :func:`retina_lab.preprocess.at_working_scale`.
        tta: average over the four flips.
        window: see :func:`predict_tensor`.

    Returns:
        (H, W) ``float32`` in [0, 1], zero outside the field of view.
    """
    batch = to_batch(sample)
    seen = at_working_scale(batch, sample.fov, width)
    image = normalise(seen["image"], seen["fov"], normalisation)
    probability = predict_tensor(network, image, tta=tta, window=window)
    if seen is not batch:
        probability = F.interpolate(
            probability, sample.size, mode="bilinear", align_corners=False
        ).clamp(0, 1)
    return (probability * batch["fov"])[0, 0].numpy()


def predict(
    model: nn.Module | Run,
    sample: FundusSample,
    *,
    tta: bool = False,
    window: int | None = None,
    device: str = "auto",
    normalisation: str | None = None,
) -> np.ndarray:
    """The vessel probability of every pixel of one photograph.

    A run knows at which scale it was trained, as the width of the field of view in pixels. A
    photograph of quite another scale is segmented at that one, and its map is interpolated back
    (:func:`retina_lab.preprocess.at_working_scale`): a vessel that is twice as wide as any seen
    in training would be taken for two edges. A bare network works at the photograph's own scale.

    Args:
        model: a network or a :class:`retina_lab.train.Run`.
        sample: of any size. Only its image and field of view are used.
        tta: average over the four flips.
        window: see :func:`predict_tensor`.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``.
        normalisation: how the network was trained to see images; a run knows it, for a
            bare network it is ``"local"`` unless given.

    Returns:
        (H, W) ``float32`` in [0, 1], zero outside the field of view.
    """
    network = model if isinstance(model, nn.Module) else model.model
    if normalisation is None:
        normalisation = "local" if isinstance(model, nn.Module) else model.normalisation
    network = network.to(pick_device(device))
    width = None if isinstance(model, nn.Module) else model.settings.get("fov_width")
    return predict_sample(network, sample, normalisation, width, tta=tta, window=window)


def predict_dataset(
    model: nn.Module | Run,
    samples: Sequence[FundusSample],
    *,
    tta: bool = False,
    window: int | None = None,
    device: str = "auto",
    normalisation: str | None = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """The map of every sample by its name; see :func:`predict`."""
    return {
        sample.name: predict(
            model, sample, tta=tta, window=window, device=device, normalisation=normalisation
        )
        for sample in tqdm(samples, desc="predict", unit="image", disable=not progress)
    }


def save_map(path: str | os.PathLike, probability: np.ndarray) -> None:
    """Write an (H, W) probability map in [0, 1] as a 16-bit greyscale PNG.

    Raises:
        ValueError: if the map is not two-dimensional or leaves [0, 1].
    """
    if np.ndim(probability) != 2:
        raise ValueError(f"a map must be (H, W), not {np.shape(probability)}")
    levels = quantise(probability)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    Image.fromarray(levels).save(partial, format="PNG")
    os.replace(partial, path)
