"""Points of a landscape, one or many at once: loss and accuracy on every data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sharpness.errors import ShapeError, UnsupportedModelError
from sharpness.objective import Objective
from sharpness.objective.execution import seconds_of
from sharpness.objective.snapshot import POLICIES
from sharpness.objective.terms import ACTIVATION_BYTES
from sharpness.params import Point

MOST = 64  # points at once; beyond it a GPU gains nothing more
GAIN = 1.25  # by which many at once must be faster


class Evaluator:
    """Points in, (loss, accuracy) of every objective out, under one batch-norm policy."""

    def __init__(self, objectives: Mapping[str, Objective], batchnorm: str | None = None) -> None:
        self.policy = _policy(objectives, batchnorm)
        # "recompute" brings its statistics with the point, as "eval" takes them
        inner = "batch" if self.policy == "batch" else "eval"
        self.objectives = {n: o if o.batchnorm == inner else o.replace(batchnorm=inner) for n, o in objectives.items()}
        self._reference = self.objectives.get("train", next(iter(self.objectives.values())))

    def __call__(self, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Loss and accuracy, both of shape (split, point); one point by itself, several vectorised."""
        if len(points) == 1:
            point = self._reference.with_statistics(points[0]) if self.policy == "recompute" else points[0]
            values = [[objective.evaluate(point)] for objective in self.objectives.values()]
        else:
            if self.policy == "recompute":
                points = self._reference.with_statistics_together(points)
            values = [objective.evaluate_together(points) for objective in self.objectives.values()]
        return tuple(np.array([[getattr(v, name) for v in row] for row in values]) for name in ("loss", "accuracy"))  # type: ignore[return-value]

    def at_once(self, point: Point) -> int:
        """How many points to evaluate at once: 1 on a CPU; on a GPU by a rehearsal, as many as memory allows or 1."""
        device = self._reference.device
        if device.type != "cuda":
            return 1
        bytes_each = max(
            objective.terms.saved_bytes_per_example(objective.few) * max(objective.partition)
            for objective in self.objectives.values()
        )
        most = min(MOST, ACTIVATION_BYTES["cuda"] // max(1, bytes_each))
        if most < 2:
            return 1
        try:
            for _ in range(2):  # the first time is that of setting up
                alone, _values = seconds_of(lambda: self([point]), device)
                together, _values = seconds_of(lambda: self([point] * most), device)
        except UnsupportedModelError:
            return 1
        return most if together * GAIN < alone * most else 1


def _policy(objectives: Mapping[str, Objective], batchnorm: str | None) -> str:
    if not objectives:
        raise ShapeError('expected at least one objective, as {"train": objective}; got none')
    if batchnorm is not None and batchnorm not in POLICIES:
        raise ShapeError(f"expected batchnorm to be one of {', '.join(POLICIES)}; got {batchnorm!r}")
    first = next(iter(objectives.values()))
    if not first.has_batchnorm:
        return "none"
    return batchnorm or ("recompute" if first.batchnorm == "eval" else first.batchnorm)


def conditions_of(objectives: Mapping[str, Objective]) -> dict[str, Any]:
    """The conditions of every objective, by the name of its data set."""
    return {name: objective.conditions for name, objective in objectives.items()}
