"""Whatever ends a command, the same command goes on from there and ends with the same bits."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from command_line import (
    QUICK,
    SMALL,
    Ended,
    Foreign,
    SmallRun,
    contents,
    environment,
    invoke,
    refused,
    results,
    snapshot,
    start,
    weights,
)

from sharpness import store

pytest_plugins = "command_line"
pytestmark = pytest.mark.usefixtures("one_thread")

SIZE_OF_WEIGHTS = 109_000  # bytes, of a minimizer of the small run


def disturbed(troubles: list[Any], *arguments: Any) -> list[Ended]:
    """How the command ended under each trouble in turn (see ``disturbed.py``)."""
    script = Path(__file__).with_name("disturbed.py")
    command = [sys.executable, str(script), json.dumps(troubles), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(), timeout=300)
    return [Ended(*child) for child in json.loads(done.stdout)]


KILLED, FULL, INTERRUPTED = -signal.SIGKILL, 1, 130
TROUBLES: list[tuple[list[Any], int]] = [  # and the exit code of the start that meets them
    (["limit", 500], FULL),  # nothing can be written
    (["replace", "run.json", 1, "SIGKILL"], KILLED),
    (["limit", SIZE_OF_WEIGHTS // 2], FULL),  # no weights can be written
    (["limit", SIZE_OF_WEIGHTS * 2], FULL),  # no state of training can
    (["flush", "SB/history.h5", 2, "SIGKILL"], KILLED),  # training: an epoch's values written, its status not
    (["replace", "SB/training.safetensors", 2, "SIGKILL"], KILLED),  # the checkpoint of the second epoch half-way
    (["flush", "SB/history.h5", 2, "SIGINT"], INTERRUPTED),
    (["replace", "SB/minimizer.safetensors", 1, "SIGKILL"], KILLED),
    (["replace", "SB/history.h5", 1, "SIGKILL"], KILLED),  # the minimizer is there, its history not finished
    (["flush", "LB/history.h5", 5, "SIGKILL"], KILLED),
    (["flush", "SB/eigenpairs.products.h5", 7, "SIGKILL"], KILLED),  # analysis: a fourth product computed, not noted
    (["flush", "SB/eigenpairs.products.h5", 10, "SIGKILL"], KILLED),
    (["replace", "SB/eigenpairs.h5", 1, "SIGINT"], INTERRUPTED),  # eigenpairs found and not yet there
    (["unlink", "SB/eigenpairs.products.h5", 1, "SIGKILL"], KILLED),  # there, and their products too
    (["replace", "SB/sharpness.h5", 1, "SIGKILL"], KILLED),  # eigenvalues there, sharpness computed and not yet there
    (["flush", "SB/trajectory.h5", 3, "SIGKILL"], KILLED),  # along the iterates that were kept
    (["flush", "LB/plane.h5", 2, "SIGKILL"], KILLED),  # landscape
    (["flush", "seed-0/line.h5", 5, "SIGKILL"], KILLED),
    (["replace", "comparison.h5", 1, "SIGKILL"], KILLED),
]


class Troubled(NamedTuple):
    """A run that met every trouble, each start going on in the folder that the last one left, and then none."""

    out: Path
    ends: list[Ended]


@pytest.fixture(scope="module")
def troubled(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Troubled:
    out = tmp_path_factory.mktemp("troubled") / "out"
    troubles = [trouble for trouble, _ in TROUBLES]
    return Troubled(out, disturbed([*troubles, None], "run", small_run.recipe, "--out", out, "--quiet"))


def test_every_start_met_its_trouble_and_the_last_one_ended_well(troubled: Troubled) -> None:
    assert [end.code for end in troubled.ends] == [*(code for _, code in TROUBLES), 0]
    assert troubled.ends[-1] == (0, "", "")


def test_a_run_killed_again_and_again_ends_with_the_same_bits(troubled: Troubled, small_run: SmallRun) -> None:
    assert weights(troubled.out) == weights(small_run.out)
    assert results(troubled.out) == results(small_run.out)


def test_a_troubled_run_leaves_the_same_files_and_figures(troubled: Troubled, small_run: SmallRun) -> None:
    left, undisturbed = ({p.relative_to(out) for p in out.rglob("*")} for out in (troubled.out, small_run.out))
    assert left == undisturbed
    for figure in (small_run.out / "figures").iterdir():
        assert (troubled.out / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_an_interrupt_is_one_message(troubled: Troubled) -> None:
    ends = [end for end in troubled.ends if end.code == INTERRUPTED]
    assert len(ends) == 2
    for end in ends:
        assert end.stdout == ""
        assert end.stderr == "Interrupted. What was computed is kept; the same command goes on from there.\n"


def test_a_full_disk_is_one_message(troubled: Troubled) -> None:
    ends = [end for end in troubled.ends if end.code == FULL]
    assert len(ends) == 3
    for end in ends:
        assert refused(end, FULL, "File too large", "the same command goes on")


@pytest.mark.parametrize("limit", [500, SIZE_OF_WEIGHTS // 2])
def test_a_full_disk_leaves_nothing_half_written(limit: int, small_run: SmallRun, tmp_path: Path) -> None:
    """Here the limit is that of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        end = invoke("train", small_run.recipe, "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused(end, FULL, "File too large")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == ({"run.json"} if limit > 1000 else set())


def test_run_goes_on_from_what_train_left(small_run: SmallRun, tmp_path: Path) -> None:
    trained = invoke("train", small_run.recipe, "--out", tmp_path / "out", "--json")
    assert trained.code == 0
    assert json.loads(trained.stdout)["minimizers"] == [["0", regime, "3", "epoch limit"] for regime in ("SB", "LB")]
    assert weights(tmp_path / "out") == weights(small_run.out)
    before = snapshot(tmp_path / "out")
    (end,) = disturbed([["nothing"]], "run", small_run.recipe, "--out", tmp_path / "out", "--quiet")
    assert end == (0, "", "")
    assert {name: snapshot(tmp_path / "out")[name] for name in before} == before
    assert results(tmp_path / "out") == results(small_run.out)


@pytest.mark.usefixtures("no_figures")
def test_a_finished_run_is_left_as_it_is_by_the_same_command(small_run: SmallRun, tmp_path: Path) -> None:
    shutil.copytree(small_run.out, tmp_path / "out")
    again = invoke("run", small_run.recipe, "--out", tmp_path / "out", "--json")
    assert again.code == 0
    assert contents(tmp_path / "out") == contents(small_run.out)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (("--seed", "1"), "parameters.seed (0 there, 1 here)"),
        (("--trials", "2"), "parameters.trials (1 there, 2 here)"),
        (("--dtype", "float64"), "dtype ('torch.float32' there, 'torch.float64' here)"),
    ],
)
def test_another_configuration_is_refused_by_its_difference(
    small_run: SmallRun, change: tuple[str, str], difference: str
) -> None:
    before = snapshot(small_run.out)
    ended = invoke("run", small_run.recipe, "--out", small_run.out, *change)
    assert refused(ended, 2, difference, "Choose another --out")
    assert snapshot(small_run.out) == before


