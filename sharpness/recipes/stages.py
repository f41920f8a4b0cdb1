"""The stages of an experiment: train every regime, then analyse the minimizers and evaluate lines between them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sharpness import store
from sharpness.checkpoints import Minimizer, load_minimizer
from sharpness.data import Data, load
from sharpness.errors import NonFiniteError, ShapeError
from sharpness.geometry import Arc, Line, random_plane
from sharpness.objective import Objective, Problem
from sharpness.recipes.analysis import Analysis, Report, analyse, measured_on, no_report
from sharpness.recipes.comparison import compare
from sharpness.recipes.experiment import AT, Experiment, Trial, cpu_threads
from sharpness.recipes.grids import resumed_line, resumed_plane
from sharpness.recipes.run_folder import claim, defaults_of, stored
from sharpness.recipes.trajectory import MINIMIZER, follow, iterate_file
from sharpness.records import Comparison
from sharpness.training import DIVERGED, history_template, train


@dataclass(frozen=True)
class Place:
    """Where and how a run computes and reports; the last two have no influence on what is computed."""

    out: Path
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    data_dir: str | Path | None = None
    report: Report = no_report


def train_regimes(name: str, scale: str, parameters: Experiment, place: Place) -> tuple[Data, dict[int, Trial]]:
    """The training stage: for every seed one minimizer per regime, in ``out/seed-<s>/<regime>/``.

    Raises:
        SchemaError: ``out`` holds another configuration.
        DataError: the data are not to be had.
    """
    data = load(parameters.data, place.data_dir)
    settings = dataclasses.asdict(parameters)
    about = {
        "recipe": name,
        "scale": scale,
        "parameters": settings,
        "data": data.fingerprint,
        "dtype": str(place.dtype),
    }
    claim(place.out, {**about, "device": place.device}, {"parameters": defaults_of(parameters)})
    with cpu_threads(parameters.threads):
        return data, {seed: _trial(parameters, data, seed, about, place) for seed in parameters.seeds}


def run(name: str, scale: str, parameters: Experiment, place: Place) -> Comparison:
    """Train, analyse, evaluate lines and planes, and compare; everything that ``out`` already holds is kept.

    Returns:
        The comparison, which is also in ``out/comparison.h5``.

    Raises:
        SchemaError: ``out`` holds another configuration.
        DataError: the data are not to be had.
    """
    data, trials = train_regimes(name, scale, parameters, place)
    problems = {seed: parameters.problem(data, seed, place.dtype) for seed in trials}
    measured: dict[tuple[int, str], Analysis] = {}
    with cpu_threads(parameters.threads):
        for seed, trial in trials.items():
            part = measured_on(problems[seed], parameters.analysis.examples)
            objectives, _ = part.objectives(device=place.device)
            for regime, found in _analyse(objectives, trial, parameters, seed, place):
                measured[seed, regime] = found
            _landscapes(objectives, trial, parameters, seed, place)

        if not measured:
            raise NonFiniteError(
                "expected a regime that ends at finite weights; all diverged. Lower the learning rates."
            )

        def compared() -> dict[str, Comparison]:
            whole, _ = problems[parameters.seed].objectives(device=place.device)
            return {"comparison": compare(name, scale, parameters, whole, trials, measured)}

        return stored(place.out / "comparison.h5", compared)["comparison"]


def _trial(parameters: Experiment, data: Data, seed: int, about: Mapping[str, Any], place: Place) -> Trial:
    """One seed's start and the minimizer of every regime."""
    problem, folder = parameters.problem(data, seed, place.dtype), place.out / f"seed-{seed}"
    about = {**about, "regimes": list(parameters.regimes)}  # in order, which a minimizer's sorted metadata lose
    start = Minimizer.of(problem.model, {**about, "regime": "start", "seed": seed})
    if not (folder / "start.safetensors").exists():
        start.save(folder / "start.safetensors")
    ends = {}
    for regime in parameters.regimes:
        end = _trained(problem, parameters, regime, folder, seed, about, place)
        if end is not None:
            ends[regime] = end
    return Trial(start, ends)


def _begun(problem: Problem, start: str | None, folder: Path) -> Problem:
    """The problem at the start of a regime: its own, or a kept iterate of another regime."""
    if start is None:
        return problem
    regime, _, epoch = start.partition(AT)
    file = iterate_file(folder / regime, int(epoch))
    if not file.exists():
        raise ShapeError(
            f"expected the iterate of {regime} after {epoch} epochs in {file}, to begin there; it is not there. "
            f"Did {regime} stop or diverge before? Give it patience = 0, a lower rate, or begin earlier."
        )
    model = copy.deepcopy(problem.model)
    load_minimizer(file).load_into(model)
    return dataclasses.replace(problem, model=model)


def _trained(
    problem: Problem,
    parameters: Experiment,
    regime: str,
    trial: Path,
    seed: int,
    about: Mapping[str, Any],
    place: Place,
) -> Minimizer | None:
    """One minimizer, from its file or by training (on); none where training diverged, as its history then says."""
    folder, kept = trial / regime, parameters.kept(regime, seed)
    file, state, rows = (folder / name for name in (MINIMIZER, "training.safetensors", "history.h5"))

    def keep(epoch: int, iterate: Minimizer) -> None:
        if epoch in kept:
            iterate.save(iterate_file(folder, epoch))

    stopped = store.load(rows).stopped if rows.exists() else ""  # a history is finished last
    if not stopped or not (file.exists() or stopped == DIVERGED):
        plan, problem = parameters.regimes[regime], _begun(problem, parameters.starts.get(regime), trial)
        objectives, _ = problem.objectives(device=place.device)
        with store.begin(rows, {"history": history_template(objectives, plan)})["history"] as journal:
            try:
                end, history = train(
                    problem,
                    plan,
                    seed=seed,
                    journal=journal,
                    checkpoint=state,
                    metadata={**about, "regime": regime},
                    device=place.device,
                    keep=keep,
                    progress=place.report(f"seed {seed} {regime}: training"),
                )
            except NonFiniteError as error:
                end, history = None, error.partial
        if end is not None:
            end = _with_statistics(end, objectives["train"]) if parameters.statistics == "recomputed" else end
            end.save(file)
        store.save(history, rows)
    state.unlink(missing_ok=True)
    return load_minimizer(file) if store.load(rows).stopped != DIVERGED else None


def _with_statistics(end: Minimizer, objective: Objective) -> Minimizer:
    """The minimizer with batch-norm statistics re-estimated over the training data."""
    found = objective.with_statistics(end.point).buffers or {}
    return dataclasses.replace(end, buffers={name: found.get(name, t).to(t) for name, t in end.buffers.items()})


def _analyse(
    objectives: dict[str, Objective], trial: Trial, parameters: Experiment, seed: int, place: Place
) -> Iterator[tuple[str, Analysis]]:
    """One seed's analysis of every minimizer and, for the first seed, of the iterates before."""
    train = objectives["train"]
    for regime, end in trial.ends.items():
        title, own = f"seed {seed} {regime}: ", place.out / f"seed-{seed}" / regime
        yield regime, analyse(train, end, parameters.analysis, own, seed=seed, report=place.report, title=title)
        if seed == parameters.seed and regime in parameters.followed:
            report = place.report(f"{title}ε-sharpness along training")
            follow(objectives, trial.start, own, parameters.kept_epochs, parameters.analysis, seed, report)


def _landscapes(
    objectives: dict[str, Objective], trial: Trial, parameters: Experiment, seed: int, place: Place
) -> None:
    """One seed's profiles, lines and curves and, for the first seed, the planes around its minimizers."""
    folder = place.out / f"seed-{seed}"
    for regime, end in trial.ends.items():
        _around(objectives, end, parameters, seed, folder / regime, place)
    for a, b in parameters.lines:
        if not {a, b} <= trial.ends.keys():
            continue
        ends, suffix = (trial.ends[a], trial.ends[b]), "" if len(parameters.lines) == 1 else f"-{a}-{b}"
        for kind, path, points in (("line", Line, parameters.line_points), ("curve", Arc, parameters.curve_points)):
            if points:
                file, alphas = folder / f"{kind}{suffix}.h5", np.linspace(-1.0, 2.0, points)
                progress = place.report(f"seed {seed}: {kind} {a}–{b}")
                resumed_line(objectives, path(*ends), alphas, file, (a, b), progress)


def _around(
    objectives: dict[str, Objective], end: Minimizer, parameters: Experiment, seed: int, folder: Path, place: Place
) -> None:
    """The profile of one minimizer and, for the first seed, the plane around it."""
    planar = parameters.plane_points and seed == parameters.seed
    if not (planar or parameters.profile_points):
        return
    plane, title = random_plane(end, objectives["train"].space, seed=seed), f"seed {seed} {folder.name}: "
    if parameters.profile_points:
        line, alphas = Line(end, plane.at(1.0, 0.0)), np.linspace(-1.0, 1.0, parameters.profile_points)
        ends, progress = (folder.name, ""), place.report(f"{title}profile")
        resumed_line(objectives, line, alphas, folder / "profile.h5", ends, progress)
    if planar:
        axis = np.linspace(-1.0, 1.0, parameters.plane_points)
        resumed_plane(objectives, plane, axis, axis, folder / "plane.h5", place.report(f"{title}plane"))
