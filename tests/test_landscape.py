"""Lines and planes of losses: closed forms on non-square grids, batch norm by hand, resumed to the bit."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharpness import store
from sharpness.checkpoints import Minimizer
from sharpness.errors import SchemaError, ShapeError
from sharpness.geometry import Line, Plane
from sharpness.landscape import evaluate_line, evaluate_plane, line_template, plane_template
from sharpness.models import mlp
from sharpness.objective import Objective, Problem, cross_entropy
from sharpness.params import Point, sha256
from sharpness.records import variables

ALPHAS, BETAS = np.array([-0.5, 0.0, 0.25, 1.0, 1.5]), np.array([2.0, -1.0, 0.5])


def vector(*entries):
    return torch.tensor(entries, dtype=torch.float64)


def bowl(curvatures, dtype=torch.float64):
    """f(θ) = Σ cᵢ θᵢ², as the mean square of n outputs √(n cᵢ) θᵢ; exact for dyadic θ where n cᵢ are powers of 4."""
    n = len(curvatures)
    model = nn.Linear(n, 1, bias=False).to(dtype)
    inputs = torch.diag(torch.tensor([c * n for c in curvatures], dtype=dtype).sqrt())
    return Objective.from_module(model, lambda o, t: (o - t) ** 2, (inputs, torch.zeros(n, 1, dtype=dtype)))[0]


def classifier(seed, batchnorm=True, dtype=torch.float64):
    """A small network with weights and running statistics of its own."""
    torch.manual_seed(seed)
    model = mlp([3, 5, 2], batchnorm=batchnorm).to(dtype)
    if batchnorm:
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2.0)
    return model


def classification(seed=0, train=20, test=9, dtype=torch.float64):
    draw = torch.Generator().manual_seed(100 + seed)
    inputs = torch.randn(train + test, 3, generator=draw, dtype=torch.float64).to(dtype)
    targets = (inputs.sum(1) > 0).long()
    return (inputs[:train], targets[:train]), (inputs[train:], targets[train:])


def two_ends(normed=True, **options):
    """Objectives of one data set, and two models of one shape."""
    first, second = classifier(1, normed), classifier(2, normed)
    objectives, _ = Problem(first, cross_entropy, *classification()).objectives(**options)
    return objectives, first, second


def by_hand(model, data):
    """Loss and accuracy of a module in eval mode."""
    with torch.no_grad():
        output = copy.deepcopy(model).eval()(data[0])
    hits = (output.argmax(1) == data[1]).double().mean()
    return F.cross_entropy(output, data[1]).item(), hits.item()


def same(one, other):
    """Whether two records agree to the bit."""
    ours, theirs = list(variables(one)), list(variables(other))
    return all(
        a.name == b.name and a.values.dtype == b.values.dtype and a.values.tobytes() == b.values.tobytes()
        for a, b in zip(ours, theirs, strict=True)
    )


class Interrupt:
    """A progress callback that interrupts at its ``calls``-th call."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, done, total, note=""):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


# Closed forms


def test_a_quadratic_along_a_line_is_its_closed_form_exactly():
    objectives = {"train": bowl([2.0, 0.5]), "test": bowl([8.0, 2.0])}
    a, b = vector(1.0, -2.0), vector(3.0, 0.0)
    found = evaluate_line(objectives, Line(a, b), ALPHAS)
    first, second = 1 + 2 * ALPHAS, -2 + 2 * ALPHAS
    assert found.loss.tolist() == [(2 * first**2 + second**2 / 2).tolist(), (8 * first**2 + 2 * second**2).tolist()]
    assert found.split.tolist() == ["train", "test"]
    assert found.alpha.tolist() == ALPHAS.tolist()
    assert found.status.tolist() == [1] * 5
    assert np.isnan(found.accuracy).all()  # a regression has none, and is no less finite for it
    assert (found.start, found.end) == (sha256(a), sha256(b))
    assert found.batchnorm == "none"


