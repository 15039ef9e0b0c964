"""The evaluation protocol: one way of scoring for every method, figures that can be audited.

The protocol of this course, and where it lives:

1. Pixels of the field of view (FOV) decide; the same figures over all pixels stand beside
   them, because much of the literature quotes those and they flatter. ``Report.fov``,
   ``Report.all``.
2. The threshold comes from training or validation images, never from test images, and the
   report says from where. ``choose_threshold``.
3. Every figure is *pooled* (all pixels of the test set in one count) and per image (mean and
   standard deviation over images).
4. A 95 % interval from resampling whole *persons*, with all their images: neither pixels of one
   photograph nor the two eyes of one person are independent witnesses.
5. The second human observer is scored by the same rules against the first.
   ``Report.second_observer``.
6. Two methods are compared image by image, and tested person by person.
   ``paired_comparison``.

Maps are quantised to 16 bits before anything is computed (``metrics.quantise``), thresholds
likewise, and a pixel is vessel if ``level(p) >= level(threshold)``. So scoring a model and
scoring its maps saved as 16-bit PNG agree to the last digit.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from scipy import stats

from retina_lab import metrics
from retina_lab.datasets.sample import FundusSample
from retina_lab.metrics import Counts, ScoreHistogram

RATIOS = {
    "dice": metrics.dice,
    "sensitivity": metrics.sensitivity,
    "specificity": metrics.specificity,
    "accuracy": metrics.accuracy,
}
AREAS = {
    "auc_roc": metrics.auc_roc,
    "auc_pr": metrics.auc_pr,
    "average_precision": metrics.average_precision,
}
TOPOLOGY = ("cldice", "betti0_error", "betti1_error")
CALIBRATION = {"ece": metrics.ece, "brier": metrics.brier}
METRICS = (*RATIOS, *AREAS, *TOPOLOGY, *CALIBRATION)
"""The names of the metrics of a report, in its order."""

STEPS = 256
"""How finely a report keeps the histograms of its maps: thresholds 0, 1/255, … 1."""
STEP_LEVELS = metrics.TOP_LEVEL // (STEPS - 1)

MAP_SUFFIXES = (".png", ".tif", ".tiff", ".gif", ".bmp", ".npy")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")


class EvaluationError(ValueError):
    """The maps or the samples cannot be scored; the message names which, and the cure."""


# --- The report -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What ``evaluate_maps`` found: plain numbers, as they stand in the JSON file.

    Attributes:
        fov: ``{metric: {"pooled": x, "mean": x, "sd": x, "interval": [low, high]}}`` over the
            pixels of the field of view. ``mean`` and ``sd`` (n − 1) are over the images where
            the metric is defined. ``interval`` holds 95 % of the bootstrap resamples of the
            pooled figure, or of the mean where pooling has no meaning (``cldice``,
            ``betti0_error``, ``betti1_error``: there ``pooled`` is None).
        all: the same over all pixels, black surround included.
        second_observer: the same for the second observer against the first, in the FOV, over
            the images that have one; None if there is none. A person draws lines and gives no
            probabilities, so areas and calibration are None.
        threshold: ``{"value": x, "from": text}``.
        images: ``{name: {"person": text, "fov_source": text, "fov": …, "all": …,
            "second_observer": … or None}}``; each … maps the metrics to that image's values and
            ``"counts"`` to its ``{"tp", "fp", "fn", "tn"}``, from which every pooled ratio can be
            recomputed.

    Undefined figures are None, ``null`` in JSON.
    """

    fov: dict
    all: dict
    second_observer: dict | None
    threshold: dict
    images: dict
    histograms: dict | None = None

    def histogram(self, region: str = "fov") -> ScoreHistogram:
        """The pooled pixels of all images by probability, ready for ``metrics.roc_curve`` etc.

        Args:
            region: ``"fov"`` or ``"all"`` for all pixels.

        Returns:
            A ``ScoreHistogram`` over the ``STEPS`` levels k/255; what lies between two of them
            counts as the lower. Counts at these thresholds are exact; an area computed
            from it is short of the report's own by the ties that are made.

        Raises:
            EvaluationError: if the report holds no histograms.
        """
        if self.histograms is None:
            raise EvaluationError("this report holds no histograms; score the maps again")
        pixels = self.histograms[region]
        return ScoreHistogram(
            np.array(pixels["positives"]),
            np.array(pixels["negatives"]),
            np.arange(STEPS) * STEP_LEVELS,
        )

    def to_dict(self) -> dict:
        """The six parts as one dictionary, ready for strict JSON."""
        return {
            "fov": self.fov,
            "all": self.all,
            "second_observer": self.second_observer,
            "threshold": self.threshold,
            "images": self.images,
            "histograms": self.histograms,
        }

    def to_json(self, path) -> Path:
        """Write ``to_dict()`` to ``path``; the file appears whole or not at all.

        Args:
            path: the file; missing folders are made.

        Returns:
            The path.

        Raises:
            OSError: if it cannot be written; an earlier file of that name is then intact.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, 0o644)  # mkstemp makes private files; a report is for sharing
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def from_json(cls, path) -> Report:
        """Read a report back.

        Raises:
            EvaluationError: if the file is not a report.
        """
        try:
            parts = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**parts)
        except (json.JSONDecodeError, TypeError) as error:
            raise EvaluationError(f"{path} is not an evaluation report: {error}") from error

    def table(self) -> pd.DataFrame:
        """All figures, metrics down, and (pixels, statistic) across.

        Returns:
            A frame with the metrics as index and column pairs of ``"FOV"``, ``"all pixels"``
            and, if there is one, ``"second observer"`` with ``"pooled"``, ``"mean"``, ``"sd"``,
            ``"low"``, ``"high"``; undefined figures are nan.
        """
        blocks = {"FOV": self.fov, "all pixels": self.all}
        if self.second_observer is not None:
            blocks["second observer"] = self.second_observer
        columns = {}
        for label, block in blocks.items():
            for statistic in ("pooled", "mean", "sd"):
                columns[label, statistic] = [block[metric][statistic] for metric in METRICS]
            for end, statistic in enumerate(("low", "high")):
                columns[label, statistic] = [block[metric]["interval"][end] for metric in METRICS]
        frame = pd.DataFrame(columns, index=pd.Index(METRICS, name="metric"), dtype=float)
        return frame.rename_axis(columns=["pixels", "statistic"])

    def __str__(self) -> str:
        table = self.table()

        def number(value, metric):
            if np.isnan(value):
                return "–"
            return f"{value:.1f}" if metric.startswith("betti") else f"{value:.4f}"

        def headline(label, metric):
            pooled, mean = table.loc[metric, (label, "pooled")], table.loc[metric, (label, "mean")]
            return number(mean if metric in TOPOLOGY else pooled, metric)

        rows = {}
        for metric in METRICS:
            fov = table.loc[metric, "FOV"]
            row = {
                "FOV": headline("FOV", metric),
                "95 % interval": f"{number(fov['low'], metric)} … {number(fov['high'], metric)}",
                "per image": f"{number(fov['mean'], metric)} ± {number(fov['sd'], metric)}",
                "all pixels": headline("all pixels", metric),
            }
            if self.second_observer is not None:
                row["second observer"] = headline("second observer", metric)
            rows[metric] = row
        pixels = {
            region: sum(
                (Counts(**image[region]["counts"]) for image in self.images.values()), Counts()
            )
            for region in ("fov", "all")
        }
        vessels = {region: c.tp + c.fn for region, c in pixels.items()}
        sources = ", ".join(sorted({image["fov_source"] for image in self.images.values()}))
        return "\n".join(
            [
                pd.DataFrame.from_dict(rows, orient="index").to_string(),
                "",
                f"{len(self.images)} images. FOV ({sources}): {pixels['fov'].total:,} pixels, "
                f"{vessels['fov']:,} of them vessel. "
                f"All: {pixels['all'].total:,} pixels, {vessels['all']:,} vessel.",
                "Pooled over pixels; clDice and Betti errors: mean over images.",
                f"Threshold {self.threshold['value']:.4f} from {self.threshold['from']}.",
            ]
        )


def evaluate_maps(
    dataset_or_samples: Iterable[FundusSample],
    maps: Mapping[str, np.ndarray],
    *,
    threshold: float,
    threshold_from: str,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Report:
    """Score probability maps against the first observer by the protocol of this module.

    Args:
        dataset_or_samples: the test images, with vessels.
        maps: image name → (H, W) probabilities of vessel in [0, 1], one for every image.
        threshold: probability in [0, 1] from which on a pixel is vessel.
        threshold_from: where it comes from, in words for the reader of the report.
        bootstrap: number of resamples of the persons; 0: no intervals.
        seed: of the resampling. The same seed and number of persons resample alike, so two
            reports stay comparable.

    Returns:
        A ``Report``.

    Raises:
        EvaluationError: images without labels, an empty field of view, maps missing, left
            over, of another size, with NaN or values outside [0, 1]; each by name.
    """
    if not 0 <= threshold <= 1:  # also refuses NaN
        raise EvaluationError(f"the threshold must lie in [0, 1], not {threshold}")
    in_fov, everywhere, by_observer, known = {}, {}, {}, {}
    for sample, levels in _pairs(dataset_or_samples, maps, labelled=True):
        probability = levels / metrics.TOP_LEVEL
        vessels = metrics.binarise(probability, threshold)
        whole = np.ones_like(sample.fov)
        in_fov[sample.name] = _measure(vessels, sample.vessels, sample.fov, probability)
        everywhere[sample.name] = _measure(vessels, sample.vessels, whole, probability)
        if sample.second_observer is not None:
            by_observer[sample.name] = _measure(sample.second_observer, sample.vessels, sample.fov)
        known[sample.name] = {"person": sample.subject, "fov_source": sample.fov_source}
    blocks, rows = {}, {}
    for region, measured in (
        ("fov", in_fov),
        ("all", everywhere),
        ("second_observer", by_observer),
    ):
        persons = [known[name]["person"] for name in measured]
        blocks[region], rows[region] = _summarise(measured, persons, bootstrap, seed)
    images = {
        name: {
            **facts,
            **{region: rows[region].get(name) for region in ("fov", "all", "second_observer")},
        }
        for name, facts in known.items()
    }
    return Report(
        **blocks,
        threshold={"value": float(threshold), "from": str(threshold_from)},
        images=images,
        histograms={
            "fov": _coarse_histogram(in_fov.values()),
            "all": _coarse_histogram(everywhere.values()),
        },
    )


# --- Thresholds -------------------------------------------------------------------------------


def choose_threshold(samples: Iterable[FundusSample], maps: Mapping[str, np.ndarray]) -> float:
    """The threshold with the best pooled Dice in the field of view, over all 65,536 levels.

    Choose it on training or validation images. Where a whole range of thresholds gives the
    same best Dice, which is the rule for 8-bit or polarised maps, it is the middle of the range.

    Args:
        samples: images with vessels.
        maps: as for ``evaluate_maps``.

    Returns:
        A probability in (0, 1] for ``evaluate_maps(threshold=…)``.

    Raises:
        EvaluationError: as ``evaluate_maps``, or if the images show no vessel at all.
    """
    pooled = _pooled_histogram(
        (levels, sample.vessels, sample.fov)
        for sample, levels in _pairs(samples, maps, labelled=True)
    )
    if pooled.positives.sum() == 0:
        raise EvaluationError("no threshold can be chosen: no vessel pixel in any field of view")
    dice_at_level = metrics.dice(metrics.counts_at_levels(pooled))
    return _middle_of_best(dice_at_level)


def otsu_threshold(samples: Iterable[FundusSample], maps: Mapping[str, np.ndarray]) -> float:
    """Otsu's threshold of all maps together, over the pixels of the fields of view.

    It needs no labels: it splits the pooled levels into two groups with the greatest variance
    between them, over all 65,536 levels; the middle of the range where several splits are
    equally good. Source: Otsu 1979, doi:10.1109/TSMC.1979.4310076. It knows nothing of Dice:
    where vessels and background are not equally spread it lies far from the best threshold.

    Args:
        samples: images; labels are not used.
        maps: as for ``evaluate_maps``.

    Returns:
        A probability in (0, 1].

    Raises:
        EvaluationError: as ``evaluate_maps``, or if all maps hold one single value.
    """
    pooled = _pooled_histogram(
        (levels, np.zeros_like(sample.fov), sample.fov)
        for sample, levels in _pairs(samples, maps, labelled=False)
    )
    pixels = pooled.negatives.astype(np.float64)
    if np.count_nonzero(pixels) < 2:
        raise EvaluationError("Otsu's threshold needs maps with at least two different values")
    # Split at level l: below it and from it on. Level 0 leaves the lower group empty.
    total, moment = pixels.sum(), pixels @ pooled.levels
    below = np.cumsum(pixels) - pixels
    moment_below = np.cumsum(pixels * pooled.levels) - pixels * pooled.levels
    gap = moment_below * total - moment * below
    above = total - below
    between = np.full(pixels.shape, -1.0)
    np.divide(gap**2, below * above, out=between, where=(below > 0) & (above > 0))
    return _middle_of_best(between)


def _middle_of_best(score_at_level: np.ndarray) -> float:
    """The probability in the middle of the (first) run of levels with the highest score."""
    first = int(np.nanargmax(score_at_level))
    others = np.flatnonzero(score_at_level[first:] != score_at_level[first])
    last = first + int(others[0]) - 1 if others.size else len(score_at_level) - 1
    return (first + last) // 2 / metrics.TOP_LEVEL


# --- Comparing two methods --------------------------------------------------------------------


@dataclass(frozen=True)
class PairedComparison:
    """Two methods on the same images: is the difference more than luck?

    Attributes:
        metric: the metric.
        differences: image name → value of a − value of b.
        mean: their mean over persons, each person's images averaged first.
        interval: 95 % bootstrap interval of the mean, over persons.
        wilcoxon_p: two-sided Wilcoxon signed-rank test; 1 if all differences are 0.
        sign_flip_p: two-sided permutation test of the mean: how often flipping the signs of the
            differences at random gives a mean at least as far from 0. All 2ⁿ flips up to 20
            persons, 100,000 random ones beyond.
    """

    metric: str
    differences: dict[str, float]
    mean: float
    interval: tuple[float, float]
    wilcoxon_p: float
    sign_flip_p: float

    @property
    def verdict(self) -> str:
        """``"better"`` or ``"worse"`` where more is better, ``"undecided"`` if that is not clear.

        Clear is what interval and sign flips agree on; with fewer than six persons p cannot fall
        below .05. It speaks of these maps, not of another training.
        """
        low, high = self.interval
        if not self.sign_flip_p < 0.05 or low <= 0 <= high:
            return "undecided"
        return "better" if low > 0 else "worse"

    def __str__(self) -> str:
        low, high = self.interval
        better = sum(d > 0 for d in self.differences.values())
        return (
            f"{self.metric}: difference {self.mean:+.4f} (95 % interval {low:+.4f} … {high:+.4f}), "
            f"higher in {better} of {len(self.differences)} images, "
            f"p = {self.wilcoxon_p:.2g} (Wilcoxon), {self.sign_flip_p:.2g} (sign flips)"
        )


def paired_comparison(
    report_a: Report,
    report_b: Report,
    metric: str = "dice",
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two reports image by image, in the field of view.

    Args:
        report_a, report_b: on the same images.
        metric: one of ``METRICS``.
        bootstrap: resamples for the interval.
        seed: of resampling and of random sign flips.

    Returns:
        A ``PairedComparison`` of a − b, over the images where both values are defined.

    Raises:
        EvaluationError: an unknown metric, different images, or fewer than two in common.
    """
    if metric not in METRICS:
        raise EvaluationError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
    only_one = sorted(set(report_a.images) ^ set(report_b.images))
    if only_one:
        raise EvaluationError(
            f"the reports are not about the same images: {_listed(only_one)} in one only"
        )
    differences = {}
    for name in report_a.images:
        a, b = (report.images[name]["fov"][metric] for report in (report_a, report_b))
        if a is not None and b is not None:
            differences[name] = a - b
    if len(differences) < 2:
        raise EvaluationError(f"{metric} is defined in both reports for fewer than two images")
    values = by_person(differences, report_a.images)
    mean, low, high = mean_with_interval(values, bootstrap, seed)
    wilcoxon_p = stats.wilcoxon(values).pvalue if values.any() else 1.0
    return PairedComparison(
        metric,
        differences,
        mean,
        (low, high),
        float(wilcoxon_p),
        sign_flip_p(values, seed),
    )


