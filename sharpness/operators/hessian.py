"""The Hessian of an objective, linearised once and applied to vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
from torch.autograd.function import once_differentiable

from sharpness.errors import NonFiniteError, UnsupportedModelError
from sharpness.objective import Objective, exact_arithmetic
from sharpness.operators.base import SymmetricOperator
from sharpness.params import Point

RETAIN_FRACTION = 0.5  # of the memory that is free when the operator is made


@final
class Hessian(SymmetricOperator):
    """H = ∇²f(θ) of an objective at one place, by exact products.

    The gradient is linearised once, when the operator is made: its graph is retained chunk by chunk, and a product
    ``H @ v`` is one backward pass through it, about two gradients. Chunks whose graphs do not fit into ``memory`` are
    rebuilt at every product, at about three gradients; the numbers are the same.

    Args:
        objective: f; its batch-norm policy must be ``"eval"`` or ``"batch"``.
        place: θ of shape (n,), a ``Point`` or a ``Minimizer``.
        memory: bytes that retained graphs may take; default: half of what is free.

    Raises:
        UnsupportedModelError: f cannot be differentiated twice, or only its values exist.
        NonFiniteError: the gradient at this place is NaN or infinite.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> f, theta = Objective.from_module(model, lambda o, t: 0.5 * o.square(), (torch.eye(2), torch.zeros(2, 1)))
        >>> Hessian(f, theta) @ torch.tensor([1.0, 2.0])  # f = (θ₁² + θ₂²) / 4
        tensor([0.5000, 1.0000])
    """

    def __init__(self, objective: Objective, place: Any, *, memory: int | None = None) -> None:
        objective.check_differentiable()
        self._objective = objective
        point = objective.point(place)
        self._point = Point(point.theta.clone(), point.buffers)  # what the caller does to θ later is not our θ
        self._leaves = [part.clone().requires_grad_() for part in objective.space.split(self._point.theta)]
        self._linearise(_free_bytes(objective.device) * RETAIN_FRACTION if memory is None else memory)

    @property
    def shape(self) -> tuple[int, int]:
        return (self._objective.size, self._objective.size)

    @property
    def dtype(self) -> torch.dtype:
        return self._objective.dtype

    @property
    def device(self) -> torch.device:
        return self._objective.device

    @property
    def retained_bytes(self) -> int:
        """Memory that the retained graphs take, as estimated from a few examples."""
        kept = [size for size, graph in zip(self._objective.partition, self._graphs, strict=True) if graph is not None]
        return self._bytes_per_example * sum(kept)

    @property
    def conditions(self) -> dict[str, Any]:
        retained = sum(graph is not None for graph in self._graphs)
        own = {"operator": "hessian", "retained_chunks": retained, "theta_sha256": self._point.sha256}
        return {**self._objective.conditions, **own}

    def _linearise(self, memory: float) -> None:
        self._bytes_per_example = self._objective.saved_bytes_per_example(linearised=True)
        self._graphs: list[tuple[torch.Tensor, ...] | None] = []
        self._weight = 0.0
        used = 0
        for index, size in enumerate(self._objective.partition):
            parts, weight = self._gradient(index)
            if not all(bool(part.isfinite().all()) for part in parts):
                raise NonFiniteError(
                    "expected a finite gradient to linearise; got NaN or infinite entries. Check the weights (did "
                    "training diverge?) and the scale of the inputs."
                )
            used += self._bytes_per_example * size
            self._weight += weight
            self._graphs.append(parts if used <= memory else None)

    def _gradient(self, index: int) -> tuple[tuple[torch.Tensor, ...], float]:
        term = self._objective.term(index, self._leaves, self._point.buffers)
        parts = self._objective.differentiate(term.total, self._leaves, create_graph=True)
        if not self._graphs:  # the first chunk, while the operator is made
            _check_differentiable_twice(term.total)
        return parts, float(term.weight)

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(vectors.T.shape, dtype=torch.float64, device=self.device)
        directions = [self._objective.space.split(vector.contiguous()) for vector in vectors.T]
        for index, graph in enumerate(self._graphs):
            parts = self._gradient(index)[0] if graph is None else graph
            for row, direction in zip(sums, directions, strict=True):
                row += self._pull_back(parts, direction)
        return (sums.T / self._weight + self._objective.l2 * vectors).to(self.dtype)

    def _pull_back(self, parts: tuple[torch.Tensor, ...], direction: list[torch.Tensor]) -> torch.Tensor:
        """∂⟨g, v⟩/∂θ for one chunk's Σ losses."""
        curved = [(part, v) for part, v in zip(parts, direction, strict=True) if part.requires_grad]
        if not curved:  # a loss linear in θ
            return torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        gradients, weights = zip(*curved, strict=True)
        try:
            with exact_arithmetic(self.device):
                columns = torch.autograd.grad(
                    gradients, self._leaves, weights, retain_graph=True, materialize_grads=True
                )
        except RuntimeError as error:
            if "not implemented" not in str(error) and "twice" not in str(error):
                raise
            raise UnsupportedModelError(
                f"expected a model that can be differentiated twice; PyTorch says: {str(error).splitlines()[0]}. "
                "Replace that operation by one with a second derivative for the analysis."
            ) from error
        return torch.cat([column.reshape(-1) for column in columns])


@once_differentiable
def _once(ctx: Any) -> None:
    """Shares its code with every function so marked, by which they are known."""


def _check_differentiable_twice(total: torch.Tensor) -> None:
    """Refuse a graph with functions marked ``once_differentiable``, whose second derivative PyTorch drops silently."""
    seen: set[Any] = set()
    nodes = [total.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        function = getattr(node, "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _once.__code__:
            name = getattr(function, "__name__", "a function")
            raise UnsupportedModelError(
                f"expected a model that can be differentiated twice; {name} is marked once_differentiable. "
                "Replace it by an operation with a second derivative for the analysis."
            )


def _free_bytes(device: torch.device) -> int:
    """Memory that is free for the taking on ``device`` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 2**31  # systems without /proc: be modest
