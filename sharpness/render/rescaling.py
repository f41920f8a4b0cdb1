"""Measures of sharpness at rescaled points that compute the same function, measured and predicted."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from sharpness.records import Comparison, Rescaling, axis_label
from sharpness.render.layout import divided
from sharpness.render.style import BLUE, GREEN, ORANGE, VERMILLION, holes, number_text, pooled, set_caption, set_scale

CURVATURES = ("eigenvalue", "predicted_eigenvalue", "filter_curvature")
SHARPNESSES = ("sharpness", "stronger", "first_order", "predicted_first_order")


def draw_rescaling(record: Rescaling, ax: Axes, family: Sequence[Rescaling]) -> list[Axes]:
    """Curvatures in the left half of the place of ``ax``, which shrinks to it, and ε-sharpness in the right half."""
    left, right = divided(ax)
    _draw_curvatures(record, left)
    _draw_sharpnesses(record, right)
    for panel, names, label in (
        (left, CURVATURES, "curvature"),
        (right, SHARPNESSES, axis_label(Comparison, "sharpness")),
    ):
        set_scale(panel, "x", pooled(member.factor for member in family), beyond=0)
        values = pooled(holes(getattr(member, name), member.status) for member in family for name in names)
        set_scale(panel, "y", values, beyond=2)
        panel.set(xlabel=axis_label(record, "factor"), ylabel=label)
    change = pooled([holes(record.output_change, record.status)]).max(initial=0.0)
    pending = int(np.sum(np.asarray(record.status) == 0))
    set_caption(
        left,
        "bars: residuals",
        f"layers: {record.layers}",
        f"outputs change by at most {number_text(change)} of the largest",
        f"{pending} of {record.factor.size} points pending" if pending else "",
        width=48,
    )
    set_caption(right, f"ε = {number_text(record.epsilon)}, full space", "both maximisers: lower bounds", width=48)
    return [left, right]


def _draw_curvatures(record: Rescaling, ax: Axes) -> None:
    predicted = holes(record.predicted_eigenvalue, record.status)
    ax.plot(record.factor, predicted, "-", color=BLUE, linewidth=0.9, label="λmax, predicted")
    measured, residual = (holes(values, record.status) for values in (record.eigenvalue, record.residual))
    ax.errorbar(
        record.factor, measured, residual, fmt="o", color=BLUE, markersize=4, elinewidth=0.7,
        label="λmax, measured",
    )  # fmt: skip
    curvature = holes(record.filter_curvature, record.status)
    ax.plot(
        record.factor,
        curvature,
        "^:",
        color=GREEN,
        markersize=3,
        linewidth=0.9,
        label="along a filter-normalised direction",
    )


def _draw_sharpnesses(record: Rescaling, ax: Axes) -> None:
    looks = (
        ("stronger", "s--", VERMILLION, "ε-sharpness, sign ascent"),
        ("sharpness", "o-", BLUE, "ε-sharpness, L-BFGS-B"),
        ("predicted_first_order", "-", ORANGE, "first-order part, predicted"),
        ("first_order", "D", ORANGE, "first-order part, measured"),
    )
    for name, form, color, label in looks:
        values = holes(getattr(record, name), record.status)
        ax.plot(
            record.factor,
            values,
            form,
            color=color,
            markersize=3.5,
            linewidth=0.9,
            label=label,
        )
