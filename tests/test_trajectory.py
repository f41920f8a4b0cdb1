"""Checkpoints of one run, one after the other: their order, their numbers, kills on the way, and the figure."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Foreign, invoke, network_state, refused, results
from test_render import texts, trajectory
from test_resume import KILLED, disturbed
from torch import nn

import sharpness as sh
from sharpness import store
from sharpness.checkpoints import Minimizer
from sharpness.operators import Hessian
from sharpness.recipes import AnalysisPlan, Source, follow_checkpoints
from sharpness.recipes.curvature import curvature
from sharpness.recipes.steps import in_order, stability_edge
from sharpness.records import Trajectory
from sharpness.render import draw, draw_figure
from sharpness.training import TrainingPlan

pytest_plugins = "command_line"
pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = AnalysisPlan(eigenpairs=2, epsilons=(1e-3,), subspace=0, iterations=3, restarts=1)
QUICK = ("--k", "2", "--restarts", "1", "--probes", "4")
SCALES = {3: 1.0, 10: 1.05, 25: 1.2}  # of the weights of a run's three checkpoints, by step


def run_of(foreign: Foreign) -> list[Path]:
    """Three checkpoints of one run, the last one first."""
    paths = [foreign.save(f"step-{step}.pt", lambda t, s=scale: t * s) for step, scale in SCALES.items()]
    return paths[::-1]


def follow(foreign: Foreign, out: Path, paths: list[Path] | None = None, **changes: Any) -> Trajectory:
    options = {"source": Source(foreign.problem("function")), "probes": 6, **changes}
    return follow_checkpoints(paths or run_of(foreign), PLAN, out, **options).trajectory


def objectives_of(foreign: Foreign) -> tuple[dict[str, sh.Objective], list[sh.Point]]:
    """The problem's objectives, and the points of the three checkpoints in their order."""
    made = Source(foreign.problem("function")).make()
    objectives, _ = made.objectives(device="cpu", dtype=torch.float32)
    points = []
    for scale in SCALES.values():
        made.model.load_state_dict({name: t * scale for name, t in network_state().items()})
        points.append(sh.Point.of(made.model, objectives["train"].space))
    return objectives, points


# Their order


def test_steps_in_the_files_order_them(tmp_path: Path) -> None:
    paths = []
    for name, step in (("b", 7), ("a", 30), ("c", 100)):
        torch.save({"state_dict": network_state(), "global_step": step, "epoch": 1}, tmp_path / f"{name}.ckpt")
        paths.append(tmp_path / f"{name}.ckpt")
    found = in_order([paths[2], paths[0], paths[1]])
    assert (found.numbers, found.files, found.counts) == ([7, 30, 100], paths, "step")
    assert found.origin == "as the files say"


def minimizer(path: Path, **metadata: Any) -> Path:
    return Minimizer({"weight": torch.ones(2)}, {}, metadata).save(path)


def test_epochs_of_minimizers_order_them(tmp_path: Path) -> None:
    paths = [minimizer(tmp_path / f"{number}.safetensors", epochs=epochs) for number, epochs in enumerate((9, 2, 4))]
    found = in_order(paths)
    assert (found.numbers, found.counts) == ([2, 4, 9], "epoch")
    assert found.files == [paths[1], paths[2], paths[0]]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["net-10.pt", "net-9.pt", "net-100.pt"], [9, 10, 100]),
        (["2-layers-7.pt", "2-layers-05.pt"], [5, 7]),  # the 2 does not differ
        (["epoch-1-step-10.pt", "epoch-2-step-20.pt"], None),  # two that do
        (["net-1.pt", "net-01.pt"], None),  # no two
        (["net-1.pt", "last.pt"], None),  # of another form
        (["a-99999999999999999999.pt", "a-88888888888888888888.pt"], None),  # no steps
    ],
)
def test_numbers_in_names_order_them(names: list[str], numbers: list[int] | None, tmp_path: Path) -> None:
    for name in names:
        torch.save(network_state(), tmp_path / name)
    found = in_order([tmp_path / name for name in names])
    assert found.counts == "file"
    if numbers is None:
        assert (found.numbers, [path.name for path in found.files]) == (list(range(len(names))), names)
        assert found.origin == "in the order given"
    else:
        assert found.numbers == numbers
        assert found.origin == "by the numbers in their names"