def test_a_quadratic_on_a_plane_is_its_closed_form_exactly_and_not_transposed():
    found = evaluate_plane(
        {"train": bowl([2.0, 0.5])}, Plane(vector(1.0, -2.0), vector(0.5, 0.0), vector(0.0, 4.0)), ALPHAS, BETAS
    )
    first, second = 1 + 0.5 * ALPHAS[:, None], -2 + 4 * BETAS[None, :]
    assert found.loss.shape == (1, 5, 3)
    assert found.loss[0].tolist() == (2 * first**2 + second**2 / 2).tolist()
    assert found.status.tolist() == [1] * 3
    assert (found.alpha.tolist(), found.beta.tolist()) == (ALPHAS.tolist(), BETAS.tolist())
    assert (found.origin, found.first, found.second) == (
        sha256(vector(1.0, -2.0)),
        sha256(vector(0.5, 0.0)),
        sha256(vector(0.0, 4.0)),
    )


def test_a_plane_through_the_ends_of_a_line_contains_the_line():
    objective, a, b = bowl([2.0, 0.5]), vector(1.0, -2.0), vector(3.0, 0.0)
    line = evaluate_line({"train": objective}, Line(a, b), ALPHAS)
    plane = evaluate_plane({"train": objective}, Plane(a, b - a, vector(1.0, 1.0)), ALPHAS, [0.0, 1.0])
    assert plane.loss[:, :, 0].tolist() == line.loss.tolist()


def test_a_single_point_is_a_grid():
    objective = bowl([2.0, 0.5])
    assert evaluate_line({"f": objective}, Line(vector(1.0, 1.0), vector(0.0, 0.0)), [0.0]).loss.tolist() == [[2.5]]
    plane = Plane(vector(1.0, 1.0), vector(1.0, 0.0), vector(0.0, 1.0))
    assert evaluate_plane({"f": objective}, plane, [0.0], [0.0]).loss.tolist() == [[[2.5]]]


# Ends and batch norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_are_exactly_the_minimizers(dtype):
    ends = [Minimizer.of(classifier(seed, batchnorm=False, dtype=dtype)) for seed in (1, 2)]
    objectives, _ = Problem(
        classifier(3, batchnorm=False, dtype=dtype), cross_entropy, *classification(dtype=dtype)
    ).objectives()
    found = evaluate_line(objectives, Line(*ends), [0.0, 0.3, 1.0])
    for column, end in ((0, ends[0]), (2, ends[1])):
        expected = [objective.evaluate(end) for objective in objectives.values()]
        assert found.loss[:, column].tolist() == [e.loss for e in expected]
        assert found.accuracy[:, column].tolist() == [e.accuracy for e in expected]


def test_with_running_statistics_each_end_is_the_model_in_eval_mode_with_its_own_buffers():
    objectives, first, second = two_ends()
    found = evaluate_line(objectives, Line(Minimizer.of(first), Minimizer.of(second)), [0.0, 1.0], batchnorm="eval")
    assert found.batchnorm == "eval"
    for column, model in enumerate((first, second)):
        for row, data in enumerate(classification()):
            loss, accuracy = by_hand(model, data)
            assert found.loss[row, column] == pytest.approx(loss, rel=1e-14)  # a mean of 20 terms in another order
            assert found.accuracy[row, column] == accuracy


def test_between_the_ends_running_statistics_are_interpolated():
    objectives, first, second = two_ends()
    found = evaluate_line(objectives, Line(Minimizer.of(first), Minimizer.of(second)), [0.25], batchnorm="eval")
    mixed = copy.deepcopy(first)
    states = first.state_dict(), second.state_dict()
    mixed.load_state_dict({k: v if v.ndim == 0 else 0.75 * v + 0.25 * states[1][k] for k, v in states[0].items()})
    assert found.loss[0, 0] == pytest.approx(by_hand(mixed, classification()[0])[0], rel=1e-13)


def test_statistics_are_recomputed_by_default_and_over_the_training_data_for_every_split():
    objectives, first, second = two_ends()
    for ordered in (objectives, dict(reversed(objectives.items()))):
        line = Line(Minimizer.of(first), Minimizer.of(second))
        found = evaluate_line(ordered, line, [0.0, 0.5, 1.0])
        assert found.batchnorm == "recompute"
        for column, alpha in enumerate(found.alpha):
            place = objectives["train"].with_statistics(line.at(alpha).theta)
            expected = [objective.evaluate(place) for objective in ordered.values()]
            assert found.loss[:, column].tolist() == [e.loss for e in expected]
            assert found.accuracy[:, column].tolist() == [e.accuracy for e in expected]


