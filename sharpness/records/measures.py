"""Training, eigenvalues, sharpness, comparisons and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sharpness.records.fields import (
    BY_LBFGSB,
    BY_SIGN_ASCENT,
    CERTIFIED,
    DISTANCE,
    FRACTION,
    GRADIENT,
    NATS,
    PERCENT,
    SLOPE,
    STATUS,
    TRACE,
    TRACE_ERROR,
    WEIGHTS,
    conditions,
    setting,
    variable,
)


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
class LayerCurvature:
    """Curvature layer by layer: of the blocks on the diagonal of the Hessian, each of one layer's parameters alone."""

    kind: ClassVar = "layer_curvature"
    layer: np.ndarray = variable("layer", label="layer")
    parameters: np.ndarray = variable("layer", label="parameters")
    eigenvalue: np.ndarray = variable("layer", label="λmax of the layer's block")
    residual: np.ndarray = variable("layer", label="residual of λmax")
    converged: np.ndarray = variable("layer", label=CERTIFIED)
    trace: np.ndarray = variable("layer", label="trace of the layer's block")
    standard_error: np.ndarray = variable("layer", label="standard error of the trace, 0 where exact")
    weight_norm: np.ndarray = variable("layer", label=WEIGHTS)
    gradient_norm: np.ndarray = variable("layer", label=GRADIENT)
    products: np.ndarray = variable("layer", label="products with the layer's block")
    status: np.ndarray = variable("layer", label=STATUS)
    tolerance: float = setting("converged where residual <= tolerance * largest eigenvalue magnitude found")
    probes: int = setting("random vectors for each trace")
    origin: str = setting("SHA-256 of θ")
    seed: int = setting("seed of start and probe vectors")
    conditions: Mapping[str, Any] = conditions()

    @property
    def mean_eigenvalue(self) -> np.ndarray:
        """The mean of all eigenvalues of each block, trace / parameters."""
        return np.asarray(self.trace) / np.asarray(self.parameters)

    @property
    def titles(self) -> list[str]:
        """The layers as people read them: the model itself, whose dotted path is empty, by what it is."""
        return [str(name) or "(the model itself)" for name in self.layer]


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
class Comparison:
    """Small-batch against large-batch minimizers over seeds, everything side by side.

    Of checkpoints from elsewhere a regime is a set of them; ``over`` says whether ``seed`` counts ``"pairs"``, one of
    each set, or ``"checkpoints"`` that have nothing to do with each other. NaN stands for what is not known of them.
    """

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
    trace: np.ndarray | None = variable("regime", "seed", label=TRACE, default=None)
    trace_error: np.ndarray | None = variable("regime", "seed", label=TRACE_ERROR, default=None)
    recipe: str = setting("recipe")
    over: str = setting("what a regime has several of", "seeds")
    conditions: Mapping[str, Any] = conditions()


class AlongCurvature(NamedTuple):
    """What a trajectory holds where curvature was asked for: arrays (pair, epoch), and (epoch) of the trace."""

    eigenvalues: np.ndarray
    residuals: np.ndarray
    converged: np.ndarray
    trace: np.ndarray
    trace_error: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectory:
    """Loss, accuracy, ε-sharpness and, where asked for, curvature at iterates of one training run, in their order.

    ``epoch`` holds the number of each iterate, and ``counts`` says what it counts: ``"epoch"``, ``"step"``, or
    ``"file"``, the files themselves.
    """

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
    checkpoint: np.ndarray | None = variable("epoch", label="checkpoint", default=None)
    pair: np.ndarray | None = variable("pair", label="number of the eigenvalue", default=None)
    eigenvalues: np.ndarray | None = variable("pair", "epoch", label="eigenvalue", default=None)
    residuals: np.ndarray | None = variable(
        "pair", "epoch", label="residual, checked by an exact product", default=None
    )
    converged: np.ndarray | None = variable("pair", "epoch", label=CERTIFIED, default=None)
    products: np.ndarray | None = variable("epoch", label="products until the eigenvalues are certified", default=None)
    trace: np.ndarray | None = variable("epoch", label=TRACE, default=None)
    trace_error: np.ndarray | None = variable("epoch", label=TRACE_ERROR, default=None)
    edge: np.ndarray | None = variable("epoch", label="λmax beyond which full-batch descent is unstable", default=None)
    epsilon: float = setting("relative half-width ε of the box, full space")
    batchnorm: str = setting("treatment of batch-norm statistics")
    iterations: int = setting("iteration limit of the maximisers")
    counts: str = setting("what the numbers of the iterates count", "epoch")
    conditions: Mapping[str, Any] = conditions()

    @property
    def curvature(self) -> AlongCurvature | None:
        """Eigenvalues and trace, where they were asked for."""
        if self.eigenvalues is None or self.residuals is None or self.converged is None:
            return None
        if self.trace is None or self.trace_error is None:
            return None
        return AlongCurvature(self.eigenvalues, self.residuals, self.converged, self.trace, self.trace_error)


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
