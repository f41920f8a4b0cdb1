"""A matrix that is a sum over the chunks of an objective, of whose graphs as many are kept as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from sharpness.objective import Kernels, Objective
from sharpness.random import normal

RETAIN_FRACTION = 0.5  # of the memory that is free when an operator is made
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-9}  # between two ways; a wrong formula differs by far more


class ChunkProduct(Protocol):
    """The matrix of one chunk, by its products."""

    @property
    def weight(self) -> float:
        """Σ weights of the chunk's losses."""

    def product(self, direction: Sequence[torch.Tensor]) -> torch.Tensor:
        """A v of shape (n,), for v in the parameters' shapes."""

    def products(self, directions: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """The same for b vectors at once, if that can be done: parts of shape (b, …) give (b, n)."""


class Chunks:
    """(Σ A_c) / (Σ weights) + l2·I over the chunks c of an objective.

    Args:
        objective: whose chunks, weights and l2.
        begin: makes A_c for a chunk for the first time, given its index and whether it will be kept, and checks it.
        again: the same where it is not kept, at every product.
        memory: bytes that those kept may take.
        bytes_per_example: that one takes.
    """

    def __init__(
        self,
        objective: Objective,
        begin: Callable[[int, bool], ChunkProduct],
        again: Callable[[Any], ChunkProduct],
        *,
        memory: float,
        bytes_per_example: int,
    ) -> None:
        self._objective, self._again, self._bytes_per_example = objective, again, bytes_per_example
        self.batched = objective.device.type == "cuda"  # several vectors at once fill a GPU; a CPU is full with one
        self.kept: list[ChunkProduct | None] = []
        self.weight = 0.0
        used = 0
        for index, size in enumerate(objective.partition):
            used += bytes_per_example * size
            chunk = begin(index, used <= memory)
            self.weight += chunk.weight
            self.kept.append(chunk if used <= memory else None)

    @property
    def count(self) -> int:
        """How many are kept."""
        return sum(chunk is not None for chunk in self.kept)

    @property
    def bytes(self) -> int:
        """What they take, as estimated from a few examples."""
        sizes = [size for size, chunk in zip(self._objective.partition, self.kept, strict=True) if chunk is not None]
        return self._bytes_per_example * sum(sizes)

    def product(self, vectors: torch.Tensor) -> torch.Tensor:
        """A V for V of shape (n, b)."""
        f, rows = self._objective, vectors.T.contiguous()
        # one chunk's product is the sum itself; more are added up in float64
        precision = torch.float64 if len(self.kept) > 1 else f.dtype
        sums = torch.zeros(rows.shape, dtype=precision, device=f.device)
        for chunk, kept in zip(f.chunks, self.kept, strict=True):
            matrix = kept or self._again(chunk)
            if (block := self._block(matrix, rows)) is not None:
                sums += block
                continue
            for total, row in zip(sums, rows, strict=True):
                total += matrix.product(f.space.split(row))
        sums /= self.weight
        if f.l2:
            sums += f.l2 * rows
        return sums.to(f.dtype).T

    def _block(self, matrix: ChunkProduct, rows: torch.Tensor) -> torch.Tensor | None:
        """One chunk's products with several vectors at once; None where that does not pay or cannot be done."""
        if not self.batched or len(rows) < 2:
            return None
        try:
            return matrix.products(self._objective.space.split_rows(rows))
        except RuntimeError:  # an operation that takes no batch of gradients, or not enough memory for one
            self.batched = False
            return None


def checked(f: Objective, make: Callable[[Kernels], ChunkProduct], *, curved: bool = True) -> Objective:
    """f, or f with PyTorch's kernels where its own do not give the same product on a few examples."""
    if f.kernels == "torch":
        return f
    ours, reference = (make(Kernels(name, retained=True, curved=curved, smallest=0)) for name in (f.kernels, "torch"))
    return f if agree(f, ours, reference, vectors=1) else f.replace(kernels="torch")


def agree(f: Objective, ours: ChunkProduct, reference: ChunkProduct, *, vectors: int) -> bool:
    """Whether two ways to the matrix of one chunk give the same products."""
    for draw in range(vectors):
        vector = normal(f.size, key=("agreement", draw), seed=0, dtype=f.dtype, device=f.device)
        direction = f.space.split(vector)
        expected = reference.product(direction)
        if not bool((ours.product(direction) - expected).norm() <= AGREEMENT[f.dtype] * expected.norm()):
            return False
    return True
