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
from sharpness.render.notes import condition_notes
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.orderings import generalises_worse
from sharpness.render.paper.runs import Run, need_runs, run_captions
from sharpness.render.published import ACCURACY, DATA, NETWORKS, TRIALS, published_gap
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
                _draw_histories(histories[run, regime], ax, regime)
            ax.set(title=run.label, xlabel=axis_label(History, "epoch"), ylabel=axis_label(History, "accuracy"))
            count_axis(ax)
        handles, labels = legend_entries(axes)
        columns = legend_columns(labels, figure.get_figwidth())
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
        means = "lines: means over trials, to the epoch that all reached"
        set_figure_caption(figure, [means, "thin lines: single trials", *run_captions(found, list(NETWORKS))])
    return figure


def _draw_histories(histories: Sequence[History], ax: Axes, regime: str) -> None:
    for split, dash in DASHES.items():
        curves = [curve for history in histories for curve in _curves(history, split)]
        for epoch, accuracy in curves:
            ax.plot(epoch, accuracy, linestyle=dash, color=COLOURS[regime], linewidth=0.4, alpha=0.5)
        if curves:
            reached = min(epoch.size for epoch, _ in curves)
            mean = np.mean([accuracy[:reached] for _, accuracy in curves], axis=0)
            label = f"{regime}, {split}"
            ax.plot(curves[0][0][:reached], mean, linestyle=dash, color=COLOURS[regime], label=label)


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
        *(note for run in found for note in condition_notes(run.comparison)),
        *(note for run in found for note in data_notes(run)),
        *(_sentence(run) for run in found),
    ]
    return Table("Table 2: accuracy of SB and LB, measured and published (Keskar et al. 2017)", HEAD, rows, notes)


def _rows(run: Run) -> Iterator[list[Cell]]:
    small, large = (run.regime(regime) for regime in REGIMES)
    measured = [over_seeds(100 * run.split(split)[regime]) for split in DASHES for regime in (small, large)]
    test = run.test_accuracy()
    yield [run.label, "measured", *measured, over_seeds(test[small] - test[large])]
    if run.name in ACCURACY:
        published: list[Reported | None] = [ACCURACY[run.name][split, regime] for split in DASHES for regime in REGIMES]
        yield [run.label, "published", *published, Reported(round(published_gap(run.name), 2))]


def data_notes(run: Run) -> Iterator[str]:
    """Says so where a run was not made on the data that the paper used."""
    ours, theirs = str(run.comparison.conditions.get("data", "")), DATA.get(run.name, "")
    if ours and theirs and _bare(ours) != _bare(theirs):
        yield f"{run.label}: published on {theirs}, measured on {ours}: the numbers do not compare, the orderings may."


def _bare(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _sentence(run: Run) -> str:
    accuracy = run.test_accuracy()
    small, large = (accuracy[run.regime(regime)] for regime in REGIMES)
    return generalises_worse(run.where, small, large, published_gap(run.name))
