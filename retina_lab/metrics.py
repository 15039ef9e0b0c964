"""What a vessel map is worth: counts, ratios, areas under curves, topology, calibration.

Everything here is a pure function of NumPy arrays, and every number of a report follows
from two small summaries of an image:

* ``Counts``, the four cells of the confusion matrix at one threshold, from which come Dice,
  sensitivity, specificity and the other ratios;
* ``ScoreHistogram``, how many vessel and how many background pixels lie at each of the
  65,536 levels of a 16-bit probability map, from which come the ROC and precision–recall
  curves, their areas and the calibration, exactly and without sorting a single pixel.

Both can be added, so the summary of a test set is the sum over its images ("pooled"), and a
bootstrap resample is a weighted sum. Topology (clDice, Betti numbers) has no such summary: it
is computed image by image.

Where a figure is undefined (a sensitivity without vessels, an area without background) the
answer is ``nan``, never a polite 0 or 1. The functions work on scalars and, element by element,
on arrays of counts or on histograms with leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

TOP_LEVEL = 65535
"""The level of probability 1 in a 16-bit map."""


# --- Levels: probabilities on a 16-bit scale -------------------------------------------------


def quantise(probability) -> np.ndarray:
    """Probabilities as 16-bit levels: ``round(65535 · p)``, halves to the even level.

    Maps are stored as 16-bit PNG and 8-bit values lie on the same grid (255 · 257 = 65,535),
    so a map scored from memory and the same map read back from its file give equal figures.

    Args:
        probability: any shape, real or boolean, values in [0, 1].

    Returns:
        ``uint16`` of the same shape.

    Raises:
        ValueError: if a value is not a number or lies outside [0, 1].
    """
    probability = np.asarray(probability)
    if probability.dtype == np.bool_:
        return probability.astype(np.uint16) * np.uint16(TOP_LEVEL)
    if probability.size:
        # One pass each; NaN makes both comparisons fail, so it cannot slip through.
        low, high = probability.min(), probability.max()
        if np.isnan(low) or np.isnan(high):
            bad = int(np.isnan(probability).sum())
            raise ValueError(f"{bad} of {probability.size} probabilities are not a number (NaN)")
        if low < 0 or high > 1:
            raise ValueError(
                f"probabilities must lie in [0, 1], these span [{low:g}, {high:g}]; "
                "apply a sigmoid to logits, divide 8-bit values by 255"
            )
    return np.rint(probability.astype(np.float64) * TOP_LEVEL).astype(np.uint16)


def binarise(probability, threshold: float) -> np.ndarray:
    """The vessels of a probability map: true where the level reaches the threshold's level.

    Map and threshold are quantised alike and compared with ``>=``.

    Args:
        probability: any shape, values in [0, 1].
        threshold: in [0, 1].

    Returns:
        ``bool`` of the same shape.

    Raises:
        ValueError: as ``quantise``, for the map or for the threshold.
    """
    return quantise(probability) >= quantise(threshold)


# --- Counts and the ratios made of them -------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """True and false positives and negatives: pixels, as numbers or as arrays of one shape.

    Add two to pool them: ``sum(list_of_counts, Counts())``.
    """

    tp: int | np.ndarray = 0
    fp: int | np.ndarray = 0
    fn: int | np.ndarray = 0
    tn: int | np.ndarray = 0

    def __add__(self, other: Counts) -> Counts:
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def total(self):
        """All pixels that were counted."""
        return self.tp + self.fp + self.fn + self.tn


def count(prediction, truth, where=None) -> Counts:
    """Count the four kinds of pixels.

    Args:
        prediction: ``bool``, any shape, true where the method says vessel.
        truth: ``bool``, same shape, true where the observer says vessel.
        where: ``bool``, same shape, the pixels to count (the field of view); None: all.

    Returns:
        ``Counts`` of Python integers.

    Raises:
        ValueError: if a type is not boolean or the shapes differ.
    """
    prediction, truth, where = _planes(prediction, truth, where)
    inside = int(where.sum())
    positive = prediction & where
    predicted = int(positive.sum())
    vessels = int((truth & where).sum())
    tp = int((positive & truth).sum())
    return Counts(tp=tp, fp=predicted - tp, fn=vessels - tp, tn=inside - predicted - vessels + tp)


def ratio(part, whole):
    """``part / whole`` element by element, nan where ``whole`` is 0; a ``float`` for scalars."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    result = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=result, where=whole != 0)
    return float(result) if result.ndim == 0 else result


