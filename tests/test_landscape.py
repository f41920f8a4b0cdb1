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
from sharpness.errors import SchemaError, ShapeError, UnsupportedModelError
from sharpness.geometry import (
    NORMALISATIONS,
    Arc,
    Bezier,
    Line,
    Plane,
    Polygon,
    eigenvector_plane,
    plane_through,
    random_direction,
    random_plane,
    trajectory_plane,
)
from sharpness.journal import MemoryJournal
from sharpness.landscape import (
    evaluate,
    evaluate_line,
    evaluate_plane,
    evaluate_profiles,
    line_template,
    plane_template,
    profiles_template,
)
from sharpness.models import mlp
from sharpness.objective import Objective, Problem, cross_entropy
from sharpness.params import Point, sha256
from sharpness.random import normal
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


class Stacked(nn.Module):
    """Parameters of several shapes, whose entries are the outputs for every example."""

    def __init__(self):
        super().__init__()
        shapes = (3, 2, 2, 2), (3,), (2,), (4, 5), (6, 1), (1,)
        self.parts = nn.ParameterList([normal(*s, key=(f"{s}",), seed=0, dtype=torch.float64) for s in shapes])

    def forward(self, x):
        return torch.cat([part.reshape(-1) for part in self.parts])[None].expand(len(x), -1)


