"""Explorers of an autoencoder's codes: along their main directions, and between two eyes."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from retina_lab import plots
from retina_lab.metrics import betti_numbers, count, dice
from retina_lab.pairs import as_vessels
from retina_lab.sampling import between_codes, draw_trees, paint, principal_directions
from retina_lab.synthesis import BANNER, SynthesisRun
from retina_lab.widgets.base import Explorer, menu, slider

SIDE = 2.9  # inches of a picture
MOST_DIRECTIONS = 4
FRAMES = ((-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0), (-2.0, 0.0, 2.0))
"""Steps along the first two directions in the book."""
PATHS = ("straight", "spherical")

Axes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What :func:`retina_lab.sampling.principal_directions` returns."""


def _squares(number: int, painted: bool, below: float):
    """A figure with squares side by side, always in the same places; and their axes."""
    above = 0.55 if painted else 0.3
    width, height = number * SIDE, above + SIDE + below
    figure = Figure(figsize=(width, height))
    shape = 0.98 * SIDE / width, 0.98 * SIDE / height
    places = [((i + 0.01) / number, below / height, *shape) for i in range(number)]
    if painted:
        figure.suptitle(BANNER, y=1 - 0.06 / height, va="top", fontsize=9)
    return figure, [figure.add_axes(place) for place in places]


def _draw(run: SynthesisRun, codes: torch.Tensor, threshold: float):
    """Trees of codes as maps in [0, 1], (N, S, S), and which of their pixels are vessel."""
    maps = draw_trees(run, codes)[:, 0].numpy()
    return maps, as_vessels(maps, threshold) & run.fov


def _painted(painter: SynthesisRun, tree: np.ndarray) -> np.ndarray:
    grade = painter.grades[0] if painter.grades else None
    picture = paint(painter, torch.from_numpy(tree)[None, None], grade=grade)[0]
    return picture * painter.fov[..., None]


def _check_sizes(run: SynthesisRun, painter: SynthesisRun | None) -> None:
    if painter is not None and painter.size != run.size:
        raise ValueError(
            f"the trees are {run.size}×{run.size} pixels and {painter.settings['model']} paints "
            f"{painter.size}×{painter.size}"
        )


def _signed(number: float, form: str = "+.2f") -> str:
    return format(number, form).replace("-", "−")  # a hyphen is not read out


# ------------------------------------------------------------------------- along directions


def _walked(axes: Axes, steps: dict[str, float]) -> torch.Tensor:
    """The code after so many standard deviations along each direction."""
    mean, directions, deviations = axes
    far = torch.tensor(list(steps.values())) * deviations[: len(steps)]
    return mean + far @ directions[: len(steps)]


@plots.styled
def render_latent_walk(
    run: SynthesisRun,
    axes: Axes,
    threshold: float = 0.5,
    painter: SynthesisRun | None = None,
    **steps: float,
) -> Figure:
    """The tree of a code, and what differs from the tree of the mean code.

    Args:
        run: of a model that makes trees.
        axes: from :func:`retina_lab.sampling.principal_directions`.
        threshold: of a sure vessel pixel (:func:`~retina_lab.pairs.as_vessels`).
        painter: of a model that paints trees of this size, to show the painted tree too.
        steps: how many standard deviations to go along the first direction, the second, ….
    """
    maps, trees = _draw(run, torch.stack([axes[0], _walked(axes, steps)]), threshold)
    middle, now = trees
    figure, panels = _squares(2 + (painter is not None), painter is not None, below=0.35)
    plots.draw_picture(panels[0], maps[1], "the tree of this code")
    changed = plots.error_map(now, middle, run.fov)
    plots.draw_picture(panels[1], changed, "beside the tree of the mean code")
    if painter is not None:
        plots.draw_picture(panels[2], _painted(painter, maps[1]), "painted")
    colours = plots.ERROR_COLOURS["lab"]
    key = {"in both": colours["tp"], "new": colours["fp"], "gone": colours["fn"]}
    plots.add_key(panels[1], key, loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=8)
    return figure


def describe_latent_walk(
    run: SynthesisRun,
    axes: Axes,
    threshold: float = 0.5,
    painter: SynthesisRun | None = None,
    **steps: float,
) -> str:
    """The state of :func:`render_latent_walk` in words; the same arguments."""
    code = _walked(axes, steps)
    _, (middle, now) = _draw(run, torch.stack([axes[0], code]), threshold)
    walked = ", ".join(
        f"{_signed(step, '+.1f')} along direction {number}"
        for number, step in enumerate(steps.values(), start=1)
    )
    kept = (
        f"; {(now & middle).sum() / middle.sum():.0%} of the vessel pixels of the mean code's "
        "tree are kept"
        if middle.any()
        else "; the mean code's tree is blank"
    )
    return (
        f"From the mean code, in standard deviations: {walked}. The code's length is "
        f"{code.norm():.1f}, where codes from N(0, I) have about {len(code) ** 0.5:.1f}. "
        f"{now[run.fov].mean():.1%} of the field of view is vessel, in {betti_numbers(now)[0]} "
        f"piece(s){kept}."
    )