def dice(counts: Counts):
    """Dice coefficient ``2·TP / (2·TP + FP + FN)`` in [0, 1]; nan if nobody marks a vessel."""
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


f1 = dice  # The harmonic mean of precision and sensitivity is the same fraction.


def iou(counts: Counts):
    """Intersection over union ``TP / (TP + FP + FN)`` in [0, 1]; nan if nobody marks a vessel."""
    return ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def sensitivity(counts: Counts):
    """Share of the vessel pixels that were found, ``TP / (TP + FN)``; nan without vessels."""
    return ratio(counts.tp, counts.tp + counts.fn)


def specificity(counts: Counts):
    """Share of the background left alone, ``TN / (TN + FP)``; nan without background."""
    return ratio(counts.tn, counts.tn + counts.fp)


def precision(counts: Counts):
    """Share of the marked pixels that are vessel, ``TP / (TP + FP)``; nan if none is marked."""
    return ratio(counts.tp, counts.tp + counts.fp)


def accuracy(counts: Counts):
    """Share of the pixels that are right, ``(TP + TN) / all``; nan without pixels."""
    return ratio(counts.tp + counts.tn, counts.total)


def mcc(counts: Counts):
    """Matthews correlation coefficient in [−1, 1]; nan if a row or column of counts is empty.

    It is the correlation of the two binary maps. Source: Matthews 1975,
    doi:10.1016/0005-2795(75)90109-9.
    """
    tp, fp, fn, tn = (
        np.asarray(x, np.float64) for x in (counts.tp, counts.fp, counts.fn, counts.tn)
    )
    # A root of each factor: the product of four pixel counts overflows 64-bit integers.
    scale = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    return ratio(tp * tn - fp * fn, scale)


# --- Histograms, curves and areas -------------------------------------------------------------


@dataclass(frozen=True)
class ScoreHistogram:
    """How many vessel and background pixels a map puts at each level.

    Attributes:
        positives: (..., L) vessel pixels at each level.
        negatives: (..., L) background pixels at each level.
        levels: (L,) ``int64``, ascending, out of 0 … 65,535; the probability is level / 65,535.
            Levels where no pixel lies may be left out (``compact``).
    """

    positives: np.ndarray
    negatives: np.ndarray
    levels: np.ndarray

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        if not np.array_equal(self.levels, other.levels):
            raise ValueError("histograms over different levels cannot be added")
        return ScoreHistogram(
            self.positives + other.positives, self.negatives + other.negatives, self.levels
        )

    def compact(self) -> ScoreHistogram:
        """The same histogram without the levels that hold no pixel at all."""
        pixels = self.positives + self.negatives
        used = pixels.reshape(-1, pixels.shape[-1]).any(axis=0)
        return ScoreHistogram(
            self.positives[..., used], self.negatives[..., used], self.levels[used]
        )

    @property
    def probabilities(self) -> np.ndarray:
        """(L,) the probability of each level, in [0, 1]."""
        return self.levels / TOP_LEVEL


def histogram(probability, truth, where=None) -> ScoreHistogram:
    """Sort the pixels of a map into 65,536 levels, vessels and background apart.

    Args:
        probability: any shape, values in [0, 1].
        truth: ``bool``, same shape.
        where: ``bool``, same shape, the pixels to count; None: all.

    Returns:
        ``ScoreHistogram`` with L = 65,536.

    Raises:
        ValueError: as ``quantise``, or if shapes or types do not fit.
    """
    levels = quantise(probability)
    levels_inside, truth, where = _planes(levels, truth, where, boolean=False)
    # Two histograms in one count: vessels go to the upper half of 2 × 65,536 bins.
    bins = levels_inside[where].astype(np.int64) + (TOP_LEVEL + 1) * truth[where]
    negatives, positives = np.bincount(bins, minlength=2 * (TOP_LEVEL + 1)).reshape(2, -1)
    return ScoreHistogram(positives, negatives, np.arange(TOP_LEVEL + 1))


