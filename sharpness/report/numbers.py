"""The numbers of a record as tables that are small enough to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sharpness.records import ONE, Comparison, EigenPairs, EpsilonSharpness, TraceEstimate, Variable, variables
from sharpness.render.cells import MISSING, Cell
from sharpness.render.summary import quantities
from sharpness.render.tables import Table

MOST_ROWS = 500
MOST_COLUMNS = 8  # behind one variable
STATUS = np.array(["pending", "done", "not finite", "left out"])


def number_tables(record: Any) -> list[Table]:
    """All results of a record.

    Args:
        record: any record.

    Returns:
        One table of what is a single number; one for each dimension along which there are rows, with a column for every
        variable, or several where it has a further dimension; and one of the ranges of all that would fill more than 8
        columns, such as the losses of a plane. Of more than 500 rows, as many are shown, evenly spread, and the title
        says so. For a comparison, whose means over the seeds ``comparison_table`` gives: the number of every seed.

    >>> from sharpness.records import TraceEstimate
    >>> samples = np.array([1.0, 3.0])
    >>> record = TraceEstimate(sample=np.arange(2), samples=samples, value=2.0, standard_error=1.0, seed=0)
    >>> for table in number_tables(record):
    ...     print(table.head, table.texts)
    ('quantity', 'value') [['trace', '2'], ['standard error of the trace', '1']]
    ('sample', 'vᵀAv') [['0', '1'], ['1', '3']]
    """
    if isinstance(record, Comparison):
        return [_of_every_seed(record)]
    everything = list(variables(record))
    coordinates = {v.name: v.values for v in everything if v.dims == (v.name,)}
    rows: dict[str, list[Variable]] = {}
    wide: list[Variable] = []
    for v in everything:
        if v.dims:
            dim = _row_dimension(v, coordinates)
            narrow = v.values.size <= MOST_COLUMNS * v.values.shape[v.dims.index(dim)]
            (rows.setdefault(dim, []) if narrow else wide).append(v)
    alone = [dim for dim, found in rows.items() if [v.name for v in found] == [dim]]
    wide = [v for dim in alone for v in rows[dim] if v.values.dtype.kind in "fiu"] + wide
    tables = [_single(v for v in everything if not v.dims)]
    tables += [_rows(dim, found, coordinates) for dim, found in rows.items() if dim not in alone]
    tables += [_ranges(wide, coordinates)]
    return [table for table in tables if table.rows]


def sharpness_overview(found: Sequence[tuple[str, EpsilonSharpness]]) -> Table:
    """Every ε-sharpness in one row, by the folder of its minimizer."""
    head = (
        "minimizer", "batch norm", "ε", "subspace", "L-BFGS-B (%)", "sign ascent (%)", "first order (%)", "spread (%)",
        "‖g‖", "loss (nat)",
    )  # fmt: skip
    rows = [
        (
            place, str(s.conditions.get("batchnorm", MISSING)), f"{s.epsilon:g}", f"{s.subspace or 'full'}",
            s.sharpness, s.stronger, s.first_order, s.spread, s.gradient_norm, s.value,
        )
        for place, s in found
    ]  # fmt: skip
    return Table("every ε-sharpness, each a lower bound; spread over the starts of L-BFGS-B", head, rows)


def eigenvalue_overview(found: Sequence[tuple[str, EigenPairs]]) -> Table:
    """Every eigenvalue in one row, by the folder of its minimizer."""
    head = ("minimizer", "number", "eigenvalue", "residual", "converged")
    rows = [
        (place, number, float(value), float(residual), "yes" if converged else "no")
        for place, pairs in found
        for number, (value, residual, converged) in enumerate(
            zip(pairs.eigenvalues, pairs.residuals, pairs.converged, strict=True), 1
        )
    ]
    return Table("every eigenvalue; one of the Hessian's lies within its residual", head, rows)


def trace_overview(found: Sequence[tuple[str, TraceEstimate]]) -> Table:
    """Every trace in one row, by the folder of its minimizer."""
    rows = [(place, trace.value, trace.standard_error, trace.sample.size) for place, trace in found]
    return Table("every trace, by Hutchinson's estimator", ("minimizer", "trace", "standard error", "vectors"), rows)


OVERVIEWS: dict[str, tuple[str, Callable[[Any], Table]]] = {
    "epsilon_sharpness": ("ε-sharpness", sharpness_overview),
    "eigenpairs": ("Eigenvalues", eigenvalue_overview),
    "trace": ("Traces", trace_overview),
}


class _Column(NamedTuple):
    head: str
    cells: list[Cell]


def _of_every_seed(record: Comparison) -> Table:
    one = record.over.removesuffix("s")
    trials = [f"{regime}, {one} {seed}" for regime in record.regime for seed in record.seed]
    rows = [(name, *(_cell(value) for value in values.ravel())) for name, values in quantities(record)]
    return Table(f"every {one}", ("quantity", *trials), rows)


def _single(found: Iterable[Variable]) -> Table:
    return Table("single numbers", ("quantity", "value"), [(_head(v), _cell(v.values)) for v in found])


def _rows(dim: str, found: list[Variable], coordinates: dict[str, np.ndarray]) -> Table:
    columns = [column for v in found for column in _columns(v, dim, coordinates)]
    if dim not in coordinates:
        count = found[0].values.shape[found[0].dims.index(dim)]
        columns.insert(0, _Column(dim, list(range(1, count + 1))))
    rows = list(zip(*(column.cells for column in columns), strict=True))
    places = np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).round().astype(int)
    shown = [rows[place] for place in places]
    title = f"by {dim}" + (f": {len(shown)} of {len(rows):,} rows" if len(shown) < len(rows) else "")
    return Table(title, tuple(column.head for column in columns), shown)


def _columns(v: Variable, dim: str, coordinates: dict[str, np.ndarray]) -> Iterator[_Column]:
    """The columns of a variable whose rows run along ``dim``: one for each place along its other dimensions."""
    others = [name for name in v.dims if name != dim]
    values = np.moveaxis(STATUS[v.values] if v.name == "status" else v.values, v.dims.index(dim), -1)
    places = list(np.ndindex(values.shape[:-1]))
    heads = v.label.split(", ")  # a label names the places along a dimension that has no values: "α, β, distance"
    if len(others) != 1 or others[0] in coordinates or len(heads) != len(places):
        heads = [", ".join([_head(v), *_headings(others, place, coordinates)]) for place in places]
    for head, place in zip(heads, places, strict=True):
        yield _Column(head, [_cell(value) for value in values[place]])


def _headings(dims: Sequence[str], place: tuple[int, ...], coordinates: dict[str, np.ndarray]) -> Iterator[str]:
    for dim, index in zip(dims, place, strict=True):
        yield str(_cell(coordinates[dim][index])) if dim in coordinates else f"{dim} {index + 1}"


def _ranges(found: list[Variable], coordinates: dict[str, np.ndarray]) -> Table:
    """Extremes of large arrays, apart for each data set; how many of their points are done."""
    head = ("quantity", "numbers", "least", "largest", "not finite")
    rows = [row for v in found if v.name != "status" for row in _extremes(v, coordinates)]
    return Table("ranges", head, rows, [_points(v) for v in found if v.name == "status"])


def _extremes(v: Variable, coordinates: dict[str, np.ndarray]) -> Iterator[tuple[Cell, ...]]:
    parts = zip(coordinates["split"], v.values, strict=True) if v.dims[0] == "split" else [("", v.values)]
    for name, values in parts:
        finite = values[np.isfinite(values)]
        ends = (_cell(finite.min()), _cell(finite.max())) if finite.size else (MISSING, MISSING)
        label = _head(v) + (f", {name}" if str(name) else "")
        yield label, " × ".join(map(str, values.shape)), *ends, values.size - finite.size


def _points(v: Variable) -> str:
    counts = [(int(np.sum(v.values == code)), word) for code, word in enumerate(STATUS)]
    return f"{v.values.size:,} points: {', '.join(f'{count:,} {word}' for count, word in counts if count)}"


def _row_dimension(v: Variable, coordinates: dict[str, np.ndarray]) -> str:
    """The last dimension that has values, else the last."""
    return next((dim for dim in reversed(v.dims) if dim in coordinates), v.dims[-1])


def _head(v: Variable) -> str:
    return ("status" if v.name == "status" else v.label) + (f" ({v.unit})" if v.unit != ONE else "")


def _cell(value: Any) -> Cell:
    """A NumPy number or word as tables want it."""
    plain = value.item() if isinstance(value, (np.generic, np.ndarray)) else value
    return ("yes" if plain else "no") if isinstance(plain, bool) else plain
