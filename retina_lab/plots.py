"""Figures of the course: functions from data to a Matplotlib ``Figure``, and ``show``.

Every function returns a new ``Figure`` and leaves pyplot's global state alone; nothing appears
until the figure is handed to ``show``, together with the text for those who cannot see it.
What is drawn was computed elsewhere (``metrics``, ``vessels``, ``evaluate``).

Colours are those of Okabe and Ito (2008), which the colour-blind can tell apart; nothing is
told by red against green alone.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from retina_lab import metrics
from retina_lab.datasets.sample import FundusSample
from retina_lab.metrics import Counts, ScoreHistogram

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, BLACK)
"""Colours of lines, in order; the line style changes too once they are used up."""

CHANNELS = {"red": VERMILLION, "green": GREEN, "blue": BLUE}
ARTERY_VEIN = {"artery": (1, VERMILLION), "vein": (2, SKY), "crossing": (3, YELLOW)}
LESIONS = {
    "microaneurysm": (1, VERMILLION),
    "haemorrhage": (2, PURPLE),
    "exudate": (3, YELLOW),
    "cotton-wool spot": (4, "#FFFFFF"),
}
ERROR_COLOURS = {
    "lab": {"tp": "#FFFFFF", "fp": ORANGE, "fn": SKY},
    "m-cam-gan": {"tp": "#00C800", "fp": "#3030FF", "fn": "#FF0000"},
}
"""Colours of error maps. ``"lab"``: what is right is white, as in the label. ``"m-cam-gan"``: the
convention of that paper (green, blue, red), which one man in twelve cannot read."""
OUTSIDE = "#3B4048"  # outside the field of view: neither background nor vessel

STYLE = {
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # ships with Matplotlib, so figures look alike everywhere
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=CYCLE),
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.titlesize": 11.5,
}
DPI = 110
SHORTEST_ALT = 20  # characters


def styled(draw):
    """Draw in the course's style, whatever the reader's own settings are."""

    @functools.wraps(draw)
    def with_style(*args, **kwargs):
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return with_style


# ------------------------------------------------------------------- from figures to pages


def figure_image(figure: Figure, dpi: float = DPI) -> Image.Image:
    """The figure as an RGB picture.

    Args:
        figure: any Matplotlib figure.
        dpi: pixels per inch.
    """
    with mpl.rc_context(STYLE):
        before = figure.dpi
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        figure.set_dpi(before)
    return picture


def data_uri(picture: Image.Image, kind: str = "png", **options) -> str:
    """The picture as the ``src`` of an ``<img>``: ``data:image/…;base64,…``.

    Args:
        picture: from :func:`figure_image`.
        kind: ``"png"``, ``"webp"`` or ``"jpeg"``.
        options: passed on to ``Image.save``, such as ``quality``.
    """
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def checked_alt(alt: str) -> str:
    """The alternative text, or a ValueError that says what one is for."""
    if not isinstance(alt, str) or len(alt.strip()) < SHORTEST_ALT:
        raise ValueError(
            "every figure needs alternative text that says what one sees and what it means, "
            f"of at least {SHORTEST_ALT} characters; got {alt!r}"
        )
    return " ".join(alt.split())


def image_html(source: str, alt: str, width: int, height: int) -> str:
    """An ``<img>`` that shrinks with the page and keeps its shape while it loads."""
    return (
        f'<img src="{source}" alt="{html.escape(alt, quote=True)}" width="{width}" '
        f'height="{height}" style="max-width:100%;height:auto;background:white">'
    )


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook, with alternative text.

    The picture goes out as HTML because neither JupyterLab nor the book passes on alternative
    text that stands in the metadata of a plain PNG. Photographs that would make a large PNG are
    embedded as WebP.

    Args:
        figure: closed afterwards.
        alt: what one sees and what it means, in a sentence, at least 20 characters.

    Raises:
        ValueError: if ``alt`` is empty or too short to say anything.
    """
    from IPython.display import display

    alt = checked_alt(alt)
    picture = figure_image(figure, dpi=1.5 * DPI)
    source = data_uri(picture, optimize=False)
    if len(source) > 400_000:
        source = data_uri(picture, "webp", quality=88, method=4)
    width, height = (round(side / 1.5) for side in picture.size)
    display({"text/html": image_html(source, alt, width, height), "text/plain": alt}, raw=True)
    _close(figure)


