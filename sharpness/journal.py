"""Where a long computation commits rows as they are done, and reads back what an earlier start has left.

A journal holds columns of fixed size and a ``status`` for each row: 0 pending, 1 done, 2 done but not finite, 3 left
out. Rows run along the last axis of each column, or over its last axes, as on a plane, where they are counted in C
order. In memory and in HDF5 a journal behaves the same.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from sharpness.errors import SchemaError

PENDING, DONE, NOT_FINITE, LEFT_OUT = 0, 1, 2, 3
CHUNK_ENTRIES = 2**28  # of one row of a column: HDF5 takes chunks below 4 GiB
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."  # netCDF-4's mark of a dimension without values


class Journal(ABC):
    """Rows of named columns; the axes of ``status`` are each column's last."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @property
    @abstractmethod
    def status(self) -> np.ndarray:
        """uint8, one for each row: 0 pending, 1 done, 2 not finite, 3 left out. A copy, in the shape of the rows."""

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

    @property
    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """Under which choices the rows hold, where the journal knows."""

    @abstractmethod
    def _write(self, rows: Sequence[int], values: Mapping[str, Any], status: np.ndarray) -> None: ...

    def commit(
        self, row: int | Sequence[int], values: Mapping[str, Any], *, finite: bool | np.ndarray | None = None
    ) -> None:
        """Store one row, or several with their values along the last axis; together they survive a kill.

        ``finite``, for all rows or for each, decides between status 1 and 2; by default every value has to be finite.
        """
        if finite is None:
            finite = all(np.isfinite(value).all() for value in values.values())
        if isinstance(row, (int, np.integer)):
            row, values = [int(row)], {name: np.asarray(value)[..., None] for name, value in values.items()}
        if len(row) and not 0 <= min(row) <= max(row) < len(self):
            raise IndexError(f"expected rows of a journal of {len(self)}; got {row}")
        self._write(row, values, np.where(np.broadcast_to(finite, len(row)), DONE, NOT_FINITE))

    def leave_out(self, rows: Sequence[int]) -> None:
        """Mark rows as not to be computed."""
        if rows:
            self._write(rows, {}, np.full(len(rows), LEFT_OUT))


class MemoryJournal(Journal):
    """A journal that lives as long as the process.

    >>> journal = MemoryJournal({"loss": np.full((2, 3), np.nan)}, rows=3)
    >>> journal.commit(1, {"loss": np.array([0.5, 0.7])})
    >>> journal.status.tolist(), journal.column("loss")[:, 1].tolist()
    ([0, 1, 0], [0.5, 0.7])
    """

    def __init__(self, columns: Mapping[str, np.ndarray], rows: int | tuple[int, ...]) -> None:
        self._columns = {name: np.array(values) for name, values in columns.items()}
        self._status = np.zeros(rows, np.uint8)

    def __len__(self) -> int:
        return self._status.size

    @property
    def status(self) -> np.ndarray:
        return self._status.copy()

    def column(self, name: str) -> np.ndarray:
        return self._columns[name].copy()

    def row(self, name: str, row: int) -> np.ndarray:
        found: np.ndarray = self._columns[name][_place(row, self._status.shape)]
        return found.copy()

    @property
    def conditions(self) -> dict[str, Any]:
        return {}

    @property
    def notes(self) -> dict[str, bool]:
        return {}

    def _write(self, rows: Sequence[int], values: Mapping[str, Any], status: np.ndarray) -> None:
        places: tuple[Any, ...] = np.unravel_index(np.asarray(rows, int), self._status.shape)
        for name, value in values.items():
            self._columns[name][(..., *places)] = value
        self._status[places] = status


class HDF5Journal(Journal):
    """A journal in a group of an existing HDF5 file whose datasets are allocated in full.

    Rows are written in place, the status last, and flushed; rows that are written again are pending meanwhile.
    Allocating in advance and the default ``libver`` are what keeps the file readable whenever the process is killed.
    """

    def __init__(self, path: Path, group: str) -> None:
        self._name = group
        try:
            self._file = h5py.File(path, "r+")
        except BlockingIOError as error:
            raise SchemaError(f"expected {path} for writing; another process is writing it. Wait for it") from error

    def __len__(self) -> int:
        return self._group["status"].size

    @property
    def _group(self) -> h5py.Group:
        return self._file[self._name]

    @property
    def status(self) -> np.ndarray:
        return self._group["status"][...]

    def column(self, name: str) -> np.ndarray:
        return self._group[name][...]

    def row(self, name: str, row: int) -> np.ndarray:
        return self._group[name][_place(row, self._group["status"].shape)]

    @property
    def conditions(self) -> dict[str, Any]:
        return json.loads(self._group.attrs["conditions"])

    @property
    def notes(self) -> dict[str, bool]:
        return {name: True for name in json.loads(self._group.attrs.get("notes", "[]")) if self._group.attrs[name]}

    def note(self, name: str) -> None:
        """Say one of the ``notes`` that the file was allocated with, from now on."""
        self._group.attrs.modify(name, np.uint8(1))
        self._file.flush()

    def _write(self, rows: Sequence[int], values: Mapping[str, Any], status: np.ndarray) -> None:
        flags = self._group["status"]
        places = [_place(row, flags.shape)[1:] for row in rows]
        again = [place for place in places if flags[place]]
        for place in again:
            flags[place] = PENDING
        if again:
            self._file.flush()
        for name, value in values.items():
            column = self._group[name]
            for index, place in enumerate(places):  # one by one: HDF5 is slow to write several chunks at once
                column[(..., *place)] = value[..., index]
        self._file.flush()
        for place, flag in zip(places, status, strict=True):
            flags[place] = flag
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> HDF5Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _place(row: int, shape: tuple[int, ...]) -> Any:
    """The index of a row in a column whose last axes are the rows' own, of this shape."""
    return (..., *(int(index) for index in np.unravel_index(row, shape)))


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