def counts_at(histogram: ScoreHistogram, threshold: float) -> Counts:
    """The counts of the map binarised at ``threshold`` (level ``>=`` the threshold's level)."""
    marked = histogram.levels >= int(quantise(threshold))
    tp = histogram.positives[..., marked].sum(axis=-1)
    fp = histogram.negatives[..., marked].sum(axis=-1)
    fn = histogram.positives[..., ~marked].sum(axis=-1)
    tn = histogram.negatives[..., ~marked].sum(axis=-1)
    return Counts(tp, fp, fn, tn)


def counts_at_levels(histogram: ScoreHistogram) -> Counts:
    """The counts at every threshold: arrays (..., L), entry l for marking ``levels[l]`` and up."""
    tp = _from_above(histogram.positives)
    fp = _from_above(histogram.negatives)
    return Counts(tp, fp, tp[..., :1] - tp, fp[..., :1] - fp)


def roc_curve(histogram: ScoreHistogram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False positive rate, sensitivity and threshold along the ROC curve.

    Args:
        histogram: of one map or one pool, (L,).

    Returns:
        Three (K + 1,) arrays for the K levels that hold pixels: the false positive rate
        rising from 0 to 1, the sensitivity rising from 0 to 1, and the threshold falling from
        infinity. A rate without any pixel to speak of is nan.
    """
    histogram = histogram.compact()
    counts = counts_at_levels(histogram)
    fpr = np.append(1 - specificity(counts), 0.0)[::-1]
    tpr = np.append(sensitivity(counts), 0.0)[::-1]
    return fpr, tpr, np.append(histogram.probabilities, np.inf)[::-1]


def pr_curve(histogram: ScoreHistogram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recall (sensitivity), precision and threshold along the precision–recall curve.

    Args:
        histogram: of one map or one pool, (L,).

    Returns:
        Three (K + 1,) arrays for the K levels that hold pixels: recall rising from 0 to 1,
        precision beginning at 1 by convention (nothing marked, nothing wrong), and the
        threshold falling from infinity.
    """
    histogram = histogram.compact()
    counts = counts_at_levels(histogram)
    recall = np.append(sensitivity(counts), 0.0)[::-1]
    return (
        recall,
        np.append(precision(counts), 1.0)[::-1],
        np.append(histogram.probabilities, np.inf)[::-1],
    )


def auc_roc(histogram: ScoreHistogram):
    """Area under the ROC curve, in [0, 1]; nan without vessels or without background.

    It equals the probability that a vessel pixel drawn at random has a higher level than a
    background pixel drawn at random, a tie counting one half, and is computed as such. That is
    the trapezoidal area with every tie met by a straight line. Source: Hanley and McNeil 1982,
    doi:10.1148/radiology.143.1.7063747.
    """
    positives = np.asarray(histogram.positives, np.float64)
    negatives = np.asarray(histogram.negatives, np.float64)
    at_or_above = _from_above(positives)
    wins = _dot(negatives, at_or_above) - _dot(negatives, positives) / 2
    return ratio(wins, positives.sum(axis=-1) * negatives.sum(axis=-1))


def auc_pr(histogram: ScoreHistogram):
    """Area under the precision–recall curve by the trapezoidal rule; nan without vessels.

    This is the "AUC-PR" of the MI-GAN paper. Straight lines between the points of a
    precision–recall curve are optimistic, the more so the fewer levels a map uses: on maps of
    two levels it can exceed ``average_precision`` by .1 and more. The curve starts at recall 0,
    precision 1. Source: Davis and Goadrich 2006, doi:10.1145/1143844.1143874.
    """
    positives = np.asarray(histogram.positives, np.float64)
    share = _precision_by_level(histogram)
    # Each step of recall has the precision at its own end and at its beginning, which is that of
    # the next higher level. The first step begins at precision 1.
    ends = _dot(positives, share)
    begins = _dot(positives[..., :-1], share[..., 1:]) + positives[..., -1:].sum(axis=-1)
    return ratio(ends + begins, 2 * positives.sum(axis=-1))


def average_precision(histogram: ScoreHistogram):
    """Average precision: the area under the precision–recall *steps*; nan without vessels.

    The precision at each threshold, weighted by the vessel pixels that the threshold adds:
    Σ (Rₖ − Rₖ₋₁) · Pₖ, no line drawn between points. Below ``auc_pr`` wherever precision falls
    as recall rises, which is almost everywhere on real maps.
    """
    share = _precision_by_level(histogram)
    return ratio(_dot(histogram.positives, share), histogram.positives.sum(axis=-1))


# --- Calibration ------------------------------------------------------------------------------


def reliability_curve(
    histogram: ScoreHistogram, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What was promised and what came true, in ``bins`` equal steps of probability.

    The probability is that of *vessel* (not of the likelier class), bin k holds
    k/bins <= p < (k + 1)/bins, the last one includes p = 1.

    Args:
        histogram: (..., L).
        bins: number of bins; 15 falls exactly between levels (65,535 = 15 · 4,369).

    Returns:
        Three (..., bins) arrays: mean probability and share of vessel pixels in each bin (nan
        in an empty bin), and the number of its pixels.
    """
    vessels = _by_bin(histogram, histogram.positives, bins)
    background = _by_bin(histogram, histogram.negatives, bins)
    promised = _by_bin(
        histogram, (histogram.positives + histogram.negatives) * histogram.probabilities, bins
    )
    pixels = vessels + background
    return ratio(promised, pixels), ratio(vessels, pixels), pixels


def ece(histogram: ScoreHistogram, bins: int = 15):
    """Expected calibration error of the vessel probability, in [0, 1]; nan without pixels.

    The gap between mean probability and share of vessels, averaged over the bins of
    ``reliability_curve`` in proportion to their pixels. Source: Naeini et al. 2015,
    doi:10.1609/aaai.v29i1.9602; 15 bins as Guo et al. 2017, arXiv:1706.04599.
    """
    promised, happened, pixels = reliability_curve(histogram, bins)
    gap = np.where(pixels > 0, np.abs(promised - happened), 0.0)
    return ratio(_dot(gap, pixels), pixels.sum(axis=-1))


def brier(histogram: ScoreHistogram):
    """Brier score, the mean of (p − truth)², in [0, 1], lower is better; nan without pixels.

    Source: Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    p = histogram.probabilities
    squared = histogram.positives @ (1 - p) ** 2 + histogram.negatives @ p**2
    return ratio(squared, (histogram.positives + histogram.negatives).sum(axis=-1))


# --- Topology ---------------------------------------------------------------------------------


def skeleton(vessels) -> np.ndarray:
    """The centre lines of a vessel map, one pixel wide, 8-connected.

    Args:
        vessels: (H, W) ``bool``.

    Returns:
        (H, W) ``bool``. Source: Zhang and Suen 1984, doi:10.1145/357994.358023.
    """
    return skeletonize(np.asarray(vessels, bool))


def cldice(prediction, truth, where=None) -> float:
    """Centre-line Dice: are the vessels connected as they should be, whatever their width?

    The harmonic mean of topology precision (share of the prediction's skeleton that lies on
    true vessels) and topology sensitivity (share of the true skeleton that was predicted). Both
    maps are cut to ``where`` before the skeletons are drawn.

    Args:
        prediction, truth, where: (H, W) ``bool``, as in ``count``.

    Returns:
        In [0, 1]: 0 if only one map is empty (like Dice), nan if both are.

    Raises:
        ValueError: as ``count``. Source: Shit et al. 2021, arXiv:2003.07311.
    """
    prediction, truth, where = _planes(prediction, truth, where)
    prediction, truth = prediction & where, truth & where
    drawn, wanted = skeleton(prediction), skeleton(truth)
    if not drawn.any() and not wanted.any():
        return float("nan")
    # Harmonic mean of two shares; an empty map or no overlap at all makes it 0.
    topology_precision = (drawn & truth).sum() / max(1, drawn.sum())
    topology_sensitivity = (wanted & prediction).sum() / max(1, wanted.sum())
    both = topology_precision + topology_sensitivity
    return float(2 * topology_precision * topology_sensitivity / both) if both > 0 else 0.0


def betti_numbers(vessels) -> tuple[int, int]:
    """Betti-0, the number of separate pieces, and Betti-1, the number of holes (loops).

    Pieces are 8-connected, so that a diagonal capillary is one piece; holes are therefore
    4-connected regions of background that the outside does not reach. The image is padded by a
    ring of background first: a vessel that runs into the border does not close a loop.

    Args:
        vessels: (H, W) ``bool``.

    Returns:
        ``(betti_0, betti_1)``.
    """
    padded = np.pad(np.asarray(vessels, bool), 1)
    pieces = ndimage.label(padded, structure=np.ones((3, 3)))[1]
    background = ndimage.label(~padded)[1]  # 4-connected by default
    return pieces, background - 1  # all but the outside, which the padding makes one region


def betti_errors(prediction, truth, where=None) -> tuple[int, int]:
    """How far the two Betti numbers are off: |β₀ − β₀'| and |β₁ − β₁'| inside ``where``.

    Args:
        prediction, truth, where: (H, W) ``bool``, as in ``count``.

    Returns:
        ``(betti_0_error, betti_1_error)``, whole numbers; 0 is best.

    Raises:
        ValueError: as ``count``.
    """
    prediction, truth, where = _planes(prediction, truth, where)
    ours, theirs = betti_numbers(prediction & where), betti_numbers(truth & where)
    return abs(ours[0] - theirs[0]), abs(ours[1] - theirs[1])


# --- Small parts ------------------------------------------------------------------------------


def _from_above(pixels: np.ndarray) -> np.ndarray:
    """(..., L) pixels at each level and all levels above it."""
    return np.cumsum(pixels[..., ::-1], axis=-1)[..., ::-1]


def _dot(left, right):
    """Sum of products along the last axis, without a temporary array."""
    return np.einsum("...l,...l->...", left, right, dtype=np.float64)


def _precision_by_level(histogram: ScoreHistogram) -> np.ndarray:
    """(..., L) precision of marking each level and up; 1 where that marks nothing."""
    tp = _from_above(np.asarray(histogram.positives, np.float64))
    marked = tp + _from_above(np.asarray(histogram.negatives, np.float64))
    share = np.ones_like(tp)
    np.divide(tp, marked, out=share, where=marked > 0)
    return share


def _by_bin(histogram: ScoreHistogram, values: np.ndarray, bins: int) -> np.ndarray:
    """(..., bins) sums of (..., L) values over equal steps of probability."""
    # Whole-number arithmetic, so that a level on an edge always falls to the upper bin.
    bin_of_level = np.minimum(histogram.levels * bins // TOP_LEVEL, bins - 1)
    edges = np.searchsorted(bin_of_level, np.arange(bins + 1))
    return np.stack(
        [values[..., low:high].sum(axis=-1) for low, high in pairwise(edges)],
        axis=-1,
    )


def _planes(prediction, truth, where, *, boolean: bool = True):
    """The three maps as arrays of one shape, ``where`` all true if it is None."""
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    where = np.ones(truth.shape, bool) if where is None else np.asarray(where)
    named = {"truth": truth, "where": where}
    if boolean:
        named["prediction"] = prediction
    for name, plane in named.items():
        if plane.dtype != np.bool_:
            raise ValueError(
                f"{name} must be boolean, not {plane.dtype}; compare it with a threshold first"
            )
    if not prediction.shape == truth.shape == where.shape:
        raise ValueError(
            f"shapes differ: prediction {prediction.shape}, truth {truth.shape}, "
            f"where {where.shape}; maps are never resized here"
        )
    return prediction, truth, where
