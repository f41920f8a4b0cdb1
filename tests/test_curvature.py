"""Curvature along axes and over planes: closed forms, dense references, kinks, batch norm, resumed to the bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import filled, labels, randn
from torch import nn

from sharpness import store
from sharpness.errors import NonFiniteError, ShapeError
from sharpness.geometry import Plane, random_plane
from sharpness.landscape import axis_curvature, convexity_map, convexity_template
from sharpness.landscape import curvature as curvature_module
from sharpness.objective import Objective, cross_entropy
from sharpness.params import Point, sha256
from sharpness.records import variables
from sharpness.spectrum import eigenpairs

ALPHAS, BETAS = np.array([-1.0, 0.0, 0.25, 2.0]), np.array([0.5, -1.0, 0.0])


class Function(nn.Module):
    """A function of θ as the output of a model, for objectives whose loss is that output."""

    def __init__(self, function, theta):
        super().__init__()
        self.function, self.theta = function, nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x):
        return self.function(self.theta).expand(len(x), 1)


def objective_of(function, theta, **options):
    """f as an objective, and θ."""
    data = (torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))
    return Objective.from_module(Function(function, theta), lambda output, target: output - target, data, **options)


def vector(*entries):
    return torch.tensor(entries, dtype=torch.float64)


def symmetric(n, key="matrix"):
    half = randn(n, n, key=key)
    return half + half.T


def network(layer, *, batchnorm=False, dtype=torch.float64, policy="eval"):
    """A small classifier with ``layer`` for its nonlinearity, and its θ."""
    norm = [nn.BatchNorm1d(5)] if batchnorm else []
    model = filled(nn.Sequential(nn.Linear(4, 5), *norm, layer, nn.Linear(5, 3))).to(dtype)
    return Objective.from_module(model, cross_entropy, (randn(12, 4, dtype=dtype), labels(12)), batchnorm=policy)


def dense_hessian(function, theta):
    return torch.autograd.functional.hessian(function, theta)


def same(one, other):
    """Whether two records agree to the bit."""
    pairs = zip(variables(one), variables(other), strict=True)
    return all(ours.values.tobytes() == theirs.values.tobytes() for ours, theirs in pairs)


# Along axes


def test_on_a_quadratic_both_curvatures_are_exact():
    matrix, slope = torch.tensor([[4.0, 1.0], [1.0, -2.0]], dtype=torch.float64), vector(0.5, -1.0)
    f, theta = objective_of(lambda t: 0.5 * t @ matrix @ t + slope @ t, [1.0, -2.0])
    axes = {"first": vector(1.0, 0.0), "both": vector(2.0, -1.0), "none": vector(0.0, 0.0)}
    found = axis_curvature(f, theta, axes, steps=[0.5, 0.25])
    exact = [4.0, 4 * 4 - 4 - 2, 0.0]
    assert found.product.tolist() == exact
    assert found.second_difference.tolist() == [[value] * 2 for value in exact]
    gradient = matrix @ theta + slope
    assert found.slope.tolist() == [float(gradient @ v) for v in axes.values()]
    assert found.length.tolist() == pytest.approx([1.0, math.sqrt(5), 0.0])
    assert (found.axis.tolist(), found.step.tolist()) == (list(axes), [0.5, 0.25])
    assert (found.origin, found.batchnorm) == (sha256(theta), "none")


def test_of_a_plane_the_axes_are_taken_at_its_origin():
    f, _ = objective_of(lambda t: t[0] ** 2 + 3 * t[1] ** 2, [1.0, 1.0])
    plane = Plane(vector(1.0, 2.0), vector(1.0, 0.0), vector(0.0, 2.0))
    found = axis_curvature(f, plane, steps=[1.0])
    assert found.axis.tolist() == ["α", "β"]
    assert found.product.tolist() == [2.0, 24.0]
    assert found.slope.tolist() == [2.0, 24.0]
    assert found.origin == plane.origin.sha256
    given = axis_curvature(f, plane, {"v": vector(1.0, 1.0)}, steps=[1.0])
    assert (given.axis.tolist(), given.product.tolist()) == (["v"], [8.0])


def test_on_a_smooth_network_they_differ_by_the_square_of_the_step():
    f, theta = network(nn.Tanh())
    found = axis_curvature(f, random_plane(theta, f.space, by="model", hold=False))
    errors = np.abs(found.second_difference - found.product[:, None])
    ratios = errors[:, 1:4] / errors[:, 2:5]
    assert ((ratios > 14) & (ratios < 18)).all()  # steps fall by 4; below them rounding takes over
    assert (errors[:, -1] < 1e-6 * np.abs(found.product)).all()  # truncation 6e-8·f⁗/12, rounding 1.5e-8·f


def test_the_product_is_that_of_the_dense_hessian_and_the_slope_that_of_the_gradient():
    f, theta = network(nn.Tanh())
    direction = randn(f.size, key="direction")
    model = filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))

    def loss(flat):
        named = f.space.unflatten(flat)
        return nn.functional.cross_entropy(torch.func.functional_call(model, named, randn(12, 4)), labels(12))

    found = axis_curvature(f, theta, {"v": direction}, steps=[0.1])
    gradient = torch.autograd.functional.jacobian(loss, theta)
    assert found.product[0] == pytest.approx(float(direction @ dense_hessian(loss, theta) @ direction), rel=1e-10)
    assert found.slope[0] == pytest.approx(float(gradient @ direction), rel=1e-10)


def test_kinks_count_in_the_second_difference_and_not_in_the_product():
    distance, steps = 0.25, np.array([1.0, 0.5, 0.125])
    f, theta = objective_of(lambda t: torch.relu(t).sum() + t.square().sum(), [-distance])
    found = axis_curvature(f, theta, {"v": vector(1.0)}, steps=steps)
    assert found.product.tolist() == [2.0]
    kink = np.maximum(steps - distance, 0) / steps**2  # of height 1, at this distance
    assert found.second_difference[0].tolist() == pytest.approx((2 + kink).tolist())


def test_on_a_relu_network_steps_across_kinks_see_them():
    f, theta = network(nn.ReLU())
    found = axis_curvature(f, random_plane(theta, f.space, by="model", hold=False))
    apart = np.abs(found.second_difference - found.product[:, None])
    assert (apart[:, 0] > 0.05 * np.abs(found.product)).all()
    assert (apart[:, -1] < 1e-5 * np.abs(found.product)).all()  # the nearest kink is farther away than the last step


def test_an_objective_in_float32_is_measured_in_float64():
    f, theta = network(nn.Tanh(), dtype=torch.float32)
    plane = random_plane(theta, f.space, by="model", hold=False)
    found = axis_curvature(f, plane)
    assert found.conditions["dtype"] == "float64"
    assert found.product.tolist() == pytest.approx(found.second_difference[:, -1].tolist(), rel=1e-6)
    assert found.origin == sha256(theta)
    h = found.step[-1]
    ends = [f.value(theta + side * h * plane.first) for side in (1, 0, -1)]
    rounded = (ends[0] - 2 * ends[1] + ends[2]) / h**2
    assert abs(rounded - found.product[0]) > 1e-2 * abs(found.product[0])  # why


def test_statistics_re_estimated_at_the_point_are_held_for_both():
    f, theta = network(nn.Tanh(), batchnorm=True, policy="recompute")
    plane = random_plane(theta, f.space, by="model", hold=False)
    found = axis_curvature(f, plane)
    assert found.batchnorm == "recompute, then held"
    held = f.replace(batchnorm="eval")
    by_hand = axis_curvature(held, held.with_statistics(theta), {"α": plane.first, "β": plane.second})
    assert by_hand.batchnorm == "eval"
    assert same(found, by_hand)
    stale = axis_curvature(held, plane)
    assert (np.abs(stale.product / found.product - 1) > 0.01).all()
    assert np.abs(found.second_difference[:, -1] / found.product - 1).max() < 1e-5


def test_statistics_of_the_batch_move_with_the_point_in_both():
    f, theta = network(nn.Tanh(), batchnorm=True, policy="batch")
    found = axis_curvature(f, random_plane(theta, f.space, by="model", hold=False))
    assert found.batchnorm == "batch"
    assert np.abs(found.second_difference[:, -1] / found.product - 1).max() < 1e-5


def test_a_second_difference_across_losses_that_are_not_finite_is_not():
    f, theta = objective_of(lambda t: -torch.log(t).sum(), [1.0])
    found = axis_curvature(f, theta, {"v": vector(1.0)}, steps=[2.0, 1.0, 0.5])
    assert np.isfinite(found.second_difference).tolist() == [[False, False, True]]
    assert found.product.tolist() == [1.0]
    with pytest.raises(NonFiniteError, match="finite gradient"):
        axis_curvature(f, vector(0.0), {"v": vector(1.0)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": None}, r"one or more directions and steps above 0; got \[\]"),
        ({"directions": {}}, "one or more directions"),
        ({"steps": [0.5, 0.0]}, "steps above 0"),
        ({"steps": []}, "steps to be a non-empty list"),
        ({"directions": {"eigenvector 1": vector(1.0, 2.0)}}, r"direction 'eigenvector 1' of shape \(1,\)"),
    ],
)
def test_what_has_no_axis_curvature_is_refused(options, message):
    f, theta = objective_of(lambda t: t.square().sum(), [1.0])
    with pytest.raises(ShapeError, match=message):
        axis_curvature(f, theta, **{"directions": {"v": vector(1.0)}, **options})


def test_axis_curvature_survives_a_file(tmp_path):
    f, theta = network(nn.Tanh())
    found = axis_curvature(f, random_plane(theta, f.space), steps=[0.1])
    again = store.load(store.save(found, tmp_path / "curvature.h5"))
    assert same(found, again)
    assert again.axis.tolist() == ["α", "β"]


# Over planes


def test_of_a_quadratic_the_extreme_eigenvalues_are_those_of_its_matrix_everywhere():
    matrix = symmetric(6)
    f, theta = objective_of(lambda t: 0.5 * t @ matrix @ t, [0.0] * 6)
    found = convexity_map(f, Plane(theta, randn(6, key="u"), randn(6, key="v")), ALPHAS, BETAS, tolerance=1e-6)
    exact = torch.linalg.eigvalsh(matrix)
    assert found.smallest.shape == (4, 3)
    assert found.smallest == pytest.approx(np.full((4, 3), float(exact[0])), rel=1e-6)
    assert found.largest == pytest.approx(np.full((4, 3), float(exact[-1])), rel=1e-6)
    assert found.converged.all()
    assert (found.residual <= 1e-6 * exact.abs().max().item()).all()
    assert (found.status == 1).all()


def test_a_saddle_between_two_wells_is_seen_where_it_is_and_not_transposed():
    """f = (θ₁² − 1)² + θ₂² has curvatures 12 θ₁² − 4 and 2."""
    f, _ = objective_of(lambda t: (t[0] ** 2 - 1) ** 2 + t[1] ** 2, [0.5, 0.5])
    plane = Plane(vector(0.0, 1.0), vector(1.0, 0.0), vector(0.0, 3.0))
    found = convexity_map(f, plane, ALPHAS, BETAS)
    curvature = np.broadcast_to(12 * ALPHAS[:, None] ** 2 - 4, (4, 3))
    assert found.smallest == pytest.approx(np.minimum(curvature, 2))
    assert found.largest == pytest.approx(np.maximum(curvature, 2))
    assert (found.alpha.tolist(), found.beta.tolist()) == (ALPHAS.tolist(), BETAS.tolist())
    assert (found.origin, found.first, found.second) == tuple(
        sha256(place) for place in (plane.origin.theta, plane.first, plane.second)
    )


def test_one_parameter_has_one_curvature():
    f, theta = objective_of(lambda t: (t**3).sum(), [1.0])
    found = convexity_map(f, Plane(theta, vector(1.0), vector(1.0)), [1.0], [0.0, 1.0])
    assert found.smallest.tolist() == found.largest.tolist() == [[12.0, 18.0]]


def test_points_are_those_of_single_solves():
    f, theta = network(nn.Tanh())
    plane = random_plane(theta, f.space, by="model", hold=False)
    found = convexity_map(f, plane, [-0.5, 0.5], [0.25], tolerance=1e-4, seed=3)
    alone = eigenpairs(
        curvature_module.Hessian(f, plane.at(0.5, 0.25), replay="graph"), 1, "both", tolerance=1e-4, seed=3
    )
    assert (found.largest[1, 0], found.smallest[1, 0]) == tuple(alone.eigenvalues)
    assert found.residual[1, 0] == alone.residuals.max()
    assert (found.seed, found.tolerance) == (3, 1e-4)


def test_points_without_finite_derivatives_are_holes():
    f, _ = objective_of(lambda t: -torch.log(t[0]) + t[1] ** 2, [1.0, 1.0])
    found = convexity_map(f, Plane(vector(1.0, 0.0), vector(1.0, 0.0), vector(0.0, 1.0)), [-1.0, 0.0], [0.0, 1.0])
    assert found.status.tolist() == [[2, 2], [1, 1]]
    assert np.isnan(found.smallest[0]).all()
    assert np.isnan(found.residual[0]).all()
    assert found.converged.tolist() == [[False, False], [True, True]]
    assert found.largest[1].tolist() == pytest.approx([2.0, 2.0])


def test_what_did_not_converge_is_kept_and_says_so(monkeypatch):
    solve = curvature_module.eigenpairs
    monkeypatch.setattr(
        curvature_module, "eigenpairs", lambda *args, **options: solve(*args, **options, max_products=6)
    )
    matrix = symmetric(60)
    f, theta = objective_of(lambda t: 0.5 * t @ matrix @ t, [0.0] * 60)
    found = convexity_map(f, Plane(theta, randn(60, key="u"), randn(60, key="v")), [0.0], [0.0, 1.0])
    exact = torch.linalg.eigvalsh(matrix)
    assert not found.converged.any()
    assert (found.status == 1).all()
    assert (found.residual > 1e-2 * found.largest).all()
    assert (np.abs(found.largest - float(exact[-1])) <= found.residual).all()


def test_statistics_are_those_of_every_point_or_of_the_origin_or_of_the_batch():
    objectives = {policy: network(nn.Tanh(), batchnorm=True, policy=policy)[0] for policy in ("recompute", "eval")}
    theta = network(nn.Tanh(), batchnorm=True)[1]
    origin = objectives["eval"].with_statistics(theta)
    plane = random_plane(origin, objectives["eval"].space, by="model", hold=False)
    fresh, stale = (convexity_map(f, plane, [0.0, 1.0], [0.0]) for f in objectives.values())
    assert (fresh.batchnorm, stale.batchnorm) == ("recompute, then held", "eval")
    assert fresh.largest[0] == pytest.approx(stale.largest[0])  # at the origin they are the same
    assert abs(fresh.largest[1, 0] / stale.largest[1, 0] - 1) > 0.1
    moved = objectives["eval"].with_statistics(plane.at(1.0, 0.0))
    by_hand = convexity_map(objectives["eval"], Plane(moved, plane.first, plane.second), [0.0], [0.0])
    assert fresh.largest[1, 0] == by_hand.largest[0, 0]
    batch = convexity_map(objectives["eval"].replace(batchnorm="batch"), plane, [0.0], [0.0])
    assert batch.batchnorm == "batch"


class Interrupted(Exception):
    pass


def test_an_interrupted_map_goes_on_to_the_same_bits(tmp_path):
    f, theta = network(nn.Tanh())
    plane, path = random_plane(theta, f.space, by="model", hold=False), tmp_path / "map.h5"
    whole = convexity_map(f, plane, ALPHAS, BETAS)
    template = convexity_template(f, plane, ALPHAS, BETAS)
    counts = []

    def stop(done, total, note=""):
        counts.append(done)
        if done == 5:
            raise Interrupted(note)

    with store.begin(path, {"convexity": template})["convexity"] as journal, pytest.raises(Interrupted, match="β = -1"):
        convexity_map(f, plane, ALPHAS, BETAS, journal=journal, progress=stop)
    left = store.load(path)
    assert left.status.reshape(-1).tolist() == [1] * 5 + [0] * 7
    assert np.isnan(left.smallest.reshape(-1)[5:]).all()
    with store.begin(path, {"convexity": template})["convexity"] as journal:
        resumed = convexity_map(f, plane, ALPHAS, BETAS, journal=journal, progress=stop)
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert same(whole, resumed)
    assert same(whole, store.load(path))


def test_what_has_no_map_is_refused():
    f, theta = objective_of(lambda t: t.square().sum(), [1.0, 2.0])
    plane = Plane(theta, vector(1.0, 0.0), vector(0.0, 1.0))
    with pytest.raises(ShapeError, match="betas to be a non-empty list"):
        convexity_map(f, plane, [0.0], [])
    with pytest.raises(ShapeError, match="tolerance > 0; got -1"):
        convexity_map(f, plane, [0.0], [0.0], tolerance=-1)
    with pytest.raises(ShapeError, match="one entry per parameter"):
        convexity_map(f, Plane(vector(1.0), vector(1.0), vector(1.0)), [0.0], [0.0])


def test_neither_changes_the_point_nor_the_random_state():
    f, theta = network(nn.Tanh())
    before, state = theta.clone(), torch.get_rng_state()
    axis_curvature(f, Point(theta), {"v": randn(f.size)}, steps=[0.1])
    convexity_map(f, random_plane(theta, f.space), [0.0], [0.0])
    assert torch.equal(theta, before)
    assert torch.equal(torch.get_rng_state(), state)
