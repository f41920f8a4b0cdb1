"""What computations return: frozen dataclasses of NumPy arrays that know their own dimensions, units and labels.

A field made by ``variable`` is a result and is stored as a dataset; one made by ``setting`` is a choice and is stored
as an attribute. The store and the plots read dimensions, units and labels from here and from nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

NATS, FRACTION, PERCENT, ONE = "nat", "1", "percent", "1"

# Labels of what several records hold
STATUS = "0 pending, 1 done, 2 not finite, 3 left out"
BY_LBFGSB, BY_SIGN_ASCENT = (f"ε-sharpness by {how}, a lower bound" for how in ("L-BFGS-B", "sign ascent"))
SLOPE, GRADIENT = "first-order part of the ε-sharpness", "gradient norm ‖g‖"
WEIGHTS, DISTANCE = "weight norm ‖θ‖", "distance from the start ‖θ − θ₀‖"


def variable(*dims: str, unit: str = ONE, label: str, default: Any = dataclasses.MISSING) -> Any:
    """A result with named dimensions; a variable named like its only dimension is that dimension's coordinate.

    ``default=None`` is for results that files of earlier releases do not hold.
    """
    return field(default=default, metadata={"dims": dims, "unit": unit, "label": label})


def setting(label: str, default: Any = dataclasses.MISSING) -> Any:
    """A choice under which the results hold."""
    return field(default=default, metadata={"label": label})


def conditions() -> Any:
    """Everything else that was in force (objective, device, execution plan, …), as a JSON-able mapping."""
    return field(default_factory=dict, repr=False)


class Variable(NamedTuple):
    """One result as the store and the plots see it."""

    name: str
    values: np.ndarray
    dims: tuple[str, ...]
    unit: str
    label: str


def variables(record: Any) -> Iterator[Variable]:
    """The results of a record that are there, coordinates included."""
    for item in dataclasses.fields(record):
        if "dims" in item.metadata and getattr(record, item.name) is not None:
            values = np.asarray(getattr(record, item.name))
            yield Variable(item.name, values, item.metadata["dims"], item.metadata["unit"], item.metadata["label"])


def settings(record: Any) -> dict[str, Any]:
    """The choices of a record by name."""
    return {
        item.name: getattr(record, item.name)
        for item in dataclasses.fields(record)
        if "label" in item.metadata and "dims" not in item.metadata
    }


def axis_label(record: Any, name: str) -> str:
    """A field's label with its unit, as an axis shows it: ``loss (nat)``."""
    item = next(item for item in dataclasses.fields(record) if item.name == name)
    unit = item.metadata.get("unit", ONE)
    return item.metadata["label"] + (f" ({unit})" if unit != ONE else "")


@dataclass(frozen=True, eq=False, kw_only=True)
class History:
    """Loss and accuracy of every epoch of one training run, measured after the epoch with dropout off."""

    kind: ClassVar = "history"
    split: np.ndarray = variable("split", label="data set")
    epoch: np.ndarray = variable("epoch", label="epoch")
    loss: np.ndarray = variable("split", "epoch", unit=NATS, label="loss")
    accuracy: np.ndarray = variable("split", "epoch", unit=FRACTION, label="accuracy")
    learning_rate: np.ndarray = variable("epoch", label="learning rate")
    status: np.ndarray = variable("epoch", label=STATUS)
    batch_size: int = setting("examples in a mini-batch")
    stopped: str = setting("why training ended", "")
    conditions: Mapping[str, Any] = conditions()


@dataclass(frozen=True, eq=False, kw_only=True)
class EigenPairs:
    """Eigenvalues with their residuals ‖Av − λv‖ for unit v: an eigenvalue of A lies within that distance."""

    kind: ClassVar = "eigenpairs"
    eigenvalues: np.ndarray = variable("pair", label="eigenvalue")
    residuals: np.ndarray = variable("pair", label="residual, checked by an exact product")
    recurrence_residuals: np.ndarray = variable("pair", label="residual from the Lanczos recurrence")
    converged: np.ndarray = variable("pair", label="residual within tolerance")
    audit_agrees: np.ndarray | None = variable(
        "pair", label="residual as small as the recurrence says, to rounding", default=None
    )
    products: int = setting("products used, audit and probe included")
    probe_products: int = setting("products spent on looking for missed pairs")
    probe_passed: bool = setting("whether the last probe found no missed pair")
    probe_risk: float = setting("probability at most that a pair beyond those found hides from the last probe", 1.0)
    restarts: int = setting("thick restarts")
    floor: float = setting("largest rounding error seen in products, relative to the largest eigenvalue magnitude")
    which: str = setting("end of the spectrum")
    tolerance: float = setting("converged where residual <= tolerance * largest eigenvalue magnitude found")
    seed: int = setting("seed of start and probe vectors")
    conditions: Mapping[str, Any] = conditions()
    vectors: Any = field(default=None, repr=False)
    """torch tensor of shape (n, k) on the operator's device; not stored."""

    @property
    def doubted(self) -> list[int]:
        """The pairs, counted from 1, whose residual is larger than the recurrence says."""
        if self.audit_agrees is None:
            return []
        return [number for number, agrees in enumerate(self.audit_agrees, 1) if not agrees]


