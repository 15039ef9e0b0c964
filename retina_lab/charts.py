"""Figures of the comparison, drawn from results (:mod:`retina_lab.results`) and nothing else.

As in :mod:`retina_lab.plots`, every function returns a new Matplotlib ``Figure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from retina_lab import metrics, plots
from retina_lab.metrics import ScoreHistogram
from retina_lab.plots import METRIC_LABELS
from retina_lab.results import HIGHER_IS_BETTER, Scored, by_image, difference, figures, groups

INTERVAL = 0.35
"""Opacity of a 95 % interval behind its estimate."""


def in_order(rows: Sequence[Scored], metric: str, region: str) -> list[list[Scored]]:
    """The seeds of each method together, the best median first; undefined ones last."""

    def median(seeds: list[Scored]) -> float:
        values = [figures(getattr(row.report, region))[metric] for row in seeds]
        value = float(np.median(values))
        worst = -np.inf if HIGHER_IS_BETTER[metric] else np.inf
        return worst if np.isnan(value) else value

    return sorted(groups(rows).values(), key=median, reverse=HIGHER_IS_BETTER[metric])


def name_of(seeds: list[Scored], others: Sequence[list[Scored]]) -> str:
    """The method's label, with length of training and training images where needed to tell it."""
    first = seeds[0]
    same = [group[0] for group in others if group[0].label == first.label]
    name = first.label
    if first.length and len({row.length for row in same}) > 1:
        name += f", {first.length}"
    if len({row.trained_on for row in same}) > 1:
        name += f", from {first.trained_on}"
    return name