def test_recomputed_statistics_are_those_of_the_training_data_by_hand():
    objectives, first, _ = two_ends()
    model = copy.deepcopy(first)
    hidden = model[0](classification()[0][0]).detach()
    model[1].running_mean.copy_(hidden.mean(0))
    model[1].running_var.copy_(hidden.var(0))
    found = evaluate_line(objectives, Line(Minimizer.of(first), Minimizer.of(first)), [0.0], batchnorm="recompute")
    for row, data in enumerate(classification()):
        assert found.loss[row, 0] == pytest.approx(by_hand(model, data)[0], rel=1e-12)


def test_in_batch_mode_every_chunk_has_its_own_statistics():
    objectives, first, second = two_ends()
    found = evaluate_line(objectives, Line(Minimizer.of(first), Minimizer.of(second)), [0.0], batchnorm="batch")
    inputs, targets = classification()[1]
    with torch.no_grad():  # train mode: statistics of the one chunk
        expected = F.cross_entropy(copy.deepcopy(first).train()(inputs), targets).item()
    assert found.batchnorm == "batch"
    assert found.loss[1, 0] == pytest.approx(expected, rel=1e-13)


def test_an_objective_in_batch_mode_stays_in_batch_mode():
    objectives, first, second = two_ends(batchnorm="batch")
    found = evaluate_line(objectives, Line(Minimizer.of(first), Minimizer.of(second)), [0.0, 1.0])
    assert found.batchnorm == "batch"
    assert found.loss[0, 0] == objectives["train"].value(Minimizer.of(first))


def test_a_plane_recomputes_statistics_at_every_point_too():
    objectives, first, _ = two_ends()
    origin = Minimizer.of(first)
    draw = torch.Generator().manual_seed(0)
    directions = [torch.randn(origin.point.theta.shape, generator=draw, dtype=torch.float64) for _ in range(2)]
    plane = Plane(origin, *directions)
    found = evaluate_plane(objectives, plane, [0.0, 0.5], [0.0, -0.5, 0.25])
    assert found.batchnorm == "recompute"
    place = objectives["train"].with_statistics(plane.at(0.5, -0.5).theta)
    assert found.loss[:, 1, 1].tolist() == [objective.value(place) for objective in objectives.values()]


def test_the_callers_models_and_objectives_are_the_same_after_as_before():
    objectives, first, second = two_ends()
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in (first, second)]
    state = torch.get_rng_state()
    evaluate_line(objectives, Line(Minimizer.of(first), Minimizer.of(second)), [0.0, 0.5])
    for model, saved in zip((first, second), before, strict=True):
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
        assert model.training
    assert objectives["train"].batchnorm == "eval"
    assert torch.equal(torch.get_rng_state(), state)


# Not finite


