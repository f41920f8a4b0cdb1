"""The whole spectrum, estimated from random vectors: its density and its trace."""

from __future__ import annotations

import numpy as np
import torch

from sharpness.errors import ShapeError
from sharpness.operators import SymmetricOperator
from sharpness.progress import Progress, silent
from sharpness.random import generator, normal
from sharpness.records import EigenPairs, SpectralDensity, TraceEstimate
from sharpness.spectrum.lanczos import KrylovBasis

GRID_POINTS = 1001
WIDTH = 0.01  # of the Gaussian that smooths the density, relative to the range of the spectrum


def spectral_density(
    operator: SymmetricOperator,
    *,
    probes: int = 4,
    steps: int = 80,
    width: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> SpectralDensity:
    """The density of eigenvalues (1/n) Σ δ(λ − λᵢ), smoothed by a Gaussian, by stochastic Lanczos quadrature.

    From each of ``probes`` random unit vectors ``steps`` Lanczos steps with full re-orthogonalisation give nodes θ
    (Ritz values) and weights τ² (squared first components of T's eigenvectors), which sum to 1; the density is the mean
    over probes of Σ τ² N(λ; θ, width²). Outliers appear as single nodes of weight about 1/n; their values are those of
    ``eigenpairs`` only where converged.

    Args:
        operator: A, of shape (n, n).
        probes: random vectors; the standard error falls as 1/√(probes · n).
        steps: Lanczos steps of each, at most n.
        width: standard deviation of the Gaussian, in units of λ; default 1 % of the range of the nodes.
        seed: of the vectors.
        progress: called with the products used.

    Returns:
        Density on 1,001 points, with its standard error over the probes (NaN for one), and nodes and weights.

    Cost: ``probes * steps`` products, ``steps`` vectors of memory.

    Raises:
        ShapeError: an argument out of range.

    Example (half of the eigenvalues are 0, half are 1):
        >>> from sharpness.operators import Dense
        >>> d = spectral_density(Dense(torch.diag(torch.arange(100) % 2 * 1.0).double()), probes=20, steps=5)
        >>> below = d.eigenvalue < 0.5
        >>> bool(abs(np.trapezoid(d.density[below], d.eigenvalue[below]) - 0.5) < 0.1)
        True
    """
    n = operator.shape[0]
    _check(probes, steps, width)
    steps = min(steps, n)
    nodes, weights = np.empty((probes, steps)), np.empty((probes, steps))
    for probe in range(probes):
        start = normal(1, n, key=("density", probe), seed=seed, dtype=operator.dtype, device=operator.device)
        basis = KrylovBasis(operator, steps + 1, seed, start=start)
        for step in range(steps):
            basis.expand(basis.pending if len(basis.pending) else np.array([basis.add_random()]))
            progress(probe * steps + step + 1, probes * steps, f"probe {probe + 1}")
        nodes[probe], coefficients, _ = basis.ritz()
        weights[probe] = coefficients[0] ** 2
    span = float(np.ptp(nodes)) or max(1.0, float(np.abs(nodes).max()))
    sigma = WIDTH * span if width is None else width
    grid = np.linspace(nodes.min() - 5 * sigma, nodes.max() + 5 * sigma, GRID_POINTS)
    curves = np.array([_smoothed(grid, t, w, sigma) for t, w in zip(nodes, weights, strict=True)])
    error = curves.std(axis=0, ddof=1) / np.sqrt(probes) if probes > 1 else np.full(GRID_POINTS, np.nan)
    return SpectralDensity(
        eigenvalue=grid,
        density=curves.mean(axis=0),
        standard_error=error,
        nodes=nodes,
        weights=weights,
        width=sigma,
        seed=seed,
        conditions=operator.conditions,
    )


def trace(
    operator: SymmetricOperator,
    *,
    samples: int = 100,
    pairs: EigenPairs | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> TraceEstimate:
    """tr A by Hutchinson's estimator: the mean of vᵀAv over random vectors v of ±1, with its standard error.

    Where pairs (λᵢ, uᵢ) of A are known, tr A = Σ λᵢ + tr PAP with P = I − Σ uᵢuᵢᵀ, and only the second part is
    estimated. That holds for any orthonormal uᵢ, converged or not, if λᵢ = uᵢᵀAuᵢ; the standard error falls with every
    large eigenvalue among them: with the top 10 of a layer of a classifier of 10 classes, to a fourth.

    Args:
        operator: A, of shape (n, n).
        samples: vectors; one product each.
        pairs: of A, with their vectors, as ``eigenpairs`` returns them.
        seed: of the vectors, drawn on the CPU.
        progress: called with the products used.

    Raises:
        ShapeError: samples < 2, which would leave no standard error, or pairs without vectors or of another matrix.

    Example (exact for a diagonal matrix):
        >>> from sharpness.operators import Dense
        >>> estimate = trace(Dense(torch.diag(torch.tensor([1.0, 2.0, 4.0]))), samples=3)
        >>> estimate.value, estimate.standard_error
        (7.0, 0.0)
    """
    if samples < 2:
        raise ShapeError(f"expected samples >= 2, for a standard error; got {samples}")
    n = operator.shape[0]
    known, certain = _known(pairs, operator)
    values = np.empty(samples)
    for sample in range(samples):
        bits = torch.randint(0, 2, (n,), generator=generator("trace", sample, seed=seed))
        vector = (2 * bits - 1).to(device=operator.device, dtype=operator.dtype)
        vector -= known @ (known.T @ vector)
        values[sample] = certain + float((vector.double() * (operator @ vector).double()).sum())
        progress(sample + 1, samples, f"trace {values[: sample + 1].mean():.4g}")
    return TraceEstimate(
        sample=np.arange(samples),
        samples=values,
        value=float(values.mean()),
        standard_error=float(values.std(ddof=1) / np.sqrt(samples)),
        seed=seed,
        conditions={**operator.conditions, "known_pairs": known.shape[1]},
    )


def _known(pairs: EigenPairs | None, operator: SymmetricOperator) -> tuple[torch.Tensor, float]:
    """The vectors of the pairs as columns, and the sum of their values."""
    n = operator.shape[0]
    if pairs is None:
        return torch.zeros(n, 0, device=operator.device, dtype=operator.dtype), 0.0
    if not isinstance(pairs.vectors, torch.Tensor) or pairs.vectors.shape != (n, len(pairs.eigenvalues)):
        got = tuple(pairs.vectors.shape) if isinstance(pairs.vectors, torch.Tensor) else "none"
        raise ShapeError(
            f"expected pairs with vectors of shape ({n}, {len(pairs.eigenvalues)}), as eigenpairs of this matrix "
            f"returns them (files hold none); got {got}"
        )
    return pairs.vectors.to(device=operator.device, dtype=operator.dtype), float(pairs.eigenvalues.sum())


def _smoothed(grid: np.ndarray, nodes: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    bells = np.exp(-0.5 * ((grid[:, None] - nodes) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return bells @ weights


def _check(probes: int, steps: int, width: float | None) -> None:
    if width is not None and not width > 0:
        raise ShapeError(f"expected width > 0; got {width}")
    if probes < 1 or steps < 1:
        raise ShapeError(f"expected probes >= 1 and steps >= 1; got {probes} and {steps}")
