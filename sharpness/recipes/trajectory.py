"""ε-sharpness along training: at every iterate that was kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sharpness import store
from sharpness.checkpoints import Minimizer, load_minimizer
from sharpness.journal import PENDING
from sharpness.measures import epsilon_sharpness
from sharpness.objective import Objective
from sharpness.progress import Progress
from sharpness.recipes.analysis import AnalysisPlan, cases
from sharpness.records import Trajectory

MEASURES = ("sharpness", "stronger", "first_order", "gradient_norm", "weight_norm", "distance")

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
    kept, file = sorted(iterates), folder / "trajectory.h5"
    with store.begin(file, {"trajectory": _template(objectives, kept, plan)})["trajectory"] as journal:
        for row in np.flatnonzero(journal.status == PENDING):
            iterate = load_minimizer(iterates[kept[row]])
            journal.commit(int(row), _measured(objectives, iterate, start, plan, seed))
            progress(int((journal.status != PENDING).sum()), len(kept), f"epoch {kept[row]}")
    return store.load(file)


def _measured(
    objectives: dict[str, Objective], iterate: Minimizer, start: Minimizer, plan: AnalysisPlan, seed: int
) -> dict[str, np.ndarray | float]:
    scores = [objective.evaluate(iterate) for objective in objectives.values()]
    train = objectives["train"]
    found = epsilon_sharpness(
        train.replace(batchnorm=next(cases(plan, train)).policy),
        iterate,
        max(plan.epsilons),
        iterations=plan.iterations,
        restarts=plan.restarts,
        seed=seed,
    )
    theta = iterate.point.theta
    return {
        "loss": np.array([score.loss for score in scores]),
        "accuracy": np.array([score.accuracy for score in scores]),
        "sharpness": found.sharpness,
        "stronger": found.stronger,
        "first_order": found.first_order,
        "gradient_norm": found.gradient_norm,
        "weight_norm": norm(theta),
        "distance": norm(theta - start.point.theta),
    }


def _template(objectives: dict[str, Objective], epochs: Sequence[int], plan: AnalysisPlan) -> Trajectory:
    """The record before anything is measured."""
    per_split = np.full((len(objectives), len(epochs)), np.nan)
    return Trajectory(
        split=np.array(list(objectives)),
        epoch=np.array(epochs, int),
        loss=per_split,
        accuracy=per_split.copy(),
        status=np.zeros(len(epochs), np.uint8),
        epsilon=max(plan.epsilons),
        batchnorm=next(cases(plan, objectives["train"])).batchnorm,
        iterations=plan.iterations,
        conditions={name: objective.conditions for name, objective in objectives.items()},
        **{name: np.full(len(epochs), np.nan) for name in MEASURES},
    )
