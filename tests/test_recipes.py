"""What experiments leave: the comparison of SB with LB, its files, and analyses of checkpoints from anywhere."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from command_line import QUICK, SMALL, Ended, Foreign, SmallRun, invoke, network_state, refused
from command_line import rows as by_name
from problems import lenet, resnet20

import sharpness as sh
from sharpness import store
from sharpness.data import load
from sharpness.models import mlp
from sharpness.records import variables

pytest_plugins = "command_line"
pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    f"ε-sharpness (%), batch norm: {mode}, {space}, ε = {epsilon}, {maximiser}"
    for mode in ("eval", "batch")
    for space in ("full", "subspace")
    for epsilon in ("0.001", "0.0005")
    for maximiser in ("L-BFGS-B", "sign ascent")
]


# A run


@pytest.fixture(scope="module")
def table(small_run: SmallRun) -> dict[str, list[str]]:
    """The rows of a finished run by their quantity, from ``--json``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sharpness.render.draw_folder", lambda _: [])
        ended = invoke("run", small_run.recipe, "--out", small_run.out, "--json")
    return by_name(json.loads(ended.stdout)["table"])


def test_a_run_ends_well_and_says_where_its_results_are(small_run: SmallRun) -> None:
    assert (small_run.ended.code, small_run.ended.stderr) == (0, "")
    assert f"Results in {small_run.out}" in small_run.ended.stdout
    for word in ("SB", "LB", "LB/SB", "λmax", "residual", "200 training examples", "distance from the start"):
        assert word in small_run.ended.stdout


def test_the_table_has_every_quantity_for_sb_and_lb(table: dict[str, list[str]]) -> None:
    losses = [f"{split} loss (nat)" for split in ("train", "test")]
    accuracies = [f"{split} accuracy (%)" for split in ("train", "test")]
    slopes = [f"gradient norm ‖g‖, batch norm: {mode}" for mode in ("eval", "batch")]
    norms = ["distance from the start ‖θ − θ₀‖", "weight norm ‖θ‖", "epochs trained"]
    assert list(table) == [*losses, *accuracies, "λmax", *slopes, *CASES, *norms]
    for quantity, (small, large, ratio) in table.items():
        for text in (small, large):
            assert float(text.split()[0]) > 0, quantity
        assert float(ratio) > 0
    assert all("residual ≤" in text for text in table["λmax"][:2])


def test_the_table_is_what_the_minimizers_give(small_run: SmallRun, table: dict[str, list[str]]) -> None:
    digits = load("digits")
    for column, regime in enumerate(("SB", "LB")):
        model = mlp([64, 128, 128, 10], batchnorm=True)
        sh.load_minimizer(small_run.out / "seed-0" / regime / "minimizer.safetensors").load_into(model)
        for split, (inputs, targets) in {"train": digits.train, "test": digits.test}.items():
            with torch.no_grad():
                output = model.eval()(inputs)
            loss = torch.nn.functional.cross_entropy(output, targets)
            accuracy = (output.argmax(1) == targets).double().mean()
            assert float(table[f"{split} loss (nat)"][column]) == pytest.approx(float(loss), rel=1e-3)
            assert float(table[f"{split} accuracy (%)"][column]) == pytest.approx(100 * float(accuracy), rel=1e-3)


def test_lambda_max_is_that_of_the_dense_hessian_on_the_measured_examples(small_run: SmallRun) -> None:
    """By products alone: ‖Hv − λv‖ for the stored λ and the vector that another solver run gives."""
    minimizer = sh.load_minimizer(small_run.out / "seed-0" / "LB" / "minimizer.safetensors")
    model = mlp([64, 128, 128, 10], batchnorm=True)
    minimizer.load_into(model)
    inputs, targets = load("digits").train
    objective, theta = sh.Objective.from_module(model, sh.cross_entropy, (inputs[:200], targets[:200]))
    hessian = sh.Hessian(objective, theta)
    again = sh.eigenpairs(hessian, 1, seed=1)
    stored = store.load(small_run.out / "seed-0" / "LB" / "eigenpairs.h5")
    assert abs(stored.eigenvalues[0] - again.eigenvalues[0]) <= stored.residuals[0] + again.residuals[0]
    compared = store.load(small_run.out / "comparison.h5")
    assert compared.eigenvalues[1, 0, 0] == stored.eigenvalues[0]
    assert compared.residuals[1, 0, 0] == stored.residuals[0] > 0


