"""Loss and accuracy along lines and on planes, row by row into a journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sharpness.errors import ShapeError
from sharpness.geometry import Arc, Line, Plane
from sharpness.journal import PENDING, Journal, MemoryJournal
from sharpness.objective import Objective
from sharpness.objective.snapshot import POLICIES
from sharpness.params import Point, sha256
from sharpness.progress import Progress, silent
from sharpness.records import LineLosses, PlaneLosses


def evaluate_line(
    objectives: Mapping[str, Objective],
    line: Line | Arc,
    alphas: Sequence[float] | np.ndarray,
    *,
    batchnorm: str | None = None,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> LineLosses:
    """Loss and accuracy of each objective at θ(α) for each α: on a ``Line`` (1 − α)·a + α·b or on an ``Arc``.

    Args:
        objectives: by name, as ``{"train": …, "test": …}``; all of one model. The first (``"train"`` if there is one)
            gives the data from which batch-norm statistics are re-estimated.
        line: from a (α = 0) to b (α = 1).
        alphas: one-dimensional, any order; the paper uses 25 points in [-1, 2].
        batchnorm: ``"recompute"``: statistics re-estimated over the training data at every point (the default where
            the model has batch norm and the objective's policy is ``"eval"``); ``"eval"``: statistics interpolated
            between those of a and b; ``"batch"``: each chunk's own.
        journal: where rows are committed and found again; default: in memory.
        progress: called with the points done.

    Returns:
        A record with ``loss`` and ``accuracy`` of shape (split, alpha). Points that are not finite stay so.

    Cost: one pass over the data of each objective per point, and one more over the training data for ``"recompute"``.

    Raises:
        ShapeError: a, b or alphas do not fit; no objective, or an unknown ``batchnorm``.

    Example (f = θ², from 0 to 2):
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> f, theta = Objective.from_module(model, lambda o, t: (o - t) ** 2, (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> evaluate_line({"train": f}, Line(torch.zeros(1), torch.full((1,), 2.0)), [0, 0.5, 1]).loss
        array([[0., 1., 4.]])
    """
    grid = _coordinates(alphas, "alphas")
    evaluator = _Evaluator(objectives, batchnorm)
    template = line_template(objectives, line, grid, batchnorm=batchnorm)
    rows = journal or MemoryJournal({"loss": template.loss, "accuracy": template.accuracy}, len(grid))
    pending = np.flatnonzero(rows.status == PENDING)
    for index in pending:
        loss, accuracy = evaluator(line.at(float(grid[index])))
        _commit(rows, int(index), loss, accuracy)
        progress(int((rows.status != PENDING).sum()), len(grid), f"α = {grid[index]:.3g}")
    return _filled(template, rows)


def evaluate_plane(
    objectives: Mapping[str, Objective],
    plane: Plane,
    alphas: Sequence[float] | np.ndarray,
    betas: Sequence[float] | np.ndarray,
    *,
    batchnorm: str | None = None,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> PlaneLosses:
    """Loss and accuracy of each objective at θ(α, β) = origin + α·first + β·second on a grid.

    Arguments, cost per point and errors are those of ``evaluate_line``; a row of the journal is one β with all α.

    Returns:
        A record with ``loss`` and ``accuracy`` of shape (split, alpha, beta).
    """
    across, along = _coordinates(alphas, "alphas"), _coordinates(betas, "betas")
    evaluator = _Evaluator(objectives, batchnorm)
    template = plane_template(objectives, plane, across, along, batchnorm=batchnorm)
    rows = journal or MemoryJournal({"loss": template.loss, "accuracy": template.accuracy}, len(along))
    done = int((rows.status != PENDING).sum()) * len(across)
    for index in np.flatnonzero(rows.status == PENDING):
        values = []
        for alpha in across:
            values.append(evaluator(plane.at(float(alpha), float(along[index]))))
            done += 1
            progress(done, len(across) * len(along), f"β = {along[index]:.3g}")
        loss, accuracy = (np.stack(column, axis=1) for column in zip(*values, strict=True))
        _commit(rows, int(index), loss, accuracy)
    return _filled(template, rows)


def line_template(
    objectives: Mapping[str, Objective], line: Line | Arc, alphas: np.ndarray, *, batchnorm: str | None = None
) -> LineLosses:
    """The record that ``evaluate_line`` will return, every row pending; a file in progress begins as this."""
    grid = np.asarray(alphas, float)
    pending = _pending(objectives, batchnorm, len(grid))
    return LineLosses(alpha=grid, start=line.a.sha256, end=line.b.sha256, path=line.path, **pending)


def plane_template(
    objectives: Mapping[str, Objective],
    plane: Plane,
    alphas: np.ndarray,
    betas: np.ndarray,
    *,
    batchnorm: str | None = None,
) -> PlaneLosses:
    """The record that ``evaluate_plane`` will return, every row pending."""
    across, along = np.asarray(alphas, float), np.asarray(betas, float)
    return PlaneLosses(
        alpha=across,
        beta=along,
        origin=plane.origin.sha256,
        first=sha256(plane.first),
        second=sha256(plane.second),
        **_pending(objectives, batchnorm, len(across), len(along)),
    )


def _pending(objectives: Mapping[str, Objective], batchnorm: str | None, *sizes: int) -> dict[str, Any]:
    """What every template holds: no value yet, and the conditions of the objectives as they are evaluated."""
    policy = _policy(objectives, batchnorm)
    return {
        "split": np.array(list(objectives)),
        "loss": np.full((len(objectives), *sizes), np.nan),
        "accuracy": np.full((len(objectives), *sizes), np.nan),
        "status": np.zeros(sizes[-1], np.uint8),
        "batchnorm": policy,
        "conditions": {name: objective.conditions for name, objective in _fitting(objectives, policy).items()},
    }


class _Evaluator:
    """A point in, (loss, accuracy) of every objective out, under one batch-norm policy."""

    def __init__(self, objectives: Mapping[str, Objective], batchnorm: str | None) -> None:
        self.policy = _policy(objectives, batchnorm)
        self._objectives = _fitting(objectives, self.policy)
        self._reference = self._objectives.get("train", next(iter(self._objectives.values())))

    def __call__(self, point: Point) -> tuple[np.ndarray, np.ndarray]:
        if self.policy == "recompute":
            point = self._reference.with_statistics(point)
        values = [objective.evaluate(point) for objective in self._objectives.values()]
        return np.array([v.loss for v in values]), np.array([v.accuracy for v in values])


def _fitting(objectives: Mapping[str, Objective], policy: str) -> dict[str, Objective]:
    """The objectives under the policy that is evaluated; "recompute" brings its statistics with the point."""
    inner = "batch" if policy == "batch" else "eval"
    return {name: o if o.batchnorm == inner else o.replace(batchnorm=inner) for name, o in objectives.items()}


def _policy(objectives: Mapping[str, Objective], batchnorm: str | None) -> str:
    if not objectives:
        raise ShapeError('expected at least one objective, as {"train": objective}; got none')
    if batchnorm is not None and batchnorm not in POLICIES:
        raise ShapeError(f"expected batchnorm to be one of {', '.join(POLICIES)}; got {batchnorm!r}")
    first = next(iter(objectives.values()))
    if not first.has_batchnorm:
        return "none"
    return batchnorm or ("recompute" if first.batchnorm == "eval" else first.batchnorm)


def _coordinates(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    grid = np.asarray(values, float)
    if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
        raise ShapeError(f"expected {name} to be a non-empty list of finite numbers; got shape {grid.shape}")
    return grid


def _commit(rows: Journal, index: int, loss: np.ndarray, accuracy: np.ndarray) -> None:
    # accuracy is NaN where it has no meaning: only the loss says whether a point is finite
    rows.commit(index, {"loss": loss, "accuracy": accuracy}, finite=bool(np.isfinite(loss).all()))


def _filled(template: Any, rows: Journal) -> Any:
    """The template with what the journal holds."""
    values = {name: rows.column(name) for name in ("loss", "accuracy")}
    return type(template)(**{**vars(template), **values, "status": rows.status})
