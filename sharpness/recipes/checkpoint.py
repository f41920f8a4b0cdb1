"""The analysis of saved checkpoints, ours or anyone's."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sharpness.doctor import check_quickly
from sharpness.errors import ShapeError
from sharpness.files import write_atomically
from sharpness.objective import Objective, Problem
from sharpness.params import Point
from sharpness.recipes.analysis import Analysis, AnalysisPlan, Report, analyse, measured_on, no_report
from sharpness.recipes.run_folder import claim, defaults_of
from sharpness.recipes.source import Source
from sharpness.records import LayerCurvature


def analyse_checkpoints(
    checkpoints: Sequence[Path],
    plan: AnalysisPlan,
    out: Path,
    *,
    source: Source | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    report: Report = no_report,
) -> dict[str, dict[str, Any]]:
    """Loss, accuracy, top eigenvalues and every ε-sharpness of checkpoints, each in its folder below ``out``.

    Loss and accuracy are those on all data; the rest is measured on ``plan.examples`` training examples.

    Returns:
        For each checkpoint, by the name of its folder, the numbers as JSON-able values; also in ``out/analysis.json``.
    """
    opened = _opened(checkpoints, source or Source(), plan, device, dtype)
    every = next(iter(opened.values())).objectives
    configuration = {
        "command": "analyze",
        "theta": {name: one.point.sha256 for name, one in opened.items()},
        "data": {split: objective.fingerprint for split, objective in every.items()},
        "plan": dataclasses.asdict(plan),
        "problem": None if source is None else source.identity,
        "seed": seed,
        "device": device,
        "dtype": str(dtype),
    }
    claim(out, configuration, {"plan": defaults_of(plan)})
    results = {}
    for name, one in opened.items():
        title = f"{name}: "
        report(title + "checks")
        remarks = one.remarks + [str(check) for check in check_quickly(one.measured, one.point, seed=seed)]
        report(title + "loss and accuracy")
        scores = {split: objective.evaluate(one.point) for split, objective in one.objectives.items()}
        found = analyse(one.measured, one.point, plan, out / name, seed=seed, report=report, title=title)
        facts: dict[str, Any] = {
            "parameters": found.eigenpairs.conditions["parameters"],
            "measured on": f"{one.measured.examples} training examples",
        }
        for split, score in scores.items():
            accuracy = None if math.isnan(score.accuracy) else score.accuracy
            facts |= {f"{split} loss": score.loss, f"{split} accuracy": accuracy}
        results[name] = {**facts, **_numbers(found), "remarks": remarks}
    if not (out / "analysis.json").exists():
        write_atomically(out / "analysis.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


class _Opened(NamedTuple):
    """A checkpoint with what it is measured with: all data of every split, and the part of the training data."""

    point: Point
    objectives: dict[str, Objective]
    measured: Objective
    remarks: list[str]


def _opened(
    checkpoints: Sequence[Path], source: Source, plan: AnalysisPlan, device: str, dtype: torch.dtype
) -> dict[str, _Opened]:
    """The checkpoints by the names of their folders; those of one problem share its data."""
    found: dict[str, _Opened] = {}
    made: Problem | None = None
    for name, path in folder_names(checkpoints).items():
        remarks: list[str] = []
        first = made is None
        if not source.foreign:
            made, point = source.open(path)
        else:
            made = made or source.make()
            point = source.point(path, made, remarks.append)
        if first or not source.foreign:
            whole, _ = made.objectives(device=device, dtype=dtype)
            few = measured_on(made, plan.examples)
            part = few.objectives(device=device, dtype=dtype)[0] if plan.examples else whole
        found[name] = _Opened(point, whole, part["train"], remarks)
    return found


def folder_names(checkpoints: Sequence[Path]) -> dict[str, Path]:
    """A distinct short name for each file: its stem, or its last folders and stem where stems repeat."""
    for depth in range(1, 10):
        names = ["-".join(path.with_suffix("").parts[-depth:]).strip("/-") for path in checkpoints]
        if len(set(names)) == len(names):
            return dict(zip(names, checkpoints, strict=True))
    raise ShapeError("expected distinct checkpoints; got one of them twice")


def _numbers(found: Analysis) -> dict[str, Any]:
    pairs = found.eigenpairs
    every: dict[str, Any] = {
        "eigenvalues": pairs.eigenvalues.tolist(),
        "residuals": pairs.residuals.tolist(),
        "converged": pairs.converged.tolist(),
        "doubted": pairs.doubted,
        "products": pairs.products,
    }
    sharpness: Mapping[str, Any] = {
        case.name: {
            "sharpness": s.sharpness,
            "stronger": s.stronger,
            "first order": s.first_order,
            "iterations": s.restart_iterations.tolist(),
            "spread": s.spread,
        }
        for case, s in found.sharpness.items()
    }
    slopes = {case.batchnorm: s.gradient_norm for case, s in found.sharpness.items()}
    layers = {} if found.layers is None else {"layers": _layers(found.layers)}
    return {**every, "gradient norm": slopes, "epsilon-sharpness": sharpness, **layers}


def _layers(record: LayerCurvature) -> dict[str, Any]:
    return {
        str(name): {"eigenvalue": float(value), "residual": float(residual), "trace": float(trace)}
        for name, value, residual, trace in zip(
            record.layer, record.eigenvalue, record.residual, record.trace, strict=True
        )
    }
