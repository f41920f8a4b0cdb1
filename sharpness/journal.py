"""Where a long computation commits rows as they are done, and reads back what an earlier start has left.

A journal holds columns of fixed length along one axis, the row axis, and a ``status`` per row: 0 pending, 1 done,
2 done but not finite. In memory and in HDF5 it behaves the same.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

PENDING, DONE, NOT_FINITE = 0, 1, 2
CHUNK_ENTRIES = 2**28  # of one row of a column: HDF5 takes chunks below 4 GiB
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."  # netCDF-4's mark of a dimension without values


class Journal(ABC):
    """Rows of named columns; the row axis is each column's last."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @property
    @abstractmethod
    def status(self) -> np.ndarray:
        """uint8 of shape (rows,): 0 pending, 1 done, 2 not finite. A copy."""

    @abstractmethod
    def column(self, name: str) -> np.ndarray:
        """All rows of one column, NaN where pending. A copy."""

    @abstractmethod
    def row(self, name: str, row: int) -> np.ndarray:
        """One row of one column, without reading the others. A copy."""

    @property
    @abstractmethod
    def notes(self) -> dict[str, bool]:
        """What records made of these rows must say about how they came to be; for most, nothing."""

    @abstractmethod
    def _write(self, rows: range, values: Mapping[str, Any], status: int) -> None: ...

    def commit(self, row: int | range, values: Mapping[str, Any], *, finite: bool | None = None) -> None:
        """Store one row, or several neighbours with their values along the last axis; together they survive a kill.

        ``finite`` decides between status 1 and 2; by default every value has to be finite.
        """
        if finite is None:
            finite = all(np.isfinite(value).all() for value in values.values())
        if not isinstance(row, range):
            row, values = range(row, row + 1), {name: np.asarray(value)[..., None] for name, value in values.items()}
        if not 0 <= row.start <= row.stop <= len(self):
            raise IndexError(f"expected rows of a journal of {len(self)}; got {row}")
        self._write(row, values, DONE if finite else NOT_FINITE)


class MemoryJournal(Journal):
    """A journal that lives as long as the process.

    >>> journal = MemoryJournal({"loss": np.full((2, 3), np.nan)}, rows=3)
    >>> journal.commit(1, {"loss": np.array([0.5, 0.7])})
    >>> journal.status.tolist(), journal.column("loss")[:, 1].tolist()
    ([0, 1, 0], [0.5, 0.7])
    """

    def __init__(self, columns: Mapping[str, np.ndarray], rows: int) -> None:
        self._columns = {name: np.array(values) for name, values in columns.items()}
        self._status = np.zeros(rows, np.uint8)

    def __len__(self) -> int:
        return len(self._status)

    @property
    def status(self) -> np.ndarray:
        return self._status.copy()

    def column(self, name: str) -> np.ndarray:
        return self._columns[name].copy()

    def row(self, name: str, row: int) -> np.ndarray:
        return self._columns[name][..., row].copy()

    @property
    def notes(self) -> dict[str, bool]:
        return {}

    def _write(self, rows: range, values: Mapping[str, Any], status: int) -> None:
        for name, value in values.items():
            self._columns[name][..., rows.start : rows.stop] = value
        self._status[rows.start : rows.stop] = status


class HDF5Journal(Journal):
    """A journal in a group of an existing HDF5 file whose datasets are allocated in full.

    Rows are written in place, the status last, and flushed; rows that are written again are pending meanwhile.
    Allocating in advance and the default ``libver`` are what keeps the file readable whenever the process is killed.
    """

    def __init__(self, path: Path, group: str) -> None:
        self._name = group
        self._file = h5py.File(path, "r+")

    def __len__(self) -> int:
        return self._group["status"].shape[0]

    @property
    def _group(self) -> h5py.Group:
        return self._file[self._name]

    @property
    def status(self) -> np.ndarray:
        return self._group["status"][...]

    def column(self, name: str) -> np.ndarray:
        return self._group[name][...]

    def row(self, name: str, row: int) -> np.ndarray:
        return self._group[name][..., row]

    @property
    def conditions(self) -> dict[str, Any]:
        """Under which choices the rows hold, as the file says."""
        return json.loads(self._group.attrs["conditions"])

    @property
    def notes(self) -> dict[str, bool]:
        return {name: True for name in json.loads(self._group.attrs.get("notes", "[]")) if self._group.attrs[name]}

    def note(self, name: str) -> None:
        """Say one of the ``notes`` that the file was allocated with, from now on."""
        self._group.attrs.modify(name, np.uint8(1))
        self._file.flush()

    def _write(self, rows: range, values: Mapping[str, Any], status: int) -> None:
        everywhere = slice(rows.start, rows.stop)
        if self._group["status"][everywhere].any():
            self._group["status"][everywhere] = PENDING
            self._file.flush()
        for name, value in values.items():
            for index, row in enumerate(rows):  # one by one: HDF5 is slow to write several chunks of a column at once
                self._group[name][..., row] = value[..., index]
        self._file.flush()
        self._group["status"][everywhere] = status
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> HDF5Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Column(NamedTuple):
    """What ``allocate`` makes room for: one row's dimensions by name, its type and a label."""

    sizes: Mapping[str, int]
    dtype: Any
    label: str


def allocate(
    path: Path,
    group: str,
    columns: Mapping[str, Column],
    rows: int,
    *,
    conditions: Mapping[str, Any],
    notes: Sequence[str] = (),
    attributes: Mapping[str, Mapping[str, Any]],
) -> None:
    """Make a file with one group for an ``HDF5Journal`` of so many pending rows; complete or not there.

    Every row of every column has its own place in the file, where it lies in one piece, and takes no room on the disk
    before it is written (on file systems that know holes). Unwritten values are undefined: ask the status first. The
    file is netCDF-4 compatible. ``attributes`` are those of further groups, the root among them, by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with h5py.File(part, "w") as file:
        for name, values in attributes.items():
            file.require_group(name).attrs.update(values)
        journal = file.create_group(group)
        journal.attrs.update({"conditions": json.dumps(conditions), "notes": json.dumps(notes)})
        journal.attrs.update(dict.fromkeys(notes, np.uint8(0)))
        dims = {dim: size for column in columns.values() for dim, size in column.sizes.items()} | {"row": rows}
        for number, (dim, size) in enumerate(dims.items()):
            journal.create_dataset(dim, (size,), np.float32).make_scale(f"{NO_VARIABLE}{size:10d}")
            journal[dim].attrs["_Netcdf4Dimid"] = number
        status = journal.create_dataset("status", data=np.zeros(rows, np.uint8))
        _describe(status, "0 pending, 1 done, 2 not finite", [journal["row"]])
        for name, column in columns.items():
            _describe(_reserve(journal, name, column, rows), column.label, [journal[d] for d in (*column.sizes, "row")])
    part.replace(path)


def _reserve(group: h5py.Group, name: str, column: Column, rows: int) -> h5py.Dataset:
    """A dataset whose places in the file are fixed now, so that writing changes nothing but values."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    shape = tuple(column.sizes.values())
    chunks = (*(min(size, CHUNK_ENTRIES) for size in shape), 1)
    return group.create_dataset(name, (*shape, rows), column.dtype, chunks=chunks, dcpl=properties)


def _describe(dataset: h5py.Dataset, label: str, scales: Sequence[h5py.Dataset]) -> None:
    dataset.attrs.update({"long_name": label, "units": "1"})
    for axis, scale in enumerate(scales):
        dataset.dims[axis].attach_scale(scale)