def test_sharpness_is_ordered_as_it_must_be(small_run: SmallRun) -> None:
    compared = store.load(small_run.out / "comparison.h5")
    assert compared.sharpness.shape == (2, 1, 2, 2, 2, 2)
    assert (compared.sharpness[..., 1] >= compared.sharpness[..., 0]).all()  # the second maximiser is the stronger
    assert (compared.sharpness[..., 0, 0] > compared.sharpness[..., 1, 0]).all()  # the box of 1e-3 holds that of 5e-4
    assert compared.spread.shape == (2, 1, 2, 2, 2)
    assert (compared.first_order > 0).all()


def test_the_distance_is_that_from_the_common_start(small_run: SmallRun) -> None:
    start, *ends = (
        sh.load_minimizer(small_run.out / "seed-0" / name).point.theta.double()
        for name in ("start.safetensors", "SB/minimizer.safetensors", "LB/minimizer.safetensors")
    )
    compared = store.load(small_run.out / "comparison.h5")
    assert compared.distance[:, 0] == pytest.approx([float((end - start).norm()) for end in ends], rel=1e-6)


def test_a_run_leaves_these_files_and_no_others(small_run: SmallRun) -> None:
    measured = {"history.h5", "eigenpairs.h5", "sharpness.h5", "plane.h5", "trajectory.h5", "minimizer.safetensors"}
    measured |= {"epoch-0001.safetensors", "epoch-0002.safetensors"}
    expected = {"run.json", "comparison.h5", "seed-0/line.h5", "seed-0/start.safetensors"}
    expected |= {f"seed-0/{regime}/{name}" for regime in ("SB", "LB") for name in measured}
    stems = ["comparison", "table", "line"]
    stems += [f"seed-0-{name}" for name in ("history", "plane", "plane-surface", "trajectory")]
    expected |= {f"figures/{stem}.{ending}" for stem in stems for ending in ("svg", "pdf", "png")}
    expected |= {f"figures/table.{ending}" for ending in ("md", "csv", "tex")}
    assert {str(p.relative_to(small_run.out)) for p in small_run.out.rglob("*") if p.is_file()} == expected


def test_the_line_passes_through_both_minimizers(small_run: SmallRun) -> None:
    line = store.load(small_run.out / "seed-0" / "line.h5")
    assert line.alpha == pytest.approx(np.linspace(-1, 2, 5))
    assert (line.split.tolist(), line.batchnorm, line.conditions["ends"]) == (
        ["train", "test"],
        "recompute",
        ["SB", "LB"],
    )
    assert line.status.tolist() == [1] * 5
    plane = store.load(small_run.out / "seed-0" / "SB" / "plane.h5")
    assert (plane.loss.shape, plane.origin) == ((2, 3, 3), line.start)


def test_the_history_ends_where_the_minimizer_is(small_run: SmallRun) -> None:
    history = store.load(small_run.out / "seed-0" / "SB" / "history.h5")
    compared = store.load(small_run.out / "comparison.h5")
    assert (history.epoch.tolist(), history.stopped, history.batch_size) == ([1, 2, 3], "epoch limit", 128)
    assert history.loss[:, -1] == pytest.approx(compared.loss[0, 0], rel=1e-12)


def check_described(file: Path) -> None:
    """Every group opens with xarray, and every variable there says what it is and in which unit."""
    with xarray.open_dataset(file, engine="h5netcdf") as root:
        assert (root.attrs["format"], root.attrs["schema_version"]) == ("sharpness", 1)
    with xarray.open_dataset(file, engine="h5netcdf", group="provenance") as origin:
        assert origin.attrs["command"]
    for name, record in store.load_all(file).items():
        with xarray.open_dataset(file, engine="h5netcdf", group=name) as data:
            assert set(data.variables) == {variable.name for variable in variables(record)}
            for variable in data.variables.values():
                assert variable.attrs["units"]
                assert variable.attrs["long_name"]
            if "status" in data:
                assert data["status"].dtype == np.uint8
                assert data["status"].attrs["flag_values"].tolist() == [0, 1, 2, 3]


def test_every_file_of_a_run_is_described(small_run: SmallRun) -> None:
    files = sorted(small_run.out.rglob("*.h5"))
    assert len(files) == 12
    for file in files:
        check_described(file)


