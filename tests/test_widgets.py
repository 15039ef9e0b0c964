"""Explorers: every state can be drawn, errors are seen, the static page is complete in itself."""

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import ipywidgets
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from retina_lab import metrics, plots, results, widgets
from retina_lab.datasets.sample import FundusSample
from retina_lab.models import DropBlock2d
from retina_lab.models.deformable import bilinear_sample, bilinear_sample_by_hand
from retina_lab.models.discriminators import build_discriminator
from retina_lab.models.receptive_field import receptive_field
from retina_lab.pairs import LESIONS
from retina_lab.preprocess import fov_width, to_batch
from retina_lab.sampling import draw_trees, principal_directions, random_codes
from retina_lab.synthesis import BANNER
from retina_lab.widgets import bilinear, discriminator
from retina_lab.widgets.base import reduced
from tests.untrained import untrained

VIEW = "application/vnd.jupyter.widget-view+json"


def made_sample(seed=0, height=60, width=64):
    y, x = np.mgrid[:height, :width]
    fov = np.hypot(y - height / 2, x - width / 2) < height / 2 - 2
    vessels = (np.abs(y - height / 2 - 8 * np.sin(x / 7 + seed)) < 2) & fov
    image = np.zeros((height, width, 3), np.uint8)
    image[fov] = (190 - 30 * seed, 100, 50)
    image[vessels] = (120, 40, 30)
    return FundusSample(f"made {seed}", image, fov, vessels, dataset="toy")


SAMPLES = [made_sample(0), made_sample(1)]
PROBABILITY = np.random.default_rng(0).random(SAMPLES[0].size).astype(np.float32) ** 2
PROBABILITY[SAMPLES[0].vessels] **= 0.3
LARGE = made_sample(0, height=300, width=320)
TREES = torch.from_numpy(np.random.default_rng(1).random((5, 1, 32, 32), np.float32)) ** 4
PAINTERS = {model: untrained(model) for model in ("mi-gan", "pix2pix")}
AUTOENCODER, PAINTER = untrained("aae"), untrained("pix2pix-grade", grades=("0", "3"))
CODES = random_codes(AUTOENCODER, 12)
WALK = principal_directions(CODES, 4)
TREE = draw_trees(AUTOENCODER, CODES[:1])  # 1×1×32×32
ROWS = results.scored("equal-budget")
AT_HOME = results.by_test_images(ROWS)
DRIVE_ROWS = AT_HOME["drive, official"]
DROP_MAPS = {"green": SAMPLES[0].image[..., 1] / 255.0, "noise": PROBABILITY}


def tiny_explorer(render=None, describe=None, **frames):
    def draw(level, kind):
        figure = Figure(figsize=(1, 1))
        figure.add_axes((0, 0, 1, 1)).bar([0], [level], color={"a": "k", "b": "r"}[kind])
        figure.axes[0].set_ylim(0, 10)
        return figure

    return widgets.Explorer(
        "Tiny <explorer>",
        render or draw,
        describe or (lambda level, kind: f"a bar of height {level} of kind <{kind}>"),
        {
            "level": ipywidgets.IntSlider(value=2, min=0, max=10, description="level"),
            "kind": ipywidgets.Dropdown(options=["a", "b"], value="a", description="kind"),
        },
        frames or {"kind": ["a", "b"], "level": [0, 2, 10]},
    )


@pytest.fixture
def still_book(monkeypatch):
    monkeypatch.setenv("RETINA_LAB_STATIC", "1")


@pytest.fixture
def live(monkeypatch):
    monkeypatch.delenv("RETINA_LAB_STATIC", raising=False)


# ------------------------------------------------------------------------- the machinery


def test_moving_a_slider_changes_picture_and_words():
    explorer = tiny_explorer()
    picture, caption = explorer._picture.value, explorer._caption.value
    assert 'alt="a bar of height 2 of kind &lt;a&gt;"' in picture
    explorer.controls["level"].value = 7
    assert explorer._picture.value != picture
    assert 'alt="a bar of height 7 of kind &lt;a&gt;"' in explorer._picture.value
    assert explorer._caption.value != caption
    assert 'aria-live="polite"' in explorer._caption.value
    assert explorer.values == {"level": 7, "kind": "a"}


def failing(level, kind):
    if level > 5:
        raise RuntimeError("the level is too high")
    return Figure(figsize=(1, 1))


def test_an_error_in_a_redraw_is_shown_recorded_and_cleared():
    explorer = tiny_explorer(render=failing)
    assert explorer.errors.outputs == ()
    explorer.controls["level"].value = 9
    (output,) = explorer.errors.outputs
    assert output["output_type"] == "error"
    assert output["ename"] == "RuntimeError"
    assert output["evalue"] == "the level is too high"
    assert any("failing" in line for line in output["traceback"])
    assert explorer.errors in explorer.view.children
    explorer.controls["level"].value = 3
    assert explorer.errors.outputs == ()


def test_an_error_in_the_first_state_is_an_error_of_the_cell():
    def broken(level, kind):
        raise RuntimeError("no picture at all")

    with pytest.raises(RuntimeError, match="no picture at all"):
        tiny_explorer(render=broken)


def test_a_description_must_say_something():
    with pytest.raises(ValueError, match="alternative text"):
        tiny_explorer(describe=lambda level, kind: "a bar")


