"""Figure 2 and Table 2: accuracy against the epoch, and where it ends."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpness.records import History, axis_label
from sharpness.render.cells import Cell, Reported, over_seeds
from sharpness.render.layout import panel_grid, set_figure_caption
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.orderings import generalises_worse
from sharpness.render.paper.runs import Run, need_runs, run_captions, run_notes
from sharpness.render.published import ACCURACY, NETWORKS, TRIALS, published_gap
from sharpness.render.style import BLUE, VERMILLION, count_axis, legend_columns, legend_entries, style
from sharpness.render.summary import REGIMES
from sharpness.render.tables import Table

COLOURS = dict(zip(REGIMES, (BLUE, VERMILLION), strict=True))
DASHES: dict[str, Any] = {"train": "-", "test": "--"}
HEAD = (
    "network",
    "source",
    *(f"{split} accuracy {regime} (%)" for split in DASHES for regime in REGIMES),
    "test gap SB − LB (points)",
)


def draw_keskar_2(runs: Path) -> Drawing:
    """Accuracy of SB and LB along training, and Table 2."""
    found = need_runs(list(NETWORKS), runs)
    return Drawing(_figure(found), _table(found))


def _figure(found: Sequence[Run]) -> Figure | None:
    histories = {(run, regime): run.records(f"{regime}/history.h5") for run in found for regime in REGIMES}
    drawn = [run for run in found if any(histories[run, regime] for regime in REGIMES)]
    if not drawn:
        return None
    with style():
        figure, axes = panel_grid(len(drawn), 2.5)
        for run, ax in zip(drawn, axes, strict=True):
            for regime in REGIMES:
                for split, dash in DASHES.items():
                    look = {"linestyle": dash, "color": COLOURS[regime], "label": f"{regime}, {split}"}
                    draw_accuracy(histories[run, regime], split, ax, **look)
            ax.set(title=run.label, xlabel=axis_label(History, "epoch"), ylabel=axis_label(History, "accuracy"))
            count_axis(ax)
            _cut_off_beginning(ax)
        handles, labels = legend_entries(axes)
        columns = legend_columns(labels, figure.get_figwidth())
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
        means = "lines: means over trials, to the epoch that all reached"
        cut = "what lies below the axes belongs to the first tenth of the epochs"
        set_figure_caption(figure, [means, "thin lines: single trials", cut, *run_captions(found, list(NETWORKS))])
    return figure


def _cut_off_beginning(ax: Axes) -> None:
    """An axis that shows where the curves part, at the end, and not how far they rise in the first epochs."""
    curves = [np.asarray(line.get_ydata(), float) for line in ax.lines]
    late = [curve[-(-curve.size // 10) :] for curve in curves]
    values = np.concatenate([np.zeros(0), *late])
    if values.size:
        margin = 0.05 * max(np.ptp(values), 1e-3)
        ax.set_ylim(values.min() - margin, values.max() + margin)


def draw_accuracy(histories: Sequence[History], split: str, ax: Axes, whole: float = 1, **look: Any) -> None:
    """Accuracy on one data set along training, every trial thin and their mean thick; ``whole`` is that of 100 %."""
    curves = [(epoch, whole * accuracy) for history in histories for epoch, accuracy in _curves(history, split)]
    for curve in curves:
        ax.plot(*curve, linewidth=0.4, alpha=0.5, **(look | {"label": "_trial"}))
    if curves:
        reached = min(epoch.size for epoch, _ in curves)
        ax.plot(curves[0][0][:reached], np.mean([accuracy[:reached] for _, accuracy in curves], axis=0), **look)


def _curves(history: History, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Epochs that were measured, and the accuracy there; nothing for a data set that the run lacks."""
    done = np.asarray(history.status) == 1
    for name, accuracy in zip(history.split, history.accuracy, strict=True):
        if str(name) == split and done.any():
            yield history.epoch[done], accuracy[done]


def _table(found: Sequence[Run]) -> Table:
    rows = [row for run in found for row in _rows(run)]
    notes = [
        "Measured: mean ± sample standard deviation over trials. "
        f"Published: over {TRIALS} trials; its gap is that of the means.",
        *(note for run in found for note in run_notes(run)),
        *(generalises_worse(run) for run in found),
    ]
    return Table("Table 2: accuracy of SB and LB, measured and published (Keskar et al. 2017)", HEAD, rows, notes)


def _rows(run: Run) -> Iterator[list[Cell]]:
    measured = [over_seeds(100 * values) for split in DASHES for values in run.pair(run.split(split))]
    small, large = run.pair(run.test_accuracy())
    yield [run.label, "measured", *measured, over_seeds(small - large)]
    if run.name in ACCURACY:
        published: list[Reported | None] = [ACCURACY[run.name][split, regime] for split in DASHES for regime in REGIMES]
        yield [run.label, "published", *published, Reported(round(published_gap(run.name), 2))]
