"""Judging synthesis honestly: are made-up trees and photographs right, new, various, and useful?

No single number answers that. Each function here answers one question, and most come with a
control: the same figure for real photographs against other real ones, which is what a perfect
generator would reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.stats import wasserstein_distance

from retina_lab.metrics import betti_numbers, skeleton
from retina_lab.preprocess import fov_width
from retina_lab.vessels import vessel_widths

STATISTICS = (
    "vessel share",
    "length density",
    "mean width",
    "branchings",
    "tortuosity",
    "fractal dimension",
    "pieces",
)
COLLAPSE = 0.5
"""Below this share of the real photographs' variety the mode-collapse alarm sounds."""


# --- vessel statistics -----------------------------------------------------------------------


def tree_statistics(vessels: np.ndarray, fov: np.ndarray) -> dict[str, float]:
    """What a vessel tree looks like in seven numbers, to be compared at one size in pixels.

    Lengths are in diameters of the field of view, so that most of them hold at any resolution;
    pieces and fractal dimension do not, for thin vessels break where pixels are large.

    Args:
        vessels: (H, W) ``bool``.
        fov: (H, W) ``bool``.

    Returns:
        ``vessel share`` of the field's pixels; ``length density``, length of the centre lines
        over the field's area; ``mean width``; ``branchings``, branching points per length;
        ``tortuosity``, length over distance of the ends of each stretch between branchings,
        averaged by length, ≥ 1; ``fractal dimension`` of the centre lines by box counting, in
        [0, 2]; ``pieces``, the number of connected components. NaN where there is nothing to
        measure.

    Raises:
        ValueError: if the shapes differ or the field of view is empty.
    """
    vessels, fov = np.asarray(vessels, bool), np.asarray(fov, bool)
    if vessels.shape != fov.shape:
        raise ValueError(f"vessels is {vessels.shape} but fov is {fov.shape}")
    diameter = fov_width(fov)
    if not diameter:
        raise ValueError("the field of view is empty")
    vessels = vessels & fov
    line = skeleton(vessels)
    length = line_length(line) / diameter
    stretches = _stretches(line)
    nothing = not line.any()
    return {
        "vessel share": float(vessels.sum() / fov.sum()),
        "length density": float(length / (fov.sum() / diameter**2)),
        "mean width": np.nan if nothing else float(vessel_widths(vessels).mean() / diameter),
        "branchings": float(len(branching_points(line)) / length) if length else np.nan,
        "tortuosity": _tortuosity(stretches, shortest=max(diameter / 50, 10)),
        "fractal dimension": fractal_dimension(line),
        "pieces": float(betti_numbers(vessels)[0]),
    }


EIGHT = np.ones((3, 3), int)


def _neighbours(line: np.ndarray) -> np.ndarray:
    """How many of its eight neighbours each pixel of a line has."""
    count = ndimage.convolve(line.astype(int), EIGHT, mode="constant") - line
    return np.where(line, count, 0)


def line_length(line: np.ndarray) -> float:
    """Length of a one-pixel line: 1 from side to side, √2 from corner to corner.

    Two pixels that touch at a corner and share a neighbour on a side are joined through it.

    Args:
        line: (H, W) ``bool``.

    Returns:
        Pixels, ≥ 0.
    """
    line = np.asarray(line, bool)
    straight = (line[1:] & line[:-1]).sum() + (line[:, 1:] & line[:, :-1]).sum()
    a, b, c, d = line[:-1, :-1], line[:-1, 1:], line[1:, :-1], line[1:, 1:]
    diagonal = (a & d & ~b & ~c).sum() + (b & c & ~a & ~d).sum()
    return float(straight + np.sqrt(2) * diagonal)


def branching_points(line: np.ndarray) -> np.ndarray:
    """Where a centre line branches: (number, 2) rows and columns, one a cluster of pixels.

    Args:
        line: (H, W) ``bool``, one pixel thin.
    """
    clusters, count = ndimage.label(_neighbours(line) > 2, structure=EIGHT)
    if not count:
        return np.zeros((0, 2))
    return np.array(ndimage.center_of_mass(clusters > 0, clusters, range(1, count + 1)))


