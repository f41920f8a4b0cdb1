"""Curvature of the loss: along directions, and the extreme eigenvalues at every point of a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sharpness.errors import NonFiniteError, NotConvergedError, ShapeError
from sharpness.geometry import Plane
from sharpness.journal import PENDING, Journal, MemoryJournal
from sharpness.landscape.evaluate import coordinates
from sharpness.objective import Objective
from sharpness.operators import Hessian
from sharpness.params import Point, as_point, sha256
from sharpness.progress import Progress, silent
from sharpness.records import AxisCurvature, ConvexityMap
from sharpness.spectrum import eigenpairs

# From as coarse as the grid of a plot down to the fourth root of eps, near which rounding, 4 eps f / h², is as large as
# truncation, h² f⁗ / 12, where f and f⁗ are of order 1 (Press et al. 2007, Section 5.7).
STEPS = tuple(2.0**-k for k in (2, 4, 6, 8, 10, 12))
TOLERANCE = 1e-2  # finer than the colours of a plot show
COLUMNS = ("smallest", "largest", "residual", "converged")


def axis_curvature(
    objective: Objective,
    place: Any,
    directions: Mapping[str, torch.Tensor] | None = None,
    *,
    steps: Sequence[float] = STEPS,
    progress: Progress = silent,
) -> AxisCurvature:
    """Second derivatives along directions v: (f(θ + hv) − 2 f(θ) + f(θ − hv)) / h² for several h, and exactly vᵀHv.

    Both in float64 whatever the objective's dtype, for the second difference loses digits: rounding leaves it an error
    of about 4 eps·f / h², which in float32 exceeds the curvature of most networks at any h that is small enough. Where
    f is smooth the two differ by h² f⁗ / 12. On a ReLU network the second difference goes on counting kinks within h
    of θ, and vᵀHv none; how far they are apart is how much of the curvature seen in a plot is kinks.

    Args:
        objective: f. Its batch-norm policy holds for both; under ``"recompute"``, which has no derivatives, statistics
            are re-estimated at θ and then held for both.
        place: a ``Plane``, whose origin is taken for θ; or a ``Point``, ``Minimizer`` or θ.
        directions: v of shape (n,) by name; default: α and β of the plane.
        steps: h, in units of the coordinate along v (one unit is one v); default: 2⁻², 2⁻⁴, …, 2⁻¹².
        progress: called with the second differences done.

    Returns:
        ``second_difference`` of shape (axis, step); ``product``, ``slope`` = gᵀv and ``length`` = ‖v‖ of shape (axis,).
        Where f(θ ± hv) is not finite the second difference is not.

    Cost: two evaluations for each direction and step; a gradient, its linearisation and a product for each direction.

    Raises:
        ShapeError: no directions, some not of shape (n,), or steps that are not positive.
        NonFiniteError: the gradient at θ is NaN or infinite.

    Example (f = (θ₁² + θ₂²) / 4):
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> f, _ = Objective.from_module(model, lambda o, t: 0.5 * o.square(), (torch.eye(2), torch.zeros(2, 1)))
        >>> found = axis_curvature(f, torch.zeros(2), {"diagonal": torch.ones(2)}, steps=[0.5])
        >>> found.second_difference.tolist(), found.product.tolist(), found.slope.tolist()
        ([[1.0]], [1.0], [0.0])
    """
    if isinstance(place, Plane):
        place, directions = place.origin, directions or {"α": place.first, "β": place.second}
    grid = coordinates(steps, "steps")
    if not directions or not (grid > 0).all():
        raise ShapeError(f"expected one or more directions and steps above 0; got {list(directions or ())} and {grid}")
    held = _Held.of(objective, torch.float64)
    f, point = held.objective, held.point(place)
    for name, direction in directions.items():
        f.space.check(direction, f"direction {name!r}")
    vectors = [direction.to(point.theta) for direction in directions.values()]
    hessian = Hessian(f, point, replay="graph")
    centre, gradient = f.value_and_gradient(point)
    seconds = np.empty((len(vectors), len(grid)))
    for (axis, number), _ in np.ndenumerate(seconds):
        h = float(grid[number])
        after, before = (f.value(Point(point.theta + side * vectors[axis], point.buffers)) for side in (h, -h))
        seconds[axis, number] = (after - 2 * centre + before) / h**2
        progress(axis * len(grid) + number + 1, seconds.size, f"{list(directions)[axis]}, h = {h:.2g}")
    return AxisCurvature(
        axis=np.array(list(directions)),
        step=grid,
        second_difference=seconds,
        product=np.array([float(v @ (hessian @ v)) for v in vectors]),
        slope=np.array([float(gradient @ v) for v in vectors]),
        length=np.array([float(torch.linalg.vector_norm(v)) for v in vectors]),
        batchnorm=held.policy,
        origin=as_point(place).sha256,
        conditions=f.conditions,
    )


def convexity_map(
    objective: Objective,
    plane: Plane,
    alphas: Sequence[float] | np.ndarray,
    betas: Sequence[float] | np.ndarray,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> ConvexityMap:
    """The smallest and the largest eigenvalue of the Hessian at every point of a plane (Li et al. 2018, Section 6).

    A plane shows two of n curvatures; where the smallest eigenvalue is far below 0 in proportion to the largest, one
    that looks convex is not. Each point is solved by itself, from the same random vector: eigenvectors of the point
    before saved a tenth of the products on a network of 26,634 parameters, and a map that began there could not be
    resumed to the same bits.

    Args:
        objective: f. Under the batch-norm policy ``"recompute"`` statistics are re-estimated at every point, and held
            for the derivatives there; under ``"eval"`` they are those of the plane's origin.
        plane: through θ, along two directions.
        alphas, betas: the grid, in any order.
        tolerance: of each residual, relative to the larger magnitude of the two eigenvalues: the accuracy of their
            ratio.
        seed: of start and probe vectors.
        journal: where points are committed and found again, by columns of ``convexity_template``; default: in memory.
        progress: called with the points done.

    Returns:
        ``smallest``, ``largest``, ``residual`` (the larger of two) and ``converged`` of shape (alpha, beta). An
        eigenvalue lies within the residual of each value. What did not converge is the best that was found, and says
        so; points whose gradient or products are not finite are NaN, with status 2.

    Cost: at each point a gradient, its linearisation and 15 to 30 products.

    Raises:
        ShapeError: the plane or the grid does not fit, or the tolerance is out of range.
        UnsupportedModelError: f cannot be differentiated twice.

    Example (f = (θ₁² + θ₂²) / 4):
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> f, _ = Objective.from_module(model, lambda o, t: 0.5 * o.square(), (torch.eye(2), torch.zeros(2, 1)))
        >>> found = convexity_map(f, Plane(torch.zeros(2), torch.ones(2), torch.eye(2)[0]), [0.0], [-1.0, 1.0])
        >>> found.smallest.tolist(), found.largest.tolist()
        ([[0.5, 0.5]], [[0.5, 0.5]])
    """
    across, along = coordinates(alphas, "alphas"), coordinates(betas, "betas")
    template = convexity_template(objective, plane, across, along, tolerance=tolerance, seed=seed)
    held = _Held.of(objective)
    rows = journal or MemoryJournal({name: getattr(template, name) for name in COLUMNS}, template.status.shape)
    pending = np.flatnonzero(rows.status == PENDING)
    for done, row in enumerate(pending.tolist(), 1 + len(rows) - len(pending)):
        alpha, beta = float(across[row // len(along)]), float(along[row % len(along)])
        rows.commit(row, _extremes(held, plane.at(alpha, beta), tolerance, seed))
        progress(done, len(rows), f"α = {alpha:.3g}, β = {beta:.3g}")
    values = {name: rows.column(name) for name in COLUMNS} | {"status": rows.status}
    return ConvexityMap(**{**vars(template), **values, "converged": values["converged"].astype(bool)})


def convexity_template(
    objective: Objective,
    plane: Plane,
    alphas: np.ndarray,
    betas: np.ndarray,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> ConvexityMap:
    """The record that ``convexity_map`` will return, every point pending; a file in progress begins as this."""
    held = _Held.of(objective)
    across, along = np.asarray(alphas, float), np.asarray(betas, float)
    empty = np.full((len(across), len(along)), np.nan)
    return ConvexityMap(
        alpha=across,
        beta=along,
        smallest=empty,
        largest=empty.copy(),
        residual=empty.copy(),
        converged=np.zeros(empty.shape, bool),
        status=np.zeros(empty.shape, np.uint8),
        batchnorm=held.policy,
        tolerance=tolerance,
        origin=plane.origin.sha256,
        first=sha256(plane.first),
        second=sha256(plane.second),
        seed=seed,
        conditions=held.objective.conditions,
    )


@dataclass(frozen=True)
class _Held:
    """An objective that has derivatives, its batch-norm statistics constants beside θ where they would be functions."""

    objective: Objective
    fresh: bool
    """Whether they are re-estimated for each point."""

    @classmethod
    def of(cls, objective: Objective, dtype: torch.dtype | None = None) -> _Held:
        fresh = objective.has_batchnorm and objective.batchnorm == "recompute"
        if fresh or (dtype or objective.dtype) != objective.dtype:
            objective = objective.replace(batchnorm="eval" if fresh else None, dtype=dtype)
        return cls(objective, fresh)

    def point(self, place: Any) -> Point:
        return self.objective.with_statistics(place) if self.fresh else self.objective.point(place)

    @property
    def policy(self) -> str:
        """As records carry it."""
        return "recompute, then held" if self.fresh else self.objective.conditions["batchnorm"]


def _extremes(held: _Held, place: Point, tolerance: float, seed: int) -> dict[str, Any]:
    """One point of a map."""
    try:
        # compiling, at every point anew, would take longer than all products, and choose by the clock
        hessian = Hessian(held.objective, held.point(place), replay="graph")
        pairs = eigenpairs(hessian, 1, "both", tolerance=tolerance, seed=seed)
    except NotConvergedError as error:
        pairs = error.partial
    except NonFiniteError:
        return {"smallest": np.nan, "largest": np.nan, "residual": np.nan, "converged": False}
    return {
        "smallest": pairs.eigenvalues[-1],
        "largest": pairs.eigenvalues[0],
        "residual": pairs.residuals.max(),
        "converged": pairs.converged.all(),
    }
