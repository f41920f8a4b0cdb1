"""Points and training runs on the map of a plane: black with a white edge, hollow where they lie off the plane."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from sharpness.records import PlaneLosses
from sharpness.render.style import BLACK, SMALL, VERMILLION, number_text

NEAR = 0.1  # of the plane's extent: what a name takes up
ON = 1e-6  # of the plane's extent: how far off it a point may lie by rounding
EDGED: dict[str, Any] = {"path_effects": [withStroke(linewidth=2, foreground="white")]}


def draw_marks(record: PlaneLosses, ax: Axes) -> None:
    """The named points within the plane's limits, each with its name above it, or below where there is no room."""
    for name, place, side in _shown_marks(record):
        draw_place(ax, place, "o", 5, hollow=is_off(record, place))
        across = _shares(record, place)[0]
        ax.annotate(
            name, (place[0], place[1]), (0, 5 * side), textcoords="offset points", fontsize=SMALL, zorder=5,
            ha="left" if across < NEAR else "right" if across > 1 - NEAR else "center",
            va="bottom" if side > 0 else "top", **EDGED,
        )  # fmt: skip


def draw_walk(record: PlaneLosses, ax: Axes) -> None:
    """The iterates of a training run as seen from above the plane, the first and the last distinguished."""
    if record.walk_place is None or record.epoch is None:
        return
    alpha, beta, _ = record.walk_place.T
    ax.plot(alpha, beta, ".-", color="white", linewidth=2.3, markersize=6, label="_walk", zorder=3)
    ax.plot(alpha, beta, ".-", color=BLACK, linewidth=0.9, markersize=3.5, label="_walk", zorder=3)
    for place, marker, size, name in zip(record.walk_place[[0, -1]], "o*", (5, 8), ("first", "last"), strict=True):
        draw_place(ax, place, marker, size, hollow=is_off(record, place), label=f"{name} iterate")


def draw_origin(record: PlaneLosses, ax: Axes) -> None:
    """A star at α = β = 0, unless a point of the plane is there already."""
    places = [place for _, place in _marks(record)]
    places += [] if record.walk_place is None else list(record.walk_place[[0, -1]])
    taken = any(np.hypot(*place[:2]) <= ON * min(np.ptp(record.alpha), np.ptp(record.beta)) for place in places)
    if _is_inside(record, np.zeros(3)) and not taken:
        ax.plot(0, 0, "*", color=VERMILLION, markersize=7, markeredgecolor="white", markeredgewidth=0.5, label="origin")


def draw_place(ax: Axes, place: np.ndarray, marker: str, size: float, *, hollow: bool = False, **look: Any) -> Line2D:
    """One point of the map."""
    face, edge, width = ("white", BLACK, 0.9) if hollow else (BLACK, "white", 0.6)
    colours: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": width}
    (point,) = ax.plot(place[:1], place[1:2], marker, markersize=size, zorder=4, **colours, **look)
    return point


def occupied(record: PlaneLosses) -> np.ndarray:
    """Places, of shape (any, 2), that are drawn or written on, and that nothing should be written over."""
    places = []
    for _, place, side in _shown_marks(record):
        places += [place[:2], place[:2] + np.array([0, side * NEAR * np.ptp(record.beta)])]
    if record.walk_place is not None:
        legs = zip(record.walk_place[:-1, :2], record.walk_place[1:, :2], strict=True)
        places += [point for first, last in legs for point in np.linspace(first, last, 8)]
    return np.array(places).reshape(-1, 2)


def is_off(record: PlaneLosses, place: np.ndarray) -> bool:
    """Whether a point does not lie on the plane, but is seen from above it."""
    return bool(place[2] > ON * _extent(record))


def place_notes(record: PlaneLosses) -> Iterator[str]:
    """What cannot be seen from above: how far points are from the plane, and which are beyond its edges."""
    marks = _marks(record)
    off = [f"{name} by {number_text(place[2])}" for name, place in marks if is_off(record, place)]
    if off:
        yield f"hollow: off the plane, {', '.join(off)} in θ"
    if record.walk_place is not None and record.epoch is not None:
        epochs, far = map(number_text, record.epoch[[0, -1]]), float(record.walk_place[:, 2].max())
        aside = (
            f"up to {number_text(far)} off the plane" if np.isfinite(far) else "how far off the plane is not recorded"
        )
        yield f"iterates of epochs {' to '.join(epochs)}, {aside}"
    for name, place in marks:
        if not _is_inside(record, place):
            yield "{} beyond the edges, at α = {}, β = {}".format(name, *map(number_text, place[:2]))


def _marks(record: PlaneLosses) -> list[tuple[str, np.ndarray]]:
    if record.mark is None or record.mark_place is None:
        return []
    return [(str(name), place) for name, place in zip(record.mark, record.mark_place, strict=True)]


def _extent(record: PlaneLosses) -> float:
    """The longer side of the plane, measured in θ."""
    sides = np.array([np.ptp(record.alpha), np.ptp(record.beta)])
    return float(np.max(sides * (1 if record.length is None else record.length)))


def _is_inside(record: PlaneLosses, place: np.ndarray) -> bool:
    return all(axis.min() <= at <= axis.max() for axis, at in zip((record.alpha, record.beta), place[:2], strict=True))


def _shares(record: PlaneLosses, place: np.ndarray) -> np.ndarray:
    """Where a place lies between the edges: 0 to 1 along each axis."""
    axes = (record.alpha, record.beta)
    return np.array([(at - axis.min()) / np.ptp(axis) for axis, at in zip(axes, place[:2], strict=True)])


def _shown_marks(record: PlaneLosses) -> list[tuple[str, np.ndarray, int]]:
    """Name, place and side of the name (1 above, -1 below) of the marks within the limits."""
    shown: list[tuple[str, np.ndarray, int]] = []
    inside = [(name, place) for name, place in _marks(record) if _is_inside(record, place)]
    for name, place in inside:
        here = _shares(record, place)
        aside = [_shares(record, other) - here for _, other in inside if other is not place]
        taken = [_shares(record, other) - here for _, other, side in shown if side > 0]
        over = any(abs(x) < 2 * NEAR and 0 < y < NEAR for x, y in aside)
        beside = any(abs(x) < 2 * NEAR and abs(y) < NEAR / 2 for x, y in taken)
        shown.append((name, place, -1 if over or beside or here[1] > 1 - NEAR else 1))
    return shown
