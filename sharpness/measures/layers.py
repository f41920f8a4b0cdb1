"""Curvature layer by layer: the largest eigenvalue and the trace of each block on the diagonal of the Hessian."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sharpness.errors import NonFiniteError, NotConvergedError, ShapeError
from sharpness.journal import PENDING, Journal, MemoryJournal
from sharpness.objective import Objective
from sharpness.operators import Hessian, SymmetricOperator
from sharpness.params import as_point
from sharpness.progress import Progress, silent
from sharpness.random import derive_seed
from sharpness.records import LayerCurvature
from sharpness.spectrum import eigenpairs, trace

TOLERANCE = 1e-2  # finer than layers are compared by
PAIRS = 10  # that each trace is freed of; on digits they cost 9 to 15 products more than the first alone
PROBES = 20  # with which the traces of digits have standard errors of 1 to 2 %
LEAST = 20  # products that so many pairs take, at least; a block with fewer rows than both is computed entry by entry
COLUMNS = (
    *("eigenvalue", "residual", "converged", "trace", "standard_error"),
    *("weight_norm", "gradient_norm", "products"),
)


def layer_curvature(
    objective: Objective,
    place: Any,
    *,
    tolerance: float = TOLERANCE,
    probes: int = PROBES,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> LayerCurvature:
    """λmax and trace of H[S, S] for the parameters S of each layer, ‖θ_S‖ and ‖g_S‖.

    A layer is a module that has parameters of its own, named by its dotted path; a tied weight belongs to the first
    that has it. The block H[S, S] is the Hessian of f in θ_S alone (``Objective.restricted``). The traces of all blocks
    add up to that of H, and no block has a larger λmax than H.

    λmax comes from ``eigenpairs``, with its residual. The trace is the sum of the block's top 10 eigenvalues and
    Hutchinson's estimate of the rest (``trace``), with its standard error. A block of at most ``probes + 20`` rows is
    computed entry by entry, which takes fewer products than that: the standard error then is 0 and the residual
    rounding.

    Each layer has probes of its own. Products with H would serve all layers at once, but then what couples a layer to
    all others adds to its noise: on the MLP of the recipe ``digits`` one such probe has a standard deviation of 28 % of
    the trace of the first layer and of 700 % of that of the second batch norm; one of its own 28 % and 33 %, and beside
    the top 10 pairs 7 %. A product with a block also costs less than one with H: derivatives end at the layer.

    Args:
        objective: f; its batch-norm policy must be ``"eval"`` or ``"batch"``. With ``parameters=`` given, layers are
            what it leaves of them.
        place: θ of shape (n,), a ``Point`` or a ``Minimizer``.
        tolerance: of the residuals, relative to the largest eigenvalue magnitude that was found in the block.
        probes: random vectors for each trace, 2 or more.
        seed: of start and probe vectors, which depend on it and on the layer's name alone.
        journal: where layers are committed and found again, by columns of ``layer_template``; default: in memory.
        progress: called with the layers done.

    Returns:
        A record with one entry for each layer. What did not converge is the best that was found, and says so; a layer
        whose products are not finite has NaN, and status 2.

    Cost: a gradient of f; for each layer a linearisation, 20 to 80 products with its block for the pairs (22 to 30 on
    the MLP of ``digits``) and ``probes`` for the trace, or as many as it has parameters.

    Raises:
        ShapeError: probes < 2, a tolerance out of range, or a journal of other layers.
        NonFiniteError: the gradient at this place is NaN or infinite.
        UnsupportedModelError: f cannot be differentiated twice, or only its values exist.

    Example (f = (2 θ₁ + θ₂)² / 2: H is [[4, 2], [2, 1]]):
        >>> data = (torch.tensor([[2.0]]), torch.zeros(1, 1))
        >>> f, _ = Objective.from_module(torch.nn.Linear(1, 1), lambda o, t: (o - t) ** 2 / 2, data)
        >>> found = layer_curvature(f, torch.tensor([1.0, 0.0]))
        >>> found.eigenvalue.tolist(), found.trace.tolist(), found.weight_norm.tolist(), found.products.tolist()
        ([5.0], [5.0], [1.0], [2])
    """
    template = layer_template(objective, place, tolerance=tolerance, probes=probes, seed=seed)
    rows = journal or MemoryJournal({name: getattr(template, name) for name in COLUMNS}, len(template.layer))
    if rows.status.shape != template.status.shape:
        raise ShapeError(
            f"expected a journal of {len(template.layer)} rows, one for each layer; got {rows.status.shape}"
        )
    pending = np.flatnonzero(rows.status == PENDING).tolist()
    point = objective.point(place)
    gradient = objective.gradient(point) if pending else torch.zeros(0)
    if not bool(gradient.isfinite().all()):
        raise NonFiniteError(
            "expected a finite gradient at the point; it has NaN or infinite entries. Check the weights (did training "
            "diverge?) and the scale of the inputs."
        )
    for done, row in enumerate(pending, 1 + len(rows) - len(pending)):
        name = str(template.layer[row])
        part, there = objective.restricted(objective.space.layers[name], point)
        slope = part.space.flatten(objective.space.unflatten(gradient))
        found = _curvature(part, there, tolerance, probes, derive_seed("layer", name, seed=seed))
        rows.commit(row, {**found, "weight_norm": _norm(there.theta), "gradient_norm": _norm(slope)})
        progress(done, len(rows), name)
    values = {name: rows.column(name) for name in COLUMNS} | {"status": rows.status}
    return LayerCurvature(**{**vars(template), **values, "converged": values["converged"].astype(bool)})


def layer_template(
    objective: Objective, place: Any, *, tolerance: float = TOLERANCE, probes: int = PROBES, seed: int = 0
) -> LayerCurvature:
    """The record that ``layer_curvature`` will return, every layer pending; a file in progress begins as this."""
    objective.check_differentiable()
    if probes < 2:
        raise ShapeError(f"expected probes >= 2, for a standard error of each trace; got {probes}")
    if not tolerance > 0:
        raise ShapeError(f"expected tolerance > 0; got {tolerance}")
    sizes = {name: objective.space.part(names).size for name, names in objective.space.layers.items()}
    layers = [name for name, size in sizes.items() if size]
    empty: dict[str, np.ndarray] = {name: np.full(len(layers), np.nan) for name in COLUMNS}
    return LayerCurvature(
        layer=np.array(layers),
        parameters=np.array([sizes[name] for name in layers]),
        **empty | {"converged": np.zeros(len(layers), bool), "products": np.zeros(len(layers), int)},
        status=np.zeros(len(layers), np.uint8),
        tolerance=tolerance,
        probes=probes,
        origin=as_point(place).sha256,
        seed=seed,
        conditions=objective.conditions,
    )


def _curvature(part: Objective, place: Any, tolerance: float, probes: int, seed: int) -> dict[str, Any]:
    """λmax and trace of one block."""
    try:
        # compiling takes longer than the products of most layers, and chooses by the clock
        block = Hessian(part, place, replay="graph")
        if part.size <= probes + LEAST:
            return _exact(block, tolerance)
        return _estimated(block, tolerance, probes, seed)
    except NonFiniteError:
        return dict.fromkeys(("eigenvalue", "residual", "trace", "standard_error"), np.nan) | {
            "converged": False,
            "products": 0,
        }


def _exact(block: SymmetricOperator, tolerance: float) -> dict[str, Any]:
    """From all entries."""
    n = block.shape[0]
    matrix = (block @ torch.eye(n, dtype=block.dtype, device=block.device)).double().cpu().numpy()
    if not np.isfinite(matrix).all():
        raise NonFiniteError("expected a finite Hessian; got NaN or infinite entries")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    residual = np.linalg.norm(matrix @ vectors[:, -1] - values[-1] * vectors[:, -1])
    return {
        "eigenvalue": values[-1],
        "residual": residual,
        "converged": residual <= tolerance * np.abs(values).max(),
        "trace": np.trace(matrix),
        "standard_error": 0.0,
        "products": n,
    }


def _estimated(block: SymmetricOperator, tolerance: float, probes: int, seed: int) -> dict[str, Any]:
    """From products with some vectors."""
    try:
        pairs = eigenpairs(block, PAIRS, tolerance=tolerance, seed=seed, rehearsal=False)
    except NotConvergedError as error:
        pairs = error.partial
    total = trace(block, samples=probes, pairs=pairs, seed=seed)
    return {
        "eigenvalue": pairs.eigenvalues[0],
        "residual": pairs.residuals[0],
        "converged": bool(pairs.converged[0] and pairs.probe_passed),
        "trace": total.value,
        "standard_error": total.standard_error,
        "products": pairs.products + probes,
    }


def _norm(vector: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
