"""Two sets of saved checkpoints against each other."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sharpness.checkpoints import training_step
from sharpness.errors import CheckpointError, ShapeError
from sharpness.params import Point
from sharpness.recipes.analysis import Analysis, AnalysisPlan, Report, analyse, cases, no_report
from sharpness.recipes.checkpoint import folder_names
from sharpness.recipes.comparison import of_scores, side_by_side, table
from sharpness.recipes.curvature import PROBES, curvature
from sharpness.recipes.run_folder import claim, defaults_of, stored
from sharpness.recipes.shared import SharedProblem
from sharpness.recipes.source import Source
from sharpness.recipes.trajectory import norm
from sharpness.records import Comparison, TraceEstimate

ENDINGS = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin")
WILD = "*?[]"  # of patterns
Place = tuple[int, str]  # the number of a checkpoint in its set, from 1, and the name of the set


class Compared(NamedTuple):
    """What was measured, and what is worth saying of single checkpoints."""

    comparison: Comparison
    remarks: list[str]


def compare_checkpoints(
    sets: Mapping[str, Sequence[Path]],
    plan: AnalysisPlan,
    out: Path,
    *,
    paired: bool = True,
    probes: int = PROBES,
    source: Source | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    report: Report = no_report,
) -> Compared:
    """Two sets of checkpoints of one problem, by name, side by side: ``out/comparison.h5``.

    Every checkpoint is measured on the same examples in the same batches, with the same random vectors, starts and
    subspace, so that what differs is theirs: loss and accuracy on all data; the plan's eigenvalues, the trace and every
    ε-sharpness on ``plan.examples`` training examples, each in a folder of its own below ``out``, stored as it is done.
    ``render.differences_table`` has the statistics.

    Args:
        sets: two, each of distinct checkpoints.
        paired: the first of one set belongs to the first of the other (they share a start, a seed, a fold), and so on.
        probes: random vectors for each trace.
        source: what the checkpoints belong to.

    Raises:
        ShapeError: not two sets, unequal ones that are to be paired, or the same weights twice.
        DataError: minimizers of different models or data.
        NonFiniteError: the loss of a checkpoint, or its derivatives, are NaN or infinite.
        SchemaError: ``out`` holds another configuration.
    """
    members = _members(sets, paired)
    shared = SharedProblem.of(source or Source(), list(members.values()), plan.examples, device, dtype)
    thetas = {place: shared.digest(path) for place, path in members.items()}
    _check_distinct(members, thetas)
    settings = {"plan": dataclasses.asdict(plan), "probes": probes, "paired": paired, "seed": seed}
    about = {
        "sets": list(sets),
        "theta": {name: [t for (_, owner), t in thetas.items() if owner == name] for name in sets},
    }
    place = {"device": device, "dtype": str(dtype)}
    configuration = {"command": "compare", **about, **shared.identity, **settings, **place}
    claim(out, configuration, {"plan": defaults_of(plan)})
    report("checks")
    remarks = [f"{path}: {remark}" for path in members.values() for remark in shared.remarks(path, seed)]
    folders = {name: folder_names(paths) for name, paths in sets.items()}
    found = {}
    for number, name in members:
        folder, path = list(folders[name].items())[number - 1]
        work = _Work(shared, plan, probes, seed, report, f"{name} {folder}: ")
        found[number, name] = work.member(path, out / name / folder)

    def compared() -> dict[str, Comparison]:
        return {"comparison": _record(shared, plan, folders, found, paired=paired, probes=probes)}

    return Compared(stored(out / "comparison.h5", compared)["comparison"], remarks)


def checkpoints_in(place: str) -> list[Path]:
    """The checkpoints that a folder, a file or a glob pattern names, by name, numbers in names by size.

    A folder of HuggingFace (with a ``config.json``) is one checkpoint, also within a folder of several.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(place)
    if path.is_dir() and not _is_model(path):
        found = [file for file in path.iterdir() if file.suffix in ENDINGS or _is_model(file)]
    elif path.exists():
        found = [path]
    else:
        anchor = Path(path.anchor)
        found = list(anchor.glob(str(path.relative_to(anchor))))
    if not found:
        raise CheckpointError(
            f"expected checkpoints ({', '.join(ENDINGS)}) at {place}: a folder with some, a file, or a pattern in "
            "quotes ('runs/seed-*/SB/minimizer.safetensors'); there are none"
        )
    return sorted(found, key=_by_name)


def set_names(first: str, second: str) -> tuple[str, str]:
    """Names for two sets: what first differs between the two places that they were given by, wild cards apart.

    >>> set_names("runs/seed-*/SB/minimizer.safetensors", "runs/seed-*/LB/minimizer.safetensors")
    ('SB', 'LB')
    """
    pairs = [pair for pair in zip(Path(first).parts, Path(second).parts, strict=False) if pair[0] != pair[1]]
    plain = [pair for pair in pairs if not any(set(WILD) & set(part) for part in pair)]
    for a, b in (*plain, *pairs):
        names = tuple(Path(part).stem.translate(dict.fromkeys(map(ord, WILD))).strip("-_. ") for part in (a, b))
        if names[0] != names[1] and all(names):
            return names[0], names[1]
    return "first", "second"


