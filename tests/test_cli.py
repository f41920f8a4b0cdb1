"""The command line as a stranger meets it: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import QUICK, SMALL, Foreign, SmallRun, contents, invoke, refused, run

from sharpness import __version__, store
from sharpness.recipes import RECIPES
from sharpness.records import ProductCost

pytest_plugins = "command_line"
pytestmark = pytest.mark.usefixtures("one_thread")

COMMANDS = ("run", "recipes", "train", "analyze", "landscape", "figures", "report", "export", "import", "info")
COMMANDS += ("bench", "doctor", "trajectory", "compare")
COMMON = ("--out", "--seed", "--device", "--dtype", "--quiet", "--json", "--debug")


def strict_json(text: str) -> Any:
    """JSON as every parser reads it: NaN and Infinity are none."""

    def no_number(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=no_number)


# Help


def test_help_lists_every_command_in_its_group() -> None:
    text = invoke("--help").stdout
    groups = ("Experiments", "Your checkpoints", "Results", "This machine")
    assert [text.index(group) for group in groups] == sorted(text.index(group) for group in groups)
    for command in COMMANDS:
        assert f" {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_common_options(command: str) -> None:
    ended = invoke(command, "--help")
    assert ended.code == 0
    for option in COMMON:
        assert option in ended.stdout


def test_help_says_the_defaults_that_are_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    said = {
        "run": ["the recipe's first", "the recipe's, or 0"],
        "analyze": ["1e-3 5e-4"],
        "landscape": ["by the kind", "recompute"],
        "figures": ["the first three"],
    }
    for command, defaults in said.items():
        text = invoke(command, "--help").stdout
        for default in defaults:
            assert f"[default: ({default})]" in text


def test_no_command_shows_the_help() -> None:
    assert "Experiments" in invoke().stdout + invoke().stderr


# Recipes


def test_recipes_lists_each_with_its_cost() -> None:
    listed = strict_json(invoke("recipes", "--json").stdout)
    assert listed == {
        name: {"summary": r.summary, "cost": r.cost, "scales": {scale: s.cost for scale, s in r.scales.items()}}
        for name, r in RECIPES.items()
    }
    table = invoke("recipes").stdout
    for name in RECIPES:
        assert name in table


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('recipe = "digits"\ntrials = \n', ["does not parse", "line 2"]),
        ("trials = 2", ['recipe = "digits"', "got none"]),
        ('recipe = "letters"', ["digits, keskar-f1", "'letters'"]),
        ('recipe = "digits"\nepoch = 3', ["one of the parameters", "got epoch"]),
        ('recipe = "digits"\n[sb]\nepoch = 3', ["epochs", "got sb.epoch"]),
        ('recipe = "digits"\ntrials = "three"', ["trials as int", "'three'"]),
        ('recipe = "digits"\ntrials = 1.5', ["trials as int", "1.5"]),
        ('recipe = "digits"\n[sb]\nepochs = true', ["sb.epochs as int", "True"]),
        ('recipe = "digits"\nsb = 3', ["[sb]", "3"]),
        ('recipe = "digits"\n[analysis]\nepsilons = ["a"]', ["analysis.epsilons", "'a'"]),
        ('recipe = "digits"\n[analysis]\nepsilons = [-0.001]', ["epsilons", "> 0"]),
        ('recipe = "digits"\n[analysis]\neigenpairs = 0', ["eigenpairs = 0", ">= 1"]),
        ('recipe = "digits"\n[analysis]\nexamples = -5', ["examples = -5", ">= 0"]),
        ('recipe = "digits"\nmodel = "vgg"', ["digits-mlp, mlp, keskar-f1", "'vgg'"]),
        ('recipe = "digits"\ndata = "letters"', ["digits, mnist, cifar10", "'letters'"]),
        ('recipe = "digits"\n[lb]\noptimizer = "adamw"', ["adam or sgd", "'adamw'"]),
        ('recipe = "digits"\n[lb]\nlearning_rate = 0.0', ["learning_rate", "> 0"]),
    ],
)
def test_a_wrong_recipe_file_is_refused(command: str, text: str, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    ended = invoke(command, tmp_path / "recipe.toml", "--out", tmp_path / "out")
    assert refused(ended, 2, *parts)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    assert refused(invoke("run", "letters"), 2, "digits, keskar-f1", "'letters'")
    assert refused(invoke("run", tmp_path / "none.toml"), 2, "none.toml")
    (tmp_path / "folder.toml").mkdir()
    assert refused(invoke("run", tmp_path / "folder.toml"), 2, "folder.toml")


def test_a_recipe_without_its_data_says_where_it_looked_for_them(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    assert refused(invoke("run", "keskar-f1", "--out", tmp_path / "out"), 2, "SHARPNESS_DATA")
    ended = invoke("run", "keskar-f1", "--out", tmp_path / "out", "--data-dir", tmp_path)
    assert refused(ended, 2, "train-images-idx3-ubyte")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--trials", "0"), "trials = 0 (>= 1)"),
        (("--dtype", "float16"), "float32 or float64"),
        (("--device", "abacus"), "abacus"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--seed", "-1"), "seed"),
        (("--seed", "one"), "--seed"),
        (("--colour", "red"), "--colour"),
    ],
)
def test_an_option_out_of_range_is_refused(options: tuple[str, ...], part: str, tmp_path: Path) -> None:
    ended = invoke("train", "digits", "--out", tmp_path / "out", *options)
    assert ended.code == 2
    assert part in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


def test_trials_and_seed_come_before_those_of_the_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("seed = 5\n" + SMALL.replace("trials = 1", "trials = 3"))
    ended = invoke("train", recipe, "--out", tmp_path / "out", "--trials", 2, "--seed", 0, "--json")
    made = [(seed, regime) for seed, regime, *_ in strict_json(ended.stdout)["minimizers"]]
    assert made == [("0", "SB"), ("0", "LB"), ("1", "SB"), ("1", "LB")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run.json", "seed-0", "seed-1"]


def test_training_that_diverges_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(SMALL.replace("[sb]", '[sb]\noptimizer = "sgd"\nlearning_rate = 1e30'))
    ended = invoke("train", tmp_path / "recipe.toml", "--out", tmp_path / "out")
    assert refused(ended, 1, "finite training loss", "Lower the learning rate")


# What commands print


@pytest.mark.usefixtures("no_figures")
def test_json_alone_is_on_standard_output(small_run: SmallRun) -> None:
    ended = invoke("run", small_run.recipe, "--out", small_run.out, "--json")
    printed = strict_json(ended.stdout)
    assert ended.stderr == ""
    assert printed["out"] == str(small_run.out)
    assert all(len(row) == 4 for row in printed["table"])


@pytest.mark.usefixtures("no_figures")
def test_quiet_prints_nothing(small_run: SmallRun, tmp_path: Path) -> None:
    minimizer = small_run.out / "seed-0" / "SB" / "minimizer.safetensors"
    for command in (
        ("run", small_run.recipe, "--out", small_run.out),
        ("train", small_run.recipe, "--out", small_run.out),
        ("landscape", minimizer, "--points", 2, "--examples", 10, "--out", tmp_path / "plane"),
        ("export", tmp_path / "plane" / "plane.h5"),
        ("report", tmp_path / "plane"),
        ("info", minimizer),
        ("info", small_run.out / "comparison.h5"),
        ("recipes",),
        ("doctor",),
    ):
        assert invoke(*command, "--quiet") == (0, "", "")


def test_an_unexpected_error_is_one_message_and_its_traceback_is_there_on_request(foreign: Foreign) -> None:
    torch.save({"weight": torch.zeros(10, 63), "bias": torch.zeros(10)}, foreign.folder / "w.pt")
    command = (
        "analyze",
        foreign.folder / "w.pt",
        "--problem",
        foreign.problem("narrow"),
        "--out",
        foreign.folder / "o",
    )
    ended = invoke(*command)
    assert refused(ended, 1, "63x10", "--debug")
    with pytest.raises(Exception, match="63x10"):
        invoke(*command, "--debug")


@pytest.mark.usefixtures("no_figures")
def test_names_with_brackets_are_printed_as_they_are(foreign: Foreign) -> None:
    out = foreign.folder / "[b]x[/y]"
    command = ("analyze", foreign.save("w.pt"), "--problem", foreign.problem("function"), *QUICK, "--out", out)
    ended = invoke(*command)
    assert ended.code == 0
    assert "[b]x[/y]" in ended.stdout


# Figures


def test_figures_are_drawn_without_torch_and_are_the_same(small_run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "absent" / "torch").mkdir(parents=True)
    (tmp_path / "absent" / "torch" / "__init__.py").write_text("raise ImportError('no torch here')")
    shutil.copytree(small_run.out, tmp_path / "out", ignore=shutil.ignore_patterns("figures"))
    ended = run("figures", tmp_path / "out", PYTHONPATH=str(tmp_path / "absent"))
    assert (ended.code, ended.stderr) == (0, "")
    assert contents(tmp_path / "out" / "figures") == contents(small_run.out / "figures")
    assert sorted(ended.stdout.split()) == sorted(str(path) for path in (tmp_path / "out" / "figures").iterdir())
    assert run("recipes", PYTHONPATH=str(tmp_path / "absent")).code == 1  # torch is absent indeed


def test_figures_of_one_file_lie_beside_it(small_run: SmallRun, tmp_path: Path) -> None:
    shutil.copy(small_run.out / "seed-0" / "line.h5", tmp_path)
    ended = invoke("figures", tmp_path / "line.h5", "--format", "svg", "--format", "png", "--json")
    assert strict_json(ended.stdout) == [str(tmp_path / "line.svg"), str(tmp_path / "line.png")]
    assert {path.name for path in tmp_path.iterdir()} == {"line.h5", "line.svg", "line.png"}
    assert (tmp_path / "line.png").read_bytes()[:4] == b"\x89PNG"


def test_figures_of_nothing_are_refused(small_run: SmallRun, tmp_path: Path) -> None:
    assert refused(invoke("figures", tmp_path), 2, "results (.h5 files)")
    assert refused(invoke("figures", tmp_path / "none"), 2, "none")
    assert refused(invoke("figures", small_run.recipe), 2, "HDF5")
    assert refused(invoke("figures", small_run.out, "--format", "jpg"), 2, "svg, pdf, png", "jpg")
    (tmp_path / "half.h5").write_bytes((small_run.out / "comparison.h5").read_bytes()[:5000])
    assert refused(invoke("figures", tmp_path), 2, "half.h5", "damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["half.h5"]


# Info


def test_info_of_results_names_every_variable_and_where_they_come_from(small_run: SmallRun) -> None:
    file = small_run.out / "seed-0" / "SB" / "eigenpairs.h5"
    printed = strict_json(invoke("info", file, "--json").stdout)
    assert printed["records"] == {"eigenpairs": "eigenpairs"}
    assert printed["provenance"]["sharpness"] == __version__
    assert printed["provenance"]["libraries"]["torch"] == torch.__version__
    assert str(small_run.out) in printed["provenance"]["command"]
    text = run("info", file).stdout
    for word in ("eigenvalues", "residuals", "tolerance", "seed", "git_commit", "float32"):
        assert word in text


def test_info_of_a_minimizer_is_its_metadata(small_run: SmallRun) -> None:
    file = small_run.out / "seed-0" / "LB" / "minimizer.safetensors"
    printed = strict_json(invoke("info", file, "--json").stdout)
    expected = {"recipe": "digits", "regime": "LB", "seed": 0, "epochs": 3, "stopped": "epoch limit"}
    assert {name: printed[name] for name in expected} == expected
    assert printed["plan"]["batch_size"] == 500
    line = store.load(small_run.out / "seed-0" / "line.h5")
    assert printed["theta_sha256"] == line.end
    assert line.end in invoke("info", file).stdout.replace("\n", "").replace(" ", "")


def test_info_of_something_else_is_refused(small_run: SmallRun, foreign: Foreign) -> None:
    for path in (foreign.folder, foreign.folder / "none.h5", foreign.folder / "none.safetensors", small_run.recipe):
        assert refused(invoke("info", path), 2, path.name)
    assert refused(invoke("info", foreign.save("w.safetensors")), 2, "w.safetensors")


# Bench


def test_bench_gives_the_cost_of_a_product_in_gradients(tmp_path: Path) -> None:
    command = ("bench", "--model", "digits-mlp", "--examples", 200, "--repeats", 2, "--out", tmp_path)
    printed = strict_json(invoke(*command, "--json").stdout)
    assert (printed["parameters"], printed["examples"]) == (26634, 200)
    record = store.load(tmp_path / "product_cost.h5")
    assert isinstance(record, ProductCost)
    assert len(record.repeat) == 2
    assert printed["product_in_gradients_least"] <= printed["product_in_gradients"]
    assert printed["relative_error"] == record.relative_error < 1e-4
    assert "G" in invoke(*command).stdout


def test_bench_of_a_problem_measures_that(foreign: Foreign) -> None:
    command = ("bench", "--problem", foreign.problem("function"), "--repeats", 1, "--json")
    assert strict_json(invoke(*command).stdout)["examples"] == 60
    assert strict_json(invoke(*command, "--examples", 20).stdout)["examples"] == 20
    assert strict_json(invoke(*command, "--dtype", "float64").stdout)["relative_error"] == 0


def test_bench_of_what_is_not_there_is_refused(foreign: Foreign) -> None:
    assert refused(invoke("bench", "--model", "vgg"), 2, "digits-mlp, mlp, keskar-f1")
    assert refused(invoke("bench", "--problem", foreign.problem("nobody")), 2, "nobody")
    assert invoke("bench", "--repeats", 0).code == 2
    assert invoke("bench", "--examples", -3).code == 2


# Doctor


def test_doctor_lists_versions_and_devices() -> None:
    checks = {check["name"]: check for check in strict_json(invoke("doctor", "--json").stdout)}
    assert checks["torch"]["seen"] == torch.__version__
    assert "cuda devices" in checks
    assert all(check["good"] for check in checks.values())
    assert "ok" in invoke("doctor").stdout


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_doctor_finds_nothing_wrong_with_a_good_problem(foreign: Foreign, dtype: str) -> None:
    ended = invoke("doctor", "--problem", foreign.problem("function"), "--dtype", dtype, "--json")
    checks = {check["name"]: check for check in strict_json(ended.stdout)}
    assert ended.code == 0
    assert all(check["good"] for check in checks.values())
    difference = float(checks["product against float64"]["seen"].split()[-1])
    assert (difference == 0) == (dtype == "float64")


@pytest.mark.parametrize(("name", "seen"), [("noisy", "two evaluations gave"), ("narrow", "63x10")])
def test_doctor_finds_what_is_wrong(foreign: Foreign, name: str, seen: str) -> None:
    ended = invoke("doctor", "--problem", foreign.problem(name), "--json")
    wrong = [check for check in strict_json(ended.stdout) if not check["good"]]
    assert ended.code == 1
    assert [check["name"] for check in wrong] == ["objective"]
    assert seen in wrong[0]["seen"]
    assert wrong[0]["cure"]
    assert "FAILS" in invoke("doctor", "--problem", foreign.problem(name)).stdout