@pytest.mark.parametrize("frames", [{"size": [1]}, {"level": [1], "kind": ["a"], "size": [2]}])
def test_frames_must_be_of_one_or_two_controls(frames):
    with pytest.raises(ValueError, match=r"one or two of \['level', 'kind'\]"):
        tiny_explorer(**frames)


def test_live_output_is_the_widget_and_no_html(live):
    bundle = tiny_explorer()._repr_mimebundle_()
    assert set(bundle) == {VIEW, "text/plain"}
    assert bundle["text/plain"] == "Tiny <explorer>: a bar of height 2 of kind <a>"


def test_the_book_gets_the_widget_and_html(still_book):
    explorer = tiny_explorer()
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {VIEW, "text/plain", "text/html"}
    assert bundle[VIEW]["model_id"] == explorer.view.model_id
    assert 'type="range"' in bundle["text/html"]


# ----------------------------------------------------------------------- the static page


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self._script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._script = tag == "script"

    def handle_data(self, data):
        if self._script:
            self.scripts.append(data)
            self._script = False

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check_static_page(text, states):
    """What holds for every explorer's page; returns the parsed page and its data."""
    page = Page(text)
    data = json.loads(page.scripts[0])
    (picture,) = page.all("img")
    controls = page.all("input") + page.all("select")
    labels = {label["for"] for label in page.all("label")}
    assert labels == {control["id"] for control in controls}
    assert len(data["order"]) == len(data["texts"]) == states
    assert sorted(set(data["order"])) == list(range(len(data["sources"])))
    assert data["sources"].count(None) == 1  # the one that is shown already
    assert all(s is None or s.startswith("data:image/webp;base64,") for s in data["sources"])
    assert picture["alt"] in data["texts"]
    assert all(len(words) >= plots.SHORTEST_ALT for words in data["texts"])
    assert not re.search(r"https?:|//cdn|@import|url\(", re.sub(r"data:[^\"]+", "", text))
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    assert "@media print" in text
    assert {"class": "still"} in page.all("p")
    return page, data


def test_the_static_page_of_a_tiny_explorer():
    page, data = check_static_page(tiny_explorer().static_html(), states=6)
    assert data["readouts"] == [["a", "b"], ["0", "2", "10"]]
    assert data["texts"][4] == "a bar of height 2 of kind <b>"
    # a bar of height 0 looks the same in black and in red, and is stored once
    assert data["order"][0] == data["order"][3]
    assert len(data["sources"]) == 5
    (slider,) = page.all("input")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "1")
    assert page.all("div")[0]["aria-label"] == "Tiny <explorer>"


def test_two_pages_share_no_identifier():
    explorer = tiny_explorer()
    one, other = (Page(explorer.static_html()) for _ in range(2))
    ids = [{a["id"] for _, a in page.elements if "id" in a} for page in (one, other)]
    assert not ids[0] & ids[1]


def test_a_page_starts_at_the_nearest_frame():
    explorer = tiny_explorer(level=[0, 5, 10])
    explorer.controls["level"].value = 4
    page, _ = check_static_page(explorer.static_html(), states=3)
    assert page.all("img")[0]["alt"] == "a bar of height 5 of kind <a>"


def test_words_cannot_break_out_of_the_script():
    nasty = "</script><script>alert(1)</script><!-- and more"
    text = tiny_explorer(describe=lambda level, kind: nasty).static_html()
    page, data = check_static_page(text, states=6)
    assert data["texts"][0] == nasty
    assert len(page.all("script")) == 2


def test_a_page_keeps_its_budget_or_says_that_it_cannot():
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)

    def draw(level, kind):
        return plots.plot_images({"noise": np.roll(noise, level, axis=0)})

    explorer = tiny_explorer(render=draw, level=list(range(6)))
    free = explorer.static_html()
    tight = explorer.static_html(budget=int(len(free) * 0.8))
    assert len(tight) < len(free)
    with pytest.raises(ValueError, match="6 frames do not fit into 10,000 characters"):
        explorer.static_html(budget=10_000)


# ---------------------------------------------------------------------- every explorer