@dataclass(frozen=True, eq=False, kw_only=True)
class SpectralDensity:
    """The smoothed density of all eigenvalues, by stochastic Lanczos quadrature."""

    kind: ClassVar = "spectral_density"
    eigenvalue: np.ndarray = variable("eigenvalue", label="eigenvalue")
    density: np.ndarray = variable("eigenvalue", label="density of eigenvalues")
    standard_error: np.ndarray = variable("eigenvalue", label="standard error over probes")
    nodes: np.ndarray = variable("probe", "step", label="quadrature node")
    weights: np.ndarray = variable("probe", "step", label="quadrature weight")
    width: float = setting("standard deviation of the smoothing Gaussian")
    seed: int = setting("seed of the probes")
    conditions: Mapping[str, Any] = conditions()


@dataclass(frozen=True, eq=False, kw_only=True)
class TraceEstimate:
    """The trace by random vectors of ±1, with its standard error."""

    kind: ClassVar = "trace"
    sample: np.ndarray = variable("sample", label="sample")
    samples: np.ndarray = variable("sample", label="vᵀAv")
    value: float = variable(label="trace")
    standard_error: float = variable(label="standard error of the trace")
    seed: int = setting("seed of the vectors")
    conditions: Mapping[str, Any] = conditions()


@dataclass(frozen=True, eq=False, kw_only=True)
class EpsilonSharpness:
    """Keskar's ε-sharpness at one point for one ε and one space, beside what the paper could not compute.

    ``restart_*`` hold one entry per start of the paper's method; ``sharpness`` is the best of them.
    """

    kind: ClassVar = "epsilon_sharpness"
    restart: np.ndarray = variable("restart", label="start of the maximiser")
    restart_sharpness: np.ndarray = variable("restart", unit=PERCENT, label="ε-sharpness by L-BFGS-B")
    restart_iterations: np.ndarray = variable("restart", label="L-BFGS-B iterations that ran")
    restart_evaluations: np.ndarray = variable("restart", label="evaluations of loss and gradient")
    restart_stronger: np.ndarray = variable("restart", unit=PERCENT, label="ε-sharpness by sign ascent")
    sharpness: float = variable(unit=PERCENT, label=BY_LBFGSB)
    stronger: float = variable(unit=PERCENT, label="ε-sharpness by the stronger maximiser, a lower bound")
    first_order: float = variable(unit=PERCENT, label=SLOPE)
    gradient_norm: float = variable(label=GRADIENT)
    value: float = variable(unit=NATS, label="loss at the point")
    epsilon: float = setting("relative half-width ε of the box")
    subspace: int = setting("dimension of the random subspace; 0 is the full space")
    iterations: int = setting("iteration limit of the maximisers")
    seed: int = setting("seed of the subspace and of the starts")
    conditions: Mapping[str, Any] = conditions()

    @property
    def spread(self) -> float:
        """Largest minus smallest ``sharpness`` over the starts, in percent."""
        return float(np.ptp(self.restart_sharpness))


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Small-batch against large-batch minimizers over seeds, everything side by side."""

    kind: ClassVar = "comparison"
    regime: np.ndarray = variable("regime", label="batch size regime")
    seed: np.ndarray = variable("seed", label="seed")
    split: np.ndarray = variable("split", label="data set")
    pair: np.ndarray = variable("pair", label="eigenvalue number")
    batchnorm: np.ndarray = variable("batchnorm", label="treatment of batch-norm statistics")
    space: np.ndarray = variable("space", label="space of the box")
    epsilon: np.ndarray = variable("epsilon", label="ε")
    maximiser: np.ndarray = variable("maximiser", label="maximiser")
    loss: np.ndarray = variable("regime", "seed", "split", unit=NATS, label="loss")
    accuracy: np.ndarray = variable("regime", "seed", "split", unit=FRACTION, label="accuracy")
    eigenvalues: np.ndarray = variable("regime", "seed", "pair", label="eigenvalue")
    residuals: np.ndarray = variable("regime", "seed", "pair", label="residual, checked by an exact product")
    converged: np.ndarray = variable("regime", "seed", "pair", label="residual within tolerance")
    gradient_norm: np.ndarray = variable("regime", "seed", "batchnorm", label=GRADIENT)
    sharpness: np.ndarray = variable(
        "regime", "seed", "batchnorm", "space", "epsilon", "maximiser", unit=PERCENT, label="ε-sharpness"
    )
    spread: np.ndarray = variable(
        "regime", "seed", "batchnorm", "space", "epsilon", unit=PERCENT, label="spread of L-BFGS-B over its starts"
    )
    first_order: np.ndarray = variable("regime", "seed", "batchnorm", "space", "epsilon", unit=PERCENT, label=SLOPE)
    distance: np.ndarray = variable("regime", "seed", label=DISTANCE)
    weight_norm: np.ndarray = variable("regime", "seed", label=WEIGHTS)
    epochs: np.ndarray = variable("regime", "seed", label="epochs trained")
    batch_size: np.ndarray | None = variable("regime", label="examples in a mini-batch", default=None)
    warm_epochs: np.ndarray | None = variable("regime", label="epochs of another regime before", default=None)
    recipe: str = setting("recipe")
    conditions: Mapping[str, Any] = conditions()


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory:
    """Loss, accuracy and ε-sharpness at iterates of one training run."""

    kind: ClassVar = "trajectory"
    split: np.ndarray = variable("split", label="data set")
    epoch: np.ndarray = variable("epoch", label="epoch")
    loss: np.ndarray = variable("split", "epoch", unit=NATS, label="loss")
    accuracy: np.ndarray = variable("split", "epoch", unit=FRACTION, label="accuracy")
    sharpness: np.ndarray = variable("epoch", unit=PERCENT, label=BY_LBFGSB)
    stronger: np.ndarray = variable("epoch", unit=PERCENT, label=BY_SIGN_ASCENT)
    first_order: np.ndarray = variable("epoch", unit=PERCENT, label=SLOPE)
    gradient_norm: np.ndarray = variable("epoch", label=GRADIENT)
    weight_norm: np.ndarray = variable("epoch", label=WEIGHTS)
    distance: np.ndarray = variable("epoch", label=DISTANCE)
    status: np.ndarray = variable("epoch", label=STATUS)
    epsilon: float = setting("relative half-width ε of the box, full space")
    batchnorm: str = setting("treatment of batch-norm statistics")
    iterations: int = setting("iteration limit of the maximisers")
    conditions: Mapping[str, Any] = conditions()


@dataclass(frozen=True, eq=False, kw_only=True)
class Rescaling:
    """Measures of sharpness at points that compute the same function: two layers rescaled by α and 1/α.

    With T the diagonal of the rescaling, H(Tθ) = T⁻¹ H(θ) T⁻¹. ``predicted_*`` are computed at θ, from that; the others
    at Tθ.
    """

    kind: ClassVar = "rescaling"
    factor: np.ndarray = variable("factor", label="factor α")
    loss: np.ndarray = variable("factor", unit=NATS, label="loss")
    accuracy: np.ndarray = variable("factor", unit=FRACTION, label="accuracy")
    output_change: np.ndarray = variable("factor", label="largest change of an output relative to the largest output")
    eigenvalue: np.ndarray = variable("factor", label="λmax")
    residual: np.ndarray = variable("factor", label="residual of λmax")
    predicted_eigenvalue: np.ndarray = variable("factor", label="λmax of T⁻¹HT⁻¹ at the original point")
    predicted_residual: np.ndarray = variable("factor", label="residual of the predicted λmax")
    sharpness: np.ndarray = variable("factor", unit=PERCENT, label=BY_LBFGSB)
    stronger: np.ndarray = variable("factor", unit=PERCENT, label=BY_SIGN_ASCENT)
    first_order: np.ndarray = variable("factor", unit=PERCENT, label=SLOPE)
    predicted_first_order: np.ndarray = variable("factor", unit=PERCENT, label="the same from the original point")
    gradient_norm: np.ndarray = variable("factor", label=GRADIENT)
    weight_norm: np.ndarray = variable("factor", label=WEIGHTS)
    filter_curvature: np.ndarray = variable("factor", label="curvature dᵀHd along a filter-normalised direction d")
    status: np.ndarray = variable("factor", label=STATUS)
    epsilon: float = setting("relative half-width ε of the box, full space")
    layers: str = setting("the layers rescaled by α and by 1/α")
    recipe: str = setting("recipe")
    conditions: Mapping[str, Any] = conditions()


@dataclass(frozen=True, eq=False, kw_only=True)
class ProductCost:
    """What a gradient and a Hessian-vector product cost, and how exact the product is."""

    kind: ClassVar = "product_cost"
    repeat: np.ndarray = variable("repeat", label="repeat")
    gradient_seconds: np.ndarray = variable("repeat", unit="s", label="time of a gradient")
    product_seconds: np.ndarray = variable("repeat", unit="s", label="time of a Hessian-vector product")
    setup_seconds: float = variable(unit="s", label="time to linearise the gradient")
    retained_bytes: float = variable(unit="byte", label="memory that the linearisation retains")
    relative_error: float = variable(label="error of a product against float64")
    name: str = setting("model")
    parameters: int = setting("n, parameters")
    examples: int = setting("N, examples")
    conditions: Mapping[str, Any] = conditions()


RECORDS = {
    record.kind: record
    for record in (
        History,
        EigenPairs,
        SpectralDensity,
        TraceEstimate,
        EpsilonSharpness,
        LineLosses,
        ProfileLosses,
        PlaneLosses,
        ConvexityMap,
        AxisCurvature,
        Comparison,
        Trajectory,
        Rescaling,
        ProductCost,
    )
}
