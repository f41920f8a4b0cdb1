"""Training to a minimizer: resumable, and bit for bit the same however often it is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sharpness.checkpoints import Minimizer
from sharpness.errors import NonFiniteError
from sharpness.files import write_atomically
from sharpness.journal import Journal
from sharpness.objective import BatchLoss, Problem
from sharpness.progress import Progress, silent
from sharpness.random import preserved_random_state
from sharpness.records import History
from sharpness.training.history import (
    COLUMNS,
    DIVERGED,
    commit,
    finished,
    history_template,
    measure,
    memory_journal,
    recall,
)
from sharpness.training.history import reason_to_stop as _reason_to_stop
from sharpness.training.plan import TrainingPlan
from sharpness.training.run import Data as _Data
from sharpness.training.run import Run

__all__ = ["DIVERGED", "TrainingPlan", "history_template", "train"]

SECONDS_BETWEEN_CHECKPOINTS = 5.0


def train(
    problem: Problem,
    plan: TrainingPlan,
    *,
    seed: int = 0,
    journal: Journal | None = None,
    checkpoint: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    keep: Callable[[int, Minimizer], None] | None = None,
    progress: Progress = silent,
) -> tuple[Minimizer, History]:
    """Train ``problem.model`` from its current weights; return where it ended and the history of every epoch.

    Data are held in memory on ``device``; mini-batches are slices of a permutation drawn per epoch from the seed's
    stream, the last one smaller where the size does not divide; a single example that would be left over joins the
    mini-batch before it, since batch norm cannot train on one alone. After each epoch loss and accuracy are measured on
    all training and test data (batch norm by running statistics), as they are: neither augmented nor perturbed. The
    weights returned are those of the last epoch.

    Args:
        problem: its ``train`` (and ``test``) must be ``(inputs, targets)`` tensors. The model itself is not touched.
        plan: optimizer, batch size, schedule, when to stop, and what else each mini-batch undergoes.
        seed: of the mini-batches, of augmentations and of dropout.
        journal: rows of ``history_template``, one per epoch, for a history that survives a kill.
        checkpoint: file with the state of a run in progress, written every few seconds and read at the start; to be
            removed once the minimizer is stored. The resumed run ends with the same weights, bit for bit.
        metadata: kept in the minimizer beside the plan, seed, epochs and reason for stopping.
        keep: called after each epoch with the number of epochs and the iterate, to be stored where wanted. After a
            kill it may be called again for the same epoch, with the same iterate.
        progress: called after each epoch.

    Raises:
        CheckpointError: ``checkpoint`` is damaged or belongs to another plan or seed.
        NonFiniteError: the training loss became NaN or infinite; ``partial`` holds the history so far.
        ShapeError: the training data are not a pair of tensors, or not inputs that the plan can augment or perturb.
    """
    data = _Data.of(problem, torch.device(device))
    data.check(plan)
    objectives, _ = problem.objectives(device=device)
    run = Run.begin(problem.model, plan, seed, torch.device(device))
    rows = journal or memory_journal(history_template(objectives, plan))
    if checkpoint is not None and checkpoint.exists():
        recall(rows, run.load(checkpoint))
    saved, stopped = time.monotonic(), ""
    while not (stopped := _reason_to_stop(plan, rows.column("loss")[0, : run.epoch])):
        rate = plan.rate(run.epoch)
        with preserved_random_state():
            run.one_epoch(BatchLoss(problem.loss, problem.weight), data, rate)
        row = measure(run.model, objectives)
        commit(rows, run.epoch - 1, {**row, "learning_rate": rate})
        progress(run.epoch, plan.epochs, f"loss {row['loss'][0]:.3g}")
        if not np.isfinite(row["loss"][0]):
            raise NonFiniteError(
                f"expected a finite training loss; it became {row['loss'][0]} in epoch {run.epoch}. "
                f"Lower the learning rate (now {rate:g}).",
                partial=finished(objectives, plan, rows, run.epoch, DIVERGED),
            )
        if keep is not None:
            keep(run.epoch, run.minimizer(metadata))
        if checkpoint is not None and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
            write_atomically(checkpoint, run.state({name: rows.column(name)[..., : run.epoch] for name in COLUMNS}))
            saved = time.monotonic()
    history = finished(objectives, plan, rows, run.epoch, stopped)
    return run.minimizer({**(metadata or {}), "stopped": stopped}), history
