"""A Krylov basis of one sequence or several, with full re-orthogonalisation and thick restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from sharpness.errors import NonFiniteError
from sharpness.operators import SymmetricOperator
from sharpness.random import normal
from sharpness.spectrum.rows import Rows, norms

CANCELLED = 0.1  # of a row's norm left by its neighbours in the block: below, rounding in Q is worth another pass


class Ritz(NamedTuple):
    """Ritz values θ (ascending), coefficients of the Ritz vectors y in the multiplied rows, and what A y − θ y is.

    ``border`` has a row for each pending row of the basis and a column for each y.
    """

    values: np.ndarray
    coefficients: np.ndarray
    border: np.ndarray

    @property
    def residuals(self) -> np.ndarray:
        """The norms ‖A y − θ y‖."""
        return np.linalg.norm(self.border, axis=0)


class KrylovBasis:
    """Orthonormal rows, of which some, Q, have been multiplied by A and the others, X, are pending: A Qᵀ = Qᵀ T + Xᵀ B.

    T = Q A Qᵀ and B = X A Qᵀ are known from the products. To ``expand`` all pending rows again and again is the (block)
    Lanczos recurrence; ``restart`` keeps chosen Ritz vectors and the relation (thick restart, Wu and Simon 2000);
    ``add_random`` begins another sequence beside the first, for what that cannot see: a Krylov sequence of b rows finds
    an eigenvalue at most b times. The relation always holds to rounding: residuals of Ritz pairs are known from B.

    Args:
        operator: A, of shape (n, n).
        capacity: most rows held, pending ones included.
        seed: of the random rows.
        start: the first rows, of shape (s, n), made orthonormal.
        block: rows to begin with at least; random ones are added.
        place: where the rows lie, ``"device"`` or ``"host"``.

    Cost: ``expand`` takes a product for each row, in one call, and 2·j·n multiplications where j rows are held.

    >>> from sharpness.operators import Dense
    >>> basis = KrylovBasis(Dense(torch.diag(torch.tensor([1.0, 2.0, 3.0]))), 3, seed=0, start=torch.ones(1, 3))
    >>> new = basis.expand(basis.pending)  # Q = (1, 1, 1)/√3, T = mean, B = standard deviation
    >>> basis.projected.round(4), basis.border.round(4)
    (array([[2.]]), array([[0.8165]]))
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        capacity: int,
        seed: int,
        *,
        start: torch.Tensor | None = None,
        block: int = 1,
        place: str = "device",
    ) -> None:
        n = operator.shape[0]
        self._operator, self._seed, self._draws = operator, seed, 0
        self.capacity, self.count = min(capacity, n), 0
        self._rows = Rows(self.capacity, n, dtype=operator.dtype, device=operator.device, place=place)
        self._couplings = np.zeros((self.capacity, self.capacity))  # ⟨p, A q⟩ where p or q has been multiplied, else 0
        self._multiplied = np.zeros(self.capacity, dtype=bool)
        self._buffer = torch.empty(0)
        self.products = 0
        self.asymmetry = 0.0
        if start is not None:
            self._append(start.clone())
        while self.count < min(block, n):
            self.add_random()

    @property
    def taken(self) -> np.ndarray:
        """Indices of the rows of Q."""
        return np.flatnonzero(self._multiplied[: self.count])

    @property
    def pending(self) -> np.ndarray:
        """Indices of the rows of X."""
        return np.flatnonzero(~self._multiplied[: self.count])

    @property
    def size(self) -> int:
        """Rows of Q."""
        return int(self._multiplied.sum())

    @property
    def projected(self) -> np.ndarray:
        """T."""
        return self._couplings[np.ix_(self.taken, self.taken)]

    @property
    def border(self) -> np.ndarray:
        """B."""
        return self._couplings[np.ix_(self.pending, self.taken)]

    @property
    def complete(self) -> bool:
        """Whether Q spans the whole space, so that T is A itself in another basis."""
        return self.size == self._operator.shape[0]

    def room(self, rows: int) -> bool:
        """Whether so many rows can be added."""
        return min(self.count + rows, self._operator.shape[0]) <= self.capacity

    def expand(self, rows: np.ndarray) -> np.ndarray:
        """One product for each of these pending rows, in one call; returns the pending rows that come of it.

        These are fewer than ``rows`` where A maps the span of Q into itself.
        """
        count, block = self.count, self._multiply(rows)
        columns = self._couplings[:count, rows]
        columns[rows] = self._among(rows, block)
        known = np.flatnonzero(columns.any(axis=1))
        if len(known):
            self._rows.subtract(torch.as_tensor(columns[known[0] : known[-1] + 1]), block, known[0])
        corrections = self._rows.orthogonalise(block, count).double().cpu().numpy()
        columns += corrections
        taken = self.taken
        self.asymmetry = max(self.asymmetry, float(np.abs(corrections[taken]).max(initial=0.0)))
        columns[rows] = (columns[rows] + columns[rows].T) / 2
        self._couplings[:count, rows], self._couplings[rows, :count] = columns, columns.T
        self._multiplied[rows] = True
        factor = self._append(block)
        following = np.arange(count, self.count)
        self._couplings[np.ix_(following, rows)], self._couplings[np.ix_(rows, following)] = factor, factor.T
        return following

    def add_random(self) -> int:
        """A random row, orthogonal to all others; returns its index. A Qᵀ has no part along it."""
        n, key = self._operator.shape[0], ("lanczos", self._draws)
        self._draws += 1
        row = normal(1, n, key=key, seed=self._seed, dtype=self._rows.dtype, device=self._rows.device)
        self._rows.orthogonalise(row, self.count)
        return self._put(row)

    def within(self, rows: Sequence[int]) -> np.ndarray:
        """⟨p, A q⟩ for these rows p and q, 0 between two of which neither has been multiplied."""
        return self._couplings[np.ix_(rows, rows)]

    def ritz(self) -> Ritz:
        """All Ritz pairs of T."""
        values, coefficients = np.linalg.eigh(self.projected)
        return Ritz(values, coefficients, self.border @ coefficients)

    def vectors(self, coefficients: np.ndarray) -> Rows:
        """Linear combinations of Q's rows, one to a column of ``coefficients``, as new rows."""
        return self._combined(self._of_all(coefficients))

    def discrepancy(self, coefficients: np.ndarray) -> float:
        """‖A y − (Qᵀ T + Xᵀ B) c‖ of y = Qᵀ c, by one product: what rounding does to the relation."""
        predicted = self._couplings[: self.count, self.taken] @ coefficients
        two = self._combined(np.column_stack([self._of_all(coefficients[:, None]), predicted]))
        image = self._operator @ two.read(0, 1).T
        self.products += 1
        found = float(norms(image.T.double() - two.read(1, 2).double()))
        if not np.isfinite(found):
            raise self._not_finite(self.products)
        return found

    def restart(self, values: np.ndarray, coefficients: np.ndarray) -> None:
        """Keep these Ritz pairs and the pending rows; forget the rest."""
        kept, pending, border = len(values), self._rows.take(self.pending), self.border @ coefficients
        pending = pending.clone()
        self._rows.combine(self._of_all(coefficients), self._rows)
        self._rows.write(kept, pending)
        self.count = kept + len(pending)
        self._multiplied[:] = np.arange(self.capacity) < kept
        self._couplings[:] = 0.0
        self._couplings[:kept, :kept] = np.diag(values)
        self._couplings[kept : self.count, :kept] = border
        self._couplings[:kept, kept : self.count] = border.T

    def _multiply(self, rows: np.ndarray) -> torch.Tensor:
        """The images of pending rows, as rows in memory that is used again for the next."""
        images = self._operator @ self._rows.take(rows).T
        self.products += len(rows)
        if self._buffer.shape != images.T.shape:
            self._buffer = torch.empty_like(images.T, memory_format=torch.contiguous_format)
        return self._buffer.copy_(images.T)

    def _among(self, rows: np.ndarray, images: torch.Tensor) -> np.ndarray:
        """⟨x, A y⟩ for pending rows x and y, from the images A y."""
        gram = (self._rows.take(rows) @ images.T).double().cpu().numpy()
        bad = ~np.isfinite(gram).all(axis=0)
        if bad.any():
            raise self._not_finite(self.products - len(bad) + int(bad.argmax()) + 1)
        return (gram + gram.T) / 2

    def _not_finite(self, number: int) -> NonFiniteError:
        return NonFiniteError(
            f"expected finite products; product {number} holds NaN or infinite entries. "
            "Try float64 (dtype=torch.float64), or check the weights."
        )

    def _append(self, candidates: torch.Tensor) -> np.ndarray:
        """Add orthonormal rows X, as many as candidates (orthogonal to all rows) span; F, that these are Fᵀ X.

        Gram–Schmidt row by row. The candidates are orthogonal to earlier rows to their own rounding, which grows by as
        much as the rows before them cancel them.
        """
        factor = np.zeros((len(candidates), len(candidates)))
        first, negligible = self.count, self.negligible
        for index in range(len(candidates)):
            row = candidates[index : index + 1]
            whole = norms(row)
            factor[: self.count - first, index] = self._rows.orthogonalise(row, self.count, first)[:, 0].cpu()
            norm = float(norms(row))
            if norm <= negligible or self.count == self._operator.shape[0]:
                continue
            if self.count > first and norm < CANCELLED * whole:
                self._rows.orthogonalise(row, self.count)
            factor[self.count - first, index] = norm
            self._put(row)
        return factor[: self.count - first]

    def _put(self, row: torch.Tensor) -> int:
        """Write ``row``, which becomes a unit vector, as the next."""
        self._rows.write(self.count, row.div_(float(norms(row))))
        self.count += 1
        return self.count - 1

    def _of_all(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients in Q as coefficients in all rows."""
        every = np.zeros((self.count, coefficients.shape[1]))
        every[self.taken] = coefficients
        return every

    def _combined(self, coefficients: np.ndarray) -> Rows:
        combined = self._rows.like(coefficients.shape[1])
        self._rows.combine(coefficients, combined)
        return combined

    @property
    def negligible(self) -> float:
        """A residual below this is rounding: the basis is invariant."""
        scale = np.abs(self._couplings).max()
        return float(10 * torch.finfo(self._rows.dtype).eps * scale * np.sqrt(self.size))