def _close(figure: Figure) -> None:
    """Free the figure. Ours never enter pyplot's registry, but a reader's own may have."""
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
    figure.clear()


# ---------------------------------------------------------------------- pictures as arrays


def _rgb(colour: str) -> np.ndarray:
    return (np.array(to_rgb(colour)) * 255).round().astype(np.uint8)


def overlay(
    image: np.ndarray, mask: np.ndarray, colour: str = SKY, opacity: float = 0.7
) -> np.ndarray:
    """Paint a mask over a photograph.

    Args:
        image: (H, W, 3) ``uint8``.
        mask: (H, W) ``bool``.
        colour: of the paint.
        opacity: in [0, 1]; 0 leaves the photograph, 1 hides it.

    Returns:
        (H, W, 3) ``uint8``.

    Raises:
        ValueError: if the sizes differ or the opacity is out of range.
    """
    if np.shape(mask) != image.shape[:2]:
        raise ValueError(f"the mask is {np.shape(mask)} but the image is {image.shape[:2]}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in [0, 1], not {opacity}")
    result = image.copy()
    mixed = (1 - opacity) * image[mask].astype(float) + opacity * _rgb(colour)
    result[mask] = mixed.round().astype(np.uint8)
    return result


def fov_outline(fov: np.ndarray, thickness: int = 1) -> np.ndarray:
    """The rim of the field of view, (H, W) ``bool``: ``thickness`` pixels, inside."""
    from scipy.ndimage import binary_erosion

    return fov & ~binary_erosion(fov, iterations=thickness, border_value=0)


def error_map(
    prediction: np.ndarray,
    truth: np.ndarray,
    fov: np.ndarray | None = None,
    convention: str = "lab",
) -> np.ndarray:
    """Colour every pixel by what happened to it.

    Args:
        prediction: (H, W) ``bool``, true where the method says vessel.
        truth: (H, W) ``bool``.
        fov: (H, W) ``bool``; outside is grey. None: all.
        convention: a key of ``ERROR_COLOURS``: ``"lab"`` or ``"m-cam-gan"``.

    Returns:
        (H, W, 3) ``uint8``: true positives, false positives and false negatives in their
        colours, true negatives black.

    Raises:
        ValueError: if types or sizes do not fit, or the convention is unknown.
    """
    if convention not in ERROR_COLOURS:
        raise ValueError(f"convention must be one of {list(ERROR_COLOURS)}, not {convention!r}")
    fov = np.ones(np.shape(truth), bool) if fov is None else fov
    for name, plane in {"prediction": prediction, "truth": truth, "fov": fov}.items():
        if plane.dtype != np.bool_ or plane.shape != np.shape(truth):
            raise ValueError(
                f"{name} must be bool of the size of truth, {np.shape(truth)}, "
                f"not {plane.dtype} {plane.shape}"
            )
    colours = ERROR_COLOURS[convention]
    # The four outcomes as an index into a small table of colours; outside is a fifth.
    index = prediction + 2 * truth.astype(np.uint8)
    index[~fov] = 4
    table = [BLACK, colours["fp"], colours["fn"], colours["tp"], OUTSIDE]
    return np.stack([_rgb(colour) for colour in table])[index]


def class_map(labels: np.ndarray, classes: Mapping[str, tuple[int, str]]) -> np.ndarray:
    """Colour a label map, (H, W) whole numbers, by ``{name: (value, colour)}``; others black."""
    result = np.zeros((*labels.shape, 3), np.uint8)
    for value, colour in classes.values():
        result[labels == value] = _rgb(colour)
    return result