EXPLORERS = {
    "threshold": lambda: widgets.explore_threshold(SAMPLES[0], PROBABILITY),
    "augmentation": lambda: widgets.explore_augmentation(SAMPLES),
    "bilinear": widgets.explore_bilinear,
    "dilation": lambda: widgets.explore_dilation(SAMPLES[0], (30, 32)),
    "discriminator": lambda: widgets.explore_discriminator(LARGE),
    "dropblock": lambda: widgets.explore_dropblock(DROP_MAPS),
    "noise": lambda: widgets.explore_noise(PAINTERS, TREES),
    "interpolation": lambda: widgets.explore_interpolation(AUTOENCODER, CODES[:2]),
    "latent walk": lambda: widgets.explore_latent_walk(AUTOENCODER, CODES),
    "lesions": lambda: widgets.explore_lesions(PAINTER, TREE),
    "phantom": lambda: widgets.explore_phantom(1),
    "table": lambda: widgets.explore_table(ROWS),
    "common threshold": lambda: widgets.explore_common_threshold(DRIVE_ROWS),
}
RENDERERS = {
    "threshold": lambda **values: widgets.render_threshold(SAMPLES[0], PROBABILITY, **values),
    "augmentation": lambda **values: widgets.render_augmentation(SAMPLES, **values),
    "bilinear": widgets.render_bilinear,
    "dilation": lambda **values: widgets.render_dilation(SAMPLES[0], (30, 32), **values),
    "discriminator": lambda **values: widgets.render_discriminator(LARGE, **values),
    "dropblock": lambda channel, **values: widgets.render_dropblock(DROP_MAPS[channel], **values),
    "noise": lambda painter, tree, **values: widgets.render_noise(
        PAINTERS[painter], TREES[tree], **values
    ),
    "interpolation": lambda **v: widgets.render_interpolation(AUTOENCODER, CODES[:2], **v),
    "latent walk": lambda **values: widgets.render_latent_walk(AUTOENCODER, WALK, **values),
    "lesions": lambda **values: widgets.render_lesion(PAINTER, TREE, **values),
    "phantom": lambda **values: widgets.render_phantom(size=96, **values),
    "table": lambda **values: widgets.render_table(ROWS, **values),
    "common threshold": lambda **v: widgets.render_common_threshold(DRIVE_ROWS, **v),
}
DESCRIBERS = {
    "threshold": lambda **values: widgets.describe_threshold(SAMPLES[0], PROBABILITY, **values),
    "augmentation": lambda **values: widgets.describe_augmentation(SAMPLES, **values),
    "bilinear": widgets.describe_bilinear,
    "dilation": lambda **values: widgets.describe_dilation(SAMPLES[0], (30, 32), **values),
    "discriminator": lambda **values: widgets.describe_discriminator(LARGE, **values),
    "dropblock": lambda channel, **values: widgets.describe_dropblock(DROP_MAPS[channel], **values),
    "noise": lambda painter, tree, **values: widgets.describe_noise(
        PAINTERS[painter], TREES[tree], **values
    ),
    "interpolation": lambda **v: widgets.describe_interpolation(AUTOENCODER, CODES[:2], **v),
    "latent walk": lambda **values: widgets.describe_latent_walk(AUTOENCODER, WALK, **values),
    "lesions": lambda **values: widgets.describe_lesion(PAINTER, TREE, **values),
    "phantom": lambda **values: widgets.describe_phantom(size=96, **values),
    "table": lambda **values: widgets.describe_table(ROWS, **values),
    "common threshold": lambda **v: widgets.describe_common_threshold(DRIVE_ROWS, **v),
}


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_end_of_every_slider_can_be_drawn(name):
    explorer = EXPLORERS[name]()
    pictures = set()
    for parameter, control in explorer.controls.items():
        ends = getattr(control, "options", None) or (control.min, control.max)
        for end in ends:
            values = explorer.values | {parameter: end}
            figure = RENDERERS[name](**values)
            assert isinstance(figure, Figure)
            pictures.add(plots.figure_image(figure, 40).tobytes())
            plots.checked_alt(DESCRIBERS[name](**values))
    assert len(pictures) > len(explorer.controls)  # the sliders do something


@pytest.mark.parametrize("name", [name for name in EXPLORERS if name != "phantom"])
def test_explorers_answer_their_sliders(name):
    explorer = EXPLORERS[name]()
    for control in explorer.controls.values():
        before = explorer._picture.value, explorer._caption.value
        if isinstance(control, ipywidgets.Dropdown):
            control.value = next(other for other in control.options if other != control.value)
        else:
            control.value = control.max
        assert (explorer._picture.value, explorer._caption.value) != before
        assert explorer.errors.outputs == ()


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("threshold", 21),
        ("augmentation", 42),
        ("dilation", 20),
        ("discriminator", 28),
        ("dropblock", 25),
        ("interpolation", 22),
        ("latent walk", 21),
        ("noise", 20),
        ("table", 7 * len(AT_HOME)),
        ("common threshold", 21),
    ],
)
def test_static_pages_of_explorers(name, states):
    text = EXPLORERS[name]().static_html()
    check_static_page(text, states)
    assert len(text) < 1.1 * widgets.STATIC_BUDGET


@pytest.mark.slow
@pytest.mark.parametrize(("name", "states"), [("phantom", 16), ("bilinear", 121), ("lesions", 49)])
def test_static_pages_that_take_a_while(name, states):
    text = EXPLORERS[name]().static_html()
    check_static_page(text, states)
    assert len(text) < 1.1 * widgets.STATIC_BUDGET


# --------------------------------------------------------------------------- threshold


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_the_words_of_the_threshold_explorer_are_the_counts(threshold):
    sample = SAMPLES[0]
    prediction = metrics.binarise(PROBABILITY, threshold)
    counts = metrics.count(prediction, sample.vessels, sample.fov)
    text = widgets.describe_threshold(sample, PROBABILITY, threshold)
    assert f"{counts.tp:,} vessel pixels found (TP)" in text
    assert f"{counts.fn:,} missed (FN)" in text
    assert f"{counts.fp:,} false alarms (FP)" in text
    assert f"Dice {metrics.dice(counts):.3f}" in text


def test_the_point_of_the_threshold_explorer_lies_on_both_curves():
    figure = widgets.render_threshold(SAMPLES[0], PROBABILITY, 0.4)
    for axes in figure.axes[1:3]:
        curve, (x, y) = axes.lines[0].get_xydata(), axes.lines[-1].get_xydata()[0]
        assert np.hypot(*(curve - (x, y)).T).min() < 2e-3


def test_large_counts_still_fit_the_legend():
    large = made_sample(height=1500, width=1500)
    figure = widgets.render_threshold(large, np.full(large.size, 0.5, np.float32), 0.4)
    rim = np.asarray(plots.figure_image(figure, 100).convert("L"))
    assert (np.concatenate([rim[0], rim[-1], rim[:, 0], rim[:, -1]]) == 255).all()


