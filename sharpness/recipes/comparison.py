"""Everything that an experiment measured, side by side in one record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
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
    regimes = list(parameters.regimes)
    every = list(cases(parameters.analysis, objectives["train"]))
    modes, spaces, epsilons = (list(dict.fromkeys(column)) for column in zip(*every, strict=True))

    def table(value: Callable[[str, int], Any]) -> np.ndarray:
        found = {(r, s): np.asarray(value(r, s)) for s, trial in trials.items() for r in regimes if r in trial.ends}
        one = next(iter(found.values()))
        none = np.zeros_like(one) if one.dtype == bool else np.full(one.shape, np.nan)
        return np.array([[found.get((regime, seed), none) for seed in trials] for regime in regimes])

    def per_case(value: Callable[[Any], Any]) -> np.ndarray:
        def one(regime: str, seed: int) -> list[Any]:
            found = measured[seed, regime].sharpness
            return [[[value(found[Case(m, s, e)]) for e in epsilons] for s in spaces] for m in modes]

        return table(one)

    def evaluations(regime: str, seed: int) -> list[tuple[float, ...]]:
        return [o.evaluate(trials[seed].ends[regime])[:2] for o in objectives.values()]

    scores, examples = table(evaluations), objectives["train"].examples
    sizes = [parameters.regimes[regime].examples_per_batch(examples) for regime in regimes]
    return Comparison(
        regime=np.array(regimes),
        seed=np.array(list(trials)),
        split=np.array(list(objectives)),
        pair=np.arange(1, parameters.analysis.eigenpairs + 1),
        batchnorm=np.array(modes),
        space=np.array(spaces),
        epsilon=np.array(epsilons),
        maximiser=np.array(["L-BFGS-B", "sign ascent"]),
        loss=scores[..., 0],
        accuracy=scores[..., 1],
        eigenvalues=table(lambda r, s: measured[s, r].eigenpairs.eigenvalues),
        residuals=table(lambda r, s: measured[s, r].eigenpairs.residuals),
        converged=table(lambda r, s: measured[s, r].eigenpairs.converged),
        gradient_norm=per_case(lambda s: s.gradient_norm)[..., 0, 0],
        sharpness=per_case(lambda s: (s.sharpness, s.stronger)),
        spread=per_case(lambda s: s.spread),
        first_order=per_case(lambda s: s.first_order),
        distance=table(lambda r, s: norm(trials[s].ends[r].point.theta - trials[s].start.point.theta)),
        weight_norm=table(lambda r, s: norm(trials[s].ends[r].point.theta)),
        epochs=table(lambda r, s: trials[s].ends[r].metadata["epochs"]),
        batch_size=np.array(sizes),
        warm_epochs=np.array([parameters.warm_epochs(regime) for regime in regimes]),
        recipe=name,
        conditions={"scale": scale, **_conditions(parameters, objectives, trials, measured)},
    )


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
