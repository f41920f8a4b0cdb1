"""Two sets of numbers against each other: how far apart they lie, and whether chance alone would set them so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from sharpness.errors import ShapeError

LEVEL = 0.95  # of every interval
MOST_PAIRS = 20  # of which all 2ⁿ signs are tried: a million
MOST_SPLITS = 20_000  # of two sets that are tried; beyond, the rank sum is as good as normal
LARGEST = 709.0  # of which the exponential is a number
TIES = 1e-12  # relative difference at which two sums are the same but for rounding


class Interval(NamedTuple):
    """A number and the ends of its 95 % interval; NaN where it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan


class Contrast(NamedTuple):
    """The second of two sets of numbers against the first.

    ``difference`` is that of the means, ``ratio`` that of the geometric means, of positive numbers alone. ``p`` belongs
    to the difference and is two-sided, by a t test; ``exact`` needs no normal distribution and cannot be less than
    ``least``. ``larger`` and ``smaller`` count the pairs in which the second is so, ``pairs`` all; 0 without pairs.
    """

    difference: Interval
    ratio: Interval
    p: float
    exact: float
    least: float
    larger: int = 0
    smaller: int = 0
    pairs: int = 0


def paired(first: np.ndarray, second: np.ndarray) -> Contrast:
    """Numbers that belong together one by one, as those of two minimizers from one start; a pair with NaN is left out.

    The interval of the difference is Student's, of the n differences d: mean ± t·s/√n with n − 1 degrees of freedom;
    that of the ratio is the same of log second − log first, and the two can disagree on whether they hold 0 and 1.
    ``exact`` is the share of the 2ⁿ choices of signs whose |Σ ± d| is at least |Σ d|: at least 2/2ⁿ, so 0.25 for three
    pairs; NaN for more than 20. One pair gives values, and no statistics.

    Raises:
        ShapeError: not as many numbers in both.

    Example (d = 1, 2, 3; of eight choices of signs two are as extreme):
        >>> found = paired(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
        >>> found.difference.value, round(found.ratio.value, 6), found.exact, found.larger, found.pairs
        (2.0, 2.0, 0.25, 3, 3)
    """
    if np.shape(first) != np.shape(second):
        raise ShapeError(f"expected pairs of numbers; got {np.size(first)} and {np.size(second)}")
    known = np.isfinite(first) & np.isfinite(second)
    a, b = (np.asarray(values, float)[known] for values in (first, second))
    d = b - a
    difference, p = _of_mean(d)
    positive = bool(d.size) and min(a.min(), b.min()) > 0
    ratio = _exponential(_of_mean(np.log(b) - np.log(a))[0]) if positive else Interval(math.nan)
    tried = 1 < d.size <= MOST_PAIRS
    return Contrast(
        difference,
        ratio,
        p,
        sign_flips(d) if tried else math.nan,
        2.0 ** (1 - d.size) if tried else math.nan,
        int((d > 0).sum()),
        int((d < 0).sum()),
        d.size,
    )


def unpaired(first: np.ndarray, second: np.ndarray) -> Contrast:
    """Numbers that do not belong together; NaN are left out.

    Intervals and ``p`` are Welch's, of the numbers and, for the ratio, of their logarithms. ``exact`` is Mann and
    Whitney's: the share of all ways to choose the second set among the numbers whose rank sum is as extreme, twice that
    of the nearer tail; by the normal distribution where there are more than 20,000 ways. A set of one number has no
    spread, and the pair of sets no interval.

    >>> found = unpaired(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0]))
    >>> found.difference.value, round(found.ratio.value, 6), found.exact, found.least
    (18.0, 10.0, 0.1, 0.1)
    """
    a, b = (np.asarray(values, float)[np.isfinite(values)] for values in (first, second))
    difference, p = _of_two(a, b)
    positive = bool(a.size and b.size) and min(a.min(), b.min()) > 0
    ratio = _exponential(_of_two(np.log(a), np.log(b))[0]) if positive else Interval(math.nan)
    several = min(a.size, b.size) > 1
    ways = math.comb(a.size + b.size, a.size)
    exact, least = (_rank_sums(a, b, ways), 2 / ways) if several else (math.nan, math.nan)
    return Contrast(difference, ratio, p, exact, least)


def sign_flips(differences: np.ndarray) -> float:
    """The share of the 2ⁿ choices of signs with a sum at least as far from 0 as that of the differences themselves.

    >>> sign_flips(np.array([3.0, -1.0])), sign_flips(np.zeros(3))
    (1.0, 1.0)
    """
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return float(np.mean(np.abs(sums) >= abs(sums[0]) - TIES * np.abs(differences).sum()))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: all that stay below a level are below it together (Holm 1979).

    The i-th smallest of m is multiplied by m − i + 1, and none is less than one before it. NaN stays NaN, and does not
    count.

    >>> holm([0.01, 0.04, math.nan, 0.03])
    [0.03, 0.06, nan, 0.06]
    """
    adjusted, largest = list(map(float, ps)), 0.0
    order = sorted((index for index, p in enumerate(ps) if not math.isnan(p)), key=lambda index: ps[index])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


def _of_mean(values: np.ndarray) -> tuple[Interval, float]:
    """The mean with Student's interval, and the p of mean 0; NaN where all values are 0."""
    n = values.size
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Interval(mean), math.nan
    spread = float(values.std(ddof=1))
    if spread <= TIES * float(np.abs(values).max()):  # what rounding leaves of equal differences is no error
        spread = 0.0
    return _student(mean, spread / math.sqrt(n), n - 1)


def _of_two(a: np.ndarray, b: np.ndarray) -> tuple[Interval, float]:
    """The difference of the means with Welch's interval, and the p of 0."""
    if not (a.size and b.size):
        return Interval(math.nan), math.nan
    mean = float(b.mean() - a.mean())
    if min(a.size, b.size) < 2:
        return Interval(mean), math.nan
    parts = [float(values.var(ddof=1)) / values.size for values in (a, b)]
    weights = sum(part**2 / (values.size - 1) for part, values in zip(parts, (a, b), strict=True))
    return _student(mean, math.sqrt(sum(parts)), sum(parts) ** 2 / weights if weights else math.inf)


def _exponential(logarithms: Interval) -> Interval:
    return Interval(*(math.inf if end > LARGEST else math.exp(end) for end in logarithms))


def _student(mean: float, error: float, freedom: float) -> tuple[Interval, float]:
    if not error:
        return Interval(mean, mean, mean), math.nan  # no spread, no test
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Interval(mean, mean - reach, mean + reach), float(2 * stdtr(freedom, -abs(mean) / error))


def _rank_sums(a: np.ndarray, b: np.ndarray, ways: int) -> float:
    """Mann and Whitney's p, exact also where numbers are equal."""
    from scipy import stats  # which takes a second to import, and is needed here alone

    if ways > MOST_SPLITS:
        return float(stats.mannwhitneyu(a, b, method="asymptotic").pvalue)
    ranks = stats.rankdata(np.concatenate([a, b]))
    parts = (ranks[: a.size], ranks[a.size :])

    def higher(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        difference: np.ndarray = y.mean(axis) - x.mean(axis)
        return difference

    found = stats.permutation_test(parts, higher, vectorized=True, n_resamples=np.inf)
    return float(found.pvalue)
