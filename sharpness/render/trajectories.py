"""ε-sharpness along training, against the training loss that was reached."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sharpness.records import Comparison, Trajectory, axis_label
from sharpness.render.style import (
    BLUE,
    GREEN,
    VERMILLION,
    holes,
    number_text,
    policy_text,
    pooled,
    set_caption,
    set_scale,
)


def draw_trajectory(record: Trajectory, ax: Axes, family: Sequence[Trajectory]) -> list[Axes]:
    """ε-sharpness by both maximisers and its first-order part against the training loss, large losses on the left."""
    looks = (
        ("sharpness", BLUE, "o", "-", "L-BFGS-B"),
        ("stronger", VERMILLION, "s", "--", "sign ascent"),
        ("first_order", GREEN, "^", ":", "first-order part"),
    )
    for name, color, marker, dash, label in looks:
        draw_descent(record, ax, name, color=color, marker=marker, linestyle=dash, label=label)
    set_descent_axes(ax, family)
    set_caption(ax, *descent_notes(record))
    return [ax]


def draw_descent(record: Trajectory, ax: Axes, name: str, **look: Any) -> None:
    """One measure of a trajectory against the training loss, in the order of training; its end is marked."""
    loss, values = train_loss(record), holes(getattr(record, name), record.status)
    ax.plot(loss, values, markersize=3, linewidth=0.9, markeredgewidth=0.7, **look)
    ax.plot(loss[-1:], values[-1:], markersize=6, markeredgewidth=0.7, **(look | {"label": "_end"}))


def set_descent_axes(ax: Axes, family: Sequence[Trajectory]) -> None:
    """Logarithmic axes (linear where a factor of two holds everything) for all, the loss falling from left to right."""
    measures = ("sharpness", "stronger", "first_order")
    set_scale(ax, "x", pooled(train_loss(member) for member in family), beyond=2)
    values = pooled(holes(getattr(member, name), member.status) for member in family for name in measures)
    set_scale(ax, "y", values, beyond=2)
    ax.xaxis.set_inverted(True)
    ax.set(xlabel=f"train {axis_label(family[0], 'loss')}", ylabel=axis_label(Comparison, "sharpness"))


def train_loss(record: Trajectory) -> np.ma.MaskedArray:
    """The training loss of every iterate that was measured; the first data set where none is called ``train``."""
    splits = [str(split) for split in record.split]
    return holes(record.loss[splits.index("train") if "train" in splits else 0], record.status)


def descent_notes(record: Trajectory) -> list[str]:
    """The conditions of a trajectory."""
    pending = int(np.sum(np.asarray(record.status) == 0))
    return [
        "training runs from left to right",
        "large markers: the minimizer",
        f"ε = {number_text(record.epsilon)}, full space",
        f"at most {record.iterations} iterations",
        policy_text(record.batchnorm),
        f"{pending} of {record.epoch.size} iterates pending" if pending else "",
    ]
