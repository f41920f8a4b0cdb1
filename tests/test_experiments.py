"""Experiments: every recipe at its smallest scale, and each of its results from first principles."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Ended, contents, invoke, refused, results, weights
from test_recipes import check_described
from test_resume import KILLED, disturbed

import sharpness as sh
from sharpness import store
from sharpness.checkpoints import Minimizer
from sharpness.data import Data, load
from sharpness.errors import CheckpointError, ShapeError
from sharpness.params import ParamSpace, Point
from sharpness.recipes import RECIPES, Experiment, Place, from_toml, recipe_named, recipe_problem, train_regimes
from sharpness.recipes.registry import override
from sharpness.render import PAPER, draw_folder
from sharpness.training import TrainingPlan, train

pytest_plugins = "command_line"
pytestmark = pytest.mark.usefixtures("one_thread")

TRAINING = [name for name in RECIPES if name != "keskar-sketch"]
COMPARING = [name for name in TRAINING if name != "dinh-rescaling"]


class Runs:
    """A folder of finished runs at smoke scale, each made when first asked for. Not to be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended: dict[str, Ended] = {}

    def __call__(self, *names: str) -> Path:
        """The folder, with the runs of these recipes in it."""
        for name in names:
            if name not in self.ended:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("sharpness.render.draw_folder", lambda folder, formats=(): [])
                    command = ("run", name, "--scale", "smoke", "--out", self.folder / name, "--json")
                    self.ended[name] = invoke(*command)
        return self.folder

    def of(self, name: str) -> Path:
        """The folder of one run."""
        return self(name) / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def parameters_of(name: str) -> Experiment:
    return recipe_named(name, "smoke").experiment


def data_of(name: str) -> Data:
    return load(parameters_of(name).data)


def objectives_of(name: str, examples: int = 0) -> dict[str, sh.Objective]:
    """The objectives of a recipe's first seed, made from the data themselves: training on the first ``examples``."""
    parameters, data = parameters_of(name), data_of(name)
    model = parameters.problem(data, 0).model
    counts = {"train": examples or parameters.train_examples, "test": parameters.test_examples}
    found = {}
    for split, count in counts.items():
        inputs, targets = (part[:count] for part in getattr(data, split))
        if inputs.ndim == 4:  # laid out as in a run: other kernels of convolutions give other last bits
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        found[split] = sh.Objective.from_module(model, sh.cross_entropy, (inputs, targets))[0]
    return found


def minimizer(run: Path, place: str, file: str = "minimizer") -> Minimizer:
    return sh.load_minimizer(run / "seed-0" / place / f"{file}.safetensors")


def settled(end: Minimizer, name: str) -> Minimizer:
    """The end of training with the batch-norm statistics that the recipe gives its minimizers."""
    if parameters_of(name).statistics == "running":
        return end
    statistics = objectives_of(name)["train"].with_statistics(end).buffers
    return dataclasses.replace(end, buffers={**end.buffers, **statistics})


