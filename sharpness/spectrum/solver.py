"""A few eigenpairs of a symmetric operator, each certified by an exact product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from sharpness.errors import NotConvergedError, ShapeError
from sharpness.operators import SymmetricOperator
from sharpness.progress import Progress, silent
from sharpness.records import EigenPairs
from sharpness.spectrum.lanczos import KrylovBasis

ENDS = ("largest", "smallest", "magnitude", "both")
SPARE_VECTORS = 30  # basis vectors beyond twice the wanted pairs; top-10 solves of networks then rarely restart
PROBE_STEPS = 8  # enough for an outlier twice its neighbours to rise out of a random vector of 10⁶ entries


def eigenpairs(
    operator: SymmetricOperator,
    k: int,
    which: str = "largest",
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
    max_vectors: int | None = None,
    max_products: int | None = None,
    progress: Progress = silent,
) -> EigenPairs:
    """The k eigenpairs (λ, v) at one end of the spectrum of A, with residuals ‖A v − λ v‖ from exact products.

    Lanczos with two blocked re-orthogonalisation passes and thick restart, stopped when every wanted residual is at
    most ``tolerance · max|λ|``. Then a random vector orthogonal to what was found probes for missed pairs (a multiple
    eigenvalue shows itself only once to one Krylov sequence) until a probe finds none, and one Rayleigh–Ritz step
    with exact products audits the result. An eigenvalue of A lies within each residual of the value beside it; that
    none was missed is probed, not proved.

    Args:
        operator: A, of shape (n, n).
        k: how many pairs, 1 <= k <= n.
        which: ``"largest"`` or ``"smallest"`` (algebraic), ``"magnitude"``, or ``"both"`` (k from each end).
        tolerance: relative to the largest |λ| found.
        seed: of the start and probe vectors, drawn on the CPU: the same on every device.
        max_vectors: most basis vectors held, n entries each; default 2k + 30.
        max_products: budget, which the last probe and the audit may exceed; default 200 + 40 k.
        progress: called with the products used.

    Returns:
        Values in descending order, float64; ``vectors`` is a torch tensor (n, k) on the operator's device.

    Cost: one product and 4·j·n multiplications for the j-th basis vector; k products for the audit, at least 8 for
    the probe.

    Raises:
        ShapeError: k, which or tolerance out of range.
        NotConvergedError: the budget ran out or rounding in the products stands in the way; ``partial`` holds the
            pairs with their flags.
        NonFiniteError: a product is NaN or infinite.

    Example:
        >>> from sharpness.operators import Dense
        >>> pairs = eigenpairs(Dense(torch.diag(torch.tensor([1.0, 5.0, 3.0, 5.0]))), 3)
        >>> pairs.eigenvalues.round(4).tolist(), pairs.converged.all()
        ([5.0, 5.0, 3.0], np.True_)
    """
    n = operator.shape[0]
    _check(n, k, which, tolerance)
    wanted = min(2 * k if which == "both" else k, n)
    capacity = 2 * wanted + SPARE_VECTORS if max_vectors is None else max_vectors
    budget = 200 + 40 * k if max_products is None else max_products
    if capacity < min(n, wanted + PROBE_STEPS):
        least = min(n, wanted + PROBE_STEPS)
        raise ShapeError(
            f"expected max_vectors >= {least} (wanted pairs and {PROBE_STEPS} probe steps); got {max_vectors}"
        )
    if budget < 1:
        raise ShapeError(f"expected max_products >= 1; got {max_products}")
    solver = _Solver(KrylovBasis(operator, capacity, seed), which, wanted, budget, progress)
    enough = solver.solve(0.9 * tolerance)
    pairs = solver.audit(operator, which, tolerance, seed)
    if enough and not pairs.converged.all():  # rounding or deflation has spoilt a residual: once more, warm and tighter
        solver.begin_again(lambda: KrylovBasis(operator, capacity, seed, start=pairs.vectors.sum(1)))
        enough = solver.solve(0.1 * tolerance)
        pairs = solver.audit(operator, which, tolerance, seed)
    if not enough or not pairs.converged.all():
        raise NotConvergedError(_advice(pairs, wanted, enough), partial=pairs)
    return pairs


class _Solver:
    """Drives a basis until the wanted pairs have converged and a probe finds none missing."""

    def __init__(self, basis: KrylovBasis, which: str, wanted: int, budget: int, progress: Progress) -> None:
        self.basis, self.which, self.wanted, self.budget, self.progress = basis, which, wanted, budget, progress
        self.restarts = self.probe_products = self.other_products = 0
        self.probe_passed = False

    @property
    def products(self) -> int:
        return self.basis.products + self.other_products

    def begin_again(self, make: Callable[[], KrylovBasis]) -> None:
        self.other_products += self.basis.products
        del self.basis  # never two of them in memory
        self.basis = make()

    def solve(self, tolerance: float) -> bool:
        """Converge and probe in turn; False when the budget ran out."""
        self.probe_passed = False
        while self._converge(tolerance):
            if self._probe(tolerance):
                self.probe_passed = True
                return True
        return False

    def _converge(self, tolerance: float) -> bool:
        while True:
            if self.basis.size >= self.wanted:
                values, coefficients, residuals = self.basis.ritz()
                chosen = select(values, self.wanted, self.which)
                good = residuals[chosen] <= tolerance * np.abs(values).max()
                self.progress(self.products, None, f"{good.sum()}/{self.wanted} pairs converged")
                if good.all() or self.basis.complete:
                    return True
                if self.basis.size == self.basis.capacity:
                    keep = select(values, self.wanted + (self.basis.capacity - self.wanted) // 2, self.which)
                    self.basis.restart(values[keep], coefficients[:, keep])
                    self.restarts += 1
            if self.products >= self.budget:
                return False
            self.basis.expand()

    def _probe(self, tolerance: float) -> bool:
        """Whether Lanczos from a random vector, orthogonal to the wanted pairs, turns up none that belongs to them."""
        values, coefficients, _ = self.basis.ritz()
        if self.basis.complete:
            return True
        chosen = select(values, self.wanted, self.which)
        found = values[chosen]
        self.basis.deflate(found, coefficients[:, chosen])
        before = self.basis.products
        while self.basis.products - before < PROBE_STEPS and not self.basis.complete:
            self.basis.expand()
            self.progress(self.products, None, "looking for missed pairs")
        self.probe_products += self.basis.products - before
        values, _, _ = self.basis.ritz()
        again = values[select(values, self.wanted, self.which)]
        return bool(np.abs(again - found).max() <= tolerance * np.abs(values).max())

    def audit(self, operator: SymmetricOperator, which: str, tolerance: float, seed: int) -> EigenPairs:
        """One Rayleigh–Ritz step with exact products on the wanted Ritz vectors, and its residuals."""
        values, coefficients, recurrence = self.basis.ritz()
        chosen = select(values, min(self.wanted, len(values)), which)[::-1]
        vectors, _ = torch.linalg.qr(self.basis.vectors(coefficients[:, chosen]).double())
        images = (operator @ vectors).double()
        self.other_products += len(chosen)
        small = (vectors.T @ images).cpu().numpy()
        ritz, columns = np.linalg.eigh((small + small.T) / 2)
        ritz, rotation = ritz[::-1].copy(), torch.as_tensor(columns[:, ::-1].copy(), device=vectors.device)
        vectors, images = vectors @ rotation, images @ rotation
        residuals = torch.linalg.vector_norm(images - vectors * torch.as_tensor(ritz, device=vectors.device), dim=0)
        scale = max(np.abs(values).max(), np.abs(ritz).max())
        exact = residuals.cpu().numpy()
        return EigenPairs(
            eigenvalues=ritz,
            residuals=exact,
            recurrence_residuals=recurrence[chosen] + self.basis.forgotten_residuals(coefficients[:, chosen]),
            converged=exact <= tolerance * scale,
            vectors=vectors.to(operator.dtype),
            products=self.products,
            probe_products=self.probe_products,
            probe_passed=self.probe_passed,
            restarts=self.restarts,
            floor=float(self.basis.asymmetry / scale) if scale else 0.0,
            which=which,
            tolerance=tolerance,
            seed=seed,
            conditions={**operator.conditions, "max_vectors": self.basis.capacity},
        )


def select(values: np.ndarray, count: int, which: str) -> np.ndarray:
    """Indices, ascending, of the ``count`` values at the wanted end(s) of the ascending ``values``.

    >>> select(np.array([-4.0, -1.0, 0.5, 3.0]), 2, "magnitude").tolist()
    [0, 3]
    >>> select(np.array([-4.0, -1.0, 0.5, 3.0]), 3, "both").tolist()
    [0, 2, 3]
    """
    size = len(values)
    count = min(count, size)
    if which == "largest":
        return np.arange(size - count, size)
    if which == "smallest":
        return np.arange(count)
    if which == "magnitude":
        return np.sort(np.argsort(-np.abs(values), kind="stable")[:count])
    low = count // 2
    return np.concatenate([np.arange(low), np.arange(size - (count - low), size)])


def _check(n: int, k: int, which: str, tolerance: float) -> None:
    if not 1 <= k <= n:
        raise ShapeError(f"expected 1 <= k <= n; got k = {k} eigenpairs of an operator with n = {n}")
    if which not in ENDS:
        raise ShapeError(f"expected which to be one of {', '.join(ENDS)}; got {which!r}")
    if not tolerance > 0:
        raise ShapeError(f"expected tolerance > 0; got {tolerance}")


def _advice(pairs: EigenPairs, wanted: int, enough: bool) -> str:
    worst = float(pairs.residuals.max() / (np.abs(pairs.eigenvalues).max() or 1.0))
    state = (
        f"expected {wanted} eigenpairs within a relative residual of {pairs.tolerance:g}; "
        f"{int(pairs.converged.sum())} are after {pairs.products} products, the worst residual is {worst:.2g}. "
    )
    # an exact residual well above the recurrence's is rounding: more products do not lower it
    rounded = pairs.residuals > 2 * pairs.recurrence_residuals
    if enough or (rounded & ~pairs.converged).any():
        return state + (
            f"Rounding in the products (asymmetry {pairs.floor:.1g}) sets this floor: use float64 "
            "(dtype=torch.float64) or a larger tolerance."
        )
    return state + "Raise max_products or the tolerance; error.partial holds what was found."
