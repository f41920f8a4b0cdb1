"""What one mini-batch does to the weights, composed of parts that each do one thing.

Three kinds of part, each wrapped around one of its own kind:

- a ``Loss`` gives Σ losses and Σ weights of a mini-batch: ``BatchLoss``, ``Adversarial``, ``Ghost``;
- a ``Gradient`` leaves the gradient of the mini-batch's mean loss in the parameters' ``grad``: ``Backward``,
  ``Robust``;
- a ``Step`` moves the weights: ``Descent``, ``Proximal``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from sharpness.objective import exact_arithmetic
from sharpness.objective.losses import Term
from sharpness.random import preserved_random_state
from sharpness.training.plan import TrainingPlan

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[nn.Module, Batch], Term]
Gradient = Callable[[Batch], None]
Step = Callable[[Batch], None]


def mini_batch_step(plan: TrainingPlan, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss) -> Step:
    """What ``plan`` does with one mini-batch of ``loss``, as far as it is not the optimizer's."""
    if plan.adversarial:
        loss = Adversarial(loss, plan.adversarial)
    if plan.ghost_batch:
        loss = Ghost(loss, plan.ghost_batch)
    gradient: Gradient = Backward(loss, model, optimizer)
    if plan.robust:
        gradient = Robust(gradient, model, plan.robust)
    descent = Descent(model, optimizer, plan.clip)
    if plan.proximal:
        return Proximal(gradient, descent, model, plan.proximal, plan.proximal_steps)
    return partial(descent, gradient)


# Losses


@dataclass(frozen=True)
class Adversarial:
    """½ f(u) + ½ f(u + ε sign ∂f/∂u) on inputs u: Goodfellow et al. 2014, whose α is 1/2.

    The perturbation is a constant for the gradient in the weights. Both passes draw the same dropout masks, and each
    is normalised by its own batch statistics; running statistics are those of u alone, on which the loss is measured.
    """

    loss: Loss
    size: float

    def __call__(self, model: nn.Module, batch: Batch) -> Term:
        inputs, targets = batch[0].detach().requires_grad_(), batch[1]
        with preserved_random_state():
            clean = self.loss(model, (inputs, targets))
        (slope,) = torch.autograd.grad(clean.total, inputs, retain_graph=True)
        moved = inputs.detach() + self.size * slope.sign()
        with lent_buffers(model):
            shifted = self.loss(model, (moved, targets))
        ratio = torch.as_tensor(clean.weight, dtype=torch.float64) / shifted.weight  # whole numbers divide in float32
        total = (clean.total + shifted.total * ratio) / 2
        return Term(total, clean.weight, clean.output)


@dataclass(frozen=True)
class Ghost:
    """The loss of a mini-batch that passes in parts, each of which batch norm normalises by its own statistics.

    Σ losses and Σ weights are over all parts, so that the gradient is the mean of theirs by their share of the
    examples. Running statistics take one update per part.
    """

    loss: Loss
    size: int

    def __call__(self, model: nn.Module, batch: Batch) -> Term:
        sizes = part_sizes(len(batch[1]), self.size)
        parts = zip(*(tensor.split(sizes) for tensor in batch), strict=True)
        terms = [self.loss(model, part) for part in parts]
        return Term(torch.stack([term.total for term in terms]).sum(), sum(term.weight for term in terms), None)


def part_sizes(examples: int, size: int) -> list[int]:
    """The sizes of the parts of ``size``: the last one smaller, but never one alone, which has no variance.

    >>> part_sizes(9, 4), part_sizes(10, 4), part_sizes(3, 4)
    ([4, 5], [4, 4, 2], [3])
    """
    whole, rest = divmod(examples, size)
    if whole and rest == 1:
        return [size] * (whole - 1) + [size + 1]
    return [size] * whole + [rest] * bool(rest)


# Gradients


@dataclass(frozen=True)
class Backward:
    """The gradient of the mini-batch's mean loss where the weights are."""

    loss: Loss
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with exact_arithmetic(batch[0].device):
            term = self.loss(self.model, batch)
            (term.total / term.weight).backward()


@dataclass(frozen=True)
class Robust:
    """The gradient at x + ε g/‖g‖, g the gradient at x; the weights stay at x (to the bit). Where g is 0, 0.

    Both passes draw the same dropout masks: they are of one function. Running statistics are those of the first.
    """

    gradient: Gradient
    model: nn.Module
    radius: float

    def __call__(self, batch: Batch) -> None:
        with preserved_random_state():
            self.gradient(batch)
        moved = with_gradient(self.model)
        before = [parameter.detach().clone() for parameter in moved]
        length = gradient_norm(moved)
        factor = torch.where(length > 0, self.radius / length, 0)
        with torch.no_grad():
            for parameter in moved:
                parameter.add_(gradient_of(parameter) * factor)
        with lent_buffers(self.model):
            self.gradient(batch)
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)


# Steps


@dataclass(frozen=True)
class Descent:
    """One step of the optimizer by a gradient, shortened to the norm ``clip`` where that is not 0."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    clip: float = 0.0

    def __call__(self, gradient: Gradient, batch: Batch) -> None:
        gradient(batch)
        if self.clip:
            clipped = with_gradient(self.model)
            factor = (self.clip / gradient_norm(clipped)).clamp(max=1)  # 1 also where the gradient is 0
            for parameter in clipped:
                gradient_of(parameter).mul_(factor)
        self.optimizer.step()


@dataclass(frozen=True)
class Proximal:
    """Several steps from x_k on f(x) + (λ/2) ‖x − x_k‖², f of one mini-batch: Li et al. 2014.

    Every step passes the mini-batch once, with dropout masks of its own and an update of running statistics.
    """

    gradient: Gradient
    descent: Descent
    model: nn.Module
    strength: float
    steps: int

    def __call__(self, batch: Batch) -> None:
        centre = {parameter: parameter.detach().clone() for parameter in self.model.parameters()}

        def penalised(batch: Batch) -> None:
            self.gradient(batch)
            for parameter in with_gradient(self.model):
                gradient_of(parameter).add_(parameter.detach() - centre[parameter], alpha=self.strength)

        for _ in range(self.steps):
            self.descent(penalised, batch)


# What they share


def with_gradient(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the mini-batch's loss depends on."""
    return [parameter for parameter in model.parameters() if parameter.grad is not None]


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    """Its gradient, which is there."""
    assert parameter.grad is not None
    return parameter.grad


def gradient_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    """‖g‖ over all of them, summed in float64, where squares of float32 gradients neither over- nor underflow."""
    norms = [torch.linalg.vector_norm(gradient_of(parameter), dtype=torch.float64) for parameter in parameters]
    return torch.linalg.vector_norm(torch.stack(norms))


@contextmanager
def lent_buffers(model: nn.Module) -> Iterator[None]:
    """Copies in place of the model's buffers, so that a pass within leaves no trace in running statistics.

    They are exchanged and not written back: autograd refuses a graph whose buffers were written to since.
    """
    own = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    copies = {id(buffer): buffer.clone() for _, _, buffer in own}  # a buffer that two modules share stays shared
    try:
        for module, name, buffer in own:
            module._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer
