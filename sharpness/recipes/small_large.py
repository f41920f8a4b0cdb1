"""Small-batch against large-batch minimizers of one problem from one start, over seeds: Keskar et al.'s comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sharpness import store
from sharpness.checkpoints import Minimizer, load_minimizer
from sharpness.data import Data, load
from sharpness.errors import ShapeError
from sharpness.geometry import Line, random_plane
from sharpness.models import initialised, keskar_f1, mlp
from sharpness.objective import Objective, Problem, cross_entropy
from sharpness.random import normal
from sharpness.recipes.analysis import (
    Analysis,
    AnalysisPlan,
    Case,
    Report,
    analyse,
    cases,
    measured_on,
    no_report,
)
from sharpness.recipes.grids import resumed_line, resumed_plane
from sharpness.recipes.run_folder import claim, stored
from sharpness.records import Comparison
from sharpness.training import TrainingPlan, history_template, train

REGIMES = ("SB", "LB")
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "digits-mlp": lambda: mlp([64, 128, 128, 10], batchnorm=True),
    "keskar-f1": keskar_f1,
}


@dataclass(frozen=True)
class SmallLarge:
    """Parameters of the comparison.

    Args:
        data: ``"digits"``, ``"mnist"`` or ``"cifar10"``.
        model: a name in ``MODELS``.
        sb, lb: how the small-batch and the large-batch minimizer are trained.
        trials: seeds, each with its own start, mini-batches, subspace and directions.
        seed: the first of them.
        analysis: what is measured at each minimizer.
        line_points: points of the line from SB (α = 0) to LB (α = 1), α in [-1, 2]; every seed.
        plane_points: points along each axis of the planes around SB and LB, α and β in [-1, 1]; first seed.
        threads: of the CPU; 0 leaves PyTorch's own number. The last bits of results depend on it, and small networks
            gain nothing from more than one.
        kept_epochs: after which the iterate is kept, in ``epoch-<e>.safetensors``.
    """

    data: str
    model: str
    sb: TrainingPlan
    lb: TrainingPlan
    trials: int = 3
    seed: int = 0
    analysis: AnalysisPlan = field(default_factory=AnalysisPlan)
    line_points: int = 49
    plane_points: int = 25
    threads: int = 0
    kept_epochs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ShapeError(f"expected model to be one of {', '.join(MODELS)}; got {self.model!r}")
        if self.trials < 1 or self.line_points < 2 or self.plane_points < 2 or self.threads < 0:
            raise ShapeError("expected trials >= 1, line_points >= 2, plane_points >= 2 and threads >= 0")

    @property
    def seeds(self) -> range:
        """The seeds of the trials."""
        return range(self.seed, self.seed + self.trials)

    def problem(self, data: Data, seed: int, dtype: torch.dtype = torch.float32) -> Problem:
        """The problem at one seed's starting point, drawn in float32 whatever the ``dtype``."""
        model = initialised(MODELS[self.model], seed=seed).to(dtype)
        train, test = ((inputs.to(dtype), targets) for inputs, targets in (data.train, data.test))
        return Problem(model, cross_entropy, train, test)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """PyTorch on so many CPU threads (0: as it is), and as before on leaving."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Trial(NamedTuple):
    """One seed: its start and where SB and LB ended."""

    start: Minimizer
    ends: dict[str, Minimizer]


def random_problem(model: str, examples: int, *, seed: int = 0) -> Problem:
    """A model of ``MODELS`` with random inputs and targets of its shape, for measuring cost."""
    if model not in MODELS:
        raise ShapeError(f"expected --model {', '.join(MODELS)}; got {model!r}")
    network = initialised(MODELS[model], seed=seed)
    first = next(network.parameters())
    inputs = normal(examples, *first.shape[1:], key=("random inputs",), seed=seed)
    return Problem(network, cross_entropy, (inputs, torch.arange(examples) % 10))


def train_pairs(
    name: str,
    parameters: SmallLarge,
    out: Path,
    *,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    report: Report = no_report,
) -> tuple[Data, dict[int, Trial]]:
    """The training stage: for every seed an SB and an LB minimizer from one start, in ``out/seed-<s>/<regime>/``."""
    data = load(parameters.data, data_dir)
    settings = dataclasses.asdict(parameters)
    claim(
        out, {"recipe": name, "parameters": settings, "data": data.fingerprint, "device": device, "dtype": str(dtype)}
    )
    about = {"recipe": name, "parameters": settings, "data": data.fingerprint, "dtype": str(dtype)}
    trials = {}
    with cpu_threads(parameters.threads):
        for seed in parameters.seeds:
            problem, folder = parameters.problem(data, seed, dtype), out / f"seed-{seed}"
            trials[seed] = _trial(problem, parameters, folder, seed=seed, about=about, device=device, report=report)
    return data, trials


def run(
    name: str,
    parameters: SmallLarge,
    out: Path,
    *,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    report: Report = no_report,
) -> Comparison:
    """Train, analyse, evaluate lines and planes, and compare; everything that ``out`` already holds is kept.

    Returns:
        The comparison, which is also in ``out/comparison.h5``.

    Raises:
        SchemaError: ``out`` holds another configuration.
        DataError: the data are not to be had.
    """
    data, trials = train_pairs(name, parameters, out, data_dir=data_dir, device=device, dtype=dtype, report=report)
    problems = {seed: parameters.problem(data, seed, dtype) for seed in trials}
    measured: dict[tuple[int, str], Analysis] = {}
    with cpu_threads(parameters.threads):
        for seed, trial in trials.items():
            part = measured_on(problems[seed], parameters.analysis.examples)
            objectives, _ = part.objectives(device=device)
            for regime, found in _measure(objectives, trial, parameters, seed, out / f"seed-{seed}", report).items():
                measured[seed, regime] = found

        def compare() -> dict[str, Comparison]:
            whole, _ = problems[parameters.seed].objectives(device=device)
            return {"comparison": _comparison(name, parameters, whole, trials, measured)}

        return stored(out / "comparison.h5", compare)["comparison"]


def _trial(
    problem: Problem,
    parameters: SmallLarge,
    folder: Path,
    *,
    seed: int,
    about: Mapping[str, Any],
    device: str,
    report: Report,
) -> Trial:
    """One seed's start and both its minimizers."""
    start = Minimizer.of(problem.model, {**about, "regime": "start", "seed": seed})
    if not (folder / "start.safetensors").exists():
        start.save(folder / "start.safetensors")
    ends = {}
    for regime, plan in zip(REGIMES, (parameters.sb, parameters.lb), strict=True):
        own, progress = {**about, "regime": regime}, report(f"seed {seed} {regime}: training")
        ends[regime] = _trained(
            problem, plan, folder / regime, parameters.kept_epochs, seed=seed, about=own, device=device, progress=progress
        )
    return Trial(start, ends)