def logarithm():
    """f(θ) = −log(θ₁ + θ₂): NaN where the sum is negative, infinite where it is 0."""
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    data = (torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    return Objective.from_module(model, lambda output, target: target - torch.log(output), data)[0]


def test_points_that_are_not_finite_are_kept_as_they_are_and_leave_their_neighbours_alone():
    found = evaluate_line({"f": logarithm()}, Line(vector(0.0, 0.0), vector(1.0, 1.0)), [-1.0, 0.0, 0.5, 2.0])
    assert np.isnan(found.loss[0, 0])
    assert found.loss[0, 1] == math.inf
    assert found.loss[0, 2:].tolist() == [-math.log(1.0), -math.log(4.0)]
    assert found.status.tolist() == [2, 2, 1, 1]


def test_a_corner_that_is_not_finite_marks_its_row_of_the_plane_only():
    plane = Plane(vector(1.0, 1.0), vector(1.0, 0.0), vector(0.0, 1.0))
    found = evaluate_plane({"f": logarithm()}, plane, [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0, 1.0])
    sums = 2 + found.alpha[:, None] + found.beta[None, :]
    expected = np.full_like(sums, np.nan)
    expected[sums == 0] = np.inf
    expected[sums > 0] = -np.array([math.log(s) for s in sums[sums > 0]])
    assert np.isnan(expected).sum() == 1
    assert np.array_equal(found.loss[0], expected, equal_nan=True)
    assert found.status.tolist() == [2, 2, 1, 1]


def test_a_classifier_at_infinite_weights_is_not_finite_but_has_a_place_in_the_record():
    objectives, first, second = two_ends(normed=False)
    a, b = (Minimizer.of(model).point.theta for model in (first, second))
    found = evaluate_line(objectives, Line(a, b), [0.0, 1e308, 1.0])
    assert found.status.tolist() == [1, 2, 1]
    assert not np.isfinite(found.loss[:, 1]).any()
    assert np.isfinite(found.loss[:, [0, 2]]).all()


# Journals


def line_case():
    objectives, first, second = two_ends()
    return objectives, Line(Minimizer.of(first), Minimizer.of(second)), np.linspace(-1, 2, 6)


def plane_case():
    objectives, first, second = two_ends(normed=False)
    a, b = (Minimizer.of(model).point for model in (first, second))
    plane = Plane(a, b.theta - a.theta, torch.ones_like(a.theta))
    return objectives, plane, np.array([0.0, 0.5, 1.0, 1e308]), np.array([0.0, -1.0, 1.0])


def into(path, template):
    return store.begin(path, {template.kind: template})[template.kind]


def test_a_line_in_a_file_is_the_line_in_memory(tmp_path):
    objectives, line, alphas = line_case()
    in_memory = evaluate_line(objectives, line, alphas)
    with into(tmp_path / "line.h5", line_template(objectives, line, alphas)) as journal:
        in_file = evaluate_line(objectives, line, alphas, journal=journal)
    stored = store.load(tmp_path / "line.h5")
    assert same(in_memory, in_file)
    assert same(in_memory, stored)
    assert stored.conditions == in_memory.conditions
    assert (stored.batchnorm, stored.start, stored.end) == (in_memory.batchnorm, in_memory.start, in_memory.end)


def test_a_plane_in_a_file_is_the_plane_in_memory(tmp_path):
    objectives, plane, alphas, betas = plane_case()
    in_memory = evaluate_plane(objectives, plane, alphas, betas)
    with into(tmp_path / "plane.h5", plane_template(objectives, plane, alphas, betas)) as journal:
        in_file = evaluate_plane(objectives, plane, alphas, betas, journal=journal)
    assert same(in_memory, in_file)
    assert same(in_memory, store.load(tmp_path / "plane.h5"))
    assert in_memory.status.tolist() == [2, 2, 2]  # the last α overflows, in every row


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 6])
def test_a_line_interrupted_and_resumed_is_the_undisturbed_line_to_the_bit(tmp_path, calls):
    objectives, line, alphas = line_case()
    template = line_template(objectives, line, alphas)
    with into(tmp_path / "line.h5", template) as journal, pytest.raises(KeyboardInterrupt):
        evaluate_line(objectives, line, alphas, journal=journal, progress=Interrupt(calls))
    assert store.load(tmp_path / "line.h5").status.sum() == calls
    told = []
    with into(tmp_path / "line.h5", template) as journal:
        resumed = evaluate_line(
            objectives, line, alphas, journal=journal, progress=lambda done, total, note="": told.append((done, total))
        )
    assert told == [(done, 6) for done in range(calls + 1, 7)]  # nothing is computed twice
    assert same(resumed, evaluate_line(objectives, line, alphas))


@pytest.mark.parametrize("calls", [1, 4, 5, 8, 11, 12])
def test_a_plane_interrupted_and_resumed_is_the_undisturbed_plane_to_the_bit(tmp_path, calls):
    objectives, plane, alphas, betas = plane_case()
    template = plane_template(objectives, plane, alphas, betas)
    with into(tmp_path / "plane.h5", template) as journal, pytest.raises(KeyboardInterrupt):
        evaluate_plane(objectives, plane, alphas, betas, journal=journal, progress=Interrupt(calls))
    rows = (calls - 1) // 4  # the row in which it was interrupted is not committed
    assert np.count_nonzero(store.load(tmp_path / "plane.h5").status) == rows
    told = []
    with into(tmp_path / "plane.h5", template) as journal:
        resumed = evaluate_plane(
            objectives,
            plane,
            alphas,
            betas,
            journal=journal,
            progress=lambda d, total, note="": told.append((d, total)),
        )
    assert told == [(done, 12) for done in range(4 * rows + 1, 13)]
    assert same(resumed, evaluate_plane(objectives, plane, alphas, betas))


