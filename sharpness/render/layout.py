"""How panels stand in a figure, and what stands under all of them."""

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from sharpness.errors import ShapeError
from sharpness.render.style import CAPTION, COLUMN, GREY, joined

PER_ROW = 3  # panels; four stand two by two


def panel_grid(
    count: int,
    height: float,
    *,
    layout: Literal["constrained", "compressed"] = "constrained",
    width: float = COLUMN,
    projection: str | None = None,
) -> tuple[Figure, list[Any]]:
    """A figure of so many panels, each one column wide and ``height`` inches high."""
    columns = columns_for(count)
    rows = ceil(count / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout=layout)
    axes = list(figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": projection}).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def columns_for(count: int) -> int:
    """Panels in a row of a figure.

    >>> [columns_for(count) for count in (1, 3, 4, 5, 6)]
    [1, 3, 2, 3, 3]
    """
    return count if count <= PER_ROW else 2 if count == PER_ROW + 1 else PER_ROW


def label_outer(panels: Sequence[Sequence[Axes]]) -> None:
    """Labels only where no panel follows: ``Axes.label_outer`` of a grid whose last row may be shorter."""
    count, columns = len(panels), columns_for(len(panels))
    for number, axes in enumerate(panels):
        for ax in axes:
            below, right = ax.get_xlabel(), ax.get_ylabel() if ax.yaxis.get_label_position() == "right" else ""
            ax.label_outer()
            if number + columns >= count and below:
                ax.set_xlabel(below)
                ax.tick_params("x", labelbottom=True)
            if number == count - 1 and right:
                ax.set_ylabel(right)
                ax.tick_params("y", which="both", labelright=True)


def divided(ax: Axes) -> tuple[Axes, Axes]:
    """Two axes in the place of one, side by side; the left one is ``ax`` itself.

    Raises:
        ShapeError: ``ax`` does not stand in a grid.
    """
    halves = _place(ax).subgridspec(1, 2)
    ax.set_subplotspec(halves[0])
    return ax, ax.figure.add_subplot(halves[1])


def stacked(ax: Axes, count: int) -> list[Axes]:
    """So many axes in the place of one, one below the other with one horizontal axis; the first is ``ax`` itself.

    Raises:
        ShapeError: ``ax`` does not stand in a grid.
    """
    places = _place(ax).subgridspec(count, 1)
    ax.set_subplotspec(places[0])
    below = [ax.figure.add_subplot(places[number], sharex=ax) for number in range(1, count)]
    for panel in (ax, *below[:-1]):
        panel.tick_params("x", which="both", labelbottom=False)
    return [ax, *below]


def _place(ax: Axes) -> SubplotSpec:
    place = ax.get_subplotspec()
    if place is None:
        raise ShapeError("expected an axes made by subplots(), whose place can be divided; got one without")
    return place


def set_figure_caption(figure: Figure, parts: Iterable[str]) -> None:
    """Small print under a whole figure; lines are broken between parts, and within those too long for one."""
    if text := joined(parts, int(19 * figure.get_figwidth())):
        figure.supxlabel(text, fontsize=CAPTION, color=GREY)
