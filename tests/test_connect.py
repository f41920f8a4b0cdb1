"""Trained curves: round a hill of closed form, between digits networks, resumed to the bit, on disk."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from networks import filled, labels, randn
from safetensors.torch import load_file, save_file
from torch import nn

from sharpness.checkpoints import Minimizer
from sharpness.data import digits
from sharpness.errors import CheckpointError, DataError, NonFiniteError, ShapeError
from sharpness.geometry import Arc, Bezier, Line, Polygon
from sharpness.landscape import connect, evaluate_line, load_curve, save_curve
from sharpness.models import mlp
from sharpness.objective import Objective, Problem, cross_entropy
from sharpness.params import Point
from sharpness.shape import barrier
from sharpness.training import TrainingPlan, train

A, B = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([-0.96, 0.28], dtype=torch.float64)
ALPHAS = np.linspace(0, 1, 41)


class Ring(nn.Module):
    """‖θ‖² for every example."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        return x * self.place.square().sum()


def ring(examples=10):
    """f(θ) = (‖θ‖² − 1)², whose minima are a circle round a hill of height 1."""
    ones = torch.ones(examples, 1, dtype=torch.float64)
    return Objective.from_module(Ring(), lambda output, target: (output - target) ** 2, (ones, ones))[0]


def classifier(batchnorm=True, policy="eval", l2=0.0):
    norm = [nn.BatchNorm1d(5)] if batchnorm else []
    model = filled(nn.Sequential(nn.Linear(4, 5), *norm, nn.Tanh(), nn.Linear(5, 3)))
    data = (randn(23, 4), labels(23))
    return Objective.from_module(model, cross_entropy, data, batchnorm=policy, l2=l2)[0]


def two_ends(f):
    return randn(f.size, key="a"), randn(f.size, key="b")


QUICK = {"epochs": 4, "batch_size": 8}


def same(one, other):
    pairs = zip(one.curve.bends, other.curve.bends, strict=True)
    return all(torch.equal(*bends) for bends in pairs) and one.loss.tobytes() == other.loss.tobytes()


# What it finds


@pytest.mark.parametrize(("form", "bends"), [("bezier", 1), ("bezier", 2), ("polygon", 2)])
def test_a_trained_curve_goes_round_the_hill_that_the_line_crosses(form, bends):
    f = ring()
    line = barrier(evaluate_line({"train": f}, Line(A, B), ALPHAS))
    assert line.height == pytest.approx((1 - 0.02) ** 2)  # half-way the squared norm is 0.02² + 0.14²
    found = connect(f, A, B, form=form, bends=bends, batch_size=1, epochs=80, learning_rate=0.03)
    curve = evaluate_line({"train": f}, found.curve, ALPHAS)
    assert barrier(curve).height < 0.05
    assert len(found.loss) == 80
    assert found.loss[0] > 0.2
    assert found.loss[-30:].mean() == pytest.approx(curve.loss.mean(), abs=0.01)
    assert torch.equal(found.curve.a.theta, A)
    assert torch.equal(found.curve.b.theta, B)


@pytest.fixture(scope="module")
def minimizers():
    """Two small digits networks from two starts, and their problem."""
    (images, classes), _ = digits.read()
    data = torch.tensor(images[:400]) / 16.0, torch.tensor(classes[:400]).long()
    ends, plan = [], TrainingPlan(batch_size=64, epochs=15, learning_rate=3e-3)
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            problem = Problem(mlp([64, 24, 24, 10], batchnorm=True), cross_entropy, data)
        ends.append(train(problem, plan, seed=seed)[0])
    return problem.objectives()[0], ends


@pytest.mark.parametrize("form", ["bezier", "polygon"])
def test_between_digits_networks_a_curve_stays_far_below_the_line(minimizers, form):
    objectives, (a, b) = minimizers
    line, curve = (
        barrier(evaluate_line(objectives, path, np.linspace(0, 1, 21)))
        for path in (Line(a, b), connect(objectives["train"], a, b, form=form, epochs=30, learning_rate=0.1).curve)
    )
    assert line.height > 0.4
    assert curve.height < 0.1 * line.height


# How it trains