def same_weights(found: Minimizer, expected: Minimizer) -> bool:
    """Asserts that parameters and buffers are the same bits."""
    for ours, theirs in ((found.parameters, expected.parameters), (found.buffers, expected.buffers)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return True


# Every recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_ends_well_and_finds_something(name: str, runs: Runs) -> None:
    out, ended = runs.of(name), runs.ended[name]
    assert (ended.code, ended.stderr) == (0, "")
    printed = json.loads(ended.stdout, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert printed["out"] == str(out)
    assert printed["table"]
    assert all(entry.strip() for row in printed["table"] for entry in row)
    claimed = json.loads((out / "run.json").read_text())
    assert (claimed["recipe"], claimed["scale"]) == (name, "smoke")


@pytest.mark.parametrize("name", COMPARING)
def test_every_regime_is_compared_by_finite_numbers(name: str, runs: Runs) -> None:
    out, parameters = runs.of(name), parameters_of(name)
    compared = store.load(out / "comparison.h5")
    assert compared.regime.tolist() == list(parameters.regimes)
    for column in ("loss", "accuracy", "eigenvalues", "residuals", "sharpness", "first_order", "distance"):
        values = getattr(compared, column)
        assert values.shape[:2] == (len(parameters.regimes), 1), column
        assert np.isfinite(values).all(), column
    found = {path.name for path in (out / "seed-0").iterdir() if path.is_dir()}
    assert found == set(parameters.regimes)
    # no state of training or of a search is left behind
    assert not [*out.rglob("training.safetensors"), *out.rglob("*.products.h5"), *out.rglob("*.part")]


def test_kinds_of_files_that_only_experiments_leave_are_described(runs: Runs) -> None:
    files = [
        runs.of("keskar-f1") / "seed-0" / "SB" / "trajectory.h5",
        runs.of("keskar-f1") / "seed-0" / "curve.h5",
        runs.of("li-weight-decay") / "seed-0" / "LB-decay" / "profile.h5",
        runs.of("li-weight-decay") / "seed-0" / "line-SB-decay-LB-decay.h5",
        runs.of("dinh-rescaling") / "rescaling.h5",
        runs.of("keskar-sketch") / "sketch.h5",
    ]
    for file in files:
        check_described(file)
        assert (store.load(file).status == 1).all()


def test_the_sketch_is_the_closed_form(runs: Runs) -> None:
    record = store.load(runs.of("keskar-sketch") / "sketch.h5")
    for row, shift in enumerate((0.0, 0.15)):
        x = record.alpha - shift
        expected = 1 - 0.5 * np.exp(-((x + 1.2) ** 2) / (2 * 0.7**2)) - 0.5 * np.exp(-((x - 1.4) ** 2) / (2 * 0.12**2))
        # a few float64 operations on numbers of order 1; the shift is a float32 target, off by 6e-9, the slope below 3
        assert np.allclose(record.loss[row], expected, rtol=0, atol=1e-7 if shift else 1e-14)


# Figures of published work


TABLED = set(PAPER) - {"keskar-1", "keskar-5", "keskar-6", "keskar-7"}
SMOKE = "smoke scale: a test of the program, not a result"


@pytest.mark.parametrize("name", PAPER)
def test_every_published_figure_is_drawn_and_says_that_it_is_smoke(name: str, runs: Runs, tmp_path: Path) -> None:
    folder = runs(*PAPER[name].recipes)
    ended = invoke("figures", name, "--runs", folder, "--out", tmp_path, "--format", "svg", "--json")
    assert (ended.code, ended.stderr) == (0, "")
    tables = {f"{name}-table.{ending}" for ending in ("md", "csv", "tex")} if name in TABLED else set()
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.svg", *tables}
    assert {Path(path) for path in json.loads(ended.stdout)} == set(tmp_path.iterdir())
    svg = (tmp_path / f"{name}.svg").read_text()
    said = " ".join(re.findall("<!-- (.*?) -->", svg, re.DOTALL))  # text is drawn as outlines, with its words beside
    note = "a sketch: no network, no data" if name == "keskar-1" else SMOKE
    assert note in said
    if name in TABLED:
        assert SMOKE in (tmp_path / f"{name}-table.md").read_text().replace("Smoke", "smoke")
        assert len((tmp_path / f"{name}-table.csv").read_text().splitlines()) > 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("li-weight-decay", {"line-SB-LB", "line-SB-decay-LB-decay", "seed-0-profile"}),
        ("keskar-f1", {"line", "curve", "seed-0-trajectory"}),
    ],
)
def test_the_folder_of_a_run_is_drawn(name: str, expected: set[str], runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.of(name), tmp_path / name)
    written = draw_folder(tmp_path / name, ["svg"])
    every = expected | {"comparison", "table", "seed-0-history"}
    assert {path.name for path in written} == {f"{stem}.svg" for stem in every} | {
        f"table.{ending}" for ending in ("md", "csv", "tex")
    }
    assert all(path.parent == tmp_path / name / "figures" and path.stat().st_size > 0 for path in written)


def test_the_folder_of_the_rescaling_is_drawn(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.of("dinh-rescaling"), tmp_path / "dinh-rescaling")
    written = draw_folder(tmp_path / "dinh-rescaling", ["svg"])
    assert {path.name for path in written} == {"rescaling.svg", "seed-0-history.svg"}


# Warm starts

WARM = "keskar-warm-start"


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_large_batches_begin_exactly_where_small_ones_were(epoch: int, runs: Runs) -> None:
    """Trained again from there, they end at the same bits."""
    run, parameters = runs.of(WARM), parameters_of(WARM)
    problem, regime = parameters.problem(data_of(WARM), 0), f"LB-from-{epoch}"
    if epoch:
        minimizer(run, "SB", f"epoch-{epoch:04}").load_into(problem.model)
    end, _ = train(problem, parameters.regimes[regime], seed=0)
    assert same_weights(settled(end, WARM), minimizer(run, regime))


def test_the_first_start_is_that_of_the_seed_and_starts_differ(runs: Runs) -> None:
    run = runs.of(WARM)
    begun = parameters_of(WARM).problem(data_of(WARM), 0).model
    assert same_weights(minimizer(run, "", "start"), Minimizer.of(begun))
    ends = [minimizer(run, f"LB-from-{epoch}").point.sha256 for epoch in (0, 1, 3)]
    assert len({*ends, minimizer(run, "SB").point.sha256}) == 4


def test_a_kept_iterate_is_where_training_for_so_many_epochs_ends(runs: Runs) -> None:
    run, parameters = runs.of(WARM), parameters_of(WARM)
    for epoch in (1, 3):
        plan = dataclasses.replace(parameters.regimes["SB"], epochs=epoch)  # a constant rate, whatever the end
        end, _ = train(parameters.problem(data_of(WARM), 0), plan, seed=0)
        kept = minimizer(run, "SB", f"epoch-{epoch:04}")
        assert same_weights(end, kept)
        assert kept.metadata["epochs"] == epoch
    assert same_weights(settled(kept, WARM), minimizer(run, "SB"))


def test_iterates_are_kept_where_something_begins_or_follows_and_nowhere_else(runs: Runs, tmp_path: Path) -> None:
    def kept(out: Path) -> set[str]:
        return {str(path.relative_to(out)) for path in out.rglob("epoch-*")}

    assert kept(runs.of(WARM)) == {f"seed-0/SB/epoch-000{epoch}.safetensors" for epoch in (1, 3)}
    both = {f"seed-0/{regime}/epoch-000{epoch}.safetensors" for regime in ("SB", "LB") for epoch in (1, 2)}
    assert kept(runs.of("keskar-f1")) == both
    assert kept(runs.of("keskar-curves")) == set()
    parameters = dataclasses.replace(
        parameters_of(WARM), trials=2, seed=3, followed=("LB-from-0",), kept_epochs=(1, 2, 3)
    )
    train_regimes(WARM, "smoke", parameters, Place(tmp_path / "out"))
    every = {f"seed-{seed}/SB/epoch-000{epoch}.safetensors" for seed in (3, 4) for epoch in (1, 3)}
    followed = {f"seed-3/LB-from-0/epoch-000{epoch}.safetensors" for epoch in (1, 2)}  # of the first seed
    assert kept(tmp_path / "out") == every | followed


