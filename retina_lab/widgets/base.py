"""The explorer itself, its controls, and its pages without a kernel."""

from __future__ import annotations

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
from matplotlib.figure import Figure
from PIL import Image

from retina_lab import plots
from retina_lab.datasets.sample import FundusSample

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


def slider(label: str, value: float, low: float, high: float, step: float, form: str = ".2f"):
    """A slider in the course's style; ``form`` ``"d"`` is for whole numbers."""
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


def menu(label: str, options: Sequence[str], value: str):
    """A drop-down list in the course's style."""
    return ipywidgets.Dropdown(
        options=list(options),
        value=value,
        description=label,
        style={"description_width": "9em"},
        layout={"width": "24em", "max_width": "100%"},
    )


def reduced(sample: FundusSample, longest: int = 640) -> FundusSample:
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
