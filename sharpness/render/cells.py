"""What stands in one place of a table: numbers that know how they are written and which columns of a CSV they fill."""

import math
from typing import NamedTuple, Protocol

import numpy as np

MISSING = "n/a"


class Numbers(Protocol):
    """One or more numbers in one place of a table."""

    @property
    def text(self) -> str:
        """As people read it."""

    @property
    def columns(self) -> dict[str, float]:
        """Each number by what it is, ``""`` for a number that is all there is; NaN where unknown."""


Cell = Numbers | str | float | None


def cell_text(cell: Cell) -> str:
    """A cell as people read it.

    >>> cell_text(None), cell_text(2), cell_text(0.12345), cell_text("eval")
    ('n/a', '2', '0.1235', 'eval')
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return MISSING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float):
        return f"{cell:.0f}" if 1e4 <= abs(cell) < 1e6 else f"{cell:.4g}"
    return str(cell) if isinstance(cell, int) else cell.text


class Summary(NamedTuple):
    """One number over the seeds. ``std`` is the sample standard deviation, NaN for fewer than two seeds."""

    mean: float
    std: float
    known: int
    seeds: int

    @property
    def text(self) -> str:
        """See ``summary_text``."""
        return summary_text(self)

    @property
    def columns(self) -> dict[str, float]:
        """Mean, standard deviation and the number of seeds behind them."""
        return {"mean": self.mean, "std": self.std, "n": self.known}


class Certified(NamedTuple):
    """λmax over the seeds with the largest of its residuals; ``failed`` of those known did not converge."""

    summary: Summary
    residual: float
    failed: int

    @property
    def text(self) -> str:
        """The number and what bounds its error, and whether the bound was met."""
        return self.summary.text + (f" ({self.certificate})" if self.certificate else "")

    @property
    def certificate(self) -> str:
        """The bound alone; nothing where no number is known."""
        if not self.summary.known:
            return ""
        seeds = f": {self.failed} of {self.summary.known}" if self.summary.known > 1 else ""
        return f"residual ≤ {self.residual:.2g}" + (f"; not converged{seeds}" if self.failed else "")

    @property
    def columns(self) -> dict[str, float]:
        """Those of the number, its largest residual and how many are not converged."""
        return {**self.summary.columns, "residual": self.residual, "not converged": self.failed}


class Ratio(NamedTuple):
    """A quotient, NaN where it is not defined."""

    value: float

    @property
    def text(self) -> str:
        """Three digits."""
        return ratio_text(self.value)

    @property
    def columns(self) -> dict[str, float]:
        """The number itself."""
        return {"": self.value}


class Reported(NamedTuple):
    """A number as a publication prints it, with two decimals; ``std`` is NaN where it gives none."""

    mean: float
    std: float = math.nan

    @property
    def text(self) -> str:
        """As printed there.

        >>> Reported(0.11, 0.0).text, Reported(6.0).text
        ('0.11 ± 0.00', '6.00')
        """
        return f"{self.mean:.2f}" + ("" if math.isnan(self.std) else f" ± {self.std:.2f}")

    @property
    def columns(self) -> dict[str, float]:
        """Mean and standard deviation, or the number alone."""
        return {"": self.mean} if math.isnan(self.std) else {"mean": self.mean, "std": self.std}


def over_seeds(values: np.ndarray) -> Summary:
    """Mean and sample standard deviation over the seeds for which a number was computed (is not NaN).

    >>> over_seeds(np.array([1.0, 3.0, np.nan]))
    Summary(mean=2.0, std=1.4142135623730951, known=2, seeds=3)
    """
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return Summary(math.nan, math.nan, 0, np.size(values))
    deviates = known.size > 1 and bool(np.isfinite(known).all())
    return Summary(float(known.mean()), float(known.std(ddof=1)) if deviates else math.nan, known.size, np.size(values))


def ratio_of(small: Summary | Reported | None, large: Summary | Reported | None) -> Ratio:
    """``large / small`` of the means, NaN where one is not known or ``small`` is 0."""
    if small is None or large is None or small.mean == 0:
        return Ratio(math.nan)
    defined = math.isfinite(small.mean) and math.isfinite(large.mean)
    return Ratio(large.mean / small.mean if defined else math.nan)


def ratio_text(value: float) -> str:
    """Three digits of a quotient, all digits before the point of a large one.

    >>> ratio_text(0.5), ratio_text(112.4), ratio_text(4485.2), ratio_text(math.nan)
    ('0.500', '112', '4485', 'n/a')
    """
    if not math.isfinite(value):
        return MISSING
    return f"{value:.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:#.3g}".rstrip(".")


def summary_text(summary: Summary) -> str:
    """``mean ± std`` with two digits of the standard deviation, or four of a mean without one.

    >>> summary_text(Summary(12.345, 0.42, 3, 3)), summary_text(Summary(0.5, math.nan, 1, 3))
    ('12.35 ± 0.42', '0.5 (1 of 3 seeds)')
    """
    if summary.known == 0:
        return MISSING
    seeds = f" ({summary.known} of {summary.seeds} seeds)" if summary.known < summary.seeds else ""
    if not math.isfinite(summary.mean):
        return "not finite" + seeds
    if not math.isfinite(summary.std):
        return f"{summary.mean:.4g}" + seeds
    return _pair_text(summary.mean, summary.std) + seeds


def _pair_text(mean: float, std: float) -> str:
    largest = max(abs(mean), std)
    exponent = _exponent(largest) if not 1e-3 <= largest < 1e5 else 0
    mean, std, largest = (number / 10.0**exponent for number in (mean, std, largest))
    if std <= 1e-12 * largest:  # rounding of equal numbers
        return f"{mean:.4g} ± 0" if not exponent else f"({mean:.4g} ± 0)e{exponent:+03d}"
    # Two digits of the deviation, but no more than six of the mean: beyond them is the rounding of float32.
    decimals = max(0, min(5 - _exponent(largest), 1 - _exponent(std)))
    text = f"{mean:.{decimals}f} ± {std:.{decimals}f}"
    return f"({text})e{exponent:+03d}" if exponent else text


def _exponent(number: float) -> int:
    """The power of ten of a number rounded to two digits: 0 for 1 and for 0.999."""
    return int(f"{number:.1e}".split("e")[1])
