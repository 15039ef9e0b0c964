"""Find the field of view: the part of a fundus photograph that shows the eye.

A fundus camera sees through a round aperture, so the border is a circle, often cut flat at the
top and the bottom and clipped by the edge of the image. Scores are only counted inside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

# Everything below is measured on an image of at most this many pixels a side. The border is then
# drawn at full size, so a large photograph loses time, not precision.
WORKING_SIDE = 800
RAYS = 720
SHARP = 0.7
# What lies outside must look like the corners: measured against the brightness of the eye, half of
# it differs by less than the first share and all but a twentieth by less than the second. (Largest
# in the 133 photographs that this was made with: .22 and .30; crops of a retina: .13 to 1 and
# .31 to 3, and their edges are not sharp.)
PLAIN = (0.25, 0.45)
# The border is drawn where brightness has fallen to this share of its drop: hand-made masks
# include most of the blurred rim. One half would shrink DRIVE's masks by .7 %.
RIM = 1 / 3
MIN_DROP = 6.0  # grey levels


class Circle(NamedTuple):
    """Centre (row, column) and radius in pixels; pixel centres have whole coordinates."""

    row: float
    column: float
    radius: float


class _Rays(NamedTuple):
    """Where rays from the middle of the eye cross its border.

    points: (RAYS, 2) row and column; NaN where a ray leaves the image first.
    sharpness: (RAYS,) share of the drop in brightness around the border that happens within
        three pixels of it. About one at an aperture, about a third in a shadow.
    """

    points: np.ndarray
    sharpness: np.ndarray


def estimate_fov(image: np.ndarray) -> np.ndarray:
    """Estimate the field of view of a fundus photograph.

    Pixels that differ from the colour of the corners give a first outline; rays from its middle
    find the border to a fraction of a pixel; a circle is fitted to them by random sampling, so
    that a notch, a dark quadrant or a lesion at the rim does not move it, and straight sharp cuts
    are kept as straight lines. Where no circle or upright ellipse explains the border, the convex
    hull of the first outline is taken. An image without a border (a crop of a retina) is its own
    field of view.

    Args:
        image: (H, W, 3) ``uint8``; the background may be dark or bright, but must be plain.

    Returns:
        (H, W) ``bool``, without holes.

    Raises:
        ValueError: if ``image`` is not H×W×3 ``uint8``.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the image must be H×W×3 uint8, not {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    factor = -(-max(height, width) // WORKING_SIDE)
    whole = np.ones((height, width), bool)
    small = _shrink(image, factor)
    if min(small.shape[:2]) < 16:
        return whole
    contrast = _contrast_to_background(small)
    outline = _first_outline(contrast)
    if outline is None:
        return whole
    outside = np.quantile(contrast[~outline], (0.5, 0.95)) / np.median(contrast[outline])
    if np.any(outside > PLAIN):
        return whole  # there is more eye outside, or no background at all
    rays = _border_rays(contrast, outline)
    found = ~np.isnan(rays.points[:, 0])
    if found.sum() < RAYS // 10 or np.median(rays.sharpness[found]) < SHARP:
        return whole  # brightness only fades: that is vignetting, not a border
    for stretch in (1.0, None):
        # A photograph resized to another aspect ratio has an ellipse for a border; stretching its
        # columns makes it a circle again.
        circle, stretch = _fit_circle(rays.points[found], contrast.shape, stretch)
        if circle is None:
            continue
        stretched = _Rays(rays.points * (1, stretch), rays.sharpness)
        cuts = _straight_cuts(stretched, circle)
        if _unexplained(stretched, circle, cuts, contrast, stretch) < 0.15:
            return _draw(circle, cuts, (height, width), factor, stretch)
    return _hull(outline, (height, width), factor)


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """(H // factor, W // factor, 3) ``float32``, means of factor×factor pixels."""
    height, width = (side // factor for side in image.shape[:2])
    blocks = image[: height * factor, : width * factor].astype(np.float32)
    return blocks.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))


def _contrast_to_background(image: np.ndarray) -> np.ndarray:
    """(H, W) difference to the colour of the corners, the largest over the channels."""
    side = max(4, round(0.02 * min(image.shape[:2])))
    ends = (slice(None, side), slice(-side, None))
    corners = np.array([np.median(image[r, c], axis=(0, 1)) for r in ends for c in ends])
    spread = np.abs(corners - np.median(corners, axis=0)).max()
    # Corners that disagree: the eye reaches into some of them, so the darkest is background.
    background = corners[corners.sum(axis=1).argmin()] if spread > 40 else np.median(corners, 0)
    smooth = ndimage.gaussian_filter(image, (1, 1, 0))
    return np.abs(smooth - background).max(axis=2)


def _first_outline(contrast: np.ndarray) -> np.ndarray | None:
    """Largest region that stands out, without holes; None if nothing does or everything does."""
    bright = np.median(contrast[contrast >= _otsu(contrast)])
    mask = contrast > 0.3 * bright
    radius = max(1, round(0.005 * max(contrast.shape)))
    mask = ndimage.binary_opening(mask, iterations=radius)
    labels, count = ndimage.label(mask)
    if count == 0 or bright < 10:
        return None
    mask = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    mask = ndimage.binary_fill_holes(mask)
    share = mask.mean()
    return mask if 0.1 < share < 0.995 else None


def _otsu(values: np.ndarray) -> float:
    from skimage.filters import threshold_otsu

    return threshold_otsu(values) if np.ptp(values) > 0 else 0.0


def _border_rays(contrast: np.ndarray, outline: np.ndarray) -> _Rays:
    height, width = contrast.shape
    middle = np.array(ndimage.center_of_mass(outline))
    angles = np.arange(RAYS) * (2 * np.pi / RAYS)
    direction = np.stack([np.sin(angles), np.cos(angles)], axis=1)  # (RAYS, 2)
    edges = np.array([height - 1, width - 1])
    with np.errstate(divide="ignore"):
        room = np.where(direction > 0, edges - middle, -middle) / direction
    room = np.abs(room).min(axis=1)  # (RAYS,) distance to the edge of the image
    reach = np.arange(int(np.hypot(height, width)))
    rows, columns = (
        np.rint(middle[axis] + direction[:, axis, None] * np.minimum(reach, room[:, None]))
        for axis in (0, 1)
    )  # (RAYS, len(reach))
    covered = outline[rows.astype(int), columns.astype(int)] & (reach <= room[:, None])
    last = reach.size - 1 - covered[:, ::-1].argmax(axis=1)  # (RAYS,) outermost covered pixel
    margin = max(10, round(0.03 * np.sqrt(outline.sum() / np.pi)))
    offsets = np.arange(-margin, margin + 0.25, 0.5)
    distances = last[:, None] + offsets  # (RAYS, len(offsets))
    lines = ndimage.map_coordinates(
        contrast,
        [middle[axis] + direction[:, axis, None] * distances for axis in (0, 1)],
        order=1,
        mode="nearest",
    )
    points, sharpness = np.full((RAYS, 2), np.nan), np.zeros(RAYS)
    for ray in range(RAYS):
        line = lines[ray, distances[ray] <= room[ray]]
        here = 2 * margin  # index of the outline in the line
        if line.size <= here + margin // 2:
            continue  # the edge of the image comes first
        within, without = np.median(line[: margin + 1]), line[here:].min()
        rim = without + RIM * (within - without)
        falls = np.flatnonzero((line[:-1] >= rim) & (line[1:] < rim))
        if falls.size == 0 or within - without < MIN_DROP:
            continue
        first = falls[np.abs(falls - here).argmin()]
        fraction = (line[first] - rim) / (line[first] - line[first + 1])
        points[ray] = middle + direction[ray] * (distances[ray, first] + 0.5 * fraction)
        near = line[max(0, first - 6) : first + 8]
        sharpness[ray] = np.ptp(near) / np.ptp(line)
    return _Rays(points, sharpness)


def _fit_circle(
    points: np.ndarray, shape: tuple[int, int], stretch: float | None
) -> tuple[Circle | None, float]:
    """Circle through a good part of ``points`` by random sampling, then least squares.

    With ``stretch`` None the columns are stretched by the factor that suits most points; the
    circle is in stretched coordinates.
    """
    generator = np.random.default_rng(0)
    triples = generator.integers(len(points), size=(400, 3))
    if stretch is None:
        factors = np.geomspace(0.6, 1 / 0.6, 41)
        votes = [_vote(points * (1, f), triples, shape)[1].sum() for f in factors]
        stretch = factors[np.argmax(votes)]
    points = points * (1, stretch)
    circle, agreeing = _vote(points, triples, shape)
    for _ in range(5):
        if circle is None or agreeing.sum() < 0.25 * len(points):
            return None, stretch
        circle = _algebraic_circle(points[agreeing])
        agreeing = _misses(points, circle) < _tolerance(circle)
    return circle, stretch


def _vote(
    points: np.ndarray, triples: np.ndarray, shape: tuple[int, int]
) -> tuple[Circle | None, np.ndarray]:
    """The circle through three of ``points`` that most points agree with, and which ones do."""
    a, b, c = points[triples].transpose(1, 0, 2)
    u, v = b - a, c - a
    twice_area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    uu, vv = (u**2).sum(1), (v**2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (
            a
            + np.stack([v[:, 1] * uu - u[:, 1] * vv, u[:, 0] * vv - v[:, 0] * uu], axis=1)
            / (2 * twice_area)[:, None]
        )
    radius = np.hypot(*(a - centre).T)
    good = np.isfinite(radius) & (radius > 0.2 * min(shape)) & (radius < 2 * max(shape))
    if not good.any():
        return None, np.zeros(len(points), bool)
    centre, radius = centre[good], radius[good]
    distance = np.hypot(*(points[:, None] - centre).transpose(2, 0, 1))  # (points, circles)
    agree = np.abs(distance - radius) < np.maximum(1.0, 0.004 * radius)
    best = agree.sum(axis=0).argmax()
    return Circle(*centre[best], radius[best]), agree[:, best]


def _unexplained(
    rays: _Rays, circle: Circle, cuts: list[np.ndarray], contrast: np.ndarray, stretch: float
) -> float:
    """Share of the rays with a sharp border that neither the circle nor a cut accounts for."""
    sharp = (rays.sharpness >= SHARP) & (_misses(rays.points, circle) > 2 * _tolerance(circle))
    for cut in cuts:
        sharp &= np.abs(rays.points @ cut[:2] - cut[2]) > 2 * _tolerance(circle)
    # Where the eye is dim the first outline stops short of its border. If brightness drops at the
    # circle all the same, the circle is right.
    outward = rays.points[sharp] - circle[:2]
    outward /= np.hypot(*outward.T)[:, None]
    around = circle.radius + np.array([-6, -5, -4, -3, 3, 4, 5, 6.0])
    rows, columns = (circle[axis] + outward[:, axis, None] * around for axis in (0, 1))
    values = ndimage.map_coordinates(contrast, [rows, columns / stretch], order=1, mode="nearest")
    drop = np.median(values[:, :4], axis=1) - np.median(values[:, 4:], axis=1)
    return np.sum(drop < MIN_DROP / 2) / RAYS


def _tolerance(circle: Circle) -> float:
    return max(1.0, 0.004 * circle.radius)


def _misses(points: np.ndarray, circle: Circle) -> np.ndarray:
    return np.abs(np.hypot(*(points - circle[:2]).T) - circle.radius)


def _algebraic_circle(points: np.ndarray) -> Circle | None:
    """Least-squares solution of 2·r·a + 2·c·b + k = r² + c² (Kåsa's fit); None if collinear."""
    design = np.column_stack([2 * points, np.ones(len(points))])
    solution, _, rank, _ = np.linalg.lstsq(design, (points**2).sum(axis=1), rcond=None)
    square = solution[2] + solution[0] ** 2 + solution[1] ** 2
    return Circle(*solution[:2], np.sqrt(square)) if rank == 3 and square > 0 else None


def _straight_cuts(rays: _Rays, circle: Circle) -> list[np.ndarray]:
    """Lines (row, column, offset) with row·r + column·c ≤ offset inside, where a border is cut."""
    depth = circle.radius - np.hypot(*(rays.points - circle[:2]).T)
    short = depth > 2 * _tolerance(circle)  # False where the ray found nothing
    cuts = []
    for run in _runs(short):
        # Fewer than 6 degrees is a notch; a soft edge is a shadow. Neither is an aperture.
        if len(run) < RAYS // 60 or np.median(rays.sharpness[run]) < SHARP:
            continue
        points = rays.points[run]
        line = _fit_line(points, circle)
        on_line = points[np.abs(points @ line[:2] - line[2]) < 1.5 * _tolerance(circle)]
        if len(on_line) < 0.6 * len(points):
            continue
        # A cut goes from rim to rim; something dark at the rim is shorter than its chord.
        away = line[2] - line[:2] @ circle[:2]
        chord = 2 * np.sqrt(max(0.0, circle.radius**2 - away**2))
        if np.ptp(on_line @ (-line[1], line[0])) > 0.7 * chord:
            cuts.append(line)
    return cuts


def _runs(flags: np.ndarray) -> list[np.ndarray]:
    """Indices of the runs of true values around a ring."""
    if flags.all() or not flags.any():
        return []
    start = np.flatnonzero(~flags)[0]
    labels, count = ndimage.label(np.roll(flags, -start))
    return [(np.flatnonzero(labels == k) + start) % flags.size for k in range(1, count + 1)]


def _fit_line(points: np.ndarray, circle: Circle) -> np.ndarray:
    """The line that most of ``points`` lie on, its normal pointing away from the centre."""
    generator = np.random.default_rng(0)
    best, most = None, -1
    for _ in range(50):
        a, b = points[generator.choice(len(points), 2, replace=False)]
        normal = np.array([b[1] - a[1], a[0] - b[0]])
        length = np.hypot(*normal)
        if length == 0:
            continue
        near = np.abs((points - a) @ (normal / length)) < _tolerance(circle)
        if near.sum() > most:
            best, most = near, near.sum()
    chosen = points[best]
    centre = chosen.mean(axis=0)
    normal = np.linalg.svd(chosen - centre, full_matrices=False)[2][1]
    if normal @ (centre - circle[:2]) < 0:
        normal = -normal
    return np.array([*normal, normal @ centre])


def _draw(
    circle: Circle, cuts: list[np.ndarray], shape: tuple[int, int], factor: int, stretch: float
) -> np.ndarray:
    # Pixel k of the small image is the mean of pixels k·factor … k·factor + factor − 1.
    rows, columns = (
        (axis - (factor - 1) / 2) / factor for axis in np.ogrid[: shape[0], : shape[1]]
    )
    columns = columns * stretch
    mask = (rows - circle.row) ** 2 + (columns - circle.column) ** 2 <= circle.radius**2
    for row, column, offset in cuts:
        mask &= row * rows + column * columns <= offset
    return mask


def _hull(outline: np.ndarray, shape: tuple[int, int], factor: int) -> np.ndarray:
    from skimage.morphology import convex_hull_image

    hull = convex_hull_image(outline)
    large = hull.repeat(factor, axis=0).repeat(factor, axis=1)
    pad = [(0, side - have) for side, have in zip(shape, large.shape, strict=True)]
    return np.pad(large, pad, mode="edge")