@pytest.mark.usefixtures("no_figures")
def test_every_file_of_the_other_commands_is_described(foreign: Foreign) -> None:
    weights, problem = foreign.save("w.pt"), ("--problem", foreign.problem("function"), "--out", foreign.folder / "out")
    command = ("analyze", weights, *problem, "--k", 2, "--density", 2, "--subspace", 3)
    assert invoke(*command).code == 0
    out = foreign.folder / "landscape"
    assert invoke("landscape", weights, *problem[:2], "--points", 2, "--out", out).code == 0
    assert invoke("bench", *problem, "--repeats", 1).code == 0
    files = {file.name: file for file in foreign.folder.rglob("*.h5")}
    measured = {"eigenpairs.h5", "density.h5", "sharpness.h5", "product_cost.h5"}
    assert set(files) == measured | {"plane.h5", "curvature.h5"}
    for file in files.values():
        check_described(file)


@pytest.mark.usefixtures("no_figures")
def test_more_examples_than_there_are_is_all_of_them_and_says_so(tmp_path: Path) -> None:
    text = SMALL.replace("examples = 200", "examples = 5000\nepsilons = [1e-3]").replace("subspace = 5", "subspace = 0")
    (tmp_path / "recipe.toml").write_text(
        re.sub("(epochs|iterations) = .", r"\1 = 1", text).replace("_points = 5", "_points = 2")
    )
    assert invoke("run", tmp_path / "recipe.toml", "--out", tmp_path / "out").code == 0
    assert store.load(tmp_path / "out" / "comparison.h5").conditions["measured_on"] == "1437 training examples"


# Analyses of checkpoints


def analyzed(*arguments: Any) -> dict[str, Any]:
    """The numbers of the one checkpoint that was analysed."""
    ended = invoke("analyze", *arguments, "--json")
    assert ended.code == 0, ended
    (numbers,) = json.loads(ended.stdout)["checkpoints"].values()
    return numbers


@pytest.mark.usefixtures("no_figures")
def test_a_minimizer_of_a_run_knows_its_problem(small_run: SmallRun, tmp_path: Path) -> None:
    ends = [small_run.out / "seed-0" / regime / "minimizer.safetensors" for regime in ("SB", "LB")]
    ended = invoke("analyze", *ends, *QUICK, "--examples", 200, "--out", tmp_path / "out", "--json")
    found = json.loads(ended.stdout)["checkpoints"]
    compared = store.load(small_run.out / "comparison.h5")
    assert list(found) == ["SB-minimizer", "LB-minimizer"]
    for numbers, loss, value in zip(found.values(), compared.loss[:, 0], compared.eigenvalues[:, 0], strict=True):
        assert [numbers["train loss"], numbers["test loss"]] == pytest.approx(loss.tolist(), rel=1e-6)
        assert numbers["eigenvalues"] == pytest.approx(value.tolist(), rel=1e-4)
        assert numbers["measured on"] == "200 training examples"
        assert set(numbers["epsilon-sharpness"]) == {"eval-full-0.001", "batch-full-0.001"}
    for name in ("eigenpairs.h5", "sharpness.h5"):
        assert (tmp_path / "out" / "SB-minimizer" / name).exists()