class _Member(NamedTuple):
    """What was measured at one checkpoint."""

    scores: list[tuple[float, float]]
    analysis: Analysis
    trace: TraceEstimate
    weight_norm: float
    epochs: float


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is done at one checkpoint."""

    shared: SharedProblem
    plan: AnalysisPlan
    probes: int
    seed: int
    report: Report
    title: str

    def member(self, path: Path, folder: Path) -> _Member:
        """Everything at one checkpoint, each part from its file or measured into it."""
        point, train = self.shared.point(path), self.shared.part
        self.report(self.title + "loss and accuracy")
        scores = [objective.evaluate(point)[:2] for objective in self.shared.whole.values()]
        products = folder / "eigenpairs.products.h5"
        found = stored(folder / "eigenpairs.h5", lambda: self._curvature(point, products))
        products.unlink(missing_ok=True)
        analysis = analyse(train, point, self.plan, folder, seed=self.seed, report=self.report, title=self.title)
        step = training_step(path)
        epochs = float(step[1]) if step is not None and step[0] == "epoch" else np.nan
        return _Member(scores, analysis, found["trace"], norm(point.theta), epochs)

    def _curvature(self, point: Point, products: Path) -> dict[str, Any]:
        progress = self.report(self.title + "eigenvalues and trace")
        options: dict[str, Any] = {"probes": self.probes, "seed": self.seed, "progress": progress}
        found = curvature(self.shared.part, point, self.plan, products, **options)
        return {"eigenpairs": found.pairs, "trace": found.trace}


def _record(
    shared: SharedProblem,
    plan: AnalysisPlan,
    folders: Mapping[str, Mapping[str, Path]],
    found: Mapping[Place, _Member],
    *,
    paired: bool,
    probes: int,
) -> Comparison:
    names, numbers = list(folders), list(range(1, max(map(len, folders.values())) + 1))

    def column(value: Any) -> np.ndarray:
        return table(names, numbers, {place: value(member) for place, member in found.items()})

    analyses = {place: member.analysis for place, member in found.items()}
    scores = {place: member.scores for place, member in found.items()}
    train, test = shared.whole["train"], shared.whole.get("test")
    about = {
        "train_examples": train.examples,
        "test_examples": 0 if test is None else test.examples,
        "training": train.conditions,
        "batchnorm": "eval" if train.has_batchnorm else "none",
        "analysis": dataclasses.asdict(plan),
        "probes": probes,
        "probe_passed": all(analysis.eigenpairs.probe_passed for analysis in analyses.values()),
        "measured_on": shared.measured_on,
        "checkpoints": {name: list(folder) for name, folder in folders.items()},
    }
    return Comparison(
        **side_by_side(names, numbers, list(cases(plan, shared.part)), analyses),
        **of_scores(names, numbers, list(shared.whole), scores),
        distance=np.full((len(names), len(numbers)), np.nan),
        weight_norm=column(lambda member: member.weight_norm),
        epochs=column(lambda member: member.epochs),
        trace=column(lambda member: member.trace.value),
        trace_error=column(lambda member: member.trace.standard_error),
        recipe="compare",
        over="pairs" if paired else "checkpoints",
        conditions=about,
    )


def _members(sets: Mapping[str, Sequence[Path]], paired: bool) -> dict[Place, Path]:
    sizes = [len(paths) for paths in sets.values()]
    if len(sizes) != 2 or not all(sizes):
        raise ShapeError(f"expected two sets of one checkpoint or more; got {len(sizes)}, of {sizes}")
    if paired and sizes[0] != sizes[1]:
        first, second = (f"{size} in {name}" for name, size in zip(sets, sizes, strict=True))
        raise ShapeError(
            f"expected as many checkpoints in both sets, to compare them in pairs; got {first} and {second}. "
            "Give --unpaired if they do not belong together."
        )
    return {(number, name): path for name, paths in sets.items() for number, path in enumerate(paths, 1)}


def _check_distinct(members: Mapping[Place, Path], thetas: Mapping[Place, str]) -> None:
    """That no weights come twice: they would count twice."""
    often = Counter(thetas.values())
    if repeated := [theta for theta, times in often.items() if times > 1]:
        twice = [str(members[place]) for place, theta in thetas.items() if theta == repeated[0]]
        raise ShapeError(f"expected distinct checkpoints; got the same weights in {' and '.join(twice)}")


def _is_model(path: Path) -> bool:
    return (path / "config.json").exists()


def _by_name(path: Path) -> list[tuple[int, str]]:
    """Numbers in names by size."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", str(path))]