def test_the_end_may_be_there_twice(tmp_path: Path) -> None:
    paths = [
        minimizer(tmp_path / f"{name}.safetensors", epochs=epochs) for name, epochs in (("b", 3), ("a", 9), ("end", 9))
    ]
    found = in_order([paths[1], paths[2], paths[0]])
    assert (found.numbers, found.files, found.counts) == ([3, 9, 9], paths, "epoch")


def test_the_same_step_everywhere_leaves_the_order_to_the_names(tmp_path: Path) -> None:
    for name in ("9", "10"):
        torch.save({"model": network_state(), "epoch": 1}, tmp_path / f"{name}.pt")
    assert in_order([tmp_path / "10.pt", tmp_path / "9.pt"]).numbers == [9, 10]


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_descent_is_stable_below_the_edge_and_not_above(momentum: float, nesterov: bool, weight_decay: float) -> None:
    choices = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    plan = TrainingPlan(1, 1, "sgd", 0.1, **choices)
    edge = stability_edge(plan, 1)
    for share, ends_near in ((0.9, True), (1.1, False)):
        theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([theta], plan.learning_rate, **choices)
        for _ in range(400):
            optimizer.zero_grad()
            (0.5 * (share * edge + (share - 1) * weight_decay) * theta.square()).sum().backward()
            optimizer.step()
        assert (abs(theta.item()) < 1e-3) == ends_near


def test_the_edge_follows_the_schedule_and_adaptive_methods_have_none() -> None:
    plan = TrainingPlan(1, 4, "sgd", 0.1, schedule="step", milestones=(2,))
    assert [stability_edge(plan, epoch) for epoch in (1, 2, 3)] == pytest.approx([20, 20, 200])
    assert math.isnan(stability_edge(TrainingPlan(1, 4), 1))


# Their numbers


def test_numbers_are_those_of_each_checkpoint(foreign: Foreign, tmp_path: Path) -> None:
    """Against dense Hessians, and against what the functions for one point say."""
    record = follow(foreign, tmp_path / "out")
    assert record.curvature is not None
    assert (record.epoch.tolist(), record.counts) == (list(SCALES), "file")
    assert record.checkpoint is not None
    assert record.checkpoint.tolist() == [f"step-{step}" for step in SCALES]
    assert (record.status == 1).all()
    assert record.edge is None
    objectives, points = objectives_of(foreign)
    train = objectives["train"]
    for row, point in enumerate(points):
        scores = [objective.evaluate(point) for objective in objectives.values()]
        assert record.loss[:, row].tolist() == [score.loss for score in scores]
        assert record.accuracy[:, row].tolist() == [score.accuracy for score in scores]
        found = sh.epsilon_sharpness(train, point, 1e-3, iterations=3, restarts=1, seed=0)
        for name in ("sharpness", "stronger", "first_order", "gradient_norm"):
            assert getattr(record, name)[row] == getattr(found, name), name
        assert record.weight_norm[row] == float(point.theta.double().norm())
        assert record.distance[row] == float((point.theta - points[0].theta).double().norm())
        hessian = (Hessian(train, point) @ torch.eye(train.size)).double().numpy()
        values = np.linalg.eigvalsh((hessian + hessian.T) / 2)[::-1]
        rounding = 1e-5 * np.abs(values).max()
        assert (
            np.abs(record.curvature.eigenvalues[:, row] - values[:2]) <= record.curvature.residuals[:, row] + rounding
        ).all()
        assert record.curvature.converged[:, row].all()
        assert abs(record.curvature.trace[row] - values.sum()) <= 5 * record.curvature.trace_error[row]


