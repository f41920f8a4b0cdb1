"""Losses on lines, profiles and planes, and curvature there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sharpness.records.fields import (
    FRACTION,
    NATS,
    STATUS,
    conditions,
    setting,
    variable,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class LineLosses:
    """Loss and accuracy along a path from a (α = 0) to b (α = 1)."""

    kind: ClassVar = "line"
    split: np.ndarray = variable("split", label="data set")
    alpha: np.ndarray = variable("alpha", label="α")
    loss: np.ndarray = variable("split", "alpha", unit=NATS, label="loss")
    accuracy: np.ndarray = variable("split", "alpha", unit=FRACTION, label="accuracy")
    status: np.ndarray = variable("alpha", label=STATUS)
    batchnorm: str = setting("treatment of batch-norm statistics")
    start: str = setting("SHA-256 of θ at α = 0")
    end: str = setting("SHA-256 of θ at α = 1")
    path: str = setting("θ(α)", "(1 − α)·a + α·b")
    bends: str = setting("SHA-256 of the bends of the path", "")
    conditions: Mapping[str, Any] = conditions()


@dataclass(frozen=True, eq=False, kw_only=True)
class ProfileLosses:
    """Loss and accuracy on many lines from one point: θ(α) = origin + α·direction."""

    kind: ClassVar = "profiles"
    split: np.ndarray = variable("split", label="data set")
    direction: np.ndarray = variable("direction", label="direction")
    alpha: np.ndarray = variable("alpha", label="α")
    loss: np.ndarray = variable("split", "direction", "alpha", unit=NATS, label="loss")
    accuracy: np.ndarray = variable("split", "direction", "alpha", unit=FRACTION, label="accuracy")
    status: np.ndarray = variable("direction", "alpha", label=STATUS)
    batchnorm: str = setting("treatment of batch-norm statistics")
    origin: str = setting("SHA-256 of θ at α = 0")
    directions: str = setting("what the directions are")
    seed: int = setting("seed of the directions")
    conditions: Mapping[str, Any] = conditions()


@dataclass(frozen=True, eq=False, kw_only=True)
class PlaneLosses:
    """Loss and accuracy on θ(α, β) = origin + α·first + β·second.

    ``mark_place`` and ``walk_place`` hold α, β and the distance from the plane of points that belong to it: minimizers
    by name, and the iterates of a training run by epoch.
    """

    kind: ClassVar = "plane"
    split: np.ndarray = variable("split", label="data set")
    alpha: np.ndarray = variable("alpha", label="α")
    beta: np.ndarray = variable("beta", label="β")
    loss: np.ndarray = variable("split", "alpha", "beta", unit=NATS, label="loss")
    accuracy: np.ndarray = variable("split", "alpha", "beta", unit=FRACTION, label="accuracy")
    status: np.ndarray = variable("alpha", "beta", label=STATUS)
    length: np.ndarray | None = variable("axis", label="length of the direction along α, along β", default=None)
    mark: np.ndarray | None = variable("mark", label="point", default=None)
    mark_place: np.ndarray | None = variable("mark", "place", label="α, β, distance from the plane", default=None)
    epoch: np.ndarray | None = variable("epoch", label="epoch", default=None)
    walk_place: np.ndarray | None = variable("epoch", "place", label="α, β, distance from the plane", default=None)
    explained: np.ndarray | None = variable("axis", label="share of the variance of the iterates", default=None)
    cosine: float = variable(label="cosine of the angle between the directions", default=float("nan"))
    batchnorm: str = setting("treatment of batch-norm statistics")
    origin: str = setting("SHA-256 of θ at α = β = 0")
    first: str = setting("SHA-256 of the direction along α")
    second: str = setting("SHA-256 of the direction along β")
    directions: str = setting("what the directions are", "")
    share: float = setting("share of the points that were to be evaluated at most", 1.0)
    conditions: Mapping[str, Any] = conditions()

    def __post_init__(self) -> None:
        status = np.asarray(self.status)
        if status.ndim == 1:  # earlier releases kept one for every β
            object.__setattr__(self, "status", np.broadcast_to(status, (len(self.alpha), len(status))).copy())


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvexityMap:
    """The smallest and the largest Hessian eigenvalue at every point of a plane (Li et al. 2018, Figure 7)."""

    kind: ClassVar = "convexity"
    alpha: np.ndarray = variable("alpha", label="α")
    beta: np.ndarray = variable("beta", label="β")
    smallest: np.ndarray = variable("alpha", "beta", label="smallest eigenvalue")
    largest: np.ndarray = variable("alpha", "beta", label="largest eigenvalue")
    residual: np.ndarray = variable("alpha", "beta", label="larger residual of the two")
    converged: np.ndarray = variable("alpha", "beta", label="both residuals within tolerance")
    status: np.ndarray = variable("alpha", "beta", label=STATUS)
    batchnorm: str = setting("treatment of batch-norm statistics")
    tolerance: float = setting("converged where residual <= tolerance * largest eigenvalue magnitude found")
    origin: str = setting("SHA-256 of θ at α = β = 0")
    first: str = setting("SHA-256 of the direction along α")
    second: str = setting("SHA-256 of the direction along β")
    seed: int = setting("seed of start and probe vectors")
    conditions: Mapping[str, Any] = conditions()


@dataclass(frozen=True, eq=False, kw_only=True)
class AxisCurvature:
    """Curvature of the loss along directions, by second differences and by the Hessian.

    (f(θ + hv) − 2 f(θ) + f(θ − hv)) / h² counts the kinks of a ReLU network within h of θ; vᵀHv, in which they have no
    part, does not. The two agree as h → 0 where f is smooth.
    """

    kind: ClassVar = "axis_curvature"
    axis: np.ndarray = variable("axis", label="direction")
    step: np.ndarray = variable("step", label="step h, in units of the coordinate")
    second_difference: np.ndarray = variable("axis", "step", unit=NATS, label="second difference of the loss")
    product: np.ndarray = variable("axis", unit=NATS, label="vᵀHv")
    slope: np.ndarray = variable("axis", unit=NATS, label="gᵀv")
    length: np.ndarray = variable("axis", label="length of the direction ‖v‖")
    batchnorm: str = setting("treatment of batch-norm statistics, in both")
    origin: str = setting("SHA-256 of θ")
    conditions: Mapping[str, Any] = conditions()