def _measure(
    objectives: dict[str, Objective], trial: Trial, parameters: SmallLarge, seed: int, folder: Path, report: Report
) -> dict[str, Analysis]:
    """One seed's analysis of SB and LB, the line between them and, for the first seed, the planes around them."""
    train, found = objectives["train"], {}
    for regime, end in trial.ends.items():
        title, own = f"seed {seed} {regime}: ", folder / regime
        found[regime] = analyse(train, end, parameters.analysis, own, seed=seed, report=report, title=title)
        if seed == parameters.seed:
            plane, axis = random_plane(end, train.space, seed=seed), np.linspace(-1.0, 1.0, parameters.plane_points)
            resumed_plane(objectives, plane, axis, own / "plane.h5", report(f"{title}plane"))
    line, alphas = Line(trial.ends["SB"], trial.ends["LB"]), np.linspace(-1.0, 2.0, parameters.line_points)
    resumed_line(objectives, line, alphas, folder / "line.h5", REGIMES, report(f"seed {seed}: line SB–LB"))
    return found


def _trained(
    problem: Problem,
    plan: TrainingPlan,
    folder: Path,
    kept_epochs: tuple[int, ...],
    *,
    seed: int,
    about: Mapping[str, Any],
    device: str,
    progress: Any,
) -> Minimizer:
    """One minimizer, from its file or by training (on)."""

    def keep(epoch: int, iterate: Minimizer) -> None:
        if epoch in kept_epochs:
            iterate.save(folder / f"epoch-{epoch:04}.safetensors")

    file, state, rows = (folder / name for name in ("minimizer.safetensors", "training.safetensors", "history.h5"))
    if not (file.exists() and rows.exists() and store.load(rows).stopped):  # a history is finished last
        objectives, _ = problem.objectives(device=device)
        journal = store.begin(rows, {"history": history_template(objectives, plan)})["history"]
        with journal:
            end, history = train(
                problem,
                plan,
                seed=seed,
                journal=journal,
                checkpoint=state,
                metadata=about,
                device=device,
                keep=keep,
                progress=progress,
            )
        end.save(file)
        store.save(history, rows)
    if state.exists():
        state.unlink()
    return load_minimizer(file)


