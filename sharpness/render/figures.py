"""From records to figures: which drawing belongs to which record, and how panels stand side by side."""

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpness.errors import ShapeError
from sharpness.records import (
    RECORDS,
    AxisCurvature,
    Comparison,
    ConvexityMap,
    EigenPairs,
    EpsilonSharpness,
    History,
    LayerCurvature,
    LineLosses,
    PlaneLosses,
    ProductCost,
    ProfileLosses,
    Rescaling,
    SpectralDensity,
    TraceEstimate,
    Trajectory,
)
from sharpness.render.along import along_height, draw_along
from sharpness.render.comparison import comparison_height, draw_comparison
from sharpness.render.curvature import add_ratio_bar, convexity_notes, draw_axis_curvature, draw_convexity
from sharpness.render.curves import draw_history, draw_line
from sharpness.render.layers import draw_layers, layers_height
from sharpness.render.layout import label_outer, panel_grid
from sharpness.render.maps import map_height
from sharpness.render.markers import draw_eigenpairs, draw_epsilon_sharpness, draw_product_cost
from sharpness.render.planes import add_colour_bar, draw_plane, plane_notes
from sharpness.render.profiles import draw_profiles
from sharpness.render.rescaling import draw_rescaling
from sharpness.render.spectra import draw_density, draw_trace
from sharpness.render.style import COLUMN, legend_above, legend_columns, legend_entries, set_sizes, style
from sharpness.render.trajectories import draw_trajectory

TITLE_PAD = {LineLosses: 15}  # points; the names of a line's ends stand between the title and the frame
ROWS_PAD = 15  # the same, where the legend of the first row stands there
MAPS: dict[type, tuple[Any, Any]] = {  # what explains their colours, and their small print
    PlaneLosses: (add_colour_bar, plane_notes),
    ConvexityMap: (add_ratio_bar, convexity_notes),
}
PAIRED = (Comparison, Rescaling, LayerCurvature)  # drawn as two panels that divide one place
HEIGHT = 2.7  # inches
FINE = 200  # pixels per inch; at 100 long names are measured a twentieth shorter than they are printed


@singledispatch
def _draw_panel(record: Any, ax: Axes, family: Sequence[Any]) -> list[Axes]:  # noqa: ARG001
    """Draw one record with scales and levels that suit the whole family; return the axes that hold curves."""
    raise TypeError(
        f"expected a record ({', '.join(r.__name__ for r in RECORDS.values())}); got {type(record).__name__}"
    )


_draw_panel.register(History, draw_history)
_draw_panel.register(EigenPairs, draw_eigenpairs)
_draw_panel.register(LayerCurvature, draw_layers)
_draw_panel.register(EpsilonSharpness, draw_epsilon_sharpness)
_draw_panel.register(LineLosses, draw_line)
_draw_panel.register(ProfileLosses, draw_profiles)
_draw_panel.register(PlaneLosses, draw_plane)
_draw_panel.register(ConvexityMap, draw_convexity)
_draw_panel.register(AxisCurvature, draw_axis_curvature)
_draw_panel.register(SpectralDensity, draw_density)
_draw_panel.register(TraceEstimate, draw_trace)
_draw_panel.register(Comparison, draw_comparison)
_draw_panel.register(Rescaling, draw_rescaling)
_draw_panel.register(ProductCost, draw_product_cost)


@_draw_panel.register
def _draw_walk(record: Trajectory, ax: Axes, family: Sequence[Any]) -> list[Axes]:
    return (draw_along if _in_rows(family) else draw_trajectory)(record, ax, family)


def _in_rows(family: Sequence[Any]) -> bool:
    """Whether each panel divides into several, one below the other, which have legends of their own."""
    return all(isinstance(record, Trajectory) and record.curvature is not None for record in family)


