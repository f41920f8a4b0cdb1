"""What many checkpoints have in common: one model, one loss and the same data for all."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sharpness.doctor import check_quickly
from sharpness.errors import DataError, ShapeError
from sharpness.objective import Objective, Problem
from sharpness.params import Point
from sharpness.recipes.analysis import measured_on
from sharpness.recipes.source import Source, minimizer_at

SAME = ("model", "model_options", "data", "train_examples", "test_examples")  # of what minimizers were trained with


@dataclass(frozen=True)
class SharedProblem:
    """The problem that checkpoints share, so that differences between them are theirs: same examples, same batches.

    ``whole`` has the objectives on all data, for loss and accuracy; ``part`` is that on which all else is measured.
    ``untouched`` is the model as it was made, where checkpoints are allowed to leave some of it so.
    """

    source: Source
    problem: Problem
    whole: dict[str, Objective]
    part: Objective
    untouched: nn.Module | None = None

    @classmethod
    def of(
        cls, source: Source, checkpoints: Sequence[Path], examples: int, device: str, dtype: torch.dtype
    ) -> SharedProblem:
        """The problem of all these checkpoints, measured on the first ``examples`` of its training data (0: all).

        Raises:
            DataError: minimizers that this program trained are of different models or data.
            ShapeError: no checkpoints.
        """
        if not checkpoints:
            raise ShapeError("expected one checkpoint or more; got none")
        if not source.foreign:
            _check_same(checkpoints)
        untouched = None
        if source.foreign:
            problem = source.make()
            untouched = copy.deepcopy(problem.model) if source.allow else None
            source.point(checkpoints[0], problem)
        else:
            problem, _ = source.open(checkpoints[0])
        whole, _ = problem.objectives(device=device, dtype=dtype)
        part = whole
        if examples:
            part, _ = measured_on(problem, examples).objectives(device=device, dtype=dtype)
        return cls(source, problem, whole, part["train"], untouched)

    def point(self, path: Path) -> Point:
        """Where a checkpoint is."""
        return self._read(path, [])

    def remarks(self, path: Path, seed: int) -> list[str]:
        """What is worth saying of a checkpoint before it is measured: of how it was read, and of what it is."""
        told: list[str] = []
        checks = check_quickly(self.part, self._read(path, told), seed=seed)
        return [*told, *map(str, checks)]

    def _read(self, path: Path, told: list[str]) -> Point:
        problem = self.problem
        if self.untouched is not None:  # else what one checkpoint lacks would be as in the one before
            problem = dataclasses.replace(problem, model=copy.deepcopy(self.untouched))
        point = self.source.point(path, problem, told.append)
        self.part.space.check(point.theta, f"θ of {path}")
        return point

    def digest(self, path: Path) -> str:
        """SHA-256 of a checkpoint's θ and buffers."""
        return self.point(path).digest

    @property
    def identity(self) -> dict[str, Any]:
        """What distinguishes it from others, as JSON-able values."""
        data = {split: objective.fingerprint for split, objective in self.whole.items()}
        return {"data": data, "problem": self.source.identity}

    @property
    def measured_on(self) -> str:
        """The examples behind all but loss and accuracy, in words."""
        return f"{self.part.examples} training examples"


def _check_same(checkpoints: Sequence[Path]) -> None:
    """That minimizers were trained on the same data, by their fingerprint, and are of one model."""
    first, *others = ((path, minimizer_at(path).metadata) for path in checkpoints)
    for path, metadata in others:
        ours, theirs = (dict(_facts(about)) for about in (first[1], metadata))
        differing = [f"{name} ({ours[name]!r} and {theirs[name]!r})" for name in ours if ours[name] != theirs[name]]
        if differing:
            raise DataError(
                f"expected checkpoints of one model and the same data; {first[0]} and {path} differ in "
                f"{', '.join(differing)}. Measure them apart, or say with --problem on what to measure both."
            )


def _facts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    parameters = metadata.get("parameters", {})
    return {name: parameters.get(name) for name in SAME} | {"fingerprint of the data": metadata.get("data")}