def _comparison(
    name: str,
    parameters: SmallLarge,
    objectives: dict[str, Objective],
    trials: dict[int, Trial],
    measured: dict[tuple[int, str], Analysis],
) -> Comparison:
    """Everything side by side; loss and accuracy are those on all training and all test data."""
    every = list(cases(parameters.analysis, objectives["train"]))
    modes, spaces, epsilons = (list(dict.fromkeys(column)) for column in zip(*every, strict=True))

    def table(value: Callable[[str, int], Any]) -> np.ndarray:
        return np.array([[value(regime, seed) for seed in trials] for regime in REGIMES])

    def per_case(value: Callable[[Any], Any]) -> np.ndarray:
        def one(regime: str, seed: int) -> list[Any]:
            found = measured[seed, regime].sharpness
            return [[[value(found[Case(m, s, e)]) for e in epsilons] for s in spaces] for m in modes]

        return table(one)

    def evaluations(regime: str, seed: int) -> list[tuple[float, ...]]:
        return [o.evaluate(trials[seed].ends[regime])[:2] for o in objectives.values()]

    scores = table(evaluations)
    every_example = objectives["train"].examples
    return Comparison(
        regime=np.array(REGIMES),
        seed=np.array(list(trials)),
        split=np.array(list(objectives)),
        pair=np.arange(1, parameters.analysis.eigenpairs + 1),
        batchnorm=np.array(modes),
        space=np.array(spaces),
        epsilon=np.array(epsilons),
        maximiser=np.array(["L-BFGS-B", "sign ascent"]),
        loss=scores[..., 0],
        accuracy=scores[..., 1],
        eigenvalues=table(lambda r, s: measured[s, r].eigenpairs.eigenvalues),
        residuals=table(lambda r, s: measured[s, r].eigenpairs.residuals),
        converged=table(lambda r, s: measured[s, r].eigenpairs.converged),
        gradient_norm=per_case(lambda s: s.gradient_norm)[..., 0, 0],
        sharpness=per_case(lambda s: (s.sharpness, s.stronger)),
        spread=per_case(lambda s: s.spread),
        first_order=per_case(lambda s: s.first_order),
        distance=table(lambda r, s: _norm(trials[s].ends[r].point.theta - trials[s].start.point.theta)),
        weight_norm=table(lambda r, s: _norm(trials[s].ends[r].point.theta)),
        epochs=table(lambda r, s: trials[s].ends[r].metadata["epochs"]),
        recipe=name,
        conditions={
            "training": objectives["train"].conditions,
            "batchnorm": "eval" if objectives["train"].has_batchnorm else "none",
            "analysis": dataclasses.asdict(parameters.analysis),
            "probe_passed": all(found.eigenpairs.probe_passed for found in measured.values()),
            "measured_on": f"{min(parameters.analysis.examples or every_example, every_example)} training examples",
        },
    )


def _norm(vector: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
