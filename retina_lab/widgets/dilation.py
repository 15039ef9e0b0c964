"""The dilation explorer: which pixels a stack of dilated convolutions sees."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from retina_lab import plots
from retina_lab.datasets.sample import FundusSample
from retina_lab.widgets.base import Explorer, slider

CROP, ZOOM = 129, 25  # pixels shown on the left, and of these on the right
TINT = np.array([86, 180, 233])  # the sky blue of plots.SKY: no retina has it


def count_paths(kernel_size: int, dilation: int, layers: int) -> np.ndarray:
    """In how many ways each pixel of a row reaches the output of equal convolutions in a stack.

    A pixel that is reached in no way is a hole of the receptive field; the length is the
    formula's 1 + layers · (kernel_size − 1) · dilation. In two dimensions a pixel is reached in
    as many ways as its row times its column.

    Args:
        kernel_size: taps of each layer.
        dilation: distance between the taps in pixels, ≥ 1.
        layers: number of layers, ≥ 0.

    Returns:
        (length,) whole numbers.
    """
    taps = np.zeros((kernel_size - 1) * dilation + 1, int)
    taps[::dilation] = 1
    paths = np.ones(1, int)
    for _ in range(layers):
        paths = np.convolve(paths, taps)
    return paths


def _crop(sample: FundusSample, centre: tuple[int, int], side: int) -> tuple[slice, slice]:
    """A window of at most ``side`` pixels around a pixel, moved inside the photograph."""
    window = []
    for middle, extent in zip(centre, sample.size, strict=True):
        length = min(side, extent)
        first = min(max(0, middle - length // 2), extent - length)
        window.append(slice(first, first + length))
    return window[0], window[1]


def _tinted(
    sample: FundusSample, centre: tuple[int, int], window: tuple[slice, slice], paths: np.ndarray
) -> np.ndarray:
    """The window of the photograph, blue where the stack sees it, the more the more ways."""
    share = np.sqrt(paths / paths.max())  # by eye: the ends would be invisible otherwise
    opacity = []
    for middle, part in zip(centre, window, strict=True):
        offset = np.arange(part.start, part.stop) - middle + len(paths) // 2
        inside = (offset >= 0) & (offset < len(paths))
        opacity.append(np.where(inside, share[offset.clip(0, len(paths) - 1)], 0))
    alpha = np.outer(*opacity)[..., None]
    alpha = np.where(alpha > 0, 0.35 + 0.55 * alpha, 0)
    picture = sample.image[window] * (1 - alpha) + TINT * alpha
    return picture.round().astype(np.uint8)


@plots.styled
def render_dilation(
    sample: FundusSample, centre: tuple[int, int], kernel_size: int, dilation: int, layers: int
) -> Figure:
    """What one output pixel of a stack sees, laid over a photograph, and through how many paths.

    Args:
        sample: any.
        centre: (row, column) of the output pixel.
        kernel_size: side of every convolution, odd.
        dilation: of every convolution.
        layers: how many.
    """
    paths = count_paths(kernel_size, dilation, layers)
    side = len(paths)
    figure = Figure(figsize=(9.2, 3.9))
    left = figure.add_axes((0.005, 0.02, 0.375, 0.86))
    right = figure.add_axes((0.39, 0.02, 0.375, 0.86))
    below = figure.add_axes((0.815, 0.14, 0.175, 0.66))
    for axes, shown in ((left, CROP), (right, ZOOM)):
        window = _crop(sample, centre, shown)
        plots.draw_picture(axes, _tinted(sample, centre, window, paths))
        row, column = (c - part.start for c, part in zip(centre, window, strict=True))
        corner = (column - side / 2, row - side / 2)
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=1.4))
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=plots.YELLOW)
        )
    layer = "layer" if layers == 1 else "layers"
    left.set_title(f"{layers} {layer} of {kernel_size}×{kernel_size}, dilation {dilation}")
    right.set_title(f"sees 1 + {layers}·({kernel_size} − 1)·{dilation} = {side} pixels across")
    below.bar(
        np.arange(side) - side // 2, paths / paths.sum(), 1, color=plots.BLUE, edgecolor=plots.BLUE
    )  # with an edge: a bar of one pixel would be too thin to see
    below.set(xlim=(-CROP / 2, CROP / 2), xlabel="pixels from the middle", xticks=[-50, 0, 50])
    below.set_title("share of the paths\nalong one row", loc="left", fontsize=9)
    return figure


def describe_dilation(
    sample: FundusSample, centre: tuple[int, int], kernel_size: int, dilation: int, layers: int
) -> str:
    """The state of :func:`render_dilation` in words; the same arguments."""
    paths = count_paths(kernel_size, dilation, layers)
    side, seen = len(paths), int(np.count_nonzero(paths))
    stack = f"{layers} layers" if layers > 1 else "1 layer"
    holes = (
        "without holes"
        if seen == side
        else f"with holes: {seen**2:,} of its {side**2:,} pixels are seen, {seen**2 / side**2:.0%}"
    )
    middle = paths[side // 2 - side // 4 : side // 2 + side // 4 + 1].sum() / paths.sum()
    return (
        f"{stack} of {kernel_size}×{kernel_size} convolutions with dilation {dilation} see "
        f"{side}×{side} pixels of {sample.name}, {holes}. The inner half of a row has "
        f"{middle:.0%} of the paths. Weights for one pair of channels: {layers * kernel_size**2}."
    )


def explore_dilation(sample: FundusSample, centre: tuple[int, int]) -> Explorer:
    """Sliders over kernel size, dilation and number of layers: what does one output pixel see?

    Args:
        sample: any.
        centre: (row, column) of the output pixel.

    Raises:
        ValueError: if the centre is not in the photograph.
    """
    if not all(0 <= c < extent for c, extent in zip(centre, sample.size, strict=True)):
        raise ValueError(f"the centre {centre} is not in {sample.name}, {sample.size}")
    return Explorer(
        "Dilation explorer",
        lambda **values: render_dilation(sample, centre, **values),
        lambda **values: describe_dilation(sample, centre, **values),
        {
            "kernel_size": slider("kernel", 3, 3, 7, 2, "d"),
            "dilation": slider("dilation", 2, 1, 5, 1, "d"),
            "layers": slider("layers", 2, 1, 4, 1, "d"),
        },
        frames={"dilation": [1, 2, 3, 4, 5], "layers": [1, 2, 3, 4]},
    )
