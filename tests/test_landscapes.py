"""Landscapes of saved checkpoints: what each kind leaves, its numbers by hand, interrupts, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from command_line import Ended, Foreign, invoke, refused, results, run, snapshot, weights
from safetensors.torch import load_file
from test_recipes import check_described
from test_resume import KILLED, disturbed

import sharpness as sh
from sharpness import store
from sharpness.checkpoints import Minimizer
from sharpness.errors import ShapeError
from sharpness.journal import HDF5Journal
from sharpness.params import ParamSpace
from sharpness.progress import Progress
from sharpness.recipes import LandscapePlan, landscape, recipe_problem
from sharpness.render import draw_folder
from sharpness.shape import barrier

pytest_plugins = "command_line"
pytestmark = pytest.mark.usefixtures("one_thread", "no_figures")

TRAINED = """
recipe = "digits"
scale = "smoke"
trials = 2
kept_epochs = [1, 2]
followed = ["SB"]
[sb]
epochs = 3
[lb]
epochs = 3
"""
OTHER = """
recipe = "digits"
scale = "smoke"
model = "mlp"
[model_options]
widths = [8]
[sb]
epochs = 1
[lb]
epochs = 1
"""


def trained(text: str, folder: Path) -> Path:
    """Minimizers of a recipe file: ``seed-<s>/<regime>/``, of 60 examples."""
    (folder / "recipe.toml").write_text(text)
    assert invoke("train", folder / "recipe.toml", "--out", folder / "out").code == 0
    return folder / "out"


@pytest.fixture(scope="module")
def minimizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two seeds. Not to be changed."""
    return trained(TRAINED, tmp_path_factory.mktemp("minimizers"))


class Case(NamedTuple):
    """A landscape: its checkpoints, options, and the kind of record in each file that it leaves."""

    checkpoints: tuple[str, ...]
    options: tuple[Any, ...]
    files: dict[str, str]


SB, LB, START = "seed-0/SB/minimizer", "seed-0/LB/minimizer", "seed-0/start"
ITERATES = (START, "seed-0/SB/epoch-0001", "seed-0/SB/epoch-0002", SB)
PLANE = {"plane.h5": "plane"}
AROUND = {**PLANE, "curvature.h5": "axis_curvature"}
TRAINED_CURVE = {"line.h5": "line", "curve.h5": "line"}


def of_each(names: tuple[str, ...], files: dict[str, str]) -> dict[str, str]:
    return {f"{name}/{file}": kind for name in names for file, kind in files.items()}


CASES = {
    "line": Case((SB, LB), ("--points", 7), {"line.h5": "line"}),
    "arc": Case((SB, LB), ("--kind", "arc", "--points", 7), {"curve.h5": "line"}),
    "bezier": Case((SB, LB), ("--kind", "bezier", "--points", 5, "--epochs", 3), TRAINED_CURVE),
    "polygon": Case((SB, LB), ("--kind", "polygon", "--points", 5, "--epochs", 2, "--bends", 2), TRAINED_CURVE),
    "profiles": Case(
        (SB, LB),
        ("--kind", "profiles", "--points", 5, "--directions", 3),
        of_each(("SB", "LB"), {"profiles.h5": "profiles"}),
    ),
    "random of one": Case((SB,), ("--points", 5), AROUND),
    "random of two": Case((SB, LB), ("--kind", "random", "--points", 5), of_each(("SB", "LB"), AROUND)),
    "eigenvectors": Case(
        (SB, LB),
        ("--kind", "eigenvectors", "--points", 3),
        of_each(("SB", "LB"), {**AROUND, "eigenpairs.h5": "eigenpairs"}),
    ),
    "convexity": Case(
        (SB,),
        ("--kind", "eigenvectors", "--points", 3, "--convexity", "--batchnorm", "eval"),
        {**AROUND, "eigenpairs.h5": "eigenpairs", "convexity.h5": "convexity"},
    ),
    "through two": Case((SB, LB), ("--kind", "through", "--points", 7), PLANE),
    "through three": Case((SB, LB, START), ("--points", 7), PLANE),
    "trajectory": Case(ITERATES, ("--points", 7, "--share", 0.5), PLANE),
}


class Scenes:
    """Landscapes of every kind, each made when first asked for. Not to be changed."""

    def __init__(self, folder: Path, minimizers: Path) -> None:
        self.folder, self.minimizers = folder, minimizers
        self.ended: dict[str, Ended] = {}

    def command(self, name: str) -> list[Any]:
        """The command and its options, without --out."""
        return ["landscape", *self.files(*CASES[name].checkpoints), *CASES[name].options]

    def files(self, *checkpoints: str) -> list[Path]:
        return [self.minimizers / f"{checkpoint}.safetensors" for checkpoint in checkpoints]

    def of(self, name: str) -> Path:
        """The folder of one landscape."""
        out = self.folder / name
        if name not in self.ended:
            self.ended[name] = invoke(*self.command(name), "--out", out, "--json")
            assert (self.ended[name].code, self.ended[name].stderr) == (0, "")
        return out

    def record(self, name: str, file: str = "plane.h5") -> Any:
        return store.load(self.of(name) / file)

    def minimizer(self, checkpoint: str) -> Minimizer:
        return sh.load_minimizer(*self.files(checkpoint))

    def theta(self, checkpoint: str) -> torch.Tensor:
        return self.minimizer(checkpoint).point.theta.double()

    def objectives(self) -> dict[str, sh.Objective]:
        return recipe_problem(self.minimizer(SB)).objectives()[0]

    def evaluated(self, checkpoint: str, policy: str = "recompute") -> list[list[float]]:
        """Loss and accuracy on train and test data as the package has them at one point, bit for bit."""
        objectives, place = self.objectives(), self.minimizer(checkpoint).point
        point = objectives["train"].with_statistics(place) if policy == "recompute" else place
        scores = [objective.evaluate(point) for objective in objectives.values()]
        return [[score.loss for score in scores], [score.accuracy for score in scores]]

    def at(self, theta: torch.Tensor) -> tuple[list[float], list[float]]:
        """The same at θ by PyTorch alone: statistics as its own layers find them in one pass of all training data,
        where a running mean is theirs alone."""
        problem = recipe_problem(self.minimizer(SB))
        model = problem.model.train()
        model.load_state_dict(ParamSpace.of(model).unflatten(theta.float()), strict=False)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm1d):
                layer.momentum = 1.0
        with torch.no_grad():
            model(problem.train[0])
            found = [(model.eval()(inputs), targets) for inputs, targets in (problem.train, problem.test)]
        losses = [float(torch.nn.functional.cross_entropy(output.double(), targets)) for output, targets in found]
        return losses, [float((output.argmax(1) == targets).double().mean()) for output, targets in found]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, minimizers: Path) -> Scenes:
    return Scenes(tmp_path_factory.mktemp("scenes"), minimizers)


