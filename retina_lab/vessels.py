"""Measurements on vessel maps."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from retina_lab.metrics import skeleton


def vessel_widths(vessels: np.ndarray, fov: np.ndarray | None = None) -> np.ndarray:
    """The width of the vessels, once for every pixel of their centre lines.

    A centre-line pixel is as far from the background on either side: twice that distance is the
    width. Distances are taken on a map of doubled resolution, because on the pixel grid itself
    a vessel of even width has no middle pixel, and would come out one pixel too narrow.

    Args:
        vessels: (H, W) ``bool``.
        fov: (H, W) ``bool``: keep the centre-line pixels inside only. None: all.

    Returns:
        (number of centre-line pixels,) ``float64``, widths in pixels, at least 1. Longer vessels
        count more: it is a distribution over length, not over vessels.

    Raises:
        ValueError: if ``vessels`` is not a two-dimensional ``bool`` array or ``fov`` differs in
            shape.
    """
    vessels = _checked(vessels)
    if fov is not None and np.shape(fov) != vessels.shape:
        raise ValueError(f"fov is {np.shape(fov)} but vessels is {vessels.shape}")
    centre_line = skeleton(vessels)
    if fov is not None:
        centre_line &= np.asarray(fov, bool)
    return _widths_along_axis(vessels)[centre_line]


def width_map(vessels: np.ndarray) -> np.ndarray:
    """The width of the vessel that each pixel belongs to, to tell thin vessels from thick ones.

    A vessel pixel takes the width of the centre-line pixel nearest to it, as measured by
    :func:`vessel_widths`. Around a branching the nearest centre line may be that of the branch.

    Args:
        vessels: (H, W) ``bool``.

    Returns:
        (H, W) ``float64``, widths in pixels, at least 1 on vessels and 0 elsewhere.

    Raises:
        ValueError: if ``vessels`` is not a two-dimensional ``bool`` array.
    """
    vessels = _checked(vessels)
    centre_line = skeleton(vessels)
    if not centre_line.any():
        return np.zeros(vessels.shape)
    nearest = distance_transform_edt(~centre_line, return_distances=False, return_indices=True)
    return np.where(vessels, _widths_along_axis(vessels)[tuple(nearest)], 0.0)


def found_by_width(
    prediction: np.ndarray, truth: np.ndarray, where: np.ndarray | None = None, widest: int = 12
) -> np.ndarray:
    """Sensitivity by width: of the vessel pixels of each width, how many a prediction marks.

    Args:
        prediction: (H, W) ``bool``.
        truth: (H, W) ``bool``; its widths are those of :func:`width_map`, rounded.
        where: (H, W) ``bool``: the pixels to count, such as the field of view. None: all.
        widest: in pixels; wider vessels are counted with it.

    Returns:
        (2, widest + 1) ``int64``: for widths 0, 1, … ``widest`` the pixels of ``truth``, and below
        them those that ``prediction`` marks too. Add several to pool images.

    Raises:
        ValueError: if a map is not a two-dimensional ``bool`` array or the shapes differ.
    """
    prediction, truth = _checked(prediction), _checked(truth)
    where = np.ones(truth.shape, bool) if where is None else _checked(where)
    for name, plane in {"prediction": prediction, "where": where}.items():
        if plane.shape != truth.shape:
            raise ValueError(f"{name} is {plane.shape} but truth is {truth.shape}")
    widths = np.rint(width_map(truth)).astype(int).clip(max=widest)
    return np.stack(
        [
            np.bincount(widths[marked], minlength=widest + 1)
            for marked in (truth & where, truth & where & prediction)
        ]
    )


def busiest_window(vessels: np.ndarray, side: int) -> tuple[slice, slice]:
    """The square with the most vessel pixels: a detail worth looking at.

    Args:
        vessels: (H, W) ``bool``.
        side: of the square in pixels; on a smaller map it is as large as fits.

    Returns:
        Rows and columns, so that ``picture[busiest_window(vessels, 96)]`` cuts it out; the first
        of several in reading order.

    Raises:
        ValueError: if ``vessels`` is not a two-dimensional ``bool`` array.
    """
    vessels = _checked(vessels)
    side = min(side, *vessels.shape)
    # With sums from the top left corner, the sum over a rectangle is a matter of its corners.
    total = np.pad(vessels.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    lower, upper = total[side:], total[:-side]
    inside = lower[:, side:] - lower[:, :-side] - upper[:, side:] + upper[:, :-side]
    top, left = (int(i) for i in np.unravel_index(inside.argmax(), inside.shape))
    return slice(top, top + side), slice(left, left + side)


def _widths_along_axis(vessels: np.ndarray) -> np.ndarray:
    """(H, W) twice the distance to the background, which on a centre line is the width."""
    # A ring of background: what the frame cuts off must not look infinitely wide.
    doubled = np.pad(vessels, 1).repeat(2, axis=0).repeat(2, axis=1)
    distance = distance_transform_edt(doubled)[2:-2, 2:-2]  # in half pixels, (2H, 2W)
    height, width = vessels.shape
    return distance.reshape(height, 2, width, 2).max(axis=(1, 3))


def _checked(vessels: np.ndarray) -> np.ndarray:
    vessels = np.asarray(vessels)
    if vessels.ndim != 2 or vessels.dtype != np.bool_:
        raise ValueError(f"vessels must be an H×W bool array, not {vessels.shape} {vessels.dtype}")
    return vessels
