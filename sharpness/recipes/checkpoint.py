"""The analysis of saved checkpoints, ours or anyone's."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sharpness.errors import ShapeError
from sharpness.files import write_atomically
from sharpness.recipes.analysis import Analysis, AnalysisPlan, Report, analyse, no_report
from sharpness.recipes.run_folder import claim, defaults_of
from sharpness.recipes.shared import SharedProblem
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
    named, source = folder_names(checkpoints), source or Source()
    problems = _problems(named, source, plan.examples, device, dtype)
    points = {name: problems[name].point(path) for name, path in named.items()}
    configuration = {
        "command": "analyze",
        "checkpoints": {name: problems[name].digest(path) for name, path in named.items()},
        **problems[next(iter(named))].identity,
        "plan": dataclasses.asdict(plan),
        "seed": seed,
        "device": device,
        "dtype": str(dtype),
    }
    claim(out, configuration, {"plan": defaults_of(plan)})
    results = {}
    for name, path in named.items():
        title, problem, point = f"{name}: ", problems[name], points[name]
        report(title + "checks")
        remarks = problem.remarks(path, seed)
        report(title + "loss and accuracy")
        scores = {split: objective.evaluate(point) for split, objective in problem.whole.items()}
        found = analyse(problem.part, point, plan, out / name, seed=seed, report=report, title=title)
        facts: dict[str, Any] = {
            "parameters": found.eigenpairs.conditions["parameters"],
            "measured on": problem.measured_on,
        }
        for split, score in scores.items():
            accuracy = None if math.isnan(score.accuracy) else score.accuracy
            facts |= {f"{split} loss": score.loss, f"{split} accuracy": accuracy}
        results[name] = {**facts, **_numbers(found), "remarks": remarks}
    if not (out / "analysis.json").exists():
        write_atomically(out / "analysis.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def _problems(
    named: Mapping[str, Path], source: Source, examples: int, device: str, dtype: torch.dtype
) -> dict[str, SharedProblem]:
    """What each checkpoint is measured on: the problem that is named, or its own where it is a minimizer."""
    if source.foreign:
        return dict.fromkeys(named, SharedProblem.of(source, list(named.values()), examples, device, dtype))
    return {name: SharedProblem.of(source, [path], examples, device, dtype) for name, path in named.items()}


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