def draw(record: Any, ax: Axes | None = None) -> Axes:
    """Draw one record.

    Curves of loss and accuracy (``History``, ``LineLosses``, ``ProfileLosses``), contours (``PlaneLosses``), maps of
    |λmin / λmax| (``ConvexityMap``), curvature by step (``AxisCurvature``), eigenvalues with their residuals
    (``EigenPairs``), densities and traces (``SpectralDensity``, ``TraceEstimate``), ε-sharpness by start
    (``EpsilonSharpness``) or along training (``Trajectory``), times (``ProductCost``), or two panels of eigenvalues and
    ε-sharpness: by regime (``Comparison``), by the factor of a rescaling (``Rescaling``), or of eigenvalues and norms,
    by layer (``LayerCurvature``). A ``Trajectory`` with curvature is four panels against the epoch or step:
    eigenvalues, trace, ε-sharpness and losses. Holes stay holes, and what did not converge is drawn hollow or hatched.

    Args:
        record: what a computation returned or ``load`` read.
        ax: where to draw; by default a new figure, one column (3.4 in) wide, two for those with two panels. Those
            with several panels divide the place of ``ax``, which must therefore come from ``subplots``. The legend
            stands over ``ax``; for a title as well use ``draw_figure``.

    Returns:
        The axes drawn on, the left ones where there are two; their ``figure`` can go to ``save_figure``.

    Raises:
        ShapeError: a plane has fewer than two points along an axis, a comparison more than eight regimes or a record of
            curvature more than eight directions, or ``ax`` no place to divide.
        TypeError: not a record.

    Example:
        >>> ax = draw(load("line.h5"))  # doctest: +SKIP
        >>> save_figure(ax.figure, Path("line"))  # doctest: +SKIP
    """
    if ax is None:
        return draw_figure({"": record}).axes[0]
    with style():
        set_sizes(ax)
        axes = _draw_panel(record, ax, [record])
        figure = ax.get_figure(root=True)
        if (
            isinstance(record, ConvexityMap) and figure
        ):  # contours are labelled; these colours say nothing by themselves
            add_ratio_bar(figure, axes, [record])
        apart = [[panel] for panel in axes] if isinstance(record, PAIRED) else [axes]
        for group in [] if _in_rows([record]) else apart:
            legend_above(group)
    return ax


def draw_figure(records: Mapping[str, Any]) -> Figure:
    """Draw several records of one kind side by side, so that they can be compared by eye.

    All panels have the same axes. Planes also have the same contour levels, colours and colour bar, maps of convexity
    the same colours and colour bar. Records of two panels each stand one below the other.

    Args:
        records: records of one kind by the name that becomes the title of their panel.

    Returns:
        A figure of its own, unknown to ``pyplot``; 3.4 in wide for each panel, of which at most three stand in a row.

    Raises:
        ShapeError: no records, or of several kinds, or a plane with fewer than two points along an axis.
        TypeError: not a record.

    Example:
        >>> figure = draw_figure({"SB": small_batch_plane, "LB": large_batch_plane})  # doctest: +SKIP
    """
    family = list(records.values())
    if len({type(record) for record in family}) != 1:
        kinds = ", ".join(sorted({type(record).__name__ for record in family})) or "none"
        raise ShapeError(f"expected records of one kind for one figure; got {kinds}: draw one figure for each kind")
    with style():
        figure, places = _empty_figure(family)
        panels = [_draw_panel(record, place, family) for record, place in zip(family, places, strict=True)]
        for name, (ax, *_) in zip(records, panels, strict=True):
            pad = ROWS_PAD if _in_rows(family) else TITLE_PAD.get(type(family[0]))
            ax.set_title("\n".join(part for part in (name, ax.get_title()) if part), pad=pad)
        _align(panels, family)
        _add_legend(figure, panels, family)
    return figure


def _empty_figure(family: Sequence[Any]) -> tuple[Figure, list[Axes]]:
    if isinstance(family[0], PAIRED):
        heights = [_pair_height(record) for record in family]
        named = isinstance(family[0], LayerCurvature)
        figure = Figure(figsize=(2 * COLUMN, sum(heights)), layout="constrained", dpi=FINE if named else None)
        return figure, list(figure.subplots(len(family), 1, squeeze=False, height_ratios=heights).flat)
    if type(family[0]) in MAPS:
        _, notes = MAPS[type(family[0])]
        # "compressed" is "constrained" without the gaps that equal aspects leave.
        return panel_grid(len(family), map_height(family, map(notes, family)), layout="compressed")
    return panel_grid(len(family), along_height() if _in_rows(family) else HEIGHT)


def _pair_height(record: Any) -> float:
    if isinstance(record, Comparison):
        return comparison_height(record)
    return layers_height(record) if isinstance(record, LayerCurvature) else HEIGHT


def _align(panels: Sequence[Sequence[Axes]], family: Sequence[Any]) -> None:
    """Equal limits for axes that correspond, and labels only at the outer ones."""
    for index, column in enumerate(zip(*panels, strict=True)):
        # a y axis that lists cases, or layers, lists others in each record
        listing = isinstance(family[0], LayerCurvature) or (isinstance(family[0], Comparison) and index == 1)
        for name in "x" if listing else "xy":
            limits = [limit for ax in column for limit in getattr(ax, f"get_{name}bound")()]
            for ax in column:
                getattr(ax, f"set_{name}bound")(min(limits), max(limits))
    if not isinstance(family[0], PAIRED):
        label_outer(panels)


def _add_legend(figure: Figure, panels: Sequence[Sequence[Axes]], family: Sequence[Any]) -> None:
    if type(family[0]) in MAPS:
        add_bar, _ = MAPS[type(family[0])]
        add_bar(figure, [ax for axes in panels for ax in axes], family)
    handles, labels = legend_entries(ax for axes in panels for ax in axes)
    if handles and not _in_rows(family):
        columns = legend_columns(labels, figure.get_figwidth())
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
