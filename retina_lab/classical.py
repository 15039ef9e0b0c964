"""Vessel detectors that learn nothing: something for learning to beat.

All work on the inverted green channel, where vessels are bright, at the scale of the photograph:
lengths are given for a field of view of 540 pixels (DRIVE's) and grow with it. Outside the field
of view the nearest value inside is repeated, for the black border would be the strongest edge of
all. Each returns a map in [0, 1] that ranks pixels; what counts as vessel is decided by a
threshold from training images, as for every other method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve
from skimage.feature import hessian_matrix, hessian_matrix_eigvals

from retina_lab.datasets.sample import FundusSample
from retina_lab.preprocess import fov_width

REFERENCE_WIDTH = 540


def inverted_green(sample: FundusSample) -> np.ndarray:
    """1 minus the green channel, the field of view continued outwards.

    Returns:
        (H, W) ``float64`` in [0, 1].

    Raises:
        ValueError: if the field of view is empty.
    """
    if not sample.fov.any():
        raise ValueError(f"{sample.name}: the field of view is empty")
    green = 1 - sample.image[..., 1] / 255
    # the outermost pixels lie in the aperture's penumbra, and are dark like a vessel
    inside = ndimage.binary_erosion(sample.fov, iterations=max(1, round(3 * scale_of(sample))))
    inside = inside if inside.any() else sample.fov
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return green[tuple(nearest)]


def scale_of(sample: FundusSample) -> float:
    """How many times larger than DRIVE's the field of view is, in pixels."""
    return fov_width(sample.fov) / REFERENCE_WIDTH


