"""Loss, ε-sharpness and curvature along training: at every iterate that was kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sharpness import store
from sharpness.checkpoints import Minimizer, load_minimizer
from sharpness.errors import NonFiniteError
from sharpness.journal import PENDING
from sharpness.measures import epsilon_sharpness
from sharpness.objective import Objective
from sharpness.params import Point
from sharpness.progress import Progress
from sharpness.recipes.analysis import AnalysisPlan, cases
from sharpness.records import Trajectory

Row = dict[str, Any]
MEASURES = ("sharpness", "stronger", "first_order", "gradient_norm", "weight_norm", "distance")
BY_MAXIMISERS = MEASURES[:4]

MINIMIZER = "minimizer.safetensors"


def iterate_file(folder: Path, epoch: int) -> Path:
    """Where the iterate after an epoch is kept."""
    return folder / f"epoch-{epoch:04}.safetensors"


def norm(vector: torch.Tensor) -> float:
    """‖v‖, in float64."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def follow(
    objectives: dict[str, Objective],
    start: Minimizer,
    folder: Path,
    epochs: Sequence[int],
    plan: AnalysisPlan,
    seed: int,
    progress: Progress,
) -> Trajectory:
    """Loss, accuracy and ε-sharpness (largest ε of the plan, full space, its first batch-norm treatment) of the
    iterates kept in ``folder`` and of the minimizer there, into ``folder/trajectory.h5``, going on with what it holds.
    """
    iterates = {epoch: iterate_file(folder, epoch) for epoch in epochs}
    iterates = {epoch: kept for epoch, kept in iterates.items() if kept.exists()}
    iterates[load_minimizer(folder / MINIMIZER).metadata["epochs"]] = folder / MINIMIZER
    kept = sorted(iterates)

    def row(number: int) -> Row:
        point = load_minimizer(iterates[kept[number]]).point
        return measured(objectives, objectives["train"], point, start.point.theta, plan, seed)

    return along(folder / "trajectory.h5", template(objectives, kept, plan), row, progress)


def along(file: Path, begun: Trajectory, row: Callable[[int], Row], progress: Progress) -> Trajectory:
    """A trajectory into a file, going on with what it holds: ``row(number)`` measures one iterate, in their order."""
    with store.begin(file, {"trajectory": begun})["trajectory"] as journal:
        for number in map(int, np.flatnonzero(journal.status == PENDING)):
            found = row(number)
            # accuracy is NaN where it has no meaning
            finite = all(np.isfinite(values).all() for name, values in found.items() if name != "accuracy")
            journal.commit(number, found, finite=finite)
            progress(int((journal.status != PENDING).sum()), len(journal), f"{begun.counts} {begun.epoch[number]}")
    return store.load(file)


def measured(
    objectives: Mapping[str, Objective],
    train: Objective,
    point: Point,
    start: torch.Tensor,
    plan: AnalysisPlan,
    seed: int,
) -> Row:
    """Loss and accuracy on every objective, ε-sharpness and norms on ``train``; NaN where f or g is not finite."""
    scores = [objective.evaluate(point) for objective in objectives.values()]
    return {
        "loss": np.array([score.loss for score in scores]),
        "accuracy": np.array([score.accuracy for score in scores]),
        **_sharpness(train, point, plan, seed),
        "weight_norm": norm(point.theta),
        "distance": norm(point.theta - start),
    }


def _sharpness(objective: Objective, place: Point, plan: AnalysisPlan, seed: int) -> Row:
    objective = objective.replace(batchnorm=next(cases(plan, objective)).policy)
    if plan.parameters:
        objective, place = objective.restricted(plan.parameters, place)
    options: dict[str, Any] = {"iterations": plan.iterations, "restarts": plan.restarts, "seed": seed}
    try:
        found = epsilon_sharpness(objective, place, max(plan.epsilons), **options)
    except NonFiniteError:  # an iterate of a run that diverged is a gap among others
        return dict.fromkeys(BY_MAXIMISERS, np.nan)
    return {name: getattr(found, name) for name in BY_MAXIMISERS}


def template(objectives: Mapping[str, Objective], numbers: Sequence[int], plan: AnalysisPlan) -> Trajectory:
    """The record before anything is measured."""
    per_split = np.full((len(objectives), len(numbers)), np.nan)
    empty: dict[str, Any] = {name: np.full(len(numbers), np.nan) for name in MEASURES}
    return Trajectory(
        split=np.array(list(objectives)),
        epoch=np.array(numbers, int),
        loss=per_split,
        accuracy=per_split.copy(),
        status=np.zeros(len(numbers), np.uint8),
        epsilon=max(plan.epsilons),
        batchnorm=next(cases(plan, objectives["train"])).batchnorm,
        iterations=plan.iterations,
        conditions={name: objective.conditions for name, objective in objectives.items()},
        **empty,
    )


def with_curvature(begun: Trajectory, pairs: int) -> Trajectory:
    """The record before anything is measured, with room for the top eigenvalues and the trace."""
    numbers, wide = begun.epoch.size, (pairs, begun.epoch.size)
    return dataclasses.replace(
        begun,
        pair=np.arange(1, pairs + 1),
        eigenvalues=np.full(wide, np.nan),
        residuals=np.full(wide, np.nan),
        converged=np.zeros(wide, bool),
        products=np.zeros(numbers, int),
        trace=np.full(numbers, np.nan),
        trace_error=np.full(numbers, np.nan),
    )