def quadratic():
    """f(θ) = ½ θᵀDθ over parameters of several shapes; with θ, the diagonal of D and f on an array of places."""
    diagonal = 2.0 ** torch.linspace(3, -6, 56, dtype=torch.float64).round()
    diagonal[5::7] *= -1  # a saddle
    data = (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    objective, theta = Objective.from_module(Stacked(), lambda o, t: o**2 @ diagonal / 2, data)
    return objective, theta, diagonal.numpy(), lambda thetas: 0.5 * np.asarray(thetas) ** 2 @ diagonal.numpy()


def close(found, expected):
    """Equal to a hundred roundings or so of the largest."""
    return np.allclose(found, expected, rtol=0, atol=2e-14 * np.abs(expected).max())


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
    assert found.status.tolist() == [[1] * 3] * 5
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


@pytest.mark.parametrize("bends", [2, 3])
@pytest.mark.parametrize("kind", [Line, Arc, Bezier, Polygon])
def test_a_quadratic_along_every_curve_is_its_value_at_places_found_otherwise(kind, bends):
    objective, a, _, value = quadratic()
    between = [normal(len(a), key=("bend", i), seed=0, dtype=torch.float64) for i in range(bends)]
    b = -2 * a.flip(0)
    p, q = a.numpy(), b.numpy()
    if kind is Line:
        curve, places = Line(a, b), [p + alpha * (q - p) for alpha in ALPHAS]
    elif kind is Arc:
        angles = ALPHAS * np.pi / 2
        curve, places = Arc(a, b), np.cos(angles)[:, None] * p + np.sin(angles)[:, None] * q
    elif kind is Bezier:
        curve = Bezier(a, b, between)
        points = np.array([p, *between, q])[:, None]
        while len(points) > 1:
            points = points[:-1] + ALPHAS[:, None] * (points[1:] - points[:-1])
        places = points[0]
    else:
        curve = Polygon(a, b, between)
        points, pieces = np.array([p, *between, q]), bends + 1
        first = np.clip(np.floor(ALPHAS * pieces).astype(int), 0, pieces - 1)
        places = points[first] + (ALPHAS * pieces - first)[:, None] * (points[first + 1] - points[first])
    found = evaluate_line({"train": objective}, curve, ALPHAS)
    assert close(found.loss[0], value(places))
    assert (found.path, found.bends) == (curve.formula, curve.fingerprint)
    assert (found.bends != "") == (kind in (Bezier, Polygon))


def planes():
    """A plane of every kind near θ of the quadratic, by name."""
    objective, theta, _, _ = quadratic()
    space = objective.space
    by_parts = {
        f"random by {by}, hold={hold}": random_plane(theta, space, by=by, hold=hold, seed=4)
        for by in NORMALISATIONS
        for hold in (True, False)
    }
    far = {name: normal(len(theta), key=(name,), seed=0, dtype=torch.float64) for name in ("a", "b", "c")}
    run = {
        epoch: theta + normal(len(theta), key=(epoch,), seed=1, dtype=torch.float64) / epoch for epoch in range(1, 6)
    }
    return {
        **by_parts,
        "through two": plane_through({name: far[name] for name in "ab"}, space),
        "through three": plane_through(far, space),
        "trajectory": trajectory_plane(run),
        "oblique": Plane(theta, far["a"], far["a"] + 0.1 * far["b"]),
    }


@pytest.mark.parametrize("name", planes())
def test_a_quadratic_on_every_plane_is_its_six_coefficients(name):
    """f = f₀ + αg₁ + βg₂ + ½(α²h₁₁ + 2αβh₁₂ + β²h₂₂) on a grid that is not square."""
    objective, _, diagonal, value = quadratic()
    plane = planes()[name]
    origin, u, v = plane.origin.theta.numpy(), plane.first.numpy(), plane.second.numpy()
    along, across = ALPHAS[:, None], BETAS[None, :]
    slopes = (diagonal * origin) @ u * along + (diagonal * origin) @ v * across
    bends = (diagonal * u) @ u * along**2 + 2 * (diagonal * u) @ v * along * across + (diagonal * v) @ v * across**2
    found = evaluate_plane({"train": objective}, plane, ALPHAS, BETAS)
    assert close(found.loss[0], value(origin) + slopes + bends / 2)


@pytest.mark.parametrize("count", [2, 3])
def test_a_plane_through_points_has_their_losses_at_their_marks(count):
    objective, theta, _, value = quadratic()
    points = {
        name: theta + normal(len(theta), key=(name,), seed=2, dtype=torch.float64)
        for name in ("SB", "LB", "SWA")[:count]
    }
    plane = plane_through(points, objective.space)
    alphas, betas, _ = zip(*plane.marks.values(), strict=True)
    found = evaluate_plane({"train": objective}, plane, alphas, [*betas, 7.0])
    assert np.allclose(np.diagonal(found.loss[0]), value(np.array(list(points.values()))), rtol=1e-12, atol=0)
    assert found.mark.tolist() == list(points)


def test_along_eigenvectors_of_a_quadratic_the_plane_is_its_eigenvalues():
    objective, theta, diagonal, value = quadratic()
    basis = torch.eye(len(theta), dtype=torch.float64)
    for i, j in ((0, 1), (5, 12), (0, 5)):  # both up, both down, a saddle
        vectors = basis[:, [i, j]]
        found = evaluate_plane({"train": objective}, eigenvector_plane(torch.zeros_like(theta), vectors), ALPHAS, BETAS)
        expected = (diagonal[i] * ALPHAS[:, None] ** 2 + diagonal[j] * BETAS[None, :] ** 2) / 2
        assert found.loss[0].tolist() == expected.tolist()  # dyadic: exact
        around = evaluate_plane({"train": objective}, eigenvector_plane(theta, vectors), ALPHAS, BETAS)
        slopes = diagonal[i] * float(theta[i]) * ALPHAS[:, None] + diagonal[j] * float(theta[j]) * BETAS[None, :]
        assert close(around.loss[0], value(theta) + slopes + expected)


def test_along_rotated_eigenvectors_too():
    rotation, _ = torch.linalg.qr(normal(6, 6, key=("rotation",), seed=0, dtype=torch.float64))
    values = vector(8.0, 3.0, 1.0, 0.5, 0.0, 0.0)
    model = nn.Linear(6, 1, bias=False).double()
    inputs = (6 * values / 2).sqrt()[:, None] * rotation.T  # f = ½ θᵀ Q diag(λ) Qᵀ θ as a mean of six squares
    f, _ = Objective.from_module(model, lambda o, t: (o - t) ** 2, (inputs, torch.zeros(6, 1, dtype=torch.float64)))
    plane = eigenvector_plane(torch.zeros(6, dtype=torch.float64), rotation)
    found = evaluate_plane({"train": f}, plane, ALPHAS, BETAS)
    assert close(found.loss[0], (8 * ALPHAS[:, None] ** 2 + 3 * BETAS[None, :] ** 2) / 2)


@pytest.mark.parametrize(("by", "hold"), [("filter", True), ("layer", False), ("none", False)])
def test_a_quadratic_on_profiles_is_its_three_coefficients_along_each(by, hold):
    objective, theta, diagonal, value = quadratic()
    found = evaluate_profiles({"train": objective}, theta, ALPHAS, directions=3, by=by, hold=hold, seed=7)
    assert found.loss.shape == (1, 3, 5)
    assert found.status.tolist() == [[1] * 5] * 3
    assert found.direction.tolist() == [0, 1, 2]
    for number in range(3):
        u = random_direction(theta, objective.space, by, hold=hold, key=("profile", number), seed=7).numpy()
        expected = value(theta) + (diagonal * theta.numpy()) @ u * ALPHAS + (diagonal * u) @ u * ALPHAS**2 / 2
        assert close(found.loss[0, number], expected)
    assert len({tuple(losses) for losses in found.loss[0]}) == 3
    assert (found.origin, found.seed) == (sha256(theta), 7)
    assert ("standard normal" if by == "none" else f"by {by}") in found.directions
    assert ("held" in found.directions) == hold
    other = evaluate_profiles({"train": objective}, theta, ALPHAS, directions=1, by=by, hold=hold, seed=8)
    assert not np.allclose(other.loss[0, 0], found.loss[0, 0])


def test_a_record_says_what_its_plane_is(tmp_path):
    objective, made = quadratic()[0], planes()
    for name in ("trajectory", "through three", "oblique", "random by layer, hold=False"):
        plane = made[name]
        found = evaluate_plane({"f": objective}, plane, [0.0, 1.0], [0.5])
        store.save(found, tmp_path / "plane.h5")
        for record in (found, store.load(tmp_path / "plane.h5")):
            assert record.directions == plane.kind
            assert record.length.tolist() == list(plane.lengths)
            assert record.cosine == plane.cosine
            assert record.share == 1.0
            if plane.marks:
                assert record.mark.tolist() == list(plane.marks)
                assert record.mark_place.tolist() == [list(place) for place in plane.marks.values()]
            if plane.walk:
                assert record.epoch.tolist() == [1, 2, 3, 4, 5]
                assert np.array_equal(record.walk_place, plane.walk.places)
                assert np.array_equal(record.explained, plane.walk.explained)
            assert (record.mark is None, record.walk_place is None) == (not plane.marks, plane.walk is None)
    assert made["oblique"].cosine > 0.9


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


def deep(seed):
    """A convolutional network with two batch-norm layers, the second of which sees what the first has normalised."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2), nn.Tanh()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2)).double()


def images(count, key="images"):
    inputs = normal(count, 1, 4, 4, key=(key,), seed=0, dtype=torch.float64)
    return inputs, (inputs.sum((1, 2, 3)) > 0).long()


def restated(model, batches):
    """The model in eval mode with statistics of all that its layers see in train mode of these batches, one by one.

    Mean and unbiased variance of all numbers together, however they lie in batches.
    """
    model, seen = copy.deepcopy(model).train(), {}
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda m, inputs: seen.setdefault(m, []).append(inputs[0].transpose(0, 1).flatten(1))
        )
    with torch.no_grad():
        for batch in batches:
            model(batch)
        for layer in layers:
            numbers = torch.cat(seen[layer], 1)
            layer.running_mean.copy_(numbers.mean(1))
            layer.running_var.copy_(numbers.var(1))
    return model.eval()


def averaged(model, batches):
    """The same by PyTorch's layers with ``momentum=None``: means over batches of mean and unbiased variance."""
    model = copy.deepcopy(model).train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            layer.reset_running_stats()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.eval()


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("sizes", [(23,), (7, 7, 7, 2), (4, 16, 3)], ids=str)
def test_both_ends_and_the_marks_are_the_minimizers_with_their_statistics_by_hand(sizes, at_once):
    train, test, models = images(23), images(9, "test"), [deep(seed) for seed in (1, 2, 3)]
    batches = list(zip(train[0].split(sizes), train[1].split(sizes), strict=True))
    objectives = {
        "train": Objective.from_module(models[0], cross_entropy, batches, chunk_size=23)[0],
        "test": Objective.from_module(models[0], cross_entropy, test)[0],
    }
    assert objectives["train"].partition == sizes
    ends = {name: Minimizer.of(model) for name, model in zip("abc", models, strict=True)}
    expected = []
    for model in models:
        ready = restated(model, [batch for batch, _ in batches])
        expected.append([by_hand(ready, data) for data in (train, test)])
        if len(sizes) == 1:  # where there is one batch, PyTorch's cumulative average is the same
            again = averaged(model, [batch for batch, _ in batches])
            assert by_hand(again, train)[0] == pytest.approx(expected[-1][0][0], rel=1e-12)
    line = evaluate_line(objectives, Line(ends["a"], ends["b"]), [0.0, 0.25, 0.5, 1.0], points_at_once=at_once)
    plane = plane_through(ends, objectives["train"].space)
    alphas, betas, _ = zip(*plane.marks.values(), strict=True)
    grid = evaluate_plane(objectives, plane, alphas, betas, points_at_once=at_once)
    for values, exact in (("loss", 0), ("accuracy", 1)):
        at_ends = getattr(line, values)[:, [0, -1]].T
        at_marks = np.diagonal(getattr(grid, values), axis1=1, axis2=2).T
        by_model = np.array(expected)[..., exact]
        assert np.allclose(at_ends, by_model[:2], rtol=1e-11, atol=0)
        assert np.allclose(at_marks, by_model, rtol=1e-11, atol=0)
    assert line.batchnorm == grid.batchnorm == "recompute"


def test_over_equal_batches_means_are_pytorchs_cumulative_average_and_variances_are_of_all_numbers():
    (inputs, _), model = images(20), deep(1)
    ready, theirs = (make(model, inputs.split(5)) for make in (restated, averaged))
    objective, _ = Objective.from_module(model, cross_entropy, images(20), chunk_size=5)
    found = objective.with_statistics(Minimizer.of(model)).buffers
    for layer in ("1", "4"):
        mean, variance = f"{layer}.running_mean", f"{layer}.running_var"
        assert torch.allclose(found[mean], theirs.state_dict()[mean], rtol=1e-12)
        assert torch.allclose(found[mean], ready.state_dict()[mean], rtol=1e-12)
        assert torch.allclose(found[variance], ready.state_dict()[variance], rtol=1e-12)
        # the mean of variances within batches leaves out what lies between batches
        assert not torch.allclose(found[variance], theirs.state_dict()[variance], rtol=1e-4)


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


# Several points at once


@pytest.mark.parametrize(("policy", "at_once"), [("eval", 3), ("batch", 3), ("recompute", 3), ("recompute", 50)])
def test_points_at_once_are_the_points_one_by_one_to_rounding(policy, at_once):
    train, test, models = images(23), images(9, "test"), [deep(seed) for seed in (1, 2)]
    objectives = {
        name: Objective.from_module(models[0], cross_entropy, data, chunk_size=7, l2=0.01)[0]
        for name, data in (("train", train), ("test", test))
    }
    a, b = (Minimizer.of(model) for model in models)
    plane = plane_through({"a": a, "b": b}, objectives["train"].space)
    grids = np.linspace(-0.5, 1.5, 7), np.array([0.0, 0.5, -0.25])
    for run in (
        lambda **how: evaluate_line(objectives, Line(a, b), grids[0], **how),
        lambda **how: evaluate_line(objectives, Line(a.point.theta, b), [1.0, 0.5, 0.0], **how),  # buffers at one end
        lambda **how: evaluate_plane(objectives, plane, *grids, **how),
        lambda **how: evaluate_plane(objectives, plane, *(np.sort(grid) for grid in grids), share=0.5, **how),
        lambda **how: evaluate_profiles(objectives, a, grids[0], directions=2, **how),
    ):
        one, several = (run(batchnorm=policy, points_at_once=k) for k in (1, at_once))
        assert np.allclose(one.loss, several.loss, rtol=1e-11, atol=0, equal_nan=True)
        assert np.array_equal(one.accuracy, several.accuracy, equal_nan=True)
        assert np.array_equal(one.status, several.status)
        assert one.conditions["points_at_once"] == 1
        assert several.conditions["points_at_once"] == at_once


class Branching(nn.Linear):
    """Goes another way where its weights say so, which cannot be vectorised over them."""

    def forward(self, x):
        return super().forward(x) if self.weight.sum() > 0 else super().forward(-x)


def test_a_model_that_cannot_be_vectorised_is_evaluated_one_by_one_and_refused_otherwise():
    data = classification()[0]
    model = Branching(3, 2).double()
    objective, theta = Objective.from_module(model, cross_entropy, data)
    line, alphas = Line(theta, -2 * theta), [0.0, 0.5, 1.0]
    found = evaluate_line({"f": objective}, line, alphas, points_at_once=1)
    assert found.loss[0].tolist() == [objective.value(line.at(alpha)) for alpha in alphas]
    assert np.array_equal(evaluate_line({"f": objective}, line, alphas).loss, found.loss)  # the default on a CPU
    with pytest.raises(UnsupportedModelError, match="points_at_once=1"):
        evaluate_line({"f": objective}, line, alphas, points_at_once=2)
    with pytest.raises(UnsupportedModelError, match="points_at_once=1"):
        evaluate_plane({"f": objective}, Plane(theta, theta, theta + 1), alphas, alphas, points_at_once=3)


@pytest.mark.parametrize("number", [0, -1])
def test_no_points_at_once_are_refused(number):
    objectives, line, alphas = line_case()
    with pytest.raises(ShapeError, match=f"points_at_once >= 1; got {number}"):
        evaluate_line(objectives, line, alphas, points_at_once=number)


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


def test_a_corner_that_is_not_finite_marks_its_points_only():
    plane = Plane(vector(1.0, 1.0), vector(1.0, 0.0), vector(0.0, 1.0))
    found = evaluate_plane({"f": logarithm()}, plane, [-1.0, 0.0, 1.0], [-2.0, -1.0, 0.0, 1.0])
    sums = 2 + found.alpha[:, None] + found.beta[None, :]
    expected = np.full_like(sums, np.nan)
    expected[sums == 0] = np.inf
    expected[sums > 0] = -np.array([math.log(s) for s in sums[sums > 0]])
    assert np.isnan(expected).sum() == 1
    assert np.array_equal(found.loss[0], expected, equal_nan=True)
    assert found.status.tolist() == [[2, 2, 1, 1], [2, 1, 1, 1], [1, 1, 1, 1]]


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
    assert in_memory.status.tolist() == [[1] * 3] * 3 + [[2] * 3]  # the last α overflows


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 6])
def test_a_line_interrupted_and_resumed_is_the_undisturbed_line_to_the_bit(tmp_path, calls):
    objectives, line, alphas = line_case()
    template = line_template(objectives, line, alphas)
    with into(tmp_path / "line.h5", template) as journal, pytest.raises(KeyboardInterrupt):
        evaluate_line(objectives, line, alphas, journal=journal, progress=Interrupt(calls))
    assert store.load(tmp_path / "line.h5").status.tolist() == [1] * calls + [0] * (6 - calls)
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
    assert np.flatnonzero(store.load(tmp_path / "plane.h5").status).tolist() == list(range(calls))  # in C order
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
    assert told == [(done, 12) for done in range(calls + 1, 13)]  # nothing is computed twice
    assert same(resumed, evaluate_plane(objectives, plane, alphas, betas))


