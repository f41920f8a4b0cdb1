"""Minimizers of several training regimes: eigenvalues beside ε-sharpness, and the table of all numbers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from sharpness.errors import ShapeError
from sharpness.records import Comparison, axis_label
from sharpness.render.cells import over_seeds
from sharpness.render.layout import divided
from sharpness.render.markers import draw_certified
from sharpness.render.notes import smoke_text
from sharpness.render.style import (
    CAPTION,
    LOOKS,
    SMALL,
    count_axis,
    policy_text,
    pooled,
    set_caption,
    set_scale,
    style,
)
from sharpness.render.summary import Case, case_texts, cases, is_pair, regimes_table, sharpness_table

GAP = 0.3  # between two regimes that share a place on an axis
ROOM = 0.72  # at most between the first and the last of them
ROW = 0.17  # inches
MOST = len(LOOKS)


def draw_comparison(record: Comparison, ax: Axes, family: Sequence[Comparison]) -> list[Axes]:
    """Eigenvalues in the left half of the place of ``ax``, which shrinks to it, and ε-sharpness in the right half."""
    if record.regime.size > MOST:
        raise ShapeError(
            f"expected at most {MOST} regimes, which colours and markers can tell apart; got {record.regime.size} "
            f"({', '.join(map(str, record.regime))}): choose fewer, or take the table"
        )
    left, right = divided(ax)
    _draw_eigenvalues(record, left, family)
    _draw_sharpness(record, right, family)
    return [left, right]


def comparison_height(record: Comparison) -> float:
    """Height in inches that leaves every ε-sharpness a legible line."""
    return max(2.6, 0.9 + ROW * len(_lines(record)) * max(1.0, record.regime.size / 4))


def regime_offsets(count: int) -> np.ndarray:
    """Where regimes stand around the place that they share.

    >>> regime_offsets(2)
    array([-0.15,  0.15])
    """
    step = min(GAP, ROOM / max(1, count - 1))
    return step * (np.arange(count) - (count - 1) / 2)


def _draw_eigenvalues(record: Comparison, ax: Axes, family: Sequence[Comparison]) -> None:
    number, offsets = np.arange(1, record.pair.size + 1), regime_offsets(record.regime.size)
    for regime, (name, (color, marker, dash)) in enumerate(zip(record.regime, LOOKS, strict=False)):
        x, values = number + offsets[regime], record.eigenvalues[regime]
        means = [over_seeds(column).mean for column in values.T]
        ax.plot(x, means, linestyle=dash, color=color, linewidth=0.8)
        certificate = record.residuals[regime], record.converged[regime]
        across = np.broadcast_to(x, values.shape)
        draw_certified(ax, across, values, *certificate, color=color, marker=marker, label=str(name))
    set_scale(ax, "y", pooled(member.eigenvalues for member in family))
    ax.set(xlabel=axis_label(record, "pair"), ylabel=axis_label(record, "eigenvalues"))
    count_axis(ax)
    policy = policy_text(record.conditions.get("batchnorm"))
    set_caption(ax, f"lines: means over {_each(record)}", f"bars: {axis_label(record, 'residuals')}", policy, width=48)


def _draw_sharpness(record: Comparison, ax: Axes, family: Sequence[Comparison]) -> None:
    lines, offsets = _lines(record), regime_offsets(record.regime.size)
    few = record.regime.size == 2
    for regime, (name, (color, marker, _)) in enumerate(zip(record.regime, LOOKS, strict=False)):
        part = f"{name}, first-order part" if few else "first-order part"
        for y, case in ((row + offsets[regime], case) for row, (_, case) in enumerate(lines) if case):
            values = record.sharpness[regime, :, *case]
            ax.plot(values, np.full(values.shape, y), ".", color=color, markersize=2)
            mean, std, *_ = over_seeds(values)
            ax.errorbar(mean, y, xerr=std, fmt=marker, color=color, markersize=3.5, elinewidth=0.7, label=str(name))
            first = over_seeds(record.first_order[regime, :, *case[:3]]).mean
            ax.plot(first, y, "|", color=color, markersize=5, markeredgewidth=0.8, label=part)
    set_scale(ax, "x", pooled(member.sharpness for member in family), beyond=0)
    ax.set_xlabel(axis_label(record, "sharpness"))
    _name_lines(ax, lines)
    each = _each(record)
    bars, dots = f"bars: mean ± std over {each}", f"dots: single {each}"
    set_caption(ax, bars, dots, smoke_text(record.conditions), width=48)


def _each(record: Comparison) -> str:
    """What a regime has several of."""
    return "seeds" if record.over == "seeds" else "checkpoints"


def _lines(record: Comparison) -> list[tuple[str, Case | None]]:
    """The rows of the panel from top to bottom: what was measured, under headings that have no case."""
    lines: list[tuple[str, Case | None]] = []
    for case in cases(record):
        texts = case_texts(record, case)
        heading = ", ".join(texts[name] for name in ("batchnorm", "space") if texts[name])
        if heading not in (label for label, _ in lines):
            lines.append((heading, None))
        lines.append((f"{texts['epsilon']}, {texts['maximiser']}", case))
    return lines


def _name_lines(ax: Axes, lines: Sequence[tuple[str, Case | None]]) -> None:
    ax.set_ylim(max(len(lines), 1) - 0.5, -0.5)
    ax.tick_params("y", length=0)
    ax.set_yticks(range(len(lines)), [label for label, _ in lines])
    for text, (_, case) in zip(ax.get_yticklabels(), lines, strict=True):
        text.set(fontsize=CAPTION, fontweight="normal" if case else "bold")


def draw_table(comparison: Comparison) -> Figure:
    """All numbers of a comparison as a figure, one line for each quantity.

    Args:
        comparison: what a recipe found for its regimes over its seeds.

    Returns:
        The rows of ``sharpness_table`` where SB and LB are the regimes; for any other regimes those of
        ``regimes_table``, turned so that each regime is a column unless there are too many for that.

    Example:
        >>> save_figure(draw_table(comparison), Path("table"))  # doctest: +SKIP
    """
    rows = _pair_rows(comparison) if is_pair(comparison) else _regime_rows(comparison)
    widths = [max(len(row[column]) for row in rows) * 0.052 + 0.2 for column in range(len(rows[0]))]  # inches
    with style():
        figure = Figure(figsize=(sum(widths), ROW * len(rows) + 0.1))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        _draw_rows(ax, rows, widths)
    return figure


def _pair_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    return [("", "SB", "LB", "LB/SB"), *sharpness_table(comparison)]


def _regime_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The table turned, a line for each of its columns, unless there are more regimes than columns."""
    table = regimes_table(comparison)
    rows = [tuple(table.head), *map(tuple, table.texts)]
    if len(table.rows) > len(table.head):
        return rows
    (_, *names), *lines = zip(*rows, strict=True)
    return [("", *names), *lines]


def _draw_rows(ax: Axes, rows: Sequence[Sequence[str]], widths: Sequence[float]) -> None:
    """A table with a rule over it, under its head and under it, and no others."""
    shares = [width / sum(widths) for width in widths]
    table = ax.table([list(row) for row in rows], colWidths=shares, cellLoc="left", bbox=Bbox.unit(), edges="open")
    table.auto_set_font_size(False)
    for (row, column), cell in table.get_celld().items():
        cell.set_text_props(fontsize=SMALL, weight="normal" if row else "bold")
        cell.PAD = 0.06 / widths[column]  # a share of the cell
        cell.set_linewidth(0.6)
        cell.visible_edges = {0: "BT", len(rows) - 1: "B"}.get(row, "open")