def test_the_threshold_explorer_refuses_what_it_cannot_compare():
    blank = FundusSample("blank", SAMPLES[0].image, SAMPLES[0].fov)
    with pytest.raises(ValueError, match="blank has no vessel labels"):
        widgets.explore_threshold(blank, PROBABILITY)
    with pytest.raises(ValueError, match="made 0 is"):
        widgets.explore_threshold(SAMPLES[0], PROBABILITY[1:])


# ------------------------------------------------------------------------ augmentation


@pytest.mark.parametrize("transform", widgets.TRANSFORMS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_strength_changes_nothing_full_strength_does(transform, seed):
    before = to_batch(SAMPLES)
    none = widgets.augment_for_show(SAMPLES, transform, 0.0, seed)
    full = widgets.augment_for_show(SAMPLES, transform, 1.0, seed)
    for name in before:
        torch.testing.assert_close(none[name], before[name], atol=1e-4, rtol=0)
    assert (full["image"][0] - before["image"][0]).abs().max() > 0.05
    for mask in ("vessels", "fov"):
        assert set(full[mask].unique().tolist()) <= {0.0, 1.0}
    again = widgets.augment_for_show(SAMPLES, transform, 1.0, seed)
    assert torch.equal(full["image"], again["image"])


def test_stitching_at_full_strength_shows_the_other_image():
    marked = [made_sample(0), made_sample(3)]  # of clearly different reds
    seen = 0
    for seed in range(10):
        out = widgets.augment_for_show(marked, "image stitching", 1.0, seed)["image"][0, 0]
        seen += bool(((out > 0.38) & (out < 0.41)).any())
    assert seen >= 7


def test_one_sample_is_enough_for_the_augmentation_explorer():
    explorer = widgets.explore_augmentation(SAMPLES[0], "image stitching")
    assert explorer.errors.outputs == ()


def test_large_photographs_are_shown_smaller_and_keep_their_thin_vessels():
    large = made_sample(height=1300, width=1500)
    thin = np.zeros_like(large.vessels)
    thin[:, 701] = True
    small = reduced(FundusSample("large", large.image, large.fov, thin & large.fov, dataset="toy"))
    assert small.size == (433, 500)
    assert small.vessels.any(axis=1).mean() > 0.95
    assert abs(small.fov.mean() - large.fov.mean()) < 0.01
    assert reduced(SAMPLES[0]) is SAMPLES[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("melting", 0.5), "no transform 'melting'"), (("blur", 1.5), "strength must lie")],
)
def test_augment_for_show_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        widgets.augment_for_show(SAMPLES, *arguments)


# ----------------------------------------------------------------------------- dilation


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "layers", "expected"),
    [
        (3, 1, 1, [1, 1, 1]),
        (3, 1, 2, [1, 2, 3, 2, 1]),
        (3, 2, 2, [1, 0, 2, 0, 3, 0, 2, 0, 1]),
        (5, 1, 1, [1, 1, 1, 1, 1]),
        (3, 5, 0, [1]),
    ],
)
def test_paths_through_a_stack(kernel_size, dilation, layers, expected):
    paths = widgets.count_paths(kernel_size, dilation, layers)
    assert paths.tolist() == expected
    assert len(paths) == 1 + layers * (kernel_size - 1) * dilation
    assert paths.sum() == kernel_size**layers


@pytest.mark.parametrize(("kernel_size", "dilation", "layers"), [(3, 2, 3), (5, 3, 2), (7, 1, 2)])
def test_the_dilation_explorer_sees_what_the_network_sees(kernel_size, dilation, layers):
    stack = torch.nn.Sequential(
        *[torch.nn.Conv2d(1, 1, kernel_size, padding="same", dilation=dilation)] * layers
    )
    paths = widgets.count_paths(kernel_size, dilation, layers)
    expected = np.pad(np.outer(paths, paths) > 0, 5)
    assert np.array_equal(receptive_field(stack, len(expected), channels=1), expected)
    words = widgets.describe_dilation(SAMPLES[0], (30, 32), kernel_size, dilation, layers)
    assert f"see {len(paths)}×{len(paths)} pixels" in words
    assert ("without holes" in words) == bool(expected[5:-5, 5:-5].all())


def test_the_dilation_explorer_paints_the_pixels_that_are_seen():
    grey = FundusSample("grey", np.full((140, 150, 3), 99, np.uint8), np.ones((140, 150), bool))
    figure = widgets.render_dilation(grey, (70, 71), kernel_size=3, dilation=4, layers=1)
    zoomed = figure.axes[1].images[0].get_array()
    painted = np.argwhere((np.asarray(zoomed) != 99).any(axis=-1))
    assert zoomed.shape == (25, 25, 3)
    assert painted.tolist() == [[r, c] for r in (8, 12, 16) for c in (8, 12, 16)]


def test_the_dilation_explorer_stays_in_the_photograph():
    with pytest.raises(ValueError, match=r"\(60, 0\) is not in made 0"):
        widgets.explore_dilation(SAMPLES[0], (60, 0))
    assert widgets.explore_dilation(SAMPLES[0], (0, 0)).errors.outputs == ()


# ------------------------------------------------------------------------- discriminator


