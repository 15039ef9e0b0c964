"""From samples to the tensors that networks see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from retina_lab.datasets.sample import FundusSample

NORMALISATIONS = ("local", "zscore", "none")

RIM = 3  # pixels
"""How far the penumbra of the camera's aperture reaches into the field of view."""


def to_batch(samples: FundusSample | Sequence[FundusSample]) -> dict[str, torch.Tensor]:
    """Stack samples of one size into a batch.

    Args:
        samples: one sample or several of the same height and width.

    Returns:
        ``image`` (N, 3, H, W) ``float32`` in [0, 1]; ``fov`` (N, 1, H, W) ``float32`` in
        {0, 1}; ``vessels`` likewise, present only if every sample is labelled.

    Raises:
        ValueError: if there is no sample or the sizes differ.
    """
    samples = [samples] if isinstance(samples, FundusSample) else list(samples)
    if not samples:
        raise ValueError("a batch needs at least one sample")
    sizes = {sample.size for sample in samples}
    if len(sizes) > 1:
        raise ValueError(
            f"samples of different sizes cannot be stacked: {sorted(sizes)}; "
            "crop them to one size, or handle them one at a time"
        )

    def plane(name: str) -> torch.Tensor:
        maps = np.stack([getattr(sample, name) for sample in samples])
        return torch.from_numpy(maps).unsqueeze(1).float()

    images = np.stack([sample.image for sample in samples])
    batch = {
        "image": torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255,
        "fov": plane("fov"),
    }
    if all(sample.vessels is not None for sample in samples):
        batch["vessels"] = plane("vessels")
    return batch


SCALE_TOLERANCE = 1.3
WIDEST = 600
"""Pixels: photographs with a wider field of view are reduced to it before a network sees them."""


def fov_width(fov: np.ndarray) -> int:
    """The longer side in pixels of the bounding box of a field of view (H, W); 0 if empty.

    Cameras see 35 to 60 degrees of the retina but store them in 500 to 3500 pixels, so this
    is the handiest measure of how large a vessel appears.
    """
    rows, columns = np.flatnonzero(fov.any(1)), np.flatnonzero(fov.any(0))
    return int(max(np.ptp(rows), np.ptp(columns))) + 1 if rows.size else 0


def at_working_scale(
    batch: dict[str, torch.Tensor], fov: np.ndarray, width: int | None
) -> dict[str, torch.Tensor]:
    """A sample's batch at the scale at which a network works.

    Vessels must look the same size in training and afterwards, whatever the camera. A field
    of view that is wider or narrower than ``width`` by less than ``SCALE_TOLERANCE`` is left
    alone: vessels differ more than that within one photograph, and resampling blurs.

    Args:
        batch: one sample, see :func:`to_batch`.
        fov: its field of view, (H, W) ``bool``.
        width: of the field of view in pixels that the network is used to; None or 0: any.

    Returns:
        The same batch, or a resampled one.
    """
    found = fov_width(fov)
    if not width or not found:
        return batch
    factor = width / found
    return batch if 1 / SCALE_TOLERANCE < factor < SCALE_TOLERANCE else resize_batch(batch, factor)


def resize_batch(batch: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """A batch at another resolution: images smoothed and interpolated, masks by nearest pixel.

    Args:
        batch: see :func:`to_batch`.
        factor: new size over old, positive.

    Returns:
        A batch of max(1, round(factor · H)) × max(1, round(factor · W)) pixels.
    """
    height, width = batch["image"].shape[-2:]
    size = (max(1, round(factor * height)), max(1, round(factor * width)))
    image = F.interpolate(
        batch["image"], size, mode="bilinear", align_corners=False, antialias=True
    )
    # "nearest" would take masks from up and to the left of where the image is taken from
    return {
        name: image.clamp(0, 1)
        if name == "image"
        else F.interpolate(plane, size, mode="nearest-exact")
        for name, plane in batch.items()
    }


def _box_sum(x: torch.Tensor, window: int) -> torch.Tensor:
    """Sum over a window×window box around every pixel, zeros outside the image.

    A box is separable, and the sum of a stretch is the difference of two running sums, so
    the cost a pixel does not grow with the window.
    """
    half = window // 2
    for axis, padding in ((-1, (half + 1, half)), (-2, (0, 0, half + 1, half))):
        running = F.pad(x, padding).cumsum(axis)
        length = x.shape[axis]
        x = running.narrow(axis, window, length) - running.narrow(axis, 0, length)
    return x


def normalise(
    image: torch.Tensor, fov: torch.Tensor, method: str = "local", window: int = 31
) -> torch.Tensor:
    """Remove what differs between cameras and eyes, and keep what differs at a vessel.

    ``"local"`` subtracts the mean of a box around each pixel and divides by its standard
    deviation, both taken over the pixels inside the field of view only, so that the black
    border does not bend the values near the rim. The outermost ``RIM`` pixels of the field
    lie in the penumbra of the aperture and are as dark against their neighbours as a vessel:
    they count as outside. ``"zscore"`` does the same with one mean and one deviation per
    image and channel, rim included. ``"none"`` changes nothing inside the field. Pixels
    outside become 0 in all three.

    Args:
        image: (N, 3, H, W) in [0, 1].
        fov: (N, 1, H, W) in {0, 1}.
        method: one of ``NORMALISATIONS``.
        window: side of the box in pixels, odd, for ``"local"``. About four vessel widths
            of a 565×584 photograph by default.

    Returns:
        (N, 3, H, W), about zero mean and unit deviation (``"none"``: still in [0, 1]).

    Raises:
        ValueError: if the method is unknown or the window is even or below 3.
    """
    if method not in NORMALISATIONS:
        raise ValueError(f"unknown normalisation {method!r}; choose one of {NORMALISATIONS}")
    if method == "none":
        return image * fov
    inside = image * fov  # N×3×H×W
    if method == "zscore":
        count = fov.sum((2, 3), keepdim=True).clamp(min=1)  # N×1×1×1
        mean = inside.sum((2, 3), keepdim=True) / count
        variance = ((image - mean) * fov).square().sum((2, 3), keepdim=True) / count
    else:
        if window < 3 or window % 2 == 0:
            raise ValueError(f"the window must be odd and at least 3, not {window}")
        side = 2 * RIM + 1  # erosion by a square: along the columns, then along the rows
        fov = -F.max_pool2d(-fov, (side, 1), stride=1, padding=(RIM, 0))
        fov = -F.max_pool2d(-fov, (1, side), stride=1, padding=(0, RIM))
        inside = image * fov
        # One pass for count, sum and sum of squares. Subtracting the image's mean first
        # keeps E[x²] − E[x]² from cancelling in float32.
        centre = inside.sum((2, 3), keepdim=True) / fov.sum((2, 3), keepdim=True).clamp(min=1)
        shifted = (image - centre) * fov
        sums = _box_sum(torch.cat([fov, shifted, shifted.square()], dim=1), window)  # N×7×H×W
        count, total, squares = sums.split([1, 3, 3], dim=1)
        count = count.clamp(min=1)
        local = total / count
        mean = local + centre
        variance = squares / count - local.square()
    # .01 is two and a half grey levels: below it there is only noise to amplify.
    deviation = variance.clamp(min=0).sqrt().clamp(min=0.01)
    return (image - mean) / deviation * fov