def profiles_case():
    objectives, first, _ = two_ends()
    return objectives, Minimizer.of(first), np.array([-1.0, 0.5, 2.0])


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_profiles_interrupted_and_resumed_are_the_undisturbed_profiles_to_the_bit(tmp_path, calls, at_once):
    objectives, origin, alphas = profiles_case()
    how = {"directions": 2, "seed": 3, "points_at_once": at_once}
    whole = evaluate_profiles(objectives, origin, alphas, **how)
    template = profiles_template(objectives, origin, alphas, **how)
    if calls * at_once < 6:
        with into(tmp_path / "profiles.h5", template) as journal, pytest.raises(KeyboardInterrupt):
            evaluate_profiles(objectives, origin, alphas, **how, journal=journal, progress=Interrupt(calls))
        done = np.flatnonzero(store.load(tmp_path / "profiles.h5").status)
        assert done.tolist() == list(range(calls * at_once))
    with into(tmp_path / "profiles.h5", template) as journal:
        assert same(evaluate_profiles(objectives, origin, alphas, **how, journal=journal), whole)
    assert same(store.load(tmp_path / "profiles.h5"), whole)
    for other in ({"seed": 4}, {"directions": 3}, {"by": "layer"}, {"hold": False}):
        with pytest.raises(SchemaError, match=r"is .* there and .* here|direction differs"):
            into(tmp_path / "profiles.h5", profiles_template(objectives, origin, alphas, **{**how, **other}))


