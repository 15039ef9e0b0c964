"""The lesion explorer: a lesion placed by a click, and what the painter makes of it."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from retina_lab import plots
from retina_lab.pairs import LESIONS
from retina_lab.sampling import lesions_from_map, paint, place_lesion
from retina_lab.synthesis import BANNER, SynthesisRun
from retina_lab.widgets.base import Explorer, menu, slider
from retina_lab.widgets.point import PointExplorer

FIGURE = (6.2, 3.6)  # inches
PANEL = (0.005, 0.01, 0.49, 0.49 * FIGURE[0] / FIGURE[1])  # of the painting; square
FULL = 0.3  # change of a colour, in shares of its range, that is drawn white


def _disc(painter: SynthesisRun, x: float, y: float, radius: float) -> np.ndarray:
    """Pixels of a round lesion that lie in the field of view, (S, S) ``bool``."""
    empty = np.zeros((painter.size, painter.size), np.uint8)
    return (place_lesion(empty, 1, y, x, radius) > 0) & painter.fov


def painted_lesion(
    painter: SynthesisRun,
    tree: torch.Tensor,
    x: float,
    y: float,
    kind: str,
    radius: float,
    grade: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The same eye painted without and with a lesion.

    Args:
        painter: of a model that is told of lesions.
        tree: (1, 1, S, S) in [0, 1].
        x: column of the lesion's middle in pixels.
        y: its row.
        kind: a name in ``LESIONS``.
        radius: in pixels.
        grade: one of the painter's, if it is told of grades.

    Returns:
        Both photographs, (S, S, 3) ``uint8``.
    """
    asked = _disc(painter, x, y, radius) * np.uint8(LESIONS.index(kind) + 1)
    lesions = torch.cat([lesions_from_map(m, painter.size) for m in (0 * asked, asked)])
    before, after = paint(painter, tree.expand(2, -1, -1, -1), grade=grade, lesions=lesions)
    return before * painter.fov[..., None], after * painter.fov[..., None]


def _change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far the colours of each pixel have moved on average, (S, S) in [0, 1]."""
    return np.abs(after.astype(float) - before).mean(axis=-1) / 255


@plots.styled
def render_lesion(
    painter: SynthesisRun,
    tree: torch.Tensor,
    x: float,
    y: float,
    kind: str,
    radius: float,
    grade: str | None = None,
) -> Figure:
    """The painting with the lesion, and where it differs from the painting without.

    Args:
        painter: of a model that is told of lesions.
        tree: (1, 1, S, S) in [0, 1].
        x: column of the lesion's middle in pixels.
        y: its row.
        kind: a name in ``LESIONS``.
        radius: in pixels.
        grade: one of the painter's, if it is told of grades.
    """
    before, after = painted_lesion(painter, tree, x, y, kind, radius, grade)
    figure = Figure(figsize=FIGURE)
    figure.suptitle(BANNER, y=0.985, va="top", fontsize=9)
    left, bottom, width, height = PANEL
    places = (PANEL, (left + 0.5, bottom, width, height))
    pictures = {
        f"with a {kind}": after,
        "changed by it": (_change(before, after) / FULL).clip(0, 1),
    }
    for place, (title, picture) in zip(places, pictures.items(), strict=True):
        axes = figure.add_axes(place)
        plots.draw_picture(axes, picture, title)
        ring = {"edgecolor": "white", "linestyle": "--", "linewidth": 1, "fill": False}
        axes.add_patch(Circle((x, y), radius + 0.06 * painter.size, **ring))
    return figure


def describe_lesion(
    painter: SynthesisRun,
    tree: torch.Tensor,
    x: float,
    y: float,
    kind: str,
    radius: float,
    grade: str | None = None,
) -> str:
    """The state of :func:`render_lesion` in words; the same arguments."""
    asked = _disc(painter, x, y, radius)
    told = f"A painted eye of grade {grade}" if grade is not None else "A painted eye"
    place = f"{told}, asked for a {kind} of radius {radius:g} at column {x:g}, row {y:g}"
    if not asked.any():
        return f"{place}: that is outside the field of view, so nothing is asked for."
    change = _change(*painted_lesion(painter, tree, x, y, kind, radius, grade))
    inside, outside = change[asked].mean(), change[painter.fov & ~asked].mean()
    return (
        f"{place}. There its colours change by {inside:.1%} of their range on average, elsewhere "
        f"in the field of view by {outside:.1%}."
    )


def explore_lesions(
    painter: SynthesisRun, tree: torch.Tensor, kind: str = "haemorrhage"
) -> Explorer:
    """Place a lesion in a painted eye, by click or with sliders; choose its kind, size and grade.

    Args:
        painter: of a model that is told of lesions.
        tree: (1, 1, S, S) in [0, 1], the tree that is painted.
        kind: a name in ``LESIONS``, where the menu starts.

    Raises:
        ValueError: if the painter is not told of lesions, or the tree is of another size.
    """
    if "lesions" not in painter.recipe.conditions:
        raise ValueError(f"{painter.settings['model']} is not told of lesions")
    size = painter.size
    if tree.shape != (1, 1, size, size):
        raise ValueError(f"the tree must be (1, 1, {size}, {size}), not {tuple(tree.shape)}")
    controls = {
        "x": slider("x (column)", round(0.3 * size), 0, size - 1, 1, "d"),
        "y": slider("y (row)", round(0.6 * size), 0, size - 1, 1, "d"),
        "kind": menu("lesion", LESIONS, kind),
        "radius": slider("radius (pixels)", max(1, size // 64), 1, max(2, size // 16), 1, "d"),
    }
    if painter.grades:
        controls["grade"] = menu("grade", painter.grades, painter.grades[-1])
    places = [round(size * share) for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    return PointExplorer(
        "A lesion where you click",
        lambda **values: render_lesion(painter, tree, **values),
        lambda **values: describe_lesion(painter, tree, **values),
        controls,
        frames={"x": places, "y": places},
        panel=PANEL,
    )
