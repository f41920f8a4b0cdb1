"""ε-sharpness: maxima of convex functions by hand or over all corners, and lower bounds that are lower bounds."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from scipy.optimize import OptimizeResult
from torch import nn

from sharpness.checkpoints import Minimizer
from sharpness.errors import NonFiniteError, ShapeError, UnsupportedModelError
from sharpness.measures import epsilon_sharpness
from sharpness.measures.epsilon import _Box
from sharpness.models import mlp
from sharpness.objective import Objective, cross_entropy
from sharpness.params import ParamSpace, Point
from sharpness.random import normal

N = 6
EXACT = 1e-12  # relative; sums of a few float64 terms


class Separable(nn.Module):
    """θ ↦ Σ ½ aᵢ θᵢ² + bᵢ θᵢ for each row (a, b) of the inputs."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float64).clone())

    def forward(self, rows):
        a, b = rows.chunk(2, dim=1)
        return (0.5 * a * self.theta**2 + b * self.theta).sum(1)


def separable(a, b, theta, constant=0.25):
    """The objective mean of ½ Σ a θ² + b θ + constant over three rows around a and b, and θ."""
    spread = torch.tensor([[-0.5], [0.0], [0.5]], dtype=torch.float64)
    a, b = (torch.as_tensor(c, dtype=torch.float64) for c in (a, b))
    rows = torch.cat([a * (1 + spread), b * (1 - spread)], dim=1)  # their means are a and b
    targets = torch.full((3,), constant, dtype=torch.float64)
    return Objective.from_module(Separable(theta), lambda output, target: output + target, (rows, targets))


def gain_by_hand(a, b, theta, epsilon):
    """max f(x + y) − f(x): coordinate i gains aᵢ(xᵢyᵢ + yᵢ²/2) + bᵢyᵢ, most at yᵢ = ±hᵢ with the slope's sign."""
    a, b, theta = (np.asarray(c, float) for c in (a, b, theta))
    half = epsilon * (np.abs(theta) + 1)
    return float((np.abs(a * theta + b) * half + a * half**2 / 2).sum())


def value_by_hand(a, b, theta, constant=0.25):
    a, b, theta = (np.asarray(c, float) for c in (a, b, theta))
    return float((a * theta**2 / 2 + b * theta).sum() + constant)


def percent(gain, value):
    return 100 * gain / (1 + value)


