"""The threshold explorer."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from retina_lab import metrics, plots
from retina_lab.datasets.sample import FundusSample
from retina_lab.metrics import ScoreHistogram
from retina_lab.widgets.base import Explorer, slider


@plots.styled
def render_threshold(
    sample: FundusSample,
    probability: np.ndarray,
    threshold: float,
    histogram: ScoreHistogram | None = None,
) -> Figure:
    """The error map at a threshold, and where that threshold lies on the ROC and PR curves.

    Args:
        sample: with vessels.
        probability: (H, W) in [0, 1].
        threshold: in [0, 1].
        histogram: ``metrics.histogram`` of the map inside the FOV, if it is at hand.
    """
    histogram = histogram or metrics.histogram(probability, sample.vessels, sample.fov)
    counts = metrics.counts_at(histogram, threshold)
    prediction = metrics.binarise(probability, threshold)
    figure = Figure(figsize=(9.6, 4.7))
    # Places are fixed, so that nothing but the content moves with the slider.
    where = {
        "map": (0.005, 0.09, 0.475, 0.85),
        "roc": (0.545, 0.57, 0.19, 0.36),
        "pr": (0.795, 0.57, 0.19, 0.36),
        "sweep": (0.545, 0.1, 0.44, 0.3),
    }
    axes = {name: figure.add_axes(place) for name, place in where.items()}
    errors = plots.error_map(prediction, sample.vessels, sample.fov)
    plots.draw_picture(axes["map"], errors, f"{sample.name} at threshold {threshold:.2f}")
    plots.add_key(
        axes["map"], plots.error_key(counts), loc="upper center", bbox_to_anchor=(0.5, 0.01),
        fontsize=8, handlelength=1, columnspacing=1,
    )  # fmt: skip
    for kind in ("roc", "pr"):
        plots.draw_curve(axes[kind], kind, histogram, color=plots.BLUE)
        plots.label_curve_axes(axes[kind], kind)
        axes[kind].plot(
            *plots.working_point(kind, counts), "o", color=plots.VERMILLION, markersize=9,
            markeredgecolor="white", clip_on=False, zorder=5,
        )  # fmt: skip
    plots.draw_threshold_sweep(axes["sweep"], histogram, threshold, ("dice", "accuracy"))
    text = f"Dice {metrics.dice(counts):.3f}, accuracy {metrics.accuracy(counts):.3f}"
    axes["sweep"].set_title(text, loc="left")
    axes["sweep"].legend(loc="lower right", bbox_to_anchor=(1.02, 0.97), ncols=2)
    return figure


def describe_threshold(
    sample: FundusSample,
    probability: np.ndarray,
    threshold: float,
    histogram: ScoreHistogram | None = None,
) -> str:
    """The state of :func:`render_threshold` in words; the same arguments."""
    histogram = histogram or metrics.histogram(probability, sample.vessels, sample.fov)
    counts = metrics.counts_at(histogram, threshold)
    return (
        f"At threshold {threshold:.2f}: {counts.tp:,} vessel pixels found (TP), "
        f"{counts.fn:,} missed (FN), {counts.fp:,} false alarms (FP), {counts.tn:,} background "
        f"pixels right (TN). Dice {metrics.dice(counts):.3f}, "
        f"sensitivity {metrics.sensitivity(counts):.3f}, "
        f"specificity {metrics.specificity(counts):.3f}, "
        f"precision {metrics.precision(counts):.3f}, accuracy {metrics.accuracy(counts):.3f}."
    )


def explore_threshold(
    sample: FundusSample, probability: np.ndarray, threshold: float = 0.5
) -> Explorer:
    """A slider over the threshold: errors, counts, and the point on both curves.

    Args:
        sample: with vessels.
        probability: (H, W) in [0, 1], any method's map of it.
        threshold: where the slider starts.

    Raises:
        ValueError: if the sample is unlabelled or the map is of another size.
    """
    if sample.vessels is None:
        raise ValueError(f"{sample.name} has no vessel labels to compare with")
    if np.shape(probability) != sample.size:
        raise ValueError(f"{sample.name} is {sample.size} but the map is {np.shape(probability)}")
    histogram = metrics.histogram(probability, sample.vessels, sample.fov)
    return Explorer(
        "Threshold explorer",
        lambda threshold: render_threshold(sample, probability, threshold, histogram),
        lambda threshold: describe_threshold(sample, probability, threshold, histogram),
        {"threshold": slider("threshold", threshold, 0.0, 1.0, 0.01)},
        frames={"threshold": [i / 20 for i in range(21)]},
    )
