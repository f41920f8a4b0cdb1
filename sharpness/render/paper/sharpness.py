"""Tables 3 and 4: ε-sharpness in the full space and in random subspaces, with what it must be read beside."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sharpness.records import axis_label
from sharpness.render.cells import Cell, Summary, over_seeds, ratio_of
from sharpness.render.notes import counted, smoke_text
from sharpness.render.paper.orderings import SPACES, ordering, points, sharper
from sharpness.render.paper.runs import Run, run_notes
from sharpness.render.published import DISTANCE_RATIO, ITERATIONS, SUBSPACE, TRIALS, published_sharpness
from sharpness.render.summary import REGIMES, Case, cases, certified
from sharpness.render.tables import Table

HEAD = (
    "network",
    "measure",
    "batch norm",
    "ε",
    "maximiser",
    *REGIMES,
    "ratio",
    *(f"published {name}" for name in (*REGIMES, "ratio")),
)


def sharpness_of_networks(title: str, found: Sequence[Run], space: str) -> Table:
    """The ε-sharpness in one space of all networks, beside the published; for the full space curvature and distances.

    Args:
        title: of the table.
        found: runs of the paper's networks.
        space: ``"full"`` or ``"subspace"``.
    """
    rows, notes = [], list(_conditions(found, space))
    for run in found:
        chosen = _chosen(run, space)
        rows += [_sharpness_row(run, space, case) for case in chosen]
        notes += _verdicts(run, space, chosen)
        if space == "full":
            rows += _companions(run, chosen)
            notes += [_curvature_note(run), _distance_note(run)]
    return Table(title, HEAD, rows, notes)


def _chosen(run: Run, space: str) -> list[Case]:
    """The ways of measuring in that space, the paper's ε from large to small and its maximiser first."""
    return [case for case in cases(run.comparison) if str(run.comparison.space[case.space]) == space]


def _conditions(found: Sequence[Run], space: str) -> Iterator[str]:
    low, high = DISTANCE_RATIO
    yield (
        f"Measured: mean ± sample standard deviation over trials, both maximisers give lower bounds; published: over "
        f"{TRIALS} trials, by {ITERATIONS} iterations of L-BFGS-B; it is not said how batch norm was treated."
    )
    if space == "full":
        yield (
            "Ratios are LB/SB of the means, but for the distance ratio: ‖θ − θ₀‖ of SB over that of LB, "
            f"published as a range of {low:g} to {high:g}."
        )
    elif any(run.name == "keskar-f1" for run in found):
        yield "Ratios are LB/SB of the means. F1, LB: the published values are left out; our copy of them is doubtful."
    for run in found:
        yield from run_notes(run)
        dimension = (run.comparison.conditions.get("analysis") or {}).get("subspace")
        if space == "subspace" and dimension != SUBSPACE:
            yield f"{run.label}: subspaces of {dimension or 'unknown'} dimensions; published: {SUBSPACE}."


def _sharpness_row(run: Run, space: str, case: Case) -> list[Cell]:
    record = run.comparison
    epsilon = float(record.epsilon[case.epsilon])
    published = [published_sharpness(run.name, space, epsilon, regime) for regime in REGIMES]
    measured = [over_seeds(values) for values in run.pair(record.sharpness[:, :, *case])]
    choices: list[Cell] = [str(record.batchnorm[case.batchnorm]), epsilon, str(record.maximiser[case.maximiser])]
    numbers = [*measured, ratio_of(*measured), *published, ratio_of(*published)]
    return [run.label, f"φ (%), {SPACES[space]}", *choices, *numbers]


