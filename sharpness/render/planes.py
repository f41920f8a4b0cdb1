"""Contours of the loss on a plane through parameter space."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sharpness.interpolation import between
from sharpness.journal import LEFT_OUT, PENDING
from sharpness.records import PlaneLosses, axis_label
from sharpness.render.maps import Surface, draw_holes, on_grid, set_map_axes
from sharpness.render.places import draw_marks, draw_origin, draw_walk, occupied, place_notes
from sharpness.render.style import CAPTION, SMALL, VERMILLION, holes, number_text, policy_text, pooled

COLOURS = colormaps["YlGnBu_r"]  # its lightness rises with the loss, so it survives a black-and-white print
STEPS = 11
OBLIQUE = 0.01  # cosine beyond which the axes must not be read as perpendicular
MARGIN = 0.14  # of the plane, in which no level is named


def draw_plane(record: PlaneLosses, ax: Axes, family: Sequence[PlaneLosses]) -> list[Axes]:
    """Contours of the train loss on logarithmic levels that the family shares; the test loss as dashed lines.

    Over them the points and the training run that belong to the plane.
    """
    surface = drawn_surface(record)
    _draw_contours(surface, ax, family, occupied(record))
    if "test" in record.split and drawn_split(record) != "test":
        _draw_test_lines(surface_of(record, "test"), ax, family)
    draw_holes(ax, surface, hole_text(record))
    draw_walk(record, ax)
    draw_marks(record, ax)
    draw_origin(record, ax)
    set_map_axes(ax, surface, plane_labels(record), plane_notes(record))
    return [ax]


def add_colour_bar(figure: Figure, axes: Sequence[Axes], family: Sequence[PlaneLosses]) -> None:
    """One colour bar for all planes of a figure."""
    levels = contour_levels(family)
    bar = figure.colorbar(ScalarMappable(level_norm(levels), COLOURS), ax=list(axes), ticks=levels, aspect=30, pad=0.02)
    bar.set_label(f"{drawn_split(family[0])} {axis_label(family[0], 'loss')}")
    bar.ax.set_yticklabels([number_text(level) for level in levels])
    bar.ax.tick_params(labelsize=SMALL, length=0)
    bar.outline.set_linewidth(0.5)


def contour_levels(family: Sequence[PlaneLosses]) -> np.ndarray:
    """Levels in equal ratios over the positive finite losses of all planes, rounded to two digits."""
    losses = pooled(evaluated_losses(record, drawn_split(record)) for record in family)
    losses = losses[losses > 0]
    low, high = (losses.min(), losses.max()) if losses.size else (1.0, 1.0)
    if high < 1.5 * low:  # two digits could not tell the levels of a nearly flat plane apart
        low, high = low / 1.5, high * 1.5
    return np.unique([float(f"{level:.1e}") for level in np.geomspace(low, high, STEPS)])


def level_norm(levels: np.ndarray) -> BoundaryNorm:
    """One colour between each two levels, and one beyond either end."""
    return BoundaryNorm(levels, COLOURS.N, extend="both")


def drawn_split(record: PlaneLosses) -> str:
    """The data set whose loss is drawn: ``train``, or the first where none is called so."""
    splits = [str(split) for split in record.split]
    return "train" if "train" in splits else splits[0]


def drawn_surface(record: PlaneLosses) -> Surface:
    """The surface of the data set that is drawn."""
    return surface_of(record, drawn_split(record))


def surface_of(record: PlaneLosses, split: str) -> Surface:
    """The loss of one data set; points that were left out are interpolated, and no others.

    Where only a share of the points is to be evaluated, the pending ones are interpolated, too, once the corners of
    the grid are there.
    """
    surface, known = on_grid(record, evaluated_losses(record, split)), on_grid(record, _evaluated(record)).values.data
    if is_sparse(record) and known[[0, 0, -1, -1], [0, -1, 0, -1]].all():
        filled = between(surface.alpha, surface.beta, surface.values.filled(np.nan), known)
        return surface._replace(values=np.ma.masked_invalid(filled))
    return surface


def evaluated_losses(record: PlaneLosses, split: str) -> np.ma.MaskedArray:
    """The losses of one data set at the points that were evaluated, of shape (alpha, beta)."""
    return holes(record.loss[[str(name) for name in record.split].index(split)], _evaluated(record))


def is_sparse(record: PlaneLosses) -> bool:
    """Whether some points were left out on purpose."""
    return record.share < 1 or bool((record.status == LEFT_OUT).any())


def hole_text(record: PlaneLosses) -> str:
    """What the holes of a plane are; empty where there are none."""
    known, ahead = _evaluated(record), int((record.status == PENDING).sum())
    lost = int((known & np.ma.getmaskarray(evaluated_losses(record, drawn_split(record)))).sum())
    if is_sparse(record):
        return f"{lost} of {known.sum()} evaluated points not finite" if lost else ""
    counts = ((ahead, "pending"), (lost, "not finite"))
    return ", ".join(f"{count} of {known.size} points {what}" for count, what in counts if count)


def share_text(record: PlaneLosses) -> str:
    """How many points were evaluated, where the others were left out."""
    if not is_sparse(record):
        return ""
    so_far = " so far" if (record.status == PENDING).any() else ""
    return f"{_evaluated(record).sum()} of {record.status.size} points evaluated{so_far}, the others interpolated"


def plane_labels(record: PlaneLosses) -> tuple[str, str]:
    """Of both axes: the letter, with the share of a run's variance, or the unit where that is a distance in θ."""
    labels = [axis_label(record, name) for name in ("alpha", "beta")]
    if record.explained is not None:
        labels = [
            f"{label}, {100 * x:.0f} % of the variance" for label, x in zip(labels, record.explained, strict=True)
        ]
    elif _unit_directions(record):
        labels = [f"{label} (distance in θ)" for label in labels]
    return labels[0], labels[1]


