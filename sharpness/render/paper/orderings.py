"""Whether what was measured has the order that the paper reports, in sentences that are computed."""

import math
from typing import NamedTuple

import numpy as np

from sharpness.render.cells import over_seeds, ratio_of, ratio_text
from sharpness.render.notes import counted


class Ordering(NamedTuple):
    """In how many trials the order was found, of those in which both numbers are known, of all."""

    held: int
    known: int
    trials: int

    @property
    def verdict(self) -> str:
        """``holds`` in every trial; ``does not hold`` where most trials contradict it; ``is mixed`` in between."""
        if self.known == 0:
            return "is open"
        if self.held == self.known:
            return "holds" if self.known == self.trials else "is open"
        return "does not hold" if 2 * self.held < self.known else "is mixed"

    @property
    def tally(self) -> str:
        """``3 of 3 trials``, and how many were not measured."""
        if self.known == self.trials:
            return f"{self.held} of {counted(self.trials, 'trial')}"
        missing = f"{self.trials - self.known} of {self.trials} not measured"
        return f"{self.held} of {counted(self.known, 'trial')} ({missing})"


def ordering(smaller: np.ndarray, larger: np.ndarray) -> Ordering:
    """In how many trials ``larger`` exceeds ``smaller``; equal numbers do not, and NaN is not known.

    >>> ordering(np.array([1.0, 5.0, np.nan]), np.array([2.0, 3.0, 4.0]))
    Ordering(held=1, known=2, trials=3)
    """
    known = ~(np.isnan(smaller) | np.isnan(larger))
    return Ordering(int(np.sum(known & (larger > smaller))), int(known.sum()), known.size)


def sharper(where: str, small: np.ndarray, large: np.ndarray, published: float) -> str:
    """Whether LB is sharper than SB, as the paper reports, and by what factor; a ratio that it lacks is NaN."""
    found = ordering(small, large)
    ratio = ratio_of(over_seeds(small), over_seeds(large))
    beside = f" (published {ratio_text(published)})" if math.isfinite(published) else ""
    return (
        f"{where}: LB is sharper than SB in {found.tally}; LB/SB = {ratio.text}{beside}. "
        f"The paper's ordering {found.verdict}."
    )


def generalises_worse(where: str, small: np.ndarray, large: np.ndarray, published: float) -> str:
    """Whether LB tests worse than SB, as the paper reports, and by how many percentage points."""
    found = ordering(large, small)
    gap = over_seeds(small - large).mean
    beside = f" (published {points(published)})" if math.isfinite(published) else ""
    return (
        f"{where}: LB tests worse than SB in {found.tally}; the gap SB − LB is {points(gap)} points{beside}. "
        f"The paper's ordering {found.verdict}."
    )


def points(value: float) -> str:
    """A difference in percentage points.

    >>> points(-0.123), points(2.78), points(math.nan)
    ('−0.12', '2.78', 'n/a')
    """
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "n/a"