@pytest.mark.parametrize(
    ("judge", "grid", "place", "rows", "columns"),
    [
        # on 300×320 pixels, for the place in row 100, column 200
        ("pixel", (300, 320), (100, 200), (97, 104), (197, 204)),
        ("patch-2", (37, 40), (12, 25), (69, 130), (173, 234)),  # steps of 8, fields 61 from −27
        ("patch-1", (4, 5), (1, 3), (-175, 362), (-47, 490)),  # steps of 64, 537 from −239
        ("image", (1, 1), (0, 0), (0, 300), (0, 320)),
        ("cam C0", (300, 320), (100, 200), (98, 103), (198, 203)),
        ("cam C1", (15, 17), (4, 11), (33, 159), (145, 271)),  # steps of 16, 126 from −31
        ("cam C2", (6, 7), (1, 4), (-31, 223), (65, 319)),  # steps of 32, 254 from −63
    ],
)
def test_which_verdict_sees_what(judge, grid, place, rows, columns):
    seen = widgets.sight(judge, (300, 320), (100, 200))
    assert (seen.grid, seen.place) == (grid, place)
    assert seen.window == (range(*rows), range(*columns))


class Verdict(torch.nn.Module):
    """One of a discriminator's outputs as a function of the stacked pair."""

    def __init__(self, name, which):
        super().__init__()
        self.discriminator, self.which = build_discriminator(name, 1), which

    def forward(self, x):
        return self.discriminator(x[:, :3], x[:, 3:])[self.which]


@pytest.mark.parametrize(
    ("judge", "name", "which"), [("patch-2", "patch-2", 0), ("cam C1", "multi-scale-cam", 3)]
)
def test_the_discriminator_explorer_sees_what_the_discriminator_sees(judge, name, which):
    size = (160, 176)
    seen = widgets.sight(judge, size, (30, 120))
    field = receptive_field(Verdict(name, which), size, seen.place, channels=4)
    for axis, expected in enumerate(seen.window):
        found = field.any(axis=1 - axis).nonzero()[0][[0, -1]].tolist()
        assert found == [max(0, expected.start), min(size[axis], expected.stop) - 1]


@pytest.mark.parametrize("judge", discriminator.JUDGES)
def test_the_words_of_the_discriminator_explorer(judge):
    seen = widgets.sight(judge, LARGE.size, (0.5 * 299, 0.3 * 319))
    text = widgets.describe_discriminator(LARGE, judge, 50, 30)
    assert text.startswith(f"{judge}: ")
    if judge != "image":
        assert f"{seen.grid[1]}×{seen.grid[0]} verdicts on made 0 (320×300)" in text
    assert f"sees {len(seen.window[1])}×{len(seen.window[0])} pixels" in text
    beyond = any(
        part.start < 0 or part.stop > side
        for part, side in zip(seen.window, LARGE.size, strict=True)
    )
    assert ("lie in the photograph" in text) == beyond


def test_what_lies_beyond_the_photograph_is_grey():
    figure = widgets.render_discriminator(LARGE, "patch-2", 0, 0)
    photo, label, seen_photo, seen_label = (axes.images[0].get_array() for axes in figure.axes)
    assert photo.shape == label.shape == (300, 320, 3)
    assert seen_photo.shape == seen_label.shape == (61, 61, 3)
    grey = tuple(bytes.fromhex(plots.OUTSIDE[1:]))
    assert (np.asarray(seen_photo)[:27] == grey).all()  # the first field begins 27 pixels above
    assert np.array_equal(np.asarray(seen_photo)[27:, 27:], LARGE.image[:34, :34])


def test_the_discriminator_explorer_works_at_the_scale_of_training():
    """A box of 61 pixels must cover as much of the eye as it does in training."""
    large = made_sample(0, height=1100, width=1200)
    widgets.explore_discriminator(LARGE)  # stays as it is
    text = widgets.explore_discriminator(large)._caption.value
    width = int(re.search(r"\((\d+)×\d+\)", text)[1])
    assert abs(width * fov_width(large.fov) / 1200 - 600) < 2


def test_the_discriminator_explorer_names_what_is_wrong():
    blank = FundusSample("blank", LARGE.image, LARGE.fov)
    with pytest.raises(ValueError, match="blank has no vessel labels"):
        widgets.explore_discriminator(blank)
    with pytest.raises(ValueError, match="made 0 is 64×60; the discriminators need at least 128"):
        widgets.explore_discriminator(SAMPLES[0])
    with pytest.raises(ValueError, match="no discriminator 'patch'"):
        widgets.sight("patch", (300, 320), (0, 0))


# ---------------------------------------------------------------------------- DropBlock


@pytest.mark.parametrize(("keep", "block"), [(0.85, 7), (0.5, 1), (0.9, 15)])
def test_the_words_of_the_dropblock_explorer_are_the_shares(keep, block):
    values = DROP_MAPS["noise"]
    holes = widgets.drop_blocks(values.shape, keep, block, seed=3)
    layer = DropBlock2d(keep, block)
    text = widgets.describe_dropblock(values, keep, block, seed=3)
    assert f"To be dropped: {1 - keep:.1%}" in text
    assert f"{layer.expected_share(*values.shape):.1%} are expected to go" in text
    assert f"and {holes.mean():.1%} went" in text
    figure = widgets.render_dropblock(values, keep, block, seed=3)
    assert figure.axes[2].get_title().endswith(f"{holes.mean():.1%} dropped")