@pytest.mark.usefixtures("no_figures")
def test_weights_from_elsewhere_give_the_same_numbers_in_every_form(foreign: Foreign) -> None:
    forms = [
        (foreign.save("w.pt"), "function"),
        (foreign.save("w.pth"), "value"),
        (foreign.save("w.safetensors"), "problem"),
        (foreign.save("m.pt", prefix="module."), "make_problem"),
        (foreign.save("m.safetensors", prefix="module."), "function"),
        (foreign.save("c.pt", prefix="_orig_mod.module."), "function"),
    ]
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in network_state().items()}}, foreign.folder / "d.pt"
    )
    forms.append((foreign.folder / "d.pt", "function"))
    every = [
        analyzed(path, "--problem", foreign.problem(name), *QUICK, "--out", foreign.folder / str(number))
        for number, (path, name) in enumerate(forms)
    ]
    assert all(numbers == every[0] for numbers in every)

    model = mlp([64, 8, 10], batchnorm=True)
    model.load_state_dict(network_state())
    inputs, targets = (part[:60] for part in load("digits").train)
    with torch.no_grad():
        output = model.eval()(inputs)
    assert every[0]["train loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(output, targets)), rel=1e-6)
    assert every[0]["train accuracy"] == float((output.argmax(1) == targets).double().mean())


@pytest.mark.usefixtures("no_figures")
def test_the_problems_own_weights_do_not_matter(foreign: Foreign) -> None:
    options = ("--problem", foreign.problem("function"), *QUICK, "--out")
    here = analyzed(foreign.save("a.pt"), *options, foreign.folder / "a")
    there = analyzed(
        foreign.save("b.pt", change=lambda t: t / 2 if t.is_floating_point() else t), *options, foreign.folder / "b"
    )
    assert here["train loss"] != there["train loss"]
    assert analyzed(foreign.save("c.pt"), *options, foreign.folder / "c") == here


@pytest.mark.usefixtures("no_figures")
def test_a_loss_without_accuracy_is_null_in_json(foreign: Foreign) -> None:
    torch.save({"weight": torch.zeros(1, 64), "bias": torch.zeros(1)}, foreign.folder / "w.pt")
    command = ("analyze", foreign.folder / "w.pt", "--problem", foreign.problem("slope"), *QUICK)
    printed = invoke(*command, "--out", foreign.folder / "out", "--json").stdout
    assert "NaN" not in printed
    (numbers,) = json.loads(printed)["checkpoints"].values()
    assert numbers["train accuracy"] is None
    assert numbers["train loss"] > 0


def refusal(foreign: Foreign, path: Path, name: str = "function", *options: Any) -> Ended:
    """``analyze`` with a problem, and that nothing but the configuration was written."""
    out = foreign.folder / "out"
    ended = invoke("analyze", path, "--problem", foreign.problem(name), *(options or QUICK), "--out", out)
    assert not list(out.rglob("*.h5"))
    return ended


def test_weights_without_a_problem_are_refused_with_advice(foreign: Foreign) -> None:
    for name in ("w.pt", "w.safetensors"):
        assert refused(invoke("analyze", foreign.save(name)), 2, "--problem FILE.py:NAME", name)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
@pytest.mark.parametrize("given", [True, False])
def test_a_file_that_is_missing_or_damaged_is_refused(foreign: Foreign, name: str, given: bool) -> None:
    options = ("--problem", foreign.problem("function")) if given else ()
    path = foreign.folder / name
    assert refused(invoke("analyze", path, *options), 2, name, "none")
    whole = foreign.save(name).read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20], b"", b"These are no weights.\n"):
        path.write_bytes(damaged)
        assert refused(invoke("analyze", path, *options), 2, name, "damaged")


def test_a_folder_is_no_checkpoint(foreign: Foreign) -> None:
    assert refused(refusal(foreign, foreign.folder), 2, "a folder")


def test_weights_of_another_architecture_are_refused_by_name(foreign: Foreign) -> None:
    state = network_state()
    other = {**state, "0.weight": torch.zeros(9, 64), "extra": torch.zeros(2)}
    del other["3.bias"]
    torch.save(other, foreign.folder / "w.pt")
    ended = refusal(foreign, foreign.folder / "w.pt")
    assert refused(ended, 2, "missing: 3.bias", "unexpected: extra", "0.weight: model (8, 64), file (9, 64)")


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


class TrappedModule(torch.nn.Linear):
    marker: Path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["module", "entry", "plain pickle"])
def test_nothing_in_a_pickle_is_executed(foreign: Foreign, form: str) -> None:
    marker, path = foreign.folder / "executed", foreign.folder / "w.pt"
    trap = Trap(marker)
    if form == "module":
        trapped = TrappedModule(2, 2)
        trapped.marker = marker
        torch.save(trapped, path)
    elif form == "entry":
        torch.save({"state_dict": network_state(), "trap": trap}, path)
    else:
        path.write_bytes(pickle.dumps(trap))
    for options in ((), ("--problem", foreign.problem("function"))):
        assert refused(invoke("analyze", path, *options), 2, "execute code", "state_dict()")
        assert not marker.exists()
    pickle.loads(path.read_bytes()) if form == "plain pickle" else torch.load(path, weights_only=False)
    assert marker.exists()  # the trap works


def test_weights_that_are_not_finite_end_with_1(foreign: Foreign) -> None:
    path = foreign.save("w.pt", change=lambda tensor: tensor * float("nan"))
    assert refused(refusal(foreign, path), 1, "finite loss", "Check the weights")


