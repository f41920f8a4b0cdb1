"""What all maps of a plane through parameter space share: the grid in order, their frame, their holes, their size."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from sharpness.errors import ShapeError
from sharpness.render.style import GREY, joined, pooled, set_caption

SLENDER = 0.5  # sides of a map in equal units differ by a factor of two at most
SIDE, AROUND, LINE = 1.95, 1.0, 0.1  # inches: of a map, over and under it, of a line of its caption
WIDTH, WHOLE = 42, 24  # characters of a caption, as a colour bar leaves them, and of a part not to be broken


class Surface(NamedTuple):
    """Values over a grid in ascending order, masked where there is a hole."""

    alpha: np.ndarray
    beta: np.ndarray
    values: np.ma.MaskedArray
    """Of shape (alpha, beta)."""


def on_grid(record: Any, values: Any) -> Surface:
    """Values of shape (alpha, beta) in ascending order of both coordinates.

    Raises:
        ShapeError: the record is no plane.
    """
    if min(record.alpha.size, record.beta.size) < 2:
        raise ShapeError(
            f"expected a plane with two or more points along α and along β; got {record.alpha.size} × "
            f"{record.beta.size}: draw it as a line"
        )
    rows, columns = np.argsort(record.alpha), np.argsort(record.beta)
    return Surface(record.alpha[rows], record.beta[columns], np.ma.asarray(values)[np.ix_(rows, columns)])


def set_map_axes(
    ax: Axes, surface: Surface, labels: tuple[str, str], notes: Iterable[str], *, by_cells: bool = False
) -> None:
    """Limits that hold the grid, with equal units where that leaves a shape fit to look at; labels and small print."""
    across, along = map_limits(surface, by_cells=by_cells)
    ax.set(xlim=across, ylim=along, xlabel=labels[0], ylabel=labels[1])
    if SLENDER <= np.ptp(along) / np.ptp(across) <= 1 / SLENDER:
        ax.set_aspect("equal")
    set_caption(ax, *notes, width=WIDTH, whole=WHOLE)


def map_limits(surface: Surface, *, by_cells: bool = False) -> list[tuple[float, float]]:
    """From the first to the last point along each axis; ``by_cells`` half a step further, where cells end."""
    axes = [cell_edges(axis) if by_cells else axis for axis in (surface.alpha, surface.beta)]
    return [(float(axis[0]), float(axis[-1])) for axis in axes]


def cell_edges(axis: np.ndarray) -> np.ndarray:
    """Where the cells around points begin and end: in the middle between two, and as far beyond the first and last.

    >>> cell_edges(np.array([0.0, 1.0, 3.0]))
    array([-0.5,  0.5,  2. ,  4. ])
    """
    middles = (axis[1:] + axis[:-1]) / 2
    return np.concatenate([[2 * axis[0] - middles[0]], middles, [2 * axis[-1] - middles[-1]]])


def map_height(family: Sequence[Any], captions: Iterable[Iterable[str]]) -> float:
    """Inches for maps of one column's width: lower where equal units make them flat, higher for long captions."""
    across, along = (float(np.ptp(pooled(getattr(record, name) for record in family))) for name in ("alpha", "beta"))
    lines = max(1 + joined(notes, WIDTH, WHOLE).count("\n") for notes in captions)
    return AROUND + LINE * lines + SIDE * (along / across if SLENDER * across <= along < across else 1)


def draw_holes(ax: Axes, surface: Surface, label: str, *, by_cells: bool = False) -> None:
    """Hatch the whole plane under what is drawn on it: it shows exactly where that leaves the plane uncovered."""
    if np.ma.getmaskarray(surface.values).any():
        (left, right), (low, high) = map_limits(surface, by_cells=by_cells)
        look: dict[str, Any] = {"facecolor": "white", "edgecolor": GREY, "hatch": "/////", "linewidth": 0, "zorder": 0}
        ax.add_patch(Rectangle((left, low), right - left, high - low, label=label or "_holes", **look))