# Every kind


@pytest.mark.parametrize("name", CASES)
def test_every_kind_leaves_its_files_and_records(name: str, scenes: Scenes) -> None:
    out, case = scenes.of(name), CASES[name]
    extra = {"curve.safetensors"} if "bezier" in name or "polygon" in name else set()
    extra |= {file.replace("eigenpairs.h5", "eigenvectors.safetensors") for file in case.files if "eigenpairs" in file}
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert left == {*case.files, *extra, "run.json"}
    for file, kind in case.files.items():
        (record,) = store.load_all(out / file).values()
        assert record.kind == kind
        assert not hasattr(record, "status") or not (record.status == 0).any()
        check_described(out / file)


@pytest.mark.parametrize("name", CASES)
def test_json_says_what_the_files_say(name: str, scenes: Scenes) -> None:
    out = scenes.of(name)
    printed = json.loads(scenes.ended[name].stdout, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert printed["out"] == str(out)
    files = {file: kind for file, kind in CASES[name].files.items() if kind in ("line", "profiles", "plane")}
    alone = {file: Path(file).stem if kind == "line" else "" for file, kind in files.items()}
    names = [file.split("/")[0] if "/" in file else alone[file] for file in files]
    assert list(printed["landscapes"]) == names  # by regime where there is one for each
    for file, found in zip(files, printed["landscapes"].values(), strict=True):
        record = store.load(out / file)
        assert found["split"] == record.split.tolist() == ["train", "test"]
        assert np.array_equal(np.array(found["loss"], float), record.loss, equal_nan=True)


def test_a_kind_is_chosen_by_the_number_of_checkpoints(scenes: Scenes) -> None:
    kinds = {1: "random", 2: "line", 3: "through", 4: "trajectory", 30: "trajectory"}
    assert {count: LandscapePlan().fitted(count).kind for count in kinds} == kinds
    for name, kind in (("random of one", "random"), ("line", "line"), ("trajectory", "trajectory")):
        assert json.loads((scenes.of(name) / "run.json").read_text())["plan"]["kind"] == kind


def test_the_command_has_the_defaults_of_the_plan(scenes: Scenes) -> None:
    found = json.loads((scenes.of("line") / "run.json").read_text())["plan"]
    assert found == dataclasses.asdict(LandscapePlan("line", points=7))


def test_every_option_reaches_the_plan(scenes: Scenes, tmp_path: Path) -> None:
    common = LandscapePlan(points=3, extent=(-0.5, 1.0), batchnorm="batch", examples=20, seed=3)
    options: list[Any] = ["--points", 3, "--low", -0.5, "--high", 1, "--batchnorm", "batch", "--examples", 20]
    own = {
        "profiles": (
            (SB,),
            {"by": "layer", "hold": False, "directions": 2},
            "--normalise layer --no-hold --directions 2",
        ),
        "through": ((SB, LB), {"share": 0.9}, "--share 0.9"),
        "bezier": ((SB, LB), {"bends": 2, "epochs": 4}, "--bends 2 --epochs 4"),
    }
    told = {name for _, changed, _ in own.values() for name in changed} | {"kind", "points", "extent", "batchnorm"}
    assert told | {"examples", "seed"} == set(vars(LandscapePlan()))
    for kind, (names, changed, more) in own.items():
        out = tmp_path / kind
        command = (
            "landscape",
            *scenes.files(*names),
            *options,
            "--seed",
            3,
            "--kind",
            kind,
            *more.split(),
            "--out",
            out,
        )
        assert invoke(*command).code == 0
        found = json.loads((out / "run.json").read_text())["plan"]
        plan = dataclasses.replace(common, kind=kind, **changed)
        assert found == json.loads(json.dumps(dataclasses.asdict(plan)))
    record = store.load(tmp_path / "profiles" / "profiles.h5")
    assert (record.alpha.tolist(), record.direction.tolist(), record.seed) == ([-0.5, 0.25, 1], [0, 1], 3)
    assert (record.batchnorm, record.directions) == ("batch", "random, normalised by layer")
    assert record.conditions["train"]["examples"] == 20


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("line", ("--share", "0.5")),
        ("profiles", ("--share", "0.5")),
        ("through", ("--no-hold",)),
        ("bezier", ("--normalise", "layer")),
        ("random", ("--directions", "3")),
        ("arc", ("--bends", "2")),
        ("line", ("--epochs", "3")),
        ("line", ("--convexity",)),
        ("profiles", ("--convexity",)),
    ],
)
def test_a_choice_that_a_kind_knows_nothing_of_is_refused(
    kind: str, options: tuple[str, ...], scenes: Scenes, tmp_path: Path
) -> None:
    ended = invoke("landscape", *scenes.files(SB, LB), "--kind", kind, *options, "--out", tmp_path / "out")
    assert refused(ended, 2, f"got it with {kind}")
    assert not (tmp_path / "out").exists()


