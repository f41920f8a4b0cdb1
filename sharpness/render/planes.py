"""Contours of the loss on a plane through parameter space."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from sharpness.errors import ShapeError
from sharpness.records import PlaneLosses, axis_label
from sharpness.render.style import (
    CAPTION,
    GREY,
    SMALL,
    VERMILLION,
    holes,
    number_text,
    policy_text,
    pooled,
    set_caption,
)

COLOURS = colormaps["YlGnBu_r"]  # its lightness rises with the loss, so it survives a black-and-white print
STEPS = 11


def draw_plane(record: PlaneLosses, ax: Axes, family: Sequence[PlaneLosses]) -> list[Axes]:
    """Contours of the train loss on logarithmic levels that the family shares."""
    if min(record.alpha.size, record.beta.size) < 2:
        raise ShapeError(
            f"expected a plane with two or more points along α and along β; got {record.alpha.size} × "
            f"{record.beta.size}: draw it as a line"
        )
    loss = _drawn_loss(record)
    _draw_contours(record, loss, ax, family)
    _draw_holes(record, loss, ax)
    if all(place.min() <= 0 <= place.max() for place in (record.alpha, record.beta)):
        ax.plot(0, 0, "*", color=VERMILLION, markersize=7, markeredgecolor="white", markeredgewidth=0.5, label="origin")
    ax.set(xlabel=axis_label(record, "alpha"), ylabel=axis_label(record, "beta"))
    ax.set(xlim=(record.alpha.min(), record.alpha.max()), ylim=(record.beta.min(), record.beta.max()))
    if 0.5 <= np.ptp(record.alpha) / np.ptp(record.beta) <= 2:
        ax.set_aspect("equal")
    set_caption(ax, policy_text(record.batchnorm))
    return [ax]


def add_colour_bar(figure: Figure, axes: Sequence[Axes], family: Sequence[PlaneLosses]) -> None:
    """One colour bar for all planes of a figure."""
    levels = contour_levels(family)
    bar = figure.colorbar(ScalarMappable(_norm(levels), COLOURS), ax=list(axes), ticks=levels, aspect=30, pad=0.02)
    bar.set_label(f"{_drawn_split(family[0])} {axis_label(family[0], 'loss')}")
    bar.ax.set_yticklabels([number_text(level) for level in levels])
    bar.ax.tick_params(labelsize=SMALL, length=0)
    bar.outline.set_linewidth(0.5)


def contour_levels(family: Sequence[PlaneLosses]) -> np.ndarray:
    """Levels in equal ratios over the positive finite losses of all planes, rounded to two digits."""
    losses = pooled(_drawn_loss(record) for record in family)
    losses = losses[losses > 0]
    low, high = (losses.min(), losses.max()) if losses.size else (1.0, 1.0)
    if high < 1.5 * low:  # two digits could not tell the levels of a nearly flat plane apart
        low, high = low / 1.5, high * 1.5
    return np.unique([float(f"{level:.1e}") for level in np.geomspace(low, high, STEPS)])


def _drawn_row(record: PlaneLosses) -> int:
    splits = [str(split) for split in record.split]
    return splits.index("train") if "train" in splits else 0


def _drawn_split(record: PlaneLosses) -> str:
    return str(record.split[_drawn_row(record)])


def _drawn_loss(record: PlaneLosses) -> np.ma.MaskedArray:
    return holes(record.loss[_drawn_row(record)], record.status)


def _norm(levels: np.ndarray) -> BoundaryNorm:
    return BoundaryNorm(levels, COLOURS.N, extend="both")


def _draw_contours(record: PlaneLosses, loss: np.ma.MaskedArray, ax: Axes, family: Sequence[PlaneLosses]) -> None:
    if loss.count() == 0:
        return
    levels = contour_levels(family)
    place = (record.alpha, record.beta, loss.T)  # matplotlib wants rows along y
    ax.contourf(*place, levels=levels, cmap=COLOURS, norm=_norm(levels), extend="both")
    inside = levels[(levels > loss.min()) & (levels < loss.max())]
    if inside.size == 0:
        return
    lines = ax.contour(*place, levels=inside, colors="black", linewidths=0.4)
    labelled = np.intersect1d(inside, levels[1::2])  # the colour bar names the others
    for text in ax.clabel(lines, labelled, fontsize=CAPTION, fmt=number_text, inline_spacing=2):
        text.set_path_effects([withStroke(linewidth=1.2, foreground="white")])


def _draw_holes(record: PlaneLosses, loss: np.ma.MaskedArray, ax: Axes) -> None:
    pending, hidden = np.asarray(record.status) == 0, np.ma.getmaskarray(loss)
    if not hidden.any():
        return
    rows, cells = int(pending.sum()), int(hidden[:, ~pending].sum())
    lost = [f"{rows} of {pending.size} rows pending"] if rows else []
    lost += [f"{cells} of {hidden.size} cells not finite"] if cells else []
    # Under the contours: it shows exactly where they leave the plane uncovered.
    corner, width, height = (record.alpha.min(), record.beta.min()), np.ptp(record.alpha), np.ptp(record.beta)
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": GREY, "hatch": "/////", "linewidth": 0, "zorder": 0}
    ax.add_patch(Rectangle(corner, width, height, label=", ".join(lost), **look))
