"""How one batch becomes Σ losses and Σ weights, so that f = Σ losses / Σ weights over any split of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from sharpness.errors import UnsupportedModelError

MASKED = -100  # PyTorch's default ignore_index


def cross_entropy(output: Any, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each target in nats, of shape (N, …), not averaged.

    It is 0 where the target is -100, PyTorch's mark of what does not count; an objective does not count those.

    Args:
        output: logits of shape (N, classes, …); or, as language models give them, (N, …, classes); or anything that has
            ``logits``, in which the classes come last. A plain tensor whose shape fits both is taken as the former.
        target: classes, of shape (N, …).

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))  # ln 4
    tensor([1.3863, 1.3863])
    """
    return F.cross_entropy(logits_of(output, target), target, reduction="none", ignore_index=MASKED)


def squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(output − target)² of each number, not averaged; an output of shape (N, 1) fits targets of shape (N,).

    >>> squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
    tensor([0., 4.])
    """
    return (output.reshape(target.shape) - target).square()


def usual_loss(target: torch.Tensor) -> Callable[..., torch.Tensor]:
    """``squared_error`` where targets are quantities, ``cross_entropy`` where they are classes."""
    return squared_error if target.is_floating_point() else cross_entropy


def logits_of(output: Any, target: torch.Tensor) -> torch.Tensor:
    """The logits in an output, with the classes in dimension 1."""
    logits: torch.Tensor = getattr(output, "logits", output)
    if not (logits.ndim == target.ndim + 1 > 2 and logits.shape[:-1] == target.shape):
        return logits
    first = logits is output and logits.shape[:1] + logits.shape[2:] == target.shape
    return logits if first else logits.movedim(-1, 1)


class Term(NamedTuple):
    """One batch's share of f: Σ losses (a scalar tensor), Σ weights, and the model's output."""

    total: torch.Tensor
    weight: torch.Tensor | float
    output: Any


class Evaluation(NamedTuple):
    """Loss in nats, accuracy in [0, 1] (NaN where it has no meaning) and Σ weights of one data set at one point."""

    loss: float
    accuracy: float
    weight: float


@dataclass(frozen=True)
class BatchLoss:
    """The user's loss, whichever of its forms it has, as a function of (model, batch).

    ``loss(output, target)`` may return per-example losses of any shape, a pair ``(sum, weight)``, or a scalar, which
    is taken as a mean over the batch. ``"model"`` takes ``model(**batch).loss`` as such a mean.
    """

    loss: Callable[..., Any] | str
    weight: Callable[[Any], Any] | None = None

    @property
    def inside(self) -> bool:
        """Whether the model computes it."""
        return isinstance(self.loss, str)

    def __call__(self, model: Callable[..., Any], batch: Any) -> Term:
        output, result = self._apply(model, batch)
        if isinstance(result, tuple):
            if len(result) != 2 or not isinstance(result[0], torch.Tensor) or result[0].numel() != 1:
                raise UnsupportedModelError(
                    "expected a pair (sum, weight) whose sum is one number in a tensor; got a tuple of "
                    + ", ".join(f"{type(part).__name__} {tuple(getattr(part, 'shape', ()))}" for part in result)
                )
            total, weight = result
            return Term(total, weight, output)
        if not isinstance(result, torch.Tensor):
            raise UnsupportedModelError(
                "expected the loss to return a tensor (per-example losses or their mean) or a pair (sum, weight); "
                f"got {type(result).__name__}"
            )
        if result.ndim == 0:
            weight = length(batch) if self.weight is None else self.weight(batch)
            return Term(result * weight, weight, output)
        if self.weight is not None:
            weight = self.weight(batch)
        elif self.loss is cross_entropy:
            weight = (batch[-1] != MASKED).sum()
        else:
            weight = result.numel()
        return Term(result.sum(dtype=torch.float64), weight, output)

    def each(self, model: Callable[..., Any], batch: Any) -> torch.Tensor | None:
        """The loss of every example, summed over its parts; None where the loss does not tell them apart."""
        _, result = self._apply(model, batch)
        if not isinstance(result, torch.Tensor) or result.ndim == 0 or len(result) != length(batch):
            return None
        return result.reshape(len(result), -1).sum(1)

    def output(self, model: Callable[..., Any], batch: Any) -> Any:
        """What the model returns for one batch."""
        if self.inside and not (self.loss == "model" and isinstance(batch, Mapping)):
            raise UnsupportedModelError(
                'expected loss(output, target), or loss="model" with dictionary batches; '
                f"got loss={self.loss!r} with a batch of type {type(batch).__name__}"
            )
        if isinstance(batch, Mapping):
            return model(**batch)
        *inputs, _ = batch
        named = len(inputs) == 1 and isinstance(inputs[0], Mapping)
        return model(**inputs[0]) if named else model(*inputs)

    def averages(self, model: Callable[..., Any], batch: Any) -> bool:
        """Whether it gives a mean over the batch whose weight nothing says."""
        _, result = self._apply(model, batch)
        return self.weight is None and isinstance(result, torch.Tensor) and result.ndim == 0

    def correct(self, output: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """``correct``, but None where the loss may compare each output with another target, as with the next one."""
        target = None if isinstance(batch, Mapping) else batch[-1]
        usual = isinstance(output, torch.Tensor) or self.loss is cross_entropy
        if isinstance(target, torch.Tensor) and target.ndim > 1 and not usual:
            return None
        return correct(output, batch)

    def _apply(self, model: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
        output = self.output(model, batch)
        if callable(self.loss):
            return output, self.loss(output, batch if isinstance(batch, Mapping) else batch[-1])
        return output, output["loss"] if isinstance(output, Mapping) else output.loss


def length(batch: Any) -> int:
    """The number of examples in a batch: the first dimension of its first tensor."""
    if isinstance(batch, torch.Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return length(next(iter(parts)))


def correct(output: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """How many targets the largest output hits, of how many; None where that has no meaning.

    Negative targets (the usual mask) do not count.
    """
    target = None if isinstance(batch, Mapping) else batch[-1]
    if not (isinstance(getattr(output, "logits", output), torch.Tensor) and isinstance(target, torch.Tensor)):
        return None
    logits = logits_of(output, target)
    if (
        target.is_floating_point()
        or logits.ndim < 2
        or logits.shape[1] < 2
        or logits.shape[:1] + logits.shape[2:] != target.shape
    ):
        return None
    counted = target >= 0
    return ((logits.argmax(1) == target) & counted).sum(), counted.sum()