@plots.styled
def plot_comparison(
    rows: Sequence[Scored],
    metric: str = "dice",
    region: str = "fov",
    observer: Mapping | None = None,
    slots: int | None = None,
) -> Figure:
    """Methods on one set of test images, the best first: a dot a seed, its interval behind it.

    Args:
        rows: of one dataset and split.
        metric: one of :data:`retina_lab.evaluate.METRICS`.
        region: ``"fov"`` or ``"all"``.
        observer: the second observer's block of a report, drawn as a line.
        slots: room for this many methods, for figures of one size; as many as there are if None.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("there is nothing to compare")
    ordered = in_order(rows, metric, region)
    slots = max(slots or 0, len(ordered))
    figure = Figure(figsize=(8.6, 0.36 * slots + 1.1), layout="constrained")
    axes = figure.subplots()
    for place, seeds in enumerate(ordered):
        ys = place + 0.17 * (np.arange(len(seeds)) - (len(seeds) - 1) / 2)
        for y, row in zip(ys, seeds, strict=True):
            block = getattr(row.report, region)
            low, high = block[metric]["interval"]
            colour = COLOURS[row.kind]
            if low is not None:
                axes.plot([low, high], [y, y], color=colour, linewidth=4, alpha=INTERVAL)
            axes.plot(figures(block)[metric], y, MARKERS[row.kind], color=colour, markersize=5)
    axes.set_yticks(range(len(ordered)), [name_of(seeds, ordered) for seeds in ordered])
    axes.set(ylim=(slots - 0.4, -0.6), xlabel=METRIC_LABELS[metric])
    if observer is not None and not np.isnan(value := figures(observer)[metric]):
        axes.axvline(value, color=plots.BLACK, linestyle="--", linewidth=1.2)
        axes.annotate(
            "second observer", (value, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
            textcoords="offset points", va="top", fontsize=8,
            rotation=90, rotation_mode="anchor", ha="right",
        )  # fmt: skip
    axes.set_title(f"{rows[0].dataset}, {rows[0].split}", loc="left")
    kinds = dict.fromkeys(row.kind for row in rows)
    for kind in kinds:
        axes.plot([], [], MARKERS[kind], color=COLOURS[kind], label=KIND_NAMES[kind])
    if len(kinds) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


COLOURS = {
    "network": plots.BLUE, "combination": plots.GREEN, "classical": plots.ORANGE,
    "published": plots.PURPLE,
}  # fmt: skip
MARKERS = {"network": "o", "combination": "s", "classical": "^", "published": "D"}
KIND_NAMES = {
    "network": "trained here", "combination": "made of trained ones",
    "classical": "learns nothing", "published": "maps of others",
}  # fmt: skip


@plots.styled
def plot_differences(
    method: list[Scored], baseline: list[Scored], metric: str = "dice", region: str = "fov"
) -> Figure:
    """Two methods photograph by photograph: each difference, what seeds make of it, the mean.

    Args:
        method: its seeds, on one set of test images.
        baseline: those of the other.
        metric: one of :data:`retina_lab.evaluate.METRICS`.
        region: ``"fov"`` or ``"all"``.

    Raises:
        ValueError: if the two cannot be compared.
    """
    found = difference(method, baseline, metric, region)
    if found is None:
        raise ValueError("there are no two methods to compare")
    ours, theirs = by_image(method, metric, region), by_image(baseline, metric, region)
    mean = (ours.mean(axis=1) - theirs.mean(axis=1)).sort_values()
    least = (ours.min(axis=1) - theirs.max(axis=1))[mean.index]
    most = (ours.max(axis=1) - theirs.min(axis=1))[mean.index]
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(mean))
    axes.axhline(0, color=plots.BLACK, linewidth=1)
    axes.axhspan(found.low, found.high, color=plots.BLUE, alpha=0.18, label="95 % interval")
    axes.axhline(found.mean, color=plots.BLUE, label=f"mean {found.mean:+.4f}")
    if max(len(found.ours), len(found.theirs)) > 1:
        axes.vlines(places, least, most, color="#999999", linewidth=1.5, label="seed against seed")
    axes.plot(places, mean, "o", color="#333333", markersize=5, label="a photograph")
    axes.set_xticks(places, mean.index, rotation=60, ha="right", fontsize=7.5)
    axes.set_title(f"{method[0].label} − {baseline[0].label}, {method[0].dataset}", loc="left")
    axes.set_ylabel(f"difference in {METRIC_LABELS[metric]}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@plots.styled
def plot_forest(compared: pd.DataFrame, metric: str = "dice") -> Figure:
    """Differences with their intervals, a line each; what is decided is coloured.

    Args:
        compared: from :func:`retina_lab.results.comparison`.
        metric: that was compared.

    Raises:
        ValueError: if there is no difference.
    """
    if compared.empty:
        raise ValueError("there is no difference to draw")
    figure = Figure(figsize=(8.6, 0.36 * len(compared) + 1.1), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=plots.BLACK, linewidth=1)
    for place, row in enumerate(compared.itertuples()):
        word = row.verdict.split(",")[0]
        colour = {"better": plots.BLUE, "worse": plots.VERMILLION}.get(word, "#777777")
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=5, alpha=INTERVAL)
        axes.plot(row.difference, place, "o", color=colour)
        axes.annotate(
            f"  {row.verdict}", (1, place), xycoords=("axes fraction", "data"), va="center",
            fontsize=8.5, color=colour,
        )  # fmt: skip
    lengths = compared["length"].nunique() > 1
    names = [
        f"{row.method} − {row.against}, {row.dataset}" + (f", {row.length}" if lengths else "")
        for row in compared.itertuples()
    ]
    axes.set_yticks(range(len(compared)), names)
    axes.set(ylim=(len(compared) - 0.4, -0.6))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(f"difference in {METRIC_LABELS[metric]}, photograph by photograph")
    return figure


@plots.styled
def plot_rankings(places: pd.DataFrame, marked: str | None = None) -> Figure:
    """How the order of methods changes from rule to rule.

    Args:
        places: a row a method, a column a rule, the value its place from 1.
        marked: a method to be drawn in colour; all are if None.
    """
    height = 0.34 * len(places) + 1.3
    figure = Figure(figsize=(0.92 * places.shape[1] + 3, height), layout="constrained")
    axes = figure.subplots()
    x = np.arange(places.shape[1])
    for index, (name, row) in enumerate(places.iterrows()):
        faded = marked is not None and name != marked
        colour = "#BBBBBB" if faded else plots.CYCLE[index % len(plots.CYCLE)]
        dashes = ("-", "--", ":")[index // len(plots.CYCLE) % 3]
        axes.plot(x, row, dashes, marker="o", color=colour, zorder=1 if faded else 2)
        axes.annotate(
            name, (x[-1], row.iloc[-1]), xytext=(9, 0), textcoords="offset points", va="center",
            fontsize=8.5, color="#777777" if faded else colour,
        )  # fmt: skip
        axes.annotate(
            f"{row.iloc[0]:g}", (0, row.iloc[0]), xytext=(-9, 0), textcoords="offset points",
            va="center", ha="right", fontsize=8.5,
        )  # fmt: skip
    axes.set_xticks(x, places.columns)
    axes.xaxis.tick_top()
    axes.set(ylim=(len(places) + 0.6, 0.4), xlim=(-0.4, x[-1] + 0.1))
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


@plots.styled
def plot_trade_off(
    points: pd.DataFrame, x: str, y: str, xlabel: str, ylabel: str, log: bool = False
) -> Figure:
    """One figure against another, a point a method with its name.

    Args:
        points: indexed by method, with the columns ``x`` and ``y``; several rows of one method
            (seeds) share a colour.
        x: column on the horizontal axis.
        y: column on the vertical axis.
        xlabel: of that axis.
        ylabel: of that axis.
        log: logarithmic horizontal axis.
    """
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(dict.fromkeys(points.index)):
        own = points.loc[[name]]
        style = {
            "color": plots.CYCLE[index % len(plots.CYCLE)],
            "marker": "os^Dv"[index // len(plots.CYCLE) % 5],
        }
        axes.plot(own[x], own[y], linestyle="none", label=name, markersize=7, **style)
    if log:
        axes.set_xscale("log")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@plots.styled
def plot_matrix(matrix: pd.DataFrame, label: str = "Dice") -> Figure:
    """A table of numbers as shades: trained on (rows) against tested on (columns).

    Args:
        matrix: from :func:`retina_lab.results.matrix`; NaN stays empty.
        label: of the number.

    Raises:
        ValueError: if it is empty.
    """
    if matrix.empty:
        raise ValueError("there is nothing in the matrix")
    rows, columns = matrix.shape
    figure = Figure(figsize=(1.25 * columns + 2.6, 0.5 * rows + 1.2), layout="constrained")
    axes = figure.subplots()
    values = matrix.to_numpy(float)
    picture = axes.imshow(values, cmap="cividis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            if not np.isnan(value):
                colour = "black" if value > middle else "white"
                own = matrix.index[row] == matrix.columns[column]
                weight = "bold" if own else "normal"
                axes.text(
                    column, row, f"{value:.3f}", ha="center", va="center", color=colour,
                    fontweight=weight,
                )  # fmt: skip
    axes.set_xticks(range(columns), matrix.columns)
    axes.set_yticks(range(rows), matrix.index)
    axes.set(xlabel="tested on", ylabel="trained on")
    axes.grid(False)
    figure.colorbar(picture, ax=axes, label=label)
    return figure


@plots.styled
def plot_common_threshold(
    histograms: Mapping[str, ScoreHistogram],
    threshold: float | None = None,
    own: Mapping[str, float] | None = None,
) -> Figure:
    """Dice of several methods at every threshold.

    Args:
        histograms: ``{method: pooled histogram}``.
        threshold: one that is marked by a line.
        own: each method's own threshold, marked by a dot on its curve.
    """
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    axes = figure.subplots()
    grid = np.linspace(0, 1, 256)
    for index, (name, histogram) in enumerate(histograms.items()):
        colour = plots.CYCLE[index % len(plots.CYCLE)]
        dashes = ("-", "--", "-.", ":")[index // len(plots.CYCLE) % 4]
        dice = [metrics.dice(metrics.counts_at(histogram, value)) for value in grid]
        axes.plot(grid, dice, dashes, color=colour, label=name)
        if own is not None and name in own:
            at = metrics.dice(metrics.counts_at(histogram, own[name]))
            axes.plot(own[name], at, "o", color=colour, markeredgecolor="white", markersize=8)
    if threshold is not None:
        axes.axvline(threshold, color=plots.BLACK, linewidth=1)
    axes.set(xlabel="threshold", ylabel="Dice", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
