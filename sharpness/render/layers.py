"""Curvature layer by layer: eigenvalues beside norms, a line for each layer."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes

from sharpness.journal import NOT_FINITE, PENDING
from sharpness.records import LayerCurvature, axis_label
from sharpness.render.layout import divided
from sharpness.render.markers import draw_certified
from sharpness.render.style import (
    BLUE,
    CAPTION,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    holes,
    number_text,
    policy_text,
    pooled,
    set_caption,
    set_scale,
)

ROW = 0.13  # inches
TICKS = 5  # about as many as fit side by side where there are both signs
LONGEST = 40  # characters of a layer's name; longer ones lose their middle


def draw_layers(record: LayerCurvature, ax: Axes, family: Sequence[LayerCurvature]) -> list[Axes]:
    """λmax and trace / n in the left half of the place of ``ax``, which shrinks to it, and norms in the right half."""
    left, right = divided(ax)
    rows = np.arange(record.layer.size)
    values = holes(record.eigenvalue, record.status).filled(np.nan)
    draw_certified(
        left, rows, values, record.residual, record.converged, color=BLUE, marker="o", label="λmax", horizontal=True
    )
    error = np.asarray(record.standard_error) / record.parameters
    left.errorbar(
        holes(record.mean_eigenvalue, record.status), rows, xerr=error, fmt="s", color=VERMILLION, markersize=3,
        elinewidth=0.7, capthick=0.7, label="trace / n",
    )  # fmt: skip
    for name, marker, color in (("weight_norm", "^", GREEN), ("gradient_norm", "D", ORANGE)):
        points = holes(getattr(record, name), record.status)
        right.plot(points, rows, marker, color=color, markersize=3, label=axis_label(record, name))
    for panel, names, label in (
        (left, ("eigenvalue", "mean_eigenvalue"), "eigenvalues of the layer's block"),
        (right, ("weight_norm", "gradient_norm"), "norm over the layer"),
    ):
        set_scale(panel, "x", pooled(holes(getattr(m, name), m.status) for m in family for name in names), beyond=2)
        if panel.get_xscale() == "symlog":
            panel.locator_params("x", numticks=TICKS)
        panel.set_xlabel(label)
        panel.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.4)
        _name_layers(panel, record)
    right.tick_params("y", labelleft=False)
    set_caption(left, *_notes(record), width=48)
    set_caption(right, policy_text(record.conditions.get("batchnorm")), width=48)
    return [left, right]


def layers_height(record: LayerCurvature) -> float:
    """Height in inches that leaves every layer a legible line."""
    return max(2.6, 1.1 + ROW * record.layer.size)


def short(name: str) -> str:
    """A name that fits beside the panels.

    >>> short("base_model.model.transformer.h.11.attn.c_attn.lora_A.default")
    'base_model.mo…attn.c_attn.lora_A.default'
    """
    third = LONGEST // 3
    return name if len(name) <= LONGEST else f"{name[:third]}…{name[third + 1 - LONGEST :]}"


def _name_layers(ax: Axes, record: LayerCurvature) -> None:
    ax.set_ylim(max(record.layer.size, 1) - 0.5, -0.5)
    ax.tick_params("y", length=0, labelsize=CAPTION)
    ax.set_yticks(range(record.layer.size), [short(name) for name in record.titles])


def _notes(record: LayerCurvature) -> Iterator[str]:
    """What the bars are, and what was not measured as it should be."""
    status = np.asarray(record.status)
    known = (status != PENDING) & (status != NOT_FINITE)
    failed = int((known & ~np.asarray(record.converged, bool)).sum())
    yield "trace / n is the mean eigenvalue"
    yield f"bars: residual of λmax, standard error over {record.probes} probes"
    yield f"{failed} of {known.sum()} layers not converged to {number_text(record.tolerance)}" if failed else ""
    for count, what in ((int((status == PENDING).sum()), "pending"), (int((status == NOT_FINITE).sum()), "not finite")):
        yield f"{count} of {status.size} layers {what}" if count else ""