def test_the_holes_of_the_explorer_are_those_of_the_layer_and_leave_chance_alone():
    torch.manual_seed(5)
    expected = DropBlock2d(0.8, 3).mask(torch.ones(1, 1, 20, 30))[0, 0] == 0
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    holes = widgets.drop_blocks((20, 30), 0.8, 3, seed=5)
    assert torch.equal(torch.rand(1), before)
    assert np.array_equal(holes, expected.numpy())


def test_guessing_from_the_nearest_value():
    columns = np.tile(np.arange(6.0), (4, 1))
    holes = np.zeros((4, 6), bool)
    holes[1, 2] = holes[2, 4] = True  # above and below stands the same value
    assert widgets.guess_from_nearest(columns, holes) == pytest.approx(1)
    rng = np.random.default_rng(0)
    noise, dots = rng.random((200, 200)), rng.random((200, 200)) < 0.1
    assert abs(widgets.guess_from_nearest(noise, dots)) < 0.1
    for nothing in (np.zeros((4, 6), bool), np.ones((4, 6), bool)):
        assert np.isnan(widgets.guess_from_nearest(columns, nothing))
    assert np.isnan(widgets.guess_from_nearest(np.zeros((4, 6)), holes))


def test_larger_blocks_are_harder_to_guess():
    y, x = np.mgrid[:120, :120]
    smooth = np.sin(x / 5) + np.sin(y / 7)
    guesses = [
        widgets.guess_from_nearest(smooth, widgets.drop_blocks(smooth.shape, 0.8, block, seed=0))
        for block in (1, 5, 15)
    ]
    assert guesses[0] > 0.95
    assert guesses == sorted(guesses, reverse=True)


@pytest.mark.parametrize("maps", [{}, {"colour": SAMPLES[0].image}])
def test_the_dropblock_explorer_wants_single_channels(maps):
    with pytest.raises(ValueError, match=r"maps of one channel, \(H, W\)"):
        widgets.explore_dropblock(maps)


# -------------------------------------------------------------------------------- noise


def test_paintings_differ_by_their_noise_and_by_nothing_else():
    run, tree = PAINTERS["mi-gan"], TREES[0]
    loud, soft = (widgets.paint_often(run, tree, scale, 3, seed=1) for scale in (1.0, 0.0))
    assert loud.shape == (3, 32, 32, 3)
    assert not loud[:, ~run.fov].any()  # black outside the field of view
    assert not np.array_equal(loud[0], loud[1])
    assert np.array_equal(soft[0], soft[2])
    assert np.array_equal(loud[:2], widgets.paint_often(run, tree, 1.0, 2, seed=1))
    assert not np.array_equal(loud[:2], widgets.paint_often(run, tree, 1.0, 2, seed=2))


def test_the_noise_explorer_shows_and_says_how_much_paintings_differ():
    run, tree = PAINTERS["mi-gan"], TREES[0]
    painted = widgets.paint_often(run, tree, 1.0, 4, seed=3)
    figure = widgets.render_noise(run, tree, power=0.0, seed=3)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert np.array_equal(shown[0], tree[0])
    for picture, expected in zip(shown[1:5], painted, strict=True):
        assert np.array_equal(picture, expected)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    inside = painted[:, run.fov].astype(int)  # the black corners differ by nothing
    by_hand = np.mean([np.abs(inside[i] - inside[j]).mean() for i, j in pairs])
    text = widgets.describe_noise(run, tree, power=0.0, seed=3)
    assert f"differ by {by_hand:.2f} grey levels" in text
    assert "standard deviation 1 " in text
    quiet = widgets.describe_noise(run, tree, power=-3.0, seed=3)
    assert "standard deviation 0.001 " in quiet
    assert figure.texts[0].get_text() == "Synthetic images, not for clinical use."


def test_a_painter_without_noise_says_so():
    text = widgets.describe_noise(PAINTERS["pix2pix"], TREES[0], power=0.0, seed=0)
    assert "takes no noise" in text
    figure = widgets.render_noise(PAINTERS["pix2pix"], TREES[0], power=0.0, seed=0)
    assert not np.asarray(figure.axes[-1].images[0].get_array()).any()


def test_a_tint_is_told_from_a_texture():
    class Tinted:
        """Paints one colour: as bright as its first random number says."""

        def __call__(self, condition, noise):
            return (0.1 * noise[:, :1, None, None]).expand(-1, 3, 32, 32)

    run = replace(PAINTERS["mi-gan"], networks={"generator": Tinted()})
    assert "100% of it" in widgets.describe_noise(run, TREES[0], power=0.0, seed=0)


@pytest.mark.parametrize(
    ("painters", "trees", "message"),
    [
        ({}, TREES, "at least one painter"),
        (PAINTERS, TREES[:0], "at least one painter and one tree"),
        (PAINTERS, TREES[..., :16, :16], "mi-gan paints 32×32 pixels, but the trees are 16×16"),
    ],
)
def test_the_noise_explorer_names_what_is_wrong(painters, trees, message):
    with pytest.raises(ValueError, match=message):
        widgets.explore_noise(painters, trees)


def test_one_tree_and_one_painter_are_enough():
    explorer = widgets.explore_noise({"mi-gan": PAINTERS["mi-gan"]}, TREES[:1])
    assert explorer.errors.outputs == ()
    check_static_page(explorer.static_html(), states=5)


# ----------------------------------------------------------------------------- bilinear


