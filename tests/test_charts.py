"""Figures of the comparison: that they show what the results say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from retina_lab import charts, metrics, plots, results
from retina_lab.widgets import table as widgets
from tests.test_results import result


def with_histogram(found, shift=0):
    """A result whose maps have given vessels and background some probabilities."""
    levels = np.arange(256)
    positives = np.exp(-(((levels - 180 - shift) / 40) ** 2)) * 1000
    negatives = np.exp(-(((levels - 60 - shift) / 40) ** 2)) * 7000
    kept = {
        "positives": positives.astype(int).tolist(),
        "negatives": negatives.astype(int).tolist(),
    }
    for report in found["reports"].values():
        report["histograms"] = {"fov": kept, "all": kept}
    return found


@pytest.fixture
def rows(monkeypatch):
    found = [
        with_histogram(result("small-unet", 0, (0.80, 0.70, 0.6), pooled=0.75, observer=0.79)),
        with_histogram(result("small-unet", 1, (0.82, 0.71, 0.6), pooled=0.76, observer=0.79)),
        with_histogram(result("b", 0, (0.85, 0.75, 0.61), pooled=0.80, observer=0.79), 40),
        result("frangi", None, (0.6, 0.6, 0.6), pooled=0.6, budget=None, kind="classical"),
    ]
    monkeypatch.setattr(results, "read_cells", lambda grid: found)
    return results.scored("x")


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_the_best_stands_on_top_with_a_dot_a_seed(rows):
    figure = charts.plot_comparison(rows, observer=rows[0].report.second_observer)
    (axes,) = figure.axes
    assert labels(axes.yaxis) == ["b", "small-unet", "frangi"]
    dots = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert sorted(float(line.get_xdata()[0]) for line in dots) == [0.75, 0.76, 0.80]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_xdata()[0] == pytest.approx(0.79)
    triangles = [line for line in axes.lines if line.get_marker() == "^" and len(line.get_xdata())]
    assert to_hex(triangles[0].get_color()) == plots.ORANGE.lower()


def test_lower_errors_are_better(rows):
    for row, value in zip(rows, (30, 40, 10, 90), strict=True):
        row.report.fov["betti0_error"]["mean"] = value
    ordered = charts.in_order(rows, "betti0_error", "fov")
    assert [seeds[0].label for seeds in ordered] == ["b", "small-unet", "frangi"]


def test_lengths_tell_equal_labels_apart(rows):
    longer = [replace(rows[1], length="5 min")]
    foreign = [replace(rows[1], result=result("small-unet", dataset="phantom"))]
    assert charts.name_of(rows[:1], [rows[:2], rows[2:3]]) == "small-unet"
    assert charts.name_of(rows[:1], [rows[:1], longer]) == "small-unet, 60 s"
    assert charts.name_of(rows[:1], [rows[:1], foreign]) == "small-unet, from drive"


def test_room_for_more(rows):
    small, large = charts.plot_comparison(rows), charts.plot_comparison(rows, slots=12)
    assert large.get_figheight() > small.get_figheight()


def test_differences_are_sorted_photograph_by_photograph(rows):
    figure = charts.plot_differences(rows[2:3], rows[:2])
    (axes,) = figure.axes
    assert labels(axes.xaxis) == ["2", "0", "1"]
    points = [line for line in axes.lines if line.get_label() == "a photograph"]
    np.testing.assert_allclose(points[0].get_ydata(), [0.01, 0.04, 0.045])
    assert any("mean +0.0317" in str(line.get_label()) for line in axes.lines)
    (spans,) = axes.collections
    reach = [segment[:, 1].tolist() for segment in spans.get_segments()]
    np.testing.assert_allclose(reach, [[0.01, 0.01], [0.03, 0.05], [0.04, 0.05]])
    with pytest.raises(ValueError, match="no two methods"):
        charts.plot_differences(rows[1:2], [])


def test_a_forest_colours_what_is_decided(rows):
    table = results.compare(rows, [("b", "small-unet"), ("b", "b")])
    table = pd.concat([table, table.iloc[:1]], ignore_index=True)
    table["verdict"] = ["better", "not to be told apart", "worse, one seed"]
    (axes,) = charts.plot_forest(table).axes
    assert labels(axes.yaxis)[0] == "b − small-unet, drive"
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [to_hex(dot.get_color()) for dot in dots] == [
        plots.BLUE.lower(), "#777777", plots.VERMILLION.lower(),
    ]  # fmt: skip
    assert [text.get_text().strip() for text in axes.texts] == table["verdict"].tolist()
    with pytest.raises(ValueError, match="no difference"):
        charts.plot_forest(table.iloc[:0])


def test_rankings(rows):
    places = pd.DataFrame({"Dice": [1, 2], "AUC": [2, 1]}, index=["a", "b"])
    figure = charts.plot_rankings(places, marked="b")
    (axes,) = figure.axes
    np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], [[1, 2], [2, 1]])
    assert to_hex(axes.lines[0].get_color()) == "#bbbbbb"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first place is on top


def test_trade_offs_and_matrices():
    points = pd.DataFrame({"x": [1.0, 10], "y": [0.5, 0.6]}, index=["a", "b"])
    (axes,) = charts.plot_trade_off(points, "x", "y", "seconds", "Dice", log=True).axes
    assert axes.get_xscale() == "log"
    assert len(axes.lines) == 2
    matrix = pd.DataFrame({"drive": [0.8, 0.7], "stare": [0.6, np.nan]}, index=["drive", "stare"])
    axes = charts.plot_matrix(matrix).axes[0]
    assert {text.get_text(): text.get_fontweight() for text in axes.texts} == {
        "0.800": "bold", "0.600": "normal", "0.700": "normal",
    }  # fmt: skip
    with pytest.raises(ValueError, match="nothing in the matrix"):
        charts.plot_matrix(pd.DataFrame())
    with pytest.raises(ValueError, match="nothing to compare"):
        charts.plot_comparison([])


def test_the_common_threshold_counts_like_the_maps(rows):
    histograms, own = widgets.histograms_of(rows, "fov")
    assert list(histograms) == ["small-unet", "b"]
    (axes,) = charts.plot_common_threshold(histograms, 0.5, own).axes
    curve = next(line for line in axes.lines if line.get_label() == "b")
    expected = metrics.dice(metrics.counts_at(histograms["b"], 128 / 255))
    assert curve.get_ydata()[128] == pytest.approx(expected)


def test_explorers_of_results(rows):
    explorer = widgets.explore_table(rows)
    assert "best b (0.8), last frangi (0.6)" in explorer._caption.value
    explorer.controls["metric"].value = "ece"
    explorer.controls["region"].value = "all pixels"
    assert explorer.errors.outputs == ()
    page = explorer.static_html()
    assert page.count("<option") == 1 + 7
    with pytest.raises(ValueError, match="no results on 'moon'; there are: drive, official"):
        widgets.explore_table(rows, "moon")
    with pytest.raises(ValueError, match="no results to compare"):
        widgets.explore_table([])

    explorer = widgets.explore_common_threshold(rows)
    low = explorer._caption.value
    explorer.controls["threshold"].value = 0.9
    assert explorer._caption.value != low
    assert "b leads" in explorer._caption.value
    with pytest.raises(ValueError, match="no result holds a histogram"):
        widgets.explore_common_threshold(rows[3:])
