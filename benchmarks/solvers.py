"""The ways to a few eigenpairs that are compared, what settings they are tried with, and by what they are judged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch
from peers import OURS, Curvlinops, Exact, HessianEigenthings, PyHessian, flat, peer
from report import Unavailable
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor
from workloads import Workload

import sharpness as sh

TOLERANCE = 1e-3
Settings = Mapping[str, Any]
Try = Callable[[Settings], "Attempt"]


class OutOfTime(Exception):
    """A solver, or the search for its settings, used up its time."""


class Meter:
    """Counts products, and stops a solver at the first one past its time."""

    def __init__(self, limit: float = math.inf) -> None:
        self.products, self._end = 0, time.perf_counter() + limit

    def __call__(self, product: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(product)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if time.perf_counter() > self._end:
                raise OutOfTime
            self.products += 1
            return product(*args, **kwargs)

        return counted


@dataclass(frozen=True)
class Pairs:
    """Eigenvalues (k,) and eigenvectors (n, k) as a solver returned them."""

    values: np.ndarray
    vectors: Tensor
    overhead: int = 0  # products that were not spent on converging


@dataclass(frozen=True)
class Attempt:
    """One run of a solver: what it took, and how good its pairs really are."""

    settings: Settings
    seconds: float
    products: int
    residuals: tuple[float, ...] = ()
    converged: int = 0
    wanted: int = 0
    overhead: int = 0
    error: str = ""

    @property
    def success(self) -> bool:
        return self.converged == self.wanted > 0

    @property
    def setting(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.settings.items()) or "defaults"

    @property
    def worst(self) -> float:
        return max(self.residuals) if len(self.residuals) == self.wanted else math.inf


class Judge:
    """Certifies pairs of one workload by products in float64, the same way for every solver."""

    def __init__(self, workload: Workload, k: int, tolerance: float = TOLERANCE) -> None:
        self._exact, self.k, self._tolerance = Exact(workload), k, tolerance
        self.values = self._exact.eigenvalues(k, 0.01 * tolerance)

    def certify(self, pairs: Pairs) -> tuple[tuple[float, ...], int]:
        """The residuals ‖Hv − λv‖ / max|λ|, in descending order of |λ|, and how many pairs have converged.

        A pair has if its residual is within tolerance, its value is the one that belongs at its place, and its vector
        is not already there: copies count once.
        """
        if not len(pairs.values):
            return (), 0
        order = np.argsort(-np.abs(pairs.values))
        values = pairs.values[order].astype(np.float64)
        vectors = pairs.vectors.double()[:, torch.as_tensor(order.copy(), device=pairs.vectors.device)]
        vectors = vectors / vectors.norm(dim=0)
        defects = self._exact @ vectors - vectors * torch.as_tensor(values, device=vectors.device)
        scale = np.abs(self.values).max()
        residuals = defects.norm(dim=0).cpu().numpy() / scale
        new = torch.linalg.qr(vectors).R.diagonal().abs().cpu().numpy() > 0.5
        right = np.abs(values - self.values[: len(values)]) <= self._tolerance * scale
        return tuple(residuals.tolist()), int((new & right & (residuals <= self._tolerance)).sum())

    def attempt(self, solver: Solver, workload: Workload, settings: Settings, limit: float = math.inf) -> Attempt:
        """Run a solver once and judge it; what fails or runs out of time has no pairs."""
        meter = Meter(limit)
        begin = time.perf_counter()
        try:
            pairs = solver.solve(workload, self.k, meter, **settings)
        except Unavailable:
            raise
        except Exception as error:  # whatever a peer raises
            if isinstance(solver, Ours):
                raise
            took, said = time.perf_counter() - begin, f"{type(error).__name__}: {str(error)[:80]}"
            return Attempt(settings, took, meter.products, wanted=self.k, error=said)
        took = time.perf_counter() - begin
        return Attempt(settings, took, meter.products, *self.certify(pairs), self.k, pairs.overhead)


class Solver(Protocol):
    """A way to the k eigenpairs of largest magnitude."""

    def solve(self, workload: Workload, k: int, meter: Meter, **settings: Any) -> Pairs: ...

    def shipped(self, k: int, n: int) -> Iterator[Settings]:
        """Its defaults, then what a user would raise, step by step."""

    def search(self, attempt: Try, k: int, shipped: Attempt) -> None:
        """Try settings that may need fewer products than ``shipped``, the first that converges of those as shipped."""


class Ours:
    """``sharpness.eigenpairs`` with its defaults, from module and data to certified pairs."""

    def solve(self, workload: Workload, k: int, meter: Meter, **settings: Any) -> Pairs:
        hessian = sh.Hessian(*workload.objective())
        try:
            pairs = sh.eigenpairs(hessian, k, "magnitude", **{"tolerance": TOLERANCE, "seed": 0, **settings})
        except sh.NotConvergedError as error:
            pairs = error.partial
        rehearsal = pairs.conditions["rehearsal"]  # on some of the data: counted by what share of a product each is
        meter.products = round(pairs.products + rehearsal.get("share", 0) * rehearsal.get("products", 0))
        steps = rehearsal.get("products", pairs.products - pairs.probe_products - 1)
        return Pairs(pairs.eigenvalues, pairs.vectors, meter.products - steps)

    def shipped(self, k: int, n: int) -> Iterator[Settings]:  # noqa: ARG002
        yield {}

    def search(self, attempt: Try, k: int, shipped: Attempt) -> None:
        """There is nothing to choose."""


class PowerIteration:
    """PyHessian's ``eigenvalues``: deflated power iteration, in its mode for one batch where there is one."""

    def solve(self, workload: Workload, k: int, meter: Meter, **settings: Any) -> Pairs:
        torch.manual_seed(0)
        hessian = PyHessian(workload, loader=not workload.one_batch).hessian
        hessian.dataloader_hv_product = meter(hessian.dataloader_hv_product)
        module = import_module("pyhessian.hessian")
        with mock.patch.object(module, "hessian_vector_product", meter(module.hessian_vector_product)):
            values, vectors = hessian.eigenvalues(top_n=k, **settings)
        return Pairs(np.array(values), torch.stack([flat(vector) for vector in vectors], 1))

    def shipped(self, k: int, n: int) -> Iterator[Settings]:  # noqa: ARG002
        yield {}
        for step in range(1, 10):
            yield {"maxIter": 100 * 2**step, "tol": 10.0 ** -(2 + step)}
            yield {"maxIter": 100 * 2**step, "tol": 10.0 ** -(3 + step)}

    def search(self, attempt: Try, k: int, shipped: Attempt) -> None:  # noqa: ARG002
        any(attempt({"maxIter": 10_000, "tol": 10.0**-digits}).success for digits in range(3, 10))


