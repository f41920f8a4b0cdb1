"""The numbers of a comparison as text: mean ± standard deviation over seeds, never without what is missing."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from sharpness.errors import ShapeError
from sharpness.records import Comparison, axis_label
from sharpness.render.cells import Cell, Certified, Ratio, Summary, over_seeds, ratio_of
from sharpness.render.notes import condition_notes
from sharpness.render.tables import Table

REGIMES = ("SB", "LB")
Row = tuple[str, str, str, str]


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
    return [(quantity, small.text, large.text, ratio.text) for quantity, small, large, ratio in _against(comparison)]


def comparison_table(comparison: Comparison) -> Table:
    """The table that suits the regimes of a comparison.

    Args:
        comparison: what a recipe found for its regimes over its seeds.

    Returns:
        For SB and LB alone the rows of ``sharpness_table``; for any other regimes ``regimes_table``. The conditions
        stand in the notes.

    Example:
        >>> save_table(comparison_table(comparison), Path("table"))  # doctest: +SKIP
    """
    if not is_pair(comparison):
        return regimes_table(comparison)
    head = ("quantity", *REGIMES, "LB/SB")
    return Table(_title(comparison), head, list(_against(comparison)), condition_notes(comparison))


def is_pair(comparison: Comparison) -> bool:
    """Whether SB and LB are the regimes, and there are no others."""
    return sorted(map(str, comparison.regime)) == sorted(REGIMES)


def regimes_table(comparison: Comparison) -> Table:
    """Any number of training regimes, one row each.

    Args:
        comparison: what a recipe found for its regimes over its seeds.

    Returns:
        Columns as the rows of ``sharpness_table``, after λmax its certificate: the largest residual over the seeds
        and how many did not converge. First come the batch size and, for regimes that begin at an iterate of another,
        the epochs before, where the record has them.
    """
    columns: dict[str, list[Cell]] = {"regime": [str(name) for name in comparison.regime]}
    for name, values in (("batch size", comparison.batch_size), ("epochs before", comparison.warm_epochs)):
        if values is not None and np.any(values):
            columns[name] = [int(value) for value in values]
    for quantity, values in quantities(comparison):
        columns[quantity] = [_summary(comparison, row) for row in values]
        if quantity == "λmax":
            columns["certificate of λmax"] = [certified(comparison, row).certificate for row in range(len(values))]
    rows = list(zip(*columns.values(), strict=True))
    return Table(_title(comparison), tuple(columns), rows, condition_notes(comparison))


def quantities(record: Comparison) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of shape (regime, seed) of everything that was measured.

    Of checkpoints from elsewhere the start and the epoch may not be known.
    """
    for index, split in enumerate(record.split):
        yield f"{split} {axis_label(record, 'loss')}", record.loss[:, :, index]
    for index, split in enumerate(record.split):
        yield f"{split} {axis_label(record, 'accuracy')} (%)", 100 * record.accuracy[:, :, index]
    if record.pair.size:
        yield "λmax", record.eigenvalues[:, :, 0]
    if record.trace is not None:
        yield axis_label(record, "trace"), record.trace
    for index, batchnorm in enumerate(record.batchnorm):
        policy = "" if str(batchnorm) == "none" else f", batch norm: {batchnorm}"
        yield axis_label(record, "gradient_norm") + policy, record.gradient_norm[:, :, index]
    for case in cases(record):
        choices = ", ".join(text for text in case_texts(record, case).values() if text)
        yield f"ε-sharpness (%), {choices}", record.sharpness[:, :, *case]
    for name in ("distance", "weight_norm", "epochs"):
        values = np.asarray(getattr(record, name))
        if record.over == "seeds" or not np.isnan(values).all():
            yield axis_label(record, name), values


def certified(record: Comparison, regime: int) -> Certified:
    """λmax of one regime with what bounds its error."""
    values = record.eigenvalues[regime, :, 0]
    known = ~np.isnan(values)
    failed = int(np.sum(np.asarray(record.converged)[regime, known, 0] == 0))
    return Certified(_summary(record, values), float(np.max(record.residuals[regime, known, 0], initial=0.0)), failed)


def _against(record: Comparison) -> Iterator[tuple[str, Summary | Certified, Summary | Certified, Ratio]]:
    """The rows of SB against LB."""
    names = [str(regime) for regime in record.regime]
    if missing := [regime for regime in REGIMES if regime not in names]:
        raise ShapeError(
            f"expected a comparison of SB with LB; {', '.join(missing)} is missing from its regimes {', '.join(names)}"
        )
    small, large = (names.index(regime) for regime in REGIMES)
    for quantity, values in quantities(record):
        left, right = (_summary(record, values[regime]) for regime in (small, large))
        if quantity == "λmax":
            yield quantity, certified(record, small), certified(record, large), ratio_of(left, right)
        else:
            yield quantity, left, right, ratio_of(left, right)


def _summary(record: Comparison, values: np.ndarray) -> Summary:
    """Over seeds, of which a regime may have diverged in some; a set of checkpoints has those that it has."""
    return over_seeds(values if record.over == "seeds" else values[~np.isnan(values)])


def _title(record: Comparison) -> str:
    over = "of each set" if record.over == "checkpoints" else f"over {record.seed.size} {record.over}"
    return f"{record.recipe}: mean ± sample standard deviation {over}"
