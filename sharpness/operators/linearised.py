"""The gradient of one chunk, linearised at θ: what its Hessian makes of vectors, again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from sharpness.errors import NonFiniteError
from sharpness.objective import Kernels, Objective, exact_arithmetic
from sharpness.operators.diagnosis import check_differentiable_twice, diagnose, diagnosed


class RetainedGraph:
    """The graph of a chunk's gradient, kept: a product is one backward pass through it.

    Args:
        objective, chunk: whose Σ losses.
        leaves: θ in the parameters' shapes, requiring gradients.
        buffers: those of the point.
        kernels: default: the objective's.

    Attributes:
        gradient: of Σ losses, in the parameters' shapes.
        total, weight: Σ losses and Σ weights.

    Raises:
        UnsupportedModelError: here or at a product: an operation of the model or the loss has no such derivative.
    """

    def __init__(
        self,
        objective: Objective,
        chunk: Any,
        leaves: Sequence[torch.Tensor],
        buffers: Mapping[str, torch.Tensor] | None,
        kernels: Kernels | None = None,
    ) -> None:
        kernels = kernels or Kernels(objective.kernels, retained=True)
        self._leaves, self._device = leaves, objective.device
        self._explain = partial(diagnose, objective, chunk, leaves, buffers)
        with diagnosed(self._explain):
            term = objective.terms(chunk, leaves, buffers, kernels)
            self.gradient = objective.terms.differentiate(term.total, leaves, create_graph=True)
        self.total, self.weight = term.total, float(term.weight)

    def check(self) -> None:
        """Refuse a gradient that is not finite, or whose derivative PyTorch would silently drop."""
        check_finite(all(bool(part.isfinite().all()) for part in self.gradient))
        check_differentiable_twice([self.total], self._explain)

    def product(self, direction: Sequence[torch.Tensor]) -> torch.Tensor:
        """∂⟨g, v⟩/∂θ of shape (n,), for v in the parameters' shapes."""
        return self._product(direction, batched=False)

    def products(self, directions: Sequence[torch.Tensor]) -> torch.Tensor:
        """The same for b vectors at once: parts of shape (b, …) give (b, n)."""
        return self._product(directions, batched=True)

    def _product(self, direction: Sequence[torch.Tensor], *, batched: bool) -> torch.Tensor:
        # several at once are tried, and taken one by one where that fails
        with exact_arithmetic(self._device), nullcontext() if batched else diagnosed(self._explain):
            return flat(pull_back(self.gradient, self._leaves, direction, batched=batched), batched=batched)


def flat(columns: Sequence[torch.Tensor], *, batched: bool) -> torch.Tensor:
    """Parts in the parameters' shapes as one vector of shape (n,), or those of b vectors as rows of shape (b, n)."""
    return torch.cat([column.reshape(*column.shape[:batched], -1) for column in columns], dim=-1)


def pull_back(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], *, batched: bool
) -> list[torch.Tensor]:
    """∂ Σ ⟨output, weight⟩ / ∂ input through a graph that is kept; zeros where there is none."""
    curved = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    columns: Sequence[torch.Tensor | None] = [None] * len(inputs)
    if curved:
        columns = torch.autograd.grad(
            [output for output, _ in curved],
            inputs,
            [weight for _, weight in curved],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
    many = weights[0].shape[:1] if batched else ()
    return [
        given.new_zeros((*many, *given.shape)) if column is None else column
        for column, given in zip(columns, inputs, strict=True)
    ]


def check_finite(finite: bool) -> None:
    """Refuse to linearise a gradient that is not."""
    if not finite:
        raise NonFiniteError(
            "expected a finite gradient to linearise; got NaN or infinite entries. Check the weights (did "
            "training diverge?) and the scale of the inputs."
        )
