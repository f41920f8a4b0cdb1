"""Symmetric matrices known by their products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator

from sharpness.errors import NonFiniteError, ShapeError


class SymmetricOperator(ABC):
    """A symmetric n × n matrix A: ``A @ v`` for v of shape (n,) or (n, b). Solvers know only this."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n, n)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of products."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where products are computed."""

    @property
    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """What the matrix is and under which choices it holds, for records."""

    @property
    def identity(self) -> dict[str, Any]:
        """The conditions, and what else tells this matrix from every other; it may take a look at all data."""
        return self.conditions

    @abstractmethod
    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        """A V for V of shape (n, b), on this device, in this dtype."""

    def cheaper(self, accuracy: float) -> tuple[float, SymmetricOperator] | None:  # noqa: ARG002 - most have none
        """An operator nearby whose products cost a small share of those here; and that share.

        ``accuracy`` is how near, relative to the largest eigenvalue, it is meant to be. It is a guess: whoever uses it
        has to compare. None where there is no such operator.
        """
        return None

    @final
    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        n = self.shape[0]
        if not isinstance(vectors, torch.Tensor) or vectors.ndim not in (1, 2) or vectors.shape[0] != n:
            got = tuple(vectors.shape) if hasattr(vectors, "shape") else type(vectors).__name__
            raise ShapeError(f"expected a torch vector of shape ({n},) or block of shape ({n}, b); got {got}")
        columns = vectors if vectors.ndim == 2 else vectors[:, None]
        return self._product(columns.to(device=self.device, dtype=self.dtype)).reshape(vectors.shape)

    @final
    def to_scipy(self) -> LinearOperator:
        """The same matrix as a ``scipy.sparse.linalg.LinearOperator`` on NumPy arrays."""

        def product(vectors: np.ndarray) -> np.ndarray:
            return (self @ torch.as_tensor(np.array(vectors, order="C"))).cpu().numpy()

        dtype = np.float64 if self.dtype == torch.float64 else np.float32
        return LinearOperator(self.shape, matvec=product, rmatvec=product, matmat=product, dtype=dtype)


@final
class Dense(SymmetricOperator):
    """A matrix given entry by entry.

    >>> Dense(torch.tensor([[2.0, 1.0], [1.0, 0.0]])) @ torch.tensor([1.0, 1.0])
    tensor([3., 1.])

    Raises:
        ShapeError: the matrix is not square or not symmetric to rounding.
        NonFiniteError: it has NaN or infinite entries.
    """

    def __init__(self, matrix: torch.Tensor | np.ndarray) -> None:
        matrix = torch.as_tensor(matrix)
        matrix = matrix if matrix.is_floating_point() else matrix.double()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ShapeError(f"expected a square matrix; got shape {tuple(matrix.shape)}")
        if not bool(matrix.isfinite().all()):
            raise NonFiniteError("expected a finite matrix; got NaN or infinite entries")
        asymmetry, largest = (float(m.abs().max()) if m.numel() else 0.0 for m in (matrix - matrix.T, matrix))
        if asymmetry > 1e3 * torch.finfo(matrix.dtype).eps * largest:
            raise ShapeError(
                f"expected a symmetric matrix; got entries that differ from their mirror by {asymmetry:.3g}"
            )
        self._matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        return (self._matrix.shape[0], self._matrix.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        return self._matrix.dtype

    @property
    def device(self) -> torch.device:
        return self._matrix.device

    @property
    def conditions(self) -> dict[str, Any]:
        return {"operator": "dense", "n": self.shape[0]}

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._matrix @ vectors
