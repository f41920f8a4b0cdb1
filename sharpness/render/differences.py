"""Two sets of checkpoints against each other: how every measure differs, and what chance alone would do."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sharpness.contrasts import Contrast, Interval, holm, paired, unpaired
from sharpness.errors import ShapeError
from sharpness.records import Comparison, axis_label
from sharpness.render.cells import MISSING, Cell, Summary, over_seeds, ratio_text
from sharpness.render.notes import condition_notes, counted
from sharpness.render.summary import case_texts, cases, quantities
from sharpness.render.tables import Table


class Measure(NamedTuple):
    """One measure of every checkpoint, of shape (regime, seed); whether its ratio says more than its difference."""

    name: str
    values: np.ndarray
    relative: bool


class Contrasted(NamedTuple):
    """A measure, the second set against the first, the p for as many measures as there are, and a sentence."""

    measure: Measure
    contrast: Contrast
    adjusted: float
    words: str


class Chance(NamedTuple):
    """A p-value as a cell."""

    p: float

    @property
    def text(self) -> str:
        """Two digits."""
        return MISSING if math.isnan(self.p) else f"{self.p:.2g}"

    @property
    def columns(self) -> dict[str, float]:
        """The number itself."""
        return {"": self.p}


class Bounds(NamedTuple):
    """An interval as a cell."""

    interval: Interval

    @property
    def text(self) -> str:
        """``value [low, high]``, with as many digits as tell the ends apart."""
        value, low, high = self.interval
        if math.isnan(value):
            return MISSING
        if math.isnan(low):
            return f"{value:.3g}"
        return f"{value:.3g} [{low:.3g}, {high:.3g}]"

    @property
    def columns(self) -> dict[str, float]:
        """The number and the ends."""
        return dict(zip(("value", "low", "high"), self.interval, strict=True))


def differences_table(comparison: Comparison) -> Table:
    """Every measure of two sets of checkpoints: both sets, how the second differs, and what speaks against chance.

    Args:
        comparison: of two regimes.

    Returns:
        A row for each measure: mean ± sample standard deviation of both sets, a sentence, the difference of the means
        and the ratio of the geometric means with 95 % intervals, and p-values: of the t test (paired, or Welch's), the
        same by Holm for as many measures as there are, and an exact one (all signs of the paired differences, or Mann
        and Whitney's). Pairs are those of ``seed`` unless the comparison is over ``"checkpoints"``.

    Raises:
        ShapeError: not two regimes.

    Example:
        >>> save_table(differences_table(comparison), Path("differences"))  # doctest: +SKIP
    """
    found, apart = contrasts(comparison), comparison.over == "checkpoints"
    first, second = map(str, comparison.regime)
    exact = "p (Mann–Whitney)" if apart else "p (sign flips)"
    head = ("measure", first, second, "in words", f"{second} − {first}", f"{second}/{first}")
    rows: list[tuple[Cell, ...]] = [
        (
            one.measure.name,
            *(_summary(values) for values in one.measure.values),
            one.words,
            Bounds(one.contrast.difference),
            Bounds(one.contrast.ratio),
            *map(Chance, (one.contrast.p, one.adjusted, one.contrast.exact)),
        )
        for one in found
    ]
    title = f"{second} against {first}, {'not paired' if apart else counted(comparison.seed.size, 'pair')}"
    notes = [*_how(comparison, [one.contrast for one in found]), *condition_notes(comparison)]
    return Table(title, (*head, "p (Welch)" if apart else "p (paired t)", "p (Holm)", exact), rows, notes)


def contrasts(comparison: Comparison) -> list[Contrasted]:
    """Every measure with its statistics; errors as ``differences_table``."""
    if comparison.regime.size != 2:
        raise ShapeError(f"expected two sets to compare; got {comparison.regime.size}")
    method, second = unpaired if comparison.over == "checkpoints" else paired, str(comparison.regime[1])
    found = [(measure, method(*measure.values)) for measure in measures(comparison)]
    adjusted = holm([contrast.p for _, contrast in found])
    return [
        Contrasted(measure, contrast, p, in_words(second, contrast, measure.relative))
        for (measure, contrast), p in zip(found, adjusted, strict=True)
    ]


def in_words(second: str, contrast: Contrast, relative: bool) -> str:
    """One measure of the second set against the first, as a sentence.

    >>> in_words("LB", paired(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])), relative=True)
    'LB larger in 3 of 3 pairs, ratio 2.00 [2.00, 2.00]'
    >>> in_words("LB", paired(np.array([2.0]), np.array([1.0])), relative=False)
    'LB smaller, difference -1 (one pair: no statistics)'
    """
    difference, ratio = contrast.difference, contrast.ratio
    if math.isnan(difference.value):
        return MISSING
    amount = f", difference {Bounds(difference).text}" if difference.value else ""
    if relative and not math.isnan(ratio.value):
        ends = "" if math.isnan(ratio.low) else f" [{ratio_text(ratio.low)}, {ratio_text(ratio.high)}]"
        amount = f", ratio {ratio_text(ratio.value)}{ends}"
    return _direction(second, contrast) + amount + (" (one pair: no statistics)" if contrast.pairs == 1 else "")


def measures(record: Comparison) -> Iterator[Measure]:
    """Everything that was measured at every checkpoint: what ``quantities`` says, gaps, further eigenvalues, slopes.

    The first-order part is proportional to ε, so that of the largest stands for all.
    """
    for name, values in quantities(record):
        if name == axis_label(record, "epochs") or np.isnan(values).all():
            continue
        yield Measure(name, values, axis_label(record, "accuracy") not in name)
        if name == "λmax":
            yield from (Measure(f"λ{pair}", record.eigenvalues[:, :, pair - 1], True) for pair in record.pair[1:])
    yield from _gaps(record)
    largest = int(np.argmax(record.epsilon))
    for case in cases(record):
        if case.maximiser == 0 and case.epsilon == largest:
            texts = case_texts(record, case)
            choices = [texts[name] for name in ("batchnorm", "space", "epsilon") if texts[name]]
            name = ", ".join(["first-order part (%)", *choices])
            yield Measure(name, record.first_order[:, :, *case[:3]], True)


def _gaps(record: Comparison) -> Iterator[Measure]:
    """What training and test data differ by."""
    splits = [str(split) for split in record.split]
    if not {"train", "test"} <= set(splits):
        return
    train, test = splits.index("train"), splits.index("test")
    yield Measure("gap, test − train loss (nat)", record.loss[..., test] - record.loss[..., train], False)
    gap = 100 * (record.accuracy[..., train] - record.accuracy[..., test])
    if not np.isnan(gap).all():
        yield Measure("gap, train − test accuracy (%)", gap, False)


def _direction(second: str, contrast: Contrast) -> str:
    """Whether the second set's numbers are larger; in how many pairs, where there are several."""
    if contrast.pairs > 1:
        equal = contrast.pairs - contrast.larger - contrast.smaller
        if equal == contrast.pairs:
            return f"equal in {equal} of {contrast.pairs} pairs"
        word, number = (
            ("larger", contrast.larger) if contrast.larger >= contrast.smaller else ("smaller", contrast.smaller)
        )
        return f"{second} {word} in {number} of {contrast.pairs} pairs" + (f" ({equal} equal)" if equal else "")
    value = contrast.difference.value
    return f"{second} " + ("larger" if value > 0 else "smaller" if value < 0 else "equal")


def _how(record: Comparison, contrasts: list[Contrast]) -> Iterator[str]:
    """How the statistics came to be."""
    several = record.over == "checkpoints" or record.seed.size > 1
    if not several:
        yield "One pair: no statistics, which need two at least."
        return
    looked = sum(not math.isnan(contrast.p) for contrast in contrasts)
    yield f"{looked} measures were looked at, and p (Holm) is corrected for as many; measures depend on each other."
    if record.over == "checkpoints":
        yield "Intervals are Welch's at 95 %, of ratios those of the logarithms."
    else:
        yield "Intervals are Student's at 95 % of the paired differences, of ratios those of the paired logarithms."
    if least := next((contrast.least for contrast in contrasts if not math.isnan(contrast.least)), 0.0):
        yield f"With so few checkpoints the last column cannot be less than {least:.2g}."


def _summary(values: np.ndarray) -> Summary:
    return over_seeds(values[~np.isnan(values)])