def test_a_start_that_training_did_not_reach_is_refused(tmp_path: Path) -> None:
    # no epoch takes nine tenths off the loss: SB stops after its second
    text = 'recipe = "keskar-warm-start"\nscale = "smoke"\n[sb]\npatience = 1\nimprovement = 0.9\n'
    (tmp_path / "recipe.toml").write_text(text)
    ended = invoke("train", tmp_path / "recipe.toml", "--out", tmp_path / "out")
    assert refused(ended, 2, "the iterate of SB after 3 epochs", "Did SB stop or diverge before?")
    assert store.load(tmp_path / "out" / "seed-0" / "SB" / "history.h5").epoch.tolist() == [1, 2]
    assert not (tmp_path / "out" / "seed-0" / "LB-from-3").exists()


def test_a_regime_without_a_start_begins_at_the_seeds_own_wherever_it_stands(tmp_path: Path) -> None:
    once = TrainingPlan(0.5, 1)
    parameters = dataclasses.replace(
        parameters_of("keskar-f1"),
        regimes={"SB": TrainingPlan(6, 1), "LB-from-1": once, "LB": once},
        starts={"LB-from-1": "SB@1"},
        kept_epochs=(1,),
        followed=(),
    )
    _, trials = train_regimes("keskar-f1", "smoke", parameters, Place(tmp_path / "out"))
    end, _ = train(parameters.problem(data_of("keskar-f1"), 0), once, seed=0)
    assert same_weights(trials[0].ends["LB"], end)


# Trajectories


@pytest.mark.parametrize("regime", ["SB", "LB"])
def test_a_trajectory_is_what_its_iterates_give_directly(regime: str, runs: Runs) -> None:
    run, plan = runs.of("keskar-f1"), parameters_of("keskar-f1").analysis
    trajectory = store.load(run / "seed-0" / regime / "trajectory.h5")
    assert trajectory.epoch.tolist() == [1, 2]
    assert (trajectory.epsilon, trajectory.batchnorm, trajectory.iterations) == (1e-3, "eval", plan.iterations)
    objectives, start = objectives_of("keskar-f1", plan.examples), minimizer(run, "", "start").point.theta
    for row, epoch in enumerate((1, 2)):
        iterate = minimizer(run, regime, f"epoch-{epoch:04}")
        scores = [objective.evaluate(iterate) for objective in objectives.values()]
        assert trajectory.loss[:, row].tolist() == [score.loss for score in scores]
        assert trajectory.accuracy[:, row].tolist() == [score.accuracy for score in scores]
        found = sh.epsilon_sharpness(
            objectives["train"], iterate, 1e-3, iterations=plan.iterations, restarts=plan.restarts, seed=0
        )
        for name in ("sharpness", "stronger", "first_order", "gradient_norm"):
            assert getattr(trajectory, name)[row] == getattr(found, name), name
        theta = iterate.point.theta
        for name, vector in (("weight_norm", theta), ("distance", theta - start)):
            assert getattr(trajectory, name)[row] == float(vector.double().norm()), name


@pytest.mark.parametrize("name", ["keskar-f1", "keskar-c1"])
def test_a_trajectory_ends_at_the_minimizer(name: str, runs: Runs) -> None:
    """Two epochs are trained, and the iterate after the second is kept."""
    run = runs.of(name)
    compared = store.load(run / "comparison.h5")
    for row, regime in enumerate(("SB", "LB")):
        assert same_weights(minimizer(run, regime, "epoch-0002"), minimizer(run, regime))
        trajectory = store.load(run / "seed-0" / regime / "trajectory.h5")
        assert [trajectory.sharpness[-1], trajectory.stronger[-1]] == compared.sharpness[row, 0, 0, 0, 0].tolist()
        assert trajectory.distance[-1] == compared.distance[row, 0]
        assert trajectory.weight_norm[-1] == compared.weight_norm[row, 0]


@pytest.mark.usefixtures("no_figures")
def test_a_trajectory_ends_at_the_minimizer_whatever_was_kept(tmp_path: Path) -> None:
    ended = from_text('kept_epochs = [1]\nfollowed = ["LB"]\n[analysis]\nsubspace = 0\n[lb]\nepochs = 3', tmp_path)
    assert ended.code == 0
    out = tmp_path / "out"
    trajectory, compared = (store.load(out / name) for name in ("seed-0/LB/trajectory.h5", "comparison.h5"))
    assert trajectory.epoch.tolist() == [1, 3]
    assert trajectory.distance[-1] == compared.distance[1, 0]
    assert [trajectory.sharpness[-1], trajectory.stronger[-1]] == compared.sharpness[1, 0, 0, 0, 0].tolist()
    assert not (out / "seed-0" / "SB" / "trajectory.h5").exists()


# Comparisons


