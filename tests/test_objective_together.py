"""Several points in one pass: the values of one at a time to rounding, under every policy; refused where it cannot."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import filled, labels, randn
from torch import nn

from sharpness.errors import DataError, ShapeError, UnsupportedModelError
from sharpness.objective import Objective, cross_entropy
from sharpness.params import Point

# The same float64 numbers in another order: some hundred roundings of 1.1e-16, through a few layers.
ROUNDING = 1e-12


def dense(batchnorm=True):
    hidden = [nn.BatchNorm1d(6), nn.ReLU()] if batchnorm else [nn.Tanh()]
    between = [nn.BatchNorm1d(5), nn.Tanh()] if batchnorm else [nn.Dropout(0.5)]
    return filled(nn.Sequential(nn.Linear(4, 6), *hidden, nn.Linear(6, 5), *between, nn.Linear(5, 3)))


def convolutional(batchnorm=True):
    first, second = ([nn.BatchNorm2d(3)], [nn.BatchNorm2d(2)]) if batchnorm else ([nn.GroupNorm(3, 3)], [])
    layers = nn.Conv2d(1, 3, 3), *first, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), *second, nn.Tanh()
    return filled(nn.Sequential(*layers, nn.Flatten(), nn.Linear(2, 3)))


MODELS = {"dense": dense, "convolutional": convolutional}


def data(kind, count=23):
    return (randn(count, 4) if kind == "dense" else randn(count, 1, 6, 6)), labels(count)


def points(theta, count=4, module=None):
    """Places around θ; with statistics of their own where there is a module to take them from."""
    thetas = [theta + 0.3 * randn(len(theta), key=f"point {i}", dtype=theta.dtype) for i in range(count)]
    if module is None:
        return thetas
    own = dict(module.named_buffers())
    return [Point(theta, {name: b * (1 + i) for name, b in own.items()}) for i, theta in enumerate(thetas)]


def assert_together(objective, places, relative=ROUNDING):
    together, alone = objective.evaluate_together(places), [objective.evaluate(place) for place in places]
    assert [type(found) for found in together] == [type(found) for found in alone]
    assert [found.loss for found in together] == pytest.approx([found.loss for found in alone], rel=relative)
    assert [found.weight for found in together] == [found.weight for found in alone]
    accuracies = [[found.accuracy for found in each] for each in (together, alone)]
    assert np.array_equal(*accuracies, equal_nan=True)
    assert len({found.loss for found in alone}) == len(places)  # places that differ
    return alone


@pytest.mark.parametrize("chunk_size", [23, 7, 12], ids=["one chunk", "7, 7, 7, 2", "12, 11"])
@pytest.mark.parametrize("policy", ["eval", "batch", "recompute"])
@pytest.mark.parametrize("kind", MODELS)
def test_with_batch_norm_the_values_are_those_of_one_point_at_a_time(kind, policy, chunk_size):
    module = MODELS[kind]()
    objective, theta = Objective.from_module(
        module, cross_entropy, data(kind), chunk_size=chunk_size, batchnorm=policy, l2=0.1
    )
    assert_together(objective, points(theta))
    found = assert_together(objective, points(theta, module=module))
    assert all(0 <= each.accuracy <= 1 for each in found)


@pytest.mark.parametrize("chunk_size", [23, 5])
@pytest.mark.parametrize("kind", MODELS)
def test_without_batch_norm_dropout_is_off_and_the_l2_term_is_each_points_own(kind, chunk_size):
    module = MODELS[kind](batchnorm=False)
    objective, theta = Objective.from_module(module, cross_entropy, data(kind), chunk_size=chunk_size, l2=2.0)
    plain, _ = Objective.from_module(module, cross_entropy, data(kind))
    places = points(theta)
    assert_together(objective, places)
    for with_term, without, place in zip(
        objective.evaluate_together(places), plain.evaluate_together(places), places, strict=True
    ):
        assert with_term.loss == pytest.approx(without.loss + float(place.square().sum()), rel=ROUNDING)


def test_in_single_precision_they_agree_to_its_rounding():
    objective, theta = Objective.from_module(
        dense().float(), cross_entropy, tuple(t.float() if t.is_floating_point() else t for t in data("dense"))
    )
    assert theta.dtype == torch.float32
    assert_together(objective, points(theta), relative=1e-5)


def masked(output, target):
    return F.cross_entropy(output, target, reduction="sum", ignore_index=-1), (target >= 0).sum()


LOSSES = {
    "sum and weight, masked": masked,
    "a mean": lambda output, target: F.cross_entropy(output, target.clamp(min=0)),
    "regression": lambda output, target: (output - target[:, None]) ** 2,
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_form_of_loss_is_averaged_as_it_is_alone(name):
    inputs, targets = data("dense")
    targets = torch.where(torch.arange(23) % 4 == 1, -1, targets)  # 6 of 23, unevenly over the chunks
    if name == "regression":
        targets = targets.double()
    objective, theta = Objective.from_module(dense(), LOSSES[name], (inputs, targets), chunk_size=9)
    found = assert_together(objective, points(theta))
    assert math.isnan(found[0].accuracy) == (name == "regression")
    assert found[0].weight == {"regression": 3 * 23, "a mean": 23}.get(name, 17)


class Losing(nn.Module):
    """A model with its loss inside, as of a library of transformers."""

    def __init__(self):
        super().__init__()
        self.network = dense()

    def forward(self, x, y):
        return {"loss": F.cross_entropy(self.network(x), y)}


def test_a_loss_inside_the_model_is_evaluated_together_too():
    x, y = data("dense")
    objective, theta = Objective.from_module(
        Losing(), "model", [{"x": x[:12], "y": y[:12]}, {"x": x[12:], "y": y[12:]}]
    )
    found = assert_together(objective, points(theta))
    assert math.isnan(found[0].accuracy)


def test_one_point_together_and_points_as_they_come():
    module = dense()
    objective, theta = Objective.from_module(module, cross_entropy, data("dense"))
    assert_together(objective, [Point.of(module, objective.space)])
    assert_together(objective, [theta, Point.of(module, objective.space).theta + 1])


@pytest.mark.parametrize("policy", ["eval", "batch", "recompute"])
def test_points_with_and_without_buffers_of_their_own_go_together_in_any_order(policy):
    """A place without them, or with some of them, has the model's own for the others."""
    module = dense()
    module[0].bias.requires_grad_(False)
    objective, theta = Objective.from_module(module, cross_entropy, data("dense"), batchnorm=policy)
    bare, full, another, last = points(theta)
    statistics = {name: b * 3 for name, b in module.named_buffers() if b.is_floating_point()}
    some = {name: statistics[name] for name in list(statistics)[:1]}
    places = [bare, Point(full, statistics), Point(another, some), Point(last, {"0.bias": module[0].bias + 1})]
    assert_together(objective, places)
    assert_together(objective, places[::-1])


