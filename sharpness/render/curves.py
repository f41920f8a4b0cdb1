"""Loss and accuracy along one coordinate: a training run, or a line through parameter space."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sharpness.errors import NonFiniteError, ShapeError
from sharpness.records import History, LineLosses, axis_label
from sharpness.render.style import (
    BLUE,
    GREY,
    SMALL,
    VERMILLION,
    count_axis,
    holes,
    number_text,
    policy_text,
    pooled,
    set_caption,
    set_scale,
)
from sharpness.shape import barrier

DASHES: dict[str, Any] = {"train": "-", "test": "--"}
FURTHER_DASHES: list[Any] = [":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3))]


def draw_history(record: History, ax: Axes, family: Sequence[History]) -> list[Axes]:
    """Loss (left) and accuracy (right) against the epoch."""
    axes = _draw_curves(record, ax, family, "epoch")
    count_axis(ax)
    stopped = f"stopped: {record.stopped}" if record.stopped else ""
    set_caption(ax, f"{record.batch_size} {axis_label(record, 'batch_size')}", stopped, *point_notes(record))
    return axes


def draw_line(record: LineLosses, ax: Axes, family: Sequence[LineLosses]) -> list[Axes]:
    """Loss (left) and accuracy (right) against α, with the two ends of the line marked."""
    axes = _draw_curves(record, ax, family, "alpha")
    ax.set_xlabel(alpha_label(record))
    _mark_ends(record, ax)
    set_caption(ax, *point_notes(record), barrier_text(record))
    return axes


def alpha_label(record: LineLosses) -> str:
    """The label of the horizontal axis, with the path where it is not the straight line."""
    straight = next(item.default for item in dataclasses.fields(LineLosses) if item.name == "path")
    label = axis_label(record, "alpha")
    return label if record.path == straight else f"{label};  {axis_label(record, 'path')} = {record.path}"


def barrier_text(record: LineLosses) -> str:
    """How far the train loss rises between the ends; nothing where both ends, or points between them, are missing."""
    ends = record.conditions.get("ends") or (record.start, record.end)
    if not (record.end and all(ends)):  # a profile, whose point at α = 1 is none to be reached
        return ""
    try:
        height, alpha = barrier(record)
    except (ShapeError, NonFiniteError):
        return ""
    return f"barrier {number_text(height)} nat at α = {number_text(alpha)}" if height > 0 else "no barrier"


def _draw_curves(record: Any, ax: Axes, family: Sequence[Any], along: str) -> list[Axes]:
    dashes = dashes_of(family)
    _draw_variable(record, ax, along, "loss", dashes, BLUE)
    set_scale(ax, "y", pooled(holes(member.loss, member.status) for member in family))
    ax.set_xlabel(axis_label(record, along))
    place = np.asarray(getattr(record, along), dtype=float)
    ax.update_datalim(np.column_stack([place, place]), updatey=False)  # what is pending keeps its room
    if pooled(member.accuracy for member in family).size == 0:  # not a classification
        return [ax]
    right = ax.twinx()
    _draw_variable(record, right, along, "accuracy", dashes, VERMILLION)
    right.set_ylim(-0.02, 1.02)
    return [ax, right]


def _draw_variable(record: Any, ax: Axes, along: str, name: str, dashes: dict[str, Any], color: str) -> None:
    values = holes(getattr(record, name), record.status)
    # Circles tell accuracy from loss in black and white, where the dashes already tell train from test.
    marker, every = ("o", max(1, values.shape[1] // 12)) if name == "accuracy" else (".", 0)
    for split, row in zip(record.split, values, strict=True):
        marked = _marked(row, every)
        ax.plot(
            getattr(record, along), row, color=color, linestyle=dashes[str(split)], label=f"{split} {name}",
            marker=marker if marked else "", markevery=marked, markersize=2.5, markeredgewidth=0.7,
            markerfacecolor="white",
        )  # fmt: skip
    colour_axis(ax, record, name, color)


def colour_axis(ax: Axes, record: Any, name: str, color: str) -> None:
    """Label and ticks in the colour of the curves that are measured there."""
    ax.set_ylabel(axis_label(record, name), color=color)
    ax.tick_params("y", which="both", colors=color)


def _marked(row: np.ma.MaskedArray, every: int) -> list[int]:
    """Which points carry a marker: every so many, and those between two holes, which no line would show."""
    hidden = np.pad(np.ma.getmaskarray(row), 1, constant_values=True)
    alone = np.flatnonzero(~hidden[1:-1] & hidden[:-2] & hidden[2:]).tolist()
    return sorted({*alone, *(range(0, row.size, every) if every else ())})


def dashes_of(family: Sequence[Any]) -> dict[str, Any]:
    """The dash of each data set of a family."""
    others = [name for name in dict.fromkeys(str(s) for member in family for s in member.split) if name not in DASHES]
    return DASHES | {name: FURTHER_DASHES[index % len(FURTHER_DASHES)] for index, name in enumerate(others)}


def _mark_ends(record: LineLosses, ax: Axes) -> None:
    ends = record.conditions.get("ends")
    for alpha, name in zip((0.0, 1.0), ends or ("", ""), strict=True):
        place_is_known = name or not ends  # a profile names its minimizer alone: at α = 1 there is none
        if place_is_known and record.alpha.min() <= alpha <= record.alpha.max():
            ax.axvline(alpha, color=GREY, linewidth=0.5, zorder=0)
            ax.annotate(
                str(name), (alpha, 1), (0, 1.5), xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="center", va="bottom", fontsize=SMALL, color=GREY,
            )  # fmt: skip


def point_notes(record: Any) -> list[str]:
    """The batch-norm policy, and how many points are pending or not finite."""
    pending = int(np.sum(np.asarray(record.status) == 0))
    lost = int(np.sum((~np.isfinite(record.loss)).any(axis=0) & (np.asarray(record.status) != 0)))
    total = np.size(record.status)
    return [
        policy_text(getattr(record, "batchnorm", None) or record.conditions.get("batchnorm")),
        f"{pending} of {total} points pending" if pending else "",
        f"loss not finite at {lost} of {total} points" if lost else "",
    ]
