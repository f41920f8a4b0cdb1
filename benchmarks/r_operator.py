"""The floor: Hessian-vector products of a fully connected network, differentiated by hand (Pearlmutter 1994).

Everything that does not depend on the vector is computed once. A product then is, for every layer but the first, six
matrix products where a gradient takes three: about twice the arithmetic of a gradient, and no way with less is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from report import Unavailable
from torch import Tensor, nn
from workloads import Workload

Linear = Callable[..., Tensor]  # (X, W, added=None) → X Wᵀ + added, which is a row or a whole matrix


def by_torch(x: Tensor, w: Tensor, added: Tensor | None = None) -> Tensor:
    """Through the library PyTorch chooses: MKL or the like on a CPU, cuBLAS on a GPU."""
    return x @ w.T if added is None else torch.addmm(added, x, w.T)


def by_onednn(x: Tensor, w: Tensor, added: Tensor | None = None) -> Tensor:
    """Through oneDNN, on CPUs."""
    if added is not None and added.ndim == 2:
        return torch.ops.mkldnn._linear_pointwise.binary(x, added, w, None, "add")
    return torch.ops.mkldnn._linear_pointwise(x, w, added, "none", [], "")


@dataclass
class Layer:
    """A linear layer with what follows it, and the parts of both passes that stay the same.

    h is the layer's input and z = h Wᵀ + b; with batch norm u = (z − mean) · rate and y = γ u + β, else y = z. The
    gradient with respect to y is ``above``, that with respect to z is δ.
    """

    linear: nn.Linear
    norm: nn.BatchNorm1d | None
    h: Tensor
    u: Tensor
    rate: Tensor
    mask: Tensor | None  # where the ReLU passes; the last layer has none
    h_turned: Tensor = field(init=False)
    above: Tensor = field(init=False)
    delta: Tensor = field(init=False)
    delta_turned: Tensor = field(init=False)

    def pull_back(self, above: Tensor) -> Tensor:
        """Keep the backward pass through this layer; the gradient with respect to h."""
        self.above = above if self.mask is None else above * self.mask
        self.delta = self.above * self.scale
        self.h_turned, self.delta_turned = self.h.T.contiguous(), self.delta.T.contiguous()
        return self.delta @ self.linear.weight

    @property
    def scale(self) -> Tensor:
        """∂y/∂z."""
        return self.rate if self.norm is None else self.norm.weight * self.rate

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.linear.parameters(), *(self.norm.parameters() if self.norm else ())]


class ROperator:
    """Products for networks of Linear, BatchNorm1d in eval mode and ReLU under mean cross-entropy, in one batch."""

    def __init__(self, workload: Workload, linear: Linear = by_torch) -> None:
        if not isinstance(workload.module, nn.Sequential):
            raise Unavailable("MLPs only")
        if linear is by_onednn and not (torch.backends.mkldnn.is_available() and workload.inputs.device.type == "cpu"):
            raise Unavailable("CPUs only")
        self._times = linear
        with torch.no_grad():
            self._layers, logits = _forward(workload.module, workload.inputs)
            self._p = logits.softmax(1)
            above = (self._p - nn.functional.one_hot(workload.targets, logits.shape[1])) / len(logits)
            for layer in reversed(self._layers):
                above = layer.pull_back(above)

    @torch.no_grad()
    def product(self, vector: Tensor) -> Tensor:
        directions = list(self._split(vector))
        moved, turned = self._push_forward(directions)
        return torch.cat([part.reshape(-1) for part in self._pull_back(directions, moved, turned)])

    def _split(self, vector: Tensor) -> Iterator[list[Tensor]]:
        """For each layer its parameters' part of ``vector``, in their shapes."""
        parameters = [layer.parameters for layer in self._layers]
        parts = iter(vector.split([parameter.numel() for of_layer in parameters for parameter in of_layer]))
        return ([next(parts).view_as(parameter) for parameter in of_layer] for of_layer in parameters)

    def _push_forward(self, directions: list[list[Tensor]]) -> tuple[list[Tensor | None], list[Tensor]]:
        """How each layer's h and z move along the direction; the network's input does not move."""
        moved: list[Tensor | None] = [None]
        turned: list[Tensor] = []
        for layer, (weight, bias, *norm) in zip(self._layers, directions, strict=True):
            z = self._times(layer.h, weight, bias)
            if moved[-1] is not None:
                z = self._times(moved[-1], layer.linear.weight, z)
            y = torch.addcmul(norm[1], layer.u, norm[0]).addcmul_(z, layer.scale) if norm else z
            turned.append(z)
            moved.append(y if layer.mask is None else y * layer.mask)
        return moved[:-1], turned

    def _pull_back(
        self, directions: list[list[Tensor]], moved: list[Tensor | None], turned: list[Tensor]
    ) -> list[Tensor]:
        """How the gradient of each parameter moves, in the parameters' order."""
        above = self._p * (turned[-1] - (self._p * turned[-1]).sum(1, keepdim=True)) / len(self._p)
        found: list[Tensor] = []
        steps = list(zip(self._layers, directions, moved, turned, strict=True))
        for layer, (weight, _, *norm), h, z in reversed(steps):
            above = above if layer.mask is None else above.mul_(layer.mask)
            delta, of_norm = above, []
            if norm:
                delta = (above * layer.scale).addcmul_(layer.above, norm[0] * layer.rate)
                of_norm = [(above * layer.u).sum(0) + (layer.above * z).sum(0) * layer.rate, above.sum(0)]
            of_weight = self._times(layer.h_turned, delta.T).T
            if h is not None:
                of_weight = of_weight + self._times(layer.delta_turned, h.T)
                above = self._times(delta, layer.linear.weight.T, self._times(layer.delta, weight.T))
            found = [of_weight, delta.sum(0), *of_norm, *found]
        return found


def _forward(module: nn.Sequential, h: Tensor) -> tuple[list[Layer], Tensor]:
    layers, modules = [], list(module)
    for place, linear in enumerate(modules):
        if not isinstance(linear, nn.Linear):
            continue
        norm = next((after for after in modules[place + 1 : place + 2] if isinstance(after, nn.BatchNorm1d)), None)
        z = linear(h)
        rate = torch.ones_like(linear.bias) if norm is None else torch.rsqrt(norm.running_var + norm.eps)
        u = z if norm is None else (z - norm.running_mean) * rate
        y = z if norm is None else norm.weight * u + norm.bias
        last = linear is modules[-1]
        layers.append(Layer(linear, norm, h, u, rate, None if last else (y > 0).to(y.dtype)))
        h = y if last else y.relu()
    return layers, h