@pytest.mark.parametrize(
    ("name", "sizes", "warm"),
    [
        ("keskar-f1", [6, 30], [0, 0]),  # 0.5 of 60
        ("keskar-batch-sizes", [6, 20, 60], [0, 0, 0]),
        (WARM, [6, 30, 30, 30], [0, 0, 1, 3]),
        ("li-weight-decay", [10, 30, 10, 30], [0, 0, 0, 0]),
    ],
)
def test_a_comparison_says_batch_sizes_and_epochs_before(
    name: str, sizes: list[int], warm: list[int], runs: Runs
) -> None:
    compared = store.load(runs.of(name) / "comparison.h5")
    assert (compared.batch_size.tolist(), compared.warm_epochs.tolist()) == (sizes, warm)


@pytest.mark.parametrize("name", ["keskar-f1", "keskar-f2", "keskar-c1", "li-weight-decay"])
def test_a_comparison_says_what_was_trained_on_what(name: str, runs: Runs) -> None:
    compared, parameters = store.load(runs.of(name) / "comparison.h5"), parameters_of(name)
    known = {
        **{field: getattr(parameters, field) for field in ("data", "model", "initialisation", "statistics")},
        **{"scale": "smoke", "train_examples": 60, "test_examples": 30},
    }
    assert {key: compared.conditions[key] for key in known} == known
    assert compared.conditions["measured_on"] == "20 training examples"
    assert compared.conditions["analysis"] == json.loads(json.dumps(dataclasses.asdict(parameters.analysis)))
    assert (compared.recipe, compared.seed.tolist()) == (name, [0])


@pytest.mark.parametrize("name", ["keskar-f1", "keskar-batch-sizes", WARM])
def test_a_comparisons_losses_are_those_of_its_minimizers(name: str, runs: Runs) -> None:
    """On all training data, whatever curvature is measured on; to rounding also by PyTorch alone."""
    run, parameters, data = runs.of(name), parameters_of(name), data_of(name)
    compared, objectives = store.load(run / "comparison.h5"), objectives_of(name)
    for row, regime in enumerate(parameters.regimes):
        end = minimizer(run, regime)
        scores = [objective.evaluate(end) for objective in objectives.values()]
        assert compared.loss[row, 0].tolist() == [score.loss for score in scores]
        assert compared.accuracy[row, 0].tolist() == [score.accuracy for score in scores]
        model = parameters.problem(data, 0).model.eval()
        end.load_into(model)
        with torch.no_grad():
            output = model(data.train[0][:60])
        plain = torch.nn.functional.cross_entropy(output, data.train[1][:60])
        assert compared.loss[row, 0, 0] == pytest.approx(float(plain), rel=1e-6)  # float32


def test_recomputed_statistics_are_those_of_all_training_data(runs: Runs) -> None:
    """As PyTorch's own layers find them in one pass of all examples, where a running mean is theirs alone."""
    run, parameters, data = runs.of(WARM), parameters_of(WARM), data_of(WARM)
    for regime in ("SB", "LB-from-1"):
        end, model = minimizer(run, regime), parameters.problem(data, 0).model.train()
        end.load_into(model)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm1d):
                layer.momentum = 1.0
        with torch.no_grad():
            model(data.train[0][:60])
        for name, buffer in model.named_buffers():
            if "running" in name:
                # float32 sums over 60 examples, through five layers
                assert torch.allclose(end.buffers[name], buffer, rtol=1e-4, atol=1e-5), name
    kept, end = minimizer(run, "SB", "epoch-0003"), minimizer(run, "SB")  # the one has the running ones
    assert kept.point.sha256 == end.point.sha256
    assert not any(torch.equal(kept.buffers[name], end.buffers[name]) for name in kept.buffers if "running" in name)


def test_longer_training_and_higher_rates_are_as_adapted(runs: Runs) -> None:
    """Hoffer et al.: twice the epochs where it is longer, √5 the rate for five times the batch."""
    run = runs.of("hoffer-longer")
    epochs = dict(
        zip(parameters_of("hoffer-longer").regimes, store.load(run / "comparison.h5").epochs[:, 0], strict=True)
    )
    assert epochs == {"SB": 2, "LB": 2, "LB-longer": 4, "LB-sqrt-rate": 2, "LB-ghost": 2, "LB-all": 4}
    for regime, first in (("SB", 0.1), ("LB", 0.1), ("LB-sqrt-rate", 0.1 * 5**0.5)):
        rates = store.load(run / "seed-0" / regime / "history.h5").learning_rate
        assert rates == pytest.approx([first, first / 10], rel=1e-15)  # the first of two epochs is the only milestone


# Lines, curves and profiles


@pytest.mark.parametrize("name", ["keskar-f1", "keskar-curves", "keskar-c1"])
def test_a_curve_meets_the_line_at_its_ends(name: str, runs: Runs) -> None:
    folder = runs.of(name) / "seed-0"
    line, curve = (store.load(folder / f"{kind}.h5") for kind in ("line", "curve"))
    assert line.alpha.tolist() == curve.alpha.tolist() == [-1, 0, 1, 2]
    assert (line.loss[:, 1:3] == curve.loss[:, 1:3]).all()
    assert (line.accuracy[:, 1:3] == curve.accuracy[:, 1:3]).all()
    assert (line.loss[:, [0, 3]] != curve.loss[:, [0, 3]]).all()  # 2a − b and −b, 2b − a and −a
    assert (line.path, curve.path) == ("(1 − α)·a + α·b", "sin(απ/2)·b + cos(απ/2)·a")
    assert (line.start, line.end) == (curve.start, curve.end)
    assert line.start == minimizer(runs.of(name), "SB").point.sha256
    assert line.end == minimizer(runs.of(name), "LB").point.sha256


