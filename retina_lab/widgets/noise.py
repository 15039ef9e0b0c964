"""The explorer of noise and style: one tree, several painters, several paintings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from retina_lab import plots
from retina_lab.judge import variety
from retina_lab.sampling import paint, random_noise
from retina_lab.synthesis import BANNER, SynthesisRun
from retina_lab.widgets.base import Explorer, menu, slider

SHOWN = 4
"""Paintings of one tree that are shown at once."""
WHITE = 40
"""Grey levels of spread that the map of differences shows white."""


def paint_often(
    run: SynthesisRun, tree: torch.Tensor, scale: float, number: int, seed: int = 0
) -> np.ndarray:
    """Several paintings of one tree, each with noise of its own.

    Args:
        run: of a model that paints; without noise all paintings are the same.
        tree: (1, S, S) in [0, 1].
        scale: standard deviation of the noise, ≥ 0.
        number: of paintings.
        seed: of the noise.

    Returns:
        (number, S, S, 3) ``uint8``, black outside the painter's field of view.
    """
    noise = random_noise(run, number, seed, scale)
    painted = paint(run, tree[None].expand(number, -1, -1, -1), noise=noise)
    return painted * run.fov[..., None]


@plots.styled
def render_noise(run: SynthesisRun, tree: torch.Tensor, power: float, seed: int) -> Figure:
    """A tree, four paintings of it, and where they differ.

    Args:
        run: of a model that paints.
        tree: (1, S, S) in [0, 1].
        power: decimal logarithm of the noise's standard deviation; MI-GAN trains at −3 and
            samples at 0.
        seed: of the noise.
    """
    painted = paint_often(run, tree, 10.0**power, SHOWN, seed)
    spread = painted.std(axis=0).mean(axis=-1)  # S×S, grey levels
    pictures = {"tree": tree[0].numpy()}
    pictures |= {f"painting {i}": picture for i, picture in enumerate(painted, start=1)}
    pictures[f"spread, white: {WHITE}+"] = (spread / WHITE).clip(0, 1)
    figure = Figure(figsize=(9.6, 2.2))
    figure.text(0.5, 0.97, BANNER, ha="center", va="top", fontsize=9)
    for column, (title, picture) in enumerate(pictures.items()):
        share = 1 / len(pictures)
        axes = figure.add_axes((column * share + 0.004, 0.01, share - 0.008, 0.74))
        plots.draw_picture(axes, picture, title)
    return figure


def describe_noise(run: SynthesisRun, tree: torch.Tensor, power: float, seed: int) -> str:
    """The state of :func:`render_noise` in words: how much the paintings differ."""
    if not run.recipe.noise:
        return f"This painter takes no noise, so all {SHOWN} paintings of the tree are the same."
    painted = paint_often(run, tree, 10.0**power, SHOWN, seed)
    difference = 255 * variety(painted[:, run.fov])
    tints = painted[:, run.fov].mean(axis=1)  # 4×3, the mean colours
    spread = painted[:, run.fov].astype(float).var(axis=0).mean()
    tint = f"{tints.var(axis=0).mean() / spread:.0%} of it" if spread else "none of it"
    covered = float(tree[0][torch.from_numpy(run.fov)].mean())
    return (
        f"{SHOWN} paintings of one tree, {covered:.1%} of the field, with noise of standard "
        f"deviation {10.0**power:.3g} (MI-GAN trains with 0.001 and samples with 1). "
        f"In the field two of them differ by {difference:.2f} grey levels of 255 on average; "
        f"{tint}, as variance, is a tint that the whole picture shares."
    )


def explore_noise(
    painters: Mapping[str, SynthesisRun], trees: torch.Tensor, power: float = 0.0
) -> Explorer:
    """Sliders over the noise, its seed and the tree, and a menu of painters.

    Args:
        painters: ``{name: run}``, of one size; each has the style of what it was trained on.
        trees: (N, 1, S, S) in [0, 1], of that size.
        power: decimal logarithm of the noise's standard deviation at the start.

    Raises:
        ValueError: if there is no painter or no tree, or a size differs.
    """
    if not painters or trees.ndim != 4 or not len(trees):
        raise ValueError("the explorer needs at least one painter and one tree")
    for name, run in painters.items():
        if trees.shape[-1] != run.size:
            raise ValueError(
                f"{name} paints {run.size}×{run.size} pixels, but the trees are "
                f"{trees.shape[-1]}×{trees.shape[-1]}"
            )
    frames: dict[str, list] = {"power": [-3.0, -2.0, -1.0, 0.0, 1.0]}
    if len(trees) > 1:
        frames["tree"] = list(range(min(4, len(trees))))
    return Explorer(
        "Noise and style explorer",
        lambda painter, tree, **values: render_noise(painters[painter], trees[tree], **values),
        lambda painter, tree, **values: describe_noise(painters[painter], trees[tree], **values),
        {
            "power": slider("noise: log₁₀ of σ", power, -3.0, 1.0, 0.5, ".1f"),
            "seed": slider("seed", 0, 0, 50, 1, "d"),
            "tree": slider("tree", 0, 0, len(trees) - 1, 1, "d"),
            "painter": menu("painter", painters, next(iter(painters))),
        },
        frames=frames,
    )
