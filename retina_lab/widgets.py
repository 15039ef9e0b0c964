"""Explorers: move a slider, see the picture change.

Each explorer is two functions: ``render_*(…) -> Figure``, which draws one state and knows nothing
of widgets, and ``explore_*()``, which binds sliders to it and returns an ``Explorer``. Put that
last in a notebook cell: JupyterLab shows live sliders. Where no kernel will run (the book), the
same render function draws a grid of frames in advance, and a few lines of JavaScript move
between them.
"""

from __future__ import annotations

import functools
import hashlib
import html
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from retina_lab import augment, metrics, plots
from retina_lab.augment import Batch
from retina_lab.datasets.sample import FundusSample
from retina_lab.metrics import ScoreHistogram
from retina_lab.preprocess import to_batch

DPI = 100
STATIC_BUDGET = 1_500_000  # characters of HTML an explorer may add to a page of the book
_numbers = itertools.count(1)


class Explorer:
    """Sliders bound to a picture; live in JupyterLab, frames drawn in advance in the book.

    With the environment variable ``RETINA_LAB_STATIC=1`` its output also carries ``text/html``:
    the page of :meth:`static_html`, beside the view of the live widget.

    Attributes:
        controls: ``{parameter: widget}``; set ``controls[name].value`` to move a slider.
        view: the ipywidgets box that is displayed.
        errors: an Output widget that holds the traceback of the last redraw, if it failed.

    Args:
        title: names the group of controls.
        render: draws a state: ``render(**values) -> Figure``.
        describe: puts the same state in words, ``describe(**values) -> str``: alternative text of
            the picture, and the line below it.
        controls: one ipywidgets control a parameter, in order.
        frames: for the book: ``{parameter: values}`` for one or two of the parameters. The others
            stay as they are.

    Raises:
        ValueError: if ``frames`` does not name one or two of the controls, or if the
            description of the first state is too short.
        Exception: whatever ``render`` raises on the first state.
    """

    def __init__(
        self,
        title: str,
        render: Callable[..., Figure],
        describe: Callable[..., str],
        controls: Mapping[str, ipywidgets.Widget],
        frames: Mapping[str, Sequence],
    ):
        unknown = set(frames) - set(controls)
        if unknown or not 1 <= len(frames) <= 2:
            raise ValueError(f"frames must name one or two of {list(controls)}, not {list(frames)}")
        self.title = title
        self.controls = dict(controls)
        self._render, self._describe, self._frames = render, describe, dict(frames)
        self._picture = ipywidgets.HTML()
        self._caption = ipywidgets.HTML()
        self.errors = ipywidgets.Output()
        self._draw()  # an error in the first state is an ordinary error of the cell
        for control in self.controls.values():
            control.observe(self._redraw, names="value")
        self.view = ipywidgets.VBox(
            [
                ipywidgets.VBox(list(self.controls.values())),
                self._picture,
                self._caption,
                self.errors,
            ]
        )

    @property
    def values(self) -> dict:
        """What the controls stand at, ``{parameter: value}``."""
        return {name: control.value for name, control in self.controls.items()}

    def _state(self, values: dict) -> tuple[Image.Image, str]:
        text = plots.checked_alt(self._describe(**values))
        return plots.figure_image(self._render(**values), DPI), text

    def _draw(self) -> None:
        picture, text = self._state(self.values)
        # A picture in HTML rather than an Image widget, because that one has no alternative
        # text. Its stated size keeps the page from jumping while the next one is decoded.
        source = plots.data_uri(picture, "webp", quality=90, method=1)
        self._picture.value = plots.image_html(source, text, *picture.size)
        status = 'role="status" aria-live="polite" style="line-height:1.4"'
        self._caption.value = f"<div {status}>{html.escape(text)}</div>"

    def _redraw(self, change) -> None:
        """Answer a moved slider. Errors go where they are seen, and into the saved state.

        An exception in a widget callback would otherwise vanish into the log of the kernel.
        """
        try:
            self._draw()
            self.errors.outputs = ()
        except Exception as error:
            lines = traceback.format_exception(*sys.exc_info())
            self.errors.outputs = (
                {
                    "output_type": "error",
                    "ename": type(error).__name__,
                    "evalue": str(error),
                    "traceback": "".join(lines).splitlines(),
                },
            )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        # JupyterLab prefers the widget view to HTML, a page without a kernel can only show HTML.
        bundle = dict(self.view._repr_mimebundle_())
        bundle["text/plain"] = f"{self.title}: {self._describe(**self.values)}"
        if os.environ.get("RETINA_LAB_STATIC") == "1":
            bundle["text/html"] = self.static_html()
        return bundle

    def static_html(self, budget: int = STATIC_BUDGET) -> str:
        """A self-contained page fragment: sliders over frames that are drawn now.

        It needs no kernel and no network, works by keyboard, has alternative text for every
        frame, prints as a still, and shows that still where scripts are off.

        Args:
            budget: most characters of pictures; their quality is lowered until it is kept.

        Raises:
            ValueError: if the frames do not fit the budget at an acceptable quality.
        """
        axes = [_Axis(self.controls[name], values) for name, values in self._frames.items()]
        pictures, order, texts = {}, [], []  # pictures by content: equal states share one
        for combination in itertools.product(*self._frames.values()):
            values = self.values | dict(zip(self._frames, combination, strict=True))
            picture, text = self._state(values)
            key = hashlib.sha256(picture.tobytes()).digest()
            pictures.setdefault(key, picture)
            order.append(list(pictures).index(key))
            texts.append(text)
        start = [
            axis.nearest(self.controls[name].value)
            for name, axis in zip(self._frames, axes, strict=True)
        ]
        for quality in (85, 75, 65, 50):
            sources = []
            for picture in pictures.values():
                sources.append(plots.data_uri(picture, "webp", quality=quality, method=4))
                if sum(map(len, sources)) > budget:
                    break
            else:
                return _page(self.title, axes, start, sources, order, texts, picture.size)
        raise ValueError(
            f"{self.title}: {len(pictures)} frames do not fit into {budget:,} characters; "
            "render fewer or smaller ones"
        )