def plane_notes(record: PlaneLosses) -> Iterator[str]:
    """What the axes are, what cannot be seen, which points were evaluated, and how."""
    yield from axes_notes(record, labelled=record.explained is None)
    yield from place_notes(record)
    yield share_text(record)
    yield policy_text(record.batchnorm)


def axes_notes(record: PlaneLosses, *, labelled: bool) -> Iterator[str]:
    """What the axes are; their unit, unless a label says that it is a distance in θ."""
    yield record.directions
    if abs(record.cosine) > OBLIQUE:
        yield f"cosine between the axes {number_text(record.cosine)}"
    if record.length is not None and not _unit_directions(record):
        first, second = map(number_text, record.length)
        yield f"‖Δθ‖ per unit: {first}" if first == second else f"‖Δθ‖ per unit: {first} (α), {second} (β)"
    elif record.length is not None and not labelled:
        yield "α, β: distances in θ"


def _evaluated(record: PlaneLosses) -> np.ndarray:
    return (record.status != PENDING) & (record.status != LEFT_OUT)


def _unit_directions(record: PlaneLosses) -> bool:
    return record.length is not None and bool(np.allclose(record.length, 1, rtol=1e-3))


def _draw_contours(surface: Surface, ax: Axes, family: Sequence[PlaneLosses], taken: np.ndarray) -> None:
    if surface.values.count() == 0:
        return
    levels = contour_levels(family)
    place = (surface.alpha, surface.beta, surface.values.T)  # matplotlib wants rows along y
    ax.contourf(*place, levels=levels, cmap=COLOURS, norm=level_norm(levels), extend="both")
    inside = _inside(levels, surface)
    if inside.size == 0:
        return
    lines = ax.contour(*place, levels=inside, colors="black", linewidths=0.4)
    labelled = np.intersect1d(inside, levels[1::2])  # the colour bar names the others
    where: Any = _label_places(lines, labelled, surface, taken) if taken.size else False
    for text in ax.clabel(lines, labelled, fontsize=CAPTION, fmt=number_text, inline_spacing=2, manual=where):
        text.set_path_effects([withStroke(linewidth=1.2, foreground="white")])


def _label_places(
    lines: QuadContourSet, levels: np.ndarray, surface: Surface, taken: np.ndarray
) -> list[tuple[float, float]]:
    """Where each level is named: on its line, well inside, farthest from all places taken and the other names."""
    low, size = np.array([(axis[0], np.ptp(axis)) for axis in (surface.alpha, surface.beta)]).T
    taken, places = (taken - low) / size, []
    for level in levels:
        line = (lines.get_paths()[list(lines.levels).index(level)].vertices - low) / size
        inner = line[(np.abs(line - 0.5) < 0.5 - MARGIN).all(axis=1)]
        if inner.size:
            distance = np.linalg.norm(inner[:, None] - taken, axis=2).min(axis=1)
            taken = np.vstack([taken, inner[distance.argmax()]])
            places.append(tuple(taken[-1] * size + low))
    return places


def _draw_test_lines(surface: Surface, ax: Axes, family: Sequence[PlaneLosses]) -> None:
    levels = _inside(contour_levels(family), surface)
    if levels.size:
        look: dict[str, Any] = {"colors": VERMILLION, "linewidths": 0.6, "linestyles": [(0, (4, 2))]}
        ax.contour(surface.alpha, surface.beta, surface.values.T, levels=levels, **look)
        ax.plot([], [], color=VERMILLION, linewidth=0.6, dashes=(6, 3), label="test loss, same levels")


def _inside(levels: np.ndarray, surface: Surface) -> np.ndarray:
    """The levels that the surface crosses; none where every point is a hole."""
    low, high = (surface.values.min(), surface.values.max()) if surface.values.count() else (0.0, 0.0)
    return levels[(levels > low) & (levels < high)]