def test_a_model_that_answers_differently_twice_is_refused(foreign: Foreign) -> None:
    path = foreign.save("w.pt", prefix="net.")
    assert refused(refusal(foreign, path, "noisy"), 2, "two evaluations gave", "turn off what else is random")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--k", "100000"), "k = 100000"),
        (("--k", "0"), ">= 1"),
        (("--epsilon", "0"), "> 0"),
        (("--epsilon", "-0.001"), "> 0"),
        (("--epsilon", "0.001", "--epsilon", "nan"), "> 0"),
        (("--tolerance", "0"), "> 0"),
        (("--restarts", "0"), ">= 1"),
        (("--subspace", "-1"), ">= 0"),
        (("--density", "-1"), ">= 0"),
    ],
)
def test_an_option_out_of_range_is_refused_before_anything_is_computed(
    foreign: Foreign, options: tuple[str, ...], part: str
) -> None:
    assert refused(refusal(foreign, foreign.save("w.pt"), "function", *options), 2, part)


def test_a_negative_number_of_examples_is_refused(foreign: Foreign) -> None:
    assert "--examples" in (ended := refusal(foreign, foreign.save("w.pt"), "function", "--examples", -5)).stderr
    assert ended.code == 2


def test_the_first_examples_of_a_dataset_are_refused_with_what_to_do(foreign: Foreign) -> None:
    ended = refusal(foreign, foreign.save("w.pt"), "of_loader", "--examples", 10)
    assert refused(ended, 2, "TensorDataset", "Give a smaller data set")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("problems.py", ["FILE.py:NAME", "'{}problems.py'"]),
        ("problems.py:", ["FILE.py:NAME"]),
        ("none.py:function", ["existing file", "none.py"]),
        ("problems:function", ["FILE.py:NAME"]),
        ("problems.py:nobody", ["AttributeError", "nobody"]),
        ("problems.py:nothing", ["tuple (model, loss, train[, test])", "got int"]),
        ("problems.py:fails", ["ValueError: no such luck"]),
        ("broken.py:function", ["SyntaxError"]),
        ("absent.py:function", ["ModuleNotFoundError", "no_such_package"]),
    ],
)
def test_a_problem_that_cannot_be_made_is_refused(foreign: Foreign, spec: str, parts: list[str]) -> None:
    (foreign.folder / "broken.py").write_text("def function(:\n")
    (foreign.folder / "absent.py").write_text("import no_such_package\n")
    path = f"{foreign.folder}/"
    for command in (("analyze", foreign.save("w.pt")), ("landscape", foreign.save("w.pt")), ("doctor",), ("bench",)):
        ended = invoke(*command, "--problem", path + spec)
        assert refused(ended, 2, *(part.format(path) for part in parts))


# Landscapes


@pytest.mark.usefixtures("no_figures")
def test_one_checkpoint_is_the_middle_of_a_random_plane(foreign: Foreign) -> None:
    command = ("landscape", foreign.save("w.pt"), "--problem", foreign.problem("function"), "--points", 3)
    ended = invoke(*command, "--out", foreign.folder / "out", "--json")
    plane = store.load(foreign.folder / "out" / "plane.h5")
    assert json.loads(ended.stdout)["landscapes"][""]["loss"] == plane.loss.tolist()
    assert (plane.alpha.tolist(), plane.beta.tolist()) == ([-1, 0, 1], [-1, 0, 1])
    assert np.ptp(plane.loss[0]) > 0
    assert plane.batchnorm == "recompute"
    invoke(*command, "--out", foreign.folder / "other", "--seed", 1)
    other = store.load(foreign.folder / "other" / "plane.h5")
    assert (other.loss[:, 1, 1] == plane.loss[:, 1, 1]).all()  # another plane through the same point
    assert (other.loss[:, 0, 0] != plane.loss[:, 0, 0]).all()


@pytest.mark.usefixtures("no_figures")
def test_two_are_a_line_and_three_a_plane_through_them(foreign: Foreign) -> None:
    def half(t: torch.Tensor) -> torch.Tensor:
        return t / 2 if t.is_floating_point() else t

    def aside(t: torch.Tensor) -> torch.Tensor:
        """As far from the whole as the half is, at a right angle: a pair of weights (x, y) changes by (y, -x) / 2."""
        return t + torch.stack([t.view(-1, 2)[:, 1], -t.view(-1, 2)[:, 0]], 1).view_as(t) / 2 if t.ndim else t

    a, b, c = foreign.save("a.pt"), foreign.save("b.pt", change=half), foreign.save("c.pt", change=aside)
    options = ("--problem", foreign.problem("function"), "--points", 4, "--low", -1, "--high", 2, "--out")
    assert invoke("landscape", a, b, *options, foreign.folder / "line").code == 0
    line = store.load(foreign.folder / "line" / "line.h5")
    assert (line.alpha.tolist(), line.conditions["ends"]) == ([-1, 0, 1, 2], ["a", "b"])
    assert invoke("landscape", a, b, c, *options, foreign.folder / "plane").code == 0
    plane = store.load(foreign.folder / "plane" / "plane.h5")
    assert plane.loss[:, :, 1] == pytest.approx(line.loss, rel=1e-5)  # β = 0 is the line from a to b
    assert invoke("landscape", a, c, *options, foreign.folder / "side").code == 0
    side = store.load(foreign.folder / "side" / "line.h5")
    assert plane.loss[:, 1, :] == pytest.approx(side.loss, rel=1e-5)