# ---------------------------------------------------------------------------- static pages


class _Axis:
    """One slider or menu of the static page: its label and the text of each of its values."""

    def __init__(self, control: ipywidgets.Widget, values: Sequence):
        self.label = control.description
        self.values = list(values)
        self.is_menu = isinstance(control, ipywidgets.Dropdown)
        readout = getattr(control, "readout_format", None)
        self.texts = [_readout(value, readout) for value in self.values]

    def nearest(self, value) -> int:
        """Index of the value closest to where the live control stands."""
        if value in self.values:
            return self.values.index(value)
        if self.is_menu:
            return 0
        return int(np.argmin([abs(value - other) for other in self.values]))

    def html(self, name: str, start: int) -> str:
        label = f'<label for="{name}">{html.escape(self.label)}</label>'
        if self.is_menu:
            options = "".join(
                f'<option value="{i}"{" selected" if i == start else ""}>{html.escape(t)}</option>'
                for i, t in enumerate(self.texts)
            )
            return f'<div>{label}<select id="{name}">{options}</select></div>'
        return (
            f'<div>{label}<input type="range" id="{name}" min="0" max="{len(self.texts) - 1}" '
            f'step="1" value="{start}" aria-valuetext="{html.escape(self.texts[start])}">'
            f'<output for="{name}">{html.escape(self.texts[start])}</output></div>'
        )


def _readout(value, template: str | None) -> str:
    if isinstance(value, (int, float)) and template:
        return format(value, template)
    return str(value)