def as_map(response: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """A detector's response as a map in [0, 1]: standardised in the field of view, then squashed.

    Args:
        response: (H, W), any real numbers, large on vessels.
        fov: (H, W) ``bool``.

    Returns:
        (H, W) ``float32``: σ of the distance to the mean in standard deviations; 0 outside the
        field of view. Photographs of different contrast can so share one threshold.
    """
    squashed = 1 / (1 + np.exp(-standardised(response, fov)))
    return np.where(fov, squashed, 0).astype(np.float32)


def standardised(response: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 in the field of view; rounding errors are not blown up."""
    spread = response[fov].std()
    return (response - response[fov].mean()) / (spread if spread > 1e-9 else 1.0)


def frangi(sample: FundusSample) -> np.ndarray:
    """The vesselness of Frangi et al. (1998): where the image curves like a tube.

    See :func:`vesselness`; σ is 1, 1.5, 2, 3 and 4 pixels.

    Returns:
        (H, W) ``float32`` in [0, 1].
    """
    sigmas = scale_of(sample) * np.array([1.0, 1.5, 2.0, 3.0, 4.0])
    response = vesselness(inverted_green(sample), sample.fov, sigmas)
    # a few pixels have by far the largest values: the logarithm lets the others be told apart
    return as_map(np.log(response + 1e-9), sample.fov)


def vesselness(image: np.ndarray, fov: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """How much an image looks like a bright tube, at the scale where it does most.

    The eigenvalues of the Hessian at each σ, times σ² (γ = 1 in equation 2 of Frangi et al.), so
    that wide vessels are not weighed down; of those, |λ₁| ≤ |λ₂|, the vesselness of equation 15
    with β = ½ and c half of the largest norm in the field of view; the largest over the scales.
    scikit-image's filter of this name leaves σ² out (its issue 7711), and the smallest scale wins.

    Args:
        image: (H, W), vessels bright.
        fov: (H, W) ``bool``.
        sigmas: in pixels.

    Returns:
        (H, W) in [0, 1].
    """
    best = np.zeros(image.shape)
    for sigma in sigmas:
        hessian = hessian_matrix(image, sigma, mode="nearest", use_gaussian_derivatives=True)
        values = sigma**2 * hessian_matrix_eigvals(hessian)  # 2×H×W
        along, across = np.take_along_axis(values, np.abs(values).argsort(axis=0), axis=0)
        norm = np.hypot(along, across)
        c = norm[fov].max() / 2
        if c > 1e-9:  # an even field has none
            blob = along / np.where(across == 0, 1, across)
            tube = np.exp(-2 * blob**2) * (1 - np.exp(-(norm**2) / (2 * c**2)))
            best = np.maximum(best, np.where(across < 0, tube, 0))  # bright ridges bend down
    return best


def matched_kernels(sigma: float, length: float, angles: int = 12) -> list[np.ndarray]:
    """Straight pieces of vessel with a Gaussian profile, in every direction.

    Chaudhuri et al. (1989), equation 3: −exp(−x²/2σ²) for |x| ≤ 3σ and |y| ≤ L/2, with the mean
    subtracted, so that an even background gives nothing. Positive here, for bright vessels.

    Args:
        sigma: of the profile, in pixels.
        length: L, in pixels.
        angles: number of directions over half a turn.

    Returns:
        Square kernels, each of sum 0.
    """
    half = int(np.ceil(np.hypot(3 * sigma, length / 2)))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernels = []
    for angle in np.arange(angles) * np.pi / angles:
        along = x * np.cos(angle) - y * np.sin(angle)
        across = x * np.sin(angle) + y * np.cos(angle)
        inside = (np.abs(across) <= 3 * sigma) & (np.abs(along) <= length / 2)
        kernel = np.where(inside, np.exp(-(across**2) / (2 * sigma**2)), 0)
        kernels.append(np.where(inside, kernel - kernel[inside].mean(), 0))
    return kernels


def matched_filter(sample: FundusSample) -> np.ndarray:
    """The matched filter of Chaudhuri et al. (1989): the best fitting of twelve directions.

    σ = 2 and L = 9 pixels, as in the paper.

    Returns:
        (H, W) ``float32`` in [0, 1].
    """
    image, scale = inverted_green(sample), scale_of(sample)
    return as_map(_strongest(image, matched_kernels(2 * scale, 9 * scale)), sample.fov)


def _strongest(image: np.ndarray, kernels: Iterable[np.ndarray]) -> np.ndarray:
    """The largest correlation with any of the kernels; two images at a time are in memory."""
    best = None
    for kernel in kernels:
        response = _correlate(image, kernel)
        best = response if best is None else np.maximum(best, response, out=best)
    return best


def _correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation of the same size, the border repeated."""
    half = kernel.shape[0] // 2
    padded = np.pad(image, half, mode="edge")
    return fftconvolve(padded, kernel[::-1, ::-1], mode="valid")


def line_kernel(length: int, angle: float) -> np.ndarray:
    """A one-pixel line through the middle, as weights that sum to 1.

    Args:
        length: odd, in pixels.
        angle: radians, counter-clockwise.
    """
    half = length // 2
    steps = np.linspace(-half, half, 4 * length + 1)
    kernel = np.zeros((length, length))
    rows = half - np.rint(steps * np.sin(angle)).astype(int)
    columns = half + np.rint(steps * np.cos(angle)).astype(int)
    kernel[rows, columns] = 1
    return kernel / kernel.sum()


def line_detector(sample: FundusSample) -> np.ndarray:
    """The multi-scale line detector of Nguyen et al. (2013): brightest line against the mean.

    For lines of 1, 3, … 15 pixels in twelve directions the largest mean along a line, less the
    mean over a window of 15×15; each length standardised, then averaged with the image itself
    (equations 3 to 6).

    Returns:
        (H, W) ``float32`` in [0, 1].
    """
    image, fov = inverted_green(sample), sample.fov
    window = max(3, round(15 * scale_of(sample)) // 2 * 2 + 1)
    background = ndimage.uniform_filter(image, window, mode="nearest")

    lengths = sorted({max(1, round(i * window / 15) // 2 * 2 + 1) for i in range(1, 16, 2)})
    total = standardised(image, fov)
    for length in lengths:
        along = _strongest(image, (line_kernel(length, k * np.pi / 12) for k in range(12)))
        total = total + standardised(along - background, fov)
    return as_map(total / (1 + len(lengths)), fov)


CLASSICAL: dict[str, Callable[[FundusSample], np.ndarray]] = {
    "frangi": frangi,
    "matched-filter": matched_filter,
    "line-detector": line_detector,
}
