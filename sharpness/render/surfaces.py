"""The loss over a plane as a surface in three dimensions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from mpl_toolkits.mplot3d import Axes3D  # type: ignore[import-untyped]
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]

from sharpness.errors import ShapeError
from sharpness.records import PlaneLosses, axis_label
from sharpness.render.layout import panel_grid
from sharpness.render.maps import Surface
from sharpness.render.planes import (
    COLOURS,
    axes_notes,
    contour_levels,
    drawn_split,
    drawn_surface,
    hole_text,
    level_norm,
    share_text,
)
from sharpness.render.style import CAPTION, GREY, SMALL, joined, number_text, policy_text, pooled, style

HEIGHT = 3.0  # inches
WIDTH = 62  # characters of a caption
VIEW = (35, -50)  # degrees: into a valley from above, along no axis
ZOOM = 0.88  # leaves room for the label of the height
DECADES = 2  # beyond which the loss stands on a logarithmic scale
MANY = 4000  # faces, beyond which vector formats hold them as pixels


def draw_surfaces(records: Mapping[str, PlaneLosses]) -> Figure:
    """Draw the train loss of planes as surfaces in three dimensions, side by side.

    All have the same limits, and the colours of the contours that ``draw_figure`` draws. The height is logarithmic
    where all losses are positive and span more than two decades. Holes stay holes; points that were left out are
    interpolated.

    Args:
        records: planes by the name that becomes the title of their panel.

    Returns:
        A figure of its own, unknown to ``pyplot``; 3.4 in wide for each panel, of which at most three stand in a row.

    Raises:
        ShapeError: no planes, or one with fewer than two points along an axis.

    Example:
        >>> figure = draw_surfaces({"SB": small_batch_plane, "LB": large_batch_plane})  # doctest: +SKIP
    """
    family = list(records.values())
    if not family or not all(isinstance(record, PlaneLosses) for record in family):
        kinds = ", ".join(sorted({type(record).__name__ for record in family})) or "none"
        raise ShapeError(f"expected planes, over which the loss is a surface; got {kinds}: use draw_figure")
    with style():
        figure, places = panel_grid(len(family), HEIGHT, projection="3d")
        surfaces = [drawn_surface(record) for record in family]
        losses = pooled(surface.values for surface in surfaces)
        logarithmic = bool(losses.size) and 0 < losses.min() < losses.max() / 10**DECADES
        for ax, (name, record), surface in zip(places, records.items(), surfaces, strict=True):
            _draw_faces(surface, ax, contour_levels(family), logarithmic)
            _set_limits(ax, family, np.log10(losses) if logarithmic else losses)
            _set_labels(ax, record, logarithmic)
            ax.set_title(name, y=0.98)
    return figure


def faces(surface: Surface) -> np.ndarray:
    """α, β and value at the corners of every cell of the grid that has them all, of shape (cells, 4, 3)."""
    alpha, beta = np.meshgrid(surface.alpha, surface.beta, indexing="ij")
    points = np.stack([alpha, beta, surface.values.filled(np.nan)], axis=-1)
    corners = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2).reshape(-1, 4, 3)
    return corners[np.isfinite(corners).all(axis=(1, 2))]


def _draw_faces(surface: Surface, ax: Axes3D, levels: np.ndarray, logarithmic: bool) -> None:
    cells = faces(surface)
    colours = COLOURS(level_norm(levels)(cells[..., 2].mean(axis=1)))
    if logarithmic:
        cells[..., 2] = np.log10(cells[..., 2])
    look: dict[str, Any] = {"edgecolors": "black", "linewidths": 0.15, "rasterized": len(cells) > MANY}
    ax.add_collection3d(Poly3DCollection(cells, facecolors=colours, **look), autolim=False)


def _set_limits(ax: Axes3D, family: Sequence[PlaneLosses], heights: np.ndarray) -> None:
    """Equal ones for the whole family."""
    limits = {name: pooled(getattr(record, name) for record in family) for name in ("alpha", "beta")}
    for set_limits, values in ((ax.set_xlim, limits["alpha"]), (ax.set_ylim, limits["beta"]), (ax.set_zlim, heights)):
        if values.size and np.ptp(values):
            set_limits(values.min(), values.max())
    ax.view_init(*VIEW)
    ax.set_box_aspect((1, 1, 0.75), zoom=ZOOM)


def _set_labels(ax: Axes3D, record: PlaneLosses, logarithmic: bool) -> None:
    """Few ticks, and labels that stay close."""
    height = f"{drawn_split(record)} {axis_label(record, 'loss')}"
    ax.set(xlabel=axis_label(record, "alpha"), ylabel=axis_label(record, "beta"), zlabel=height)
    ax.xaxis.set_major_locator(MaxNLocator(4, prune="both"))  # the labels of two axes would meet in a corner
    ax.yaxis.set_major_locator(MaxNLocator(4, prune="both"))
    ax.zaxis.set_major_locator(MaxNLocator(4, integer=logarithmic))
    if logarithmic:
        ax.zaxis.set_major_formatter(FuncFormatter(lambda power, _: number_text(10**power)))
    ax.tick_params(labelsize=SMALL, pad=-1)
    ax.xaxis.labelpad, ax.yaxis.labelpad, ax.zaxis.labelpad = -4, -4, -1
    axes = axes_notes(record, labelled=False)
    notes = (*axes, hole_text(record), share_text(record), policy_text(record.batchnorm))
    look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": CAPTION, "color": GREY}
    ax.text2D(0.5, 0.03, joined(notes, WIDTH), transform=ax.transAxes, **look)