@pytest.mark.parametrize(("x", "y"), [(0.7, 0.3), (1.55, 2.3), (0, 0), (3, 3), (2, 0.5), (3, 1.2)])
def test_the_bilinear_explorer_shows_what_the_library_computes(x, y):
    image = torch.tensor(bilinear.GRID, dtype=torch.float64).requires_grad_()
    place = torch.tensor([y, x], dtype=torch.float64).requires_grad_()
    value = bilinear_sample(image[None, None], place.view(1, 2, 1, 1)).sum()
    value.backward()
    text = widgets.describe_bilinear(x, y)
    assert f"together {bilinear_sample_by_hand(image.detach(), y, x):.2f}." in text
    for weight, pixel in zip(image.grad[image.grad > 0], image[image.grad > 0], strict=True):
        assert f"{weight:.4g} (value {pixel:.0f})" in text
    if x % 1 and y % 1:  # in the middle of a pixel there are two slopes
        down, right = place.grad.tolist()
        slope = f"slope is {right:+.2f} a pixel to the right and {down:+.2f} downwards"
        assert slope.replace("-", "−") in text


def test_the_corner_of_the_bilinear_explorer_is_the_example_of_the_slides():
    assert bilinear.GRID[:2, :2].tolist() == [[1, 8], [4, 2]]
    text = widgets.describe_bilinear(0.7, 0.3)
    for weight in ("0.21 (value 1)", "0.49 (value 8)", "0.09 (value 4)", "0.21 (value 2)"):
        assert weight in text
    assert "together 4.91" in text
    assert widgets.explore_bilinear().values == {"x": 0.7, "y": 0.3}


def test_weights_are_the_areas_of_the_opposite_rectangles():
    grid, sums = widgets.render_bilinear(0.7, 0.3).axes
    boxes = [patch for patch in grid.patches if isinstance(patch, Rectangle)]
    areas = [box.get_width() * box.get_height() for box in boxes]
    assert areas == pytest.approx([0.21, 0.49, 0.09, 0.21])
    bars = [bar.get_width() for bar in sums.patches]
    assert bars == pytest.approx([3.6 * area for area in areas])


def test_dragging_types_a_point_and_draws_once(monkeypatch):
    explorer = widgets.explore_bilinear()
    drawn = []
    monkeypatch.setattr(explorer, "_render", lambda **v: drawn.append(v) or Figure())
    explorer._field.value = "2.031 1.472"
    assert explorer.values == pytest.approx({"x": 2.0, "y": 1.5})
    assert len(drawn) == 1
    explorer.controls["x"].value = 0.5  # the sliders still answer
    assert len(drawn) == 2
    explorer._field.value = "2.031 1.472"  # and so does the same place again
    assert explorer.values == pytest.approx({"x": 2.0, "y": 1.5})
    assert len(drawn) == 3
    assert explorer.errors.outputs == ()


def test_the_live_picture_carries_its_handler():
    explorer = widgets.explore_bilinear()
    (frame, *_) = Page(explorer._picture.value).all("div")
    assert explorer._place in frame["onpointerdown"]
    assert "§" not in frame["onpointerdown"]
    assert explorer._place != widgets.explore_bilinear()._place


# ------------------------------------------------------------------------- latent walk


def test_the_walk_starts_at_the_mean_and_goes_in_deviations():
    none = dict.fromkeys([f"direction_{i}" for i in range(1, 5)], 0.0)
    text = widgets.describe_latent_walk(AUTOENCODER, WALK, **none)
    assert f"length is {CODES.mean(0).norm():.1f}" in text
    assert "100% of the vessel pixels of the mean code's tree are kept" in text
    far = widgets.describe_latent_walk(AUTOENCODER, WALK, **none | {"direction_2": -3.0})
    code = WALK[0] - 3 * WALK[2][1] * WALK[1][1]
    assert "−3.0 along direction 2" in far
    assert f"length is {code.norm():.1f}, where codes from N(0, I) have about 2.8" in far
    assert "100% of the vessel pixels" not in far
    figure = widgets.render_latent_walk(AUTOENCODER, WALK, **none | {"direction_2": -3.0})
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown == pytest.approx(draw_trees(AUTOENCODER, code[None])[0, 0].numpy(), abs=1e-3)


def test_few_codes_have_few_directions():
    assert list(widgets.explore_latent_walk(AUTOENCODER, CODES[:2]).controls) == ["direction_1"]
    with pytest.raises(ValueError, match="1 codes have"):
        widgets.explore_latent_walk(AUTOENCODER, CODES[:1])


def test_a_blank_tree_can_be_described():
    blank = untrained("aae")
    torch.nn.init.constant_(blank.networks["autoencoder"].decoder.body[-1].bias, -1000)
    words = widgets.describe_latent_walk(blank, WALK, direction_1=1.0)
    assert "the mean code's tree is blank" in words
    assert "in 0 piece(s)" in widgets.describe_interpolation(blank, CODES[:2], 0.5, "straight")


@pytest.mark.parametrize("path", ["straight", "spherical"])
def test_the_ends_of_the_way_are_the_two_eyes(path):
    for share, code in ((0.0, CODES[0]), (1.0, CODES[1])):
        text = widgets.describe_interpolation(AUTOENCODER, CODES[:2], share, path)
        assert f"The code's length is {code.norm():.1f}" in text
    text = widgets.describe_interpolation(AUTOENCODER, CODES[:2], 0.0, path)
    assert "Dice with the one tree 1.00" in text