def test_statistics_together_are_those_of_each_point_and_the_rest_stays():
    class Skipping(nn.Module):
        """With a layer that is never reached."""

        def __init__(self):
            super().__init__()
            self.used, self.idle = dense(), nn.BatchNorm1d(2)
            self.register_buffer("mask", torch.tensor([True, False]))

        def forward(self, x):
            return self.used(x)

    module = filled(Skipping())
    objective, theta = Objective.from_module(module, cross_entropy, data("dense"), chunk_size=10)
    for places in (points(theta), points(theta, module=module)):
        together = objective.with_statistics_together(places)
        for found, place in zip(together, places, strict=True):
            expected = objective.with_statistics(place)
            assert torch.equal(found.theta, expected.theta)
            assert found.buffers.keys() == expected.buffers.keys()
            for name, buffer in expected.buffers.items():
                assert found.buffers[name].dtype == buffer.dtype
                assert found.buffers[name].shape == buffer.shape
                assert torch.allclose(found.buffers[name], buffer, rtol=ROUNDING, atol=ROUNDING), name
            assert_together(objective, [found, place])
    plain, theta = Objective.from_module(dense(batchnorm=False), cross_entropy, data("dense"))
    assert torch.equal(plain.with_statistics_together([theta])[0].theta, theta)


def test_points_that_are_not_finite_leave_the_others_alone():
    objective, theta = Objective.from_module(dense(batchnorm=False), cross_entropy, data("dense"), chunk_size=9)
    places = points(theta)
    places[1] = places[1] * 1e308
    places[3] = torch.full_like(theta, math.nan)
    found = objective.evaluate_together(places)
    assert [math.isfinite(each.loss) for each in found] == [True, False, True, False]
    for i in (0, 2):
        assert found[i].loss == pytest.approx(objective.evaluate(places[i]).loss, rel=ROUNDING)


def test_nothing_of_the_caller_is_changed():
    module = dense().train()
    before = copy.deepcopy(module.state_dict())
    objective, theta = Objective.from_module(module, cross_entropy, data("dense"), batchnorm="recompute")
    places = points(theta)
    copies, state = [place.clone() for place in places], torch.get_rng_state()
    objective.evaluate_together(places)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training
    assert all(torch.equal(*pair) for pair in zip(places, copies, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


# Refusals


class Branching(nn.Linear):
    """Goes another way where its weights say so."""

    def forward(self, x):
        return super().forward(x) if self.weight.sum() > 0 else super().forward(-x)


class InPlace(nn.Linear):
    """Writes products with its weights into a tensor that knows nothing of several weights."""

    def forward(self, x):
        out = torch.zeros(len(x), self.out_features, dtype=x.dtype)
        return out.add_(x @ self.weight.T)


class Doubled(torch.autograd.Function):
    """An operation without a rule for vectorisation."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Custom(nn.Linear):
    def forward(self, x):
        return Doubled.apply(super().forward(x))


@pytest.mark.parametrize("kind", [Branching, InPlace, Custom])
def test_a_model_that_cannot_be_vectorised_is_refused_and_says_what_to_do(kind):
    objective, theta = Objective.from_module(filled(kind(4, 3)), cross_entropy, data("dense"))
    assert math.isfinite(objective.evaluate(theta).loss)
    with pytest.raises(UnsupportedModelError, match=r"vectorised over its parameters; got .*points_at_once=1"):
        objective.evaluate_together([theta, theta + 1])
    assert math.isfinite(objective.evaluate(theta).loss)


def test_other_errors_are_those_of_one_point():
    objective, theta = Objective.from_module(dense(), cross_entropy, data("dense"))
    with pytest.raises(ShapeError, match="one or more points"):
        objective.evaluate_together([])
    with pytest.raises(ShapeError, match=r"theta of shape"):
        objective.evaluate_together([theta, theta[1:]])
    with pytest.raises(ShapeError, match=r"1.running_mean.* has shape \(2,\)"):
        objective.evaluate_together([theta, Point(theta, {"1.running_mean": torch.zeros(2)})])
    lone, theta = Objective.from_module(dense(), cross_entropy, data("dense"), chunk_size=11)  # 11, 11 and 1
    for evaluate in (lone.with_statistics, lambda place: lone.with_statistics_together([place, place])):
        with pytest.raises(DataError, match="leave no batch of one"):
            evaluate(theta)
