"""The DropBlock explorer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt

from retina_lab import plots
from retina_lab.models import DropBlock2d
from retina_lab.widgets.base import Explorer, menu, slider


def drop_blocks(size: tuple[int, int], keep: float, block_size: int, seed: int) -> np.ndarray:
    """Where DropBlock leaves holes in one map; with ``block_size`` 1 it is plain dropout.

    Args:
        size: (height, width) of the map.
        keep: see :class:`retina_lab.models.DropBlock2d`.
        block_size: the same.
        seed: of the random numbers.

    Returns:
        (H, W) ``bool``, true where values are dropped.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mask = DropBlock2d(keep, block_size).mask(torch.ones(1, 1, *size))
    return (mask[0, 0] == 0).numpy()


def guess_from_nearest(values: np.ndarray, dropped: np.ndarray) -> float:
    """How well the nearest value that is left tells a dropped one.

    Args:
        values: (H, W) ``float``.
        dropped: (H, W) ``bool``.

    Returns:
        Pearson's correlation of the dropped values with those guesses, in [−1, 1]; NaN if
        nothing or everything is dropped, or there is nothing to correlate.
    """
    if not dropped.any() or dropped.all():
        return float("nan")
    rows, columns = distance_transform_edt(dropped, return_distances=False, return_indices=True)
    truth, guess = values[dropped], values[rows, columns][dropped]
    if not truth.std() or not guess.std():
        return float("nan")
    return float(np.corrcoef(truth, guess)[0, 1])


def _stretched(values: np.ndarray) -> np.ndarray:
    """The map as a grey picture, (H, W, 3) ``uint8``, between its 1st and 99th percentiles."""
    low, high = np.percentile(values, (1, 99))
    grey = ((values - low) / max(high - low, 1e-12)).clip(0, 1)
    return np.repeat((grey * 255).round().astype(np.uint8)[..., None], 3, axis=2)


@plots.styled
def render_dropblock(values: np.ndarray, keep: float, block_size: int, seed: int = 0) -> Figure:
    """A map as it is, with dropout and with DropBlock; holes are orange.

    Args:
        values: (H, W) ``float``, one channel.
        keep: share that is kept, in (0, 1].
        block_size: side of the blocks in pixels of the map.
        seed: of the holes.
    """
    height, width = values.shape
    picture = _stretched(values)
    pictures = {f"one channel, {width}×{height}": picture}
    for name, side in {"dropout": 1, f"DropBlock {block_size}×{block_size}": block_size}.items():
        holes = drop_blocks(values.shape, keep, side, seed)
        title = f"{name}: {holes.mean():.1%} dropped"
        pictures[title] = plots.overlay(picture, holes, plots.ORANGE, 1.0)
    figure = Figure(figsize=(8.4, 2.8 * height / width + 0.3))
    top = 1 - 0.3 / figure.get_figheight()
    for column, (title, panel) in enumerate(pictures.items()):
        axes = figure.add_axes((column / 3 + 0.003, 0, 1 / 3 - 0.006, top))
        plots.draw_picture(axes, panel, title)
    return figure


def describe_dropblock(values: np.ndarray, keep: float, block_size: int, seed: int = 0) -> str:
    """The state of :func:`render_dropblock` in words: shares asked, expected and measured."""
    layer = DropBlock2d(keep, block_size)
    blocks, dots = (drop_blocks(values.shape, keep, b, seed) for b in (block_size, 1))
    guesses = [guess_from_nearest(values, holes) for holes in (dots, blocks)]
    text = (
        f"To be dropped: {1 - keep:.1%}. DropBlock with blocks of {block_size}×{block_size} seeds "
        f"one at a place with probability γ = {layer.gamma(*values.shape):.5f}; as blocks overlap, "
        f"{layer.expected_share(*values.shape):.1%} are expected to go, and {blocks.mean():.1%} "
        f"went (dropout: {dots.mean():.1%}). "
    )
    if not all(np.isfinite(guesses)):
        return text + "There is nothing to guess."
    return text + (
        "The nearest value that is left tells a dropped one with a correlation of "
        f"{guesses[0]:.2f} after dropout and {guesses[1]:.2f} after DropBlock."
    )


def explore_dropblock(
    maps: Mapping[str, np.ndarray], keep: float = 0.85, block_size: int = 7
) -> Explorer:
    """Sliders over DropBlock's two settings: holes in a map, beside those of dropout.

    Args:
        maps: ``{name: (H, W) float}``, channels of a feature map or of a photograph: details of
            about a hundred pixels. Empty margins are easy to guess, so cut them off.
        keep: where its slider starts.
        block_size: where its slider starts.

    Raises:
        ValueError: if there is no map or one is not two-dimensional.
    """
    maps = {name: np.asarray(values, dtype=np.float64) for name, values in maps.items()}
    if not maps or any(values.ndim != 2 for values in maps.values()):
        shapes = {name: values.shape for name, values in maps.items()}
        raise ValueError(f"the explorer needs maps of one channel, (H, W), not {shapes}")
    return Explorer(
        "DropBlock explorer",
        lambda channel, **values: render_dropblock(maps[channel], **values),
        lambda channel, **values: describe_dropblock(maps[channel], **values),
        {
            "keep": slider("keep probability", keep, 0.3, 0.99, 0.01),
            "block_size": slider("block size", block_size, 1, 21, 1, "d"),
            "channel": menu("channel", maps, next(iter(maps))),
            "seed": slider("seed", 0, 0, 20, 1, "d"),
        },
        frames={"keep": [0.5, 0.65, 0.78, 0.85, 0.95], "block_size": [1, 3, 5, 7, 15]},
    )
