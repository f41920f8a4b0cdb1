"""A block Krylov basis with full re-orthogonalisation and thick restart."""

from __future__ import annotations

import numpy as np
import torch

from sharpness.errors import NonFiniteError
from sharpness.operators import SymmetricOperator
from sharpness.random import normal
from sharpness.spectrum.rows import Rows

CANCELLED = 0.1  # of a row's norm left by its neighbours in the block: below, rounding in Q is worth a third pass


class KrylovBasis:
    """Orthonormal rows Q (j of them), T = Q A Qᵀ and the next block X (b rows), such that A Qᵀ = Qᵀ T + Xᵀ B.

    Growing by ``expand`` is the (block) Lanczos recurrence, of which B, of shape (b, j), is the border; ``restart``
    keeps chosen Ritz vectors and the relation (thick restart, Wu and Simon 2000); ``deflate`` keeps them and goes on
    from random rows, which finds what a Krylov sequence of b rows cannot: an eigenvector beyond the b-th of one
    eigenvalue. A row of X that is no residual, because none was left to be one, is random and has zeros in B.

    Args:
        operator: A, of shape (n, n).
        capacity: most rows of Q, at most n; there is room for one more block, and for the images A q of all rows.
        seed: of the random rows.
        start: the first block, of shape (s, n), made orthonormal; default and rest: random rows.
        block: b, rows of every further block, of which the last may have fewer.
        place: where the rows lie, ``"device"`` or ``"host"``.

    Cost: ``expand`` takes b products, in one call, and 4·j·n multiplications for each.

    >>> from sharpness.operators import Dense
    >>> basis = KrylovBasis(Dense(torch.diag(torch.tensor([1.0, 2.0, 3.0]))), 3, seed=0, start=torch.ones(1, 3))
    >>> basis.expand()  # Q = (1, 1, 1)/√3, T = mean, B = standard deviation
    >>> basis.projected[0, 0].round(4), basis.border.round(4)
    (np.float64(2.0), array([[0.8165]]))
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
        self.capacity, self.size, self.block = min(capacity, n), 0, block
        count = min(self.capacity + max(block, 0 if start is None else len(start)), 2 * n)
        self._rows = Rows(count, n, dtype=operator.dtype, device=operator.device, place=place)
        self._images = self._rows.like(self.capacity)
        self.projected = np.zeros((self.capacity, self.capacity))
        self.border = np.zeros((0, 0))
        self.forgotten = np.zeros(0)  # per row of Q: norm of the residual that ``deflate`` dropped
        self.products = 0
        self.asymmetry = 0.0
        self._continue_with(self._rows.read(0, 0) if start is None else start)

    @property
    def width(self) -> int:
        """Rows of X: how many products the next ``expand`` takes."""
        return len(self.border)

    @property
    def full(self) -> bool:
        """Whether X has no room in Q before a restart."""
        return self.size + self.width > self.capacity

    @property
    def complete(self) -> bool:
        """Whether Q spans the whole space, so that T is A itself in another basis."""
        return self.size == self._operator.shape[0]

    def expand(self) -> None:
        """One product for each row of X, in one call: X joins Q."""
        j, width = self.size, self.width
        images = self._operator @ self._rows.read(j, j + width).T
        self.products += width
        self._images.write(j, images.T)
        residual, coefficients = self._rows.orthogonalise(images.T, j + width)
        columns = coefficients.double().cpu().numpy()
        self._check(columns)
        if not self.forgotten.any():  # ⟨X, A Q⟩ is the border: what differs is rounding in the products
            self.asymmetry = max(self.asymmetry, float(np.abs(columns[:j] - self.border.T).max(initial=0.0)))
        self.size = j + width
        columns[j:] = (columns[j:] + columns[j:].T) / 2
        self.projected[: self.size, j : self.size] = columns
        self.projected[j : self.size, : self.size] = columns.T
        self.forgotten = np.append(self.forgotten, np.zeros(width))
        self._continue_with(residual)

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values (ascending), coefficients of the Ritz vectors in Q (columns), and residual norms ‖A y − θ y‖.

        What ``deflate`` dropped is not in these norms; ``forgotten_residuals`` bounds it.
        """
        values, coefficients = np.linalg.eigh(self.projected[: self.size, : self.size])
        return values, coefficients, np.linalg.norm(self.border @ coefficients, axis=0)

    def forgotten_residuals(self, coefficients: np.ndarray) -> np.ndarray:
        """For combinations of Q's rows, a bound on the part of the residual that ``deflate`` dropped."""
        return self.forgotten @ np.abs(coefficients)

    def vectors(self, coefficients: np.ndarray) -> Rows:
        """Linear combinations of Q's rows, one to a column of ``coefficients``, as new rows."""
        combined = self._rows.like(coefficients.shape[1])
        self._rows.combine(coefficients, combined)
        return combined

    def images(self, coefficients: np.ndarray) -> Rows:
        """A times ``vectors(coefficients)``, put together from the products that Q has taken."""
        combined = self._images.like(coefficients.shape[1])
        self._images.combine(coefficients, combined)
        return combined

    def discrepancy(self, value: float, coefficients: np.ndarray) -> float:
        """‖A y − (θ y + Xᵀ B c)‖ of one Ritz pair θ, y = Qᵀ c, by one product: what rounding does to the recurrence.

        Only where nothing has been forgotten.
        """
        y = self.vectors(coefficients[:, None]).read(0, 1)
        following = self._rows.read(self.size, self.size + self.width)
        weights = torch.as_tensor(self.border @ coefficients, device=y.device)
        image = (self._operator @ y.T).T.double()
        self.products += 1
        return _norm(image - value * y.double() - weights @ following.double())

    def restart(self, values: np.ndarray, coefficients: np.ndarray) -> None:
        """Keep these Ritz pairs and the next block; forget the rest."""
        kept = len(values)
        following = self._rows.read(self.size, self.size + self.width).clone()
        for rows in (self._rows, self._images):
            rows.combine(coefficients, rows)
        self._rows.write(kept, following)
        self.projected[:] = 0.0
        self.projected[:kept, :kept] = np.diag(values)
        self.border = self.border @ coefficients
        self.forgotten = self.forgotten_residuals(coefficients)
        self.size = kept

    def deflate(self, values: np.ndarray, coefficients: np.ndarray) -> None:
        """Keep these (converged) Ritz pairs and go on from ``block`` random rows orthogonal to them."""
        self.restart(values, coefficients)
        self.forgotten += np.linalg.norm(self.border, axis=0)
        self._continue_with(self._rows.read(0, 0))

    def adopt(self, vectors: Rows, images: Rows, values: np.ndarray, residuals: np.ndarray) -> None:
        """Begin with these orthonormal Ritz vectors, found elsewhere, and go on as after ``deflate``."""
        for rows, given in ((self._rows, vectors), (self._images, images)):
            rows.write(0, given.read(0, given.count))
        self.size = len(values)
        self.projected[:] = 0.0
        self.projected[: self.size, : self.size] = np.diag(values)
        self.forgotten = residuals.copy()
        self._continue_with(self._rows.read(0, 0))

    def _continue_with(self, candidates: torch.Tensor) -> None:
        """Make X from the residuals of the last rows of Q (at the start: from given rows), and their border."""
        factor = self._orthonormalise(candidates)
        room = self._operator.shape[0] - self.size
        width = min(max(self.block, len(factor)), room)
        for row in range(len(factor), width):
            self._rows.write(self.size + row, self._random_direction(self.size + row))
        self.border = np.zeros((width, self.size))
        if self.size:
            self.border[: len(factor), self.size - len(candidates) :] = factor

    def _orthonormalise(self, candidates: torch.Tensor) -> np.ndarray:
        """Orthonormal rows of X, as many as the candidates span, and F such that the candidates are Fᵀ X.

        Gram–Schmidt row by row. The candidates are orthogonal to Q to their own rounding, which grows by as much as
        the rows before them cancel them.
        """
        factor = np.zeros((len(candidates), len(candidates)))
        first, count, room = self.size, 0, self._operator.shape[0] - self.size
        for index in range(len(candidates)):
            row = candidates[index : index + 1]
            rest, coefficients = self._rows.orthogonalise(row, first + count, first)
            norm = _norm(rest)
            factor[:count, index] = coefficients[:, 0].double().cpu().numpy()
            if norm <= self._negligible() or count == room:
                continue
            if norm < CANCELLED * _norm(row):
                rest = self._rows.orthogonalise(rest / norm, first + count)[0]
                rest = rest * (norm / _norm(rest))
            factor[count, index] = norm
            self._rows.write(first + count, rest / norm)
            count += 1
        return factor[:count]

    def _random_direction(self, count: int) -> torch.Tensor:
        """A random unit vector, of shape (1, n), orthogonal to the first rows, from the solver's next stream."""
        n, key = self._operator.shape[0], ("lanczos", self._draws)
        self._draws += 1
        vector = normal(1, n, key=key, seed=self._seed, dtype=self._rows.dtype, device=self._rows.device)
        for _ in range(2):
            vector = self._rows.orthogonalise(vector / vector.norm(), count)[0]
        return vector / vector.norm()

    def _negligible(self) -> float:
        """A residual below this is rounding: the basis is invariant."""
        scale = np.abs(self.projected[: self.size, : self.size]).max(initial=0.0)
        return float(10 * torch.finfo(self._rows.dtype).eps * scale * np.sqrt(self.size))

    def _check(self, columns: np.ndarray) -> None:
        bad = ~np.isfinite(columns).all(axis=0)
        if bad.any():
            number = self.products - len(bad) + int(bad.argmax()) + 1
            raise NonFiniteError(
                f"expected finite products; product {number} holds NaN or infinite entries. "
                "Try float64 (dtype=torch.float64), or check the weights."
            )


def _norm(row: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(row, dtype=torch.float64))
