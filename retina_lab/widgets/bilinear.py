"""The bilinear explorer: a point between pixels, moved by sliders or dragged in the picture."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from retina_lab import plots
from retina_lab.widgets.base import Explorer, slider
from retina_lab.widgets.point import PointExplorer

GRID = np.array([[1, 8, 3, 5], [4, 2, 7, 1], [6, 0, 9, 4], [2, 5, 3, 8]])
"""Values at row y and column x; the four at the upper left are those of the U-Net slides."""

LAST = len(GRID) - 1
STEP = 0.1  # products of two tenths have two decimals, so the sum on the picture adds up
FRAMES = (0, 0.3, 0.5, 0.7, 1, 1.3, 1.7, 2, 2.3, 2.7, 3)
COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE)
FIGURE = (6.2, 3.1)  # inches
PANEL = (0.05, 0.01, 0.455, 0.91)  # the grid of numbers: left, bottom, width, height; square


def _neighbours(x: float, y: float) -> list[tuple[int, int, float]]:
    """(column, row, weight) of the four pixels around a point, row by row."""
    left, top = (min(int(place), LAST - 1) for place in (x, y))
    return [
        (column, row, (1 - abs(column - x)) * (1 - abs(row - y)))
        for row in (top, top + 1)
        for column in (left, left + 1)
    ]


def _slopes(x: float, y: float) -> tuple[float, float]:
    """How fast the value rises at a point to the right and downwards, a pixel."""
    (left, top, _), *_, (right, bottom, _) = _neighbours(x, y)
    (a, b), (c, d) = GRID[top : bottom + 1, left : right + 1]
    to_the_right = (bottom - y) * (b - a) + (y - top) * (d - c)
    downwards = (right - x) * (c - a) + (x - left) * (d - b)
    return to_the_right, downwards


@plots.styled
def render_bilinear(x: float, y: float) -> Figure:
    """A 4×4 image, a point in it, the weights of its four neighbours and their sum.

    The weight of a neighbour is the area of the rectangle that lies diagonally opposite to it,
    in its colour.

    Args:
        x: column of the point, 0 to 3.
        y: its row, 0 to 3.
    """
    figure = Figure(figsize=FIGURE)
    grid, sums = figure.add_axes(PANEL), figure.add_axes((0.54, 0.01, 0.45, 0.91))
    grid.imshow(GRID, cmap="gray", vmin=-14, vmax=10)  # greys light enough for black digits
    for (row, column), value in np.ndenumerate(GRID):
        grid.text(column, row, value, ha="center", va="center", fontsize=13, zorder=4)
    places = range(LAST + 1)
    grid.set_xticks(places, [f"x = {i}" for i in places])
    grid.set_yticks(places, [f"y = {i}" for i in places], rotation=90, va="center")
    grid.tick_params(length=0, labeltop=True, labelbottom=False, pad=2)
    grid.grid(visible=False)
    grid.spines[:].set_visible(False)
    sums.set(xlim=(0, 10), ylim=(6.7, -0.7))
    sums.set_axis_off()

    def write(line, text, right=10, **style):
        style = {"fontsize": 11} | style
        sums.text(right, line, text.replace("-", "−"), ha="right", va="center", **style)

    neighbours = _neighbours(x, y)
    for line, (column, row, weight) in enumerate(neighbours):
        colour, value = COLOURS[line], GRID[row, column]
        far_column, far_row, _ = neighbours[3 - line]  # diagonally opposite
        corner, sides = (
            (min(x, far_column), min(y, far_row)),
            (abs(x - far_column), abs(y - far_row)),
        )
        grid.add_patch(Rectangle(corner, *sides, color=colour, alpha=0.6, linewidth=0, zorder=2))
        ring = {"facecolor": "white", "edgecolor": colour, "linewidth": 2.5, "zorder": 3}
        grid.add_patch(Circle((column, row), 0.2, **ring))
        sums.add_patch(Rectangle((0, line - 0.32), 3.6 * weight, 0.64, color=colour, alpha=0.6))
        write(line, f"{weight:.4g}", right=5.4)
        write(line, f"× {value} =", right=7.6)
        write(line, f"{weight * value:.2f}")
    grid.plot(x, y, "o", color=plots.BLACK, markeredgecolor="white", markersize=11, zorder=5)
    total = sum(weight * GRID[row, column] for column, row, weight in neighbours)
    right, down = _slopes(x, y)
    sums.plot([8, 10], [3.6, 3.6], color=plots.BLACK, linewidth=1.2)
    write(4.15, f"at ({x:.2f}, {y:.2f}) =", right=7.6)
    write(4.15, f"{total:.2f}", fontsize=13, fontweight="bold")
    write(5.4, f"slope to the right {right:+.2f}", fontsize=10)
    write(6.15, f"slope downwards {down:+.2f}", fontsize=10)
    return figure


def describe_bilinear(x: float, y: float) -> str:
    """The state of :func:`render_bilinear` in words; the same arguments."""
    neighbours = [(weight, GRID[row, column]) for column, row, weight in _neighbours(x, y)]
    weights = ", ".join(f"{weight:.4g} (value {value})" for weight, value in neighbours)
    total = sum(weight * value for weight, value in neighbours)
    right, down = _slopes(x, y)
    return (
        f"At x = {x:.2f}, y = {y:.2f} the four neighbours weigh {weights}; together {total:.2f}. "
        f"The slope is {right:+.2f} a pixel to the right and {down:+.2f} downwards."
    ).replace("-", "−")  # a hyphen is not read out


def explore_bilinear(x: float = 0.7, y: float = 0.3) -> Explorer:
    """A point to drag over a 4×4 image: the four weights and the value between the pixels.

    Args:
        x: column where the point starts, 0 to 3.
        y: row where it starts.
    """
    return PointExplorer(
        "A point between pixels",
        render_bilinear,
        describe_bilinear,
        {
            "x": slider("x (column)", x, 0, LAST, STEP),
            "y": slider("y (row)", y, 0, LAST, STEP),
        },
        frames={"x": FRAMES, "y": FRAMES},
        panel=PANEL,
    )
