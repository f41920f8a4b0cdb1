"""Keskar's ε-sharpness (Metric 2.1 of Keskar et al. 2017), and what the paper could not compute beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import Bounds, minimize

from sharpness.errors import NonFiniteError, ShapeError
from sharpness.objective import Objective
from sharpness.params import Point
from sharpness.progress import Progress, silent
from sharpness.random import generator, normal
from sharpness.records import EpsilonSharpness


def epsilon_sharpness(
    objective: Objective,
    place: Any,
    epsilon: float = 1e-3,
    subspace: int | None = None,
    iterations: int = 10,
    *,
    seed: int = 0,
    restarts: int = 3,
    progress: Progress = silent,
) -> EpsilonSharpness:
    """φ(ε, A) = 100 · (max over y in C of f(x + A y) − f(x)) / (1 + f(x)), in percent.

    C is the box |yᵢ| ≤ ε (|(A⁺x)ᵢ| + 1). A is the identity, or with ``subspace=p`` a random n × p matrix of independent
    standard normal entries. The paper gives neither their distribution nor a scale; the scale matters: columns of unit
    length move each weight √n times less, and the result then mostly measures rounding.

    Two maximisers run from the same starts, and each result is a lower bound on the true maximum:

    - ``sharpness``: the paper's, SciPy's L-BFGS-B for ``iterations`` iterations, the best point it evaluated. Its
      stopping tests are off (``ftol = gtol = 0``): started at a minimizer they would end it at once. Start 0 is y = 0,
      the others are uniform in the box. ``restart_iterations`` says how far each run came; ``spread`` how far they lie
      apart.
    - ``stronger``: sign ascent, y ← the corner of C that the gradient at y points to, ``iterations`` times. Never less
      than ``sharpness``. (Where f is convex in y its maximum is at a corner.)

    ``first_order`` = 100 · Σ |(Aᵀg)ᵢ| ε (|(A⁺x)ᵢ| + 1) / (1 + f(x)) is what a linear f would give: compare it, and
    ``gradient_norm`` ‖g‖, before calling x a minimizer.

    Args:
        objective: f, usually on the full training data; batch-norm policy ``"eval"`` or ``"batch"``.
        place: θ of shape (n,), a ``Point`` or a ``Minimizer``.
        epsilon: ε > 0; the paper uses 1e-3 and 5e-4.
        subspace: p, 1 <= p <= n; the paper uses 100. Default: the full space.
        iterations: of either maximiser, from each start; the paper uses 10.
        seed: of A and of the starts.
        restarts: number of starts.
        progress: called with the evaluations done.

    Cost: about ``restarts * (2 * iterations + 3)`` evaluations of f with gradient; n·p numbers of memory for A.

    Raises:
        ShapeError: an argument out of range, or f(x) <= -1.
        NonFiniteError: f is NaN or infinite at x or inside the box.
        UnsupportedModelError: the batch-norm policy has values only.

    Example (f = θ², x = 0: the maximum over |y| ≤ ε is ε²):
        >>> model = torch.nn.Linear(1, 1, bias=False).requires_grad_()
        >>> data = (torch.ones(1, 1), torch.zeros(1, 1))
        >>> f, theta = Objective.from_module(model, lambda o, t: (o - t) ** 2, data, dtype=torch.float64)
        >>> s = epsilon_sharpness(f, torch.zeros(1), epsilon=0.1)
        >>> round(s.stronger, 6), round(s.first_order, 6)  # 100 · 0.1² / (1 + 0), and no slope at 0
        (1.0, 0.0)
    """
    _check(objective, epsilon, subspace, iterations, restarts)
    objective.check_differentiable()
    box = _Box.around(objective, objective.point(place), epsilon, subspace, seed)
    search = _Search(objective, box, progress)
    centre, slope = search(np.zeros(box.size))
    if not 1.0 + centre > 0.0:
        raise ShapeError(f"expected a loss above -1 at the point, since φ divides by 1 + f; got {centre:.6g}")
    bounds = box.half_width
    starts = [np.zeros(box.size)] + [bounds * _uniform(box.size, seed, r) for r in range(1, restarts)]
    paper = [_lbfgsb(search, start, bounds, iterations) for start in starts]
    corners = [_sign_ascent(search, s, bounds, iterations, seed, r) for r, s in enumerate(starts)]

    def percent(value: float) -> float:
        return 100.0 * (value - centre) / (1.0 + centre)

    by_paper = np.array([percent(run.best) for run in paper])
    by_corners = np.array([percent(best) for best in corners])
    return EpsilonSharpness(
        restart=np.arange(restarts),
        restart_sharpness=by_paper,
        restart_iterations=np.array([run.iterations for run in paper]),
        restart_evaluations=np.array([run.evaluations for run in paper]),
        restart_stronger=by_corners,
        sharpness=float(by_paper.max()),
        stronger=float(max(by_corners.max(), by_paper.max())),
        first_order=float(100.0 * np.sum(np.abs(slope) * bounds) / (1.0 + centre)),
        gradient_norm=search.first_gradient_norm,
        value=centre,
        epsilon=epsilon,
        subspace=subspace or 0,
        iterations=iterations,
        seed=seed,
        conditions={**objective.conditions, "theta_sha256": box.point.sha256},
    )


@dataclass(frozen=True)
class _Box:
    """C around a point: half-widths of shape (p,), and A (None: the identity)."""

    point: Point
    half_width: np.ndarray
    basis: torch.Tensor | None

    @classmethod
    def around(cls, objective: Objective, point: Point, epsilon: float, subspace: int | None, seed: int) -> _Box:
        theta, basis = point.theta, None
        if not bool(theta.isfinite().all()):
            raise NonFiniteError(
                "expected finite weights at the point; some are NaN or infinite. Did training diverge?"
            )
        if subspace is not None:
            key, device = ("subspace",), objective.device
            basis = normal(objective.size, subspace, key=key, seed=seed, dtype=objective.dtype, device=device)
            theta = _least_squares(basis, theta)
        return cls(point, epsilon * (theta.double().abs().cpu().numpy() + 1.0), basis)

    @property
    def size(self) -> int:
        return len(self.half_width)

    def lift(self, y: np.ndarray) -> Point:
        """x + A y."""
        theta = self.point.theta
        # a copy: NumPy's memory begins anywhere, and a product's last bits can depend on alignment
        step = torch.tensor(y, device=theta.device, dtype=theta.dtype)
        return Point(theta + (step if self.basis is None else self.basis @ step), self.point.buffers)

    def pull(self, gradient: torch.Tensor) -> np.ndarray:
        """Aᵀg."""
        reduced = gradient if self.basis is None else self.basis.T @ gradient
        return reduced.double().cpu().numpy()


def _least_squares(basis: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """A⁺x in float64: by the normal equations, or where random columns are not nearly orthogonal, of A itself."""
    if 4 * basis.shape[1] > basis.shape[0]:
        matrix, image = basis.double(), theta.double()
    else:
        matrix, image = (basis.T @ basis).double(), (basis.T @ theta).double()
    # "gels" gives the same bits every time, as LAPACK's other drivers do not
    return torch.linalg.lstsq(matrix.cpu(), image.cpu()[:, None], driver="gels").solution[:, 0]


class _Search:
    """y ↦ (f(x + A y), Aᵀ∇f), counting evaluations and refusing what is not finite."""

    def __init__(self, objective: Objective, box: _Box, progress: Progress) -> None:
        self._objective, self._box, self._progress = objective, box, progress
        self.evaluations = 0
        self.first_gradient_norm = 0.0

    def __call__(self, y: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self._objective.value_and_gradient(self._box.lift(y))
        if not np.isfinite(value) or not bool(gradient.isfinite().all()):
            where = "inside the box" if self.evaluations else "at the point"
            raise NonFiniteError(
                f"expected a finite loss and gradient {where}; the loss is {value}. Check the weights."
            )
        if not self.evaluations:
            self.first_gradient_norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        self.evaluations += 1
        self._progress(self.evaluations, None, f"loss {value:.4g}")
        return value, self._box.pull(gradient)


class _Run(NamedTuple):
    best: float
    iterations: int
    evaluations: int


def _lbfgsb(search: _Search, start: np.ndarray, half_width: np.ndarray, iterations: int) -> _Run:
    best, before = -np.inf, search.evaluations

    def descend(y: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        value, slope = search(y)
        best = max(best, value)
        return -value, -slope

    options = {"maxiter": iterations, "ftol": 0.0, "gtol": 0.0}
    result = minimize(
        descend, start, jac=True, method="L-BFGS-B", bounds=Bounds(-half_width, half_width), options=options
    )
    return _Run(best, int(result.nit), search.evaluations - before)


def _sign_ascent(
    search: _Search, start: np.ndarray, half_width: np.ndarray, iterations: int, seed: int, restart: int
) -> float:
    best, slope = search(start)
    corner = None
    undecided = np.where(_uniform(len(start), seed, restart, "corner") < 0, -1.0, 1.0)  # where the slope is exactly 0
    for _ in range(iterations):
        towards = half_width * np.where(slope == 0.0, undecided, np.sign(slope))
        if corner is not None and np.array_equal(towards, corner):
            break  # the gradient at this corner points to this corner: it would only be evaluated again
        corner = towards
        value, slope = search(corner)
        best = max(best, value)
    return best


def _uniform(size: int, seed: int, restart: int, name: str = "box") -> np.ndarray:
    """Uniform in [-1, 1), from a stream of its own."""
    stream = generator(name, restart, seed=seed)
    return torch.rand(size, generator=stream, dtype=torch.float64).numpy() * 2.0 - 1.0


def _check(objective: Objective, epsilon: float, subspace: int | None, iterations: int, restarts: int) -> None:
    if not (epsilon > 0 and np.isfinite(epsilon)):
        raise ShapeError(f"expected a finite epsilon > 0; got {epsilon}")
    if subspace is not None and not 1 <= subspace <= objective.size:
        raise ShapeError(f"expected 1 <= subspace <= n = {objective.size}; got {subspace}")
    if iterations < 1 or restarts < 1:
        raise ShapeError(f"expected iterations >= 1 and restarts >= 1; got {iterations} and {restarts}")