def test_a_curve_passes_through_the_opposite_of_both_ends(runs: Runs) -> None:
    """θ(-1) = -b and θ(2) = -a, where the statistics of batch norm are estimated anew."""
    run = runs.of("keskar-curves")
    curve, objectives = store.load(run / "seed-0" / "curve.h5"), objectives_of("keskar-curves", 20)
    for column, regime in ((0, "LB"), (3, "SB")):
        end = minimizer(run, regime).point
        there = objectives["train"].with_statistics(Point(-end.theta, end.buffers))
        expected = [objective.evaluate(there).loss for objective in objectives.values()]
        # sin π is 1e-16, not 0: weights differ in their last bits at most
        assert curve.loss[:, column].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("regime", ["SB", "LB-decay"])
def test_a_profile_begins_at_its_minimizer(regime: str, runs: Runs) -> None:
    run = runs.of("li-weight-decay")
    profile, end = store.load(run / "seed-0" / regime / "profile.h5"), minimizer(run, regime)
    objectives = objectives_of("li-weight-decay", 20)
    assert profile.alpha.tolist() == [-1, -0.5, 0, 0.5, 1]
    assert (profile.batchnorm, profile.start, profile.conditions["ends"]) == (
        "recompute",
        end.point.sha256,
        [regime, ""],
    )
    there = objectives["train"].with_statistics(end)  # by hand what the policy does at every point
    assert profile.loss[:, 2].tolist() == [objective.evaluate(there).loss for objective in objectives.values()]
    again = sh.evaluate_line(objectives, sh.Line(end, end.point.theta), [0.0])
    assert (profile.loss[:, 2] == again.loss[:, 0]).all()
    assert np.ptp(profile.loss[0]) > 0


def test_a_line_per_pair_says_its_ends(runs: Runs) -> None:
    run = runs.of("li-weight-decay")
    for pair in (("SB", "LB"), ("SB-decay", "LB-decay")):
        line = store.load(run / "seed-0" / f"line-{pair[0]}-{pair[1]}.h5")
        assert line.conditions["ends"] == list(pair)
        assert (line.start, line.end) == tuple(minimizer(run, regime).point.sha256 for regime in pair)


# Refusals


def from_text(text: str, folder: Path, *options: Any, recipe: str = "keskar-f1") -> Ended:
    """``run`` of a recipe at smoke scale with this text after its name."""
    (folder / "recipe.toml").write_text(f'recipe = "{recipe}"\nscale = "smoke"\n{text}\n')
    return invoke("run", folder / "recipe.toml", "--out", folder / "out", *options)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('model = "vgg"', ["model = 'vgg'", "one of digits-mlp, mlp, keskar-f1"]),
        ('data = "letters"', ["digits, mnist, cifar10", "'letters'"]),
        ('lines = [["SB", "XB"]]', ["of the regimes SB, LB", "XB"]),
        ('lines = [["SB", "LB", "SB"]]', ["lines as tuple"]),
        ('lines = ["SB"]', ["lines as tuple"]),
        ('followed = ["SB", "XB"]', ["of the regimes SB, LB", "XB"]),
        ('followed = "SB"', ["followed as tuple"]),
        ("line_points = 1", ["points = (1, 4, 0, 0)", "0, or 2 and more"]),
        ("curve_points = 1", ["points = (4, 1, 0, 0)", "0, or 2 and more"]),
        ("plane_points = 1", ["points = (4, 4, 1, 0)", "0, or 2 and more"]),
        ("profile_points = -3", ["points = (4, 4, 0, -3)", "0, or 2 and more"]),
        ("trials = 0", ["trials = 0 (>= 1)"]),
        ("train_examples = -1", ["examples = (-1, 30) (>= 0)"]),
        ("kept_epochs = [0, 1]", ["kept_epochs = (0, 1) (>= 1)"]),
        ("threads = -1", ["threads = -1 (>= 0)"]),
        ('statistics = "none"', ["statistics = 'none'", "running or recomputed"]),
        ("lines = []", ["line_points, curve_points = (4, 4)", "0 without lines"]),
        ("kept_epochs = []", ["followed = ('SB', 'LB')", "kept_epochs to follow"]),
        ('initialisation = "zeros"', ["initialisation = 'zeros'", "pytorch or glorot"]),
        ("regimes = 3", ["[regimes]", "3"]),
        ("[regimes.XB]\nepochs = 3", ["expected one of SB, LB", "regimes.XB"]),
        ("[xb]\nepochs = 3", ["expected one of the parameters", "xb"]),
        ("[regimes.SB]\nepoch = 3", ["regimes.sb.epoch"]),
        ("scale = 3", ["does not parse"]),
    ],
)
def test_an_experiment_out_of_range_is_refused_with_what_was_expected(
    text: str, parts: list[str], tmp_path: Path
) -> None:
    assert refused(from_text(text, tmp_path), 2, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "starts",
    [
        '{LB-from-1 = "SB"}',  # no epoch
        '{LB-from-1 = "SB@"}',
        '{LB-from-1 = "SB@one"}',
        '{LB-from-1 = "SB@-1"}',
        '{LB-from-1 = "@1"}',
        '{LB-from-1 = "SB@2"}',  # not kept
        '{LB-from-1 = "LB-from-3@1"}',  # later
        '{LB-from-1 = "LB-from-1@1"}',  # itself
        '{LB-from-1 = "XB@1"}',
        '{XB = "SB@1"}',
        '{SB = "LB-from-0@1"}',
        '{LB-from-1 = "SB@²"}',
    ],
)
def test_a_start_that_is_malformed_later_or_not_kept_is_refused(starts: str, tmp_path: Path) -> None:
    ended = from_text(f"starts = {starts}", tmp_path, recipe=WARM)
    assert refused(ended, 2, "starts = {", "REGIME@EPOCH, earlier and kept")
    assert not (tmp_path / "out").exists()


