"""Saved checkpoints of one training run, one after the other."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save

from sharpness.checkpoints import is_minimizer, load_minimizer
from sharpness.errors import NonFiniteError, ShapeError
from sharpness.files import write_atomically
from sharpness.params import Point
from sharpness.progress import silent
from sharpness.recipes.analysis import AnalysisPlan, Report, no_report
from sharpness.recipes.checkpoint import folder_names
from sharpness.recipes.curvature import PROBES, curvature
from sharpness.recipes.registry import restored
from sharpness.recipes.run_folder import claim, defaults_of
from sharpness.recipes.shared import SharedProblem
from sharpness.recipes.source import Source
from sharpness.recipes.steps import Steps, in_order, stability_edge
from sharpness.recipes.trajectory import Row, along, measured, template, with_curvature
from sharpness.records import Trajectory
from sharpness.training import TrainingPlan

UNFINISHED = re.compile(r"(\d+)\.(eigenvectors\.safetensors|products\.h5)")


class Followed(NamedTuple):
    """What was measured along training, and what the last checkpoint made worth saying."""

    trajectory: Trajectory
    remarks: list[str]


def follow_checkpoints(
    checkpoints: Sequence[Path],
    plan: AnalysisPlan,
    out: Path,
    *,
    probes: int = PROBES,
    learning_rate: float | None = None,
    source: Source | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    report: Report = no_report,
) -> Followed:
    """Loss, accuracy, top eigenvalues, trace and ε-sharpness of checkpoints of one run, into ``out/trajectory.h5``.

    Everything is measured on the same examples with the same random vectors: loss and accuracy on all data, the rest on
    ``plan.examples`` training examples. ε-sharpness is that of the plan's largest ε in the full space. Each search for
    eigenpairs begins at those of the checkpoint before (see ``curvature``). Killed, it goes on where it was, and gives
    the same bits; what is not finite at one checkpoint is a gap there.

    Args:
        checkpoints: ordered by epoch or step where they say it, or by the numbers in their names (``in_order``).
        plan: ``eigenpairs``, ``tolerance``, ``epsilons``, ``iterations``, ``restarts``, ``examples``, ``batchnorm``.
        probes: random vectors for each trace.
        learning_rate: η of plain gradient descent, for the edge of stability 2/η. Minimizers that this program trained
            with SGD know theirs.
        source: what the checkpoints belong to.

    Cost for each: the products of ``eigenpairs`` (10 to 30), one for each probe, ``restarts * (2 * iterations + 3)``
    gradients, and an evaluation of all data. The checkpoints are read twice, one at a time.

    Raises:
        DataError: minimizers of different models or data.
        SchemaError: ``out`` holds another configuration.
        ShapeError: a learning rate that is not positive.
    """
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ShapeError(f"expected a finite learning rate > 0; got {learning_rate}")
    steps = in_order(checkpoints)
    shared = SharedProblem.of(source or Source(), steps.files, plan.examples, device, dtype)
    settings = {"plan": dataclasses.asdict(plan), "probes": probes, "learning_rate": learning_rate, "seed": seed}
    about = {"numbers": steps.numbers, "theta": [shared.digest(path) for path in steps.files]}
    place = {"device": device, "dtype": str(dtype)}
    configuration = {"command": "trajectory", **about, **shared.identity, **settings, **place}
    claim(out, configuration, {"plan": defaults_of(plan)})
    report("checks")
    remarks = [f"{steps.files[-1]}: {remark}" for remark in shared.remarks(steps.files[-1], seed)]
    begun = _template(shared, steps, plan, probes, learning_rate)
    walk = _Walk(shared, steps, plan, out, shared.point(steps.files[0]).theta, probes, seed, report)
    found = along(out / "trajectory.h5", begun, walk.row, silent)  # each stage of each row reports itself
    walk.tidy(len(steps.files))
    return Followed(found, remarks)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """One checkpoint after the other, with what a killed one leaves for the next start."""

    shared: SharedProblem
    steps: Steps
    plan: AnalysisPlan
    folder: Path
    start: torch.Tensor
    probes: int
    seed: int
    report: Report

    def row(self, number: int) -> Row:
        """Everything at one checkpoint."""
        self.tidy(number)
        point = self.shared.point(self.steps.files[number])
        title = f"{self.steps.counts} {self.steps.numbers[number]} ({number + 1} of {len(self.steps.files)}): "
        self.report(title + "loss and ε-sharpness")
        found = measured(self.shared.whole, self.shared.part, point, self.start, self.plan, self.seed)
        return found | self._curvature(number, point, title)

    def _curvature(self, number: int, point: Point, title: str) -> Row:
        products = self.folder / f"{number:06}.products.h5"
        options: dict[str, Any] = {"probes": self.probes, "start": self._vectors_before(number), "seed": self.seed}
        progress = self.report(title + "curvature")
        try:
            found = curvature(self.shared.part, point, self.plan, products, **options, progress=progress)
        except NonFiniteError:
            k = self.plan.eigenpairs
            lost = dict.fromkeys(("eigenvalues", "residuals"), np.full(k, np.nan))
            return {**lost, "converged": np.zeros(k, bool), "products": 0, "trace": np.nan, "trace_error": np.nan}
        pairs = found.pairs
        kept = {"vectors": pairs.vectors.contiguous().cpu()}
        write_atomically(self.folder / f"{number:06}.eigenvectors.safetensors", save(kept))
        return {
            "eigenvalues": pairs.eigenvalues,
            "residuals": pairs.residuals,
            "converged": pairs.converged & pairs.probe_passed,
            "products": pairs.products,
            "trace": found.trace.value,
            "trace_error": found.trace.standard_error,
        }

    def _vectors_before(self, number: int) -> torch.Tensor | None:
        """The eigenvectors at the nearest checkpoint before that has any."""
        files = [self.folder / f"{before:06}.eigenvectors.safetensors" for before in reversed(range(number))]
        return next((load_file(file)["vectors"] for file in files if file.exists()), None)

    def tidy(self, number: int) -> None:
        """Remove what the checkpoint of this number no longer needs: all but the last eigenvectors before it."""
        found = {file: UNFINISHED.fullmatch(file.name) for file in self.folder.iterdir()}
        ours = {file: (int(match[1]), match[2]) for file, match in found.items() if match}
        last = max((row for row, kind in ours.values() if row < number and kind.startswith("eigen")), default=-1)
        for file, (row, kind) in ours.items():
            done = number == len(self.steps.files) or (row < number and (row != last or kind.startswith("products")))
            if done:
                file.unlink()


def _template(
    shared: SharedProblem, steps: Steps, plan: AnalysisPlan, probes: int, learning_rate: float | None
) -> Trajectory:
    """The record before anything is measured."""
    begun = with_curvature(template(shared.whole, steps.numbers, plan), plan.eigenpairs)
    edges = np.array(
        [_edge(path, number, learning_rate) for number, path in zip(steps.numbers, steps.files, strict=True)]
    )
    about = {
        "numbers": steps.origin,
        "measured_on": shared.measured_on,
        "curvature": {**shared.part.conditions, "batchnorm": "eval" if shared.part.has_batchnorm else "none"},
        "distance_from": "the first checkpoint",
        "probes": probes,
        "tolerance": plan.tolerance,
        "over": list(plan.parameters),
        "learning_rate": learning_rate,
    }
    return dataclasses.replace(
        begun,
        checkpoint=np.array(list(folder_names(steps.files))),
        edge=None if np.isnan(edges).all() else edges,
        counts=steps.counts,
        conditions={**begun.conditions, **about},
    )


def _edge(path: Path, number: int, learning_rate: float | None) -> float:
    """2/η of a given rate, else what a minimizer's own plan says, else NaN."""
    if learning_rate is not None:
        return 2 / learning_rate
    if not is_minimizer(path):
        return math.nan
    metadata = load_minimizer(path).metadata
    plan = metadata.get("parameters", {}).get("regimes", {}).get(metadata.get("regime"))
    return math.nan if plan is None else stability_edge(restored(TrainingPlan, plan), metadata.get("epochs", number))
