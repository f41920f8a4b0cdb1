"""Records as tables with one row per point."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sharpness.records import Variable, settings, variables

ENTRIES = {"axis": ("alpha", "beta"), "place": ("alpha", "beta", "distance")}  # of dimensions without a coordinate


class Rows(NamedTuple):
    """A table as columns of equal length, by name."""

    columns: dict[str, np.ndarray]

    @property
    def csv(self) -> str:
        """With a header of names, every number in full precision, and nothing where it is NaN, as pandas writes it."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(zip(*(map(_cell, values) for values in self.columns.values()), strict=True))
        return text.getvalue()


def tables(record: Any) -> dict[str, Rows]:
    """A record as long ("tidy") tables: for each set of dimensions, one row per point.

    Columns are the coordinates, then all variables that have these dimensions, then ``status`` wherever it applies,
    under the names of the record's fields; a dimension without coordinates is counted from 0.

    Returns:
        The tables by the part of a file's name that tells them apart: ``""`` for the one of most dimensions, the
        dimensions for others (``"epoch-place"``), and ``"choices"`` for one row of the variables without dimensions
        and of the settings under which all hold (treatment of batch norm, seed, ε, …). The conditions and the
        provenance, which are no table, stay in the record file.

    >>> from sharpness.records import LineLosses
    >>> loss = np.array([[0.5, 0.25]])
    >>> line = LineLosses(
    ...     split=np.array(["train"]), alpha=np.array([0.0, 1.0]), loss=loss, accuracy=loss + 0.5,
    ...     status=np.array([1, 1], np.uint8), batchnorm="none", start="", end="",
    ... )
    >>> print(tables(line)[""].csv, end="")
    split,alpha,loss,accuracy,status
    train,0.0,0.5,1.0,1
    train,1.0,0.25,0.75,1
    """
    found = list(variables(record))
    coordinates = {v.name: v.values for v in found if v.dims == (v.name,)}
    groups: dict[tuple[str, ...], list[Variable]] = {}
    for variable in found:
        if variable.name not in coordinates:
            groups.setdefault(variable.dims, []).append(variable)
    choices = {name: np.array([value]) for name, value in settings(record).items()}
    choices |= {v.name: v.values[None] for v in groups.pop((), [])}
    status = [v for v in groups.get(_status_dims(found), []) if v.name == "status"]
    made: dict[str, Rows] = {}
    for dims, members in sorted(groups.items(), key=lambda item: -len(item[0])):
        others = [v for v in members if v not in status]
        if others:
            made["-".join(dims) if made else ""] = _rows(dims, [*others, *status], coordinates)
    return made | {"choices": Rows(choices)}


def _status_dims(found: Sequence[Variable]) -> tuple[str, ...]:
    return next((v.dims for v in found if v.name == "status"), ())


def _rows(dims: tuple[str, ...], members: Sequence[Variable], coordinates: dict[str, np.ndarray]) -> Rows:
    shape = members[0].values.shape
    columns = {}
    for axis, dim in enumerate(dims):
        along = coordinates.get(dim, _entries(dim, shape[axis]))
        columns[dim] = np.broadcast_to(_along(along, (dim,), dims), shape).ravel()
    for variable in members:
        if set(variable.dims) <= set(dims):
            columns[variable.name] = np.broadcast_to(_along(variable.values, variable.dims, dims), shape).ravel()
    return Rows(columns)


def _entries(dim: str, size: int) -> np.ndarray:
    names = ENTRIES.get(dim, ())
    return np.array(names) if len(names) == size else np.arange(size)


def _along(values: np.ndarray, its: tuple[str, ...], dims: tuple[str, ...]) -> np.ndarray:
    """The values with an axis of length 1 for each of ``dims`` that they do not have."""
    return np.expand_dims(values, tuple(axis for axis, dim in enumerate(dims) if dim not in its))


def _cell(value: Any) -> str:
    return "" if isinstance(value, np.floating) and np.isnan(value) else str(value)