def test_a_changed_recipe_file_is_another_configuration(small_run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(SMALL.replace("batch_size = 500", "batch_size = 400"))
    ended = invoke("train", tmp_path / "other.toml", "--out", small_run.out)
    assert refused(ended, 2, "parameters.regimes.LB.batch_size (500 there, 400 here)")


def test_another_commands_folder_and_a_folder_of_other_files_are_refused(small_run: SmallRun, tmp_path: Path) -> None:
    minimizer = small_run.out / "seed-0" / "SB" / "minimizer.safetensors"
    assert refused(invoke("analyze", minimizer, *QUICK, "--out", small_run.out), 2, "command (None there, 'analyze'")
    (tmp_path / "notes.txt").write_text("mine")
    assert refused(invoke("run", small_run.recipe, "--out", tmp_path), 2, "holds other files")
    assert refused(invoke("run", small_run.recipe, "--out", tmp_path / "notes.txt"), 2, "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_damaged_configuration_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"recipe":')
    (tmp_path / "line.h5").write_bytes(b"")
    assert refused(invoke("run", small_run.recipe, "--out", tmp_path), 2, "run.json", "damaged")


@pytest.mark.usefixtures("no_figures")
def test_an_interrupted_line_is_completed_and_equal(small_run: SmallRun, tmp_path: Path) -> None:
    """Here the interrupt comes from outside, as soon as the file is there."""
    ends = [small_run.out / "seed-0" / regime / "minimizer.safetensors" for regime in ("SB", "LB")]
    command = ("landscape", *ends, "--points", 201, "--examples", 100, "--out")
    process = start(*command, tmp_path / "out")
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "line.h5").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert "Interrupted." in process.communicate(timeout=120)[1]
    assert process.returncode == INTERRUPTED
    assert invoke(*command, tmp_path / "out").code == 0
    assert invoke(*command, tmp_path / "undisturbed").code == 0
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")
    assert (store.load(tmp_path / "out" / "line.h5").status == 1).all()


@pytest.mark.usefixtures("no_figures")
def test_a_killed_plane_can_be_read_and_is_completed_and_equal(foreign: Foreign, tmp_path: Path) -> None:
    command = ("landscape", foreign.save("w.pt"), "--problem", foreign.problem("function"), "--points", 4, "--out")
    (end,) = disturbed([["flush", "plane.h5", 5, "SIGKILL"]], *command, tmp_path / "out")
    assert end.code == KILLED
    plane = store.load(tmp_path / "out" / "plane.h5")
    assert plane.status.tolist() == [[1, 1, 0, 0], *[[0] * 4] * 3]
    assert np.isfinite(plane.loss[:, 0, :2]).all()
    assert invoke(*command, tmp_path / "out").code == 0
    assert invoke(*command, tmp_path / "undisturbed").code == 0
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")


# Analyses


@pytest.mark.usefixtures("no_figures")
def test_an_analysis_is_read_back_and_another_is_refused(foreign: Foreign, tmp_path: Path) -> None:
    weights_file = foreign.save("w.pt")
    command = ("analyze", weights_file, "--problem", foreign.problem("function"), *QUICK, "--out", tmp_path / "out")
    first = invoke(*command, "--json")
    before = snapshot(tmp_path / "out")
    again = invoke(*command, "--json")
    assert first.code == again.code == 0
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert snapshot(tmp_path / "out") == before
    assert refused(invoke(*command, "--k", "2"), 2, "plan.eigenpairs (1 there, 2 here)")
    foreign.save("w.pt", change=lambda tensor: 2 * tensor)
    assert refused(invoke(*command), 2, "checkpoints.w")
    assert snapshot(tmp_path / "out") == before


@pytest.mark.usefixtures("no_figures")
def test_a_problem_file_that_was_edited_is_another_configuration(foreign: Foreign, tmp_path: Path) -> None:
    command = ("analyze", foreign.save("w.pt"), "--problem", foreign.problem("function"), *QUICK)
    command += ("--out", tmp_path / "out")
    assert invoke(*command).code == 0
    file = foreign.folder / "problems.py"
    file.write_text(file.read_text().replace(":60]", ":50]"))
    assert refused(invoke(*command), 2, "problem.sha256")


@pytest.mark.usefixtures("no_figures")
def test_a_start_that_failed_at_once_does_not_occupy_its_folder(foreign: Foreign, tmp_path: Path) -> None:
    problem, out = ("--problem", foreign.problem("function")), ("--out", tmp_path / "out")
    bad = foreign.save("nan.pt", change=lambda tensor: tensor * float("nan"))
    assert refused(invoke("analyze", bad, *problem, *QUICK, *out), 1)
    assert invoke("analyze", foreign.save("w.pt"), *problem, *QUICK, *out).code == 0
