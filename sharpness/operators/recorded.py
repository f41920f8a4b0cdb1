"""Products that are kept as they are computed, so that a solver killed half-way need not repeat them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from sharpness.errors import SchemaError, ShapeError
from sharpness.journal import DONE, Column, HDF5Journal, Journal, allocate
from sharpness.operators.base import SymmetricOperator
from sharpness.provenance import provenance

GROUP, OTHER_PLAN = "products", "resumed_under_other_plan"
HEADER = {"format": "sharpness", "schema_version": 1}  # as of record files: readers of those find no record in this one
PLAN = ("execution", "threads")  # conditions under which products agree to rounding with those under others
DIGEST_BYTES = 32  # of SHA-256


@final
class Recorded(SymmetricOperator):
    """A, whose products are committed to a journal, and answered from it where an earlier start left them there.

    A row of the journal holds the image of one vector and the SHA-256 of what it is the image of: the bytes of the
    vector, or of all vectors of the block that it was multiplied with. A call whose SHA-256 is in the journal is
    answered from there; any other is computed, and committed to the next rows. A deterministic algorithm given the same
    journal again thus goes on after its last product, with the same bits; with other settings (a tighter tolerance,
    more pairs) it shares the products whose vectors are the same. When all rows are written, further products are
    computed and not kept.

    Args:
        operator: A, of shape (n, n). Its conditions must tell it from every other that the journal may meet.
        journal: with columns ``image``, of n entries of A's dtype, and ``digest``, of 32 bytes: ``begin_products``
            makes one in a file.

    Cost: per product one write of its image and one SHA-256 of its vector, 20 ms for 10⁷ entries in float32; on the
    disk 4·n bytes in float32, 8·n in float64.

    Raises:
        ShapeError: the journal's columns do not fit.

    Example:
        >>> from sharpness.journal import MemoryJournal
        >>> from sharpness.operators import Dense
        >>> journal = MemoryJournal({"image": np.zeros((2, 5), np.float32), "digest": np.zeros((32, 5), np.uint8)}, 5)
        >>> operator = Recorded(Dense(torch.diag(torch.tensor([2.0, 1.0]))), journal)
        >>> operator @ torch.tensor([1.0, 1.0]), journal.status.tolist()
        (tensor([2., 1.]), [1, 0, 0, 0, 0])
        >>> again = Recorded(Dense(torch.zeros(2, 2)), journal)  # nothing is computed
        >>> again @ torch.tensor([1.0, 1.0]), again.answered
        (tensor([2., 1.]), 1)
    """

    def __init__(self, operator: SymmetricOperator, journal: Journal) -> None:
        self._operator, self._journal = operator, journal
        self.answered = 0  # products so far that the journal held
        expected = {"image": (operator.shape[:1], _numpy(operator.dtype)), "digest": ((DIGEST_BYTES,), np.dtype("u1"))}
        for name, (shape, dtype) in expected.items():
            first = journal.row(name, 0)
            if first.shape != shape or first.dtype != dtype:
                raise ShapeError(
                    f"expected a journal with a column {name!r} of shape {shape} and type {dtype} per row; "
                    f"got {first.shape} and {first.dtype}"
                )
        self._next, self._first_rows = _index(journal)

    @property
    def shape(self) -> tuple[int, int]:
        return self._operator.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._operator.dtype

    @property
    def device(self) -> torch.device:
        return self._operator.device

    @property
    def conditions(self) -> dict[str, Any]:
        return {**self._operator.conditions, **self._journal.notes}

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        digest = hashlib.sha256(vectors.T.contiguous().cpu().numpy().data).digest()
        if digest in self._first_rows:
            first = self._first_rows[digest]
            self.answered += vectors.shape[1]
            kept = [self._journal.row("image", first + column) for column in range(vectors.shape[1])]
            # A copy: sums round by how memory is aligned, and NumPy's is not as torch's.
            return torch.tensor(np.stack(kept, axis=1), device=self.device)
        images = (self._operator @ vectors).contiguous()  # as from the journal: sums over them then round the same
        rows = range(self._next, self._next + vectors.shape[1])
        if rows.stop <= len(self._journal):
            digests = np.tile(np.frombuffer(digest, np.uint8)[:, None], len(rows))
            self._journal.commit(rows, {"image": images.cpu().numpy(), "digest": digests})
            self._next, self._first_rows[digest] = rows.stop, rows.start
        return images


def _index(journal: Journal) -> tuple[int, dict[bytes, int]]:
    """The next free row, and where the images that the journal holds begin, by what they are the images of."""
    status = journal.status
    first_rows: dict[bytes, int] = {}
    for row in map(int, np.flatnonzero(status == DONE)):
        first_rows.setdefault(journal.row("digest", row).tobytes(), row)
    return int(np.flatnonzero(status).max(initial=-1)) + 1, first_rows


def begin_products(path: str | Path, operator: SymmetricOperator, rows: int) -> HDF5Journal:
    """The journal for ``Recorded`` in the file at ``path``, made for so many products unless it is there already.

    The file carries the operator's ``identity``. Its execution plan (``execution``, ``threads``) may differ from the
    file's: products then agree to rounding, and the conditions of what is computed from them say
    ``resumed_under_other_plan``. Close the journal when done.

    Raises:
        ShapeError: rows < 1.
        SchemaError: the file is of products under other conditions (another θ, other data), or damaged.

    Disk: 4·n bytes per product computed in float32; the file looks as large as all its rows from the beginning.
    """
    if rows < 1:
        raise ShapeError(f"expected rows >= 1; got {rows}")
    path, conditions = Path(path), json.loads(json.dumps(operator.identity))
    if not path.exists():
        columns = {
            "image": Column({"parameter": operator.shape[0]}, _numpy(operator.dtype), "product A v"),
            "digest": Column({"byte": DIGEST_BYTES}, np.uint8, "SHA-256 of the vector v, or of all of its block"),
        }
        origin = {name: json.dumps(v) if isinstance(v, Mapping) else v for name, v in provenance().items()}
        attributes = {"/": HEADER, "/provenance": origin}
        allocate(path, GROUP, columns, rows, conditions=conditions, notes=[OTHER_PLAN], attributes=attributes)
    journal, there = _opened(path)
    names = [name for name in sorted(there.keys() | conditions.keys()) if there.get(name) != conditions.get(name)]
    if differences := [f"{n} ({there.get(n)!r} there, {conditions.get(n)!r} here)" for n in names if n not in PLAN]:
        journal.close()
        raise SchemaError(
            f"expected {path} to hold products of this very operator; it differs in {'; '.join(differences)}. "
            "Choose another file, or remove it."
        )
    if names and _plan(there) != _plan(conditions):
        journal.note(OTHER_PLAN)
    return journal


def recorded_plan(path: str | Path) -> dict[str, Any]:
    """The execution plan of the products in the file at ``path``, to make the operator by again; empty without one.

    Raises:
        SchemaError: the file is damaged, in use or something else.
    """
    if not Path(path).exists():
        return {}
    journal, conditions = _opened(Path(path))
    journal.close()
    return dict(conditions.get("execution", {}))


def _opened(path: Path) -> tuple[HDF5Journal, dict[str, Any]]:
    """The journal in a file that should hold one, and its conditions."""
    journal = None
    try:
        journal = HDF5Journal(path, GROUP)
        return journal, journal.conditions
    except (OSError, LookupError, ValueError) as error:
        if journal is not None:
            journal.close()
        raise SchemaError(
            f"expected recorded products in {path}; it is damaged, in use or something else ({error})"
        ) from error


def _plan(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The execution plan, without the reasons for it."""
    execution = {name: value for name, value in conditions.get("execution", {}).items() if name != "why"}
    return {"execution": execution, "threads": conditions.get("threads")}


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype
