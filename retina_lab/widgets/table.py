"""Explorers of the comparison: the one table, and one threshold for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from retina_lab import charts, metrics
from retina_lab.evaluate import METRICS
from retina_lab.plots import METRIC_LABELS
from retina_lab.results import (
    Scored,
    by_test_images,
    figures,
    groups,
    second_observers,
    unique,
)
from retina_lab.widgets.base import Explorer, menu, slider

REGIONS = {"field of view": "fov", "all pixels": "all"}


def render_table(rows: Sequence[Scored], test: str, metric: str, region: str) -> Figure:
    """The methods of one set of test images by one metric.

    Args:
        rows: of all of them.
        test: such as ``"drive, official"``.
        metric: one of :data:`retina_lab.evaluate.METRICS`.
        region: a name in ``REGIONS``.
    """
    tests = by_test_images(rows)
    chosen = unique(tests[test])
    # frames of one size, however many methods a set of test images has
    slots = max(len(groups(others)) for others in tests.values())
    observer = second_observers(chosen).get((chosen[0].dataset, chosen[0].split))
    inside = REGIONS[region] == "fov"  # the observer is scored in the field of view only
    return charts.plot_comparison(
        chosen, metric, REGIONS[region], observer if inside else None, slots
    )


def describe_table(rows: Sequence[Scored], test: str, metric: str, region: str) -> str:
    """The state of :func:`render_table` in words; the same arguments."""
    ordered = charts.in_order(unique(by_test_images(rows)[test]), metric, REGIONS[region])

    def said(seeds: list[Scored]) -> str:
        values = [figures(getattr(row.report, REGIONS[region]))[metric] for row in seeds]
        return f"{charts.name_of(seeds, ordered)} ({np.median(values):.4g})"

    known = [seeds for seeds in ordered if not np.isnan(
        figures(getattr(seeds[0].report, REGIONS[region]))[metric]
    )]  # fmt: skip
    if not known:
        return f"{test} test images: no method has a {METRIC_LABELS[metric]}."
    return (
        f"{METRIC_LABELS[metric]} on the {test} test images, {region}: {len(known)} methods, "
        f"best {said(known[0])}, last {said(known[-1])}. Medians over seeds."
    )


def explore_table(rows: Sequence[Scored], test: str | None = None) -> Explorer:
    """Menus over test images, metric and pixels; the methods are sorted anew each time.

    Args:
        rows: from :func:`retina_lab.results.scored`.
        test: test images to begin with, such as ``"drive, official"``; None: the first.

    Raises:
        ValueError: if there are no rows or no such test images.
    """
    tests = list(by_test_images(rows))
    test = tests[0] if test is None else test
    if test not in tests:
        raise ValueError(f"no results on {test!r}; there are: {'; '.join(tests)}")
    return Explorer(
        "Comparison explorer",
        lambda test, metric, region: render_table(rows, test, metric, region),
        lambda test, metric, region: describe_table(rows, test, metric, region),
        {
            "test": menu("test images", tests, test),
            "metric": menu("metric", METRICS, "dice"),
            "region": menu("pixels", list(REGIONS), "field of view"),
        },
        frames={
            "test": tests,
            "metric": ("dice", "auc_roc", "average_precision", "accuracy", "cldice",
                       "betti0_error", "ece"),
        },
    )  # fmt: skip


def histograms_of(rows: Sequence[Scored], region: str) -> tuple[dict, dict[str, float]]:
    """The first seed's pooled histogram of each method that has kept one, and its threshold."""
    all_groups = list(groups(rows).values())
    kept = {
        charts.name_of(seeds, all_groups): seeds[0]
        for seeds in all_groups
        if seeds[0].report.histograms is not None
    }
    return (
        {name: row.report.histogram(region) for name, row in kept.items()},
        {name: row.report.threshold["value"] for name, row in kept.items()},
    )


def render_common_threshold(rows: Sequence[Scored], threshold: float, region: str) -> Figure:
    """Dice of several methods along the threshold, with one threshold for all marked.

    Args:
        rows: of one set of test images.
        threshold: in [0, 1].
        region: a name in ``REGIONS``.
    """
    histograms, own = histograms_of(rows, REGIONS[region])
    return charts.plot_common_threshold(histograms, threshold, own)


def describe_common_threshold(rows: Sequence[Scored], threshold: float, region: str) -> str:
    """The state of :func:`render_common_threshold` in words; the same arguments."""
    histograms, own = histograms_of(rows, REGIONS[region])
    dice = {
        name: metrics.dice(metrics.counts_at(histogram, threshold))
        for name, histogram in histograms.items()
    }
    order = sorted(dice, key=dice.get, reverse=True)
    at_own = {
        name: metrics.dice(metrics.counts_at(histogram, own[name]))
        for name, histogram in histograms.items()
    }
    best = max(at_own, key=at_own.get)
    return (
        f"One threshold of {threshold:.2f} for all: {order[0]} leads with Dice "
        f"{dice[order[0]]:.3f}, {order[-1]} is last with {dice[order[-1]]:.3f}. "
        f"Each at its own threshold: {best} leads with {at_own[best]:.3f}."
    )


def explore_common_threshold(rows: Sequence[Scored], threshold: float = 0.5) -> Explorer:
    """A slider: one threshold for all methods, and who leads there.

    Args:
        rows: of one set of test images; those without histograms are left out.
        threshold: where the slider starts.

    Raises:
        ValueError: if none has a histogram, or they are of several sets of test images.
    """
    if len({(row.dataset, row.split) for row in rows}) != 1:
        raise ValueError("the methods must all be scored on the same test images")
    if not histograms_of(rows, "fov")[0]:
        raise ValueError("no result holds a histogram; score the maps again")
    return Explorer(
        "Common threshold explorer",
        lambda threshold, region: render_common_threshold(rows, threshold, region),
        lambda threshold, region: describe_common_threshold(rows, threshold, region),
        {
            "threshold": slider("threshold", threshold, 0.0, 1.0, 0.01),
            "region": menu("pixels", list(REGIONS), "field of view"),
        },
        frames={"threshold": [i / 20 for i in range(21)]},
    )
