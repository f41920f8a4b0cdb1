"""Curvature on planes: how convex the loss is around each point, and along axes with and without kinks."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sharpness.errors import ShapeError
from sharpness.journal import PENDING
from sharpness.records import AxisCurvature, ConvexityMap, axis_label
from sharpness.render.maps import Surface, cell_edges, draw_holes, on_grid, set_map_axes
from sharpness.render.style import BLACK, LOOKS, SMALL, number_text, policy_text, pooled, set_caption, set_scale

RATIOS = colormaps["YlOrBr"]  # the less convex, the darker
LEAST = 1e-4  # of the largest ratio; below, a single point with λmin = 0 would take most colours
BESIDE = 1.25  # how far from the curves, as a factor of the step, their difference is shown


def draw_convexity(record: ConvexityMap, ax: Axes, family: Sequence[ConvexityMap]) -> list[Axes]:
    """|λmin / λmax| by colour (Li et al. 2018, Figure 7), and the sign of λmin where it is not negative."""
    surface, (low, high) = convexity(record), ratio_limits(family)
    edges = cell_edges(surface.alpha), cell_edges(surface.beta)
    ax.pcolormesh(*edges, surface.values.clip(low).T, cmap=RATIOS, norm=LogNorm(low, high), rasterized=True)
    failed = ~np.ma.getmaskarray(surface.values) & ~on_grid(record, np.asarray(record.converged, bool)).values.data
    for row, column in np.argwhere(failed):
        (left, right), (bottom, top) = edges[0][row : row + 2], edges[1][column : column + 2]
        look: dict[str, Any] = {"fill": False, "linewidth": 0, "hatch": "xxxxx", "label": "not converged"}
        ax.add_patch(Rectangle((left, bottom), right - left, top - bottom, **look))
    draw_holes(ax, surface, _hole_text(record), by_cells=True)
    _mark_signs(record, ax)
    labels = axis_label(record, "alpha"), axis_label(record, "beta")
    set_map_axes(ax, surface, labels, convexity_notes(record), by_cells=True)
    return [ax]


def add_ratio_bar(figure: Figure, axes: Sequence[Axes], family: Sequence[ConvexityMap]) -> None:
    """One colour bar for all maps of a figure."""
    low, high = ratio_limits(family)
    ticks = np.unique([float(f"{ratio:.1e}") for ratio in np.geomspace(low, high, 6)])
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    bar = figure.colorbar(ScalarMappable(LogNorm(low, high), RATIOS), ax=list(axes), ticks=ticks, aspect=30, pad=0.02)
    bar.set_label("|λmin / λmax|")
    bar.ax.set_yticklabels([number_text(tick) for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_linewidth(0.5)


def convexity(record: ConvexityMap) -> Surface:
    """|λmin / λmax|, masked where pending or not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(record.smallest / record.largest)
    return on_grid(record, np.ma.masked_where(~np.isfinite(ratio) | (record.status == PENDING), ratio))


def ratio_limits(family: Sequence[ConvexityMap]) -> tuple[float, float]:
    """The ends of the colours: the ratios of all maps, four decades at most."""
    ratios = pooled(convexity(record).values for record in family)
    ratios = ratios[ratios > 0]
    low, high = (ratios.min(), ratios.max()) if ratios.size else (1.0, 1.0)
    low, high = (low, high) if high > 1.1 * low else (low / 1.1, high * 1.1)
    return float(max(low, LEAST * high)), float(high)


def convexity_notes(record: ConvexityMap) -> Iterator[str]:
    """How to read the signs, how exact the eigenvalues are, and under which policy they hold."""
    known = (record.status != PENDING) & np.isfinite(record.residual)
    failed = int((known & ~np.asarray(record.converged, bool)).sum())
    yield "unmarked: λmin < 0"
    yield f"residuals ≤ {number_text(np.max(record.residual, where=known, initial=0.0))}" if known.any() else ""
    yield f"{failed} of {known.sum()} points not converged to {number_text(record.tolerance)}" if failed else ""
    yield policy_text(record.batchnorm)


def _mark_signs(record: ConvexityMap, ax: Axes) -> None:
    """Which points have λmin > 0, and where its residual leaves the sign open."""
    alpha, beta = np.meshgrid(record.alpha, record.beta, indexing="ij")
    known = (record.status != PENDING) & np.isfinite(record.smallest)
    certain = np.abs(record.smallest) > record.residual
    signs = (
        (known & certain & (record.smallest > 0), "+", "λmin > 0"),
        (known & ~certain, ".", "|λmin| ≤ residual"),
    )
    size = min(4.0, 90 / max(record.alpha.size, record.beta.size))
    for where, marker, label in signs:
        if where.any():
            ax.plot(alpha[where], beta[where], marker, color=BLACK, markersize=size, markeredgewidth=0.6, label=label)


def _hole_text(record: ConvexityMap) -> str:
    pending, total = int((record.status == PENDING).sum()), record.status.size
    lost = int(np.ma.count_masked(convexity(record).values)) - pending
    counts = ((pending, "pending"), (lost, "not finite"))
    return ", ".join(f"{count} of {total} points {what}" for count, what in counts if count)


def draw_axis_curvature(record: AxisCurvature, ax: Axes, family: Sequence[AxisCurvature]) -> list[Axes]:
    """Second differences against the step, with vᵀHv as a line, for each direction; their difference as a bar."""
    if record.axis.size > len(LOOKS):
        raise ShapeError(
            f"expected at most {len(LOOKS)} directions, as many as there are colours; got {record.axis.size}"
        )
    smallest = int(np.argmin(record.step))
    rows = zip(record.axis, record.second_difference, record.product, strict=True)
    for number, ((name, values, product), (color, marker, _)) in enumerate(zip(rows, LOOKS, strict=False)):
        look: dict[str, Any] = {"marker": marker, "markersize": 3, "color": color}
        ax.plot(record.step, values, label=f"second difference, {name}", **look)
        ax.axhline(product, color=color, linestyle="--", linewidth=0.9, label=f"vᵀHv, {name}")
        beside = record.step[smallest] / BESIDE ** (number + 1)
        ax.plot([beside, beside], [product, values[smallest]], "_-", color=color, linewidth=0.6, label="_difference")
    set_scale(ax, "x", record.step, beyond=1)
    set_scale(ax, "y", pooled(values for member in family for values in (member.second_difference, member.product)))
    ax.set(xlabel=axis_label(record, "step"), ylabel="curvature (nat)")
    differences = record.second_difference[:, smallest] - record.product
    set_caption(
        ax,
        f"bars: difference at the smallest h, {number_text(record.step[smallest])}: {_by_axis(record, differences)}",
        f"gᵀv: {_by_axis(record, record.slope)}",
        f"‖v‖: {_by_axis(record, record.length)}",
        policy_text(record.batchnorm),
    )
    return [ax]


def _by_axis(record: AxisCurvature, values: np.ndarray) -> str:
    return ", ".join(f"{number_text(value)} ({name})" for name, value in zip(record.axis, values, strict=True))
