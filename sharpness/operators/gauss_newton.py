"""Positive parts of the curvature: the Gauss–Newton matrix and the Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F

from sharpness.errors import ShapeError, UnsupportedModelError
from sharpness.objective import Kernels, Objective, exact_arithmetic, free_bytes
from sharpness.operators.base import SymmetricOperator
from sharpness.operators.chunks import RETAIN_FRACTION, Chunks, checked
from sharpness.operators.diagnosis import check_differentiable_twice, diagnose, diagnosed
from sharpness.operators.linearised import check_finite, flat, pull_back
from sharpness.params import Point

LOG_PARTITIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda z: z.logsumexp(1),
    "bernoulli": F.softplus,
    "gaussian": lambda z: 0.5 * z.square(),
}


@final
class GaussNewton(SymmetricOperator):
    """G = Σ Jᵀ (∇²ℓ) J / Σ weights (+ l2·I) of an objective at one place, J being the Jacobian of the outputs z in θ.

    The Hessian without the second derivatives of the model: H = G + Σ (∂ℓ/∂z) ∇²z / Σ weights. Where ℓ is convex in z,
    as cross-entropy and squared errors are, G is positive semidefinite. G = H where the model is linear in θ.

    Args:
        objective: f, whose loss is a function of the model's output, with ``batchnorm="eval"`` or ``"batch"``.
        place: θ of shape (n,), a ``Point`` or a ``Minimizer``.
        memory: bytes that retained graphs may take; default: half of what is free.

    Cost: a product is two passes through retained graphs, J v and Jᵀ (∇²ℓ (J v)): four matrix products for a linear
    layer where one of the Hessian takes six.

    Raises:
        UnsupportedModelError: the loss is computed inside the model, or f has values only.
        NonFiniteError: the gradient at this place is NaN or infinite.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> f, theta = Objective.from_module(model, lambda z, t: z.exp(), (torch.eye(2), torch.zeros(2, 1)))
        >>> GaussNewton(f, theta.zero_()) @ torch.tensor([1.0, 2.0])  # f = (exp θ₁ + exp θ₂) / 2
        tensor([0.5000, 1.0000])
    """

    def __init__(self, objective: Objective, place: Any, *, memory: int | None = None) -> None:
        objective.check_differentiable()
        point = objective.point(place)
        self._point = Point(point.theta.clone(), point.buffers)
        self._leaves = [part.clone().requires_grad_() for part in objective.space.split(self._point.theta)]
        graph = partial(OutputGraph, objective, objective.few, self._leaves, point.buffers)
        self._objective = checked(objective, graph, curved=False)

        def begin(index: int, kept: bool) -> OutputGraph:  # noqa: ARG001 - they are all alike
            graph = self._graph(self._objective.chunks[index])
            graph.check()
            return graph

        self._chunks = Chunks(
            self._objective,
            begin,
            self._graph,
            memory=free_bytes(objective.device) * RETAIN_FRACTION if memory is None else memory,
            bytes_per_example=objective.terms.saved_bytes_per_example(objective.few, linearised=True),
        )

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
    def conditions(self) -> dict[str, Any]:
        own = self._objective.conditions
        execution = {**own["execution"], "retained_chunks": self._chunks.count}
        return {**own, "operator": "gauss_newton", "theta_sha256": self._point.sha256, "execution": execution}

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.conditions, "data": self._objective.fingerprint}

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._chunks.product(vectors)

    def _graph(self, chunk: Any) -> OutputGraph:
        return OutputGraph(self._objective, chunk, self._leaves, self._point.buffers)


@final
class Fisher(SymmetricOperator):
    """The Fisher information Σ E[∇log p(y) ∇log p(y)ᵀ] / count of what a model predicts, y drawn from its own p.

    Where outputs z are natural parameters of p, it is Σ Jᵀ (∇²A(z)) J / count with the log-partition function A: a
    Gauss–Newton matrix that needs no targets. It is that of the loss itself where that is the negative logarithm of p,
    every prediction counting 1. (Squared errors (z − t)² are those of a variance of ½: twice as much.)

    Args:
        objective: whose model, data, l2 and batch-norm policy; its loss is not used.
        place: θ of shape (n,), a ``Point`` or a ``Minimizer``.
        distribution: ``"softmax"``, classes in dimension 1, predictions whose target is negative (masked) not counted;
            ``"bernoulli"``, outputs being log-odds; ``"gaussian"``, outputs being means of unit variance.
        memory: bytes that retained graphs may take; default: half of what is free.

    Cost and errors are those of ``GaussNewton``.

    Example:
        >>> from sharpness.objective import cross_entropy
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> f, theta = Objective.from_module(model, cross_entropy, (torch.ones(1, 1), torch.tensor([0])))
        >>> Fisher(f, theta.zero_()) @ torch.tensor([1.0, 0.0])  # diag(p) − p pᵀ for p = (½, ½)
        tensor([ 0.2500, -0.2500])
    """

    def __init__(
        self, objective: Objective, place: Any, *, distribution: str = "softmax", memory: int | None = None
    ) -> None:
        if distribution not in LOG_PARTITIONS:
            raise ShapeError(f"expected distribution to be one of {', '.join(LOG_PARTITIONS)}; got {distribution!r}")
        self._distribution = distribution
        self._matrix = GaussNewton(objective.replace(loss=_log_partition(distribution)), place, memory=memory)

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._matrix.dtype

    @property
    def device(self) -> torch.device:
        return self._matrix.device

    @property
    def conditions(self) -> dict[str, Any]:
        return {**self._matrix.conditions, "operator": "fisher", "distribution": self._distribution}

    @property
    def identity(self) -> dict[str, Any]:
        return {**self._matrix.identity, **self.conditions}

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._matrix @ vectors


def _log_partition(distribution: str) -> Callable[[torch.Tensor, Any], Any]:
    """A(z) as a loss."""

    def loss(output: Any, target: Any) -> Any:
        if not (isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)):
            raise UnsupportedModelError(
                "expected a model that returns one tensor, and batches (inputs, target); got an output of type "
                f"{type(output).__name__} and a target of type {type(target).__name__}"
            )
        values = LOG_PARTITIONS[distribution](output)
        counted = torch.ones_like(values, dtype=torch.bool)
        if distribution == "softmax" and not target.is_floating_point():
            if target.shape != values.shape:
                raise ShapeError(
                    f"expected classes in dimension 1 of the output, and a target of shape {tuple(values.shape)}; got "
                    f"{tuple(target.shape)}"
                )
            counted = target >= 0
        # 1 for each, whatever A is, for only derivatives matter: sums of it over a batch's parts then are exact
        values = values - values.detach() + 1
        return values[counted].sum(dtype=torch.float64), counted.sum()

    return loss


class OutputGraph:
    """One chunk's outputs z and the gradient of its loss in them, kept: a product is Jᵀ (∇²ℓ (J v)).

    J v is the derivative in u of ⟨Jᵀ u, v⟩, so that gradients have to be differentiable in what comes in from behind.
    """

    def __init__(
        self,
        objective: Objective,
        chunk: Any,
        leaves: Sequence[torch.Tensor],
        buffers: Mapping[str, torch.Tensor] | None,
        kernels: Kernels | None = None,
    ) -> None:
        kernels = kernels or Kernels(objective.kernels, retained=True, curved=False)
        self._explain = partial(diagnose, objective, chunk, leaves, buffers, curved=False)
        with diagnosed(self._explain):
            self._outputs, self._cut, term = objective.terms.of_outputs(chunk, leaves, buffers, kernels)
        self._leaves, self._device, self.weight = leaves, objective.device, float(term.weight)
        self._directions = [torch.zeros_like(output, requires_grad=True) for output in self._outputs]
        self._total = term.total
        with exact_arithmetic(self._device), diagnosed(self._explain):
            self._slopes = torch.autograd.grad(term.total, self._cut, create_graph=True, materialize_grads=True)
            self._turned = torch.autograd.grad(
                self._outputs, leaves, self._directions, create_graph=True, materialize_grads=True
            )

    def check(self) -> None:
        """Refuse what is not finite, and a loss that depends on θ by other ways than the outputs, or has no slope."""
        check_finite(all(bool(part.isfinite().all()) for part in (*self._outputs, *self._slopes, *self._turned)))
        check_differentiable_twice([self._total, *self._outputs], self._explain)
        others = torch.autograd.grad(self._total, self._leaves, retain_graph=True, allow_unused=True)
        if any(other is not None for other in others):
            raise UnsupportedModelError(
                "expected a loss of the model's output tensors alone; this one depends on the parameters by another way"
            )

    def product(self, direction: Sequence[torch.Tensor]) -> torch.Tensor:
        """G v of shape (n,), for v in the parameters' shapes."""
        return self._product(direction, batched=False)

    def products(self, directions: Sequence[torch.Tensor]) -> torch.Tensor:
        """The same for b vectors at once: parts of shape (b, …) give (b, n)."""
        return self._product(directions, batched=True)

    def _product(self, direction: Sequence[torch.Tensor], *, batched: bool) -> torch.Tensor:
        with exact_arithmetic(self._device), nullcontext() if batched else diagnosed(self._explain):
            moved = pull_back(self._turned, self._directions, direction, batched=batched)
            bent = pull_back(self._slopes, self._cut, moved, batched=batched)
            return flat(pull_back(self._outputs, self._leaves, bent, batched=batched), batched=batched)