def _page(title, axes, start, sources, order, texts, size) -> str:
    """The fragment. Frames are data URIs, so choosing one never asks the network."""
    state = 0
    for axis, index in zip(axes, start, strict=True):
        state = state * len(axis.values) + index
    first = sources[order[state]]  # stands in the <img>, and need not be sent twice
    digest = hashlib.sha256("".join([title, *sources]).encode()).hexdigest()[:10]
    name = f"explorer-{digest}-{next(_numbers)}"
    names = [f"{name}-{i}" for i in range(len(axes))]
    data = {
        "sources": [None if source is first else source for source in sources],
        "order": order,
        "texts": texts,
        "readouts": [axis.texts for axis in axes],
    }
    controls = "".join(axis.html(n, i) for axis, n, i in zip(axes, names, start, strict=True))
    # a "<" could end the script element wherever it stood, even within a string
    payload = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "name": name,
        "title": html.escape(title, quote=True),
        "controls": controls,
        "picture": plots.image_html(first, texts[state], *size),
        "caption": html.escape(texts[state]),
        "payload": payload,
    }
    pieces = _TEMPLATE.split("§")  # text, name of a part, text, name, …, text
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


# CSS and JavaScript are full of braces and dollars, so the parts stand between § signs.
_TEMPLATE = """<div class="retina-explorer" id="§name§" role="group" aria-label="§title§">
<style>
#§name§ .controls > div { display: flex; gap: .8em; align-items: center; margin: .3em 0; }
#§name§ .controls label { min-width: 8em; }
#§name§ .controls input { flex: 0 1 24em; }
#§name§ [hidden] { display: none; }
#§name§ p { margin: .4em 0 1em; font-size: 90%; }
@media print { #§name§ .controls, #§name§ .still { display: none; } }
</style>
<div class="controls" hidden>§controls§</div>
§picture§
<p role="status" aria-live="polite">§caption§</p>
<p class="still">A still: with scripts switched on, sliders stand above this picture.</p>
<script type="application/json">§payload§</script>
<script>
(() => {
  const box = document.getElementById("§name§");
  const data = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
  const picture = box.querySelector("img"), caption = box.querySelector("p[role=status]");
  const inputs = [...box.querySelectorAll(".controls input, .controls select")];
  const first = picture.src;
  const update = () => {
    let state = 0;
    inputs.forEach((input, axis) => {
      const index = Number(input.value), text = data.readouts[axis][index];
      state = state * data.readouts[axis].length + index;
      if (input.type === "range") {
        input.setAttribute("aria-valuetext", text);
        input.nextElementSibling.textContent = text;
      }
    });
    picture.src = data.sources[data.order[state]] || first;
    picture.alt = caption.textContent = data.texts[state];
  };
  inputs.forEach((input) => input.addEventListener("input", update));
  box.querySelector(".controls").hidden = false;
  box.querySelector(".still").hidden = true;
  update();
})();
</script>
</div>"""


# ----------------------------------------------------------------------- controls in one style


def _slider(label: str, value: float, low: float, high: float, step: float, form: str = ".2f"):
    kind = ipywidgets.IntSlider if form == "d" else ipywidgets.FloatSlider
    return kind(
        value=value,
        min=low,
        max=high,
        step=step,
        description=label,
        readout_format=form,
        continuous_update=False,  # one picture when the handle is let go, or a key pressed
        style={"description_width": "9em"},
        layout={"width": "34em", "max_width": "100%"},
    )


def _menu(label: str, options: Sequence[str], value: str):
    return ipywidgets.Dropdown(
        options=list(options),
        value=value,
        description=label,
        style={"description_width": "9em"},
        layout={"width": "24em", "max_width": "100%"},
    )


