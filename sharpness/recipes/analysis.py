"""The analysis of one point: eigenvalues and ε-sharpness, stored as they are done."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sharpness import store
from sharpness.errors import DataError, NotConvergedError, ShapeError
from sharpness.journal import HDF5Journal
from sharpness.measures import epsilon_sharpness, layer_curvature, layer_template
from sharpness.objective import Objective, Problem
from sharpness.operators import Hessian, SymmetricOperator, begin_products, recorded_plan
from sharpness.progress import Progress, silent
from sharpness.recipes.run_folder import stored
from sharpness.records import EigenPairs, EpsilonSharpness, LayerCurvature, SpectralDensity
from sharpness.spectrum import default_products, eigenpairs, spectral_density

DISK_SHARE = 0.5  # of what is free that recorded products may take

Report = Callable[[str], Progress]
"""Told the title of a stage, it gives what the stage reports its progress to."""


def no_report(title: str) -> Progress:  # noqa: ARG001 - shows nothing
    """The default: no output."""
    return silent


@dataclass(frozen=True)
class AnalysisPlan:
    """What is measured at a point.

    Args:
        eigenpairs: k, from the top of the spectrum, batch norm by running statistics.
        tolerance: of the eigenpairs, relative to the largest |λ|.
        epsilons: ε of the box; the paper's two.
        subspace: dimension of the random subspace; the paper's.
        iterations: of the maximisers; the paper's.
        restarts: starts of each maximiser.
        examples: of the training data to measure on, from the first; 0 is all.
        density_probes: of the spectral density, 80 products each; 0 leaves it out.
        batchnorm: the treatments of batch norm under which ε-sharpness is measured, where the model has any: by running
            statistics (``"eval"``), by those of each chunk (``"batch"``, as the paper's released code does).
        parameters: patterns of the parameters that everything is measured over, the others held; default: all.
        layers: whether λmax, trace and norms of every layer by itself are added.
    """

    eigenpairs: int = 5
    tolerance: float = 1e-3
    epsilons: tuple[float, ...] = (1e-3, 5e-4)
    subspace: int = 100
    iterations: int = 10
    restarts: int = 2
    examples: int = 0
    density_probes: int = 0
    batchnorm: tuple[str, ...] = ("eval", "batch")
    parameters: tuple[str, ...] = ()
    layers: bool = False

    def __post_init__(self) -> None:
        wrong = [
            f"{name} = {getattr(self, name)!r} ({expected})"
            for name, expected, good in (
                ("eigenpairs", ">= 1", self.eigenpairs >= 1),
                ("tolerance", "> 0", self.tolerance > 0),
                ("epsilons", "one or more, finite, > 0", self.epsilons and all(0 < e < inf for e in self.epsilons)),
                ("subspace", ">= 0", self.subspace >= 0),
                ("iterations", ">= 1", self.iterations >= 1),
                ("restarts", ">= 1", self.restarts >= 1),
                ("examples", ">= 0", self.examples >= 0),
                ("density_probes", ">= 0", self.density_probes >= 0),
                ("batchnorm", "of eval and batch", self.batchnorm and set(self.batchnorm) <= {"eval", "batch"}),
            )
            if not good
        ]
        if wrong:
            raise ShapeError("expected an analysis plan within range; got " + ", ".join(wrong))


class Case(NamedTuple):
    """One ε-sharpness among those of a point."""

    batchnorm: str
    space: str
    epsilon: float

    @property
    def name(self) -> str:
        """The record's name in the file: ``eval-full-0.001``, or ``full-0.001`` for a model without batch norm."""
        return f"{'' if self.batchnorm == 'none' else self.batchnorm + '-'}{self.space}-{self.epsilon:g}"

    @property
    def policy(self) -> str:
        """What the objective is asked for."""
        return "eval" if self.batchnorm == "none" else self.batchnorm


class Analysis(NamedTuple):
    """What ``analyse`` measured."""

    eigenpairs: EigenPairs
    sharpness: dict[Case, EpsilonSharpness]
    layers: LayerCurvature | None


def measured_on(problem: Problem, examples: int) -> Problem:
    """The problem with only the first ``examples`` of its training data (0: all)."""
    if not examples:
        return problem
    if not (isinstance(problem.train, tuple) and all(isinstance(part, torch.Tensor) for part in problem.train)):
        raise DataError(
            "expected training data as tensors (inputs, targets), of which the first examples can be taken; got "
            f"{type(problem.train).__name__}. Give a smaller data set in the problem instead."
        )
    return dataclasses.replace(problem, train=tuple(part[:examples] for part in problem.train))


def cases(plan: AnalysisPlan, objective: Objective) -> Iterator[Case]:
    """Every combination of batch-norm treatment (where the model has any), space and ε."""
    for batchnorm in plan.batchnorm if objective.has_batchnorm else ("none",):
        for space in ("full", "subspace") if plan.subspace else ("full",):
            for epsilon in plan.epsilons:
                yield Case(batchnorm, space, epsilon)


def analyse(
    objective: Objective,
    place: Any,
    plan: AnalysisPlan,
    folder: Path,
    *,
    seed: int = 0,
    report: Report = no_report,
    title: str = "",
) -> Analysis:
    """Top eigenpairs of the Hessian and every ε-sharpness at one place.

    ``folder/eigenpairs.h5``, ``folder/density.h5`` and ``folder/layers.h5`` (where asked for) and
    ``folder/sharpness.h5`` are written as each is done, and read where they are there. While eigenpairs are sought,
    ``folder/eigenpairs.products.h5`` keeps every product, 4·n bytes each in float32 and at most half of the free disk;
    killed, the search goes on after the last. Eigenpairs that do not converge are stored as they are, with their flags.
    """
    products = folder / "eigenpairs.products.h5"
    if plan.parameters:
        objective, place = objective.restricted(plan.parameters, place)

    def sought() -> dict[str, EigenPairs]:
        plainly, k, progress = objective.replace(batchnorm="eval"), plan.eigenpairs, report(f"{title}eigenvalues")
        found = resumed_eigenpairs(plainly, place, k, products, progress, tolerance=plan.tolerance, seed=seed)
        return {"eigenpairs": found}

    pairs = stored(folder / "eigenpairs.h5", sought)
    products.unlink(missing_ok=True)
    if plan.density_probes:
        stored(folder / "density.h5", lambda: _density(objective, place, plan, seed, report, title))
    layers = _layers(objective, place, folder / "layers.h5", seed, report(f"{title}layers")) if plan.layers else None

    file, every = folder / "sharpness.h5", list(cases(plan, objective))
    done = store.load_all(file) if file.exists() else {}
    for case in every:
        if case.name not in done:
            progress = report(f"{title}ε-sharpness {case.name}")
            done[case.name] = _sharpness(objective, place, plan, case, seed, progress)
            store.save(done, file)
    return Analysis(pairs["eigenpairs"], {case: done[case.name] for case in every}, layers)


def _layers(objective: Objective, place: Any, file: Path, seed: int, progress: Progress) -> LayerCurvature:
    plainly = objective.replace(batchnorm="eval")
    begun = store.begin(file, {"layer_curvature": layer_template(plainly, place, seed=seed)})
    with begun["layer_curvature"] as journal:
        return layer_curvature(plainly, place, seed=seed, journal=journal, progress=progress)


def _sharpness(
    objective: Objective, place: Any, plan: AnalysisPlan, case: Case, seed: int, progress: Progress
) -> EpsilonSharpness:
    return epsilon_sharpness(
        objective.replace(batchnorm=case.policy),
        place,
        case.epsilon,
        min(plan.subspace, objective.size) if case.space == "subspace" else None,
        plan.iterations,
        seed=seed,
        restarts=plan.restarts,
        progress=progress,
    )


def resumed_eigenpairs(
    objective: Objective,
    place: Any,
    k: int,
    products: Path,
    progress: Progress,
    *,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> EigenPairs:
    """The top k eigenpairs, with their flags where they did not converge; a killed search goes on from ``products``.

    ``products`` is to be removed once they are stored.
    """
    operator = resumed_hessian(objective, place, products)
    return resumed_search(operator, k, products, progress, tolerance=tolerance, seed=seed)


def resumed_hessian(objective: Objective, place: Any, products: Path) -> Hessian:
    """The Hessian, by the plan of the search whose ``products`` are there, if any: the same plan, the same bits."""
    execution = recorded_plan(products)
    return Hessian(objective.replace(kernels=execution.get("kernels")), place, replay=execution or "auto")


def resumed_search(operator: Hessian, k: int, products: Path, progress: Progress, **choices: Any) -> EigenPairs:
    """``eigenpairs`` of an operator, with their flags where they did not converge, going on from ``products``."""
    with _journal(products, operator, default_products(k)) as journal:
        try:
            return eigenpairs(operator, k, journal=journal, progress=progress, **choices)
        except NotConvergedError as error:
            return error.partial


@contextmanager
def _journal(path: Path, operator: SymmetricOperator, products: int) -> Iterator[HDF5Journal | None]:
    """Where products are kept, as many as there is room for, if any; gone again where none came to be."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    room = DISK_SHARE * shutil.disk_usage(there).free / (operator.shape[0] * operator.dtype.itemsize)
    rows = min(products, int(room))
    if not rows and not path.exists():
        yield None
        return
    with begin_products(path, operator, max(1, rows)) as journal:
        try:
            yield journal
        finally:
            if not journal.status.any():
                path.unlink()
                with suppress(OSError):  # it holds something else
                    path.parent.rmdir()


def _density(
    objective: Objective, place: Any, plan: AnalysisPlan, seed: int, report: Report, title: str
) -> dict[str, SpectralDensity]:
    operator, progress = Hessian(objective.replace(batchnorm="eval"), place), report(f"{title}spectral density")
    density = spectral_density(operator, probes=plan.density_probes, seed=seed, progress=progress)
    return {density.kind: density}
