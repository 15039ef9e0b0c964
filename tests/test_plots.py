"""Figures: drawn without side effects, in colours everybody can read, shown with words."""

import base64
import io
import re
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from skimage.color import rgb2lab

from retina_lab import metrics, plots
from retina_lab.augment import sample_stitch, stitch_steps
from retina_lab.datasets.sample import FundusSample
from retina_lab.metrics import Counts
from retina_lab.preprocess import to_batch


def made_sample(height=48, width=56, **maps):
    y, x = np.mgrid[:height, :width]
    fov = np.hypot(y - height / 2, x - width / 2) < height / 2 - 2
    vessels = (np.abs(y - height / 2 - 6 * np.sin(x / 6)) < 2) & fov
    image = np.zeros((height, width, 3), np.uint8)
    image[fov] = (190, 100, 50)
    image[vessels] = (130, 40, 30)
    return FundusSample("made", image, fov, vessels, dataset="toy", **maps)


SAMPLE = made_sample(second_observer=np.roll(made_sample().vessels, 1, axis=0))
RNG = np.random.default_rng(0)
PROBABILITY = (0.6 * SAMPLE.vessels + 0.4 * RNG.random(SAMPLE.size)).astype(np.float32)
HISTOGRAM = metrics.histogram(PROBABILITY, SAMPLE.vessels, SAMPLE.fov)
HISTORY = pd.DataFrame(
    {"epoch": [1, 2, 3], "loss": [0.9, 0.5, 0.4], "val_dice": [np.nan, 0.7, 0.65]}
)
BLOCK = {
    "dice": {"pooled": 0.8, "mean": 0.79, "interval": [0.78, 0.82]},
    "cldice": {"pooled": None, "mean": 0.7, "interval": [0.6, 0.75]},
    "auc_roc": {"pooled": None, "mean": None, "interval": [None, None]},
}


def steps():
    batch = to_batch([SAMPLE, SAMPLE])
    return stitch_steps(batch, sample_stitch(2, SAMPLE.size, torch.Generator().manual_seed(0)))