def test_a_start_that_is_no_text_is_refused(tmp_path: Path) -> None:
    assert refused(from_text("starts = {LB-from-1 = 1}", tmp_path, recipe=WARM), 2, "starts", "1")


def test_several_faults_of_an_experiment_are_said_at_once() -> None:
    with pytest.raises(ShapeError, match=r"model = 'vgg' .*; regimes = \[\] \(one or more\); .*; trials = 0"):
        Experiment(data="digits", model="vgg", regimes={}, trials=0)


@pytest.mark.parametrize("command", ["run", "train"])
def test_a_scale_that_a_recipe_does_not_have_is_refused_with_those_it_has(command: str, tmp_path: Path) -> None:
    for name, recipe in RECIPES.items():
        ended = invoke(command, name, "--scale", "huge", "--out", tmp_path / "out")
        assert refused(ended, 2, f"expected --scale {', '.join(recipe.scales)} for {name}; got 'huge'")
    (tmp_path / "recipe.toml").write_text('recipe = "keskar-f1"\nscale = "huge"\n')
    assert refused(invoke(command, tmp_path / "recipe.toml", "--out", tmp_path / "out"), 2, "reduced, paper", "'huge'")
    (tmp_path / "recipe.toml").write_text('recipe = "keskar-f1"\nscale = 3\n')
    assert refused(invoke(command, tmp_path / "recipe.toml"), 2, 'scale as a name, like "reduced"', "got 3")
    assert not (tmp_path / "out").exists()