def _stretches(line: np.ndarray) -> list[tuple[float, float]]:
    """Length and distance of the ends of every stretch between branchings."""
    alone = line & ~ndimage.binary_dilation(_neighbours(line) > 2, structure=EIGHT)
    labels, _ = ndimage.label(alone, structure=EIGHT)
    found = []
    for number, where in enumerate(ndimage.find_objects(labels), start=1):
        piece = labels[where] == number
        ends = np.argwhere(piece & (_neighbours(piece) == 1))
        if len(ends) == 2:
            found.append((line_length(piece), float(np.hypot(*(ends[0] - ends[1])))))
    return found


def _tortuosity(stretches: list[tuple[float, float]], shortest: float) -> float:
    """Mean of length over distance, weighted by length; the pixel grid's own wobble left out."""
    long = [(length, chord) for length, chord in stretches if chord > 0 and length >= shortest]
    if not long:
        return float("nan")
    lengths, chords = np.array(long).T
    return float((lengths / chords) @ lengths / lengths.sum())


def fractal_dimension(line: np.ndarray) -> float:
    """Box-counting dimension: how fast the number of boxes grows that touch the line.

    The slope of log(number) over log(1 / side), by least squares, for sides 2, 4, 8, … up to an
    eighth of the image. A straight line has 1, a filled square 2; retinal trees about 1.4 to 1.7
    (Mainster 1990).

    Args:
        line: (H, W) ``bool``.

    Returns:
        A number in [0, 2]; NaN for an empty line or an image below 32 pixels.
    """
    line = np.asarray(line, bool)
    sides = [2**k for k in range(1, 12) if 2**k <= min(line.shape) / 8]
    if not line.any() or len(sides) < 2:
        return float("nan")
    counts = []
    for side in sides:
        height, width = (-(-n // side) * side for n in line.shape)
        padded = np.pad(line, ((0, height - line.shape[0]), (0, width - line.shape[1])))
        boxes = padded.reshape(height // side, side, width // side, side).any(axis=(1, 3))
        counts.append(boxes.sum())
    return float(np.polyfit(-np.log(sides), np.log(counts), 1)[0])


def halves(subjects: Sequence, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Divide pictures at random into two halves, all pictures of one person in the same half.

    Args:
        subjects: the person of each.
        seed: of the draw.

    Returns:
        The indices of both, of about the same length.
    """
    persons = np.array([str(subject) for subject in subjects])
    order = np.random.default_rng(seed).permutation(np.unique(persons))
    first = np.isin(persons, order[: len(order) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def compare_trees(
    made: Sequence[tuple[np.ndarray, np.ndarray]],
    real: Sequence[tuple[np.ndarray, np.ndarray]],
    subjects: Sequence | None = None,
) -> pd.DataFrame:
    """Statistics of made-up trees beside those of real ones, with distances.

    Distance and control are between groups of one size, for the distance between two samples of
    one distribution grows as they get smaller.

    Args:
        made: (vessels, fov) pairs.
        real: (vessels, fov) pairs, at least four, best twice as many.
        subjects: the person of each of the real ones; each its own if not given.

    Returns:
        One row a statistic: means and standard deviations of both; ``distance``, the Wasserstein
        distance of made-up trees from one half of the real ones, in standard deviations of the
        real ones; and ``control``, the same of the other half.

    Raises:
        ValueError: if there are too few.
    """
    if len(made) < 2 or len(real) < 4:
        raise ValueError("a comparison needs at least two made-up and four real trees")
    ours, theirs = (pd.DataFrame([tree_statistics(*p) for p in pairs]) for pairs in (made, real))
    one, other = halves(range(len(real)) if subjects is None else subjects)
    size = min(len(made), len(one), len(other))
    rows = []
    for name in STATISTICS:
        groups = ours[name], theirs[name].iloc[other], theirs[name].iloc[one]
        a, c, b = (group.iloc[:size].dropna().to_numpy() for group in groups)
        spread = theirs[name].std(ddof=0)
        rows.append(
            {
                "statistic": name,
                "made": ours[name].mean(),
                "made_sd": ours[name].std(ddof=0),
                "real": theirs[name].mean(),
                "real_sd": spread,
                "distance": _distance(a, b, spread),
                "control": _distance(c, b, spread),
            }
        )
    return pd.DataFrame(rows).set_index("statistic")


def _distance(one: np.ndarray, other: np.ndarray, spread: float) -> float:
    if not len(one) or not len(other):
        return float("nan")
    apart = wasserstein_distance(one, other)
    if spread == 0:  # all real ones are alike, such as trees in one piece
        return 0.0 if apart == 0 else float("inf")
    return apart / spread


# --- features, distances, neighbours ---------------------------------------------------------


READ_AT = 256
"""Width in pixels at which our segmentation networks read smaller pictures."""


def reader(run, size: int):
    """One of our own segmentation networks, told to read small pictures at ``READ_AT`` pixels.

    As it is, a small picture's vessels are too thin to be seen: in training pictures brought to
    128 pixels, real ones and phantoms, the shipped networks agree much better with the labels at
    256. Blown up to the full width that it has learned from, the one for phantoms sees less again.
    Larger pictures are read as they are.

    Args:
        run: a :class:`retina_lab.train.Run`; it is left as it was.
        size: side of the pictures in pixels.

    Returns:
        The same run, with another field of view to work at, but none wider than its own.
    """
    wanted = max(READ_AT, size)
    own = run.settings.get("fov_width") or wanted
    return replace(run, settings={**run.settings, "fov_width": min(own, wanted)})


@torch.inference_mode()
def network_features(run, samples: Sequence) -> np.ndarray:
    """What one of our own segmentation networks sees in photographs, as vectors.

    The mean over the field of view of every channel of every encoder level and of the bridge.
    This is no Inception network: distances in these features are named after the network, and
    are not comparable with published inception distances.

    Args:
        run: a :class:`retina_lab.train.Run` of a U-shaped network.
        samples: photographs.

    Returns:
        (number, features) ``float64``.
    """
    import torch.nn.functional as F

    from retina_lab.models.unet import pad_to_multiple
    from retina_lab.preprocess import at_working_scale, normalise, to_batch

    model, vectors = run.model.eval(), []
    device = next(model.parameters()).device  # predicting may have moved it to a GPU
    for sample in samples:
        batch = at_working_scale(to_batch(sample), sample.fov, run.settings.get("fov_width"))
        x = normalise(batch["image"], batch["fov"], run.normalisation)
        x, inside = (
            pad_to_multiple(plane, 2 ** len(model.encoder)).to(device)
            for plane in (x, batch["fov"])
        )
        means = []
        for block in [*model.encoder, model.bridge]:
            x = block(x)
            means.append((x * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1))
            x, inside = F.max_pool2d(x, 2), F.max_pool2d(inside, 2)
        vectors.append(torch.cat(means, dim=1)[0])
    return torch.stack(vectors).cpu().double().numpy()  # Apple's GPUs have no float64


def kernel_distance(made: np.ndarray, real: np.ndarray) -> float:
    r"""Squared maximum mean discrepancy with the kernel :math:`(x·y/d + 1)^3`, unbiased.

    The "kernel inception distance" of Bińkowski et al. 2018 (arXiv:1801.01401), on any features.
    Zero on average if both sets come from one distribution; it may be negative.

    Args:
        made: (n, d), n ≥ 2.
        real: (m, d), m ≥ 2.

    Raises:
        ValueError: if there are too few, or the features differ in number.
    """
    made, real = np.asarray(made, float), np.asarray(real, float)
    if made.ndim != 2 or real.ndim != 2 or made.shape[1] != real.shape[1]:
        raise ValueError(f"features of {made.shape} and {real.shape} cannot be compared")
    if len(made) < 2 or len(real) < 2:
        raise ValueError("the kernel distance needs at least two of each")

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return float(
        off_diagonal(kernel(made, made))
        + off_diagonal(kernel(real, real))
        - 2 * kernel(made, real).mean()
    )


def _flat(pictures: np.ndarray) -> np.ndarray:
    pictures = np.asarray(pictures)
    scale = 255 if pictures.dtype == np.uint8 else 1
    return pictures.reshape(len(pictures), -1).astype(np.float32) / scale


def nearest(
    made: np.ndarray, known: np.ndarray, but: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The training picture that each made-up one is nearest to, mirrored or not.

    Args:
        made: (n, H, W) or (n, H, W, 3): trees as ``bool``; pictures as ``uint8`` or in [0, 1].
        known: (m, …) of the same size: what the model was trained on.
        but: (n, m) ``bool``: whom it must not be, such as itself.

    Returns:
        (n,) indices, and (n,) distances in [0, 1]: of pictures the mean absolute difference of
        the pixels; of trees 1 − Dice, the share of their vessel pixels that they do not share,
        because by differences of pixels a blank page is nearest to every tree.

    Raises:
        ValueError: if the sizes differ or nobody is left.
    """
    made, known = np.asarray(made), np.asarray(known)
    if made.shape[1:] != known.shape[1:]:
        raise ValueError(f"pictures of {made.shape[1:]} and {known.shape[1:]} cannot be compared")
    trees = made.dtype == known.dtype == bool
    candidates = np.concatenate([_flat(known), _flat(known[:, :, ::-1])])
    amounts = candidates.sum(axis=1)
    index, distance = np.zeros(len(made), int), np.zeros(len(made))
    for i, picture in enumerate(_flat(made)):
        if trees:
            total = np.maximum(amounts + picture.sum(), 1)
            distances = 1 - 2 * (candidates @ picture) / total
        else:
            distances = np.abs(candidates - picture).mean(axis=1)
        if but is not None:
            distances = np.where(np.tile(but[i], 2), np.inf, distances)
        index[i], distance[i] = distances.argmin() % len(known), distances.min()
    if not np.isfinite(distance).all():
        raise ValueError("a nearest neighbour needs pictures of at least two persons")
    return index, distance


def nearness(
    made: np.ndarray, known: np.ndarray, subjects: Sequence | None = None
) -> dict[str, float]:
    """How near made-up pictures come to known ones, beside how near these come to each other.

    Args:
        made: see :func:`nearest`.
        known: see :func:`nearest`; at least two.
        subjects: the person of each of the known ones; each its own if not given. The fellow eye
            is almost a mirror image.

    Returns:
        ``made``, the median distance to the nearest known one; ``control``, the median distance
        of known ones to the nearest one of another person. Copies lie much closer than that.

    Raises:
        ValueError: if the sizes differ, or all are of one person.
    """
    persons = np.array([str(s) for s in (range(len(known)) if subjects is None else subjects)])
    few = np.random.default_rng(0).permutation(len(known))[: len(made)]
    _, distance = nearest(made, known)
    _, control = nearest(known[few], known, but=persons[few][:, None] == persons[None])
    return {"made": float(np.median(distance)), "control": float(np.median(control))}


def variety(pictures: np.ndarray) -> float:
    """Mean absolute difference of the pixels of two of the pictures, averaged over all pairs.

    Args:
        pictures: (n, H, W) or (n, H, W, 3), n ≥ 2, ``uint8`` or in [0, 1].

    Returns:
        A number in [0, 1]; 0 if they are all the same.

    Raises:
        ValueError: if there are fewer than two.
    """
    flat = _flat(pictures)
    if len(flat) < 2:
        raise ValueError("variety needs at least two pictures")
    total = sum(np.abs(flat[i + 1 :] - flat[i]).mean(axis=1).sum() for i in range(len(flat) - 1))
    return float(total / (len(flat) * (len(flat) - 1) / 2))


def mode_collapse(made: np.ndarray, real: np.ndarray) -> tuple[bool, float]:
    """Whether a generator makes too much of the same.

    Args:
        made: pictures, see :func:`variety`.
        real: pictures of the same size.

    Returns:
        The alarm, and the made-up pictures' variety as a share of the real ones'; it sounds
        below ``COLLAPSE``.
    """
    share = variety(made) / variety(real)
    return share < COLLAPSE, share


def agreement(trees: Mapping[str, np.ndarray], samples: Sequence, run) -> float:
    """Dice of the trees put in and the trees that a segmentation network finds in the paintings.

    Args:
        trees: (H, W) ``bool`` by name: what was painted.
        samples: the paintings, of these names.
        run: a :class:`retina_lab.train.Run`, trained on other photographs.

    Returns:
        Pooled over the field of view, in [0, 1]; NaN if both are empty.
    """
    from retina_lab.pairs import segmented_trees

    found = segmented_trees(run, samples)
    overlap = total = 0
    for sample in samples:
        a, b = trees[sample.name] & sample.fov, found[sample.name] & sample.fov
        overlap += 2 * np.count_nonzero(a & b)
        total += np.count_nonzero(a) + np.count_nonzero(b)
    return overlap / total if total else float("nan")