def test_too_many_checkpoints_or_one_twice_or_two_models_are_refused(foreign: Foreign, small_run: SmallRun) -> None:
    one, problem = foreign.save("a.pt"), ("--problem", foreign.problem("function"), "--out", foreign.folder / "out")
    others = [foreign.save(f"{name}.pt") for name in "bcd"]
    through = invoke("landscape", one, *others, "--kind", "through", *problem)
    assert refused(through, 2, "expected 2 to 3 checkpoints for a landscape of kind through; got 4")
    same = invoke("landscape", one, *others, *problem)  # four of one place are no training run
    assert refused(same, 2, "iterates that span a plane")
    assert refused(invoke("landscape", one, one, *problem), 2, "twice")
    assert invoke("landscape", one, "--points", 1, *problem).code == 2
    minimizer = small_run.out / "seed-0" / "SB" / "minimizer.safetensors"
    assert refused(invoke("landscape", one, minimizer, *problem), 2, "fit the model")
    assert not list(foreign.folder.rglob("*.h5"))


# Checkpoints of other people, where they are at hand


@pytest.mark.usefixtures("no_figures")
def test_a_resnet_trained_elsewhere(
    real_data: Path, cifar10_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = real_data / "checkpoints" / "resnet20-12fca82f.th"
    if not checkpoint.exists():
        pytest.skip(f"no {checkpoint}")
    monkeypatch.setenv("SHARPNESS_DATA", str(cifar10_folder))
    problem = ("--problem", f"{resnet20.__file__}:few", "--examples", 32, *QUICK)
    numbers = analyzed(checkpoint, *problem, "--out", tmp_path / "out")

    model, _, train, test = resnet20.few()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()}, strict=False)
    for split, (inputs, targets) in {"train": train, "test": test}.items():
        with torch.no_grad():
            output = model.eval()(inputs)
        loss = float(torch.nn.functional.cross_entropy(output.double(), targets))
        assert numbers[f"{split} loss"] == pytest.approx(loss, rel=1e-4)
        assert numbers[f"{split} accuracy"] == float((output.argmax(1) == targets).double().mean())
    assert numbers["parameters"] == 269_722
    assert numbers["test accuracy"] > 0.88  # 91.73 % on all 10,000; the standard error on 300 is 1.6 %
    assert numbers["train accuracy"] > 0.99
    assert numbers["residuals"][0] <= 1e-3 * numbers["eigenvalues"][0]
    assert set(numbers["epsilon-sharpness"]) == {"eval-full-0.001", "batch-full-0.001"}


@pytest.mark.usefixtures("no_figures")
def test_a_lenet_saved_on_cuda(
    real_data: Path, mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = real_data / "checkpoints" / "lenet_mnist_saved_on_cuda.pth"
    if not checkpoint.exists():
        pytest.skip(f"no {checkpoint}")
    monkeypatch.setenv("SHARPNESS_DATA", str(mnist_folder))
    problem = ("--problem", f"{lenet.__file__}:problem", "--examples", 32, *QUICK)
    numbers = analyzed(checkpoint, *problem, "--out", tmp_path / "out")
    assert numbers["test accuracy"] == 0.9761
    assert numbers["parameters"] == 21_840
    assert numbers["converged"] == [True]


def test_a_pickled_module_from_elsewhere_is_refused(real_data: Path, foreign: Foreign) -> None:
    checkpoint = real_data / "checkpoints" / "lenet_mnist_pickled_module.pth"
    if not checkpoint.exists():
        pytest.skip(f"no {checkpoint}")
    for options in ((), ("--problem", foreign.problem("function"))):
        assert refused(invoke("analyze", checkpoint, *options), 2, "execute code", checkpoint.name, "state_dict()")