def _small(picture: np.ndarray, longest: int = 1000) -> np.ndarray:
    """Average large pictures down: quicker to draw, and thin vessels fade instead of breaking."""
    factor = math.ceil(max(picture.shape[:2]) / longest)
    if factor == 1:
        return picture
    if picture.dtype == np.bool_:
        picture = picture.astype(np.uint8) * 255
    if picture.dtype == np.uint8:
        return np.asarray(Image.fromarray(picture).reduce(factor))
    if picture.ndim == 3:  # Pillow has no colour pictures of floats
        return np.dstack([_small(plane, longest) for plane in np.moveaxis(picture, -1, 0)])
    return np.asarray(Image.fromarray(picture.astype(np.float32)).reduce(factor))


# ---------------------------------------------------------------------------- picture panels


def draw_picture(axes, picture: np.ndarray, title: str = "") -> None:
    """Show an array on axes: photographs and maps in [0, 1] as they are, other ranges stretched.

    Args:
        axes: Matplotlib axes.
        picture: (H, W, 3) ``uint8`` or ``float``; (H, W) ``bool``, ``uint8`` or ``float``.
            Floating-point pictures outside [0, 1] are stretched between their 1st and 99th
            percentiles.
        title: above it.
    """
    picture = np.asarray(picture)
    shown = _small(picture)
    if shown.dtype.kind == "f" and (shown.min() < 0 or shown.max() > 1):
        low, high = np.percentile(shown, (1, 99))
        shown = ((shown - low) / max(high - low, 1e-12)).clip(0, 1)
    top = 255 if shown.dtype == np.uint8 else 1
    axes.imshow(shown, cmap="gray", vmin=0, vmax=top)
    axes.set_title(title)
    axes.set_axis_off()


def _panels(count: int, columns: int, shape: tuple[int, int], panel: float = 3.0):
    """A figure with ``count`` panels for pictures of one shape; returns it and its axes."""
    rows = math.ceil(count / columns)
    columns = math.ceil(count / rows)  # five pictures stand better as 3 + 2 than as 4 + 1
    tall = panel * shape[0] / shape[1]
    figure = Figure(figsize=(columns * panel, rows * (tall + 0.32)), layout="compressed")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.06, wspace=0.01, hspace=0.02)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for extra in axes[count:]:
        extra.set_visible(False)
    return figure, axes[:count]


def add_key(
    figure_or_axes, entries: Mapping[str, str], columns: int | None = None, **where
) -> None:
    """A legend of coloured squares; white ones get an outline."""
    handles = [
        Patch(facecolor=colour, edgecolor="#777777", linewidth=0.6, label=label)
        for label, colour in entries.items()
    ]
    figure_or_axes.legend(handles=handles, ncols=columns or len(handles), **where)


@styled
def plot_images(
    pictures: Mapping[str, np.ndarray], columns: int = 4, title: str = "", panel: float = 3.0
) -> Figure:
    """Pictures side by side, each under its name.

    Args:
        pictures: ``{name: picture}``, see :func:`draw_picture` for what a picture may be.
        columns: at most so many in a row.
        title: over all of them.
        panel: width of one in inches.

    Raises:
        ValueError: if there are none.
    """
    if not pictures:
        raise ValueError("there is no picture to plot")
    shape = np.shape(next(iter(pictures.values())))
    figure, axes = _panels(len(pictures), columns, shape, panel)
    for panel_axes, (name, picture) in zip(axes, pictures.items(), strict=True):
        draw_picture(panel_axes, picture, name)
    if title:
        figure.suptitle(title)
    return figure


