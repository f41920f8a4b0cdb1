"""How this package and each peer are asked for eigenvalues and for losses on a line and a plane, and what they leave.

Everybody is called as its documentation says; eigenvalues come in descending order. The truth is plain PyTorch.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from peers import flat, peer
from report import Unavailable
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import functional_call

import sharpness as sh

PYHESSIAN, EIGENTHINGS, CURVLINOPS, LANDSCAPES = "PyHessian", "hessian-eigenthings", "curvlinops", "loss-landscapes"

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A model as its owner left it, and the data."""

    module: nn.Module
    batches: Sequence[Batch]
    mean_loss: nn.Module  # of a batch, as peers take it
    loss: Callable[[Tensor, Tensor], Any] | None = None  # as this package takes it, if not the same
    weight: Callable[[Batch], Tensor] | None = None  # of a batch, if not the number of its examples

    def copy(self) -> Case:
        """The same with a model of its own."""
        return replace(self, module=copy.deepcopy(self.module))

    def objective(self) -> tuple[sh.Objective, Tensor]:
        """f and θ as this package makes them."""
        return sh.Objective.from_module(self.module, self.loss or self.mean_loss, self.batches, weight=self.weight)

    @property
    def size(self) -> int:
        """n."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)


class Found(NamedTuple):
    """The numbers asked for, None where a package has no such feature, and what to know about them."""

    numbers: Sequence[float | None]
    remark: str = ""


Ask = Callable[[], Found]


# Eigenvalues


def by_sharpness(case: Case, k: int = 1, which: str = "largest") -> Found:
    return Found(sh.eigenpairs(sh.Hessian(*case.objective()), k, which).eigenvalues.tolist())


def by_pyhessian(case: Case, k: int = 1, **settings: Any) -> Found:
    hessian = peer("pyhessian").hessian(case.module, case.mean_loss, dataloader=case.batches, cuda=False)
    return Found(sorted(hessian.eigenvalues(top_n=k, **settings)[0], reverse=True))


def by_eigenthings(case: Case, k: int = 1, *, steps: int | None = None, which: str = "LA") -> Found:
    """With ``steps``; otherwise with the default, doubled until every pair is marked as converged."""
    package = peer("hessian_eigenthings")
    operator = package.HessianOperator(case.module, case.batches, package.supervised_loss(case.mean_loss))
    most = operator.size if steps is None else steps
    used = min(2 * k, most) if steps is None else steps
    while True:
        found = package.lanczos(operator, k=k, seed=0, which=which, max_iter=used)
        if found.converged.all() or used == most:
            break
        used = min(2 * used, most)
    remark = f"{used} steps, {int(found.converged.sum())} of {k} marked as converged"
    return Found(sorted(found.eigenvalues.tolist(), reverse=True), remark)


def by_curvlinops(case: Case, k: int = 1, which: str = "LA") -> Found:
    parameters = [parameter for parameter in case.module.parameters() if parameter.requires_grad]
    operator = peer("curvlinops").HessianLinearOperator(case.module, case.mean_loss, parameters, case.batches)
    start = np.random.default_rng(0).standard_normal(case.size)
    values = eigsh(operator.to_scipy(), k, which=which, v0=start, return_eigenvectors=False)
    return Found(sorted(values.tolist(), reverse=True))


FINE = {"maxIter": 1000, "tol": 1e-6}  # for PyHessian, where its stopping rule is not what is looked at


def largest_by_peers(case: Case) -> dict[str, Ask]:
    """The largest eigenvalue by every peer that has eigenvalues."""
    return {
        PYHESSIAN: lambda: by_pyhessian(case.copy(), **FINE),
        EIGENTHINGS: lambda: by_eigenthings(case.copy()),
        CURVLINOPS: lambda: by_curvlinops(case.copy()),
    }


def dense_hessian(module: nn.Module, loss: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> Tensor:
    """The n × n Hessian of ``loss(model)`` over the trainable parameters, in float64 and eval mode."""
    module = copy.deepcopy(module).double().eval()
    trainable = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}

    def of_vector(theta: Tensor) -> Tensor:
        parts = theta.split([value.numel() for value in trainable.values()])
        named = {name: part.view_as(value) for (name, value), part in zip(trainable.items(), parts, strict=True)}
        return loss(lambda inputs: functional_call(module, named, (inputs,)))

    return torch.autograd.functional.hessian(of_vector, flat(list(trainable.values())))


def largest(matrix: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix."""
    return float(torch.linalg.eigvalsh(matrix)[-1])


# Lines and planes


def moved(module: nn.Module, step: Tensor) -> nn.Module:
    """A copy with ``step`` added to its weights."""
    module = copy.deepcopy(module)
    theta = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters((theta + step).detach(), module.parameters())
    return module


def metric(case: Case) -> Any:
    """The loss of the first batch, for loss-landscapes."""
    return peer("loss_landscapes.metrics").Loss(case.mean_loss, *case.batches[0])


def plane_by_landscapes(case: Case, first: Tensor, second: Tensor, steps: int) -> np.ndarray:
    """``planar_interpolation`` along two directions: by its documentation the loss at (i / steps, j / steps)."""
    corners = [moved(case.module, step) for step in (torch.zeros_like(first), first, second)]
    return peer("loss_landscapes").planar_interpolation(*corners, metric(case), steps=steps)


def deviation(found: np.ndarray, exact: np.ndarray) -> tuple[int, float]:
    """How many points only one of both has finite, and the largest difference where both are."""
    one, other = np.isfinite(found), np.isfinite(exact)
    return int((one != other).sum()), float(np.abs(found - exact)[one & other].max())


# What is left changed


def changes(module: nn.Module, analyse: Callable[[], object], expected: type[Exception] | tuple[()]) -> Found:
    """How many things of the caller's are different after ``analyse``, also if it raises an ``expected`` error."""
    before, remark = _state(module), ""
    try:
        analyse()
    except Unavailable:
        raise
    except expected as error:
        remark = f", after {type(error).__name__}"
    after = _state(module)
    different = {kind: sum(values[name] != after[kind][name] for name in values) for kind, values in before.items()}
    names = ", ".join(f"{kind} ({count})" for kind, count in different.items() if count)
    return Found([sum(different.values())], names + remark)


def _state(module: nn.Module) -> Mapping[str, Mapping[str, Any]]:
    """All that an analysis might change, by kind and name."""
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    return {
        "weights": {name: _bits(value) for name, value in parameters.items()},
        "buffers": {name: _bits(value) for name, value in buffers.items()},
        "gradients": {name: None if value.grad is None else _bits(value.grad) for name, value in parameters.items()},
        "requires_grad": {name: value.requires_grad for name, value in parameters.items()},
        "modes": {name: part.training for name, part in module.named_modules()},
        "random state": {
            "torch": _bits(torch.get_rng_state()),
            "numpy": pickle.dumps(np.random.get_state()),
            "python": random.getstate(),
        },
    }


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()