def test_what_trains_nothing_has_no_trials_and_no_training_stage(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    for command in (("run", "--trials", "2"), ("run", "--seed", "2"), ("train",)):
        ended = invoke(command[0], "keskar-sketch", *command[1:], *out)
        assert refused(ended, 2, "expected a recipe that trains", "got keskar-sketch")
    assert not (tmp_path / "out").exists()


def test_model_options_unknown_to_the_builder_are_refused_and_nothing_is_trained(tmp_path: Path) -> None:
    ended = from_text("model_options = {widths = [16]}", tmp_path)
    assert refused(ended, 2, "expected options of keskar-f1 among: width; got widths")
    assert not list(tmp_path.rglob("*.safetensors"))
    # the configuration that failed at once does not occupy its folder
    assert from_text("model_options = {depth = 2}", tmp_path).stderr.count("got depth") == 1


# Recipe files


def overridden(text: str, folder: Path, scale: str | None = None) -> Any:
    (folder / "recipe.toml").write_text(text)
    return from_toml(folder / "recipe.toml", scale)


def test_a_file_chooses_its_scale_and_the_command_line_another(tmp_path: Path) -> None:
    text = 'recipe = "keskar-f1"\nscale = "smoke"\ntrials = 2\n'
    for scale, chosen in ((None, "smoke"), ("smoke", "smoke"), ("paper", "paper")):
        recipe = overridden(text, tmp_path, scale)
        assert recipe.chosen == chosen
        assert recipe.parameters == dataclasses.replace(recipe_named("keskar-f1", chosen).parameters, trials=2)
    assert overridden('recipe = "keskar-f1"', tmp_path).chosen == "reduced"


def test_a_regime_is_named_in_short_or_in_full(tmp_path: Path) -> None:
    begin = 'recipe = "keskar-f1"\nscale = "smoke"\n'
    short, full = (overridden(f"{begin}[{table}]\nepochs = 7", tmp_path) for table in ("sb", "regimes.SB"))
    assert short.parameters == full.parameters
    assert [plan.epochs for plan in short.parameters.regimes.values()] == [7, 2]
    tables = ["[regimes.LB]\nepochs = 5\n", "[sb]\nepochs = 7\n"]
    for order in (tables, tables[::-1]):
        both = overridden(begin + "".join(order), tmp_path)
        assert [plan.epochs for plan in both.parameters.regimes.values()] == [7, 5]


def test_regimes_of_other_names_and_of_a_part_are_named_in_small_letters(tmp_path: Path) -> None:
    warm = overridden('recipe = "keskar-warm-start"\nscale = "smoke"\n[lb-from-1]\nepochs = 7', tmp_path)
    assert {name: plan.epochs for name, plan in warm.parameters.regimes.items()} == {
        "SB": 3,
        "LB-from-0": 2,
        "LB-from-1": 7,
        "LB-from-3": 2,
    }
    size = overridden('recipe = "keskar-batch-sizes"\nscale = "smoke"\n[20]\nepochs = 7', tmp_path)
    assert [plan.epochs for plan in size.parameters.regimes.values()] == [2, 7, 2]
    part = overridden('recipe = "dinh-rescaling"\nscale = "smoke"\n[experiment.sb]\nepochs = 7', tmp_path)
    assert part.parameters.experiment.regimes["SB"].epochs == 7


def test_pairs_and_lists_become_the_tuples_of_the_parameters(tmp_path: Path) -> None:
    text = (
        'recipe = "keskar-f1"\nscale = "smoke"\nlines = [["LB", "SB"], ["SB", "SB"]]\nfollowed = ["LB"]\n'
        "kept_epochs = [2]\n[analysis]\nepsilons = [1e-2]\n"
    )
    found = overridden(text, tmp_path).parameters
    assert (found.lines, found.followed, found.kept_epochs) == ((("LB", "SB"), ("SB", "SB")), ("LB",), (2,))
    assert found.analysis.epsilons == (1e-2,)
    text = 'recipe = "keskar-f1"\nscale = "smoke"\nlines = []\nline_points = 0\ncurve_points = 0'
    assert overridden(text, tmp_path).parameters.lines == ()


def test_options_of_a_model_are_changed_one_by_one(tmp_path: Path) -> None:
    text = 'recipe = "dinh-rescaling"\nscale = "smoke"\n[experiment.model_options]\nwidths = [8]'
    options = overridden(text, tmp_path).parameters.experiment.model_options
    assert options == {"batchnorm": False, "widths": [8]}


@pytest.mark.parametrize("name", TRAINING)
def test_parameters_survive_json(name: str) -> None:
    """What a minimizer's metadata say of them makes them again, at every scale."""
    for scale in RECIPES[name].scales:
        experiment = recipe_named(name, scale).experiment
        said = json.loads(json.dumps(dataclasses.asdict(experiment)))
        again = override(recipe_named(name, scale).experiment, said)
        assert json.loads(json.dumps(dataclasses.asdict(again))) == said
        options = experiment.model_options  # passed on to a builder, which takes a list for a tuple
        assert dataclasses.replace(again, model_options=options) == experiment


@pytest.mark.parametrize("name", ["keskar-f1", "li-weight-decay", WARM, "dinh-rescaling"])
def test_a_minimizer_makes_its_problem_again(name: str, runs: Runs) -> None:
    run, parameters = runs.of(name), parameters_of(name)
    expected = parameters.problem(data_of(name), 0)
    for file in (minimizer(run, "SB"), minimizer(run, "", "start")):
        problem = recipe_problem(file)
        begun = Point.of(problem.model, ParamSpace.of(problem.model))
        assert begun.sha256 == minimizer(run, "", "start").point.sha256
        for ours, theirs in ((problem.train, expected.train), (problem.test, expected.test)):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_minimizer_of_a_changed_recipe_makes_the_changed_problem(tmp_path: Path) -> None:
    text = (
        'train_examples = 24\nlines = [["LB", "SB"]]\nmodel_options = {width = 3}\n[sb]\nepochs = 1\n[lb]\nepochs = 1'
    )
    (tmp_path / "recipe.toml").write_text(f'recipe = "keskar-f1"\nscale = "smoke"\n{text}')
    ended = invoke("train", tmp_path / "recipe.toml", "--seed", 4, "--dtype", "float64", "--out", tmp_path / "out")
    assert ended.code == 0
    folder = tmp_path / "out" / "seed-4"
    problem = recipe_problem(sh.load_minimizer(folder / "LB" / "minimizer.safetensors"))
    begun = Point.of(problem.model, ParamSpace.of(problem.model))
    assert begun.theta.dtype == torch.float64
    assert begun.sha256 == sh.load_minimizer(folder / "start.safetensors").point.sha256
    assert len(problem.train[1]) == 24


def test_a_minimizer_made_without_the_recipes_options_makes_its_own_problem(tmp_path: Path) -> None:
    begin = parameters_of("keskar-f1")
    regimes = {name: dataclasses.replace(plan, epochs=1) for name, plan in begin.regimes.items()}
    parameters = dataclasses.replace(begin, model="mlp", model_options={}, regimes=regimes)
    _, trials = train_regimes("keskar-f1", "smoke", parameters, Place(tmp_path / "out"))
    problem = recipe_problem(trials[0].ends["SB"])
    assert Point.of(problem.model, ParamSpace.of(problem.model)).sha256 == trials[0].start.point.sha256


def test_a_minimizer_of_no_recipe_or_of_other_data_makes_no_problem(runs: Runs) -> None:
    known = minimizer(runs.of("keskar-f1"), "SB")
    older = {name: value for name, value in known.metadata["parameters"].items() if name != "regimes"}
    for key, value, said in (
        ("recipe", "letters", "recipes digits"),
        ("data", "0" * 64, "another fingerprint"),
        ("parameters", older, "this one is older"),
    ):
        other = dataclasses.replace(known, metadata={**known.metadata, key: value})
        with pytest.raises(CheckpointError, match=said):
            recipe_problem(other)


# Folders of earlier releases

CURVES = "keskar-curves"


def changed_configuration(folder: Path, runs: Runs, changes: dict[str, Any]) -> Path:
    """A copy of a run whose ``run.json`` has other values at these dotted places; ``...`` removes one."""
    out = folder / "out"
    shutil.copytree(runs.of(CURVES), out)
    configuration = json.loads((out / "run.json").read_text())
    for place, value in changes.items():
        *way, last = place.split(".")
        inner = configuration
        for step in way:
            inner = inner[step]
        assert last in inner
        inner[last] = value
        if value is ...:
            del inner[last]
    (out / "run.json").write_text(json.dumps(configuration))
    return out


NEWER = {  # with their defaults, which the run has
    "parameters.regimes.SB.clip": 0.0,
    "parameters.regimes.LB.augment": [],
    "parameters.profile_points": 0,
    "parameters.starts": {},
    "parameters.analysis.density_probes": 0,
}


@pytest.mark.usefixtures("no_figures")
def test_a_run_of_a_release_that_lacked_some_parameters_goes_on(runs: Runs, tmp_path: Path) -> None:
    out = changed_configuration(tmp_path, runs, dict.fromkeys(NEWER, ...))
    (out / "comparison.h5").unlink()
    before = contents(out)
    ended = invoke("run", CURVES, "--scale", "smoke", "--out", out, "--json")
    assert (ended.code, ended.stdout) == (0, runs.ended[CURVES].stdout.replace(str(runs.of(CURVES)), str(out)))
    assert {name: contents(out)[name] for name in before} == before
    assert results(out) == results(runs.of(CURVES))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("parameters.regimes.SB.clip", 5.0),
        ("parameters.regimes.LB.augment", ["flip"]),
        ("parameters.profile_points", 4),
        ("parameters.starts", {"LB": "SB@1"}),
        ("parameters.analysis.density_probes", 2),
    ],
)
def test_a_run_with_other_values_there_is_refused_by_name(place: str, value: Any, runs: Runs, tmp_path: Path) -> None:
    others = {name: ... for name in NEWER if name != place}
    out = changed_configuration(tmp_path, runs, {**others, place: value})
    before = contents(out)
    ended = invoke("run", CURVES, "--scale", "smoke", "--out", out)
    there = f"{place}.LB ('SB@1' there, None here)" if place == "parameters.starts" else f"{place} ({value!r} there, "
    assert refused(ended, 2, there, "Choose another --out")
    assert ended.stderr.count(" there, ") == 1  # what is missing is no difference
    assert contents(out) == before


