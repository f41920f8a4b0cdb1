"""Figures 4 and 5: what the batch size does, and what it does after a start with small batches."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sharpness.records import History, axis_label
from sharpness.render.layout import set_figure_caption
from sharpness.render.paper.accuracy import COLOURS, draw_accuracy
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.networks import NAMES, table_4
from sharpness.render.paper.runs import Run, find_runs, need_runs, no_run, run_captions
from sharpness.render.paper.spreads import draw_sharpness, draw_spread, sharpness_captions
from sharpness.render.style import BLACK, COLUMN, VERMILLION, count_axis, legend_above, set_scale, style

SIZES, WARM = "keskar-batch-sizes", "keskar-warm-start"
SPREAD = "mean ± std over trials; dots: single trials"


def draw_keskar_4(runs: Path) -> Drawing:
    """Test accuracy and ε-sharpness against the batch size, and Table 4."""
    sizes, networks = find_runs([SIZES], runs), find_runs(NAMES, runs)
    if not sizes and not networks:
        raise no_run([SIZES, *NAMES], runs)
    return Drawing(_figure_of_sizes(sizes[0]) if sizes else None, table_4(runs) if networks else None)


def _figure_of_sizes(run: Run) -> Figure:
    record = run.comparison
    sizes = np.asarray(record.batch_size, dtype=float)
    order = np.argsort(sizes)
    with style():
        figure = Figure(figsize=(2 * COLUMN, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_spread(left, sizes[order], run.test_accuracy()[order], color=BLACK, marker="D")
        left.set_ylabel("test accuracy (%)")
        draw_sharpness(run, right, sizes[order], [int(index) for index in order])
        for ax in (left, right):
            set_scale(ax, "x", sizes, beyond=1)
            ax.set_xlabel("batch size")
        figure.legend(loc="outside upper center", ncols=4)
        set_figure_caption(figure, [SPREAD, *sharpness_captions(record), *run_captions([run])])
    return figure


def draw_keskar_5(runs: Path) -> Drawing:
    """Test accuracy and ε-sharpness of large batches after so many epochs of small ones."""
    (run,) = need_runs([WARM], runs)
    record = run.comparison
    warm = np.asarray(record.warm_epochs, dtype=float)
    begun = [int(index) for index in np.argsort(warm) if str(record.regime[index]).startswith("LB")]
    epochs = warm[begun]
    with style():
        figure = Figure(figsize=(COLUMN, 4.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        small = {"color": COLOURS["SB"], "label": f"SB after that {axis_label(History, 'epoch')}"}
        draw_accuracy(run.records("SB/history.h5"), "test", upper, whole=100, **small)
        label = "LB from there, at its end"
        draw_spread(upper, epochs, run.test_accuracy()[begun], color=VERMILLION, marker="s", label=label)
        upper.set_ylabel("test accuracy (%)")
        draw_sharpness(run, lower, epochs, begun)
        count_axis(lower)
        lower.set_xlabel("epochs of SB before LB")
        lower.set_ylabel("ε-sharpness of LB (%)")
        for ax in (upper, lower):
            legend_above([ax])
        set_figure_caption(figure, [SPREAD, *sharpness_captions(record), *run_captions([run])])
    return Drawing(figure)
