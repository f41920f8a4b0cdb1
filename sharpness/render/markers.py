"""Results that are drawn as single points: eigenvalues, sharpness by start, times by repeat."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sharpness.records import Comparison, EigenPairs, EpsilonSharpness, ProductCost, axis_label
from sharpness.render.style import (
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    count_axis,
    number_text,
    policy_text,
    pooled,
    set_caption,
    set_scale,
)


def draw_eigenpairs(record: EigenPairs, ax: Axes, family: Sequence[EigenPairs]) -> list[Axes]:
    """Eigenvalues by number with their residuals as error bars; those that did not converge are hollow."""
    number = np.arange(1, record.eigenvalues.size + 1)
    draw_certified(ax, number, record.eigenvalues, record.residuals, record.converged, color=BLUE, marker="o")
    if np.min(record.eigenvalues, initial=0) < 0:
        ax.axhline(0, color=GREY, linewidth=0.5, zorder=0)
    set_scale(ax, "y", pooled(member.eigenvalues for member in family))
    ax.set(xlabel=axis_label(Comparison, "pair"), ylabel=axis_label(record, "eigenvalues"))
    count_axis(ax)
    failed = int(np.sum(np.asarray(record.converged) == 0))
    set_caption(
        ax,
        f"bars: {axis_label(record, 'residuals')}, tolerance {number_text(record.tolerance)}",
        policy_text(record.conditions.get("batchnorm")),
        f"{failed} of {number.size} not converged" if failed else "",
        _probe_text(record),
    )
    return [ax]


def _probe_text(record: EigenPairs) -> str:
    if not record.probe_passed:
        return "the probe found a missed pair"
    return f"missed pairs: probability {number_text(record.probe_risk)} at most" if record.probe_risk < 1 else ""


def draw_certified(
    ax: Axes,
    x: Any,
    values: Any,
    residuals: Any,
    converged: Any,
    *,
    color: str,
    marker: str,
    label: str = "converged",
    horizontal: bool = False,
) -> None:
    """Values with residuals as error bars, filled where converged and hollow, named so, where not.

    ``horizontal`` puts the values along the horizontal axis and ``x`` along the other.
    """
    x, values, residuals = (np.asarray(array, dtype=float) for array in (x, values, residuals))
    converged = np.asarray(converged, dtype=bool)
    hollow = "not converged" if label == "converged" else f"{label}, not converged"
    for where, face, name in ((converged, color, label), (~converged & np.isfinite(values), "white", hollow)):
        if where.any():
            place = {"x": x[where], "y": values[where], "yerr": residuals[where]}
            if horizontal:
                place = {"x": values[where], "y": x[where], "xerr": residuals[where]}
            ax.errorbar(
                **place, fmt=marker, color=color, markerfacecolor=face, label=name, markersize=3.5, elinewidth=0.7,
                capthick=0.7,
            )  # fmt: skip


def draw_epsilon_sharpness(record: EpsilonSharpness, ax: Axes, family: Sequence[EpsilonSharpness]) -> list[Axes]:
    """ε-sharpness from every start by both maximisers, with the first-order part as a line."""
    ax.plot(record.restart, record.restart_sharpness, "o", color=BLUE, label="L-BFGS-B")
    ax.plot(record.restart, record.restart_stronger, "s", color=VERMILLION, label="sign ascent")
    ax.axhline(record.first_order, color=GREEN, linestyle="--", label="first-order part")
    set_scale(ax, "y", pooled(v for m in family for v in (m.restart_sharpness, m.restart_stronger, m.first_order)))
    ax.set(xlabel=axis_label(record, "restart"), ylabel=axis_label(Comparison, "sharpness"))
    count_axis(ax)
    set_caption(
        ax,
        f"ε = {number_text(record.epsilon)}",
        f"random subspace of {record.subspace} dimensions" if record.subspace else "full space",
        f"at most {record.iterations} iterations",
        f"‖g‖ = {number_text(record.gradient_norm)}",
        policy_text(record.conditions.get("batchnorm")),
    )
    return [ax]


def draw_product_cost(record: ProductCost, ax: Axes, family: Sequence[ProductCost]) -> list[Axes]:
    """Times of gradients and products by repeat, with the ratio of their medians in the title."""
    times = (
        ("gradient_seconds", "o", BLUE, "gradient"),
        ("product_seconds", "s", VERMILLION, "Hessian-vector product"),
    )
    for name, marker, color, label in times:
        ax.plot(record.repeat, getattr(record, name), marker, color=color, label=label)
    set_scale(ax, "y", pooled(getattr(member, name) for member in family for name, *_ in times))
    ax.set(xlabel=axis_label(record, "repeat"), ylabel="time (s)", title=f"{record.name}: {_ratio_text(record)}")
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)  # the ratio of two times is read off as a ratio of heights
    count_axis(ax)
    set_caption(
        ax,
        f"n = {record.parameters:,}, N = {record.examples:,}",
        f"set-up {number_text(record.setup_seconds)} s, {number_text(record.retained_bytes / 2**20)} MiB",
        f"{axis_label(record, 'relative_error')}: {number_text(record.relative_error)}",
    )
    return [ax]


def _ratio_text(record: ProductCost) -> str:
    ratio = np.median(record.product_seconds) / np.median(record.gradient_seconds)
    return f"a product takes {number_text(ratio)} gradients"