def test_a_finished_line_is_read_and_not_computed_again(tmp_path, monkeypatch):
    objectives, line, alphas = line_case()
    template = line_template(objectives, line, alphas)
    with into(tmp_path / "line.h5", template) as journal:
        finished = evaluate_line(objectives, line, alphas, journal=journal)
    monkeypatch.setattr(Objective, "evaluate", None)
    with into(tmp_path / "line.h5", template) as journal:
        assert same(evaluate_line(objectives, line, alphas, journal=journal), finished)


def test_another_line_or_grid_is_refused_and_the_file_is_left_as_it_is(tmp_path):
    objectives, line, alphas = line_case()
    path = tmp_path / "line.h5"
    with into(path, line_template(objectives, line, alphas)) as journal, pytest.raises(KeyboardInterrupt):
        evaluate_line(objectives, line, alphas, journal=journal, progress=Interrupt(3))
    before = path.read_bytes()
    nearby = Point(line.b.theta.nextafter(line.b.theta + 1), line.b.buffers)
    others = {
        "α differs": line_template(objectives, line, np.nextafter(alphas, 9.0)),
        "end is": line_template(objectives, Line(line.a, nearby), alphas),
        "start is": line_template(objectives, Line(line.b, line.b), alphas),
        "batchnorm is 'recompute' there and 'eval' here": line_template(objectives, line, alphas, batchnorm="eval"),
        "data set differs": line_template({"train": objectives["train"]}, line, alphas),
    }
    for message, template in others.items():
        with pytest.raises(SchemaError, match=message) as caught:
            into(path, template)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == before


def test_another_plane_or_another_kind_is_refused_and_the_file_is_left_as_it_is(tmp_path):
    objectives, plane, alphas, betas = plane_case()
    path = tmp_path / "plane.h5"
    into(path, plane_template(objectives, plane, alphas, betas)).close()
    before = path.read_bytes()
    swapped = Plane(plane.origin, plane.second, plane.first)
    for message, template in {
        "first is": plane_template(objectives, swapped, alphas, betas),
        "origin is": plane_template(objectives, Plane(plane.at(1, 0), plane.first, plane.second), alphas, betas),
        "β differs": plane_template(objectives, plane, alphas, betas[:2]),
        "α differs": plane_template(objectives, plane, alphas[::-1], betas),
        "'line'.*it is missing": line_template(objectives, Line(plane.first, plane.second), alphas),
    }.items():
        with pytest.raises(SchemaError, match=message):
            into(path, template)
        assert path.read_bytes() == before
    with pytest.raises(SchemaError, match="it holds 'plane' instead of 'line'"):
        store.begin(path, {"plane": line_template(objectives, Line(plane.first, plane.second), alphas)})
    assert path.read_bytes() == before


# Refusals


@pytest.mark.parametrize("grid", [[], [[0.0, 1.0]], [0.0, math.nan], [math.inf], 0.5])
def test_coordinates_have_to_be_a_list_of_finite_numbers(grid):
    objective, ends = {"f": bowl([2.0, 0.5])}, (vector(0.0, 0.0), vector(1.0, 1.0))
    with pytest.raises(ShapeError, match="alphas"):
        evaluate_line(objective, Line(*ends), grid)
    with pytest.raises(ShapeError, match="alphas"):
        evaluate_plane(objective, Plane(ends[0], *ends), grid, [0.0])
    with pytest.raises(ShapeError, match="betas"):
        evaluate_plane(objective, Plane(ends[0], *ends), [0.0], grid)


def test_a_line_of_another_model_is_refused():
    with pytest.raises(ShapeError, match=r"theta of shape \(2,\)"):
        evaluate_line({"f": bowl([2.0, 0.5])}, Line(torch.zeros(3), torch.ones(3)), [0.0])


def test_no_objective_and_an_unknown_policy_are_refused():
    objectives, line, alphas = line_case()
    with pytest.raises(ShapeError, match="at least one objective"):
        evaluate_line({}, line, alphas)
    with pytest.raises(ShapeError, match="at least one objective"):
        line_template({}, line, alphas)
    for policy in ("evaluate", "none", ""):
        with pytest.raises(ShapeError, match="eval, batch, recompute"):
            evaluate_line(objectives, line, alphas, batchnorm=policy)
