"""Estimates over the whole spectrum: density and trace."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from sharpness.records import SpectralDensity, TraceEstimate, axis_label
from sharpness.render.style import BLUE, GREY, count_axis, number_text, policy_text, set_caption, set_scale

LEAST = 1e-6  # of the largest density; below lies the tail of the smoothing Gaussian


def draw_density(record: SpectralDensity, ax: Axes, family: Sequence[SpectralDensity]) -> list[Axes]:
    """The density on a logarithmic axis, on which single eigenvalues show, with a band of one standard error."""
    ax.plot(record.eigenvalue, record.density, color=BLUE, label="density")
    if np.isfinite(record.standard_error).all():
        around = (record.density + sign * record.standard_error for sign in (-1, 1))
        ax.fill_between(record.eigenvalue, *around, color=BLUE, alpha=0.25, linewidth=0, label="± standard error")
    top = max(member.density.max() for member in family)
    set_scale(ax, "y", np.array([LEAST * top, top]))
    ax.set_ylim(LEAST * top, 2 * top)
    ax.set(xlabel=axis_label(record, "eigenvalue"), ylabel=axis_label(record, "density"))
    probes, steps = record.nodes.shape
    set_caption(
        ax,
        f"{probes} probes of {steps} steps, width {number_text(record.width)}",
        policy_text(record.conditions.get("batchnorm")),
    )
    return [ax]


def draw_trace(record: TraceEstimate, ax: Axes, family: Sequence[TraceEstimate]) -> list[Axes]:  # noqa: ARG001
    """The samples, their mean and its standard error."""
    ax.plot(record.sample, record.samples, ".", color=BLUE, label=axis_label(record, "samples"))
    ax.axhline(record.value, color=GREY, linewidth=0.8, label="mean")
    ax.axhspan(
        record.value - record.standard_error,
        record.value + record.standard_error,
        color=GREY,
        alpha=0.25,
        linewidth=0,
        label="± standard error",
    )
    ax.set(xlabel=axis_label(record, "sample"), ylabel=axis_label(record, "value"))
    count_axis(ax)
    set_caption(ax, policy_text(record.conditions.get("batchnorm")))
    return [ax]