def test_without_a_step_bends_lie_equally_spaced_on_the_line():
    f = ring()
    found = connect(f, A, B, form="polygon", bends=3, epochs=1, learning_rate=1e-300)
    for bend, share in zip(found.curve.bends, (0.25, 0.5, 0.75), strict=True):
        assert torch.allclose(bend, (1 - share) * A + share * B, atol=1e-15)


@pytest.mark.parametrize("form", [Bezier, Polygon])
def test_a_step_follows_the_derivative_in_the_bends(form):
    """Of one batch that is all data: bend ← bend − rate · ∂f(θ(α))/∂bend, by autograd through the curve."""
    f, rate = classifier(batchnorm=False, l2=0.1), 0.5
    a, b = two_ends(f)
    found = connect(f, a, b, form=form.__name__.lower(), bends=2, epochs=1, batch_size=23, learning_rate=rate)
    start = [(a + share * (b - a)).requires_grad_() for share in (1 / 3, 2 / 3)]
    (alpha,) = drawn_alphas(1, 0)
    theta = sum(w * p for w, p in zip(form(a, b, start).weights(alpha), (a, *start, b), strict=True))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    output = torch.func.functional_call(model, f.space.unflatten(theta), randn(23, 4))
    loss = nn.functional.cross_entropy(output, labels(23)) + 0.05 * theta.square().sum()
    slopes = torch.autograd.grad(loss, start, materialize_grads=True)
    assert found.loss[0] == pytest.approx(loss.item(), rel=1e-12)
    for bend, before, slope in zip(found.curve.bends, start, slopes, strict=True):
        assert torch.allclose(bend, before - 0.01 * rate * slope, rtol=0, atol=1e-13)  # the last epoch's rate


def drawn_alphas(count, epoch, seed=0):
    from sharpness.random import generator

    return torch.rand(count, generator=generator("connect", "alpha", epoch, seed=seed), dtype=torch.float64).tolist()


def test_each_mini_batch_has_its_own_alpha_and_every_example_its_turn(monkeypatch):
    f, seen = ring(examples=11), []
    step = Objective.value_and_gradient

    def watched(self, place, examples=None):
        seen.append((place.theta.clone(), examples.tolist()))
        return step(self, place, examples)

    monkeypatch.setattr(Objective, "value_and_gradient", watched)
    connect(f, A, B, epochs=2, batch_size=5, learning_rate=1e-12)
    assert [len(examples) for _, examples in seen] == [5, 6] * 2  # none alone
    for epoch in (0, 1):
        mine = seen[2 * epoch : 2 * epoch + 2]
        assert sorted(number for _, examples in mine for number in examples) == list(range(11))
        for (theta, _), alpha in zip(mine, drawn_alphas(2, epoch), strict=True):
            assert torch.allclose(theta, (1 - alpha) * A + alpha * B)
    assert seen[0][1] != seen[2][1]


def test_the_learning_rate_falls_from_half_of_the_epochs_to_a_hundredth(monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1])
    connect(ring(), A, B, epochs=10, learning_rate=0.1)
    assert rates == pytest.approx([0.1] * 5 + [0.1 * (1 - 0.99 * i / 4) for i in (1, 2, 3)] + [0.001] * 2)


@pytest.mark.parametrize("policy", ["eval", "recompute", "batch"])
def test_batch_norm_trains_on_the_statistics_of_the_mini_batch(policy):
    f = classifier(policy=policy)
    a, b = two_ends(f)
    assert same(connect(f, a, b, **QUICK), connect(f.replace(batchnorm="batch"), a, b, **QUICK))
    assert f.batchnorm == policy


def test_a_mini_batch_is_the_objective_of_its_examples():
    data = (randn(23, 4), labels(23))
    parts = list(zip(data[0].split(9), data[1].split(9), strict=True))
    model = filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    few = torch.tensor([20, 3, 4, 11])
    for given in (data, parts):
        f, theta = Objective.from_module(model, cross_entropy, given, l2=0.3, chunk_size=4)
        value, gradient = f.value_and_gradient(theta, few)
        alone = Objective.from_module(model, cross_entropy, (data[0][few], data[1][few]), l2=0.3)[0]
        assert value == pytest.approx(alone.value(theta), rel=1e-14)
        assert torch.allclose(gradient, alone.gradient(theta), rtol=1e-12, atol=1e-14)
        for wrong in ([3, 23], [-1, 3], []):
            with pytest.raises(DataError, match="numbers below 23 of examples that can be stacked"):
                f.value_and_gradient(theta, torch.tensor(wrong, dtype=torch.long))