def explore_latent_walk(
    run: SynthesisRun,
    codes: torch.Tensor,
    threshold: float = 0.5,
    painter: SynthesisRun | None = None,
) -> Explorer:
    """Walk through the codes, along the directions in which known eyes differ most.

    Args:
        run: of a model that makes trees.
        codes: (N, latent) of known trees, from :func:`retina_lab.sampling.encode_trees`; N ≥ 2.
        threshold: of a sure vessel pixel (:func:`~retina_lab.pairs.as_vessels`).
        painter: of a model that paints trees of this size, to show the painted tree too.

    Raises:
        ValueError: if there are fewer than two codes, or the painter is of another size.
    """
    _check_sizes(run, painter)
    number = min(MOST_DIRECTIONS, len(codes) - 1, codes.shape[1])
    axes = principal_directions(codes, number)
    names = [f"direction_{i}" for i in range(1, number + 1)]
    return Explorer(
        "A walk through the codes",
        lambda **steps: render_latent_walk(run, axes, threshold, painter, **steps),
        lambda **steps: describe_latent_walk(run, axes, threshold, painter, **steps),
        {name: slider(name.replace("_", " "), 0.0, -3.0, 3.0, 0.5, ".1f") for name in names},
        frames=dict(zip(names, FRAMES, strict=False)),
    )


# ------------------------------------------------------------------------- between two eyes


@plots.styled
def render_interpolation(
    run: SynthesisRun,
    ends: torch.Tensor,
    share: float,
    path: str,
    threshold: float = 0.5,
    painter: SynthesisRun | None = None,
) -> Figure:
    """The trees of two codes, and between them the tree of a code on the way.

    Args:
        run: of a model that makes trees.
        ends: (2, latent).
        share: of the way, in [0, 1].
        path: ``"straight"`` or ``"spherical"``, see
            :func:`retina_lab.sampling.between_codes`.
        threshold: of a sure vessel pixel (:func:`~retina_lab.pairs.as_vessels`); only for the
            words.
        painter: of a model that paints trees of this size, to show the painted tree too.
    """
    code = between_codes(*ends, share, spherical=path == "spherical")
    maps, _ = _draw(run, torch.stack([ends[0], code, ends[1]]), threshold)
    figure, panels = _squares(3 + (painter is not None), painter is not None, below=0.03)
    titles = ("one eye", f"{share:.0%} of the way, length {code.norm():.1f}", "another eye")
    for axes, picture, title in zip(panels, maps, titles, strict=False):
        plots.draw_picture(axes, picture, title)
    if painter is not None:
        plots.draw_picture(panels[3], _painted(painter, maps[1]), "on the way, painted")
    return figure


def describe_interpolation(
    run: SynthesisRun,
    ends: torch.Tensor,
    share: float,
    path: str,
    threshold: float = 0.5,
    painter: SynthesisRun | None = None,
) -> str:
    """The state of :func:`render_interpolation` in words; the same arguments."""
    code = between_codes(*ends, share, spherical=path == "spherical")
    _, (one, now, other) = _draw(run, torch.stack([ends[0], code, ends[1]]), threshold)
    lengths = [f"{c.norm():.1f}" for c in (*ends, code)]
    overlap = [dice(count(now, end, run.fov)) for end in (one, other)]
    return (
        f"{share:.0%} of the way from one eye to the other on the {path} path. The code's length "
        f"is {lengths[2]}; the ends have {lengths[0]} and {lengths[1]}. {now[run.fov].mean():.1%} "
        f"of the field of view is vessel, in {betti_numbers(now)[0]} piece(s); Dice with the one "
        f"tree {overlap[0]:.2f}, with the other {overlap[1]:.2f}."
    )


def explore_interpolation(
    run: SynthesisRun,
    ends: torch.Tensor,
    threshold: float = 0.5,
    painter: SynthesisRun | None = None,
) -> Explorer:
    """Go from one eye's code to another's, straight or along the arc.

    Args:
        run: of a model that makes trees.
        ends: (2, latent).
        threshold: of a sure vessel pixel (:func:`~retina_lab.pairs.as_vessels`).
        painter: of a model that paints trees of this size, to show the painted tree too.

    Raises:
        ValueError: if the codes are of another length, or the painter is of another size.
    """
    _check_sizes(run, painter)
    if ends.shape != (2, run.recipe.latent):
        raise ValueError(f"the ends must be (2, {run.recipe.latent}), not {tuple(ends.shape)}")
    others = {"threshold": threshold, "painter": painter}
    return Explorer(
        "From one eye to another",
        lambda **values: render_interpolation(run, ends, **values, **others),
        lambda **values: describe_interpolation(run, ends, **values, **others),
        {
            "share": slider("share of the way", 0.5, 0.0, 1.0, 0.05),
            "path": menu("path", PATHS, PATHS[0]),
        },
        frames={"share": [i / 10 for i in range(11)], "path": PATHS},
    )
