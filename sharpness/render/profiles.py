"""Loss along many lines from one point: what is usual among directions, and how far single ones are from it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sharpness.records import ProfileLosses, axis_label
from sharpness.render.curves import colour_axis, dashes_of, point_notes
from sharpness.render.style import BLUE, GREY, VERMILLION, holes, pooled, set_caption, set_scale

TAILS = (0.1, 0.5, 0.9)
PALE = "#BFBFBF"


def draw_profiles(record: ProfileLosses, ax: Axes, family: Sequence[ProfileLosses]) -> list[Axes]:
    """Each line thin, at every α the median and the 10–90 % band of the finite losses; medians of accuracy."""
    dashes = dashes_of(family)
    for split, losses in zip(map(str, record.split), holes(record.loss, record.status), strict=True):
        ax.plot(record.alpha, losses.T, color=PALE, linewidth=0.4, linestyle=dashes[split], label="_direction")
        low, middle, high = quantiles(losses)
        ax.fill_between(record.alpha, low, high, color=BLUE, alpha=0.25, linewidth=0, label=f"_{split} band")
        ax.plot(record.alpha, middle, color=BLUE, linestyle=dashes[split], linewidth=1.6, label=f"{split} loss")
    set_scale(ax, "y", pooled(holes(member.loss, member.status) for member in family))
    ax.set_xlabel(axis_label(record, "alpha"))
    ax.axvline(0, color=GREY, linewidth=0.5, zorder=0)
    colour_axis(ax, record, "loss", BLUE)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    lines = f"grey: {record.direction.size} directions, {record.directions}"
    set_caption(ax, lines, "thick: medians", "bands: 10–90 %", *point_notes(record), width=56)
    return [ax, *_draw_accuracy(record, ax, family)]


def quantiles(values: np.ma.MaskedArray) -> np.ndarray:
    """10 %, 50 % and 90 % over the directions at each α, of shape (3, A), NaN where no direction has a value."""
    columns = [column.compressed() for column in values.T]
    return np.array([np.quantile(column, TAILS) if column.size else np.full(3, np.nan) for column in columns]).T


def _draw_accuracy(record: ProfileLosses, ax: Axes, family: Sequence[ProfileLosses]) -> list[Axes]:
    """The medians on an axis of their own; none where accuracy has no meaning."""
    if pooled(member.accuracy for member in family).size == 0:
        return []
    right, dashes = ax.twinx(), dashes_of(family)
    for split, shares in zip(map(str, record.split), holes(record.accuracy, record.status), strict=True):
        _, middle, _ = quantiles(shares)
        right.plot(record.alpha, middle, color=VERMILLION, linestyle=dashes[split], label=f"{split} accuracy")
    colour_axis(right, record, "accuracy", VERMILLION)
    right.set_ylim(-0.02, 1.02)
    return [right]