def least_squares(n=5, examples=20, seed=0, dtype=torch.float64):
    """A convex quadratic whose coordinates are coupled."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, n, generator=draw, dtype=torch.float64)
    model = nn.Linear(n, 1, bias=False).double()
    model.weight.data = torch.randn(1, n, generator=draw, dtype=torch.float64)
    data = (inputs, torch.randn(examples, 1, generator=draw, dtype=torch.float64))
    return Objective.from_module(model, lambda output, target: (output - target) ** 2, data, dtype=dtype)


def brute_force(objective, theta, epsilon, basis=None):
    """The largest percentage over all corners of the box: the maximum where f is convex."""
    size = len(theta) if basis is None else basis.shape[1]
    basis = torch.eye(len(theta), dtype=theta.dtype) if basis is None else basis
    half = epsilon * (np.abs(np.linalg.pinv(basis.numpy()) @ theta.numpy()) + 1)
    centre = objective.value(theta)
    best = max(
        objective.value(theta + basis @ torch.as_tensor(half * corner))
        for corner in itertools.product([-1.0, 1.0], repeat=size)
    )
    return percent(best - centre, centre)


def recorded(monkeypatch, objective):
    """Every (θ, value) at which the measure evaluates f."""
    seen = []
    plain = objective.value_and_gradient

    def recording(place):
        value, gradient = plain(place)
        seen.append((place.theta.clone(), value))
        return value, gradient

    monkeypatch.setattr(objective, "value_and_gradient", recording)
    return seen


A, B, THETA = [3.0, 1.0, 0.5, 2.0, 0.0, 7.0], [0.1, -0.4, 0.0, 0.3, 0.2, -1.0], [0.5, -1.0, 0.0, 2.0, -3.0, 0.01]


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4, 0.1, 2.0])
def test_a_separable_convex_quadratic_reaches_its_corner_computed_by_hand(epsilon):
    found = epsilon_sharpness(*separable(A, B, THETA), epsilon)
    by_hand = percent(gain_by_hand(A, B, THETA, epsilon), value_by_hand(A, B, THETA))
    # f rounds to 1e-16 · (1 + f), which the small gain at ε = 5e-4 feels as 1e-12
    assert found.stronger == pytest.approx(by_hand, rel=1e-11)
    assert 0 < found.sharpness <= by_hand * (1 + 1e-11)
    assert found.epsilon == epsilon
    assert found.subspace == 0


def test_value_gradient_norm_and_first_order_part_are_those_by_hand():
    found = epsilon_sharpness(*separable(A, B, THETA), 0.01)
    slope = np.array(A) * np.array(THETA) + np.array(B)
    value = value_by_hand(A, B, THETA)
    assert found.value == pytest.approx(value, rel=EXACT)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(slope), rel=EXACT)
    first_order = percent((np.abs(slope) * 0.01 * (np.abs(THETA) + 1)).sum(), value)
    assert found.first_order == pytest.approx(first_order, rel=EXACT)


@pytest.mark.parametrize("constant", [0.0, 1.0, 30.0])
def test_the_gain_is_relative_to_one_plus_the_value(constant):
    found = epsilon_sharpness(*separable(A, np.zeros(N), np.zeros(N), constant), 0.1)
    assert found.stronger == pytest.approx(100 * sum(A) * 0.1**2 / 2 / (1 + constant), rel=1e-10)


def test_a_linear_function_has_nothing_beyond_its_first_order_part():
    slopes = [1.0, -2.0, 0.5, 0.0, 3.0, -0.25]
    found = epsilon_sharpness(*separable(np.zeros(N), slopes, THETA, 10.0), 0.01)
    by_hand = percent(gain_by_hand(np.zeros(N), slopes, THETA, 0.01), value_by_hand(np.zeros(N), slopes, THETA, 10.0))
    assert found.first_order == pytest.approx(by_hand, rel=EXACT)
    assert found.stronger == pytest.approx(by_hand, rel=1e-11)
    assert found.sharpness == pytest.approx(by_hand, rel=1e-11)
    assert found.restart_sharpness == pytest.approx([by_hand] * 3, rel=1e-11)
    assert found.spread <= 1e-11 * by_hand


def test_an_exact_minimizer_does_not_end_the_search_where_it_begins():
    objective, theta = separable([3.0, 1.0, 0.5, 2.0, 4.0, 7.0], np.zeros(N), np.zeros(N))
    found = epsilon_sharpness(objective, theta, 0.01)
    by_hand = percent(17.5 * 0.01**2 / 2, 0.25)
    assert found.gradient_norm == found.first_order == 0.0
    assert found.restart_sharpness[0] == 0.0  # from y = 0 exactly the slope is 0: L-BFGS-B cannot leave it
    assert (found.restart_iterations[1:] >= 1).all()
    assert (found.restart_sharpness[1:] > 0).all()
    assert found.sharpness > 0.5 * by_hand  # a start inside the box already has a part of the gain
    assert found.stronger == pytest.approx(by_hand, rel=1e-9)
    assert (found.restart_stronger > 0.99 * by_hand).all()  # sign ascent leaves y = 0 for a random corner


def test_a_nearly_exact_minimizer_is_left_by_the_papers_own_start_too():
    objective, theta = separable([3.0, 1.0, 0.5, 2.0, 4.0, 7.0], np.full(N, 9e-6), np.zeros(N))
    found = epsilon_sharpness(objective, theta, 0.01, restarts=1)  # SciPy's default gtol = 1e-5 would stop here
    assert found.restart_iterations[0] >= 1
    assert found.sharpness > 0.5 * found.stronger > 0


def test_results_are_the_best_points_that_were_evaluated(monkeypatch):
    objective, theta = least_squares()
    seen = recorded(monkeypatch, objective)
    found = epsilon_sharpness(objective, theta, 0.3, restarts=2)
    centre, values = seen[0][1], [value for _, value in seen]
    assert torch.equal(seen[0][0], theta)
    assert found.value == centre
    assert found.stronger == percent(max(values) - centre, centre)
    by_paper = 1 + found.restart_evaluations.sum()
    assert found.sharpness == percent(max(values[1:by_paper]) - centre, centre)
    assert len(values) > by_paper


def test_a_run_whose_last_point_is_not_its_best_still_reports_the_best(monkeypatch):
    def wandering(function, start, *, bounds, **_):
        function(bounds.ub)
        function(np.zeros_like(start))  # L-BFGS-B may end so, where its line search fails
        return OptimizeResult(nit=2)

    monkeypatch.setattr("sharpness.measures.epsilon.minimize", wandering)
    objective, theta = separable(A, np.zeros(N), np.abs(THETA))
    found = epsilon_sharpness(objective, theta, 0.1, restarts=1)
    by_hand = percent(gain_by_hand(A, np.zeros(N), np.abs(THETA), 0.1), value_by_hand(A, np.zeros(N), THETA))
    assert found.sharpness == pytest.approx(by_hand, rel=EXACT)
    assert (found.restart_iterations[0], found.restart_evaluations[0]) == (2, 2)


@pytest.mark.parametrize("subspace", [None, 3])
def test_no_point_outside_the_box_is_evaluated(monkeypatch, subspace):
    objective, theta = least_squares(n=8)
    seen = recorded(monkeypatch, objective)
    epsilon_sharpness(objective, theta, 0.3, subspace, seed=4)
    basis = torch.eye(8, dtype=torch.float64)
    if subspace:
        basis = normal(8, subspace, key=("subspace",), seed=4, dtype=torch.float64)
    inverse = np.linalg.pinv(basis.numpy())
    half = 0.3 * (np.abs(inverse @ theta.numpy()) + 1)
    steps = np.array([inverse @ (place - theta).numpy() for place, _ in seen])
    assert (np.abs(steps) <= half * (1 + 1e-10)).all()  # rounding of θ + A y and of the pseudo-inverse
    lifted = torch.as_tensor(steps) @ basis.T
    places = torch.stack([place for place, _ in seen])
    assert torch.allclose(places - theta, lifted, rtol=0, atol=1e-12)  # and none off the subspace
    assert np.abs(steps).max(axis=0) == pytest.approx(half, rel=1e-10)  # corners are reached


@pytest.mark.parametrize("epsilon", [1e-5, 0.05, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_coupled_convex_quadratics_are_never_above_the_best_corner(epsilon, seed):
    objective, theta = least_squares(seed=seed)
    found = epsilon_sharpness(objective, theta, epsilon, seed=seed)
    best = brute_force(objective, theta, epsilon)
    assert found.sharpness <= found.stronger <= best * (1 + 1e-9)  # f rounds to 1e-16, the least gain is 1e-5
    assert found.stronger >= found.first_order  # of a convex f the corner that the slope points to has at least that
    if epsilon == 1e-5:  # the slope at x decides every coordinate: its corner is the maximum
        assert found.stronger == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_random_subspace_has_the_box_of_the_pseudo_inverse(p, seed):
    objective, theta = least_squares(n=12)
    basis = normal(12, p, key=("subspace",), seed=seed, dtype=torch.float64)
    half = 1e-3 * (np.abs(np.linalg.pinv(basis.numpy()) @ theta.numpy()) + 1)
    slope = (basis.T @ objective.gradient(theta)).numpy()
    found = epsilon_sharpness(objective, theta, 1e-3, p, seed=seed)
    assert found.subspace == p
    # squaring A in the normal equations loses its condition number squared, < 1e3 for these
    assert found.first_order == pytest.approx(percent(np.abs(slope) @ half, found.value), rel=1e-11)
    best = brute_force(objective, theta, 1e-3, basis)
    assert found.stronger == pytest.approx(best, rel=1e-9)
    assert found.sharpness <= found.stronger
    wide = epsilon_sharpness(objective, theta, 1.0, p, seed=seed)
    assert wide.sharpness <= wide.stronger <= brute_force(objective, theta, 1.0, basis) * (1 + 1e-9)


def test_a_subspace_of_full_dimension_is_accepted():
    objective, theta = least_squares(n=4)
    basis = normal(4, 4, key=("subspace",), seed=0, dtype=torch.float64)
    found = epsilon_sharpness(objective, theta, 1e-3, 4)
    # the condition number of a square A enters squared: 1e-7 is 1e-16 times 1e9, far above any 4 × 4 draw here
    assert found.stronger == pytest.approx(brute_force(objective, theta, 1e-3, basis), rel=1e-7)


def test_convex_functions_are_sharper_in_larger_boxes():
    grid = [1e-4, 1e-3, 1e-2, 0.1, 1.0]
    whole = [epsilon_sharpness(*separable(A, B, THETA), epsilon).stronger for epsilon in grid]
    inside = [epsilon_sharpness(*least_squares(n=12), epsilon, 2).stronger for epsilon in grid]
    assert all(small < large for small, large in itertools.pairwise(whole))
    assert all(small < large for small, large in itertools.pairwise(inside))


def test_of_a_convex_function_larger_boxes_gain_at_least_in_proportion():
    gains = [epsilon_sharpness(*separable(A, B, THETA), epsilon).stronger for epsilon in (0.01, 0.02, 0.04)]
    assert gains[1] >= 2 * gains[0]  # f(x + 2y) − f(x) ≥ 2 (f(x + y) − f(x))
    assert gains[2] >= 2 * gains[1]


@pytest.mark.parametrize("iterations", [1, 2, 10])
def test_no_run_exceeds_its_iterations(iterations):
    found = epsilon_sharpness(*least_squares(n=30), 0.5, iterations=iterations)
    assert (found.restart_iterations >= 1).all()
    assert (found.restart_iterations <= iterations).all()
    assert (found.restart_evaluations >= found.restart_iterations).all()
    assert found.iterations == iterations


def test_more_restarts_only_add_starts():
    objective, theta = least_squares(n=10)
    few, many = (epsilon_sharpness(objective, theta, 0.5, restarts=r, iterations=2) for r in (2, 5))
    assert (few.restart_sharpness == many.restart_sharpness[:2]).all()
    assert (few.restart_stronger == many.restart_stronger[:2]).all()
    assert many.restart.tolist() == [0, 1, 2, 3, 4]
    assert many.sharpness == many.restart_sharpness.max() >= few.sharpness
    assert many.stronger >= few.stronger
    assert many.spread == many.restart_sharpness.max() - many.restart_sharpness.min()


@pytest.mark.parametrize("subspace", [None, 5])
def test_the_same_seed_gives_the_same_bits_and_another_seed_other_starts(subspace):
    objective, theta = least_squares(n=10)
    first, second, other = (epsilon_sharpness(objective, theta, 0.5, subspace, 2, seed=s) for s in (1, 1, 2))
    assert first.restart_sharpness.tobytes() == second.restart_sharpness.tobytes()
    assert first.restart_stronger.tobytes() == second.restart_stronger.tobytes()
    assert (first.sharpness, first.stronger, first.first_order) == (
        second.sharpness,
        second.stronger,
        second.first_order,
    )
    assert (first.restart_sharpness[1:] != other.restart_sharpness[1:]).any()


def test_the_box_of_a_subspace_is_the_same_to_the_bit_wherever_its_arrays_lie_in_memory():
    objective, theta = least_squares(n=30)
    point, boxes, between = objective.point(theta), set(), []
    for size in range(1, 60):
        between.append(np.empty(size))  # moves the next allocation: some LAPACK drivers round by alignment
        boxes.add(_Box.around(objective, point, 0.1, 7, 0).half_width.tobytes())
    assert len(boxes) == 1


def test_float32_agrees_with_float64_to_its_rounding():
    objective, theta = least_squares()
    double = epsilon_sharpness(objective, theta, 0.05)
    single = epsilon_sharpness(objective.replace(dtype=torch.float32), theta, 0.05)
    # f rounds to 1e-7 · (1 + f), 1e-5 percent
    assert single.stronger == pytest.approx(double.stronger, rel=1e-5, abs=3e-5)


def test_a_minimizer_brings_its_own_weights_and_statistics():
    torch.manual_seed(0)
    model, other = (mlp([3, 4, 2], batchnorm=True).double() for _ in range(2))
    other[1].running_mean.normal_()
    data = (torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 2)
    objective, _ = Objective.from_module(model, cross_entropy, data)
    own, theta = Objective.from_module(other, cross_entropy, data)
    found = epsilon_sharpness(objective, Minimizer.of(other))
    expected = epsilon_sharpness(own, theta)
    assert (found.sharpness, found.stronger, found.value) == (expected.sharpness, expected.stronger, expected.value)
    assert found.conditions["theta_sha256"] == Point.of(other, ParamSpace.of(other)).sha256


def test_both_batch_norm_policies_with_derivatives_are_measured_and_differ():
    torch.manual_seed(0)
    model = mlp([3, 4, 2], batchnorm=True).double()
    data = (torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 2)
    by_policy = {}
    for policy in ("eval", "batch"):
        objective, theta = Objective.from_module(model, cross_entropy, data, batchnorm=policy)
        by_policy[policy] = epsilon_sharpness(objective, theta, 0.01)
        assert by_policy[policy].conditions["batchnorm"] == policy
    assert by_policy["eval"].stronger != by_policy["batch"].stronger


def test_the_callers_model_and_random_state_are_the_same_after_as_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective, theta = Objective.from_module(model, cross_entropy, (torch.randn(8, 3), torch.arange(8) % 2))
    start = theta.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    epsilon_sharpness(objective, theta, 0.1, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(theta, start)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[3].weight.grad is None
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1], states[2]) == (np.random.get_state()[1].tolist(), random.getstate())


def test_progress_counts_every_evaluation(monkeypatch):
    objective, theta = least_squares()
    seen, told = recorded(monkeypatch, objective), []
    epsilon_sharpness(objective, theta, 0.1, progress=lambda done, total, note: told.append(done))
    assert told == list(range(1, len(seen) + 1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epsilon": 0.0}, "epsilon > 0"),
        ({"epsilon": -1e-3}, "epsilon > 0"),
        ({"epsilon": math.nan}, "epsilon > 0"),
        ({"epsilon": math.inf}, "epsilon > 0"),
        ({"subspace": 0}, "1 <= subspace <= n = 5"),
        ({"subspace": -1}, "1 <= subspace <= n = 5"),
        ({"subspace": 6}, "1 <= subspace <= n = 5"),
        ({"iterations": 0}, "iterations >= 1"),
        ({"restarts": 0}, "restarts >= 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, expected):
    with pytest.raises(ShapeError, match=expected):
        epsilon_sharpness(*least_squares(), **options)


def test_a_point_of_another_length_is_refused():
    objective, _ = least_squares()
    with pytest.raises(ShapeError, match=r"shape \(5,\)"):
        epsilon_sharpness(objective, torch.zeros(4))


def test_recomputed_statistics_are_refused():
    model = mlp([3, 4, 2], batchnorm=True)
    objective, theta = Objective.from_module(
        model, cross_entropy, (torch.randn(8, 3), torch.arange(8) % 2), batchnorm="recompute"
    )
    with pytest.raises(UnsupportedModelError, match="values only"):
        epsilon_sharpness(objective, theta)


@pytest.mark.parametrize("subspace", [None, 3])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_an_error(subspace, poison):
    objective, theta = least_squares()
    theta[2] = poison
    with pytest.raises(NonFiniteError, match="at the point"):
        epsilon_sharpness(objective, theta, 0.1, subspace)


def test_a_loss_that_ends_inside_the_box_is_an_error_that_says_so():
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(0.5)
    one = torch.ones(1, 1, dtype=torch.float64)
    objective, theta = Objective.from_module(model, lambda output, target: -torch.log(target - output), (one, one))
    assert epsilon_sharpness(objective, theta, 0.1).stronger > 0  # θ up to 0.65
    with pytest.raises(NonFiniteError, match="inside the box"):
        epsilon_sharpness(objective, theta, 0.5)  # θ up to 1.25, beyond 1
