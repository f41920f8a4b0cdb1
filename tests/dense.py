"""What plain PyTorch makes of a family in float64, entry by entry. It knows nothing of this package."""

from __future__ import annotations

from typing import Any

import torch
from families import Case
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

STEP = 1e-6  # of central differences, whose errors are of the order of its square and of 1e-16 divided by it


class Reference:
    """What plain PyTorch makes of a family in float64: θ, f, ∇f and, entry by entry, ∇²f."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._module = (case.model if case.plain is None else case.plain).double().eval()
        own = {n: p for n, p in self._module.named_parameters() if p.requires_grad and case.chosen(n)}
        self.names, self._shapes = list(own), [p.shape for p in own.values()]
        self.theta = torch.cat([p.detach().flatten() for p in own.values()])
        self._whole = pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, case.whole)
        leaf = self.theta.clone().requires_grad_()
        value = self._value(leaf)
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        matrix = derivatives(gradient, leaf)
        self.value, self.gradient, self.matrix = float(value.detach()), gradient.detach(), matrix

    def slope(self, direction: torch.Tensor) -> torch.Tensor:
        """The derivative of ∇f along a direction, by central differences."""
        ends = [self.theta + sign * STEP * direction for sign in (1, -1)]
        ahead, behind = (
            torch.autograd.grad(self._value(end), end)[0] for end in map(torch.Tensor.requires_grad_, ends)
        )
        return (ahead - behind) / (2 * STEP)

    def _value(self, theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split([shape.numel() for shape in self._shapes])
        named = {n: p.view(s) for n, p, s in zip(self.names, parts, self._shapes, strict=True)}
        with sdpa_kernel(SDPBackend.MATH), InFloat64():
            return self._case.value(
                lambda *args, **kwargs: functional_call(self._module, named, args, kwargs), self._whole
            )


class InFloat64(TorchFunctionMode):
    """Models that compute some parts in float32 do so in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(
            torch.dtype, lambda d: (d.is_floating_point and torch.float64) or d, (args, kwargs or {})
        )
        return func(*args, **kwargs) if func is not torch.Tensor.float else args[0].double()


def derivatives(gradient: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """The matrix of the derivatives of a vector."""
    rows = torch.eye(len(leaf), dtype=leaf.dtype)
    try:
        return torch.autograd.grad(gradient, leaf, rows, retain_graph=True, is_grads_batched=True)[0]
    except RuntimeError:  # group norm takes no batch
        return torch.stack([torch.autograd.grad(gradient, leaf, row, retain_graph=True)[0] for row in rows])