def test_what_an_earlier_release_cannot_have_lacked_is_a_difference(runs: Runs, tmp_path: Path) -> None:
    out = changed_configuration(tmp_path, runs, {"parameters.model": ..., "parameters.threads": ...})
    ended = invoke("run", CURVES, "--scale", "smoke", "--out", out)
    # threads has a default, which is not what this run has
    assert refused(ended, 2, "parameters.model (None there, 'keskar-f1' here)", "parameters.threads (0 there, 1 here)")


# Kills


@pytest.mark.parametrize(
    ("name", "troubles"),
    [
        (
            "keskar-f1",
            [
                ["replace", "SB/epoch-0001.safetensors", 1, "SIGKILL"],  # an iterate computed, not kept
                ["flush", "SB/trajectory.h5", 1, "SIGKILL"],  # its first row's values written, its status not
                ["flush", "SB/trajectory.h5", 3, "SIGKILL"],
                ["flush", "seed-0/curve.h5", 5, "SIGKILL"],
            ],
        ),
        (
            WARM,
            [
                ["flush", "LB-from-1/history.h5", 3, "SIGKILL"],  # in the second epoch from a kept iterate
                ["replace", "LB-from-3/minimizer.safetensors", 1, "SIGKILL"],
            ],
        ),
        (
            "dinh-rescaling",
            [
                ["flush", "rescaling.h5", 1, "SIGKILL"],
                ["flush", "rescaling.h5", 4, "SIGKILL"],
            ],
        ),
    ],
)
def test_a_killed_experiment_ends_with_the_same_bits(
    name: str, troubles: list[list[Any]], runs: Runs, tmp_path: Path
) -> None:
    command = ("run", name, "--scale", "smoke", "--out", tmp_path / "out", "--quiet")
    ends = disturbed([*troubles, ["nothing"]], *command)
    assert [end.code for end in ends] == [*[KILLED] * len(troubles), 0]
    assert ends[-1] == (0, "", "")
    assert weights(tmp_path / "out") == weights(runs.of(name))
    assert results(tmp_path / "out") == results(runs.of(name))
    left, undisturbed = ({p.relative_to(out) for p in out.rglob("*")} for out in (tmp_path / "out", runs.of(name)))
    assert left == undisturbed


# A regime that diverges


def test_a_regime_that_diverges_is_a_row_of_nan_and_the_others_are_measured(tmp_path: Path) -> None:
    text = 'recipe = "hoffer-longer"\nscale = "smoke"\n[lb-sqrt-rate]\nlearning_rate = 1e38'
    (tmp_path / "recipe.toml").write_text(text)
    out = tmp_path / "hoffer-longer"
    for _ in range(2):  # the second start finds everything done
        assert invoke("run", tmp_path / "recipe.toml", "--out", out, "--quiet").code == 0
    found = store.load(out / "comparison.h5")
    lost = found.regime.tolist().index("LB-sqrt-rate")
    assert np.isnan(found.eigenvalues[lost]).all()
    assert not found.converged[lost].any()
    assert np.isfinite(np.delete(found.sharpness, lost, axis=0)).all()
    assert found.conditions["diverged"] == ["LB-sqrt-rate, seed 0"]
    assert store.load(out / "seed-0" / "LB-sqrt-rate" / "history.h5").stopped == "diverged"
    assert not (out / "seed-0" / "LB-sqrt-rate" / "minimizer.safetensors").exists()
    assert (
        "training diverged, and nothing was measured, in LB-sqrt-rate, seed 0"
        in (out / "figures" / "table.md").read_text()
    )
