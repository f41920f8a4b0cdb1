"""Where a long computation commits rows as they are done, and reads back what an earlier start has left.

A journal holds columns of fixed length along one axis, the row axis, and a ``status`` per row: 0 pending, 1 done,
2 done but not finite. In memory and in HDF5 it behaves the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

PENDING, DONE, NOT_FINITE = 0, 1, 2


class Journal(ABC):
    """Rows of named columns; the row axis is each column's last."""

    @property
    @abstractmethod
    def status(self) -> np.ndarray:
        """uint8 of shape (rows,): 0 pending, 1 done, 2 not finite. A copy."""

    @abstractmethod
    def column(self, name: str) -> np.ndarray:
        """All rows of one column, NaN where pending. A copy."""

    @abstractmethod
    def _write(self, row: int, values: Mapping[str, Any], status: int) -> None: ...

    def commit(self, row: int, values: Mapping[str, Any], *, finite: bool | None = None) -> None:
        """Store one row; once this returns it survives a kill.

        ``finite`` decides between status 1 and 2; by default every value has to be finite.
        """
        if finite is None:
            finite = all(np.isfinite(value).all() for value in values.values())
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

    @property
    def status(self) -> np.ndarray:
        return self._status.copy()

    def column(self, name: str) -> np.ndarray:
        return self._columns[name].copy()

    def _write(self, row: int, values: Mapping[str, Any], status: int) -> None:
        for name, value in values.items():
            self._columns[name][..., row] = value
        self._status[row] = status


class HDF5Journal(Journal):
    """A journal in a group of an existing HDF5 file whose datasets are allocated in full.

    Rows are written in place, the status last, and flushed. Allocating in advance and the default ``libver`` are
    what keeps the file readable whenever the process is killed.
    """

    def __init__(self, path: Path, group: str) -> None:
        self._name = group
        self._file = h5py.File(path, "r+")

    @property
    def _group(self) -> h5py.Group:
        return self._file[self._name]

    @property
    def status(self) -> np.ndarray:
        return self._group["status"][...]

    def column(self, name: str) -> np.ndarray:
        return self._group[name][...]

    def _write(self, row: int, values: Mapping[str, Any], status: int) -> None:
        for name, value in values.items():
            self._group[name][..., row] = value
        self._file.flush()
        self._group["status"][row] = status
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> HDF5Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
