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
from sharpness.spectrum.audit import discrepancy, images_of, rayleigh_ritz
from sharpness.spectrum.lanczos import KrylovBasis
from sharpness.spectrum.rows import Rows

PROBE_STEPS = 8  # enough for an outlier twice its neighbours to rise out of a random vector of 10⁶ entries
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
    """Pairs in descending order with exact residuals and those of the recurrence, relative to nothing."""

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
        self.restarts = self.probe_products = 0
        self.probe_passed = False
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
        """From a new basis, after an audit that failed."""
        self._spent, self._rounding, self._to_measure = self.products, self.floor, True
        del self.basis  # never two of them in memory
        self.basis = self._new_basis(start)

    def adopt(self, vectors: Rows) -> Audited:
        """Certify eigenvectors found elsewhere: exact residuals, then a probe where they are within the tolerance.

        Where ``probe_passed`` they are what is wanted. Otherwise, if they were probed, the basis holds them and what
        the probe has found.
        """
        images = images_of(self.operator, vectors)
        values, residuals = rayleigh_ritz(vectors, images)
        self._spent += vectors.count
        found = Audited(values, residuals, residuals, vectors.columns(), float(np.abs(values).max()))
        if found.worst <= self.task.tolerance:
            self.basis.block = 1
            self.basis.adopt(vectors, images, values, residuals)
            self.probe_passed = self._none_missed(np.sort(values), self.task.tolerance)
        return found

    def solve(self, tolerance: float) -> bool:
        """Converge and probe in turn; False when the budget ran out."""
        while self.converge(tolerance):
            if self.basis.complete:
                self.probe_passed = True
                return True
            if not self.affords(PROBE_STEPS):
                return False
            self.probe_passed = self._probe(tolerance)
            if self.probe_passed:
                return True
        return False

    def affords(self, products: int) -> bool:
        """Whether the budget allows so many products, and then the audit."""
        return self.products + products + AUDIT_PRODUCTS <= self.task.budget

    def audit(self) -> Audited:
        """The wanted pairs that the basis holds, with residuals from the exact products of its rows.

        ‖A v − λ v‖ with A v put together from them, plus what one more product, of a random combination of all v,
        shows that to be wrong by.
        """
        values, coefficients, recurrence = self.basis.ritz()
        chosen = self._select(values)[::-1]
        vectors, images = self.wanted_vectors(), self.basis.images(coefficients[:, chosen])
        exact, residuals = rayleigh_ritz(vectors, images)
        wrong = discrepancy(self.operator, vectors, images, self.task.seed)
        self._spent += AUDIT_PRODUCTS
        residuals = residuals + wrong
        scale = float(max(np.abs(values).max(), np.abs(exact).max()))
        bound = recurrence[chosen] + self.basis.forgotten_residuals(coefficients[:, chosen])
        return Audited(exact, residuals, bound, vectors.columns(), scale)

    def wanted_vectors(self) -> Rows:
        """The wanted Ritz vectors that the basis holds, in descending order of their values."""
        values, coefficients, _ = self.basis.ritz()
        return self.basis.vectors(coefficients[:, self._select(values)[::-1]])

    def _new_basis(self, start: torch.Tensor | None) -> KrylovBasis:
        task = self.task
        return KrylovBasis(self.operator, task.capacity, task.seed, start=start, block=task.block, place=task.place)

    def _select(self, values: np.ndarray) -> np.ndarray:
        return select(values, self.task.wanted, self.task.which)

    def converge(self, tolerance: float) -> bool:
        """Expand until the wanted residuals are within the tolerance; False when the budget ran out."""
        history: list[tuple[int, float]] = []
        while True:
            if self.basis.size >= self.task.wanted:
                values, coefficients, residuals = self.basis.ritz()
                self._measure_floor(values, coefficients, residuals)
                limit = max(tolerance * np.abs(values).max(), self.floor)
                wanted = residuals[self._select(values)]
                history.append((self.products, float(wanted.max())))
                self._report(history, limit, int((wanted <= limit).sum()))
                if (wanted <= limit).all() or self.basis.complete:
                    return True
                if self.basis.full:
                    self._restart(values, coefficients)
            if not self.affords(self.basis.width):
                return False
            self.basis.expand()

    def _restart(self, values: np.ndarray, coefficients: np.ndarray) -> None:
        wanted, capacity = self.task.wanted, self.basis.capacity
        count = min(wanted + (capacity - wanted) // 2, capacity - self.basis.width)
        keep = select(values, count, self.task.which)
        self.basis.restart(values[keep], coefficients[:, keep])
        self.restarts += 1

    def _probe(self, tolerance: float) -> bool:
        """Keep the wanted pairs alone, and whether the rest holds none that belongs to them."""
        values, coefficients, _ = self.basis.ritz()
        chosen = self._select(values)
        self.basis.block = 1
        self.basis.deflate(values[chosen], coefficients[:, chosen])
        return self._none_missed(values[chosen], tolerance)

    def _none_missed(self, found: np.ndarray, tolerance: float) -> bool:
        """Whether Lanczos from a random vector, orthogonal to what the basis holds, turns up no pair among the wanted.

        One vector, also where blocks are used: what lifts a missed pair out of it is the number of steps.
        """
        before = self.basis.products
        total = self.products + PROBE_STEPS + AUDIT_PRODUCTS
        while self.basis.products - before < PROBE_STEPS and not self.basis.complete:
            self.basis.expand()
            self._progress(self.products, total, "looking for missed pairs")
        self.basis.block = self.task.block
        self.probe_products += self.basis.products - before
        values, _, _ = self.basis.ritz()
        limit = max(tolerance * np.abs(values).max(), self.floor)
        return bool(np.abs(values[self._select(values)] - found).max() <= limit)

    def _measure_floor(self, values: np.ndarray, coefficients: np.ndarray, residuals: np.ndarray) -> None:
        """Once, by one product, as soon as the leading pair has settled."""
        leading = int(np.abs(values).argmax())
        settled = residuals[leading] <= SETTLED * abs(values[leading]) and not self.basis.forgotten.any()
        if self._to_measure and settled and self.affords(1):
            self._to_measure = False
            found = self.basis.discrepancy(values[leading], coefficients[:, leading])
            self._rounding = max(self._rounding, found)

    def _report(self, history: Sequence[tuple[int, float]], limit: float, good: int) -> None:
        total = forecast(history, limit)
        if total is not None:
            total = max(self.products, min(total + PROBE_STEPS + AUDIT_PRODUCTS, self.task.budget))
        self._progress(self.products, total, f"{good}/{self.task.wanted} pairs converged")


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
    slope = np.polyfit(products - products.mean(), np.log(falling), 1)[0]
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