@styled
def plot_sample(sample: FundusSample) -> Figure:
    """A photograph with its field of view outlined, and every map that comes with it.

    Args:
        sample: vessels, second observer, arteries and veins, lesions are shown if there.
    """
    rim = fov_outline(sample.fov, max(1, round(max(sample.size) / 300)))
    pictures = {sample.name: overlay(sample.image, rim, SKY, 1.0)}
    keys = {}
    if sample.vessels is not None:
        share = sample.vessels[sample.fov].mean() if sample.fov.any() else 0
        pictures[f"vessels, {share:.1%} of the FOV"] = sample.vessels
    if sample.second_observer is not None:
        pictures["second observer"] = sample.second_observer
    for title, plane, classes in (
        ("arteries and veins", sample.artery_vein, ARTERY_VEIN),
        ("lesions", sample.lesions, LESIONS),
    ):
        if plane is not None and plane.any():
            pictures[title] = class_map(plane, classes)
            keys |= {name: colour for name, (value, colour) in classes.items()}
    figure = plot_images(pictures, columns=min(4, len(pictures)))
    keys = {f"rim of the FOV ({sample.fov_source})": SKY} | keys
    figure.legend(
        handles=[
            Patch(facecolor=colour, edgecolor="#777777", linewidth=0.6, label=label)
            for label, colour in keys.items()
        ],
        loc="outside lower center",
        ncols=min(5, len(keys)),
    )
    return figure


@styled
def plot_gallery(
    samples: Sequence[FundusSample], columns: int = 4, with_vessels: bool = False
) -> Figure:
    """Photographs side by side, of whatever sizes.

    Args:
        samples: at least one.
        columns: at most so many in a row.
        with_vessels: paint the vessels over them, where they are known.
    """
    pictures = {}
    for sample in samples:
        picture = sample.image
        if with_vessels and sample.vessels is not None:
            picture = overlay(picture, sample.vessels)
        label = f"{sample.dataset} {sample.name}".strip()
        height, width = sample.size
        pictures[f"{label}\n{width}×{height}"] = picture
    figure = plot_images(pictures, columns, panel=2.5)
    return figure


@styled
def plot_channels(sample: FundusSample) -> Figure:
    """The photograph, its three colour channels, and how bright each is inside the FOV.

    Args:
        sample: any.
    """
    names = list(CHANNELS)
    height, width = sample.size
    tall = 2.4 * height / width
    figure = Figure(figsize=(9.6, tall + 2.3), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(tall, 1.7))
    draw_picture(figure.add_subplot(grid[0, 0]), sample.image, "photograph")
    histogram = figure.add_subplot(grid[1, :])
    for index, name in enumerate(names):
        channel = sample.image[..., index]
        draw_picture(figure.add_subplot(grid[0, index + 1]), channel, name)
        values = channel[sample.fov]
        share = np.bincount(values, minlength=256) / max(1, values.size)
        style = ("-", "--", ":")[index]
        histogram.plot(share, style, color=CHANNELS[name], label=name)
    histogram.set(xlabel="value (0–255)", ylabel="share of FOV pixels", xlim=(0, 255))
    histogram.set_ylim(bottom=0)
    histogram.legend()
    return figure


@styled
def plot_steps(
    batches: Mapping[str, Mapping], item: int = 0, labels: str = "vessels", title: str = ""
) -> Figure:
    """Batches side by side, the image above and its labels below: steps of an augmentation.

    Args:
        batches: ``{title: batch}`` with batches as in ``retina_lab.augment``.
        item: which item of each batch.
        labels: name of the map in the lower row.
        title: over all of it.
    """
    if not batches:
        raise ValueError("there is no batch to plot")
    shape = next(iter(batches.values()))["image"].shape[-2:]
    count = len(batches)
    panel = min(2.6, 11 / count)
    figure, axes = _panels(2 * count, count, shape, panel)
    for column, (name, batch) in enumerate(batches.items()):
        image = batch["image"][item].permute(1, 2, 0).cpu().numpy()
        fov = batch["fov"][item, 0].cpu().numpy() > 0.5
        plane = batch[labels][item, 0].cpu().numpy() > 0.5
        draw_picture(axes[column], image, name)
        draw_picture(axes[count + column], label_picture(plane, fov))
    if title:
        figure.suptitle(title)
    return figure