def by_person(values: Mapping[str, float], images: Mapping[str, Mapping]) -> np.ndarray:
    """One value a person: the mean over their images.

    Args:
        values: by name of the image.
        images: ``Report.images``.

    Returns:
        (persons,) ``float64``.
    """
    persons = [images[name]["person"] for name in values]
    each = pd.Series(list(values.values()), dtype=float)
    return each.groupby(persons, sort=False).mean().to_numpy()


def mean_with_interval(
    values: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of one value a person, and the ends of its 95 % bootstrap interval over persons.

    Args:
        values: (n,), n at least 1.
        bootstrap: resamples; 0 gives nan for the ends, as a single person does.
        seed: of the resampling.
    """
    names = [str(index) for index in range(len(values))]
    resampled = _resampling_weights(names, bootstrap, seed) @ values / len(values)
    known = bootstrap and len(values) > 1  # of one person nobody knows how others differ
    low, high = np.percentile(resampled, [2.5, 97.5]) if known else (np.nan, np.nan)
    return float(values.mean()), float(low), float(high)


def sign_flip_p(values: np.ndarray, seed: int = 0, exact_up_to: int = 20) -> float:
    """Two-sided p-value of the mean of paired differences under random signs.

    If two methods were equal, each person's difference might as well have the other sign: the
    share of all sign patterns whose mean lies at least as far from 0. Source: Fisher, "The
    Design of Experiments", 1935, section 21.

    Args:
        values: (n,) differences, one a person.
        seed: of the random patterns.
        exact_up_to: up to so many persons all 2ⁿ patterns are counted, beyond 100,000 drawn.

    Returns:
        In (0, 1].
    """
    if len(values) <= exact_up_to:
        sums = np.zeros(1)
        for value in values:  # after k values: the sums of all 2ᵏ sign patterns
            sums = np.concatenate([sums + value, sums - value])
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(100_000, len(values)))
        sums = signs @ values
        extra = 1  # the observed pattern counts as one of the draws, so p is never 0
    # Equal sums must count as equal although they were added up in another order.
    tolerance = 1e-9 * np.abs(values).sum()
    extreme = int((np.abs(sums) >= abs(values.sum()) - tolerance).sum())
    return (extreme + extra) / (len(sums) + extra)


# --- Maps from files --------------------------------------------------------------------------


def load_maps(
    folder, dataset: Iterable[FundusSample], *, others: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Read one probability map per image of a dataset, from any method's folder.

    A file belongs to an image if its stem is the image's name, with or without an ending
    (``01_test.png``, ``01_test_prob.png``), or else if it holds the same number and, if any,
    eye (``1.png`` or ``01.png`` for ``01_test``, ``162.png`` for ``im0162``, ``11L.png`` for
    ``Image_11L``). Upper and lower case are the same. Files are 8- or 16-bit PNG, TIFF, GIF or
    BMP, or ``.npy``; integers are divided by the largest value of their type. Other files and
    sub-folders are not looked at.

    Args:
        folder: where the maps are.
        dataset: the images they must match, one to one.
        others: names of images that are not asked for, such as a dataset's training images.
            Their maps may be there too and are not read.

    Returns:
        name → (H, W) ``float32`` in [0, 1], in the order of the dataset.

    Raises:
        EvaluationError: no such folder; a map missing, left over, claimed by two images or
            claiming one twice; a wrong size (maps are never resized); a colour image; an
            unreadable file; each by name.

    Warns:
        UserWarning: if all maps hold two values only: ranking metrics (AUC) say little then.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"no folder of maps at {folder}")
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in MAP_SUFFIXES and not file.name.startswith(".")
    )
    sizes = {sample.name: sample.size for sample in dataset}
    matched = _match(files, list(sizes), folder, list(others))
    maps = {}
    for name, (height, width) in sizes.items():
        levels = read_map(matched[name])
        if levels.shape != (height, width):
            raise EvaluationError(
                f"{matched[name]} is {levels.shape[1]}×{levels.shape[0]} pixels but the image "
                f"{name} is {width}×{height}; maps are not resized here: crop or pad it as the "
                "method did"
            )
        maps[name] = levels
    if all(len(np.unique(plane)) <= 2 for plane in maps.values()):
        warnings.warn(
            f"the maps in {folder} hold two values only: they are decisions, not probabilities, "
            "so AUC, average precision and calibration say little about the method",
            stacklevel=2,
        )
    return maps


def read_map(path) -> np.ndarray:
    """Read one probability map.

    Args:
        path: 8- or 16-bit PNG, TIFF, GIF or BMP (grey, or colour with three equal channels), or
            ``.npy``. Integers are divided by the largest value of their type, floats must lie
            in [0, 1], 1-bit images and booleans become 0 and 1.

    Returns:
        (H, W) ``float32`` in [0, 1].

    Raises:
        EvaluationError: naming the file and what is wrong with it.

    Warns:
        UserWarning: if a 16-bit file holds nothing above 255.
    """
    path = Path(path)
    try:
        plane = np.load(path) if path.suffix.lower() == ".npy" else _read_image(path)
    except EvaluationError:
        raise
    except FileNotFoundError as error:
        raise EvaluationError(f"no map at {path}") from error
    except (OSError, EOFError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise EvaluationError(f"{path} cannot be read as a probability map: {error}") from error
    if plane.ndim == 3 and plane.shape[2] in (2, 4):  # grey or colour with opacity
        if (plane[..., -1] != plane[..., -1].max()).any():
            raise EvaluationError(f"{path} is partly transparent; save a plain grey image")
        plane = plane[..., :-1]
    if plane.ndim == 3:
        if (plane != plane[..., :1]).any():
            raise EvaluationError(
                f"{path} is a colour image; a probability map has one channel (or three equal ones)"
            )
        plane = plane[..., 0]
    if plane.ndim != 2:
        raise EvaluationError(f"{path} has the shape {plane.shape}; a map is height × width")
    if plane.dtype == np.bool_:
        return plane.astype(np.float32)
    if plane.dtype.kind in "iu":
        top = {1: 255, 2: 65535}.get(plane.dtype.itemsize, 65535)
        if plane.size and (plane.min() < 0 or plane.max() > top):
            raise EvaluationError(f"{path} has values outside 0 … {top}")
        if plane.size and plane.max() == 1:
            raise EvaluationError(
                f"{path} holds only 0 and 1 on a scale of 0 … {top}; save vessels as {top}"
            )
        if top == 65535 and 0 < plane.max(initial=0) <= 255:
            warnings.warn(
                f"{path} has 16 bits but no value above 255: were 8-bit values saved in it? "
                "As it stands no probability exceeds .004",
                stacklevel=2,
            )
        return (plane / top).astype(np.float32)
    if plane.dtype.kind != "f":
        raise EvaluationError(f"{path} holds {plane.dtype}, not probabilities")
    try:
        metrics.quantise(plane)
    except ValueError as error:
        raise EvaluationError(f"{path}: {error}") from error
    return plane.astype(np.float32)


def _read_image(path: Path) -> np.ndarray:
    """The pixels of an image file, palettes resolved."""
    with Image.open(path) as image:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "F") and image.mode[0] != "I":
            raise EvaluationError(f"{path} is a {image.mode} image; save it as 8- or 16-bit grey")
        if getattr(image, "n_frames", 1) > 1:
            raise EvaluationError(f"{path} holds {image.n_frames} pictures; a map is one")
        if image.format == "PNG" and image.mode in ("LA", "RGB", "RGBA"):
            # The decoder would quietly keep the upper 8 of 16 bits; the header tells.
            with open(path, "rb") as file:
                if file.read(25)[24] == 16:
                    raise EvaluationError(
                        f"{path} is a 16-bit PNG of several channels; save it as 16-bit grey"
                    )
        if image.mode == "P":  # pixels are places in a palette, not shades: look them up
            image = image.convert("RGB")
        return np.asarray(image)


def _match(files: list[Path], names: list[str], folder: Path, others: list[str]) -> dict[str, Path]:
    """name → file, one to one, or an error that says all that is wrong."""
    claims: dict[str, list[Path]] = {name: [] for name in names}
    extra, problems = [], []
    for file in files:
        candidates = _candidates(file.stem, names + others)
        if len(candidates) == 1:
            if candidates[0] in claims:
                claims[candidates[0]].append(file)
        elif candidates:
            problems.append(f"{file.name} could belong to {_listed(candidates)}")
        else:
            extra.append(file.name)
    missing = [name for name, claimed in claims.items() if not claimed]
    if missing:
        problems.append(f"no map for {_listed(missing)}")
    if extra:
        problems.append(f"no image for {_listed(extra)}")
    for name, claimed in claims.items():
        if len(claimed) > 1:
            problems.append(f"{_listed([file.name for file in claimed])} all belong to {name}")
    if problems:
        lossy = [f.name for f in sorted(folder.iterdir()) if f.suffix.lower() in LOSSY_SUFFIXES]
        if lossy:
            problems.append(f"JPEG and WebP are not read, they alter values: {_listed(lossy)}")
        raise EvaluationError(
            f"the maps in {folder} do not match the images one to one: {'; '.join(problems)}. "
            "Name each map after its image (01_test.png) or by its number (1.png)"
        )
    return {name: claimed[0] for name, claimed in claims.items()}


def _candidates(stem: str, names: list[str]) -> list[str]:
    """The images that a file of this stem may belong to: by name, by name and ending, by number."""
    stem = stem.lower()
    exact = [name for name in names if name.lower() == stem]
    if exact:
        return exact
    begun = [name for name in names if re.match(re.escape(name.lower()) + r"[^a-z0-9]", stem)]
    if begun:  # of img_1 and img_1_b, img_1_b_prob means the longer
        longest = max(len(name) for name in begun)
        return [name for name in begun if len(name) == longest]
    numbers = _numbers(stem)
    return [name for name in names if numbers and _numbers(name.lower()) == numbers]


def _numbers(text: str) -> list[tuple[int, str]]:
    """The numbers in a lower-case name, each with the letter of the eye if one follows."""
    return [(int(digits), eye) for digits, eye in re.findall(r"(\d+)([lr](?![a-z]))?", text)]


# --- Small parts ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """One image in one region: all that pooling and resampling need."""

    counts: Counts
    topology: tuple[float, float, float]
    histogram: ScoreHistogram | None


def _measure(vessels, truth, where, probability=None) -> _Measured:
    return _Measured(
        metrics.count(vessels, truth, where),
        (
            metrics.cldice(vessels, truth, where),
            *metrics.betti_errors(vessels, truth, where),
        ),
        None if probability is None else metrics.histogram(probability, truth, where),
    )


def _pairs(samples, maps, *, labelled: bool):
    """Each sample with its map as 16-bit levels, after checks that name what is wrong."""
    if not isinstance(maps, Mapping):
        raise EvaluationError("maps must be a dictionary: image name → map")
    # Names first where the dataset knows them, before any file is read.
    names = list(getattr(samples, "names", None) or [])
    if not names:
        samples = list(samples)
        names = [sample.name for sample in samples]
    if not names:
        raise EvaluationError("there are no images to score")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvaluationError(f"two images are called {_listed(twice)}; names must differ")
    missing = [name for name in names if name not in maps]
    extra = [name for name in maps if name not in names]
    if missing or extra:
        parts = [f"no map for {_listed(missing)}"] if missing else []
        parts += [f"no image for the map of {_listed(extra)}"] if extra else []
        raise EvaluationError("; ".join(parts))
    for sample in samples:
        if labelled and sample.vessels is None:
            raise EvaluationError(
                f"{sample.name} has no labelled vessels, so its map cannot be scored; use a "
                "dataset with labels, or predict without evaluating"
            )
        if not sample.fov.any():
            raise EvaluationError(f"{sample.name}: the field of view is empty")
        plane = np.asarray(maps[sample.name])
        if plane.shape != sample.size:
            size = "×".join(str(n) for n in plane.shape[::-1])
            height, width = sample.size
            raise EvaluationError(
                f"{sample.name}: the map is {size} pixels but the image is {width}×{height}; "
                "maps are never resized here"
            )
        try:
            yield sample, metrics.quantise(plane)
        except ValueError as error:
            raise EvaluationError(f"{sample.name}: {error}") from error


def _pooled_histogram(planes) -> ScoreHistogram:
    pooled = None
    for levels, truth, where in planes:
        one = metrics.histogram(levels / metrics.TOP_LEVEL, truth, where)
        pooled = one if pooled is None else pooled + one
    return pooled


def _resampling_weights(persons: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """(resamples, images): how often each image counts when n of n persons are drawn.

    Args:
        persons: of each image. All images of a person are drawn together.
        resamples: how many draws, with replacement.
        seed: of the draws.
    """
    names = list(dict.fromkeys(persons))
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )
    return draws[:, [names.index(person) for person in persons]].astype(np.float64)


def _summarise(measured: dict[str, _Measured], persons: list[str], bootstrap: int, seed: int):
    """The block of a report for one region, and each image's own row."""
    if not measured:
        return None, {}
    images = list(measured.values())
    weights = _resampling_weights(persons, bootstrap, seed)
    per_image, pooled, resampled = {}, {}, {}

    cells = {
        cell: np.array([getattr(image.counts, cell) for image in images])
        for cell in ("tp", "fp", "fn", "tn")
    }
    for metric, formula in RATIOS.items():
        per_image[metric] = formula(Counts(**cells))
        pooled[metric] = formula(Counts(**{cell: n.sum() for cell, n in cells.items()}))
        resampled[metric] = formula(Counts(**{cell: weights @ n for cell, n in cells.items()}))

    for column, metric in enumerate(TOPOLOGY):
        values = np.array([image.topology[column] for image in images], np.float64)
        per_image[metric] = values
        pooled[metric] = np.nan
        defined = ~np.isnan(values)
        resampled[metric] = metrics.ratio(weights @ np.where(defined, values, 0), weights @ defined)

    scored = {**AREAS, **CALIBRATION}
    if images[0].histogram is None:
        for metric in scored:
            per_image[metric] = np.full(len(images), np.nan)
            pooled[metric], resampled[metric] = np.nan, np.full(bootstrap, np.nan)
    else:
        stack = _stack([image.histogram for image in images])
        together = ScoreHistogram(stack.positives.sum(0), stack.negatives.sum(0), stack.levels)
        for metric, formula in scored.items():
            per_image[metric] = formula(stack)
            pooled[metric] = formula(together)
        resampled |= _resample_histograms(stack, weights, scored)

    block = {
        metric: {
            "pooled": _number(pooled[metric]),
            **_spread(per_image[metric]),
            "interval": _interval(resampled[metric], len(set(persons))),
        }
        for metric in METRICS
    }
    rows = {
        name: {
            **{metric: _number(per_image[metric][i]) for metric in METRICS},
            "counts": {cell: int(n[i]) for cell, n in cells.items()},
        }
        for i, name in enumerate(measured)
    }
    return block, rows


def _coarse_histogram(measured: Iterable[_Measured]) -> dict[str, list[int]]:
    """The pixels of all images in ``STEPS`` steps of probability."""
    starts = np.arange(STEPS) * STEP_LEVELS
    return {
        kind: sum(
            np.add.reduceat(getattr(image.histogram, kind), starts) for image in measured
        ).tolist()
        for kind in ("positives", "negatives")
    }


def _stack(histograms: list[ScoreHistogram]) -> ScoreHistogram:
    """(n, L) histogram of n images, over the levels that any of them uses."""
    return ScoreHistogram(
        np.stack([h.positives for h in histograms]).astype(np.float64),
        np.stack([h.negatives for h in histograms]).astype(np.float64),
        histograms[0].levels,
    ).compact()


def _resample_histograms(stack: ScoreHistogram, weights: np.ndarray, formulas) -> dict:
    """metric → (resamples,) values: a resample of images is a weighted sum of histograms."""
    # A few resamples at a time: the working set stays in the processor's cache.
    step = max(1, 2**18 // max(1, len(stack.levels)))
    found = {metric: [] for metric in formulas}
    for start in range(0, len(weights), step):
        few = weights[start : start + step]
        mixed = ScoreHistogram(few @ stack.positives, few @ stack.negatives, stack.levels)
        for metric, formula in formulas.items():
            found[metric].append(formula(mixed))
    return {
        metric: np.concatenate(values) if values else np.empty(0)
        for metric, values in found.items()
    }


def _spread(values: np.ndarray) -> dict:
    values = values[~np.isnan(values)]
    return {
        "mean": _number(values.mean()) if values.size else None,
        "sd": _number(values.std(ddof=1)) if values.size > 1 else None,
    }


def _interval(values: np.ndarray, persons: int) -> list:
    """The middle 95 % of the resamples; unknown from a single person or without resamples."""
    values = values[~np.isnan(values)]
    if persons < 2 or not values.size:
        return [None, None]
    return [_number(end) for end in np.percentile(values, [2.5, 97.5])]


def _number(value) -> float | None:
    """A plain float, None where undefined: strict JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _listed(names) -> str:
    names = list(names)
    shown = ", ".join(str(name) for name in names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
