"""A few eigenpairs of a symmetric operator, certified by exact products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sharpness.errors import NonFiniteError, NotConvergedError, ShapeError
from sharpness.journal import Journal
from sharpness.operators import Recorded, SymmetricOperator
from sharpness.progress import Progress, silent
from sharpness.records import EigenPairs
from sharpness.spectrum.audit import agrees
from sharpness.spectrum.rehearsal import Rehearsal, rehearse
from sharpness.spectrum.rows import PLACES
from sharpness.spectrum.search import AUDIT_PRODUCTS, PROBE_STEPS, Audited, Search, Task

ENDS = ("largest", "smallest", "magnitude", "both")
SPARE_VECTORS = 30  # basis vectors beyond twice the wanted pairs; top-10 solves of networks then rarely restart
SPARE_BLOCKS = 8  # the same, where blocks are wide
LEAST_TOLERANCE = 4.0  # eps: no product of that precision is exact to less


def eigenpairs(
    operator: SymmetricOperator,
    k: int,
    which: str = "largest",
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
    start: torch.Tensor | EigenPairs | None = None,
    block: int = 1,
    basis: str = "device",
    max_vectors: int | None = None,
    max_products: int | None = None,
    journal: Journal | None = None,
    rehearsal: bool = True,
    progress: Progress = silent,
) -> EigenPairs:
    """The k eigenpairs (λ, v) at one end of the spectrum of A, each with its residual ‖A v − λ v‖.

    Lanczos with full re-orthogonalisation and thick restart, stopped when every wanted residual is at most
    ``tolerance · max|λ|``. Then Lanczos from a random vector orthogonal to the basis probes for missed pairs (one
    Krylov sequence sees a multiple eigenvalue once), until a probe finds none: it ends after 8 steps, or before if
    a pair there had shown itself with a probability of 99 %; ``probe_risk`` is the rest. Last an audit: one exact
    product of a random combination of all v, and what it differs by from the recurrence is added to every residual.
    An eigenvalue of A lies within each residual of the value beside it; that none was missed is probed, not proved.

    Args:
        operator: A, of shape (n, n).
        k: how many pairs, 1 <= k <= n.
        which: ``"largest"`` or ``"smallest"`` (algebraic), ``"magnitude"``, or ``"both"`` (k from each end).
        tolerance: relative to the largest |λ| found; at least 4 eps of the operator's dtype.
        seed: of the start and probe vectors, drawn on the CPU: the same on every device.
        start: vectors near the eigenvectors, of shape (n,) or (n, j), or the pairs of a neighbouring checkpoint; their
            sum begins the Krylov sequence. From one step of SGD before, it saved half of the products until
            convergence at k = 1 and a fifth to a third at k = 5 and 10; from 20 steps before, a fifth and a tenth; at
            k = 20 nothing to rely on. A Rayleigh–Ritz step on them, or a block, cost more than they saved.
        block: b, vectors that are multiplied in one call. A block sees b copies of a multiple eigenvalue and
            clusters of b at once. It costs more products than single vectors, the most at small k.
        basis: where the basis lies: ``"device"``, or ``"host"`` for one that does not fit there: it then goes through
            the device at least twice for every product, and ``vectors`` are returned in host memory too.
        max_vectors: most basis vectors held, n entries each; default 2k + 30, or 2k + 8b where that is more.
        max_products: most products, probe and audit included; default 200 + 40 k.
        journal: where every product is kept (see ``Recorded``; ``begin_products`` makes one in a file): given again
            after a kill, the call goes on after its last product and returns the same bits.
        rehearsal: let an operator with a cheaper one nearby (``cheaper``: a Hessian where four fifths of the examples
            are learnt) search there first, if one product shows that they are alike. The pairs found are returned if
            exact products bear them out and a probe finds none missing, and are otherwise the start of the search.
            ``products`` counts A's own; ``conditions["rehearsal"]`` has the others, and what share of a product one is.
        progress: called with the products used, an estimate of them all, and the pairs converged.

    Returns:
        Values in descending order, float64; ``vectors`` is a torch tensor (n, k) on the operator's device.

    Cost: one product and 2·j·n multiplications for the j-th basis vector; one product for the audit, 3 to 8 for a
    probe, and one to measure rounding where ``tolerance`` is below 1,000 eps.

    Raises:
        ShapeError: an argument out of range.
        NotConvergedError: the budget ran out or rounding in the products stands in the way; ``partial`` holds the
            pairs with their flags.
        NonFiniteError: a product or ``start`` is NaN or infinite.

    Example:
        >>> from sharpness.operators import Dense
        >>> pairs = eigenpairs(Dense(torch.diag(torch.tensor([1.0, 5.0, 3.0, 5.0]))), 3)
        >>> pairs.eigenvalues.round(4).tolist(), pairs.converged.all()
        ([5.0, 5.0, 3.0], np.True_)
    """
    n = operator.shape[0]
    wanted = min(2 * k if which == "both" else k, n)
    capacity = 2 * wanted + max(SPARE_VECTORS, SPARE_BLOCKS * block) if max_vectors is None else max_vectors
    budget = default_products(k) if max_products is None else max_products
    task = Task(which, wanted, tolerance, seed, budget, capacity, block, basis)
    _check(operator, k, task)
    begin = None if start is None else _start(start, operator, block)
    recorded = operator if journal is None else Recorded(operator, journal)
    rehearsed, spent = rehearse(operator, recorded, task, begin, progress) if rehearsal else (None, 0)
    search = Search(recorded, task, begin, progress, spent=spent)
    found = None if rehearsed is None else _certified(search, rehearsed)
    enough = found is not None
    if found is None:
        enough = search.solve(0.9 * tolerance)
        found = search.audit()
    if enough and _worth_another(search, found):  # rounding has spoilt a residual: once more, tighter
        search.begin_again(_rows(found.vectors, block).to(operator.device))
        enough = search.solve(0.1 * tolerance)
        found = min(search.audit(), found, key=lambda audited: audited.worst)
    own = {} if rehearsed is None else {"share": rehearsed.share, "products": rehearsed.products}
    pairs = _record(search, found, {"warm_start": start is not None, "rehearsal": own})
    if not enough or not pairs.converged.all():
        raise NotConvergedError(_advice(pairs, wanted, enough), partial=pairs)
    return pairs


def default_products(k: int) -> int:
    """The budget of ``eigenpairs`` for k pairs where none is given."""
    return 200 + 40 * k


def _worth_another(search: Search, found: Audited) -> bool:
    """Whether a new attempt may bring the residuals below the tolerance."""
    task = search.task
    below_floor = search.floor >= task.tolerance * found.scale
    return (
        found.worst > task.tolerance and not below_floor and search.affords(max(task.wanted, task.block) + PROBE_STEPS)
    )


def _certified(search: Search, rehearsed: Rehearsal) -> Audited | None:
    """The rehearsed pairs if exact products bear them out; else None, and the search goes on from them."""
    found = search.certify(rehearsed.vectors)
    if not search.probe_passed:
        search.begin_again(_rows(found.vectors, search.task.block).to(search.operator.device))
    return found if search.probe_passed else None


def _record(search: Search, found: Audited, how: dict[str, Any]) -> EigenPairs:
    task, scale = search.task, found.scale or 1.0
    floor, excess = search.floor / scale, float((found.residuals - found.recurrence).max()) / scale
    return EigenPairs(
        eigenvalues=found.values,
        residuals=found.residuals,
        recurrence_residuals=found.recurrence,
        converged=found.residuals <= task.tolerance * found.scale,
        audit_agrees=agrees(found.residuals / scale, found.recurrence / scale, floor, task.tolerance),
        vectors=found.vectors,
        products=search.products,
        probe_products=search.probe_products,
        probe_passed=search.probe_passed,
        probe_risk=search.probe_risk,
        restarts=search.restarts,
        floor=max(floor, excess),
        which=task.which,
        tolerance=task.tolerance,
        seed=task.seed,
        conditions={
            **search.operator.conditions,
            "max_vectors": search.basis.capacity,
            "block": task.block,
            "basis": task.place,
            **how,
        },
    )


def _start(start: torch.Tensor | EigenPairs, operator: SymmetricOperator, block: int) -> torch.Tensor:
    """The first rows of the basis from what the caller gave, checked."""
    n = operator.shape[0]
    given = start.vectors if isinstance(start, EigenPairs) else start
    if not isinstance(given, torch.Tensor) or given.ndim not in (1, 2) or given.shape[0] != n or not given.numel():
        got = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise ShapeError(
            f"expected start of shape ({n},) or ({n}, j), or eigenpairs with such vectors (files hold none); got {got}"
        )
    vectors = given.to(operator.dtype).reshape(n, -1)  # where they are: the sums alone go to the device
    if not bool(vectors.isfinite().all()):
        raise NonFiniteError("expected finite start vectors; got NaN or infinite entries")
    if not bool(vectors.any(dim=0).all()):
        raise ShapeError("expected start vectors other than zero; got a column of zeros")
    return _rows(vectors, block).to(operator.device)


def _rows(vectors: torch.Tensor, block: int) -> torch.Tensor:
    """As many sums of normalised columns as a block holds, each of every b-th: shape (at most b, n)."""
    count = vectors.shape[1]
    shares = torch.eye(min(block, count), dtype=vectors.dtype, device=vectors.device).repeat(-(-count // block), 1)
    return (vectors @ (shares[:count] / torch.linalg.vector_norm(vectors, dim=0)[:, None])).T


def _check(operator: SymmetricOperator, k: int, task: Task) -> None:
    n, eps = operator.shape[0], torch.finfo(operator.dtype).eps
    if not 1 <= k <= n:
        raise ShapeError(f"expected 1 <= k <= n; got k = {k} eigenpairs of an operator with n = {n}")
    if task.which not in ENDS:
        raise ShapeError(f"expected which to be one of {', '.join(ENDS)}; got {task.which!r}")
    if not task.tolerance > 0:
        raise ShapeError(f"expected tolerance > 0; got {task.tolerance}")
    if task.tolerance < LEAST_TOLERANCE * eps:
        precision = str(operator.dtype).removeprefix("torch.")
        raise ShapeError(
            f"expected tolerance >= {LEAST_TOLERANCE * eps:.2g}, below which no product in {precision} is exact; got "
            f"{task.tolerance:g}. Use float64 (dtype=torch.float64) or a larger tolerance."
        )
    if not 1 <= task.block <= n:
        raise ShapeError(f"expected 1 <= block <= n = {n}; got {task.block}")
    if task.place not in PLACES:
        raise ShapeError(f"expected basis to be one of {', '.join(PLACES)}; got {task.place!r}")
    steps = max(PROBE_STEPS + 1 + task.block, 2 * task.block)
    if task.capacity < (least := min(n, task.wanted + steps)):
        raise ShapeError(
            f"expected max_vectors >= {least} (wanted pairs and {steps} for a probe or two blocks); got {task.capacity}"
        )
    if task.budget < (least := task.block + AUDIT_PRODUCTS):
        raise ShapeError(f"expected max_products >= {least} (one step and its audit); got {task.budget}")


def _advice(pairs: EigenPairs, wanted: int, enough: bool) -> str:
    worst = float(pairs.residuals.max() / (np.abs(pairs.eigenvalues).max() or 1.0))
    state = (
        f"expected {wanted} eigenpairs within a relative residual of {pairs.tolerance:g}; "
        f"{int(pairs.converged.sum())} are after {pairs.products} products, the worst residual is {worst:.2g}. "
    )
    if pairs.floor >= pairs.tolerance or not (pairs.audit_agrees | pairs.converged).all():
        doubted = ", ".join(map(str, pairs.doubted))
        doubt = f"The audit disagrees with the recurrence for pairs {doubted}. " if doubted else ""
        return (
            state
            + doubt
            + (
                f"Rounding in the products sets a floor of about {max(pairs.floor, worst):.1g}: use float64 "
                "(dtype=torch.float64) or a larger tolerance."
            )
        )
    if enough:
        return state + "Raise the tolerance, or use float64 (dtype=torch.float64); error.partial holds what was found."
    return state + "Raise max_products, max_vectors or the tolerance; error.partial holds what was found."