def label_picture(vessels: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """Vessels white, background black, outside the field of view grey: (H, W, 3) ``uint8``."""
    picture = np.zeros((*vessels.shape, 3), np.uint8)
    picture[vessels] = 255
    picture[~fov] = _rgb(OUTSIDE)
    return picture


# ------------------------------------------------------------------- predictions and errors


def error_key(counts: Counts, convention: str = "lab") -> dict[str, str]:
    """Legend entries of an error map with their pixel counts, ``{text: colour}``."""
    colours = ERROR_COLOURS[convention]
    return {
        f"found (TP) {counts.tp:,}": colours["tp"],
        f"false alarm (FP) {counts.fp:,}": colours["fp"],
        f"missed (FN) {counts.fn:,}": colours["fn"],
    }


@styled
def plot_error_map(
    prediction: np.ndarray,
    truth: np.ndarray,
    fov: np.ndarray | None = None,
    *,
    convention: str = "lab",
    title: str = "",
) -> Figure:
    """One error map with its legend and counts; arguments as in :func:`error_map`."""
    counts = metrics.count(prediction, truth, fov)
    height, width = truth.shape
    figure = Figure(figsize=(5, 5 * height / width + 0.8), layout="compressed")
    title = f"{title}  Dice {metrics.dice(counts):.3f}".strip()
    draw_picture(figure.subplots(), error_map(prediction, truth, fov, convention), title)
    add_key(figure, error_key(counts, convention), columns=2, loc="outside lower center")
    return figure


@styled
def plot_prediction(
    sample: FundusSample,
    probability: np.ndarray,
    threshold: float = 0.5,
    *,
    convention: str = "lab",
) -> Figure:
    """Photograph, label, probability map and error map in a row.

    Args:
        sample: with vessels.
        probability: (H, W) in [0, 1].
        threshold: from which a pixel counts as vessel.
        convention: a key of ``ERROR_COLOURS``.

    Raises:
        ValueError: if the sample is unlabelled or the sizes differ.
    """
    if sample.vessels is None:
        raise ValueError(f"{sample.name} has no vessel labels to compare with")
    if probability.shape != sample.size:
        raise ValueError(f"{sample.name} is {sample.size} but the map is {probability.shape}")
    prediction = metrics.binarise(probability, threshold)
    counts = metrics.count(prediction, sample.vessels, sample.fov)
    inside = np.where(sample.fov, probability, 0)
    figure = plot_images(
        {
            sample.name: sample.image,
            "first observer": label_picture(sample.vessels, sample.fov),
            "probability": inside,
            f"errors at {threshold:.2f}, Dice {metrics.dice(counts):.3f}": error_map(
                prediction, sample.vessels, sample.fov, convention
            ),
        },
        panel=2.7,
    )
    add_key(figure, error_key(counts, convention), loc="outside lower right")
    return figure


@styled
def plot_observers(sample: FundusSample) -> Figure:
    """Where two people agree on the vessels, and where they do not.

    Args:
        sample: with both observers.

    Raises:
        ValueError: if one of them is missing.
    """
    if sample.vessels is None or sample.second_observer is None:
        raise ValueError(f"{sample.name} has no two observers to compare")
    counts = metrics.count(sample.second_observer, sample.vessels, sample.fov)
    colours = ERROR_COLOURS["lab"]
    figure = plot_images(
        {
            sample.name: sample.image,
            f"both observers, Dice {metrics.dice(counts):.3f}": error_map(
                sample.second_observer, sample.vessels, sample.fov
            ),
        },
        panel=4.2,
    )
    marked = max(1, counts.tp + counts.fp + counts.fn)
    entries = {
        f"both {counts.tp / marked:.0%}": colours["tp"],
        f"second only {counts.fp / marked:.0%}": colours["fp"],
        f"first only {counts.fn / marked:.0%}": colours["fn"],
    }
    add_key(figure, entries, loc="outside lower right")
    return figure


# ------------------------------------------------------------------------------------ charts


@styled
def plot_width_histogram(
    widths: Mapping[str, np.ndarray] | np.ndarray, *, widest: float | None = None
) -> Figure:
    """How much of the vessels' length is how wide; dashed lines mark the medians.

    Args:
        widths: from ``vessels.vessel_widths``, or ``{name: widths}`` to compare data sets.
        widest: the last bin, in pixels; wider vessels are counted in it. None: the 99.5th
            percentile.

    Raises:
        ValueError: if there is no vessel at all.
    """
    import pandas as pd
    import seaborn as sns

    widths = widths if isinstance(widths, Mapping) else {"": widths}
    table = pd.concat(
        [pd.DataFrame({"width": np.asarray(v, float), "name": n}) for n, v in widths.items()]
    )
    if table.empty:
        raise ValueError("there are no vessels to measure")
    thickest = table["width"].max()
    widest = max(3, math.ceil(widest or np.percentile(table["width"], 99.5)))
    medians = table.groupby("name")["width"].median()
    titles = {
        n: (f"{n}, " if n else "") + f"median {medians[n]:.1f} px" for n in widths if n in medians
    }
    table["width"] = table["width"].clip(upper=widest)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    sns.histplot(
        table.assign(name=table["name"].map(titles)),
        x="width",
        hue="name",
        hue_order=list(titles.values()),
        palette=CYCLE[: len(titles)],
        stat="proportion",
        common_norm=False,  # a data set with more vessels must not look taller
        binwidth=1,
        binrange=(0.5, widest + 0.5),
        element="step",
        fill=len(titles) < 3,  # more than two colours on top of each other turn to mud
        ax=axes,
    )
    for median, colour in zip(medians[list(titles)], CYCLE, strict=False):
        axes.axvline(median, color=colour, linestyle="--", linewidth=1.2)
    axes.get_legend().set_title(None)
    note = f"; {widest}: and above" if thickest > widest + 0.5 else ""
    axes.set(xlabel=f"width (pixels{note})", ylabel="share of centre line", xlim=(0, widest + 0.8))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="x", visible=False)
    return figure