# Labels


def test_regimes_are_their_names_and_carry_seeds_where_they_repeat(scenes: Scenes, tmp_path: Path) -> None:
    assert scenes.record("line", "line.h5").conditions["ends"] == ["SB", "LB"]
    assert scenes.record("through two").mark.tolist() == ["SB", "LB"]
    assert scenes.record("through three").mark.tolist() == ["SB", "LB", "start"]
    assert scenes.record("through three").directions == "through SB, LB, start"
    both, options = scenes.files(SB, "seed-1/SB/minimizer"), ("--points", 2, "--out")
    assert invoke("landscape", *both, *options, tmp_path / "line").code == 0
    assert store.load(tmp_path / "line" / "line.h5").conditions["ends"] == ["SB seed 0", "SB seed 1"]
    three = scenes.files("seed-1/LB/minimizer", "seed-0/start", SB)
    assert invoke("landscape", *three, *options, tmp_path / "plane").code == 0  # no regime twice: no seeds
    assert store.load(tmp_path / "plane" / "plane.h5").mark.tolist() == ["LB", "start", "SB"]
    assert invoke("landscape", *both, "--kind", "random", *options, tmp_path / "planes").code == 0
    assert {path.name for path in (tmp_path / "planes").iterdir() if path.is_dir()} == {"SB seed 0", "SB seed 1"}


def test_iterates_of_one_run_and_foreign_weights_are_called_as_their_files(
    scenes: Scenes, foreign: Foreign, tmp_path: Path
) -> None:
    command = ("landscape", *scenes.files("seed-0/SB/epoch-0001", SB), "--points", 2, "--out", tmp_path / "iterates")
    assert invoke(*command).code == 0
    assert store.load(tmp_path / "iterates" / "line.h5").conditions["ends"] == ["epoch-0001", "minimizer"]

    ends = foreign.save("a.pt"), foreign.save("b.pt", change=lambda t: t / 2 if t.is_floating_point() else t)
    for kind, more in (("through", ()), ("profiles", ("--directions", 1))):
        options = ("--kind", kind, "--points", 2, *more, "--problem", foreign.problem("function"))
        assert invoke("landscape", *ends, *options, "--out", tmp_path / kind).code == 0
    plane = store.load(tmp_path / "through" / "plane.h5")
    assert (plane.mark.tolist(), plane.directions) == (["a", "b"], "through a, b; second axis random")
    assert (tmp_path / "profiles" / "a" / "profiles.h5").exists()
    assert (tmp_path / "profiles" / "b" / "profiles.h5").exists()


# Extents


@pytest.mark.parametrize(
    ("name", "file", "first", "last"),
    [
        ("line", "line.h5", -1, 2),
        ("arc", "curve.h5", -1, 2),
        ("bezier", "curve.h5", 0, 1),
        ("bezier", "line.h5", 0, 1),
        ("polygon", "curve.h5", 0, 1),
        ("profiles", "SB/profiles.h5", -1, 1),
        ("random of one", "plane.h5", -1, 1),
        ("random of two", "LB/plane.h5", -1, 1),
    ],
)
def test_default_extents(name: str, file: str, first: float, last: float, scenes: Scenes) -> None:
    record = scenes.record(name, file)
    axes = [record.alpha, record.beta] if name.startswith("random") else [record.alpha]
    points = dict(zip(CASES[name].options[::2], CASES[name].options[1::2], strict=True))["--points"]
    for axis in axes:
        assert axis.tolist() == np.linspace(first, last, points).tolist()


@pytest.mark.parametrize("name", ["through two", "through three", "trajectory"])
def test_a_plane_shows_its_points_with_a_quarter_around_them(name: str, scenes: Scenes) -> None:
    record = scenes.record(name)
    shown = record.mark_place if record.walk_place is None else record.walk_place
    margin = max(np.ptp(shown[:, 0]), np.ptp(shown[:, 1])) / 4
    for axis, places in zip((record.alpha, record.beta), shown.T, strict=False):
        assert axis == pytest.approx(np.linspace(places.min() - margin, places.max() + margin, 7), rel=1e-12)
    assert np.ptp(record.alpha) > 1.01 * np.ptp(record.beta)  # the grid is as oblong as what it shows
    assert record.loss.shape == (2, 7, 7)


def test_planes_along_eigenvectors_reach_where_the_flattest_of_them_has_risen_by_a_nat(scenes: Scenes) -> None:
    pairs = [scenes.record("eigenvectors", f"{regime}/eigenpairs.h5") for regime in ("SB", "LB")]
    reach = math.sqrt(2 / min(np.abs(found.eigenvalues).min() for found in pairs))
    for regime in ("SB", "LB"):
        plane = scenes.record("eigenvectors", f"{regime}/plane.h5")
        for axis in (plane.alpha, plane.beta):
            assert axis == pytest.approx([-reach, 0, reach], rel=1e-12)


# Numbers by hand