def _reduced(sample: FundusSample, longest: int = 640) -> FundusSample:
    """The sample at a whole fraction of its size, small enough to redraw while a slider moves.

    A block of pixels is vessel if any of it is (thin vessels stay) and FOV if all of it is.
    """
    from dataclasses import replace

    factor = -(-max(sample.size) // longest)
    if factor == 1:
        return sample
    height, width = (side // factor for side in sample.size)

    def blocks(plane):
        cut = plane[: height * factor, : width * factor]
        return cut.reshape(height, factor, width, factor, *plane.shape[2:])

    return replace(
        sample,
        image=blocks(sample.image).mean(axis=(1, 3)).round().astype(np.uint8),
        fov=blocks(sample.fov).all(axis=(1, 3)),
        vessels=None if sample.vessels is None else blocks(sample.vessels).any(axis=(1, 3)),
        second_observer=None,
        artery_vein=None,
        lesions=None,
    )


# ------------------------------------------------------------------------------ phantom


PHANTOM_SIZE = 320  # pixels: quick enough to redraw while a slider moves
PHANTOM_START = {
    "camera": "canon-45",
    "grade": 2,
    "tortuosity": 0.4,
    "vessel_spacing": 0.8,
    "vessel_contrast": 1.0,
    "pigmentation": 0.5,
    "defocus": 0.7,
}
"""Parameters of the phantom explorer and where they start; their ranges are the phantom's own."""


@plots.styled
def render_phantom(seed: int = 0, size: int = PHANTOM_SIZE, **parameters) -> Figure:
    """A phantom photograph, its arteries and veins, and its lesions.

    Args:
        seed: which eye.
        size: side in pixels.
        parameters: as for ``datasets.make_phantom``.
    """
    sample = _phantom(seed, size, tuple(sorted(parameters.items())))
    figure = Figure(figsize=(9.6, 3.75))
    pictures = {
        f"phantom, seed {seed}": (sample.image, {}),
        "arteries and veins": (sample.artery_vein, plots.ARTERY_VEIN),
        f"lesions, grade {sample.grade}": (sample.lesions, plots.LESIONS),
    }
    for column, (title, (plane, classes)) in enumerate(pictures.items()):
        axes = figure.add_axes((column / 3 + 0.003, 0.12, 1 / 3 - 0.006, 0.82))
        if classes:
            colours = {name: colour for name, (_, colour) in classes.items()}
            plane = plots.class_map(plane, classes)
            plane[~sample.fov] = plots.label_picture(sample.fov, sample.fov)[~sample.fov]
            plots.add_key(
                axes, colours, columns=min(3, len(colours)) if len(colours) < 4 else 2,
                loc="upper center", bbox_to_anchor=(0.5, 0.01), fontsize=8, handlelength=1.2,
            )  # fmt: skip
        plots.draw_picture(axes, plane, title)
    return figure


@functools.lru_cache(maxsize=4)  # the picture and its description ask for the same eye
def _phantom(seed: int, size: int, parameters: tuple) -> FundusSample:
    from retina_lab.datasets import make_phantom

    return make_phantom(seed, size, **dict(parameters))


def describe_phantom(seed: int = 0, size: int = PHANTOM_SIZE, **parameters) -> str:
    """The state of :func:`render_phantom` in words."""
    sample = _phantom(seed, size, tuple(sorted(parameters.items())))
    share = sample.vessels[sample.fov].mean()
    damaged = (sample.lesions > 0)[sample.fov].mean()
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in parameters.items())
    return (
        f"Procedural fundus photograph of seed {seed} ({settings}): vessels cover {share:.1%} "
        f"of the field of view, lesions {damaged:.2%}."
    )


def explore_phantom(seed: int = 0, **start) -> Explorer:
    """Sliders over the phantom: which eye, which camera, how its vessels run, how ill it is.

    Args:
        seed: where the slider of eyes starts, from 0 to 40.
        start: other starting values, or further parameters of ``PhantomParameters``.

    Raises:
        ValueError: if a parameter is unknown or out of its range.
    """
    from retina_lab.datasets import PhantomParameters

    known = {row["name"]: row for row in PhantomParameters.table()}
    controls = {"seed": _slider("seed", seed, 0, 40, 1, "d")}
    for name, value in (PHANTOM_START | start).items():
        if name not in known:
            raise ValueError(f"the phantom has no parameter {name!r}; it has {', '.join(known)}")
        PhantomParameters(**{name: value})  # says what is wrong with a value out of range
        controls[name] = _phantom_control(known[name], value)
    return Explorer(
        "Phantom explorer",
        render_phantom,
        describe_phantom,
        controls,
        frames={"camera": known["camera"]["options"], "grade": [0, 2, 3, 4]},
    )


def _phantom_control(row: dict, value) -> ipywidgets.Widget:
    label = row["name"].replace("_", " ")
    if "options" in row:
        control = _menu(label, row["options"], value)
    else:
        low, high = row["range"]
        whole = isinstance(value, int) and isinstance(low, int)
        step = 1 if whole else round((high - low) / 20, 3)
        control = _slider(label, value, low, high, step, "d" if whole else ".2f")
    control.tooltip = f"{row['doc']}" + (
        f" ({row['unit']})" if row["unit"] not in ("", "1") else ""
    )
    return control


# --------------------------------------------------------------------------- threshold


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
        {"threshold": _slider("threshold", threshold, 0.0, 1.0, 0.01)},
        frames={"threshold": [i / 20 for i in range(21)]},
    )


