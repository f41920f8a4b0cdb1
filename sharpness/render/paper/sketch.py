"""Figure 1: what flat and sharp minima are."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpness.records import LineLosses
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.runs import first_record, no_run
from sharpness.render.style import BLUE, COLUMN, GREY, SMALL, VERMILLION, holes, set_caption, style

RECIPE = "keskar-sketch"


def draw_keskar_1(runs: Path) -> Drawing:
    """The sketch of a flat and a sharp minimum, seen by two functions that differ a little."""
    record = first_record(runs / RECIPE / "sketch.h5")
    if record is None:
        raise no_run([RECIPE], runs)
    with style():
        figure = Figure(figsize=(COLUMN, 2.2), layout="constrained")
        ax = figure.subplots()
        looks = zip(record.split, record.loss, ("-", "--", ":", "-."), (BLUE, VERMILLION, GREY, GREY), strict=False)
        for name, values, dash, color in looks:
            ax.plot(record.alpha, holes(values, record.status), linestyle=dash, color=color, label=str(name))
        for minimum in ("flat", "sharp"):
            _name_minimum(record, ax, minimum)
        ax.set(xticks=[], yticks=[], xlabel="parameters", ylabel="value of the function")
        set_caption(ax, "a sketch: no network, no data")
        figure.legend(loc="outside upper center", ncols=2)
    return Drawing(figure)


def _name_minimum(record: LineLosses, ax: Axes, minimum: str) -> None:
    """An arrow from below to the first function at a minimum, where the record says that one is."""
    if minimum not in record.conditions:
        return
    place, heights = float(record.conditions[minimum]), record.loss[np.isfinite(record.loss)]
    lowest, height = heights.min(), np.ptp(heights)
    ax.set_ylim(lowest - 0.3 * height, heights.max() + 0.05 * height)
    ax.annotate(
        f"{minimum} minimum", (place, float(np.interp(place, record.alpha, record.loss[0])) - 0.02 * height),
        (place, lowest - 0.2 * height), ha="center", va="center", fontsize=SMALL, color=GREY,
        arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.7},
    )  # fmt: skip
