"""Lines, planes and directions: exact at their ends, affine between, filters as long as those of θ."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sharpness.checkpoints import Minimizer
from sharpness.errors import ShapeError
from sharpness.geometry import Arc, Line, Plane, filter_normalised, random_plane
from sharpness.params import ParamSpace, Point

FEW = settings(max_examples=50, deadline=None, derandomize=True, database=None)
finite = st.floats(-8, 8).map(lambda x: round(x * 64) / 64)  # dyadic: sums and products of a few are exact


def vector(*entries):
    return torch.tensor(entries, dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2, bias=False)
    ).double()


def rows(tensor):
    """The filters of a weight, one per row."""
    return tensor.reshape(len(tensor), -1)


# Lines


@FEW
@given(alpha=finite, a=st.lists(finite, min_size=3, max_size=3), b=st.lists(finite, min_size=3, max_size=3))
def test_a_line_is_the_affine_combination_of_its_ends(alpha, a, b):
    found = Line(vector(*a), vector(*b)).at(alpha).theta.tolist()
    assert found == [(1 - alpha) * x + alpha * y for x, y in zip(a, b, strict=True)]


@FEW
@given(alpha=finite, a=st.lists(finite, min_size=3, max_size=3), b=st.lists(finite, min_size=3, max_size=3))
def test_the_reversed_line_is_the_same_line(alpha, a, b):
    a, b = vector(*a), vector(*b)
    assert torch.equal(Line(a, b).at(alpha).theta, Line(b, a).at(1 - alpha).theta)


def test_the_ends_of_a_line_are_the_points_themselves():
    # (1 − α)·a + α·b alone would give NaN where the other end is infinite, and lose the sign of zero
    a, b = Point(vector(1.0, -0.0)), Point(vector(float("inf"), 0.1), {"mean": vector(3.0)})
    line = Line(a, b)
    assert line.at(0) is line.at(0.0) is a
    assert line.at(1) is line.at(1.0) is b


def test_buffers_are_interpolated_as_weights_are_and_counters_kept():
    a = Point(vector(0.0), {"mean": vector(1.0, 2.0), "seen": torch.tensor(7)})
    b = Point(vector(1.0), {"mean": vector(3.0, -2.0), "seen": torch.tensor(9)})
    halfway = Line(a, b).at(0.5).buffers
    assert halfway["mean"].tolist() == [2.0, 0.0]
    assert halfway["seen"].item() == 7
    assert Line(a, b).at(2.0).buffers["mean"].tolist() == [5.0, -6.0]


def test_a_line_from_a_bare_theta_leaves_the_buffers_to_the_objective():
    line = Line(vector(0.0), Point(vector(1.0), {"mean": vector(1.0)}))
    assert line.at(0.5).buffers is None
    assert line.at(1).buffers is not None


def test_a_buffer_that_only_one_end_knows_is_as_it_is_there():
    a = Point(vector(0.0), {"mean": vector(1.0), "frozen": vector(5.0)})
    b = Point(vector(1.0), {"mean": vector(3.0), "positions": torch.tensor([1, 2])})
    for line in (Line(a, b), Line(b, a)):
        assert line.at(0.5).buffers["mean"].tolist() == [2.0]
        assert line.at(0.5).buffers["frozen"].tolist() == [5.0]
        assert line.at(0.5).buffers["positions"].tolist() == [1, 2]


def test_minimizers_are_ends_with_their_weights_and_buffers():
    first, second = network(), network()
    with torch.no_grad():
        for p in second.parameters():
            p.mul_(3.0)
        second[1].running_mean.add_(1.0)
    line = Line(Minimizer.of(first), Minimizer.of(second))
    space = ParamSpace.of(first)
    assert torch.equal(line.a.theta, Point.of(first, space).theta)
    assert torch.allclose(line.at(0.5).theta, 2 * line.a.theta, rtol=1e-15)
    assert torch.equal(line.at(0.25).buffers["1.running_mean"], 0.25 * second[1].running_mean)


def test_ends_of_two_models_are_refused():
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
        Line(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ShapeError, match="flat vectors"):
        Line(torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ShapeError, match=r"\(1,\) and \(2,\) for 'mean'"):
        Line(Point(vector(0.0), {"mean": vector(1.0)}), Point(vector(0.0), {"mean": vector(1.0, 2.0)}))
    with pytest.raises(ShapeError, match="Point, a Minimizer or a flat tensor"):
        Line([0.0], [1.0])


# Arcs


def test_the_ends_of_an_arc_are_the_points_themselves():
    # sin and cos alone would give cos(π/2) = 6e-17 of the other end, and lose the sign of zero
    a, b = Point(vector(1.0, -0.0)), Point(vector(float("inf"), 0.1), {"mean": vector(3.0)})
    arc = Arc(a, b)
    assert arc.at(0) is arc.at(0.0) is a
    assert arc.at(1) is arc.at(1.0) is b


@FEW
@given(alpha=st.floats(-2, 3), angle=st.floats(0, 2 * math.pi), length=st.floats(0.125, 8))
def test_an_arc_between_orthogonal_ends_of_equal_norm_is_one_of_a_circle(alpha, angle, length):
    a = length * vector(math.cos(angle), math.sin(angle), 0.0)
    b = length * vector(-math.sin(angle), math.cos(angle), 0.0)
    theta = Arc(a, b).at(alpha).theta
    # a handful of float64 roundings, each relative to the length
    assert float(theta.norm()) == pytest.approx(length, rel=1e-14)
    turned = angle + alpha * math.pi / 2
    expected = length * vector(math.cos(turned), math.sin(turned), 0.0)
    assert torch.allclose(theta, expected, rtol=0, atol=1e-14 * length)


@FEW
@given(a=st.lists(finite, min_size=3, max_size=3), b=st.lists(finite, min_size=3, max_size=3))
def test_an_arc_passes_through_the_opposite_of_its_ends(a, b):
    arc, a, b = Arc(vector(*a), vector(*b)), vector(*a), vector(*b)
    size = 1e-15 * (a.abs().max() + b.abs().max())
    for alpha, expected in ((2, -a), (-1, -b), (3, -b), (4, a), (-2, -a), (-3, b)):
        # the angle is rounded relative to itself: sin π is 1e-16 and not 0
        assert (arc.at(alpha).theta - expected).abs().max() <= abs(alpha) * size
    halfway = arc.at(0.5).theta
    assert (halfway - (a + b) / math.sqrt(2)).abs().max() <= size


@FEW
@given(alpha=st.floats(-2, 3), a=st.lists(finite, min_size=3, max_size=3), b=st.lists(finite, min_size=3, max_size=3))
def test_the_reversed_arc_is_the_same_arc(alpha, a, b):
    a, b = vector(*a), vector(*b)
    # both angles are rounded, by 1e-16 of up to 3π/2
    difference = Arc(a, b).at(alpha).theta - Arc(b, a).at(1 - alpha).theta
    assert difference.abs().max() <= 4e-15 * (a.abs().max() + b.abs().max())


@pytest.mark.parametrize("alpha", [-1, 0, 0.25, 0.5, 1, 2])
def test_buffers_of_an_arc_are_those_of_the_line(alpha):
    a = Point(vector(0.0), {"mean": vector(1.0, 2.0), "seen": torch.tensor(7), "frozen": vector(5.0)})
    b = Point(vector(1.0), {"mean": vector(3.0, -2.0), "seen": torch.tensor(9)})
    found, expected = (path(a, b).at(alpha).buffers for path in (Arc, Line))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    bare = Arc(vector(0.0), b).at(alpha).buffers
    assert (bare is None) == (alpha != 1)


def test_minimizers_are_ends_of_an_arc_and_keep_their_dtype():
    first, second = network(), network().float()
    arc = Arc(Minimizer.of(first), Minimizer.of(second))
    assert torch.equal(arc.a.theta, Point.of(first, ParamSpace.of(first)).theta)
    assert arc.b.theta.dtype == arc.at(0.5).theta.dtype == torch.float64
    back = Arc(Minimizer.of(second), Minimizer.of(first))
    assert back.at(0.5).theta.dtype == torch.float32


def test_ends_of_two_models_make_no_arc():
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
        Arc(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ShapeError, match="flat vectors"):
        Arc(torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ShapeError, match=r"\(1,\) and \(2,\) for 'mean'"):
        Arc(Point(vector(0.0), {"mean": vector(1.0)}), Point(vector(0.0), {"mean": vector(1.0, 2.0)}))
    with pytest.raises(ShapeError, match="Point, a Minimizer or a flat tensor"):
        Arc([0.0], [1.0])


# Planes


@FEW
@given(alpha=finite, beta=finite, numbers=st.lists(finite, min_size=6, max_size=6))
def test_a_plane_is_its_origin_plus_multiples_of_its_directions(alpha, beta, numbers):
    origin, first, second = (vector(*numbers[i : i + 2]) for i in (0, 2, 4))
    found = Plane(origin, first, second).at(alpha, beta).theta
    assert found.tolist() == (origin + alpha * first + beta * second).tolist()
    assert torch.equal(found, Plane(origin, second, first).at(beta, alpha).theta)


def test_a_plane_has_the_buffers_of_its_origin_everywhere():
    buffers = {"mean": vector(1.0)}
    plane = Plane(Point(vector(0.0, 0.0), buffers), vector(1.0, 0.0), vector(0.0, 1.0))
    assert plane.at(2.0, 3.0).buffers is buffers
    assert plane.at(0, 0).theta.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("lengths", [(2, 3, 2), (2, 2, 3), (3, 2, 2)])
def test_directions_of_another_length_are_refused(lengths):
    with pytest.raises(ShapeError, match="flat vectors of one length"):
        Plane(*(torch.zeros(n) for n in lengths))


# Directions


def normalised(seed=0, theta=None):
    model = network()
    space = ParamSpace.of(model)
    theta = Point.of(model, space).theta if theta is None else theta
    direction = torch.randn(space.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scaled = filter_normalised(direction, theta, space)
    return space, *(space.unflatten(v) for v in (theta, direction, scaled))


def test_every_filter_of_a_direction_is_as_long_as_that_of_theta_and_keeps_its_direction():
    space, theta, direction, scaled = normalised()
    filters = 0
    for name in space.names:
        if theta[name].ndim < 2:
            continue
        for weight, before, after in zip(rows(theta[name]), rows(direction[name]), rows(scaled[name]), strict=True):
            assert torch.allclose(after.norm(), weight.norm(), rtol=1e-14, atol=0)
            assert torch.allclose(after / after.norm(), before / before.norm(), rtol=0, atol=1e-15)
            filters += 1
    assert filters == 3 + 4 + 2  # output channels of the convolution, rows of the two matrices


def test_biases_and_norm_layers_do_not_move():
    space, theta, _, scaled = normalised()
    held = [name for name in space.names if theta[name].ndim < 2]
    assert held == ["0.bias", "1.weight", "1.bias", "3.bias"]
    assert not any(scaled[name].any() for name in held)


def test_a_filter_of_norm_zero_stays_where_it_is():
    space = ParamSpace(("weight",), (torch.Size([3, 2]),))
    theta, direction = vector(0.0, 0.0, 3.0, 4.0, 1.0, 0.0), vector(1.0, 1.0, 0.0, 2.0, 0.0, 0.0)
    scaled = filter_normalised(direction, theta, space)
    assert scaled.tolist() == [0.0, 0.0, 0.0, 5.0, 0.0, 0.0]  # zero weight; length 5; zero direction


def test_the_length_of_a_direction_does_not_matter():
    model = network()
    space = ParamSpace.of(model)
    theta = Point.of(model, space).theta
    direction = torch.randn(space.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = filter_normalised(direction, theta, space)
    assert torch.equal(filter_normalised(1024 * direction, theta, space), plain)  # a power of two: exact
    assert torch.equal(filter_normalised(direction, 8 * theta, space), 8 * plain)
    assert torch.allclose(filter_normalised(plain, theta, space), plain, rtol=1e-14, atol=0)


def test_directions_or_theta_of_another_length_are_refused():
    space = ParamSpace(("weight",), (torch.Size([3, 2]),))
    with pytest.raises(ShapeError, match=r"direction of shape \(6,\)"):
        filter_normalised(torch.zeros(5), torch.zeros(6), space)
    with pytest.raises(ShapeError, match=r"theta of shape \(6,\)"):
        filter_normalised(torch.zeros(6), torch.zeros(7), space)
    with pytest.raises(ShapeError, match=r"theta of shape \(6,\)"):
        random_plane(torch.zeros(7), space)


def test_a_random_plane_is_filter_normalised_reproducible_and_never_degenerate():
    model = network()
    space = ParamSpace.of(model)
    point = Minimizer.of(model)
    plane, again, other = (random_plane(point, space, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(plane.first, again.first)
    assert torch.equal(plane.second, again.second)
    assert not torch.equal(plane.first, other.first)
    assert torch.equal(plane.origin.theta, point.point.theta)
    for direction in (plane.first, plane.second):
        assert torch.allclose(filter_normalised(direction, plane.origin.theta, space), direction, rtol=1e-14, atol=0)
    cosine = plane.first @ plane.second / (plane.first.norm() * plane.second.norm())
    assert cosine.abs() < 0.5  # 32 independent entries: five standard deviations are 0.9 / √(32/25)


def test_a_random_plane_leaves_the_global_generator_alone():
    model = network()
    before = torch.get_rng_state()
    random_plane(Minimizer.of(model), ParamSpace.of(model))
    assert torch.equal(torch.get_rng_state(), before)