# ------------------------------------------------------------------------- augmentation


def _sign(generator: torch.Generator) -> int:
    return 1 if torch.rand((), generator=generator) < 0.5 else -1


def _stitched(batch: Batch, strength: float, generator: torch.Generator) -> Batch:
    choices = augment.sample_stitch(len(batch["image"]), batch["image"].shape[-2:], generator)
    donor = choices.donor.clone()
    donor[0] = 1 % len(donor)  # from another image, or there is nothing to see
    top, left, bottom, right = choices.boxes.double().T
    middle = torch.stack([top + bottom, left + right, top + bottom, left + right], 1) / 2
    boxes = (middle + strength * (choices.boxes - middle)).round().long()
    if not strength:
        boxes[:, 2:] = boxes[:, :2] - 1  # an empty rectangle
    return augment.stitch(
        batch,
        augment.Stitch(donor, boxes, strength * choices.spin, choices.flip & (strength > 0.5)),
    )


def _erased(batch: Batch, strength: float, generator: torch.Generator) -> Batch:
    if not strength:
        return batch
    side = (0.5 * strength, 0.5 * strength)
    size = batch["image"].shape[-2:]
    return augment.erase(batch, augment.sample_boxes(len(batch["image"]), size, side, generator))


def _shifted(batch: Batch, strength: float, generator: torch.Generator) -> Batch:
    size = torch.tensor(batch["image"].shape[-2:])
    direction = torch.tensor([_sign(generator), _sign(generator)])
    return augment.shift(batch, 0.3 * strength * direction * size)


TRANSFORMS: dict[str, Callable[[Batch, float, torch.Generator], Batch]] = {
    "flips and quarter turns": lambda b, s, g: augment.symmetry(
        b, s > 0.6, round(3 * s) * _sign(g)
    ),
    "rotation": lambda b, s, g: augment.rotate(b, 180 * s * _sign(g)),
    "scale": lambda b, s, g: augment.scale(b, 2 ** (s * _sign(g))),
    "shift": _shifted,
    "elastic": lambda b, s, g: augment.elastic(b, 600 * s, 16.0, g),
    "brightness": lambda b, s, g: augment.brightness(b, 0.4 * s * _sign(g)),
    "contrast": lambda b, s, g: augment.contrast(b, 3 ** (s * _sign(g))),
    "gamma": lambda b, s, g: augment.gamma(b, 3 ** (s * _sign(g))),
    "saturation": lambda b, s, g: augment.saturation(b, max(0, 1 + s * _sign(g))),
    "hue": lambda b, s, g: augment.hue(b, 60 * s * _sign(g)),
    "blur": lambda b, s, g: augment.blur(b, 6 * s),
    "noise": lambda b, s, g: augment.noise(b, 0.25 * s, g),
    "erasing": _erased,
    "image stitching": _stitched,
}
"""Transforms of the augmentation explorer, ``f(batch, strength, generator) -> batch``: strength 0
changes nothing, 1 is more than one would train with; the generator decides on the direction."""