def _thinned(x: np.ndarray, y: np.ndarray, steps: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Drop points of a curve that the eye cannot see apart; ends and breaks stay."""
    if len(x) <= steps:
        return x, y
    cells = np.stack([np.nan_to_num(x) * steps, np.nan_to_num(y) * steps]).astype(int)
    kept = np.any(np.diff(cells, prepend=-1), axis=0)
    kept[-1] = True
    return x[kept], y[kept]


def draw_curve(axes, kind: str, histogram: ScoreHistogram, **line) -> None:
    """Draw the ``"roc"`` or ``"pr"`` curve of a histogram on axes."""
    x, y, _ = {"roc": metrics.roc_curve, "pr": metrics.pr_curve}[kind](histogram)
    axes.plot(*_thinned(x, y), **line)


def working_point(kind: str, counts: Counts) -> tuple[float, float]:
    """Where counts lie in the ``"roc"`` or ``"pr"`` plane: (x, y)."""
    if kind == "roc":
        return 1 - metrics.specificity(counts), metrics.sensitivity(counts)
    return metrics.sensitivity(counts), metrics.precision(counts)


def label_curve_axes(axes, kind: str) -> None:
    """Name and bound the axes of an ROC or precision–recall plot."""
    if kind == "roc":
        axes.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC")
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
    else:
        axes.set(xlabel="sensitivity (recall)", ylabel="precision", title="precision–recall")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")


@styled
def plot_roc_pr(
    curves: Mapping[str, ScoreHistogram],
    *,
    thresholds: Mapping[str, float] | float | None = None,
    points: Mapping[str, Counts] | None = None,
) -> Figure:
    """ROC and precision–recall curves side by side, with their working points.

    Args:
        curves: ``{method: histogram}`` from ``metrics.histogram``.
        thresholds: one for all or one a method: marked by a dot on each curve.
        points: ``{name: counts}`` of those without a curve, such as the second observer.

    Raises:
        ValueError: if there is neither curve nor point.
    """
    points = points or {}
    if not curves and not points:
        raise ValueError("there is no curve to plot")
    if thresholds is None or isinstance(thresholds, (int, float)):
        thresholds = dict.fromkeys(curves, thresholds)
    figure = Figure(figsize=(9.6, 4.9), layout="constrained")
    panels = dict(zip(("roc", "pr"), figure.subplots(1, 2), strict=True))
    for kind, axes in panels.items():
        for index, (name, histogram) in enumerate(curves.items()):
            style = {
                "color": CYCLE[index % len(CYCLE)],
                "linestyle": ("-", "--", "-.")[index // len(CYCLE) % 3],
            }
            area = metrics.auc_roc(histogram) if kind == "roc" else metrics.auc_pr(histogram)
            draw_curve(axes, kind, histogram, label=f"{name}  {area:.4f}", **style)
            if thresholds.get(name) is not None:
                counts = metrics.counts_at(histogram, thresholds[name])
                axes.plot(
                    *working_point(kind, counts),
                    marker="o",
                    markersize=7,
                    color=style["color"],
                    markeredgecolor="white",
                    zorder=4,
                )
        for name, counts in points.items():
            axes.plot(
                *working_point(kind, counts),
                marker="D",
                markersize=8,
                linestyle="none",
                color=YELLOW,
                markeredgecolor=BLACK,
                zorder=5,
                label=name,
            )
        label_curve_axes(axes, kind)
        corner = "lower right" if kind == "roc" else "lower left"
        axes.legend(loc=corner, title="area under the curve" if curves else None)
    return figure


def draw_threshold_sweep(
    axes, histogram: ScoreHistogram, threshold: float | None, names: Sequence[str]
) -> None:
    """Draw ratios against the threshold on axes; see :func:`plot_threshold_sweep`."""
    grid = np.linspace(0, 1, 257)
    histogram = histogram.compact()
    positives, negatives = histogram.positives.sum(), histogram.negatives.sum()
    at_levels = metrics.counts_at_levels(histogram)
    # A threshold acts like the lowest level that reaches it; above them all nothing is marked.
    level = np.searchsorted(histogram.levels, metrics.quantise(grid))
    tp, fp = np.append(at_levels.tp, 0)[level], np.append(at_levels.fp, 0)[level]
    counts = Counts(tp, fp, positives - tp, negatives - fp)
    for index, name in enumerate(names):
        values = getattr(metrics, name)(counts)
        dashes = ("-", "--", "-.", ":")[index % 4]
        label = {"dice": "Dice", "iou": "IoU", "mcc": "MCC"}.get(name, name)
        axes.plot(grid, values, dashes, label=label, linewidth=2.4 if name == "dice" else 1.6)
    if threshold is not None:
        axes.axvline(threshold, color=BLACK, linewidth=1)
        axes.annotate(
            f"threshold {threshold:.3f}",
            (threshold, 0),
            xytext=(-4, 4) if threshold > 0.6 else (4, 4),
            textcoords="offset points",
            ha="right" if threshold > 0.6 else "left",
        )
    axes.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.02))


@styled
def plot_threshold_sweep(
    histogram: ScoreHistogram,
    threshold: float | None = None,
    *,
    names: Sequence[str] = ("dice", "sensitivity", "specificity", "accuracy"),
) -> Figure:
    """What each ratio would be at every threshold.

    Args:
        histogram: from ``metrics.histogram``.
        threshold: the one in use, marked by a line.
        names: functions of counts in ``metrics``.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    draw_threshold_sweep(axes, histogram, threshold, names)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@styled
def plot_reliability(
    histograms: Mapping[str, ScoreHistogram] | ScoreHistogram, bins: int = 15
) -> Figure:
    """Is a pixel that is called vessel with 70 % a vessel in 70 of 100 cases?

    Args:
        histograms: one, or ``{method: histogram}``, from ``metrics.histogram``.
        bins: steps of probability.
    """
    histograms = histograms if isinstance(histograms, Mapping) else {"": histograms}
    figure = Figure(figsize=(5.2, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
    for index, (name, histogram) in enumerate(histograms.items()):
        promised, happened, pixels = metrics.reliability_curve(histogram, bins)
        there = pixels > 0
        colour = CYCLE[index % len(CYCLE)]
        marker = "os^Dv"[index % 5]
        label = f"{name}  ECE {metrics.ece(histogram):.3f}".strip()
        upper.plot(promised[there], happened[there], f"{marker}-", color=colour, label=label)
        edges = np.linspace(0, 1, bins + 1)
        lower.stairs(pixels / pixels.sum(), edges, color=colour, linewidth=1.6)
    upper.set(ylabel="share that is vessel", xlim=(0, 1), ylim=(0, 1))
    upper.annotate("promised too little", (0.03, 0.93), color="#777777")
    upper.annotate("promised too much", (0.62, 0.05), color="#777777")
    upper.legend(loc="upper left", bbox_to_anchor=(0.0, 0.88))
    lower.set(xlabel="predicted probability", ylabel="share of pixels", yscale="log")
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    return figure


@styled
def plot_history(histories) -> Figure:
    """Loss and validation Dice while training went on.

    Args:
        histories: ``Run.history``, a ``DataFrame`` with the columns ``epoch``, ``loss`` and
            ``val_dice``, or ``{name: history}`` to compare runs.

    Raises:
        ValueError: if a column is missing.
    """
    histories = histories if isinstance(histories, Mapping) else {"": histories}
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, column, label in zip(
        panels, ("loss", "val_dice"), ("training loss", "validation Dice"), strict=True
    ):
        for index, (name, history) in enumerate(histories.items()):
            missing = {"epoch", column} - set(history.columns)
            if missing:
                raise ValueError(
                    f"the history has no column {sorted(missing)}; it has {list(history.columns)}"
                )
            known = history[history[column].notna()]
            dashes = ("-", "--", "-.", ":")[index % 4]
            marker = "o" if len(known) < 3 else ""
            text = name
            if column == "val_dice" and len(known):
                end = known.iloc[-1]
                text = f"{name}  in the end {end[column]:.3f}".strip()
                axes.plot(end["epoch"], end[column], "o", color=CYCLE[index % len(CYCLE)])
            axes.plot(
                known["epoch"],
                known[column],
                dashes,
                marker=marker,
                color=CYCLE[index % len(CYCLE)],
                label=text,
            )
        axes.set(xlabel="epoch", title=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if any(histories):
        panels[0].legend()
    if panels[1].get_legend_handles_labels()[0]:
        panels[1].legend()  # where it covers least: short trainings end anywhere
    return figure


METRIC_LABELS = {
    "dice": "Dice",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "auc_roc": "AUC-ROC",
    "auc_pr": "AUC-PR",
    "average_precision": "average precision",
    "cldice": "clDice",
    "betti0_error": "Betti-0 error",
    "betti1_error": "Betti-1 error",
    "ece": "ECE",
    "brier": "Brier",
}


@styled
def plot_metrics_bars(
    blocks: Mapping[str, Mapping], names: Sequence[str] = ("dice", "sensitivity", "auc_roc")
) -> Figure:
    """Methods compared, each figure with its 95 % interval as a bar.

    Dots and interval bars rather than columns from zero, so that the axis may show the range in
    which methods differ.

    Args:
        blocks: ``{method: report.fov}`` (or ``.all``, ``.second_observer``) of
            ``evaluate.Report``.
        names: metrics of the report.

    Raises:
        ValueError: if there is no method, or a metric is not in a report.
    """
    if not blocks:
        raise ValueError("there is no method to compare")
    figure = Figure(figsize=(3.1 * len(names) + 0.8, 0.34 * len(blocks) + 1), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, names, strict=True):
        for row, (method, block) in enumerate(blocks.items()):
            if metric not in block:
                raise ValueError(f"{method} has no {metric}; it has {sorted(block)}")
            entry = block[metric]
            value = entry["pooled"] if entry["pooled"] is not None else entry["mean"]
            if value is None:  # undefined: a human has no probabilities, so no areas
                continue
            low, high = entry["interval"]
            colour = CYCLE[row % len(CYCLE)]
            if low is not None:
                axes.plot([low, high], [row, row], color=colour, linewidth=5, alpha=0.35)
            axes.plot(value, row, "o", color=colour)
            axes.annotate(
                f"{value:.3f}",
                (value, row),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.set_title(METRIC_LABELS.get(metric, metric))
        axes.set_yticks(range(len(blocks)), list(blocks))
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0.12)
    panels[0].set_ylim(len(blocks) - 0.4, -0.7)
    return figure
