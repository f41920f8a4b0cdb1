"""Every row of ``benchmarks/pitfalls.py``: ours is right, the truth is not ours, and what is wrong is seen."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sharpness import Hessian, UnsupportedModelError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(BENCHMARKS))
    pitfalls, conditions, answers, peers, report = map(
        import_module, ("pitfalls", "conditions", "answers", "peers", "report")
    )
every_row = pytest.mark.parametrize("make", conditions.ROWS, ids=lambda make: make.__name__)
OURS_WITHIN = 1e-3  # the tolerance of residuals, which bound the errors of eigenvalues


class Forbidden:
    """This package where it must not be asked."""

    def __getattr__(self, name):
        raise AssertionError(f"sharpness.{name} was asked for")


def row(truth, ours=(0.0,), **peers):
    asks = {name: (lambda found=found: answers.Found(found)) for name, found in peers.items()}
    return conditions.Row("a condition", "a number", truth, lambda: answers.Found(ours), asks)


@every_row
def test_ours_is_right(make):
    made = make()
    strict = replace(made, tolerance=min(made.tolerance, OURS_WITHIN))
    found = made.ours()
    assert strict.right(found), f"{made.condition}: {list(found.numbers)} ({found.remark}) is not {made.truth}"


@every_row
def test_the_truth_is_found_without_this_package(make, monkeypatch):
    for module in (conditions, answers):
        monkeypatch.setattr(module, "sh", Forbidden())
    made = make()
    assert np.isfinite(made.truth).all()
    with pytest.raises(AssertionError, match="was asked for"):
        made.ours()


def test_the_dense_hessian_is_that_of_a_known_function():
    curvature = torch.tensor([3.0, -1.0, 0.5])
    module = conditions._diagonal(curvature).module
    found = answers.dense_hessian(module, lambda model: model(torch.ones(4, 1)).mean())
    assert torch.equal(found, torch.diag(curvature.double()))
    assert answers.largest(found) == 3.0


@pytest.mark.parametrize(
    ("truth", "found", "right"),
    [
        ((2.0,), (2.019,), True),
        ((2.0,), (2.021,), False),
        ((-2.0, 0.0), (-1.99, 0.009), True),
        ((-2.0, 0.0), (-1.99, 0.011), False),
        ((2.0,), (float("nan"),), False),
        ((2.0,), (float("inf"),), False),
        ((2.0, 1.0), (2.0, None), True),
        ((2.0, 1.0), (2.1, None), False),
    ],
)
def test_a_number_is_right_within_one_percent(truth, found, right):
    assert row(truth).right(answers.Found(found)) is right


def test_another_count_of_numbers_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        row((2.0, 1.0)).right(answers.Found((2.0,)))


def test_cells_show_what_is_wrong():
    def fails():
        raise RuntimeError("this cannot be\ndone")

    def missing():
        raise report.Unavailable("not installed")

    made = row((1.0,), (1.0,), PyHessian=(1.5,), curvlinops=(1.0,))
    made = replace(made, peers={**made.peers, "hessian-eigenthings": fails, "loss-landscapes": missing})
    cells = {name: pitfalls.cell(made, name).text for name in pitfalls.PACKAGES}
    assert cells == {
        "sharpness": "1",
        "PyHessian": "✗ 1.5",
        "hessian-eigenthings": "✗ RuntimeError: this cannot be",
        "curvlinops": "1",
        "loss-landscapes": "not installed",
    }
    assert pitfalls.cell(row((1.0,)), "PyHessian").text == "–"


def test_the_table_has_a_line_for_every_row_without_any_peer(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(peers, "import_module", missing)
    made = [conditions.unequal_batches(), conditions.callers_own(), conditions.ends_of_a_line()]
    table = pitfalls.measure(made)
    assert [line[3:] for line in table.rows] == [
        [table.rows[0][2], *["not installed"] * 3, "–"],
        ["0", *["not installed"] * 4],
        ["0.875, 0.375", "–", "–", "–", "not installed"],
    ]
    assert all(table.raw[one.condition]["found"]["sharpness"]["right"] for one in made)


def touch(module, what):
    if what == "weights":
        module[0].weight.data[0, 0] += 1e-7
    elif what == "buffers":
        module[1].running_mean += 1
    elif what == "gradients":
        module[0].weight.grad = torch.zeros(2, 2)
    elif what == "requires_grad":
        module[0].bias.requires_grad_(False)
    elif what == "modes":
        module[1].eval()
    else:
        {"torch": lambda: torch.rand(1), "numpy": np.random.rand, "python": random.random}[what]()


@pytest.mark.parametrize(
    "what", ["weights", "buffers", "gradients", "requires_grad", "modes", "torch", "numpy", "python"]
)
def test_every_change_is_seen(what):
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    found = answers.changes(module, lambda: touch(module, what), ())
    kind = "random state" if what in ("torch", "numpy", "python") else what
    assert found == answers.Found([1], f"{kind} (1)")


def test_a_change_is_seen_after_an_error():
    module = nn.Linear(2, 2)

    def fails():
        module.eval()
        raise ValueError("too many")

    assert answers.changes(module, fails, ValueError) == answers.Found([1], "modes (1), after ValueError")
    assert answers.changes(module, lambda: None, ()) == answers.Found([0], "")
    with pytest.raises(ValueError, match="too many"):
        answers.changes(module, fails, ())


def test_a_point_that_only_one_has_finite_is_counted_apart():
    exact = np.array([[0.0, np.nan], [2.0, 3.0]])
    assert answers.deviation(np.array([[0.5, 1.0], [np.nan, 3.0]]), exact) == (2, 0.5)
    assert answers.deviation(exact, exact) == (0, 0.0)


def test_the_mean_over_labels_alone_is_refused():
    inputs, targets = conditions.classes(16, 4)
    targets[:5] = conditions.UNLABELLED
    case = answers.Case(nn.Linear(4, 3), [(inputs, targets)], nn.CrossEntropyLoss())
    with pytest.raises(UnsupportedModelError, match="ignore_index"):
        Hessian(*case.objective())
