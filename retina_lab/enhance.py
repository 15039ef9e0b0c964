"""Enhancement for the eye: views of a photograph in which vessels are easier to see.

What networks are fed is decided in ``preprocess``; these are for looking.
"""

from __future__ import annotations

import numpy as np
from skimage import exposure


def green_channel(image: np.ndarray) -> np.ndarray:
    """The green channel, in which blood is darkest against the retina.

    Haemoglobin absorbs green light; the red channel is bright and flat, the blue one dark and
    noisy.

    Args:
        image: (H, W, 3) ``uint8``.

    Returns:
        (H, W) ``uint8``, a copy.
    """
    return _checked(image, colour=True)[..., 1].copy()


def clahe(
    image: np.ndarray,
    fov: np.ndarray | None = None,
    *,
    clip_limit: float = 0.01,
    tiles: int = 8,
) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation.

    Each of ``tiles``² regions is equalised by its own histogram, of which no bin may hold more
    than a share of ``clip_limit``, lest noise be stretched to full contrast; between regions the
    mappings are interpolated. Colour images are equalised in their brightness (V of HSV).

    Args:
        image: (H, W) or (H, W, 3) ``uint8``.
        fov: (H, W) ``bool``. Outside becomes black, and does not take part in the histograms:
            it is filled with the mean inside beforehand. None: the whole image.
        clip_limit: in (0, 1]; 1 clips nothing.
        tiles: regions along each side, at least 1.

    Returns:
        ``uint8`` of the shape of ``image``.

    Raises:
        ValueError: if the image is not 8-bit or a parameter is out of range. Source: Zuiderveld
            1994, "Contrast limited adaptive histogram equalization", Graphics Gems IV.
    """
    image = _checked(image)
    if not 0 < clip_limit <= 1:
        raise ValueError(f"clip_limit must lie in (0, 1], not {clip_limit}")
    if tiles < 1:
        raise ValueError(f"tiles must be at least 1, not {tiles}")
    if fov is not None:
        if np.shape(fov) != image.shape[:2]:
            raise ValueError(f"fov is {np.shape(fov)} but the image is {image.shape[:2]}")
        fov = np.asarray(fov, bool)
        if not fov.any():
            return np.zeros_like(image)
        image = image.copy()
        image[~fov] = image[fov].mean(axis=0)
    kernel = tuple(max(1, side // tiles) for side in image.shape[:2])
    result = exposure.equalize_adapthist(image, kernel_size=kernel, clip_limit=clip_limit)
    result = np.rint(result * 255).astype(np.uint8)
    if fov is not None:
        result[~fov] = 0
    return result


def _checked(image: np.ndarray, colour: bool = False) -> np.ndarray:
    image = np.asarray(image)
    good = (image.ndim == 3 and image.shape[2] == 3) or (image.ndim == 2 and not colour)
    if not good or image.dtype != np.uint8:
        wanted = "H×W×3" if colour else "H×W or H×W×3"
        raise ValueError(f"the image must be {wanted} uint8, not {image.shape} {image.dtype}")
    return image