def test_seeds_differ_and_repeat_and_touch_nothing_else():
    f = classifier()
    a, b = two_ends(f)
    before, state = (a.clone(), b.clone()), torch.get_rng_state()
    one, again, other = (connect(f, a, b, seed=seed, **QUICK) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_ends_bring_their_buffers_and_keep_them():
    f = classifier()
    theta, other = two_ends(f)
    buffers = {"1.running_mean": randn(5, key="mean"), "1.running_var": randn(5, key="variance").abs()}
    found = connect(f, Point(theta, buffers), Point(other, buffers), **QUICK)
    assert found.curve.at(0).buffers is buffers
    line = evaluate_line({"train": f}, found.curve, [0.0, 0.5])
    assert (line.batchnorm, line.path, len(line.bends)) == ("recompute", Bezier.formula, 64)


# What ends it


class Killed(Exception):
    pass


def kill_after(epochs):
    def progress(done, total, note=""):
        assert note.startswith("loss ")
        if done == epochs:
            raise Killed

    return progress


@pytest.mark.parametrize("form", ["bezier", "polygon"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, form, epochs):
    f, state = classifier(), tmp_path / "curve.training.safetensors"
    ends, options = two_ends(f), {"form": form, "bends": 2, "learning_rate": 0.1, **QUICK}
    whole = connect(f, *ends, **options)
    with pytest.raises(Killed):
        connect(f, *ends, **options, checkpoint=state, progress=kill_after(epochs))
    counts = []
    resumed = connect(f, *ends, **options, checkpoint=state, progress=lambda done, *_: counts.append(done))
    assert counts == list(range(epochs + 1, 5))
    assert same(whole, resumed)
    finished = connect(f, *ends, **options, checkpoint=state, progress=kill_after(1))  # nothing is left to do
    assert same(whole, finished)


def test_a_kill_within_an_epoch_costs_that_epoch(tmp_path, monkeypatch):
    f, state = classifier(), tmp_path / "state.safetensors"
    ends, step, left = two_ends(f), Objective.value_and_gradient, [4]

    def killed(self, *args):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return step(self, *args)

    monkeypatch.setattr(Objective, "value_and_gradient", killed)
    with pytest.raises(Killed):
        connect(f, *ends, **QUICK, checkpoint=state)
    monkeypatch.undo()
    assert same(connect(f, *ends, **QUICK), connect(f, *ends, **QUICK, checkpoint=state))


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"form": "polygon"}, {"bends": 2}, {"epochs": 5}, {"learning_rate": 0.1}, {"batch_size": 9}, "ends"],
)
def test_the_state_of_another_training_is_refused(tmp_path, other):
    f, state = classifier(), tmp_path / "state.safetensors"
    a, b = two_ends(f)
    connect(f, a, b, **QUICK, checkpoint=state)
    before = state.read_bytes()
    ends, options = ((b, a), {}) if other == "ends" else ((a, b), other)
    with pytest.raises(CheckpointError, match="it belongs to other ends, data or choices"):
        connect(f, *ends, **{**QUICK, **options}, checkpoint=state)
    assert state.read_bytes() == before


def test_other_data_or_a_damaged_state_is_refused(tmp_path):
    f, state = classifier(), tmp_path / "state.safetensors"
    ends = two_ends(f)
    connect(f, *ends, **QUICK, checkpoint=state)
    with pytest.raises(CheckpointError, match="other ends, data or choices"):
        connect(f.replace(examples=torch.arange(23) < 20), *ends, **QUICK, checkpoint=state)
    state.write_bytes(state.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"the state of a curve in training in .*; it cannot be read"):
        connect(f, *ends, **QUICK, checkpoint=state)