FIGURES = {
    "sample": lambda: plots.plot_sample(SAMPLE),
    "sample with everything": lambda: plots.plot_sample(
        made_sample(
            artery_vein=SAMPLE.vessels.astype(np.uint8) * 2, lesions=np.eye(48, 56, dtype=np.uint8)
        )
    ),
    "gallery": lambda: plots.plot_gallery([SAMPLE, made_sample(60, 40)], with_vessels=True),
    "channels": lambda: plots.plot_channels(SAMPLE),
    "images": lambda: plots.plot_images({"a": SAMPLE.image, "b": SAMPLE.vessels}, title="two"),
    "steps": lambda: plots.plot_steps(steps(), title="stitching"),
    "error map": lambda: plots.plot_error_map(PROBABILITY > 0.5, SAMPLE.vessels, SAMPLE.fov),
    "prediction": lambda: plots.plot_prediction(SAMPLE, PROBABILITY, 0.5),
    "observers": lambda: plots.plot_observers(SAMPLE),
    "widths": lambda: plots.plot_width_histogram(np.array([1, 2, 2, 3, 9.0])),
    "widths compared": lambda: plots.plot_width_histogram({"a": [1.0, 2], "b": [3.0], "c": []}),
    "roc and pr": lambda: plots.plot_roc_pr(
        {"net": HISTOGRAM}, thresholds=0.5, points={"person": Counts(50, 10, 10, 500)}
    ),
    "sweep": lambda: plots.plot_threshold_sweep(HISTOGRAM, 0.5),
    "reliability": lambda: plots.plot_reliability({"net": HISTOGRAM}),
    "reliability of one": lambda: plots.plot_reliability(HISTOGRAM),
    "history": lambda: plots.plot_history(HISTORY),
    "histories": lambda: plots.plot_history({"plain": HISTORY, "augmented": HISTORY}),
    "history without validation": lambda: plots.plot_history(HISTORY.assign(val_dice=np.nan)),
    "bars": lambda: plots.plot_metrics_bars(
        {"net": BLOCK, "person": BLOCK}, ("dice", "cldice", "auc_roc")
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_and_leaves_no_trace(name):
    settings = dict(mpl.rcParams)
    figure = FIGURES[name]()
    picture = plots.figure_image(figure)
    assert isinstance(figure, Figure)
    assert len(picture.convert("L").getcolors()) > 10  # something is drawn
    assert not Gcf.figs  # pyplot knows nothing of it
    assert dict(mpl.rcParams) == settings


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off_or_overlaps_the_edge(name):
    picture = np.asarray(plots.figure_image(FIGURES[name]()).convert("L"))
    rim = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (rim == 255).all()


def test_the_readers_own_style_does_not_leak_in():
    with mpl.rc_context({"figure.facecolor": "black", "font.size": 30}):
        figure = plots.plot_threshold_sweep(HISTOGRAM)
        picture = plots.figure_image(figure)
    assert figure.get_facecolor()[:3] == (1, 1, 1)
    assert picture.getpixel((0, 0)) == (255, 255, 255)


# ------------------------------------------------------------------------------- colours


def seen_by(colour: str, kind: str) -> np.ndarray:
    """CIELAB of a colour as somebody without one kind of cone sees it (Machado et al. 2009)."""
    matrix = {
        "everybody": np.eye(3),
        "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                      [-0.003882, -0.048116, 1.051998]],
        "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                        [-0.011820, 0.042940, 0.968881]],
        "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                      [0.004733, 0.691367, 0.303900]],
    }[kind]  # fmt: skip
    linear = np.array(to_rgb(colour)) ** 2.2
    return rgb2lab(((np.array(matrix) @ linear).clip(0, 1) ** (1 / 2.2))[None, None])[0, 0]


@pytest.mark.parametrize("kind", ["everybody", "protanope", "deuteranope", "tritanope"])
@pytest.mark.parametrize(
    "colours",
    [
        [*plots.ERROR_COLOURS["lab"].values(), plots.BLACK, plots.OUTSIDE],
        [colour for _, colour in plots.ARTERY_VEIN.values()] + [plots.BLACK],
        plots.CYCLE[:4],
    ],
    ids=["errors", "arteries and veins", "lines"],
)
def test_colours_can_be_told_apart(colours, kind):
    for one, other in combinations(colours, 2):
        assert np.linalg.norm(seen_by(one, kind) - seen_by(other, kind)) > 15, (one, other)


# -------------------------------------------------------------------------------- arrays


def test_error_map_by_hand():
    prediction = np.array([[True, True, False, False, True]])
    truth = np.array([[True, False, True, False, True]])
    fov = np.array([[True, True, True, True, False]])
    lab = plots.error_map(prediction, truth, fov)[0].tolist()
    assert lab == [[255, 255, 255], [230, 159, 0], [86, 180, 233], [0, 0, 0], [59, 64, 72]]
    paper = plots.error_map(prediction, truth, fov, "m-cam-gan")[0].tolist()
    assert [np.argmax(c) for c in paper[:3]] == [1, 2, 0]  # TP green, FP blue, FN red
    assert plots.error_map(prediction, truth)[0, 4].tolist() == [255, 255, 255]


def test_overlay_by_hand():
    image = np.full((1, 2, 3), 100, np.uint8)
    result = plots.overlay(image, np.array([[True, False]]), "#FF0000", 0.5)
    assert result[0].tolist() == [[178, 50, 50], [100, 100, 100]]
    assert (image == 100).all()


def test_fov_outline_is_the_rim():
    fov = np.zeros((5, 5), bool)
    fov[1:4, 1:4] = True
    rim = plots.fov_outline(fov)
    assert rim.sum() == 8
    assert not rim[2, 2]
    assert plots.fov_outline(np.ones((3, 3), bool)).sum() == 8


def test_thin_vessels_survive_being_drawn_small():
    plane = np.zeros((4000, 4000), bool)
    plane[:, 2000] = True
    small = plots._small(plane)
    assert small.shape == (1000, 1000)
    assert small[:, 500].min() > 50


def test_large_colour_pictures_of_floats_are_averaged_too():
    picture = RNG.random((4, 4000, 3)).astype(np.float32)
    small = plots._small(picture)
    assert small.shape == (1, 1000, 3)
    assert small == pytest.approx(picture.reshape(1, 4, 1000, 4, 3).mean((1, 3)), abs=1e-6)


def test_the_working_point_lies_on_its_curve():
    counts = metrics.counts_at(HISTOGRAM, 0.5)
    for kind, curve in (("roc", metrics.roc_curve), ("pr", metrics.pr_curve)):
        x, y = plots.working_point(kind, counts)
        xs, ys, _ = curve(HISTOGRAM)
        assert np.hypot(xs - x, ys - y).min() < 1e-9


def test_thinning_a_curve_keeps_its_ends_and_stays_close():
    x = np.linspace(0, 1, 50_000)
    y = x**0.2
    thin_x, thin_y = plots._thinned(x, y)
    assert len(thin_x) < 5000
    assert (thin_x[0], thin_x[-1]) == (0, 1)
    assert np.abs(np.interp(x[10:], thin_x, thin_y) - y[10:]).max() < 2e-3


def test_the_legend_of_the_curves_gives_their_areas():
    figure = FIGURES["roc and pr"]()
    roc, pr = (axes.get_legend().texts[0].get_text() for axes in figure.axes)
    assert roc == f"net  {metrics.auc_roc(HISTOGRAM):.4f}"
    assert pr == f"net  {metrics.auc_pr(HISTOGRAM):.4f}"


def test_widths_are_shares_of_each_data_set():
    widths = {"few": [1, 2, 2, 3], "many": [2.0] * 60 + [9.0] * 20, "none": []}
    axes = plots.plot_width_histogram(widths, widest=5).axes[0]
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.texts] == [
        "few, median 2.0 px",
        "many, median 2.0 px",
    ]
    assert [to_rgb(patch.get_facecolor()[:3]) for patch in legend.get_patches()] == [
        to_rgb(colour) for colour in plots.CYCLE[:2]
    ]
    outlines = [collection.get_paths()[0].vertices for collection in axes.collections]
    modes = sorted((y.max(), *sorted({*x[y == y.max()]})) for x, y in (v.T for v in outlines))
    assert modes == [(0.5, 1.5, 2.5), (0.75, 1.5, 2.5)]  # share, from, to
    assert axes.get_xlabel() == "width (pixels; 5: and above)"  # the nines


@pytest.mark.parametrize("widest", [3, 8, 20, 45])
def test_widths_have_whole_numbers_below_them(widest):
    axes = plots.plot_width_histogram(np.arange(1.0, widest + 1)).axes[0]
    assert all(tick == round(tick) for tick in axes.get_xticks())
    assert axes.get_xlabel() == "width (pixels)"  # nothing is wider than the last bin


def test_history_marks_the_end():
    legend = plots.plot_history({"run": HISTORY}).axes[1].get_legend()
    assert legend.texts[0].get_text() == "run  in the end 0.650"


def test_floats_outside_the_unit_range_are_stretched_others_are_not():
    axes = Figure().subplots(1, 2)
    plots.draw_picture(axes[0], np.array([[-3.0, 0.0, 3.0]]))
    plots.draw_picture(axes[1], np.array([[0.2, 0.4]]))
    assert axes[0].images[0].get_array().max() == 1
    assert axes[1].images[0].get_array().max() == 0.4


# ---------------------------------------------------------------------------------- show


@pytest.fixture
def displayed(monkeypatch):
    import IPython.display

    bundles = []
    monkeypatch.setattr(
        IPython.display, "display", lambda bundle, raw: bundles.append(bundle) if raw else None
    )
    return bundles


def test_show_displays_an_image_with_its_alternative_text(displayed):
    alt = 'Dice rises with "threshold" & falls <again>,\n  as expected.'
    plots.show(plots.plot_threshold_sweep(HISTOGRAM), alt)
    (bundle,) = displayed
    assert bundle["text/plain"] == 'Dice rises with "threshold" & falls <again>, as expected.'
    tag = bundle["text/html"]
    assert (
        'alt="Dice rises with &quot;threshold&quot; &amp; falls &lt;again&gt;, as expected."' in tag
    )
    kind, data = re.search(r'src="data:image/(\w+);base64,([^"]+)"', tag).groups()
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.format.lower() == kind == "png"
    width, height = map(int, re.search(r'width="(\d+)" height="(\d+)"', tag).groups())
    assert picture.width == pytest.approx(1.5 * width, abs=2)
    assert width / height == pytest.approx(picture.width / picture.height, rel=0.01)


def test_show_keeps_photographs_small(displayed):
    noise = RNG.integers(0, 256, (900, 900, 3), dtype=np.uint8)
    plots.show(plots.plot_images({"a": noise, "b": noise, "c": noise}), "Three squares of noise.")
    assert "data:image/webp" in displayed[0]["text/html"]


def test_show_frees_figures_of_pyplot_too(displayed):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([0, 1])
    plots.show(figure, "A straight line from 0 to 1.")
    assert not plt.get_fignums()


@pytest.mark.parametrize("alt", ["", "   \n", "figure", None, 7])
def test_show_refuses_figures_without_words(alt, displayed):
    with pytest.raises(ValueError, match="alternative text"):
        plots.show(Figure(), alt)
    assert not displayed


# -------------------------------------------------------------------------------- errors

UNLABELLED = FundusSample("blank", SAMPLE.image, SAMPLE.fov)
BAD_CALLS = [
    (lambda: plots.plot_images({}), "no picture"),
    (lambda: plots.plot_steps({}), "no batch"),
    (lambda: plots.plot_prediction(UNLABELLED, PROBABILITY), "blank has no vessel labels"),
    (lambda: plots.plot_prediction(SAMPLE, PROBABILITY[1:]), "made is"),
    (lambda: plots.plot_observers(UNLABELLED), "blank has no two observers"),
    (lambda: plots.plot_roc_pr({}), "no curve"),
    (lambda: plots.plot_width_histogram(np.array([])), "no vessels"),
    (lambda: plots.plot_metrics_bars({}), "no method"),
    (lambda: plots.plot_metrics_bars({"net": BLOCK}, ["brier"]), "net has no brier"),
    (lambda: plots.plot_history(HISTORY.drop(columns="loss")), "loss"),
    (lambda: plots.error_map(PROBABILITY, SAMPLE.vessels), "prediction must be bool"),
    (lambda: plots.error_map(SAMPLE.vessels, SAMPLE.vessels, convention="x"), "convention"),
    (lambda: plots.overlay(SAMPLE.image, SAMPLE.vessels[1:]), "mask"),
    (lambda: plots.overlay(SAMPLE.image, SAMPLE.vessels, opacity=2), "opacity"),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