def augment_for_show(
    samples: Sequence[FundusSample], transform: str, strength: float, seed: int = 0
) -> Batch:
    """Apply one of ``TRANSFORMS`` to samples of one size.

    Args:
        samples: one or more, with vessels.
        transform: a key of ``TRANSFORMS``.
        strength: in [0, 1].
        seed: for the generator.

    Returns:
        The augmented batch; its first item is the one that explorers show.

    Raises:
        ValueError: if the transform is unknown or the strength out of range.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"no transform {transform!r}; choose one of {', '.join(TRANSFORMS)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], not {strength}")
    generator = torch.Generator().manual_seed(int(seed))
    return TRANSFORMS[transform](to_batch(samples), strength, generator)


@plots.styled
def render_augmentation(
    samples: Sequence[FundusSample], transform: str, strength: float, seed: int = 0
) -> Figure:
    """The first sample before, and image and vessels after; arguments: :func:`augment_for_show`."""
    batch = augment_for_show(samples, transform, strength, seed)
    image = batch["image"][0].permute(1, 2, 0).numpy()
    fov, vessels = (batch[name][0, 0].numpy() > 0.5 for name in ("fov", "vessels"))
    height, width = samples[0].size
    figure = Figure(figsize=(9.6, 3.2 * height / width + 0.3))
    top = 1 - 0.3 / figure.get_figheight()
    pictures = {
        "before": samples[0].image,
        f"{transform}, strength {strength:.2f}": image,
        "its vessels": plots.label_picture(vessels, fov),
    }
    for column, (title, picture) in enumerate(pictures.items()):
        axes = figure.add_axes((column / 3 + 0.003, 0, 1 / 3 - 0.006, top))
        plots.draw_picture(axes, picture, title)
    return figure


def describe_augmentation(
    samples: Sequence[FundusSample], transform: str, strength: float, seed: int = 0
) -> str:
    """The state of :func:`render_augmentation` in words."""
    batch = augment_for_show(samples, transform, strength, seed)
    before = to_batch(samples)
    moved = not torch.equal(batch["vessels"], before["vessels"])
    inside = float(batch["fov"][0].mean())
    return (
        f"{samples[0].name} after {transform} at strength {strength:.2f} (seed {seed}); "
        f"its vessel mask {'has moved with it' if moved else 'is unchanged'}, "
        f"the field of view covers {inside:.0%} of the frame."
    )


def explore_augmentation(
    samples: FundusSample | Sequence[FundusSample], transform: str = "rotation"
) -> Explorer:
    """A menu of transforms and a slider of strength: image and mask side by side.

    Args:
        samples: with vessels, all of one size. The first is shown, the second gives the
            rectangle for image stitching.
        transform: where the menu starts, a key of ``TRANSFORMS``.

    Raises:
        ValueError: if a sample is unlabelled, or the sizes differ.
    """
    samples = [samples] if isinstance(samples, FundusSample) else list(samples)
    for sample in samples:
        if sample.vessels is None:
            raise ValueError(f"{sample.name} has no vessel labels to move along")
    samples = [_reduced(sample) for sample in samples]
    return Explorer(
        "Augmentation explorer",
        lambda **values: render_augmentation(samples, **values),
        lambda **values: describe_augmentation(samples, **values),
        {
            "transform": _menu("transform", TRANSFORMS, transform),
            "strength": _slider("strength", 0.5, 0.0, 1.0, 0.05),
            "seed": _slider("seed", 0, 0, 20, 1, "d"),
        },
        frames={"transform": list(TRANSFORMS), "strength": [0.25, 0.5, 1.0]},
    )