def _companions(run: Run, chosen: Sequence[Case]) -> Iterator[list[Cell]]:
    """What φ must be read beside: its first-order part, the gradient, curvature, weight scale and distance."""
    record = run.comparison

    def row(measure: str, values: np.ndarray, batchnorm: str = "", epsilon: float | str = "") -> list[Cell]:
        pair = [over_seeds(known) for known in run.pair(values)]
        return [run.label, measure, batchnorm, epsilon, "", *pair, ratio_of(*pair), *3 * [""]]

    for mode, space, number in dict.fromkeys(case[:3] for case in chosen):
        part = "first-order part of φ (%)"
        yield row(part, record.first_order[:, :, mode, space, number], *_choices(run, mode, number))
    for mode, batchnorm in enumerate(record.batchnorm):
        yield row(axis_label(record, "gradient_norm"), record.gradient_norm[:, :, mode], str(batchnorm))
    policy = str(record.conditions.get("batchnorm", ""))
    if record.pair.size:
        eigenvalue = row("λmax", record.eigenvalues[:, :, 0], policy)
        yield [*eigenvalue[:5], *(certified(record, run.regime(name)) for name in REGIMES), *eigenvalue[7:]]
    yield row(axis_label(record, "weight_norm"), record.weight_norm)
    yield row(axis_label(record, "distance"), record.distance)
    ratio: Summary = over_seeds(_distance_ratios(run))
    yield [run.label, "distance ratio SB/LB", *5 * [""], ratio, "", "", "–".join(f"{end:g}" for end in DISTANCE_RATIO)]


def _choices(run: Run, mode: int, number: int) -> tuple[str, float]:
    return str(run.comparison.batchnorm[mode]), float(run.comparison.epsilon[number])


def _verdicts(run: Run, space: str, chosen: Sequence[Case]) -> Iterator[str]:
    """One sentence for each way of measuring."""
    if not chosen:
        yield f"{run.where}: not measured in {SPACES[space]}."
        return
    yield from (sharper(run, case) for case in chosen)
    if not smoke_text(run.comparison.conditions):
        verdicts = [ordering(*run.pair(run.comparison.sharpness[:, :, *case])).verdict for case in chosen]
        held = f"{verdicts.count('holds')} of {len(verdicts)}"
        yield f"{run.where}: the paper's ordering holds in {held} ways of measuring."
    yield from _first_order_notes(run, chosen)


def _first_order_notes(run: Run, chosen: Sequence[Case]) -> Iterator[str]:
    """Where the first-order part is most of the ε-sharpness, the point is no minimum at that scale."""
    record = run.comparison
    for regime in REGIMES:
        index = run.regime(regime)
        pairs = ((record.sharpness[index, :, *case], record.first_order[index, :, *case[:3]]) for case in chosen)
        slopes = sum(bool(np.nanmean(part) > 0.5 * np.nanmean(whole)) for whole, part in _known(pairs))
        if slopes:
            yield (
                f"{run.where}: at {regime} more than half of φ is its first-order part in {slopes} of "
                f"{counted(len(chosen), 'row')}: there the point is no minimum on the scale of ε."
            )


def _known(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return (pair for pair in pairs if all(np.isfinite(values).any() for values in pair))


def _curvature_note(run: Run) -> str:
    record = run.comparison
    if not record.pair.size:
        return f"{run.where}: λmax was not measured."
    small, large = run.pair(record.eigenvalues[..., 0])
    ratio = ratio_of(over_seeds(small), over_seeds(large))
    return (
        f"{run.where}: λmax is larger at LB than at SB in {ordering(small, large).tally}; LB/SB = {ratio.text} "
        "(the paper reports none)."
    )


def _distance_ratios(run: Run) -> np.ndarray:
    small, large = run.pair(np.asarray(run.comparison.distance, float))
    return np.divide(small, large, out=np.full(small.shape, np.nan), where=large != 0)


def _distance_note(run: Run) -> str:
    ratios, (low, high) = _distance_ratios(run), DISTANCE_RATIO
    inside = int(np.sum((ratios >= low) & (ratios <= high)))
    return (
        f"{run.where}: SB ends {points(over_seeds(ratios).mean)} times as far from the start as LB (published "
        f"{low:g}–{high:g}); within that range in {inside} of {counted(ratios.size, 'trial')}."
    )
