"""A chunk's share of f, as a number and as a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import nn

from sharpness.errors import UnsupportedModelError
from sharpness.objective.execution import exact_arithmetic, saved_bytes
from sharpness.objective.kernels import Kernels
from sharpness.objective.losses import BatchLoss, Term, length
from sharpness.objective.snapshot import Snapshot
from sharpness.params import ParamSpace
from sharpness.random import preserved_random_state

ACTIVATION_BYTES = {"cpu": 2**27, "cuda": 2**32}  # what one chunk's saved activations may take by default


@final
class Terms:
    """Chunks' Σ losses and Σ weights at parameters in their own shapes, with a graph where these require one.

    ``coupled``: examples of a chunk see each other through batch-norm statistics.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        loss: BatchLoss,
        space: ParamSpace,
        *,
        coupled: bool,
        device: torch.device,
        kernels: str,
    ) -> None:
        self._snapshot, self._loss, self._space = snapshot, loss, space
        self._coupled, self._device, self._kernels = coupled, device, kernels

    def of(self, space: ParamSpace) -> Terms:
        """The same as functions of other parameters of the model."""
        own: dict[str, Any] = {"coupled": self._coupled, "device": self._device, "kernels": self._kernels}
        return Terms(self._snapshot, self._loss, space, **own)

    def __call__(
        self,
        chunk: Any,
        parameters: Sequence[torch.Tensor],
        buffers: Mapping[str, torch.Tensor] | None = None,
        kernels: Kernels | None = None,
    ) -> Term:
        """The term of one chunk."""
        with exact_arithmetic(self._device), kernels or Kernels(self._kernels):
            return self._loss(self._model(parameters, buffers), chunk)

    def score(
        self,
        chunk: Any,
        parameters: Sequence[torch.Tensor],
        buffers: Mapping[str, torch.Tensor] | None,
        kernels: Kernels | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Σ losses and Σ weights of one chunk in float64, hits and how many could be."""
        term = self(chunk, parameters, buffers, kernels)
        total = term.total.double()
        return (
            total,
            total.new_tensor(1.0) * term.weight,
            *(self._loss.correct(term.output, chunk) or (total.new_zeros(()),) * 2),
        )

    def losses(
        self, chunk: Any, parameters: Sequence[torch.Tensor], buffers: Mapping[str, torch.Tensor] | None
    ) -> torch.Tensor | None:
        """The loss of each example; None where f does not tell them apart."""
        if self._coupled:
            return None
        with exact_arithmetic(self._device), Kernels(self._kernels):
            return self._loss.each(self._model(parameters, buffers), chunk)

    def of_outputs(
        self,
        chunk: Any,
        parameters: Sequence[torch.Tensor],
        buffers: Mapping[str, torch.Tensor] | None,
        kernels: Kernels,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], Term]:
        """The term of one chunk in two steps: the model's outputs z(θ), the same cut off from θ, and the term of those.

        Raises:
            UnsupportedModelError: the loss is computed inside the model, or there is no output to cut.
        """
        if self._loss.inside:
            raise UnsupportedModelError(
                'expected the model\'s output and the loss apart; loss="model" computes it inside. Give the loss as a '
                "function: loss(output, batch)"
            )
        outputs: list[torch.Tensor] = []
        cut: list[torch.Tensor] = []

        def separate(output: torch.Tensor) -> torch.Tensor:
            if not output.requires_grad:
                return output
            outputs.append(output)
            cut.append(output.detach().requires_grad_())
            return cut[-1].clone()  # which a loss may change in place

        def model(*args: Any, **kwargs: Any) -> Any:
            with kernels:
                return pytree.tree_map_only(torch.Tensor, separate, bound(*args, **kwargs))

        bound = self._model(parameters, buffers)
        with exact_arithmetic(self._device), Kernels("torch"):
            term = self._loss(model, chunk)
        if not outputs or not term.total.requires_grad:
            raise UnsupportedModelError(
                "expected a loss of output tensors that depend on the parameters; got one without a gradient. Is the "
                "output detached?"
            )
        return outputs, cut, term

    def differentiate(
        self, total: torch.Tensor, leaves: Sequence[torch.Tensor], *, create_graph: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """∇ total with respect to ``leaves``, zero for unused ones; a loss cut off from all parameters is refused."""
        if not total.requires_grad and self._space.partial:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        if not total.requires_grad:
            raise UnsupportedModelError(
                "expected a loss that depends on the parameters; got one without a gradient. Is the output detached, "
                "or computed under torch.no_grad()?"
            )
        with exact_arithmetic(self._device):
            return torch.autograd.grad(total, leaves, create_graph=create_graph, materialize_grads=True)

    def saved_bytes_per_example(self, few: Any, *, linearised: bool = False) -> int:
        """Memory that one example's graph retains: of f, or of its gradient (for products). Measured on ``few``.

        Parameters, which all examples share, do not count, nor do those that are constants.
        """
        model = self._snapshot.parameters(self._space.names)
        leaves = [parameter.detach().requires_grad_() for parameter in model.values()]

        def run() -> object:
            total = self(few, leaves, None, Kernels(self._kernels, retained=linearised, smallest=0)).total
            return self.differentiate(total, leaves, create_graph=True) if linearised else total

        with preserved_random_state():
            return saved_bytes(run, [*self._snapshot.module.parameters()]) // length(few)

    def chunk_size(self, batches: Sequence[Any], few: Any) -> int:
        """As many examples as keep the saved activations of one chunk within ``ACTIVATION_BYTES``."""
        budget = ACTIVATION_BYTES.get(self._device.type, ACTIVATION_BYTES["cpu"])
        longest = max(length(batch) for batch in batches)
        most = max(1, budget // max(1, self.saved_bytes_per_example(few)))
        return math.ceil(longest / math.ceil(longest / most))

    @property
    def module(self) -> nn.Module:
        """The private copy of the model that is called, to look at."""
        return self._snapshot.called(by_batch=self._coupled)

    def _model(
        self, parameters: Sequence[torch.Tensor], buffers: Mapping[str, torch.Tensor] | None
    ) -> Callable[..., Any]:
        named = dict(zip(self._space.names, parameters, strict=True))
        if self._coupled:
            return self._snapshot.bound_to_batch(named, buffers)
        return self._snapshot.bound(named, buffers)
