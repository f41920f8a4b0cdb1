"""Whether what was measured has the order that the paper reports, in sentences that are computed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sharpness.render.cells import over_seeds, ratio_of, ratio_text
from sharpness.render.notes import counted, smoke_text
from sharpness.render.paper.runs import Run
from sharpness.render.published import published_gap, published_sharpness
from sharpness.render.summary import REGIMES, Case

ORDERING = "The paper's ordering"
SPACES = {"full": "full space", "subspace": "random subspaces"}


class Ordering(NamedTuple):
    """In how many trials the order was found, and both were equal, of those in which both are known, of all."""

    held: int
    tied: int
    known: int
    trials: int

    @property
    def verdict(self) -> str:
        """``holds`` in every trial; ``does not hold`` where more contradict it than have it; ``is mixed`` in between.

        Where none contradicts it, but some are tied or not measured, it ``is open``.
        """
        contradicted = self.known - self.held - self.tied
        if not contradicted:
            return "holds" if self.held == self.trials else "is open"
        return "does not hold" if contradicted > self.held else "is mixed"

    @property
    def tally(self) -> str:
        """``3 of 3 trials``, and how many are tied or were not measured."""
        missing = self.trials - self.known
        doubts = [f"{self.tied} tied"] * bool(self.tied)
        doubts += [f"{missing} of {self.trials} not measured"] * bool(missing)
        return f"{self.held} of {counted(self.known, 'trial')}" + (f" ({', '.join(doubts)})" if doubts else "")


def ordering(smaller: np.ndarray, larger: np.ndarray) -> Ordering:
    """In how many trials ``larger`` exceeds ``smaller``; those equal to rounding are tied, and NaN is not known.

    >>> ordering(np.array([1.0, 5.0, 0.3, np.nan]), np.array([2.0, 3.0, 0.1 + 0.2, 4.0]))
    Ordering(held=1, tied=1, known=3, trials=4)
    """
    known, tied = ~(np.isnan(smaller) | np.isnan(larger)), np.isclose(smaller, larger, rtol=1e-9, atol=0)
    return Ordering(int(np.sum(known & ~tied & (larger > smaller))), int(tied.sum()), int(known.sum()), known.size)


def verdict(run: Run, finding: str, found: Ordering) -> str:
    """What became of a finding, as a further sentence; a run at smoke scale, or without a finding, has none."""
    return f" {finding} {found.verdict}." if finding and not smoke_text(run.comparison.conditions) else ""


def sharper(run: Run, case: Case, names: Sequence[str] = REGIMES, finding: str = ORDERING) -> str:
    """Whether the second regime is sharper than the first, and by what factor, beside the published one."""
    record, (base, name) = run.comparison, names
    small, large = run.pair(record.sharpness[:, :, *case], names)
    space, epsilon, batchnorm = str(record.space[case.space]), float(record.epsilon[case.epsilon]), case.batchnorm
    policy = "" if str(record.batchnorm[batchnorm]) == "none" else f", batch norm {record.batchnorm[batchnorm]}"
    published = ratio_of(*(published_sharpness(run.name, space, epsilon, regime) for regime in names)).value
    beside = f" (published {ratio_text(published)})" if math.isfinite(published) else ""
    found, ratio = ordering(small, large), ratio_of(over_seeds(small), over_seeds(large)).text
    return (
        f"{run.where}, ε = {epsilon:g}, {SPACES[space]}{policy}, {record.maximiser[case.maximiser]}: {name} is sharper "
        f"than {base} in {found.tally}; {name}/{base} = {ratio}{beside}.{verdict(run, finding, found)}"
    )


def generalises_worse(run: Run, names: Sequence[str] = REGIMES, finding: str = ORDERING) -> str:
    """Whether the second regime tests worse than the first, and by how many points, beside the published gap."""
    small, large = run.pair(run.test_accuracy(), names)
    (base, name), found, gap = names, ordering(large, small), over_seeds(small - large).mean
    published = published_gap(run.name)
    beside = f" (published {points(published)})" if math.isfinite(published) else ""
    return (
        f"{run.where}: {name} tests worse than {base} in {found.tally}; the gap {base} − {name} is {points(gap)} "
        f"points{beside}.{verdict(run, finding, found)}"
    )


def points(value: float) -> str:
    """A difference in percentage points.

    >>> points(-0.123), points(2.78), points(math.nan)
    ('−0.12', '2.78', 'n/a')
    """
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "n/a"
