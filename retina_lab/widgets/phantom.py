"""The phantom explorer."""

from __future__ import annotations

import functools

import ipywidgets
from matplotlib.figure import Figure

from retina_lab import plots
from retina_lab.datasets.sample import FundusSample
from retina_lab.widgets.base import Explorer, menu, slider

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
    controls = {"seed": slider("seed", seed, 0, 40, 1, "d")}
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
        control = menu(label, row["options"], value)
    else:
        low, high = row["range"]
        whole = isinstance(value, int) and isinstance(low, int)
        step = 1 if whole else round((high - low) / 20, 3)
        control = slider(label, value, low, high, step, "d" if whole else ".2f")
    control.tooltip = f"{row['doc']}" + (
        f" ({row['unit']})" if row["unit"] not in ("", "1") else ""
    )
    return control
