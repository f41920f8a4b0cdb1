"""Figures 3, 6 and 7 and Tables 3 and 4: one panel or some rows for each of the paper's networks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpness.records import LineLosses, Trajectory
from sharpness.render.figures import draw_figure
from sharpness.render.layout import panel_grid, set_figure_caption
from sharpness.render.paper.accuracy import COLOURS
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.runs import Run, need_runs, no_run, run_captions
from sharpness.render.paper.sharpness import sharpness_of_networks
from sharpness.render.published import NETWORKS
from sharpness.render.style import legend_entries, set_caption, style
from sharpness.render.summary import REGIMES
from sharpness.render.tables import Table
from sharpness.render.trajectories import descent_notes, draw_descent, set_descent_axes

NAMES = list(NETWORKS)
CURVES = "keskar-curves"  # a run for Figure 7 alone
CITED = "(Keskar et al. 2017)"


def draw_keskar_3(runs: Path) -> Drawing:
    """Lines through SB and LB, and Table 3."""
    found = need_runs(NAMES, runs)
    title = f"Table 3: ε-sharpness φ in the full space, measured and published {CITED}"
    return Drawing(_figure_of_lines(found, "line.h5"), sharpness_of_networks(title, found, "full"))


def table_4(runs: Path) -> Table:
    """ε-sharpness in random subspaces."""
    title = f"Table 4: ε-sharpness φ in random subspaces, measured and published {CITED}"
    return sharpness_of_networks(title, need_runs(NAMES, runs), "subspace")


def draw_keskar_6(runs: Path) -> Drawing:
    """ε-sharpness against the training loss along training."""
    found = need_runs(NAMES, runs)
    descents = _first_trials(found, lambda run: _trajectories(run) or None)
    if not descents:
        raise no_run(NAMES, runs, what="ε-sharpness along training (trajectory.h5)")
    with style():
        figure, axes = panel_grid(len(descents), 3.0)
        for (run, descent), ax in zip(descents.items(), axes, strict=True):
            _draw_descents(descent, ax)
            ax.set_title(run.label)
        figure.legend(*legend_entries(axes), loc="outside upper center", ncols=len(REGIMES))
        _caption(figure, found, list(descents))
    return Drawing(figure)


def draw_keskar_7(runs: Path) -> Drawing:
    """Curves through SB and LB."""
    names = [CURVES, *NAMES]
    figure = _figure_of_lines(need_runs(names, runs), "curve.h5")
    if figure is None:
        raise no_run(names, runs, what="a curve (curve.h5)")
    return Drawing(figure)


def _figure_of_lines(found: list[Run], file: str) -> Figure | None:
    lines: dict[Run, LineLosses] = _first_trials(found, lambda run: run.record(run.first_seed, file))
    if not lines:
        return None
    figure = draw_figure({run.label: line for run, line in lines.items()})
    with style():
        _caption(figure, found, list(lines))
    return figure


def _first_trials(found: list[Run], get: Callable[[Run], Any]) -> dict[Run, Any]:
    """What each run's first trial holds, without the runs that have none."""
    every = {run: get(run) for run in found}
    return {run: record for run, record in every.items() if record is not None}


def _caption(figure: Figure, found: list[Run], drawn: list[Run]) -> None:
    """The conditions of the runs drawn, and which have nothing to draw."""
    without = [run.label for run in found if run not in drawn]
    lacking = f"not measured: {', '.join(without)}" if without else ""
    set_figure_caption(figure, ["first trial of each run", *run_captions(drawn, _absent(found, drawn)), lacking])


def _absent(found: list[Run], drawn: list[Run]) -> list[str]:
    """The names to expect among those drawn: all but the runs that are there and have nothing to draw."""
    there = {run.name for run in found} - {run.name for run in drawn}
    return [name for name in NAMES if name not in there]


def _trajectories(run: Run) -> dict[str, Trajectory]:
    files = {regime: run.record(run.first_seed, f"{regime}/trajectory.h5") for regime in REGIMES}
    return {regime: record for regime, record in files.items() if record is not None}


def _draw_descents(descents: Mapping[str, Trajectory], ax: Axes) -> None:
    """SB and LB in one panel, each by both maximisers."""
    for regime, record in descents.items():
        for name, marker, dash, label in (("sharpness", "o", "-", "L-BFGS-B"), ("stronger", "s", "--", "sign ascent")):
            look: dict[str, Any] = {"marker": marker, "linestyle": dash, "color": COLOURS[regime]}
            draw_descent(record, ax, name, label=f"{regime}, {label}", **look)
        label = f"{regime}, first-order part"
        draw_descent(record, ax, "first_order", label=label, linestyle=":", color=COLOURS[regime])
    set_descent_axes(ax, list(descents.values()))
    notes = dict.fromkeys(note for record in descents.values() for note in descent_notes(record))
    set_caption(ax, *notes)
