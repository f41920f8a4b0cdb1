"""Other ways to train with large batches: do they close the gap, and do they reach flatter minima?"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpness.records import Comparison, axis_label
from sharpness.render.cells import over_seeds
from sharpness.render.layout import set_figure_caption
from sharpness.render.markers import draw_certified
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.orderings import generalises_worse, ordering, points, sharper, verdict
from sharpness.render.paper.runs import Run, need_runs, run_captions
from sharpness.render.paper.spreads import LOOKS, full_cases, sharpness_captions
from sharpness.render.style import (
    BLUE,
    COLUMN,
    GREEN,
    legend_columns,
    legend_entries,
    policy_text,
    pooled,
    set_scale,
    style,
)
from sharpness.render.summary import REGIMES, case_texts, regimes_table

HOFFER, REMEDIES = "hoffer-longer", "keskar-remedies"
DISPUTED = ("LB-adversarial", "LB-robust")  # sources differ on whether these narrow the gap


def draw_hoffer(runs: Path) -> Drawing:
    """Longer training, a higher rate and smaller groups for batch norm against the generalisation gap."""
    return _drawing(need_runs([HOFFER], runs)[0], remedies=False)


def draw_remedies(runs: Path) -> Drawing:
    """Augmentation, conservative, adversarial and robust training with large batches.

    The paper finds that the first two narrow the gap, and that all end at minima that are still sharp (its discussion
    and Appendix E).
    """
    return _drawing(need_runs([REMEDIES], runs)[0], remedies=True)


def _drawing(run: Run, *, remedies: bool) -> Drawing:
    table = regimes_table(run.comparison)
    notes = [*table.notes, *_sentences(run, remedies=remedies)]
    return Drawing(_figure(run), dataclasses.replace(table, notes=notes))


def _figure(run: Run) -> Figure:
    record = run.comparison
    with style():
        figure = Figure(figsize=(2 * COLUMN, 1.5 + 0.3 * record.regime.size), layout="constrained")
        axes = list(figure.subplots(1, 3, sharey=True))
        rows = np.arange(record.regime.size)
        _draw_accuracies(run, axes[0], rows)
        _draw_eigenvalues(record, axes[1], rows)
        _draw_sharpness(record, axes[2], rows)
        axes[0].set_yticks(rows, [str(name) for name in record.regime])
        axes[0].set_ylim(rows.size - 0.5, -0.5)
        for ax in axes:
            ax.grid(axis="y", linewidth=0.3)
            ax.set_axisbelow(True)
        handles, labels = legend_entries(axes)
        columns = legend_columns(labels, figure.get_figwidth())
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
        bars = "mean ± std over trials (of λmax: residuals); dots: single trials"
        set_figure_caption(figure, [bars, *sharpness_captions(record), *run_captions([run])])
    return figure


def _draw_accuracies(run: Run, ax: Axes, rows: np.ndarray) -> None:
    _draw_across(ax, run.test_accuracy(), rows, color=GREEN, marker="D", label="test accuracy")
    ax.set_xlabel("test accuracy (%)")


def _draw_eigenvalues(record: Comparison, ax: Axes, rows: np.ndarray) -> None:
    """λmax of every trial with its residual, hollow where it did not converge."""
    if record.pair.size:
        for row in rows:
            values = record.eigenvalues[row, :, 0]
            places = np.full(values.shape, float(row))
            certificate = record.residuals[row, :, 0], record.converged[row, :, 0]
            draw_certified(ax, places, values, *certificate, color=BLUE, marker="o", label="λmax", horizontal=True)
        set_scale(ax, "x", pooled([record.eigenvalues[..., 0]]))
    policy = policy_text(record.conditions.get("batchnorm"))
    ax.set_xlabel("λmax" + (f" ({policy})" if policy else ""))


def _draw_sharpness(record: Comparison, ax: Axes, rows: np.ndarray) -> None:
    """Both maximisers beside each other, batch-norm treatments filled and hollow."""
    chosen = list(full_cases(record))
    for number, case in enumerate(chosen):
        color, marker = LOOKS[case.maximiser % len(LOOKS)]
        texts = case_texts(record, case)
        label = ", ".join(texts[name] for name in ("maximiser", "batchnorm") if texts[name])
        face = "white" if case.batchnorm else color
        shift = 0.16 * (number - (len(chosen) - 1) / 2)
        values = record.sharpness[:, :, *case]
        _draw_across(ax, values, rows + shift, color=color, marker=marker, markerfacecolor=face, label=label)
    set_scale(ax, "x", pooled(record.sharpness[:, :, *case] for case in chosen), beyond=0)
    ax.set_xlabel(axis_label(record, "sharpness"))


def _draw_across(ax: Axes, values: np.ndarray, rows: np.ndarray, **look: Any) -> None:
    """Mean ± standard deviation of each regime along the horizontal axis, every trial as a dot."""
    summaries = [over_seeds(row) for row in values]
    means, deviations = ([summary[part] for summary in summaries] for part in (0, 1))
    ax.errorbar(means, rows, xerr=deviations, linestyle="none", markersize=3.5, elinewidth=0.7, **look)
    ax.plot(values, np.broadcast_to(rows[:, None], values.shape), ".", color=look["color"], markersize=2)


def _sentences(run: Run, *, remedies: bool) -> Iterator[str]:
    """Every large-batch regime against small batches trained alike: the gap, then the sharpness."""
    if not run.has(*REGIMES):
        return
    finding = "The paper's finding" if remedies else ""  # that of Hoffer et al. was not at hand in numbers
    for name in map(str, run.comparison.regime):
        if name.startswith("LB"):
            augmented = "SB-" + name.removeprefix("LB-")
            pair = (augmented if run.has(augmented) else "SB", name)
            sharp = f"{finding}, a minimum still sharp," if finding else ""
            if name == "LB":
                sharp = "The ordering of Keskar et al. 2017"
                yield generalises_worse(run, pair, sharp)
            else:
                yield _less_of_a_gap(run, pair, "" if name in DISPUTED else finding)
            yield from (sharper(run, case, pair, sharp) for case in full_cases(run.comparison))


def _less_of_a_gap(run: Run, names: Sequence[str], finding: str) -> str:
    gap, plain = (np.subtract(*run.pair(run.test_accuracy(), pair)) for pair in (names, REGIMES))
    less = ordering(gap, plain)
    narrower = f"It is less than SB − LB, {points(over_seeds(plain).mean)} points, in {less.tally}."
    claim = f"{finding}, less of a gap," if finding else ""
    return f"{generalises_worse(run, names, '')} {narrower}{verdict(run, claim, less)}"