def by_hand(scenes: Scenes, record: Any, place: torch.Tensor, *index: int) -> bool:
    """Asserts that a record holds there what PyTorch alone finds; float32, through six layers."""
    loss, accuracy = scenes.at(place)
    assert record.loss[:, *index] == pytest.approx(loss, rel=1e-4)
    assert record.accuracy[:, *index] == pytest.approx(accuracy, abs=1e-12)
    return True


def test_a_line_has_its_ends_losses_at_0_and_1_and_goes_straight_on(scenes: Scenes) -> None:
    line, a, b = scenes.record("line", "line.h5"), scenes.theta(SB), scenes.theta(LB)
    assert (line.batchnorm, line.start, line.end) == (
        "recompute",
        scenes.minimizer(SB).point.sha256,
        scenes.minimizer(LB).point.sha256,
    )
    for index, end in ((2, SB), (4, LB)):
        assert [line.loss[:, index].tolist(), line.accuracy[:, index].tolist()] == scenes.evaluated(end)
    for index, alpha in enumerate((-1, -0.5, 0, 0.5, 1, 1.5, 2)):
        assert by_hand(scenes, line, (1 - alpha) * a + alpha * b, index)
    assert np.ptp(line.loss[0]) > 0.01


def test_an_arc_meets_the_line_at_its_ends_and_swings_out_between(scenes: Scenes) -> None:
    line, arc = scenes.record("line", "line.h5"), scenes.record("arc", "curve.h5")
    assert (arc.loss[:, [2, 4]] == line.loss[:, [2, 4]]).all()
    a, b = scenes.theta(SB), scenes.theta(LB)
    assert by_hand(scenes, arc, (a + b) / math.sqrt(2), 3)
    assert by_hand(scenes, arc, -b, 0)


def test_a_trained_curve_lies_beside_its_line(scenes: Scenes) -> None:
    a, b = scenes.theta(SB), scenes.theta(LB)
    for name in ("bezier", "polygon"):
        curve, line = scenes.record(name, "curve.h5"), scenes.record(name, "line.h5")
        for index, end in ((0, SB), (-1, LB)):
            assert [curve.loss[:, index].tolist(), curve.accuracy[:, index].tolist()] == scenes.evaluated(end)
        assert (curve.loss[:, [0, -1]] == line.loss[:, [0, -1]]).all()
        assert curve.loss[0, 2] < line.loss[0, 2]  # what the training of the bends is for
        bends = load_file(scenes.of(name) / "curve.safetensors")
        if name == "bezier":
            assert by_hand(scenes, curve, (a + 2 * bends["bend.0"].double() + b) / 4, 2)
        else:
            first, second = bends["bend.0"].double(), bends["bend.1"].double()
            assert by_hand(scenes, curve, (first + second) / 2, 2)
            assert by_hand(scenes, curve, 0.25 * a + 0.75 * first, 1)
        assert (curve.start, curve.end) == (line.start, line.end)
        assert len(curve.bends) == 64
        assert line.bends == ""


@pytest.mark.parametrize(("regime", "checkpoint"), [("SB", SB), ("LB", LB)])
def test_every_profile_passes_through_its_minimizer(regime: str, checkpoint: str, scenes: Scenes) -> None:
    profiles = scenes.record("profiles", f"{regime}/profiles.h5")
    loss, accuracy = scenes.evaluated(checkpoint)
    assert profiles.loss[:, :, 2].tolist() == [[value] * 3 for value in loss]
    assert profiles.accuracy[:, :, 2].tolist() == [[value] * 3 for value in accuracy]
    assert len({*profiles.loss[0, :, 0], *profiles.loss[0, :, -1]}) == 6


def test_a_random_plane_has_its_minimizer_in_the_middle(scenes: Scenes) -> None:
    one = scenes.record("random of one")
    for regime, checkpoint in (("SB", SB), ("LB", LB)):
        plane = scenes.record("random of two", f"{regime}/plane.h5")
        assert [plane.loss[:, 2, 2].tolist(), plane.accuracy[:, 2, 2].tolist()] == scenes.evaluated(checkpoint)
        assert plane.origin == scenes.minimizer(checkpoint).point.sha256
        assert (plane.batchnorm, plane.directions) == (
            "recompute",
            "random, normalised by filter; biases and norm layers held",
        )
        assert (plane.loss == one.loss).all() == (regime == "SB")  # of one or of two, the same plane


