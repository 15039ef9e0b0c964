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
    vessels = np.asarray(vessels)
    if vessels.ndim != 2 or vessels.dtype != np.bool_:
        raise ValueError(f"vessels must be an H×W bool array, not {vessels.shape} {vessels.dtype}")
    if fov is not None and np.shape(fov) != vessels.shape:
        raise ValueError(f"fov is {np.shape(fov)} but vessels is {vessels.shape}")
    centre_line = skeleton(vessels)
    if fov is not None:
        centre_line &= np.asarray(fov, bool)
    # A ring of background: what the frame cuts off must not look infinitely wide.
    doubled = np.pad(vessels, 1).repeat(2, axis=0).repeat(2, axis=1)
    distance = distance_transform_edt(doubled)[2:-2, 2:-2]  # in half pixels, (2H, 2W)
    height, width = vessels.shape
    largest = distance.reshape(height, 2, width, 2).max(axis=(1, 3))
    return largest[centre_line]