def test_a_start_saves_products_and_changes_no_answer(foreign: Foreign, tmp_path: Path) -> None:
    objectives, points = objectives_of(foreign)

    def found(start: torch.Tensor | None) -> Any:
        place = tmp_path / "products.h5"
        place.unlink(missing_ok=True)
        options: dict[str, Any] = {"probes": 4, "start": start, "progress": lambda *_: None}
        return curvature(objectives["train"], points[1], PLAN, place, **options)

    cold = found(None)
    warm = found(cold.pairs.vectors)
    assert warm.pairs.products < cold.pairs.products
    allowed = warm.pairs.residuals + cold.pairs.residuals
    assert (np.abs(warm.pairs.eigenvalues - cold.pairs.eigenvalues) <= allowed).all()
    # the same vectors less the same pairs
    assert warm.trace.value == pytest.approx(cold.trace.value, rel=1e-3)


def test_each_search_begins_at_the_pairs_before(foreign: Foreign, tmp_path: Path) -> None:
    """The same weights three times: the first search finds what the others only confirm."""
    paths = [foreign.save(f"same-{number}.pt") for number in range(3)]
    record = follow(foreign, tmp_path / "out", paths)
    assert record.products is not None
    assert max(record.products[1:]) < record.products[0]
    assert record.distance.tolist() == [0, 0, 0]


def test_parameters_by_pattern_are_measured_alone(foreign: Foreign, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, parameters=("*bias",))
    source = Source(foreign.problem("function"))
    record, _ = follow_checkpoints(run_of(foreign), plan, tmp_path / "out", source=source)
    objectives, points = objectives_of(foreign)
    assert record.curvature is not None
    for row, point in enumerate(points):
        part, there = objectives["train"].restricted("*bias", point)
        hessian = (Hessian(part, there) @ torch.eye(part.size)).double().numpy()
        largest = np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]
        assert record.curvature.eigenvalues[0, row] == pytest.approx(
            largest, abs=record.curvature.residuals[0, row] + 1e-5
        )
        assert record.gradient_norm[row] == pytest.approx(float(part.gradient(there).norm()), rel=1e-5)