def axes_through(scenes: Scenes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Origin and axes of the plane through SB, LB and the start: orthogonal and of one length."""
    a, b, c = (scenes.theta(checkpoint) for checkpoint in (SB, LB, START))
    first = b - a
    aside = (c - a) - ((c - a) @ first) / (first @ first) * first
    return a, first, aside * first.norm() / aside.norm()


def test_a_plane_through_three_has_their_losses_at_their_marks(scenes: Scenes, tmp_path: Path) -> None:
    command = ("landscape", *scenes.files(SB, LB, START), "--low", -1, "--high", 1, "--points", 3)
    assert invoke(*command, "--out", tmp_path / "out").code == 0
    plane, (a, first, second) = store.load(tmp_path / "out" / "plane.h5"), axes_through(scenes)
    assert plane.mark_place[:2] == pytest.approx(np.array([[0, 0, 0], [1, 0, 0]]), abs=1e-5)
    alpha, beta, distance = plane.mark_place[2]
    assert torch.allclose(a + alpha * first + beta * second, scenes.theta(START), atol=1e-5)
    assert distance == pytest.approx(0, abs=1e-4)
    assert beta > 0
    assert plane.length == pytest.approx([float(first.norm()), float(second.norm())], rel=1e-6)
    assert plane.cosine == pytest.approx(0, abs=1e-6)
    assert [plane.loss[:, 1, 1].tolist(), plane.accuracy[:, 1, 1].tolist()] == scenes.evaluated(SB)  # α = β = 0
    assert plane.loss[:, 2, 1] == pytest.approx(scenes.evaluated(LB)[0], rel=1e-5)  # α = 1, β = 0
    for row, column in np.ndindex(3, 3):
        assert by_hand(scenes, plane, a + (row - 1) * first + (column - 1) * second, row, column)


def test_a_plane_through_two_has_their_line_in_the_middle(scenes: Scenes) -> None:
    plane, a, b = scenes.record("through two"), scenes.theta(SB), scenes.theta(LB)
    assert plane.alpha == pytest.approx([-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25], abs=1e-6)
    assert plane.beta == pytest.approx(np.linspace(-0.25, 0.25, 7), abs=1e-6)
    for index, alpha in enumerate(plane.alpha):
        assert by_hand(scenes, plane, (1 - alpha) * a + alpha * b, index, 3)
    assert (np.ptp(plane.loss[0], axis=1) > 0).all()


def test_a_trajectory_ends_in_the_origin_and_lies_on_its_plane(scenes: Scenes) -> None:
    plane = scenes.record("trajectory")
    thetas = torch.stack([scenes.theta(checkpoint) for checkpoint in ITERATES])
    assert plane.epoch.tolist() == [0, 1, 2, 3]
    assert plane.origin == scenes.minimizer(SB).point.sha256
    assert plane.walk_place[-1] == pytest.approx([0, 0, 0], abs=1e-9)
    # a place on the plane and the distance from it make the distance from the end
    distances = (thetas - thetas[-1]).norm(dim=1).numpy()
    assert np.linalg.norm(plane.walk_place, axis=1) == pytest.approx(distances, rel=1e-5)
    _, singular, components = torch.linalg.svd(thetas - thetas.mean(0), full_matrices=False)
    assert plane.explained == pytest.approx((singular.square() / singular.square().sum())[:2].numpy(), rel=1e-5)
    places = (thetas[0] - thetas[-1]) @ components[:2].T
    signs = torch.tensor(np.sign(plane.walk_place[0, :2])) * places.sign()
    assert (signs * places).numpy() == pytest.approx(plane.walk_place[0, :2], rel=1e-4)
    corner = torch.tensor([plane.alpha[0], plane.beta[-1]]) * signs
    assert by_hand(scenes, plane, thetas[-1] + corner @ components[:2], 0, -1)
    assert plane.mark.tolist() == ["start"]
    assert plane.mark_place[0] == pytest.approx(plane.walk_place[0])
    assert plane.length == pytest.approx([1, 1])


def test_a_share_of_a_plane_is_evaluated_and_no_more(scenes: Scenes) -> None:
    plane = scenes.record("trajectory")
    evaluated = plane.status == 1
    assert evaluated.sum() == 24  # half of 49
    assert (plane.status[~evaluated] == 3).all()
    assert (np.isfinite(plane.loss) == evaluated).all()
    assert plane.share == 0.5


@pytest.mark.parametrize(("regime", "checkpoint"), [("SB", SB), ("LB", LB)])
def test_eigenvectors_are_those_of_the_hessian_and_curvature_along_them_is_their_eigenvalue(
    regime: str, checkpoint: str, scenes: Scenes
) -> None:
    pairs = scenes.record("eigenvectors", f"{regime}/eigenpairs.h5")
    vectors = load_file(scenes.of("eigenvectors") / regime / "eigenvectors.safetensors")["vectors"]
    assert pairs.converged.all()
    residuals = sh.Hessian(scenes.objectives()["train"], scenes.minimizer(checkpoint)) @ vectors
    residuals -= vectors * torch.tensor(pairs.eigenvalues, dtype=torch.float32)
    assert (residuals.norm(dim=0).numpy() <= pairs.residuals + 1e-4 * pairs.eigenvalues).all()  # products in float32
    curvature = scenes.record("eigenvectors", f"{regime}/curvature.h5")
    assert (curvature.batchnorm, curvature.axis.tolist()) == ("eval", ["α", "β"])
    assert (np.abs(curvature.product - pairs.eigenvalues) <= pairs.residuals + 1e-4 * pairs.eigenvalues).all()
    plane = scenes.record("eigenvectors", f"{regime}/plane.h5")
    assert (plane.batchnorm, plane.directions) == ("recompute", "top two Hessian eigenvectors")
    assert [plane.loss[:, 1, 1].tolist(), plane.accuracy[:, 1, 1].tolist()] == scenes.evaluated(checkpoint)


def test_in_the_middle_of_a_map_of_convexity_is_the_top_eigenvalue(scenes: Scenes) -> None:
    plane, convexity, pairs = (
        scenes.record("convexity", f"{name}.h5") for name in ("plane", "convexity", "eigenpairs")
    )
    assert plane.batchnorm == convexity.batchnorm == "eval"
    assert [plane.loss[:, 1, 1].tolist(), plane.accuracy[:, 1, 1].tolist()] == scenes.evaluated(SB, "eval")
    assert convexity.converged.all()
    within = convexity.residual[1, 1] + pairs.residuals[0] + 1e-4 * pairs.eigenvalues[0]
    assert abs(convexity.largest[1, 1] - pairs.eigenvalues[0]) <= within
    assert (convexity.smallest < convexity.largest).all()
    assert (convexity.first, convexity.second) == (plane.first, plane.second)
    assert (convexity.alpha.tolist(), convexity.beta.tolist()) == (plane.alpha.tolist(), plane.beta.tolist())


def test_derivatives_are_those_of_the_statistics_that_have_any(scenes: Scenes, tmp_path: Path) -> None:
    """Losses re-estimate statistics; the curvature beside them is that of the running ones, or of batches if asked."""
    assert scenes.record("random of one", "curvature.h5").batchnorm == "eval"
    command = ("landscape", *scenes.files(SB), "--kind", "eigenvectors", "--points", 2, "--batchnorm", "batch")
    assert invoke(*command, "--out", tmp_path / "out").code == 0
    plane, curvature, pairs = (store.load(tmp_path / "out" / f"{n}.h5") for n in ("plane", "curvature", "eigenpairs"))
    assert plane.batchnorm == curvature.batchnorm == pairs.conditions["batchnorm"] == "batch"
    assert (np.abs(curvature.product - pairs.eigenvalues) <= pairs.residuals + 1e-4 * pairs.eigenvalues).all()


def test_a_linear_regression_has_the_curvature_of_its_data_everywhere(foreign: Foreign, tmp_path: Path) -> None:
    """f = mean (x·w + b − t)²: H = 2/N XᵀX with a column of ones, second differences are exact."""
    torch.save({"weight": torch.ones(1, 64) / 8, "bias": torch.zeros(1)}, foreign.folder / "w.pt")
    command = ("landscape", foreign.folder / "w.pt", "--problem", foreign.problem("slope"), "--points", 3)
    assert invoke(*command, "--convexity", "--dtype", "float64", "--out", tmp_path / "out").code == 0
    plane, curvature, convexity = (
        store.load(tmp_path / "out" / f"{name}.h5") for name in ("plane", "curvature", "convexity")
    )
    assert {plane.batchnorm, curvature.batchnorm, convexity.batchnorm} == {"none"}
    inputs = sh.data.load("digits").train[0][:60].double()
    columns = torch.cat([inputs, torch.ones(60, 1)], 1)
    hessian = 2 / 60 * columns.T @ columns
    values = torch.linalg.eigvalsh(hessian)
    assert (np.abs(convexity.largest - float(values[-1])) <= convexity.residual + 1e-9).all()
    assert (np.abs(convexity.smallest) <= convexity.residual + 1e-9).all()  # 60 examples of 65 parameters
    for axis, losses in enumerate((plane.loss[0, :, 1], plane.loss[0, 1])):
        # places on the plane are float32, as the weights are
        assert losses[0] - 2 * losses[1] + losses[2] == pytest.approx(curvature.product[axis], rel=1e-6)
        # rounding: 4 eps f / h² at the smallest h, 2⁻¹²
        assert curvature.second_difference[axis] == pytest.approx(curvature.product[axis], abs=2e-7 * losses[1])


# Interrupts


class Interrupting:
    """A report that is interrupted after so many reports of progress; ``told`` counts them by stage."""

    def __init__(self) -> None:
        self.told: dict[str, int] = {}
        self.left = math.inf

    def __call__(self, title: str) -> Progress:
        def progress(done: int, total: int | None, note: str = "") -> None:
            self.told[title] = self.told.get(title, 0) + 1
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

        return progress


EVALUATED = {  # points and epochs of each stage
    "line": {"line": 7},
    "bezier": {"training the curve": 3, "line": 5, "curve": 5},
    "polygon": {"training the curve": 2, "line": 5, "curve": 5},
    "profiles": {"SB profiles": 15, "LB profiles": 15},
    "random of two": {"SB plane": 25, "LB plane": 25},
    "eigenvectors": {"SB plane": 9, "LB plane": 9},
    "convexity": {"plane": 9, "convexity": 9},
    "through two": {"plane": 49},
    "trajectory": {"plane": 24},
}


@pytest.mark.parametrize("name", EVALUATED)
def test_interrupted_again_and_again_it_ends_with_the_same_bits_and_computes_nothing_twice(
    name: str, scenes: Scenes, tmp_path: Path
) -> None:
    undisturbed = scenes.of(name)
    configuration = json.loads((undisturbed / "run.json").read_text())
    plan, files = LandscapePlan(**configuration["plan"]), scenes.files(*CASES[name].checkpoints)
    options = {"convexity": "--convexity" in CASES[name].options, "device": configuration["device"]}
    report, interrupts = Interrupting(), 0
    while True:
        report.left = 2**interrupts - 1
        try:
            landscape(files, tmp_path / "out", plan, report=report, **options)
        except KeyboardInterrupt:
            interrupts += 1
        else:
            break
    assert interrupts >= 3
    assert results(tmp_path / "out") == results(undisturbed)
    assert weights(tmp_path / "out") == weights(undisturbed)
    left, expected = ({path.relative_to(out) for path in out.rglob("*")} for out in (tmp_path / "out", undisturbed))
    assert left == expected
    assert {title: report.told[title] for title in EVALUATED[name]} == EVALUATED[name]


@pytest.mark.parametrize(
    ("name", "troubles"),
    [
        (
            "bezier",
            [
                ["replace", "run.json", 1, "SIGKILL"],
                ["replace", "training.safetensors", 2, "SIGKILL"],  # the second epoch trained, not kept
                ["replace", "curve.safetensors", 1, "SIGKILL"],
                ["unlink", "training.safetensors", 1, "SIGKILL"],
                ["flush", "line.h5", 4, "SIGKILL"],  # values written, their status not
                ["flush", "curve.h5", 7, "SIGKILL"],
            ],
        ),
        (
            "convexity",
            [
                ["flush", "eigenpairs.products.h5", 7, "SIGKILL"],
                ["replace", "eigenpairs.h5", 1, "SIGKILL"],
                ["replace", "eigenvectors.safetensors", 1, "SIGKILL"],
                ["unlink", "eigenpairs.products.h5", 1, "SIGKILL"],
                ["flush", "plane.h5", 6, "SIGKILL"],
                ["flush", "convexity.h5", 3, "SIGKILL"],
                ["replace", "curvature.h5", 1, "SIGKILL"],
            ],
        ),
    ],
)
def test_killed_it_ends_with_the_same_bits(
    name: str, troubles: list[list[Any]], scenes: Scenes, tmp_path: Path
) -> None:
    undisturbed = scenes.of(name)
    ends = disturbed([*troubles, ["nothing"]], *scenes.command(name), "--out", tmp_path / "out", "--quiet")
    assert [end.code for end in ends] == [*[KILLED] * len(troubles), 0]
    assert ends[-1] == (0, "", "")
    assert results(tmp_path / "out") == results(undisturbed)
    assert weights(tmp_path / "out") == weights(undisturbed)
    left, expected = ({path.relative_to(out) for path in out.rglob("*")} for out in (tmp_path / "out", undisturbed))
    assert left == expected


@pytest.mark.parametrize("name", CASES)
def test_the_same_command_finds_everything_done(name: str, scenes: Scenes, tmp_path: Path) -> None:
    before = {path: content for path, (_, content) in snapshot(scenes.of(name)).items()}
    ended = invoke(*scenes.command(name), "--out", scenes.of(name), "--json")
    assert ended == scenes.ended[name]
    assert {path: content for path, (_, content) in snapshot(scenes.of(name)).items()} == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--points", 9), "plan.points (7 there, 9 here)"),
        (("--kind", "arc"), "plan.kind ('line' there, 'arc' here)"),
        (("--seed", 1), "plan.seed (0 there, 1 here)"),
        (("--low", 0, "--high", 1), "plan.extent (None there, [0.0, 1.0] here)"),
        (("--batchnorm", "eval"), "plan.batchnorm (None there, 'eval' here)"),
        (("--examples", 20), "plan.examples (0 there, 20 here)"),
        (("--dtype", "float64"), "dtype ('torch.float32' there, 'torch.float64' here)"),
    ],
)
def test_another_option_is_another_configuration(options: tuple[Any, ...], difference: str, scenes: Scenes) -> None:
    before = snapshot(scenes.of("line"))
    ended = invoke(*scenes.command("line"), *options, "--out", scenes.of("line"))
    assert refused(ended, 2, difference, "Choose another --out")
    assert snapshot(scenes.of("line")) == before


def test_other_checkpoints_are_another_configuration(scenes: Scenes) -> None:
    for checkpoints in ((LB, SB), (SB, START)):
        command = ("landscape", *scenes.files(*checkpoints), *CASES["line"].options, "--out", scenes.of("line"))
        assert refused(invoke(*command), 2, "checkpoints (['", "Choose another --out")


def test_a_plane_in_progress_can_be_drawn_and_has_one_writer(scenes: Scenes, tmp_path: Path) -> None:
    out, (checkpoint,) = tmp_path / "out", scenes.files(SB)
    report = Interrupting()
    report.left = 7
    with pytest.raises(KeyboardInterrupt):
        landscape([checkpoint], out, LandscapePlan("random", 5), report=report)
    with HDF5Journal(out / "plane.h5", "plane") as journal:
        journal.commit(8, {"loss": [1.0, 2.0], "accuracy": [0.5, 0.5]})
        drawn = run("figures", out / "plane.h5", "--format", "png")
        assert (drawn.code, drawn.stdout.split(), drawn.stderr) == (
            0,
            [str(out / "plane.png"), str(out / "plane-surface.png")],
            "",
        )
        second = run("landscape", checkpoint, "--points", 5, "--out", out)
        assert refused(second, 2, str(out / "plane.h5"), "another process is writing it")
        assert journal.status.reshape(-1).tolist() == [1] * 9 + [0] * 16


def test_what_is_printed_and_drawn(scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpness.render.draw_folder", draw_folder)
    out = tmp_path / "out"
    ended = invoke(*scenes.command("random of two"), "--out", out)
    assert (ended.code, ended.stderr) == (0, "")
    parts = (
        "SB, batch norm: recompute",
        "LB, batch norm: recompute",
        "roughness, train",
        "basin to",
        "area in weights",
    )
    parts += (
        "curvature along α (batch norm: eval): vᵀHv",
        "curvature along β (batch norm: eval): second difference, h =",
    )
    for part in (*parts, f"Results in {out}, figures in {out / 'figures'}"):
        assert part in ended.stdout, part
    stems = ("plane", "plane-surface", "curvature")
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{s}.{e}" for s in stems for e in ("svg", "pdf", "png")
    }
    assert results(out) == results(scenes.of("random of two"))


def test_a_barrier_is_printed_with_its_place(scenes: Scenes, tmp_path: Path) -> None:
    command = ("landscape", *scenes.files(SB, "seed-1/SB/minimizer"), "--points", 7, "--out", tmp_path / "out")
    printed = invoke(*command).stdout
    for split in ("train", "test"):
        height, alpha = barrier(store.load(tmp_path / "out" / "line.h5"), split)
        assert height > 0.01
        (row,) = [line for line in printed.splitlines() if f"barrier, {split} (nat)" in line]
        assert f"{height:.4g} at α = {alpha:.3g}" in row


# Refusals


@pytest.mark.parametrize(
    ("kind", "counts", "wanted"),
    [
        ("line", (1, 3), "2"),
        ("arc", (1, 3), "2"),
        ("bezier", (1, 3), "2"),
        ("polygon", (1, 3), "2"),
        ("profiles", (25,), "1 to 24"),
        ("random", (25,), "1 to 24"),
        ("eigenvectors", (25,), "1 to 24"),
        ("through", (1, 4), "2 to 3"),
        ("trajectory", (1, 2), "3 or more"),
    ],
)
def test_a_kind_takes_its_number_of_checkpoints(
    kind: str, counts: tuple[int, ...], wanted: str, foreign: Foreign
) -> None:
    for count in counts:
        files = [foreign.folder / f"{number}.pt" for number in range(count)]  # they need not even be there
        ended = invoke("landscape", *files, "--kind", kind, "--out", foreign.folder / "out")
        assert refused(ended, 2, f"expected {wanted} checkpoints for a landscape of kind {kind}; got {count}")
    assert not (foreign.folder / "out").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--kind", "cube"), ["kind = 'cube' (one of line, arc, bezier, polygon, profiles, random, eigenvectors, "]),
        (("--low", "0"), ["--low and --high together"]),
        (("--high", "1"), ["--low and --high together"]),
        (("--low", "1", "--high", "1"), ["extent = (1.0, 1.0) (finite, in ascending order)"]),
        (("--low", "2", "--high", "1"), ["extent = (2.0, 1.0)"]),
        (("--low", "nan", "--high", "1"), ["extent = (nan, 1.0)"]),
        (("--low=-inf", "--high", "1"), ["extent = (-inf, 1.0)"]),
        (("--share", "0"), ["share = 0.0 (in (0, 1], of four points or more)"]),
        (("--share", "-0.5"), ["share = -0.5"]),
        (("--share", "1.1"), ["share = 1.1"]),
        (("--share", "nan"), ["share = nan"]),
        (("--share", "0.3", "--points", "3"), ["share = 0.3"]),  # 2 of 9 points, and a plane has four corners
        (("--share", "0.9", "--points", "2"), ["points = 2 (>= 3 along each axis)"]),
        (("--batchnorm", "train"), ["batchnorm = 'train' (one of eval, batch, recompute)"]),
        (("--normalise", "row"), ["by = 'row' (one of filter, layer, model, weight, none)"]),
        (("--kind", "cube", "--share", "2"), ["kind = 'cube'", "share = 2.0"]),
    ],
)
@pytest.mark.parametrize("kind", ["bezier", "eigenvectors"])
def test_a_choice_out_of_range_is_refused_before_anything_is_computed(
    kind: str, options: tuple[str, ...], parts: list[str], scenes: Scenes, tmp_path: Path
) -> None:
    ended = invoke("landscape", *scenes.files(SB, LB), "--kind", kind, *options, "--out", tmp_path / "out")
    assert refused(ended, 2, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [("--points", 1), ("--directions", 0), ("--bends", 0), ("--epochs", 0), ("--examples", -1)]
)
def test_a_count_out_of_range_is_refused(option: tuple[str, int], scenes: Scenes, tmp_path: Path) -> None:
    ended = invoke("landscape", *scenes.files(SB, LB), *option, "--out", tmp_path / "out")
    assert (ended.code, option[0] in ended.stderr) == (2, True)
    with pytest.raises(ShapeError, match=f"{option[0][2:]} = {option[1]} "):
        LandscapePlan(**{option[0][2:]: option[1]})
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimizer of a smaller model."""
    return trained(OTHER, tmp_path_factory.mktemp("other")) / "seed-0" / "LB" / "minimizer.safetensors"


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("line", 1),
        ("bezier", 1),
        ("profiles", 1),
        ("random", 1),
        ("eigenvectors", 1),
        ("through", 2),
        ("trajectory", 2),
    ],
)
def test_checkpoints_of_two_models_are_refused(
    kind: str, count: int, scenes: Scenes, other: Path, tmp_path: Path
) -> None:
    files = scenes.files(SB, START)[:count]
    command = ("landscape", *files, other, "--kind", kind, "--points", 2, "--out", tmp_path / "out")
    assert refused(invoke(*command), 2, "θ of ", f"of shape ({scenes.theta(SB).numel()},)")
    assert not (tmp_path / "out").exists()


def test_what_has_no_plane_is_refused(scenes: Scenes, foreign: Foreign) -> None:
    out = ("--points", 2, "--out", foreign.folder / "out")
    one, problem = foreign.save("a.pt"), ("--problem", foreign.problem("function"))
    assert refused(invoke("landscape", one, one, "--kind", "through", *problem, *out), 2, "got one of them twice")
    same = foreign.save("b.pt")
    assert refused(invoke("landscape", one, same, "--kind", "through", *problem, *out), 2, "distinct points", "a, b")
    half, third = (foreign.save(f"{n}.pt", change=lambda t, n=n: t / n if t.is_floating_point() else t) for n in (2, 3))
    assert refused(invoke("landscape", one, half, third, *problem, *out), 2, "not on one line", "a, 2, 3")
    command = ("landscape", one, half, third, "--kind", "trajectory")
    assert refused(invoke(*command, *problem, *out), 2, "span a plane", "on a line")
    assert refused(invoke("landscape", *scenes.files(SB), one, *out), 2, "--problem FILE.py:NAME", "a.pt")
    assert not list(foreign.folder.rglob("*.h5"))
    # a start that failed at once does not occupy its folder
    assert invoke("landscape", one, half, *problem, *out).code == 0
