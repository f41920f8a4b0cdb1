"""The numbers of a comparison as text: mean ± standard deviation over seeds, never without what is missing."""

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from sharpness.errors import ShapeError
from sharpness.records import Comparison, axis_label

REGIMES = ("SB", "LB")
MISSING = "n/a"
Row = tuple[str, str, str, str]


class Summary(NamedTuple):
    """One number over the seeds. ``std`` is the sample standard deviation, NaN for fewer than two seeds."""

    mean: float
    std: float
    known: int
    seeds: int


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


class Case(NamedTuple):
    """One way of measuring ε-sharpness: indices along the last four dimensions of ``Comparison.sharpness``."""

    batchnorm: int
    space: int
    epsilon: int
    maximiser: int


def cases(record: Comparison) -> Iterator[Case]:
    """All ways in which the ε-sharpness was measured."""
    return (Case(*indices) for indices in product(*(range(size) for size in record.sharpness.shape[2:])))


def case_texts(record: Comparison, case: Case) -> dict[str, str]:
    """The four choices behind one ε-sharpness in words, by dimension; nothing for a model without batch norm."""
    batchnorm = str(record.batchnorm[case.batchnorm])
    return {
        "batchnorm": "" if batchnorm == "none" else f"batch norm: {batchnorm}",
        "space": str(record.space[case.space]),
        "epsilon": f"ε = {float(record.epsilon[case.epsilon]):g}",
        "maximiser": str(record.maximiser[case.maximiser]),
    }


def sharpness_table(comparison: Comparison) -> list[Row]:
    """Small batch against large batch as text, row by row.

    Args:
        comparison: what a recipe found for both regimes over its seeds.

    Returns:
        Rows ``(quantity, SB, LB, ratio LB/SB)``. A number is the mean over the seeds, ± their sample standard deviation
        where there are two or more; ``(2 of 3 seeds)`` follows where some were not computed, ``n/a`` stands where none
        was. Accuracies and ε-sharpness are in percent. λmax is followed by its largest residual over the seeds and by
        ``not converged`` where that is so. The ratio is that of the means.

    Raises:
        ShapeError: the comparison has no regime ``SB`` or no regime ``LB``.

    Example:
        >>> for quantity, small, large, ratio in sharpness_table(comparison):  # doctest: +SKIP
        ...     print(f"{quantity:60} {small:>20} {large:>20} {ratio:>8}")
    """
    names = [str(regime) for regime in comparison.regime]
    if missing := [regime for regime in REGIMES if regime not in names]:
        raise ShapeError(
            f"expected a comparison of SB with LB; {', '.join(missing)} is missing from its regimes {', '.join(names)}"
        )
    small, large = (names.index(regime) for regime in REGIMES)
    rows = []
    for quantity, values in _quantities(comparison):
        note = (lambda regime: _certificate(comparison, regime)) if quantity == "λmax" else (lambda _: "")
        left, right = over_seeds(values[small]), over_seeds(values[large])
        rows.append(
            (quantity, summary_text(left) + note(small), summary_text(right) + note(large), _ratio(left, right))
        )
    return rows


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
    if std == 0:
        return f"{mean:.4g} ± 0" if not exponent else f"({mean:.4g} ± 0)e{exponent:+03d}"
    # Two digits of the deviation, but no more than six of the mean: beyond them is the rounding of float32.
    decimals = max(0, min(5 - _exponent(largest), 1 - _exponent(std)))
    text = f"{mean:.{decimals}f} ± {std:.{decimals}f}"
    return f"({text})e{exponent:+03d}" if exponent else text


def _exponent(number: float) -> int:
    """The power of ten of a number rounded to two digits: 0 for 1 and for 0.999."""
    return int(f"{number:.1e}".split("e")[1])


def _quantities(record: Comparison) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of shape (regime, seed) of every row."""
    for index, split in enumerate(record.split):
        yield f"{split} {axis_label(record, 'loss')}", record.loss[:, :, index]
    for index, split in enumerate(record.split):
        yield f"{split} {axis_label(record, 'accuracy')} (%)", 100 * record.accuracy[:, :, index]
    if record.pair.size:
        yield "λmax", record.eigenvalues[:, :, 0]
    for index, batchnorm in enumerate(record.batchnorm):
        policy = "" if str(batchnorm) == "none" else f", batch norm: {batchnorm}"
        yield axis_label(record, "gradient_norm") + policy, record.gradient_norm[:, :, index]
    for case in cases(record):
        choices = ", ".join(text for text in case_texts(record, case).values() if text)
        yield f"ε-sharpness (%), {choices}", record.sharpness[:, :, *case]
    for name in ("distance", "weight_norm", "epochs"):
        yield axis_label(record, name), np.asarray(getattr(record, name))


def _certificate(record: Comparison, regime: int) -> str:
    """What bounds the error of λmax, and whether the bound was met."""
    known = ~np.isnan(record.eigenvalues[regime, :, 0])
    if not known.any():
        return ""
    largest = np.max(record.residuals[regime, known, 0])
    failed = int(np.sum(np.asarray(record.converged)[regime, known, 0] == 0))
    seeds = f": {failed} of {known.sum()}" if known.sum() > 1 else ""
    return f" (residual ≤ {largest:.2g}" + (f"; not converged{seeds})" if failed else ")")


def _ratio(small: Summary, large: Summary) -> str:
    defined = math.isfinite(small.mean) and math.isfinite(large.mean) and small.mean != 0
    return f"{large.mean / small.mean:#.3g}".rstrip(".") if defined else MISSING
