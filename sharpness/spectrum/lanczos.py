"""A Krylov basis with full re-orthogonalisation and thick restart."""

from __future__ import annotations

import numpy as np
import torch

from sharpness.errors import NonFiniteError
from sharpness.operators import SymmetricOperator
from sharpness.random import normal

ROTATION_COLUMNS = 2**16  # columns of the basis rotated at a time, so that a restart needs no second basis


def orthogonalise(vector: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``vector`` minus its part in the rows of ``basis``, and the coefficients of that part.

    Two blocked Gram–Schmidt passes: the second removes what rounding leaves after the first, always.
    """
    first = basis @ vector
    vector = torch.addmv(vector, basis.T, first, alpha=-1)
    second = basis @ vector
    return torch.addmv(vector, basis.T, second, alpha=-1), first + second


class KrylovBasis:
    """Orthonormal rows Q (j of them), T = Q A Qᵀ and the next vector q, such that A Qᵀ = Qᵀ T + q borderᵀ.

    Growing by ``expand`` is the Lanczos recurrence; ``restart`` keeps chosen Ritz vectors and the relation (thick
    restart, Wu and Simon 2000); ``deflate`` keeps them and goes on from a random vector, which finds what a single
    Krylov sequence cannot: further copies of a multiple eigenvalue.
    """

    def __init__(
        self, operator: SymmetricOperator, capacity: int, seed: int, start: torch.Tensor | None = None
    ) -> None:
        n = operator.shape[0]
        self._operator, self._seed, self._draws = operator, seed, 0
        self._rows = torch.empty(min(capacity, n) + 1, n, dtype=operator.dtype, device=operator.device)
        self.capacity, self.size = min(capacity, n), 0
        self.projected = np.zeros((self.capacity, self.capacity))
        self.border = np.zeros(0)
        self.products = 0
        self.asymmetry = 0.0
        self.forgotten = np.zeros(0)  # per row of Q: norm of the residual that ``deflate`` dropped
        self._rows[0] = self._random_direction() if start is None else start / start.norm()

    @property
    def complete(self) -> bool:
        """Whether Q spans the whole space, so that T is A itself in another basis."""
        return self.size == self._operator.shape[0]

    def expand(self) -> None:
        """One product: q joins Q."""
        j = self.size
        image = self._operator @ self._rows[j]
        self.products += 1
        residual, coefficients = orthogonalise(image, self._rows[: j + 1])
        column = coefficients.double().cpu().numpy()
        beta = float(torch.linalg.vector_norm(residual, dtype=torch.float64))
        if not np.isfinite(column).all():
            raise NonFiniteError(
                f"expected finite products; product {self.products} holds NaN or infinite entries. "
                "Try float64 (dtype=torch.float64), or check the weights."
            )
        if not self.forgotten.any():  # ⟨q, A Q⟩ is the border: what differs is rounding in the products
            self.asymmetry = max(self.asymmetry, float(np.abs(column[:j] - self.border).max(initial=0.0)))
        self.projected[: j + 1, j] = self.projected[j, : j + 1] = column
        self.size = j + 1
        self.border = np.zeros(self.size)
        self.forgotten = np.append(self.forgotten, 0.0)
        if self.complete:
            return
        if beta <= self._negligible():
            self._rows[self.size] = self._random_direction()  # Q is invariant: go on in its complement
        else:
            self.border[-1] = beta
            self._rows[self.size] = residual / beta

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values (ascending), coefficients of the Ritz vectors in Q (columns), and residual norms ‖A y − θ y‖.

        What ``deflate`` dropped is not in these norms; ``forgotten_residuals`` bounds it.
        """
        values, coefficients = np.linalg.eigh(self.projected[: self.size, : self.size])
        return values, coefficients, np.abs(self.border @ coefficients)

    def forgotten_residuals(self, coefficients: np.ndarray) -> np.ndarray:
        """For combinations of Q's rows, a bound on the part of the residual that ``deflate`` dropped."""
        return self.forgotten @ np.abs(coefficients)

    def vectors(self, coefficients: np.ndarray) -> torch.Tensor:
        """Linear combinations of Q's rows, as columns: shape (n, number of combinations)."""
        return self._rows[: self.size].T @ self._on_device(coefficients)

    def restart(self, values: np.ndarray, coefficients: np.ndarray) -> None:
        """Keep these Ritz pairs and the next vector; forget the rest."""
        kept = len(values)
        rotation = self._on_device(coefficients).T
        for columns in self._rows[: self.size].split(ROTATION_COLUMNS, dim=1):
            columns[:kept] = rotation @ columns
        self._rows[kept] = self._rows[self.size]
        self.projected[:] = 0.0
        self.projected[:kept, :kept] = np.diag(values)
        self.border = self.border @ coefficients
        self.forgotten = self.forgotten_residuals(coefficients)
        self.size = kept

    def deflate(self, values: np.ndarray, coefficients: np.ndarray) -> None:
        """Keep these (converged) Ritz pairs and go on from a random vector orthogonal to them."""
        self.restart(values, coefficients)
        self.forgotten += np.abs(self.border)
        self.border = np.zeros(self.size)
        self._rows[self.size] = self._random_direction()

    def _random_direction(self) -> torch.Tensor:
        """A random unit vector orthogonal to Q, from the next of the solver's streams."""
        n, key = self._operator.shape[0], ("lanczos", self._draws)
        self._draws += 1
        drawn = normal(n, key=key, seed=self._seed, dtype=self._rows.dtype, device=self._rows.device)
        vector, _ = orthogonalise(drawn / drawn.norm(), self._rows[: self.size])
        vector, _ = orthogonalise(vector / vector.norm(), self._rows[: self.size])
        return vector / vector.norm()

    def _negligible(self) -> float:
        """A residual below this is rounding: the basis is invariant."""
        scale = np.abs(self.projected[: self.size, : self.size]).max()
        return float(10 * torch.finfo(self._rows.dtype).eps * scale * np.sqrt(self.size))

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, dtype=self._rows.dtype, device=self._rows.device)
