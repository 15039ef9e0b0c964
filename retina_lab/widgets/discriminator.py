"""The discriminator explorer: what one verdict sees of a photograph and its map."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from retina_lab import plots
from retina_lab.datasets.sample import FundusSample
from retina_lab.models.discriminators import MultiScaleCAMDiscriminator, build_discriminator
from retina_lab.models.receptive_field import view_by_formula
from retina_lab.preprocess import WIDEST, at_working_scale, fov_width, to_batch
from retina_lab.widgets.base import Explorer, menu, slider

JUDGES = ("pixel", "patch-2", "patch-1", "image", "cam C0", "cam C1", "cam C2")
"""V-GAN's discriminators, and the classifiers at the three scales of M-CAM-GAN's."""

DENSEST = 1 / 40  # of the width between two dots; closer ones would hide the photograph
SMALLEST = 1 / 15  # of the width: a box below it gets a ring, or nobody would find it


class Sight(NamedTuple):
    """One verdict of a discriminator and what it sees.

    Attributes:
        grid: how many verdicts there are, (rows, columns).
        place: which of them this is, (row, column) in the grid.
        window: rows and columns of the photograph that it sees; they may reach beyond it.
        dots: row of each row of verdicts, and column of each column, in pixels.
    """

    grid: tuple[int, int]
    place: tuple[int, int]
    window: tuple[range, range]
    dots: tuple[np.ndarray, np.ndarray]


@lru_cache(maxsize=1)
def _chains() -> dict[str, nn.Sequential]:
    """What leads from the pair to the verdicts. Class activation mapping looks at no neighbours."""
    with torch.device("meta"):  # only shapes are asked for
        chains = {name: build_discriminator(name, 1) for name in ("pixel", "patch-2", "patch-1")}
        cam = build_discriminator("multi-scale-cam", 1)
    chains = {name: nn.Sequential(judge.trunk, judge.head) for name, judge in chains.items()}
    for scale, classifier in enumerate(cam.classifiers):
        chains[f"cam C{scale}"] = nn.Sequential(*cam.stages[: scale + 1], classifier)
    return {name: chain.eval() for name, chain in chains.items()}


def sight(judge: str, size: tuple[int, int], at: tuple[float, float]) -> Sight:
    """The verdict that is nearest to a place of a photograph, and what it sees.

    Args:
        judge: one of ``JUDGES``.
        size: height and width of the photograph.
        at: row and column in pixels.

    Raises:
        ValueError: if there is no such judge.
    """
    if judge not in JUDGES:
        raise ValueError(f"no discriminator {judge!r}; choose one of {', '.join(JUDGES)}")
    if judge == "image":
        middle = tuple(np.array([(side - 1) / 2]) for side in size)
        return Sight((1, 1), (0, 0), (range(size[0]), range(size[1])), middle)
    chain = _chains()[judge]
    view = view_by_formula(chain)
    grid = tuple(chain(torch.empty(1, 4, *size, device="meta")).shape[2:])
    place, window, dots = [], [], []
    for axis in range(2):
        first = view.start[axis] + view.step[axis] * np.arange(grid[axis])
        dots.append(first + (view.extent[axis] - 1) / 2)
        index = int(np.abs(dots[axis] - at[axis]).argmin())
        place.append(index)
        window.append(range(int(first[index]), int(first[index]) + view.extent[axis]))
    return Sight(grid, tuple(place), tuple(window), tuple(dots))


def _seen(picture: np.ndarray, window: tuple[range, range]) -> np.ndarray:
    """A window of a picture (H, W, 3); what lies beyond it is grey."""
    grey = np.array(to_rgb(plots.OUTSIDE)) * 255
    canvas = np.tile(grey.round().astype(np.uint8), (len(window[0]), len(window[1]), 1))
    inside = _inside(window, picture.shape[:2])
    target = tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(inside, window, strict=True)
    )
    canvas[target] = picture[inside]
    return canvas


def _inside(window: tuple[range, range], size: tuple[int, int]) -> tuple[slice, slice]:
    return tuple(
        slice(max(0, part.start), min(side, part.stop))
        for part, side in zip(window, size, strict=True)
    )


def _at_scale(sample: FundusSample) -> FundusSample:
    """The sample as the networks of the course see it."""
    width = min(WIDEST, fov_width(sample.fov))
    batch = at_working_scale(to_batch(sample), sample.fov, width)
    if batch["image"].shape[-2:] == sample.size:
        return sample
    image, fov, vessels = (batch[key][0].numpy() for key in ("image", "fov", "vessels"))
    return replace(
        sample,
        image=(255 * image.transpose(1, 2, 0)).round().clip(0, 255).astype(np.uint8),
        fov=fov[0] > 0.5,
        vessels=vessels[0] > 0.5,
        second_observer=None,
        artery_vein=None,
        lesions=None,
    )


def _at(sample: FundusSample, down: int, across: int) -> tuple[float, float]:
    """The place in pixels, from per cent of height and width."""
    height, width = sample.size
    return down / 100 * (height - 1), across / 100 * (width - 1)


@plots.styled
def render_discriminator(sample: FundusSample, judge: str, down: int, across: int) -> Figure:
    """Photograph and label with the verdicts of a discriminator, and what one of them sees.

    Args:
        sample: with vessels.
        judge: one of ``JUDGES``.
        down: place of the cross, in per cent of the height.
        across: the same, of the width.
    """
    at = _at(sample, down, across)
    seen = sight(judge, sample.size, at)
    pictures = {
        "photograph": sample.image,
        "label": plots.label_picture(sample.vessels, sample.fov),
    }
    figure = Figure(figsize=(9.6, 2.75))
    places = iter([(0.003 + 0.25 * panel, 0.01, 0.244, 0.87) for panel in range(4)])
    rows, columns = seen.window
    dots = [(x, y) for y in seen.dots[0] for x in seen.dots[1]]
    spacing = np.ptp(seen.dots[1]) / max(1, seen.grid[1] - 1)
    for name, picture in pictures.items():
        axes = figure.add_axes(next(places))
        plots.draw_picture(axes, picture, name)
        if seen.grid != (1, 1) and spacing >= DENSEST * sample.size[1]:
            axes.plot(*np.array(dots).T, "o", color=plots.SKY, markersize=1.6)
        box = {"fill": False, "linewidth": 1.8, "edgecolor": plots.ORANGE}
        corner = (columns.start - 0.5, rows.start - 0.5)
        axes.add_patch(Rectangle(corner, len(columns), len(rows), **box))
        if len(columns) < SMALLEST * sample.size[1]:
            ring = {"markerfacecolor": "none", "markeredgecolor": plots.ORANGE, "markersize": 13}
            axes.plot(columns[len(columns) // 2], rows[len(rows) // 2], "o", **ring)
        axes.plot(at[1], at[0], "+", color=plots.YELLOW, markersize=8, markeredgewidth=1.6)
        axes.set(xlim=(-0.5, sample.size[1] - 0.5), ylim=(sample.size[0] - 0.5, -0.5))
    for picture in pictures.values():
        title = f"what it sees, {len(columns)}×{len(rows)}"
        plots.draw_picture(figure.add_axes(next(places)), _seen(picture, seen.window), title)
    return figure


def describe_discriminator(sample: FundusSample, judge: str, down: int, across: int) -> str:
    """The state of :func:`render_discriminator` in words; the same arguments."""
    seen = sight(judge, sample.size, _at(sample, down, across))
    inside = _inside(seen.window, sample.size)
    vessels, fov = sample.vessels[inside], sample.fov[inside]
    share = vessels.size / sample.fov.size
    part = f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
    grid = "one verdict" if seen.grid == (1, 1) else f"{seen.grid[1]}×{seen.grid[0]} verdicts"
    size = f"{len(seen.window[1])}×{len(seen.window[0])} pixels"
    if vessels.size < len(seen.window[0]) * len(seen.window[1]):
        size += f", of which {vessels.shape[1]}×{vessels.shape[0]} lie in the photograph"
    content = (
        f"{vessels[fov].mean():.0%} of what lies in the field of view is vessel"
        if fov.any()
        else "nothing of it lies in the field of view"
    )
    return (
        f"{judge}: {grid} on {sample.name} ({sample.size[1]}×{sample.size[0]}). At {down} % down "
        f"and {across} % across, the nearest is in row {seen.place[0]}, column {seen.place[1]} of "
        f"the grid. It sees {size}, {part} of the photograph; {content}."
    )


def explore_discriminator(sample: FundusSample, judge: str = "patch-2") -> Explorer:
    """Choose a discriminator and a place: what does the verdict there see, of photograph and map?

    Args:
        sample: with vessels; it is brought to the scale at which networks see it, so that the
            boxes cover as much of the eye as in training.
        judge: one of ``JUDGES``, where the menu starts.

    Raises:
        ValueError: if the sample is unlabelled or too small for the largest discriminator.
    """
    if sample.vessels is None:
        raise ValueError(f"{sample.name} has no vessel labels to show to a discriminator")
    sample = _at_scale(sample)
    smallest = MultiScaleCAMDiscriminator.smallest
    if min(sample.size) < smallest:
        raise ValueError(
            f"{sample.name} is {sample.size[1]}×{sample.size[0]}; the discriminators need at least "
            f"{smallest}×{smallest} pixels"
        )
    return Explorer(
        "The discriminator's view",
        lambda **values: render_discriminator(sample, **values),
        lambda **values: describe_discriminator(sample, **values),
        {
            "judge": menu("discriminator", JUDGES, judge),
            "down": slider("down (%)", 50, 0, 100, 2, "d"),
            "across": slider("across (%)", 50, 0, 100, 2, "d"),
        },
        frames={"judge": JUDGES, "across": [26, 42, 58, 74]},
    )
