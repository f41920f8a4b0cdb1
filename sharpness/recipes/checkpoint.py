"""Saved checkpoints, ours or anyone's: what they belong to, and their analysis."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sharpness.checkpoints import Minimizer, is_minimizer, load_checkpoint, load_minimizer, load_state
from sharpness.errors import ShapeError, SharpnessError, UnsupportedModelError
from sharpness.files import write_atomically
from sharpness.objective import Problem
from sharpness.params import ParamSpace, Point
from sharpness.recipes.analysis import Analysis, AnalysisPlan, Report, analyse, measured_on, no_report
from sharpness.recipes.registry import recipe_problem
from sharpness.recipes.run_folder import claim, defaults_of


def load_problem(spec: str) -> Problem:
    """The problem that ``FILE.py:NAME`` makes: NAME is a ``Problem``, the tuple, or a function that returns either.

    The file is executed: name only files that you trust.

    Raises:
        UnsupportedModelError: no such file or name, or it fails or makes something else.
    """
    file, separator, name = spec.rpartition(":")
    path = Path(file)
    if not separator or not name or path.suffix != ".py" or not path.is_file():
        raise UnsupportedModelError(f"expected --problem FILE.py:NAME with an existing file; got {spec!r}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.resolve().parent))  # so that the file can import its neighbours
    try:
        module_spec.loader.exec_module(module)
        made = getattr(module, name)
        made = made() if callable(made) and not isinstance(made, Problem) else made
    except SharpnessError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"expected {spec} to make a problem; it failed with {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.pop(0)
    return Problem.of(made)


def open_checkpoint(
    path: Path, problem: str | None = None, data_dir: str | Path | None = None
) -> tuple[Problem, Point]:
    """The problem that a checkpoint belongs to, and where it is.

    Args:
        path: a ``Minimizer``, which knows its problem, or a state dict, which needs one.
        problem: ``FILE.py:NAME``; its model receives the weights.
        data_dir: where a recipe's data lie.

    Raises:
        CheckpointError: missing, damaged, unsafe, or not of this model.
        UnsupportedModelError: a state dict without ``problem``.
    """
    if problem is None:
        minimizer = _minimizer(path)
        return recipe_problem(minimizer, data_dir), minimizer.point
    made = load_problem(problem)
    return made, point_of(path, made, problem)


def point_of(path: Path, made: Problem, problem: str | None) -> Point:
    """Where a further checkpoint of a problem is, be it a minimizer or, with ``problem``, a state dict."""
    if problem is None:
        return _minimizer(path).point
    load_state(made.model, load_checkpoint(path), path)
    return Point.of(made.model, ParamSpace.of(made.model))


def _minimizer(path: Path) -> Minimizer:
    if not is_minimizer(path):
        load_checkpoint(path)  # a file that cannot be read at all says so first
        raise UnsupportedModelError(
            f"expected --problem FILE.py:NAME, which makes (model, loss, train[, test]) for the weights in {path}; "
            "only minimizers that this program trained know their model and data"
        )
    return load_minimizer(path)


def analyse_checkpoints(
    checkpoints: Sequence[Path],
    plan: AnalysisPlan,
    out: Path,
    *,
    problem: str | None = None,
    data_dir: str | Path | None = None,
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
    opened = {name: open_checkpoint(path, problem, data_dir) for name, path in folder_names(checkpoints).items()}
    thetas = {name: point.sha256 for name, (_, point) in opened.items()}
    every = {name: made.objectives(device=device, dtype=dtype)[0] for name, (made, _) in opened.items()}
    data = {split: objective.fingerprint for split, objective in next(iter(every.values())).items()}
    settings = {"plan": dataclasses.asdict(plan), "problem": problem_identity(problem), "seed": seed}
    place = {"device": device, "dtype": str(dtype)}
    configuration = {"command": "analyze", "theta": thetas, "data": data, **settings, **place}
    claim(out, configuration, {"plan": defaults_of(plan)})
    results = {}
    for name, (made, point) in opened.items():
        part = whole = every[name]
        if plan.examples:
            part, _ = measured_on(made, plan.examples).objectives(device=device, dtype=dtype)
        title = f"{name}: "
        report(title + "loss and accuracy")
        scores = {split: objective.evaluate(point) for split, objective in whole.items()}
        found = analyse(part["train"], point, plan, out / name, seed=seed, report=report, title=title)
        facts: dict[str, Any] = {
            "parameters": part["train"].size,
            "measured on": f"{part['train'].examples} training examples",
        }
        for split, score in scores.items():
            accuracy = None if math.isnan(score.accuracy) else score.accuracy
            facts |= {f"{split} loss": score.loss, f"{split} accuracy": accuracy}
        results[name] = {**facts, **_numbers(found)}
    if not (out / "analysis.json").exists():
        write_atomically(out / "analysis.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def folder_names(checkpoints: Sequence[Path]) -> dict[str, Path]:
    """A distinct short name for each file: its stem, or its last folders and stem where stems repeat."""
    for depth in range(1, 10):
        names = ["-".join(path.with_suffix("").parts[-depth:]).strip("/-") for path in checkpoints]
        if len(set(names)) == len(names):
            return dict(zip(names, checkpoints, strict=True))
    raise ShapeError("expected distinct checkpoints; got one of them twice")


def problem_identity(problem: str | None) -> dict[str, str] | None:
    """A problem file by name and content: changed, it is another configuration."""
    if problem is None:
        return None
    content = Path(problem.rpartition(":")[0]).read_bytes()
    return {"spec": problem, "sha256": hashlib.sha256(content).hexdigest()}


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
    return {**every, "gradient norm": slopes, "epsilon-sharpness": sharpness}