@pytest.mark.parametrize("cut", [(0,), (1,), (5,), (0, 4, 5, 11), (2, 3)], ids=str)
def test_points_go_together_as_without_a_kill_and_those_that_were_done_stay(cut):
    """Wherever single points of groups of three are missing, as a kill in a commit leaves them."""
    objectives, plane, alphas, betas = plane_case()
    whole = evaluate_plane(objectives, plane, alphas, betas, points_at_once=3)
    journal = MemoryJournal({"loss": np.full((2, 4, 3), np.nan), "accuracy": np.full((2, 4, 3), np.nan)}, (4, 3))
    kept = [row for row in range(12) if row not in cut]
    values = {name: getattr(whole, name).reshape(2, 12)[:, kept] for name in ("loss", "accuracy")}
    journal.commit(kept, values, finite=np.isfinite(values["loss"]).all(axis=0))
    told = []
    found = evaluate_plane(
        objectives, plane, alphas, betas, points_at_once=3, journal=journal, progress=lambda done, *_: told.append(done)
    )
    assert same(found, whole)
    assert len(told) == len({row // 3 for row in cut})


def test_a_file_says_how_many_points_at_once_and_is_gone_on_with_so(tmp_path):
    objectives, plane, alphas, betas = plane_case()
    whole = evaluate_plane(objectives, plane, alphas, betas, points_at_once=3)
    path = tmp_path / "plane.h5"
    first = plane_template(objectives, plane, alphas, betas, points_at_once=3)
    with into(path, first) as journal, pytest.raises(KeyboardInterrupt):
        evaluate_plane(objectives, plane, alphas, betas, points_at_once=3, journal=journal, progress=Interrupt(2))
    with into(path, plane_template(objectives, plane, alphas, betas)) as journal:  # which would be one at a time
        found = evaluate_plane(objectives, plane, alphas, betas, journal=journal)
    assert same(found, whole)
    assert found.conditions == store.load(path).conditions == whole.conditions


def test_points_are_committed_at_least_every_half_second(monkeypatch):
    objectives, plane, alphas, betas = plane_case()
    now, commits = [0.0], []

    class Watched(MemoryJournal):
        def commit(self, rows, values, *, finite=None):
            commits.append((now[0], list(rows)))
            super().commit(rows, values, finite=finite)

    def tick(*_):
        now[0] += 0.2

    monkeypatch.setattr(evaluate.time, "monotonic", lambda: now[0])
    template = plane_template(objectives, plane, alphas, betas)
    journal = Watched({"loss": template.loss, "accuracy": template.accuracy}, (4, 3))
    evaluate_plane(objectives, plane, alphas, betas, journal=journal, progress=tick)
    assert [row for _, rows in commits for row in rows] == list(range(12))
    # a point takes 0.2 s: with the third point after it, a point is more than half a second old
    assert [rows for _, rows in commits] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11]]
    assert max(np.diff([0.0, *(moment for moment, _ in commits)])) < 0.5 + 0.2


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_what_was_computed_before_an_error_is_in_the_file(tmp_path, monkeypatch, error):
    objectives, line, alphas = line_case()
    evaluate_one, calls = Objective.evaluate, []

    def failing(self, place):
        calls.append(place)
        if len(calls) == 8:  # the second data set of the fourth point
            raise error
        return evaluate_one(self, place)

    monkeypatch.setattr(Objective, "evaluate", failing)
    with into(tmp_path / "line.h5", line_template(objectives, line, alphas)) as journal, pytest.raises(type(error)):
        evaluate_line(objectives, line, alphas, journal=journal)
    assert store.load(tmp_path / "line.h5").status.tolist() == [1, 1, 1, 0, 0, 0]


def test_a_journal_of_another_shape_is_refused():
    objectives, plane, alphas, betas = plane_case()
    template = plane_template(objectives, plane, alphas, betas)
    for shape in (3, (3, 4), 12):
        journal = MemoryJournal({"loss": template.loss, "accuracy": template.accuracy}, shape)
        with pytest.raises(ShapeError, match=r"in shape \(4, 3\); got .* earlier release"):
            evaluate_plane(objectives, plane, alphas, betas, journal=journal)


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
