"""Landscapes of saved checkpoints: lines, curves, profiles and planes, each into its file, resumable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save

from sharpness import store
from sharpness.checkpoints import is_minimizer, load_minimizer
from sharpness.errors import ShapeError
from sharpness.files import write_atomically
from sharpness.geometry import (
    NORMALISATIONS,
    Arc,
    Curve,
    Line,
    Plane,
    eigenvector_plane,
    plane_through,
    random_plane,
    trajectory_plane,
)
from sharpness.landscape import axis_curvature, connect, convexity_map, convexity_template, load_curve, save_curve
from sharpness.objective import Objective
from sharpness.objective.snapshot import POLICIES
from sharpness.params import Point
from sharpness.recipes.analysis import Report, measured_on, no_report, resumed_eigenpairs
from sharpness.recipes.checkpoint import folder_names
from sharpness.recipes.grids import resumed_line, resumed_plane, resumed_profiles
from sharpness.recipes.run_folder import claim, stored
from sharpness.recipes.source import Source
from sharpness.records import AxisCurvature, LineLosses, PlaneLosses, ProfileLosses

CURVES, PLANES = ("line", "arc", "bezier", "polygon"), ("random", "eigenvectors", "through", "trajectory")
KINDS = (*CURVES, "profiles", *PLANES)
NEEDS = {  # checkpoints, at least and at most
    **dict.fromkeys(CURVES, (2, 2)),
    **dict.fromkeys(("profiles", "random", "eigenvectors"), (1, 24)),
    "through": (2, 3),
    "trajectory": (3, math.inf),
}
USED_BY = {  # choices that some kinds alone know
    "share": PLANES,
    **dict.fromkeys(("by", "hold"), ("random", "profiles")),
    "directions": ("profiles",),
    **dict.fromkeys(("bends", "epochs"), ("bezier", "polygon")),
}
MARGIN = 0.25  # of the extent of what a plane shows, around it
Losses = LineLosses | ProfileLosses | PlaneLosses
RISE = 1.0  # nats by which the quadratic model rises from the middle to the edge of an eigenvector plane


@dataclass(frozen=True)
class LandscapePlan:
    """Which landscape, and how finely.

    Args:
        kind: of two checkpoints ``"line"``, ``"arc"``, or a trained low-loss ``"bezier"`` or ``"polygon"``; of each
            checkpoint ``"profiles"`` along random directions, or a plane along two ``"random"`` directions or along the
            top two Hessian ``"eigenvectors"``; the plane ``"through"`` two or three; the plane of a ``"trajectory"``,
            of the iterates in the order given. ``""``: by their number, random, line, through or trajectory.
        points: along each axis.
        extent: first and last coordinate; default: [-1, 2] on a line, [0, 1] on a trained curve, [-1, 1] along random
            directions; planes of other kinds reach a quarter beyond what they show, or to where the quadratic model has
            risen by one nat.
        by, hold: of random directions: how they are normalised, and whether biases and norm layers stay.
        directions: profiles from each point.
        share: of the points of a plane that are evaluated at most, from coarse to fine.
        batchnorm: of losses and convexity ``"recompute"`` (the default), ``"eval"`` or ``"batch"``; of eigenvectors and
            of the curvature along axes ``"batch"`` likewise, else ``"eval"``.
        bends: of a trained curve.
        epochs: of training it.
        examples: of the training data, from the first; 0 is all.
        seed: of directions and of the training of curves.
    """

    kind: str = ""
    points: int = 25
    extent: tuple[float, float] | None = None
    by: str = "filter"
    hold: bool = True
    directions: int = 20
    share: float = 1.0
    batchnorm: str | None = None
    bends: int = 1
    epochs: int = 200
    examples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.extent or (0.0, 1.0)
        least, evaluated = (3 if self.share < 1 else 2), round(self.share * self.points**2, 6)
        wrong = [
            f"{name} = {getattr(self, name)!r} ({expected})"
            for name, expected, good in (
                ("kind", f"one of {', '.join(KINDS)}", self.kind in ("", *KINDS)),
                ("points", f">= {least} along each axis", self.points >= least),
                ("extent", "finite, in ascending order", -math.inf < low < high < math.inf),
                ("by", f"one of {', '.join(NORMALISATIONS)}", self.by in NORMALISATIONS),
                ("directions", ">= 1", self.directions >= 1),
                ("share", "in (0, 1], of four points or more", 0 < self.share <= 1 and evaluated >= 4),
                ("batchnorm", f"one of {', '.join(POLICIES)}", self.batchnorm in (None, *POLICIES)),
                ("bends", ">= 1", self.bends >= 1),
                ("epochs", ">= 1", self.epochs >= 1),
                ("examples", ">= 0", self.examples >= 0),
            )
            if not good
        ]
        if wrong:
            raise ShapeError("expected a landscape plan within range; got " + ", ".join(wrong))

    def fitted(self, checkpoints: int) -> LandscapePlan:
        """The plan with the kind that so many checkpoints call for, where it names none.

        Raises:
            ShapeError: another number is needed, or a choice is made that this kind knows nothing of.
        """
        kind = self.kind or {1: "random", 2: "line", 3: "through"}.get(checkpoints, "trajectory")
        least, most = NEEDS[kind]
        if not least <= checkpoints <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}" if most < math.inf else f"{least} or more"
            raise ShapeError(f"expected {wanted} checkpoints for a landscape of kind {kind}; got {checkpoints}")
        usual = LandscapePlan()
        for name, kinds in USED_BY.items():
            if kind not in kinds and getattr(self, name) != getattr(usual, name):
                raise ShapeError(f"expected {name} with a landscape of kind {', '.join(kinds)}; got it with {kind}")
        return dataclasses.replace(self, kind=kind)


class Landscape(NamedTuple):
    """What was evaluated, by checkpoint where there is one for each, by ``line`` and ``curve``, or by an empty name.

    On a plane around one point also the curvature along its axes.
    """

    losses: Mapping[str, Losses]
    curvature: Mapping[str, AxisCurvature]


def landscape(
    checkpoints: Sequence[Path],
    out: Path,
    plan: LandscapePlan,
    *,
    convexity: bool = False,
    source: Source | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    report: Report = no_report,
) -> Landscape:
    """Evaluate what the plan says; points are committed as they are done, and found again.

    ``convexity`` adds the smallest and largest Hessian eigenvalue at every point of planes, tens of products each.

    Raises:
        ShapeError: the checkpoints do not fit the plan or each other.
        SchemaError: ``out`` holds another configuration.
    """
    plan = plan.fitted(len(checkpoints))
    if convexity and plan.kind not in PLANES:
        raise ShapeError(f"expected convexity with a plane ({', '.join(PLANES)}); got it with {plan.kind}")
    source = source or Source()
    made, first = source.open(checkpoints[0])
    # what a checkpoint is allowed to lack is as the model was made, not as the checkpoint before had it
    others = (source.open(path)[1] if source.allow else source.point(path, made) for path in checkpoints[1:])
    points = dict(zip(_labels(checkpoints), (first, *others), strict=True))
    objectives, _ = measured_on(made, plan.examples).objectives(device=device, dtype=dtype)
    for name, point in points.items():
        objectives["train"].space.check(point.theta, f"θ of {name}")
    claim(
        out,
        {
            "command": "landscape",
            "checkpoints": [point.digest for point in points.values()],
            "data": {split: objective.fingerprint for split, objective in objectives.items()},
            "problem": source.identity,
            "plan": dataclasses.asdict(plan),
            "device": device,
            "dtype": str(dtype),
        },
    )
    scene = _Scene(objectives, plan, report)
    if plan.kind in CURVES:
        return Landscape(scene.curves(points, out), {})
    if plan.kind == "trajectory":
        plane = trajectory_plane(dict(zip(_epochs(checkpoints), points.values(), strict=True)))
        return Landscape({"": scene.plane(plane, out, convexity)}, {})
    if plan.kind == "through":
        return Landscape({"": scene.plane(plane_through(points, scene.space, seed=plan.seed), out, convexity)}, {})
    places = {name: out / name for name in points} if len(points) > 1 else {"": out}
    around = dict(zip(places, points.values(), strict=True))
    if plan.kind == "profiles":
        return Landscape({name: scene.profiles(point, places[name], name) for name, point in around.items()}, {})
    planes = {name: scene.around(point, places[name], name) for name, point in around.items()}
    reach = _reach(list(places.values())) if plan.kind == "eigenvectors" else 1.0
    return Landscape(
        {name: scene.plane(plane, places[name], convexity, name, reach) for name, plane in planes.items()},
        {name: scene.curvature(plane, places[name]) for name, plane in planes.items()},
    )


@dataclass(frozen=True)
class _Scene:
    """What all landscapes of one call share."""

    objectives: Mapping[str, Objective]
    plan: LandscapePlan
    report: Report

    @property
    def train(self) -> Objective:
        return self.objectives["train"]

    @property
    def smooth(self) -> Objective:
        """f with derivatives at one point: batch norm by running statistics, or by batches where the plan says so."""
        return self.train.replace(batchnorm="batch" if self.plan.batchnorm == "batch" else "eval")

    @property
    def space(self) -> Any:
        return self.train.space

    def curves(self, points: Mapping[str, Point], out: Path) -> dict[str, Losses]:
        """The line, arc or trained curve between two points; beside a trained one the line, which its bends avoid."""
        a, b = points.values()
        trained, extent = self.plan.kind in ("bezier", "polygon"), self.plan.extent
        alphas = np.linspace(*(extent or ((0.0, 1.0) if trained else (-1.0, 2.0))), self.plan.points)
        curves: dict[str, Curve] = {"curve": Arc(a, b)} if self.plan.kind == "arc" else {"line": Line(a, b)}
        if trained:
            curves["curve"] = self._trained(a, b, out)
        policy, names = self.plan.batchnorm, list(points)
        return {
            name: resumed_line(self.objectives, curve, alphas, out / f"{name}.h5", names, self.report(name), policy)
            for name, curve in curves.items()
        }

    def _trained(self, a: Point, b: Point, out: Path) -> Curve:
        file = out / "curve.safetensors"
        if not file.exists():
            found = connect(
                self.train,
                a,
                b,
                form=self.plan.kind,
                bends=self.plan.bends,
                epochs=self.plan.epochs,
                seed=self.plan.seed,
                checkpoint=out / "training.safetensors",
                progress=self.report("training the curve"),
            )
            save_curve(found.curve, file, found.metadata)
        (out / "training.safetensors").unlink(missing_ok=True)
        return load_curve(file, a, b)

    def profiles(self, point: Point, folder: Path, label: str) -> ProfileLosses:
        """Many random lines from one point."""
        alphas = np.linspace(*(self.plan.extent or (-1.0, 1.0)), self.plan.points)
        choices = {name: getattr(self.plan, name) for name in ("directions", "by", "hold", "seed", "batchnorm")}
        progress = self.report(f"{label} profiles".strip())
        return resumed_profiles(self.objectives, point, alphas, folder / "profiles.h5", progress, **choices)

    def around(self, point: Point, folder: Path, label: str) -> Plane:
        """The plane at one point, along random directions or eigenvectors."""
        if self.plan.kind == "random":
            return random_plane(point, self.space, by=self.plan.by, hold=self.plan.hold, seed=self.plan.seed)
        vectors, products = folder / "eigenvectors.safetensors", folder / "eigenpairs.products.h5"
        if not vectors.exists():
            progress = self.report(f"{label} eigenvectors".strip())
            pairs = resumed_eigenpairs(self.smooth, point, 2, products, progress, seed=self.plan.seed)
            stored(folder / "eigenpairs.h5", lambda: {"eigenpairs": pairs})
            write_atomically(vectors, save({"vectors": pairs.vectors.contiguous().cpu()}))
        products.unlink(missing_ok=True)
        converged = store.load(folder / "eigenpairs.h5").converged.all()
        kind = "top two Hessian eigenvectors" + ("" if converged else ", not converged")
        return eigenvector_plane(point, load_file(vectors)["vectors"], kind=kind)

    def plane(self, plane: Plane, folder: Path, convexity: bool, label: str = "", reach: float = 0.0) -> PlaneLosses:
        """The losses on a plane, as far as ``reach`` from the middle if it has one; where wanted, its convexity."""
        axes = self._axes(plane, reach)
        title = f"{label} plane".strip()
        choices: dict[str, Any] = {"share": self.plan.share, "batchnorm": self.plan.batchnorm}
        found = resumed_plane(self.objectives, plane, *axes, folder / "plane.h5", self.report(title), **choices)
        if convexity:
            objective, seed = self.train.replace(batchnorm=self.plan.batchnorm or "recompute"), self.plan.seed
            begun = {"convexity": convexity_template(objective, plane, *axes, seed=seed)}
            with store.begin(folder / "convexity.h5", begun)["convexity"] as journal:
                progress = self.report(f"{label} convexity".strip())
                convexity_map(objective, plane, *axes, seed=seed, journal=journal, progress=progress)
        return found

    def curvature(self, plane: Plane, folder: Path) -> AxisCurvature:
        """Curvature along the axes of a plane, by second differences and by the Hessian."""
        records = stored(folder / "curvature.h5", lambda: {"axis_curvature": axis_curvature(self.smooth, plane)})
        found: AxisCurvature = records["axis_curvature"]
        return found

    def _axes(self, plane: Plane, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """α and β: as the plan says, as far as the reach, or a margin beyond what the plane shows."""
        spread, extent = partial(np.linspace, num=self.plan.points), self.plan.extent
        if extent is not None or reach:
            alphas = spread(*(extent or (-reach, reach)))
            return alphas, alphas
        shown = np.array(list(plane.marks.values()) if plane.walk is None else plane.walk.places)[:, :2]
        margin = MARGIN * np.ptp(shown, axis=0).max()
        low, high = shown.min(0) - margin, shown.max(0) + margin
        return spread(low[0], high[0]), spread(low[1], high[1])


def _reach(folders: Sequence[Path]) -> float:
    """How far the quadratic model of the flattest point rises by ``RISE``, along the flatter of two eigenvectors."""
    pairs = [store.load(folder / "eigenpairs.h5").eigenvalues[:2] for folder in folders]
    return math.sqrt(2 * RISE / max(float(np.abs(pairs).min()), 1e-12))


def _labels(checkpoints: Sequence[Path]) -> dict[str, Path]:
    """What each checkpoint is called in figures: its regime, with the seed where regimes repeat; else as its file."""
    if all(map(is_minimizer, checkpoints)):
        found = [load_minimizer(path).metadata for path in checkpoints]
        for form in ("{regime}", "{regime} seed {seed}"):
            names = [form.format(**{"regime": "", "seed": "", **metadata}).strip() for metadata in found]
            if len({name for name in names if name}) == len(checkpoints):
                return dict(zip(names, checkpoints, strict=True))
    return folder_names(checkpoints)


def _epochs(checkpoints: Sequence[Path]) -> list[float]:
    """After how many epochs each was saved, where all say so in ascending order; else their numbers."""
    if all(map(is_minimizer, checkpoints)):
        epochs = [float(load_minimizer(path).metadata.get("epochs", 0)) for path in checkpoints]
        if all(earlier < later for earlier, later in pairwise(epochs)):
            return epochs
    return [float(number) for number in range(len(checkpoints))]
