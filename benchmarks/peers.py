"""The ways to a Hessian-vector product that are compared: this package, its peers as shipped, plain PyTorch, floors.

Every way is made from a workload (that is its set-up) and has ``product``, which takes a flat vector; what it returns
is flat or, where its library says so, a sequence in the parameters' shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from r_operator import ROperator, by_onednn
from report import Unavailable
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.func import functional_call, grad, jvp
from workloads import MEAN_LOSS, Batch, Workload

import sharpness as sh

Product = Tensor | Sequence[Tensor]


class Way(Protocol):
    """A way to a Hessian-vector product."""

    def product(self, vector: Tensor) -> Product: ...


def peer(module: str) -> ModuleType:
    """A peer's module."""
    try:
        return import_module(module)
    except ImportError as error:
        raise Unavailable("not installed") from error


def flat(product: Product) -> Tensor:
    return product if isinstance(product, Tensor) else torch.cat([part.reshape(-1) for part in product])


def shaped(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a flat vector, as views in the shapes of ``like``."""
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


class Ours:
    """``sharpness.Hessian``, of an objective made for it."""

    def __init__(self, workload: Workload) -> None:
        self.hessian = sh.Hessian(*workload.objective())

    def product(self, vector: Tensor) -> Tensor:
        return self.hessian @ vector


class PyHessian:
    """``pyhessian.hessian`` of one batch, whose gradient graph it keeps, or of a loader, where it rebuilds it."""

    def __init__(self, workload: Workload, *, loader: bool = False) -> None:
        package = peer("pyhessian")
        if not (workload.one_batch or loader):
            raise Unavailable("several batches")
        data = {"dataloader": workload.batches} if loader else {"data": workload.batches[0]}
        cuda = workload.inputs.device.type == "cuda"
        self.hessian = package.hessian(workload.copy().module, MEAN_LOSS, cuda=cuda, **data)
        self._loader, self._multiply = loader, package.hessian_vector_product

    def product(self, vector: Tensor) -> Sequence[Tensor]:
        parts = shaped(vector, self.hessian.params)
        if self._loader:
            return self.hessian.dataloader_hv_product(parts)[1]
        return self._multiply(self.hessian.gradsH, self.hessian.params, parts)


class HessianEigenthings:
    """``hessian_eigenthings.HessianOperator``."""

    def __init__(self, workload: Workload) -> None:
        package = peer("hessian_eigenthings")
        loss = package.supervised_loss(MEAN_LOSS)
        self.operator = package.HessianOperator(workload.copy().module, workload.batches, loss)

    def product(self, vector: Tensor) -> Tensor:
        return self.operator.matvec(vector)


class Curvlinops:
    """``curvlinops.HessianLinearOperator``, by default without its check that two products agree."""

    def __init__(self, workload: Workload, *, check_deterministic: bool = False) -> None:
        module = workload.copy().module
        self.operator = peer("curvlinops").HessianLinearOperator(
            module, MEAN_LOSS, list(module.parameters()), workload.batches, check_deterministic=check_deterministic
        )

    def product(self, vector: Tensor) -> Tensor:
        return self.operator @ vector


class TorchFunc:
    """``torch.func``: forward over reverse."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._parameters = {name: value.detach() for name, value in workload.module.named_parameters()}

    def product(self, vector: Tensor) -> Sequence[Tensor]:
        direction = dict(zip(self._parameters, shaped(vector, list(self._parameters.values())), strict=True))
        return self._workload.average(partial(self._of_batch, direction))

    def _of_batch(self, direction: dict[str, Tensor], batch: Batch) -> tuple[Tensor, ...]:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return MEAN_LOSS(functional_call(self._workload.module, parameters, batch[0]), batch[1])

        return tuple(jvp(grad(loss), (self._parameters,), (direction,))[1].values())


class DoubleBackward:
    """Reverse over reverse, in the plainest PyTorch."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def product(self, vector: Tensor) -> Sequence[Tensor]:
        direction = shaped(vector, self._workload.parameters)

        def of_batch(batch: Batch) -> tuple[Tensor, ...]:
            return torch.autograd.grad(self._gradient(batch), self._workload.parameters, direction)

        return self._workload.average(of_batch)

    def block(self, vectors: Tensor) -> Tensor:
        """Products with the columns of ``vectors``, each batch's gradient built once for all."""
        total = torch.zeros_like(vectors)
        for batch in self._workload.batches:
            gradient, share = self._gradient(batch), len(batch[0]) / len(self._workload.inputs)
            for column, vector in zip(total.T, vectors.T, strict=True):
                direction = shaped(vector.contiguous(), gradient)
                column += share * flat(
                    torch.autograd.grad(gradient, self._workload.parameters, direction, retain_graph=True)
                )
        return total

    def _gradient(self, batch: Batch) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self._workload.mean_loss(batch), self._workload.parameters, create_graph=True)


class Exact:
    """What every result is judged by: the Hessian in float64, in plain PyTorch, and its eigenvalues by ARPACK."""

    def __init__(self, workload: Workload) -> None:
        self._way = DoubleBackward(workload.copy(dtype=torch.float64, batch_size=min(workload.batch_size, 1000)))
        self._device, self._size = workload.inputs.device, workload.size

    def __matmul__(self, vectors: Tensor) -> Tensor:
        columns = vectors.double().view(self._size, -1)
        return self._way.block(columns).view(vectors.shape)

    def eigenvalues(self, k: int, tolerance: float) -> np.ndarray:
        """The k of largest magnitude, in descending order of it."""

        def product(vector: np.ndarray) -> np.ndarray:
            return (self @ torch.as_tensor(vector.reshape(-1), device=self._device)).cpu().numpy()

        matrix = LinearOperator((self._size, self._size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(1).standard_normal(self._size)
        values = eigsh(matrix, k, ncv=max(3 * k, 20), v0=start, tol=tolerance, return_eigenvectors=False)
        return values[np.argsort(-np.abs(values))]


OURS = "sharpness"
WAYS: dict[str, Callable[[Workload], Way]] = {
    OURS: Ours,
    "PyHessian, one batch": PyHessian,
    "PyHessian, loader": partial(PyHessian, loader=True),
    "hessian-eigenthings": HessianEigenthings,
    "curvlinops": Curvlinops,
    "torch.func, jvp of grad": TorchFunc,
    "PyTorch, double backward": DoubleBackward,
    "by hand": ROperator,
    "by hand, oneDNN": partial(ROperator, linear=by_onednn),
}
FLOORS = ("by hand", "by hand, oneDNN")


def floor(workload: Workload) -> tuple[str, Way]:
    """The fastest single product known: by hand through oneDNN or else as PyTorch multiplies, else ours."""
    for name in reversed(FLOORS):
        try:
            return name, WAYS[name](workload)
        except Unavailable:
            continue
    return OURS, Ours(workload)
