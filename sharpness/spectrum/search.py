"""The search for a few eigenpairs: converge, probe for missed pairs, audit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sharpness.operators import SymmetricOperator
from sharpness.progress import Progress
from sharpness.random import derive_seed
from sharpness.spectrum.audit import combination, images_of, rayleigh_ritz
from sharpness.spectrum.lanczos import KrylovBasis, Ritz
from sharpness.spectrum.rows import Rows

PROBE_STEPS = 8  # at most
PROBE_RISK = 1e-2  # at which a probe ends before
AUDIT_PRODUCTS = 1
TIGHT = 1e3  # eps: for a tolerance below this the rounding of products is worth measuring
SETTLED = 1e-2  # relative residual at which a Ritz vector shows what rounding does to an eigenvector
FORECAST_STEPS = 8  # at least, to which the decay of the worst residual is fitted


@dataclass(frozen=True)
class Task:
    """What is wanted, and what may be spent on it."""

    which: str
    wanted: int
    tolerance: float
    seed: int
    budget: int
    capacity: int
    block: int
    place: str


class Audited(NamedTuple):
    """Pairs in descending order with their residuals and those of the recurrence alone, relative to nothing."""

    values: np.ndarray
    residuals: np.ndarray
    recurrence: np.ndarray
    vectors: torch.Tensor
    scale: float  # largest |λ| found

    @property
    def worst(self) -> float:
        """The largest residual relative to the scale."""
        return float(self.residuals.max() / (self.scale or 1.0))


class Search:
    """Drives a basis until the wanted pairs have converged and a probe finds none missing, within the budget.

    ``floor`` is the largest rounding error of a product seen so far: the asymmetry ⟨q, A p⟩ − ⟨p, A q⟩ of rows of the
    basis, which costs nothing and shows a tenth of it, and, where the tolerance is tight or an audit has failed, how
    far an exact product of the leading Ritz vector is from what the recurrence says. (The image of a random vector
    would show a tenth too: it is shorter, and so is its error.) Residuals of the recurrence go on falling below the
    floor; exact ones do not. So nothing is asked to converge further than it.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        task: Task,
        start: torch.Tensor | None,
        progress: Progress,
        *,
        spent: int = 0,
    ) -> None:
        self.operator, self.task, self._progress, self._spent = operator, task, progress, spent
        self.restarts = self.probe_products = self._attempts = 0
        self.probe_passed, self.probe_risk = False, 1.0
        self._rounding = 0.0
        self._to_measure = task.tolerance < TIGHT * torch.finfo(operator.dtype).eps
        self.basis = self._new_basis(start)

    @property
    def products(self) -> int:
        """All so far."""
        return self.basis.products + self._spent

    @property
    def floor(self) -> float:
        """The largest rounding error of a product seen, an absolute norm."""
        return max(self._rounding, self.basis.asymmetry)

    def begin_again(self, start: torch.Tensor) -> None:
        """From a new basis."""
        self._spent, self._rounding, self._to_measure = self.products, self.floor, True
        self._attempts += 1
        del self.basis  # never two of them in memory
        self.basis = self._new_basis(start)

    def certify(self, vectors: Rows) -> Audited:
        """Exact residuals of eigenvectors found elsewhere and, where they are within the tolerance, a probe."""
        images = images_of(self.operator, vectors)
        values, residuals = rayleigh_ritz(vectors, images)
        self._spent += vectors.count
        found = Audited(values, residuals, residuals, vectors.columns(), float(np.abs(values).max()))
        if found.worst > self.task.tolerance:
            return found
        if vectors.count == self.operator.shape[0]:
            self.probe_passed, self.probe_risk = True, 0.0
        else:
            self.begin_again(vectors.read(0, vectors.count))  # which are not multiplied again
            self.probe_passed = self._none_missed(np.sort(values), self.task.tolerance)
        return found

    def solve(self, tolerance: float) -> bool:
        """Converge and probe in turn; False when the budget ran out, or the room for another probe."""
        while self.converge(tolerance):
            if self.basis.complete:
                self.probe_passed, self.probe_risk = True, 0.0
                return True
            if not self.affords(max(PROBE_STEPS, len(self.basis.pending))) or not self._make_room(PROBE_STEPS + 1):
                return False
            if self.basis.count == self.operator.shape[0]:  # nowhere else to look
                self.basis.expand(self.basis.pending)
                continue
            ritz = self.basis.ritz()
            self.probe_passed = self._none_missed(ritz.values[self._select(ritz.values)], tolerance)
            if self.probe_passed:  # what it adds may have come among the wanted, by less than it counts as missed
                return self.converge(tolerance)
        return False

    def affords(self, products: int) -> bool:
        """Whether the budget allows so many products, and then the audit."""
        return self.products + products + AUDIT_PRODUCTS <= self.task.budget

    def audit(self) -> Audited:
        """The wanted pairs that the basis holds, with residuals that one more product has checked.

        ‖A v − λ v‖ as the recurrence says, plus what an exact product of a random combination of all v differs by.
        """
        ritz = self.basis.ritz()
        chosen = self._select(ritz.values)[::-1]
        vectors = self.basis.vectors(ritz.coefficients[:, chosen])
        wrong = self.basis.discrepancy(ritz.coefficients[:, chosen] @ combination(len(chosen), self.task.seed))
        recurrence = ritz.residuals[chosen]
        scale = float(np.abs(ritz.values).max())
        return Audited(ritz.values[chosen], recurrence + wrong, recurrence, vectors.columns(), scale)

    def wanted_vectors(self) -> Rows:
        """The wanted Ritz vectors that the basis holds, in descending order of their values."""
        ritz = self.basis.ritz()
        return self.basis.vectors(ritz.coefficients[:, self._select(ritz.values)[::-1]])

    def converge(self, tolerance: float) -> bool:
        """Expand until the wanted residuals are within the tolerance; False when budget or room ran out."""
        history: list[tuple[int, float]] = []
        while True:
            if not len(self.basis.pending) and self.basis.size < self.task.wanted:
                self.basis.add_random()
            due = np.ones(len(self.basis.pending), dtype=bool)
            if self.basis.size >= self.task.wanted:
                ritz = self.basis.ritz()
                self._measure_floor(ritz)
                limit = max(tolerance * np.abs(ritz.values).max(), self.floor)
                border = np.abs(ritz.border[:, self._select(ritz.values)])
                wanted = np.linalg.norm(border, axis=0)
                if (wanted <= limit).all():
                    return True
                history.append((self.products, float(wanted.max())))
                self._report(history, limit, int((wanted <= limit).sum()))
                shares = border[:, wanted > limit].max(axis=1)
                due = shares > min(limit / np.sqrt(len(border)), 0.99 * shares.max())
            count = int(due.sum())
            if not self.affords(count) or not self._make_room(count):
                return False
            self.basis.expand(self.basis.pending[due])

    def _new_basis(self, start: torch.Tensor | None) -> KrylovBasis:
        task = self.task
        # other random rows each time: a probe must not repeat the sequence that it is to look beside
        seed = derive_seed("search", self._attempts, seed=task.seed) if self._attempts else task.seed
        return KrylovBasis(self.operator, task.capacity, seed, start=start, block=task.block, place=task.place)

    def _select(self, values: np.ndarray) -> np.ndarray:
        return select(values, self.task.wanted, self.task.which)

    def _make_room(self, rows: int) -> bool:
        """Whether so many rows can be added, if need be after a restart."""
        if self.basis.room(rows):
            return True
        wanted, most = self.task.wanted, self.basis.capacity - len(self.basis.pending) - rows
        if most < wanted or self.basis.size < wanted:
            return False
        ritz = self.basis.ritz()
        keep = select(ritz.values, min(wanted + (self.basis.capacity - wanted) // 2, most), self.task.which)
        self.basis.restart(ritz.values[keep], ritz.coefficients[:, keep])
        self.restarts += 1
        return True

    def _none_missed(self, found: np.ndarray, tolerance: float) -> bool:
        """Whether Lanczos from a random vector orthogonal to the basis turns up no pair that belongs to those found.

        ``probe_risk`` is the probability that one hides all the same (``hidden``); the probe goes on until it is small.
        """
        basis, rows, before = self.basis, [self.basis.add_random()], self.basis.products
        total, passed, self.probe_risk = self.products + PROBE_STEPS + AUDIT_PRODUCTS, True, 1.0
        while passed and self.probe_risk > PROBE_RISK and len(rows) <= PROBE_STEPS:
            following = basis.expand(np.array(rows[-1:]))
            self._progress(self.products, total, "looking for missed pairs")
            projected = basis.within(rows)
            values = np.sort(np.append(found, np.linalg.eigvalsh(projected)))
            limit = max(tolerance * np.abs(values).max(), self.floor)
            passed = bool(np.abs(values[self._select(values)] - found).max() <= limit)
            rows += following.tolist()
            beyond = basis.within(rows)[-1, -2] if len(following) else basis.negligible
            self.probe_risk = hidden(projected, beyond, innermost(found, self.task.which), self.operator.shape[0])
            if basis.count == self.operator.shape[0]:  # nowhere left to hide
                self.probe_risk = 0.0
            if not len(following):
                break
        self.probe_products += basis.products - before
        return passed

    def _measure_floor(self, ritz: Ritz) -> None:
        """Once, by one product, as soon as the leading pair has settled."""
        leading = int(np.abs(ritz.values).argmax())
        settled = ritz.residuals[leading] <= SETTLED * abs(ritz.values[leading])
        if self._to_measure and settled and self.affords(1):
            self._to_measure = False
            self._rounding = max(self._rounding, self.basis.discrepancy(ritz.coefficients[:, leading]))

    def _report(self, history: Sequence[tuple[int, float]], limit: float, good: int) -> None:
        total = forecast(history, limit)
        if total is not None:
            total = max(self.products, min(total + PROBE_STEPS + AUDIT_PRODUCTS, self.task.budget))
        self._progress(self.products, total, f"{good}/{self.task.wanted} pairs converged")


def hidden(projected: np.ndarray, following: float, edges: Sequence[float], n: int) -> float:
    """The probability that an eigenvalue at one of ``edges``, or farther out, hides from a Lanczos sequence.

    The sequence began with a random vector of n entries and has no Ritz value as far out. With α and β from the
    tridiagonal ``projected`` and the last β to the ``following`` vector, the eigenvector's parts in the vectors so far
    are p_j(λ) times that in the first, where β_{j+1} p_{j+1} = (λ − α_j) p_j − β_j p_{j−1}. No part of a unit vector
    exceeds 1, so that in the first is at most t = 1/√(Σ p_j²), which has a probability of at most t·√(2n/π).

    >>> hidden(np.array([[0.0]]), 1e-3, [1.0], 1_000_000)  # p = 1, 1000: as if A v were 1000 times less than A u
    0.797884...
    """
    alpha, beta = np.diag(projected), [0.0, *np.diag(projected, 1), following]
    risk = 0.0
    for edge in edges:
        before, now, total = 0.0, 1.0, 1.0
        for j, diagonal in enumerate(alpha):
            if not beta[j + 1]:  # of a matrix of zeros
                return 0.0
            before, now = now, ((edge - diagonal) * now - beta[j] * before) / beta[j + 1]
            total += now**2
        risk = max(risk, float(np.sqrt(2 * n / (np.pi * total))))
    return min(1.0, risk)


def innermost(found: np.ndarray, which: str) -> list[float]:
    """Of ascending wanted eigenvalues the ones that an eigenvalue must lie beyond to belong to them.

    >>> innermost(np.array([-4.0, 1.0, 3.0]), "magnitude"), innermost(np.array([-4.0, 1.0, 3.0]), "both")
    ([-1.0, 1.0], [-4.0, 1.0])
    """
    if which == "largest":
        return [float(found[0])]
    if which == "smallest":
        return [float(found[-1])]
    if which == "magnitude":
        least = float(np.abs(found).min())
        return [-least, least]
    return found[max(0, len(found) // 2 - 1) : len(found) // 2 + 1].tolist()


def forecast(history: Sequence[tuple[int, float]], limit: float) -> int | None:
    """The products after which the worst residual comes to ``limit``, by a log-linear fit to the later half of steps.

    The worst residual rises when another Ritz value joins the wanted ones, so the least so far stands for it. Lanczos
    is faster at first and in the end than in between: an estimate half-way is off by about a third.

    >>> forecast([(10, 1e-1), (11, 1e-2), (12, 1e-3)], 1e-5)
    14
    """
    least = np.minimum.accumulate([worst for _, worst in history])
    first = min(len(history) // 2, max(0, len(history) - FORECAST_STEPS))
    products, falling = np.array([step for step, _ in history], float)[first:], least[first:]
    if len(products) < 3 or limit <= 0 or falling[-1] <= 0:
        return None
    centred = products - products.mean()
    slope = centred @ np.log(falling) / (centred @ centred)
    if not slope < 0:
        return None
    return int(products[-1] + math.ceil(round(max(0.0, math.log(limit / falling[-1]) / slope), 6)))


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
