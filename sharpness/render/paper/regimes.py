"""Other ways to train with large batches: do they close the gap, and do they reach flatter minima?"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpness.records import Comparison, axis_label
from sharpness.render.cells import over_seeds, ratio_of
from sharpness.render.layout import set_figure_caption
from sharpness.render.markers import draw_certified
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.orderings import ordering, points
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
from sharpness.render.summary import case_texts, regimes_table

HOFFER, REMEDIES = "hoffer-longer", "keskar-remedies"


def draw_hoffer(runs: Path) -> Drawing:
    """Longer training, a higher rate and smaller groups for batch norm against the generalisation gap."""
    return _drawing(need_runs([HOFFER], runs)[0], remedies=False)


def draw_remedies(runs: Path) -> Drawing:
    """Augmentation, conservative, adversarial and robust training with large batches.

    The paper finds that they narrow the gap, at minima that are still sharp (its discussion and Appendix E).
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
    if not run.has("SB", "LB"):
        return
    for name in map(str, run.comparison.regime):
        if name.startswith("LB"):
            augmented = "SB-" + name.removeprefix("LB-")
            base = augmented if run.has(augmented) else "SB"
            claim = "The paper's finding" if remedies else ""  # that of Hoffer et al. was not at hand in numbers
            finding = "The ordering of Keskar et al. 2017" if name == "LB" else claim
            yield _gap_sentence(run, base, name, finding)
            yield from _sharpness_sentences(run, base, name, finding)


def _gap_sentence(run: Run, base: str, name: str, finding: str) -> str:
    accuracy = run.test_accuracy()
    small, large, plain_small, plain_large = (accuracy[run.regime(regime)] for regime in (base, name, "SB", "LB"))
    gap, worse = over_seeds(small - large).mean, ordering(large, small)
    sentence = f"{run.where}: {name} tests worse than {base} in {worse.tally}; the gap is {points(gap)} points"
    if name == "LB":
        return f"{sentence}. {finding} {worse.verdict}."
    less = ordering(small - large, plain_small - plain_large)
    plain = points(over_seeds(plain_small - plain_large).mean)
    verdict = f". {finding}, less of a gap, {less.verdict}" if finding else ""
    return f"{sentence}, that of LB {plain}: less in {less.tally}{verdict}."


def _sharpness_sentences(run: Run, base: str, name: str, finding: str) -> Iterator[str]:
    record = run.comparison
    for case in full_cases(record):
        small, large = (record.sharpness[run.regime(regime), :, *case] for regime in (base, name))
        texts = case_texts(record, case)
        how = ", ".join(texts[part] for part in ("epsilon", "batchnorm", "maximiser") if texts[part])
        found, ratio = ordering(small, large), ratio_of(over_seeds(small), over_seeds(large)).text
        still = "" if name == "LB" else ", a minimum still sharp,"
        verdict = f" {finding}{still} {found.verdict}." if finding else ""
        yield f"{run.where}, {how}: {name} is sharper than {base} in {found.tally}; {name}/{base} = {ratio}.{verdict}"
