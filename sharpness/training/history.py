"""The history of a training run: measured after every epoch, kept in a journal, and why it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from sharpness.journal import PENDING, Journal, MemoryJournal
from sharpness.objective import Objective
from sharpness.params import Point
from sharpness.records import History
from sharpness.training.plan import TrainingPlan

COLUMNS = ("loss", "accuracy", "learning_rate")
DIVERGED = "diverged"


def history_template(objectives: Mapping[str, Objective], plan: TrainingPlan) -> History:
    """The history of a run that has not begun: every epoch pending."""
    empty = np.full((len(objectives), plan.epochs), np.nan)
    return History(
        split=np.array(list(objectives)),
        epoch=np.arange(1, plan.epochs + 1),
        loss=empty,
        accuracy=empty.copy(),
        learning_rate=np.full(plan.epochs, np.nan),
        status=np.zeros(plan.epochs, np.uint8),
        batch_size=plan.examples_per_batch(next(iter(objectives.values())).examples),
        conditions={name: objective.conditions for name, objective in objectives.items()},
    )


def measure(model: nn.Module, objectives: Mapping[str, Objective]) -> dict[str, np.ndarray]:
    """Loss and accuracy of every split where the model is."""
    point = Point.of(model, next(iter(objectives.values())).space)
    values = [objective.evaluate(point) for objective in objectives.values()]
    return {"loss": np.array([v.loss for v in values]), "accuracy": np.array([v.accuracy for v in values])}


def commit(rows: Journal, row: int, values: Mapping[str, Any]) -> None:
    """Write one epoch's values."""
    # accuracy is NaN where it has no meaning: only the loss says whether an epoch is finite
    rows.commit(row, values, finite=bool(np.isfinite(values["loss"]).all()))


def recall(rows: Journal, history: Mapping[str, np.ndarray]) -> None:
    """Commit the epochs that a checkpoint knows and the journal does not."""
    epochs = history["loss"].shape[-1]
    for row in np.flatnonzero(rows.status[:epochs] == PENDING):
        commit(rows, int(row), {name: values[..., row] for name, values in history.items()})


def reason_to_stop(plan: TrainingPlan, losses: np.ndarray) -> str:
    """Why training ends after these epochs, or nothing."""
    if len(losses) and plan.patience:
        best, since = math.inf, 0
        for loss in losses:
            least = max(plan.improvement * abs(best), plan.resolution) if best < math.inf else 0.0
            best, since = (loss, 0) if loss < best - least else (best, since + 1)
        if since >= plan.patience:
            return f"loss ceased to improve for {plan.patience} epochs"
    return "epoch limit" if len(losses) >= plan.epochs else ""


def finished(
    objectives: Mapping[str, Objective], plan: TrainingPlan, rows: Journal, epochs: int, stopped: str
) -> History:
    """The history of a run that ended after ``epochs``."""
    template = history_template(objectives, plan)
    done = {name: rows.column(name)[..., :epochs] for name in COLUMNS}
    trimmed = {**done, "epoch": template.epoch[:epochs], "status": rows.status[:epochs], "stopped": stopped}
    return History(**{**vars(template), **trimmed})


def memory_journal(template: History) -> MemoryJournal:
    """A journal for a history that need not survive."""
    columns = {name: getattr(template, name) for name in COLUMNS}
    return MemoryJournal(columns, len(template.epoch))
