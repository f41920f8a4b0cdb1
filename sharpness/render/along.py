"""Curvature, ε-sharpness and loss along training, one below the other against the epoch or step."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sharpness.records import Comparison, Trajectory, axis_label
from sharpness.render.layout import stacked
from sharpness.render.markers import draw_certified
from sharpness.render.style import (
    BLUE,
    CAPTION,
    GREEN,
    GREY,
    PURPLE,
    SKY,
    VERMILLION,
    count_axis,
    holes,
    number_text,
    policy_text,
    pooled,
    set_caption,
    set_scale,
)

PANEL_HEIGHT = 1.35  # inches
CAPTION_HEIGHT = 0.7
SHARPNESSES = (
    ("sharpness", BLUE, "o", "-", "L-BFGS-B"),
    ("stronger", VERMILLION, "s", "--", "sign ascent"),
    ("first_order", GREEN, "^", ":", "first-order part"),
)


def draw_along(record: Trajectory, ax: Axes, family: Sequence[Trajectory]) -> list[Axes]:
    """Four panels in the place of ``ax``, one below the other.

    Eigenvalues with their residuals, hollow where not certified, and the edge of stability where the learning rate is
    known; the trace with its standard error; ε-sharpness; the losses.
    """
    panels = stacked(ax, len(PANELS))
    for draw_panel, panel in zip(PANELS, panels, strict=True):
        draw_panel(record, panel, family)
        entries, _ = panel.get_legend_handles_labels()
        if len(entries) > 1:
            panel.legend(
                loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=len(entries), fontsize=CAPTION,
                handlelength=2, columnspacing=1,
            )  # fmt: skip
    set_scale(ax, "x", pooled(member.epoch for member in family))
    if ax.get_xscale() == "linear":
        count_axis(ax)
    panels[-1].set_xlabel(counted_by(record))
    set_caption(panels[-1], *_notes(record))
    return panels


def along_height() -> float:
    """Of a figure of one row of trajectories, in inches."""
    return len(PANELS) * PANEL_HEIGHT + CAPTION_HEIGHT


def counted_by(record: Trajectory) -> str:
    """What the horizontal axis of a trajectory counts, in words."""
    if record.counts != "file":
        return record.counts
    named = "names" in record.conditions.get("numbers", "")
    return "number in the name of the checkpoint" if named else "checkpoint, in the order given"


def _draw_eigenvalues(record: Trajectory, ax: Axes, family: Sequence[Trajectory]) -> None:
    for found in filter(None, [record.curvature]):
        columns = zip(found.eigenvalues, found.residuals, found.converged, strict=True)
        names = ["λ1", f"λ2 to λ{len(found.eigenvalues)}".replace("λ2 to λ2", "λ2")]
        for row, (value, residual, converged) in enumerate(columns):
            values, color = holes(value, record.status), SKY if row else BLUE
            ax.plot(record.epoch, values, color=color, linewidth=0.6 if row else 0.9)
            known, name = ~np.ma.getmaskarray(values), names[row] if row < 2 else f"_λ{row + 1}"
            certificate = residual[known], converged[known]
            draw_certified(ax, record.epoch[known], values[known], *certificate, color=color, marker="o", label=name)
        ax.set_ylabel("λmax" if len(found.eigenvalues) == 1 else axis_label(record, "eigenvalues"))
    if record.edge is not None:
        ax.plot(record.epoch, record.edge, color=GREY, linestyle="--", linewidth=0.8, label="edge of stability")
    edges = [member.edge for member in family if member.edge is not None]
    set_scale(ax, "y", pooled([*_all(family, "eigenvalues"), *edges]), beyond=20)


def _draw_trace(record: Trajectory, ax: Axes, family: Sequence[Trajectory]) -> None:
    for found in filter(None, [record.curvature]):
        values, errors = holes(found.trace, record.status), np.nan_to_num(found.trace_error)
        look: dict[str, Any] = {"markersize": 3, "linewidth": 0.9, "elinewidth": 0.7, "capthick": 0.7}
        ax.errorbar(record.epoch, values, yerr=errors, fmt="D-", color=PURPLE, **look)
    set_scale(ax, "y", pooled(_all(family, "trace")), beyond=20)
    ax.set_ylabel("trace ± s.e.")


def _all(family: Sequence[Trajectory], name: str) -> list[np.ndarray]:
    """One measure of every trajectory."""
    return [holes(getattr(member, name), member.status) for member in family]


def _draw_sharpness(record: Trajectory, ax: Axes, family: Sequence[Trajectory]) -> None:
    for name, color, marker, dash, label in SHARPNESSES:
        look: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dash, "label": label}
        values = holes(getattr(record, name), record.status)
        ax.plot(record.epoch, values, markersize=3, linewidth=0.9, markeredgewidth=0.7, **look)
    set_scale(ax, "y", pooled(part for name, *_ in SHARPNESSES for part in _all(family, name)), beyond=20)
    ax.set_ylabel(axis_label(Comparison, "sharpness"))


def _draw_losses(record: Trajectory, ax: Axes, family: Sequence[Trajectory]) -> None:
    for split, loss, dash in zip(record.split, record.loss, ("-", "--", ":", "-.") * record.split.size, strict=False):
        values = holes(loss, record.status)
        ax.plot(record.epoch, values, ".", color=BLUE, linestyle=dash, markersize=4, linewidth=0.9, label=str(split))
    set_scale(ax, "y", pooled(_all(family, "loss")), beyond=20)
    ax.set_ylabel(axis_label(record, "loss"))


PANELS: tuple[Callable[[Trajectory, Axes, Sequence[Trajectory]], None], ...] = (
    _draw_eigenvalues,
    _draw_trace,
    _draw_sharpness,
    _draw_losses,
)


def _notes(record: Trajectory) -> list[str]:
    """The conditions of a trajectory."""
    known, status = record.conditions, np.asarray(record.status)
    pending, lost = int(np.sum(status == 0)), int(np.sum(status == 2))
    curvature = known.get("curvature", {}).get("batchnorm")
    same = curvature == record.batchnorm
    return [
        f"bars of eigenvalues: residuals, tolerance {number_text(known['tolerance'])}" if "tolerance" in known else "",
        f"traces: {known['probes']} vectors, the same for all" if "probes" in known else "",
        f"ε = {number_text(record.epsilon)}, full space, at most {record.iterations} iterations",
        policy_text(record.batchnorm) if same else "",
        "" if same or not policy_text(curvature) else f"{policy_text(curvature)} for eigenvalues and trace",
        "" if same or not policy_text(record.batchnorm) else f"{policy_text(record.batchnorm)} for ε-sharpness",
        f"curvature and ε-sharpness on {known['measured_on']}" if "measured_on" in known else "",
        f"over {', '.join(known['over'])} alone" if known.get("over") else "",
        f"{pending} of {record.epoch.size} checkpoints pending" if pending else "",
        f"not finite at {lost} of {record.epoch.size} checkpoints" if lost else "",
    ]
