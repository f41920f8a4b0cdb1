"""Everything that an experiment measured, side by side in one record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sharpness.objective import Objective
from sharpness.recipes.analysis import Analysis, Case, cases
from sharpness.recipes.experiment import Experiment, Trial
from sharpness.recipes.trajectory import norm
from sharpness.records import Comparison


def compare(
    name: str,
    scale: str,
    parameters: Experiment,
    objectives: dict[str, Objective],
    trials: Mapping[int, Trial],
    measured: Mapping[tuple[int, str], Analysis],
) -> Comparison:
    """The comparison of all regimes over all seeds; loss and accuracy are those on all training and all test data.

    NaN stands where a regime diverged.
    """
    regimes, seeds = list(parameters.regimes), list(trials)
    ends = {(seed, regime): end for seed, trial in trials.items() for regime, end in trial.ends.items()}
    scores = {place: [o.evaluate(end)[:2] for o in objectives.values()] for place, end in ends.items()}
    lengths = {place: norm(end.point.theta) for place, end in ends.items()}
    moved = {(s, r): norm(end.point.theta - trials[s].start.point.theta) for (s, r), end in ends.items()}
    examples = objectives["train"].examples
    sizes = [parameters.regimes[regime].examples_per_batch(examples) for regime in regimes]
    return Comparison(
        **side_by_side(regimes, seeds, list(cases(parameters.analysis, objectives["train"])), measured),
        **of_scores(regimes, seeds, list(objectives), scores),
        distance=table(regimes, seeds, moved),
        weight_norm=table(regimes, seeds, lengths),
        epochs=table(regimes, seeds, {place: end.metadata["epochs"] for place, end in ends.items()}),
        batch_size=np.array(sizes),
        warm_epochs=np.array([parameters.warm_epochs(regime) for regime in regimes]),
        recipe=name,
        conditions={"scale": scale, **_conditions(parameters, objectives, trials, measured)},
    )


def table(regimes: Sequence[str], seeds: Sequence[int], values: Mapping[tuple[int, str], Any]) -> np.ndarray:
    """Values by seed and regime as an array (regime, seed, …); NaN, or False, where there is none."""
    found = {place: np.asarray(value) for place, value in values.items()}
    one = next(iter(found.values()))
    none = np.zeros_like(one) if one.dtype == bool else np.full(one.shape, np.nan)
    return np.array([[found.get((seed, regime), none) for seed in seeds] for regime in regimes])


def of_scores(
    regimes: Sequence[str], seeds: Sequence[int], splits: Sequence[str], scores: Mapping[tuple[int, str], Any]
) -> dict[str, Any]:
    """Loss and accuracy of a comparison, from pairs of them for every split."""
    both = table(regimes, seeds, scores)
    return {"split": np.array(splits), "loss": both[..., 0], "accuracy": both[..., 1]}


def side_by_side(
    regimes: Sequence[str], seeds: Sequence[int], every: Sequence[Case], measured: Mapping[tuple[int, str], Analysis]
) -> dict[str, Any]:
    """What analyses say, as the coordinates and measures of a comparison."""
    modes, spaces, epsilons = (list(dict.fromkeys(column)) for column in zip(*every, strict=True))

    def of_pairs(name: str) -> np.ndarray:
        return table(regimes, seeds, {place: getattr(found.eigenpairs, name) for place, found in measured.items()})

    def per_case(value: Callable[[Any], Any]) -> np.ndarray:
        def one(found: Mapping[Case, Any]) -> list[Any]:
            return [[[value(found[Case(m, s, e)]) for e in epsilons] for s in spaces] for m in modes]

        return table(regimes, seeds, {place: one(found.sharpness) for place, found in measured.items()})

    eigenvalues = of_pairs("eigenvalues")
    return {
        "regime": np.array(regimes),
        "seed": np.array(seeds),
        "pair": np.arange(1, eigenvalues.shape[-1] + 1),
        "batchnorm": np.array(modes),
        "space": np.array(spaces),
        "epsilon": np.array(epsilons),
        "maximiser": np.array(["L-BFGS-B", "sign ascent"]),
        "eigenvalues": eigenvalues,
        "residuals": of_pairs("residuals"),
        "converged": of_pairs("converged"),
        "gradient_norm": per_case(lambda s: s.gradient_norm)[..., 0, 0],
        "sharpness": per_case(lambda s: (s.sharpness, s.stronger)),
        "spread": per_case(lambda s: s.spread),
        "first_order": per_case(lambda s: s.first_order),
    }


def _conditions(
    parameters: Experiment,
    objectives: dict[str, Objective],
    trials: Mapping[int, Trial],
    measured: Mapping[tuple[int, str], Analysis],
) -> dict[str, Any]:
    """What was trained, how it was measured, and what came to nothing."""
    train, regimes = objectives["train"], parameters.regimes
    examples = train.examples
    return {
        "data": parameters.data,
        "model": parameters.model,
        "model_options": dict(parameters.model_options),
        "initialisation": parameters.initialisation,
        "statistics": parameters.statistics,
        "diverged": [f"{r}, seed {s}" for s, trial in trials.items() for r in regimes if r not in trial.ends],
        "plans": {regime: dataclasses.asdict(plan) for regime, plan in parameters.regimes.items()},
        "train_examples": examples,
        "test_examples": objectives["test"].examples,
        "training": train.conditions,
        "batchnorm": "eval" if train.has_batchnorm else "none",
        "analysis": dataclasses.asdict(parameters.analysis),
        "probe_passed": all(found.eigenpairs.probe_passed for found in measured.values()),
        "measured_on": f"{min(parameters.analysis.examples or examples, examples)} training examples",
    }