def test_a_checkpoint_that_is_not_finite_is_a_gap(foreign: Foreign, tmp_path: Path) -> None:
    paths = run_of(foreign)
    foreign.save("step-10.pt", lambda t: t * math.nan if t.is_floating_point() else t)
    record = follow(foreign, tmp_path / "out", paths)
    assert record.curvature is not None
    assert record.status.tolist() == [1, 2, 1]
    assert np.isnan(record.curvature.eigenvalues[:, 1]).all()
    assert np.isfinite(record.curvature.eigenvalues[:, [0, 2]]).all()
    assert record.curvature.converged.tolist() == [[True, False, True]] * 2
    assert any("not finite at 1 of 3" in text for text in texts(draw(record).figure))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data": "5"}, "fingerprint of the data ('4' and '5')"),
        ({"parameters": {"model": "mlp", "train_examples": 100}}, "train_examples (0 and 100)"),
        ({"parameters": {"model": "keskar-f1", "train_examples": 0}}, "model ('mlp' and 'keskar-f1')"),
    ],
)
def test_minimizers_of_other_data_or_models_are_refused(changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    about = {"epochs": 1, "data": "4", "parameters": {"model": "mlp", "train_examples": 0}}
    first = minimizer(tmp_path / "1.safetensors", **about)
    second = minimizer(tmp_path / "2.safetensors", **about | {"epochs": 2} | changes)
    ended = invoke("trajectory", first, second, *QUICK, "--out", tmp_path / "out")
    assert refused(ended, 2, "one model and the same data", part)
    assert not (tmp_path / "out").exists()


# Kills


@pytest.mark.usefixtures("no_figures")
def test_killed_it_goes_on_and_ends_with_the_same_bits(foreign: Foreign, tmp_path: Path) -> None:
    command = ("trajectory", *run_of(foreign), "--problem", foreign.problem("function"), *QUICK, "--quiet")
    troubles: list[Any] = [
        ["flush", "000000.products.h5", 7, "SIGKILL"],  # a product computed, not noted
        ["flush", "trajectory.h5", 1, "SIGKILL"],  # the eigenvectors are there, their row is not
        ["flush", "000001.products.h5", 9, "SIGKILL"],  # of a search that began at those
        ["flush", "trajectory.h5", 2, "SIGKILL"],  # the values are written, the status not
        ["unlink", "000000.eigenvectors.safetensors", 1, "SIGKILL"],  # no longer needed
        ["nothing"],
    ]
    *ends, last = disturbed(troubles, *command, "--out", tmp_path / "killed")
    assert [end.code for end in ends] == [KILLED] * len(ends), ends
    assert last.code == 0, last
    assert invoke(*command, "--out", tmp_path / "whole").code == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    kept = {path.name for path in (tmp_path / "killed").iterdir()}
    assert kept == {"run.json", "trajectory.h5"}


def test_another_configuration_is_refused_in_the_same_folder(foreign: Foreign, tmp_path: Path) -> None:
    paths, out = run_of(foreign), tmp_path / "out"
    follow(foreign, out, paths)
    with pytest.raises(sh.SchemaError, match="probes"):
        follow(foreign, out, paths, probes=7)
    with pytest.raises(sh.SchemaError, match="theta"):
        follow(foreign, out, paths[:2])
    with pytest.raises(sh.ShapeError, match="learning rate > 0"):
        follow(foreign, tmp_path / "other", paths, learning_rate=0.0)


# What people see


def test_the_command_prints_a_table_and_json(foreign: Foreign, tmp_path: Path) -> None:
    command = (
        "trajectory",
        *run_of(foreign),
        "--problem",
        foreign.problem("function"),
        *QUICK,
        "--out",
        tmp_path / "o",
    )
    shown = invoke(*command)
    assert shown.code == 0, shown
    record = store.load(tmp_path / "o" / "trajectory.h5")
    assert "checkpoints by file, by the numbers in their names" in shown.stdout
    assert f"{record.eigenvalues[0, 0]:.5g} ± " in shown.stdout
    assert {path.suffix for path in (tmp_path / "o" / "figures").iterdir()} == {".svg", ".pdf", ".png"}
    printed = json.loads(invoke(*command, "--json").stdout)
    assert printed["eigenvalues"] == record.eigenvalues.tolist()
    assert (printed["epoch"], printed["counts"]) == (list(SCALES), "file")
    assert len(printed["remarks"]) >= 1  # weights of no training are near chance


def measured(**changes: Any) -> Trajectory:
    base = trajectory(60, -0.4)
    values = np.array([9.0, 8.0, 7.0, 5.0, 4.0, 3.0])
    more = {
        "pair": np.array([1]), "eigenvalues": values[None], "residuals": 0.1 * values[None],
        "converged": np.array([[True, True, False, True, True, True]]), "trace": 10 * values, "trace_error": values,
    }  # fmt: skip
    return dataclasses.replace(base, **{**more, **changes})


def test_curvature_sharpness_and_loss_stand_below_each_other() -> None:
    record = measured(counts="step", conditions={"numbers": "as the files say", "probes": 30, "tolerance": 1e-3})
    panels = draw(record).figure.axes
    assert [ax.get_ylabel() for ax in panels] == ["λmax", "trace ± s.e.", "ε-sharpness (percent)", "loss (nat)"]
    assert panels[-1].get_xlabel() == "step"
    assert len({ax.get_position().x0 for ax in panels}) == 1
    drawn = [[line.get_ydata().tolist() for line in ax.lines if len(line.get_xdata()) == 6] for ax in panels]
    assert record.eigenvalues is not None
    assert record.trace is not None
    assert record.eigenvalues[0].tolist() in drawn[0]
    assert record.trace.tolist() in drawn[1]
    assert [record.sharpness.tolist(), record.stronger.tolist(), record.first_order.tolist()] == drawn[2]
    assert record.loss.tolist() == drawn[3]


def test_what_did_not_converge_is_hollow_and_named() -> None:
    top = draw(measured()).figure.axes[0]
    hollow = [bar for bar in top.containers if bar.get_label() == "λ1, not converged"]
    assert [bar.lines[0].get_xdata().tolist() for bar in hollow] == [[5]]
    assert hollow[0].lines[0].get_markerfacecolor() == "white"


@pytest.mark.parametrize("edge", [None, np.full(6, 20.0)])
def test_the_edge_of_stability_is_drawn_where_it_is_known(edge: np.ndarray | None) -> None:
    top = draw(measured(edge=edge)).figure.axes[0]
    known = [line for line in top.lines if line.get_label() == "edge of stability"]
    assert [line.get_ydata().tolist() for line in known] == ([] if edge is None else [[20.0] * 6])


@pytest.mark.parametrize(
    ("counts", "numbers", "label"),
    [
        ("epoch", "as the files say", "epoch"),
        ("file", "by the numbers in their names", "number in the name of the checkpoint"),
        ("file", "in the order given", "checkpoint, in the order given"),
    ],
)
def test_the_axis_says_what_it_counts(counts: str, numbers: str, label: str) -> None:
    record = measured(counts=counts, conditions={"numbers": numbers})
    assert draw(record).figure.axes[-1].get_xlabel() == label


def test_trajectories_side_by_side_have_equal_axes() -> None:
    figure = draw_figure({"SB": measured(), "LB": measured(eigenvalues=np.full((1, 6), 400.0))})
    ordered = sorted(figure.axes, key=lambda ax: (ax.get_position().x0, -ax.get_position().y0))
    left, right = ordered[:4], ordered[4:]
    assert [ax.get_ylim() for ax in left] == [ax.get_ylim() for ax in right]
    assert [ax.get_title() for ax in (left[0], right[0])] == ["SB", "LB"]


def test_without_curvature_it_is_drawn_against_the_loss_as_before() -> None:
    """Also beside one that has it."""
    plain = trajectory(60, -0.4)
    assert plain.curvature is None
    for figure in (draw(plain).figure, draw_figure({"SB": plain, "LB": measured()})):
        assert figure.axes[0].get_xlabel() == "train loss (nat)"


def test_files_of_earlier_releases_are_read(tmp_path: Path) -> None:
    """A recipe's own trajectory, written before there was curvature."""
    file = next((Path(__file__).parents[1] / "figures" / "digits").rglob("trajectory.h5"), None)
    if file is None:
        pytest.skip("no trajectory in figures/digits")
    record = store.load(shutil.copy(file, tmp_path / "trajectory.h5"))
    assert (record.counts, record.curvature, record.edge) == ("epoch", None, None)
    assert np.isfinite(record.sharpness).all()


def test_it_survives_the_file_and_the_exports(foreign: Foreign, tmp_path: Path) -> None:
    record = follow(foreign, tmp_path / "out")
    found = store.load(tmp_path / "out" / "trajectory.h5")
    for name in ("eigenvalues", "residuals", "converged", "trace", "trace_error", "products", "epoch"):
        np.testing.assert_array_equal(getattr(found, name), getattr(record, name))
    assert found.converged.dtype == bool
    assert invoke("export", tmp_path / "out" / "trajectory.h5").code == 0
    assert invoke("report", tmp_path / "out").code == 0
    rows = (tmp_path / "out" / "trajectory-pair-epoch.csv").read_text().splitlines()
    assert rows[0] == "pair,epoch,eigenvalues,residuals,converged,status"


def test_a_problem_with_one_parameter_needs_no_probe(tmp_path: Path) -> None:
    """f = θ²: λ = trace = 2 everywhere."""
    (tmp_path / "one.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    data = (torch.ones(2, 1), torch.zeros(2, 1))\n"
        "    return nn.Linear(1, 1, bias=False), lambda o, t: (o - t) ** 2, data\n"
    )
    paths = []
    for number, value in enumerate((1.0, 0.5)):
        torch.save(
            nn.Linear(1, 1, bias=False).state_dict() | {"weight": torch.full((1, 1), value)}, tmp_path / f"{number}.pt"
        )
        paths.append(tmp_path / f"{number}.pt")
    plan, source = dataclasses.replace(PLAN, eigenpairs=1), Source(f"{tmp_path / 'one.py'}:make")
    record, _ = follow_checkpoints(paths, plan, tmp_path / "out", source=source, learning_rate=0.25)
    assert record.eigenvalues is not None
    assert record.eigenvalues.tolist() == [[2.0, 2.0]]
    assert record.trace is not None
    assert record.trace.tolist() == [2.0, 2.0]
    assert record.loss.tolist() == [[1.0, 0.25]]
    assert np.isnan(record.accuracy).all()
    assert (record.status == 1).all()
    assert record.edge is not None
    assert record.edge.tolist() == [8.0, 8.0]