class Lanczos:
    """hessian-eigenthings' ``lanczos``; at its best with re-orthogonalisation, which it drops beyond 50 steps."""

    def solve(self, workload: Workload, k: int, meter: Meter, **settings: Any) -> Pairs:
        operator = HessianEigenthings(workload).operator
        operator.matvec = meter(operator.matvec)
        found = peer("hessian_eigenthings").lanczos(operator, k=k, seed=0, **settings)
        return Pairs(found.eigenvalues.cpu().numpy(), found.eigenvectors.T)

    def shipped(self, k: int, n: int) -> Iterator[Settings]:
        yield {}
        steps = 4 * k
        while steps < n:
            yield {"max_iter": steps}
            steps *= 2

    def search(self, attempt: Try, k: int, shipped: Attempt) -> None:
        def converges(steps: int) -> bool:
            return attempt({"max_iter": steps, "reorthogonalize": True}).success

        few, many = k - 1, max(2 * k, shipped.products if shipped.success else 0)  # do not converge, may converge
        while not converges(many):
            few, many = many, 2 * many
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if converges(middle) else (middle, many)


class Arpack:
    """SciPy's ``eigsh`` on curvlinops' operator, as its documentation shows; at its best in float32."""

    def solve(self, workload: Workload, k: int, meter: Meter, **settings: Any) -> Pairs:
        best = bool(settings.pop("float32", False))
        operator = Curvlinops(workload, check_deterministic=not best).operator
        meter.products += 0 if best else 2  # of the check
        operator.__matmul__ = meter(operator.__matmul__)
        matrix = operator.to_scipy(dtype=np.float32) if best else operator.to_scipy()
        start = np.random.default_rng(0).standard_normal(workload.size).astype(matrix.dtype)
        try:
            values, vectors = eigsh(matrix, k, v0=start, **settings)
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
        return Pairs(values, torch.as_tensor(vectors, device=workload.inputs.device))

    def shipped(self, k: int, n: int) -> Iterator[Settings]:
        yield {}
        vectors = 2 * max(2 * k + 1, 20)
        while vectors < n:
            yield {"ncv": vectors}
            vectors *= 2

    def search(self, attempt: Try, k: int, shipped: Attempt) -> None:  # noqa: ARG002
        for vectors in (max(2 * k + 1, 20), 3 * k + 10, 4 * k + 20):
            any(attempt({"ncv": vectors, "tol": 10.0**-digits, "float32": True}).success for digits in range(1, 6))


SOLVERS: dict[str, Solver] = {
    OURS: Ours(),
    "PyHessian": PowerIteration(),
    "hessian-eigenthings": Lanczos(),
    "curvlinops + eigsh": Arpack(),
}