def test_a_training_that_diverges_says_where_and_keeps_what_was_finite(tmp_path):
    f, state = ring(), tmp_path / "state.safetensors"
    with pytest.raises(NonFiniteError, match=r"in epoch \d+ the loss is .* at α = .*Lower the learning rate") as caught:
        connect(f, A, B, epochs=50, batch_size=1, learning_rate=30.0, checkpoint=state)
    partial = caught.value.partial
    assert len(partial.loss) < 50
    assert np.isfinite(partial.loss).all()
    assert all(bend.isfinite().all() for bend in partial.curve.bends)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "spline"}, "form to be one of bezier, polygon; got 'spline'"),
        ({"bends": 0}, "1 or more and a finite learning_rate above 0; got 0, 200, 128 and 0.01"),
        ({"epochs": 0}, "got 1, 0, 128"),
        ({"batch_size": 0}, "got 1, 200, 0"),
        ({"learning_rate": 0.0}, "128 and 0$"),
        ({"learning_rate": math.inf}, "128 and inf"),
    ],
)
def test_choices_out_of_range_are_refused(options, message):
    with pytest.raises(ShapeError, match=message):
        connect(ring(), A, B, **options)


def test_ends_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="one entry per parameter of the objective"):
        connect(ring(), A, torch.ones(3))
    with pytest.raises(ShapeError, match="a Point, a Minimizer or a flat tensor θ; got str"):
        connect(ring(), A, "minimizer.safetensors")


# On disk


@pytest.mark.parametrize("form", ["bezier", "polygon"])
def test_a_saved_curve_is_the_same_curve(tmp_path, form):
    f = classifier()
    ends = [Minimizer.of(filled(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))))] * 2
    found = connect(f, *ends, form=form, bends=2, **QUICK)
    path = save_curve(found.curve, tmp_path / "deep" / "curve.safetensors", found.metadata)
    again = load_curve(path, *ends)
    assert type(again) is type(found.curve)
    assert again.fingerprint == found.curve.fingerprint
    assert all(torch.equal(again.at(alpha).theta, found.curve.at(alpha).theta) for alpha in (0.0, 0.3, 1.0))
    whole, loaded = (evaluate_line({"train": f}, curve, [0.0, 0.4]) for curve in (found.curve, again))
    assert whole.loss.tobytes() == loaded.loss.tobytes()
    (header,) = [json.loads(text) for text in read_header(path)]
    assert header["metadata"]["epochs"] == 4
    assert header["metadata"]["conditions"]["batchnorm"] == "batch"


def read_header(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata().values()


def test_a_curve_between_other_points_is_refused(tmp_path):
    path = save_curve(Bezier(A, B, [torch.zeros_like(A)]), tmp_path / "curve.safetensors")
    with pytest.raises(CheckpointError, match=r"has α = 0, with SHA-256 \w{12}…; got \w{12}…"):
        load_curve(path, B, A)
    with pytest.raises(CheckpointError, match="has α = 1"):
        load_curve(path, A, A)


def test_what_is_no_saved_curve_is_refused(tmp_path):
    for curve in (Line(A, B), Arc(A, B)):
        with pytest.raises(
            ShapeError, match=f"Bezier or a Polygon, which has bends to save; got {type(curve).__name__}"
        ):
            save_curve(curve, tmp_path / "curve.safetensors")
    assert not list(tmp_path.iterdir())
    path = tmp_path / "other.safetensors"
    with pytest.raises(CheckpointError, match="it cannot be read"):
        load_curve(path, A, B)
    save_file({"bend.0": A}, path)
    with pytest.raises(CheckpointError, match="a safetensors file without its header"):
        load_curve(path, A, B)
    header = {"format": "sharpness-curve-1", "form": "spline", "start": Point(A).sha256, "end": Point(B).sha256}
    save_file({"bend.0": A}, path, {"sharpness": json.dumps(header)})
    with pytest.raises(CheckpointError, match="its header is damaged"):
        load_curve(path, A, B)
    save_curve(Bezier(A, B, [A]), path)
    assert load_file(path)["bend.0"].tolist() == A.tolist()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="it cannot be read"):
        load_curve(path, A, B)