def test_the_two_paths_differ_in_the_middle():
    words = [
        widgets.describe_interpolation(AUTOENCODER, CODES[:2], 0.5, path).split("length is ")[1]
        for path in ("straight", "spherical")
    ]
    straight, arc = (float(text.split(";")[0]) for text in words)
    assert straight < arc


@pytest.mark.parametrize("explore", [widgets.explore_latent_walk, widgets.explore_interpolation])
def test_trees_can_be_painted_on_the_way(explore):
    explorer = explore(AUTOENCODER, CODES[:2], painter=PAINTER)
    plain = explore(AUTOENCODER, CODES[:2])
    figures = [e._render(**e.values) for e in (explorer, plain)]
    assert len(figures[0].axes) == len(figures[1].axes) + 1
    assert figures[0].get_suptitle() == BANNER
    large = untrained("pix2pix", size=64)
    with pytest.raises(ValueError, match="32×32 pixels and pix2pix paints 64×64"):
        explore(AUTOENCODER, CODES[:2], painter=large)


def test_the_interpolation_explorer_wants_two_codes():
    with pytest.raises(ValueError, match=r"the ends must be \(2, 8\), not \(3, 8\)"):
        widgets.explore_interpolation(AUTOENCODER, CODES[:3])


# ------------------------------------------------------------------------------ lesions


@pytest.mark.parametrize("kind", LESIONS)
def test_the_words_of_the_lesion_explorer_are_the_changes(kind):
    values = {"x": 12, "y": 18, "kind": kind, "radius": 3, "grade": "3"}
    before, after = widgets.painted_lesion(PAINTER, TREE, **values)
    rows, columns = np.mgrid[:32, :32]
    asked = (rows - 18) ** 2 + (columns - 12) ** 2 <= 9
    change = np.abs(after.astype(int) - before).mean(axis=2) / 255
    text = widgets.describe_lesion(PAINTER, TREE, **values)
    assert f"A painted eye of grade 3, asked for a {kind} of radius 3 at column 12, row 18" in text
    assert f"change by {change[asked].mean():.1%} of their range" in text
    assert f"in the field of view by {change[PAINTER.fov & ~asked].mean():.1%}." in text
    assert change[asked].mean() > 0


def test_nothing_is_asked_for_outside_the_field_of_view():
    values = {"x": 0, "y": 0, "kind": "exudate", "radius": 1, "grade": "0"}
    before, after = widgets.painted_lesion(PAINTER, TREE, **values)
    assert np.array_equal(before, after)
    assert "outside the field of view" in widgets.describe_lesion(PAINTER, TREE, **values)


def test_every_picture_of_the_lesion_explorer_says_that_it_is_synthetic():
    explorer = widgets.explore_lesions(PAINTER, TREE)
    assert explorer._render(**explorer.values).get_suptitle() == BANNER


def test_a_click_places_the_lesion():
    explorer = widgets.explore_lesions(PAINTER, TREE)
    explorer._field.value = "20.4 9.7"
    assert (explorer.values["x"], explorer.values["y"]) == (20, 10)
    assert "at column 20, row 10" in explorer._caption.value
    assert explorer.errors.outputs == ()


def test_the_lesion_explorer_names_what_is_wrong():
    with pytest.raises(ValueError, match="pix2pix is not told of lesions"):
        widgets.explore_lesions(untrained("pix2pix"), TREE)
    with pytest.raises(ValueError, match=r"\(1, 1, 32, 32\), not \(1, 1, 16, 16\)"):
        widgets.explore_lesions(PAINTER, TREE[..., ::2, ::2])


# ------------------------------------------------------------------------------ phantom


def test_the_phantom_explorer_takes_its_ranges_from_the_phantom():
    from retina_lab.datasets import PhantomParameters

    known = {row["name"]: row for row in PhantomParameters.table()}
    explorer = widgets.explore_phantom(central_reflex=0.5)
    assert "central_reflex" in explorer.controls
    for name, control in explorer.controls.items():
        if name == "seed":
            continue
        if "options" in known[name]:
            assert control.options == known[name]["options"]
        else:
            assert (control.min, control.max) == known[name]["range"]


@pytest.mark.parametrize(
    ("start", "message"), [({"spots": 3}, "no parameter 'spots'"), ({"grade": 9}, "grade")]
)
def test_the_phantom_explorer_names_what_is_wrong(start, message):
    with pytest.raises(ValueError, match=message):
        widgets.explore_phantom(**start)


# -------------------------------------------------------------------------- in a kernel

FAILING_NOTEBOOK = """
import ipywidgets
from matplotlib.figure import Figure
from retina_lab.widgets import Explorer

def render(level):
    if level > 5:
        raise RuntimeError("the level is too high")
    return Figure(figsize=(1, 1))

explorer = Explorer("Broken", render, lambda level: f"an empty picture at level {level}",
                    {"level": ipywidgets.IntSlider(max=10)}, {"level": [0, 1]})
explorer.controls["level"].value = 9
explorer
"""


@pytest.mark.slow
def test_the_error_of_a_callback_is_saved_with_the_notebook():
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(FAILING_NOTEBOOK.strip())],
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    )
    os.environ.pop("RETINA_LAB_STATIC", None)
    NotebookClient(notebook, timeout=120).execute()  # no error: that is the trap
    state = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    outputs = [out for w in state.values() for out in w["state"].get("outputs", ())]
    assert [(out["output_type"], out["ename"]) for out in outputs] == [("error", "RuntimeError")]
