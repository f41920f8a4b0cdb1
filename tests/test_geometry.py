"""Lines, planes and directions: exact at their ends, affine between, filters as long as those of θ."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sharpness.checkpoints import Minimizer
from sharpness.errors import ShapeError
from sharpness.geometry import (
    NORMALISATIONS,
    Arc,
    Bezier,
    Line,
    Plane,
    Polygon,
    eigenvector_plane,
    normalised,
    plane_through,
    random_direction,
    random_plane,
    trajectory_plane,
)
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


# Curves with bends


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def de_casteljau(points, alpha):
    """A Bézier curve by repeated halfway (α-way) points, which needs no binomials."""
    while len(points) > 1:
        points = [(1 - alpha) * p + alpha * q for p, q in pairwise(points)]
    return points[0]


@pytest.mark.parametrize("bends", [0, 1, 2, 3])
@pytest.mark.parametrize("alpha", [-0.5, 0.125, 0.5, 0.8, 1.75])
def test_a_bezier_curve_is_that_of_repeated_interpolation(bends, alpha):
    a, *between, b = points = [randn(6, seed=seed) for seed in range(bends + 2)]
    found = Bezier(a, b, between).at(alpha).theta
    assert torch.allclose(found, de_casteljau(points, alpha), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bends", [0, 1, 2, 3])
def test_a_polygon_passes_its_bends_at_equal_distances_and_is_straight_between(bends):
    a, *between, b = points = [randn(4, seed=seed) for seed in range(bends + 2)]
    curve, pieces = Polygon(a, b, between), bends + 1
    for piece, (p, q) in enumerate(pairwise(points)):
        assert torch.allclose(curve.at(piece / pieces).theta, p, rtol=1e-14)
        for way in (0.25, 0.5, 0.75):
            expected = (1 - way) * p + way * q
            assert torch.allclose(curve.at((piece + way) / pieces).theta, expected, rtol=0, atol=1e-14)
    beyond = curve.at(1 + 0.5 / pieces).theta, curve.at(-0.5 / pieces).theta  # by half a piece
    assert torch.allclose(beyond[0], 1.5 * points[-1] - 0.5 * points[-2], rtol=0, atol=1e-14)
    assert torch.allclose(beyond[1], 1.5 * points[0] - 0.5 * points[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", [Bezier, Polygon])
def test_curves_without_bends_are_lines_and_curves_with_straight_bends_too(kind):
    a, b = randn(5, seed=1), randn(5, seed=2)
    straight = [(1 - way) * a + way * b for way in (0.25, 0.5, 0.75)]
    for alpha in (-0.5, 0.0, 0.3, 1.0, 1.5):
        expected = Line(a, b).at(alpha).theta
        assert torch.equal(kind(a, b).at(alpha).theta, expected)
        assert torch.allclose(kind(a, b, straight).at(alpha).theta, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", [Bezier, Polygon])
def test_ends_dtype_and_buffers_of_a_bent_curve_are_those_of_the_line(kind):
    a = Point(vector(1.0, -0.0), {"mean": vector(1.0), "seen": torch.tensor(7)})
    b = Point(vector(float("inf"), 0.1).float(), {"mean": vector(3.0), "seen": torch.tensor(9)})
    curve = kind(a, b, [torch.zeros(2), Point(torch.ones(2), {"mean": vector(100.0)})])
    assert curve.at(0) is curve.at(0.0) is a
    assert curve.at(1) is curve.b
    assert curve.at(1).theta.dtype == curve.at(0.5).theta.dtype == curve.bends[0].dtype == torch.float64
    assert curve.at(0.25).buffers == Line(a, b).at(0.25).buffers  # those of bends play no part


def test_bends_have_a_fingerprint_that_knows_their_values_and_their_order():
    a, b, p, q = (randn(3, seed=seed) for seed in range(4))
    prints = [Bezier(a, b, bends).fingerprint for bends in ([], [p], [q], [p, q], [q, p])]
    assert len(set(prints)) == 5
    assert prints[0] == Line(a, b).fingerprint == Arc(a, b).fingerprint == ""
    assert Polygon(a, b, [p, q]).fingerprint == prints[3]
    assert len({kind.formula for kind in (Line, Arc, Bezier, Polygon)}) == 4


def test_bends_of_another_model_are_refused():
    for kind in (Bezier, Polygon):
        with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
            kind(torch.zeros(2), torch.zeros(2), [torch.zeros(3)])
        with pytest.raises(ShapeError, match="Point, a Minimizer or a flat tensor"):
            kind(torch.zeros(2), torch.zeros(2), [[0.0, 1.0]])


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


@FEW
@given(
    place=st.tuples(st.floats(-4, 4), st.floats(-4, 4)),
    angle=st.floats(0.05, math.pi - 0.05),
    sizes=st.tuples(st.sampled_from([1e-9, 1e-3, 1.0, 1e6]), st.sampled_from([1e-9, 1.0, 1e9])),
    aside=st.sampled_from([0.0, 1e-3, 2.0]),
)
def test_projecting_undoes_going_there_also_on_oblique_planes(place, angle, sizes, aside):
    """Off the plane by a normal, the place is the same, and the distance the normal's length."""
    frame, _ = torch.linalg.qr(randn(7, 3))
    first = sizes[0] * frame[:, 0]
    second = sizes[1] * (math.cos(angle) * frame[:, 0] + math.sin(angle) * frame[:, 1])
    origin = Point(torch.zeros(7, dtype=torch.float64), {"mean": vector(1.0)})
    plane = Plane(origin, first, second)
    size = max(abs(place[0]) * sizes[0], abs(place[1]) * sizes[1])  # a few roundings of the longest part
    found = plane.project(plane.at(*place))
    # rounding grows with the condition of the pair of unit axes, 1/sin² of the half angle at most
    assert abs(found.alpha - place[0]) * sizes[0] <= 1e-15 * size * 100 / angle_room(angle)
    assert abs(found.beta - place[1]) * sizes[1] <= 1e-15 * size * 100 / angle_room(angle)
    assert found.distance <= 1e-15 * size * 100 / angle_room(angle)
    off = plane.project(plane.at(*place).theta + aside * frame[:, 2])
    assert off.distance == pytest.approx(aside, rel=1e-10, abs=1e-13 * (size + aside) / angle_room(angle))
    assert plane.cosine == pytest.approx(math.cos(angle), abs=1e-14)
    assert plane.lengths == pytest.approx(sizes, rel=1e-14)


def angle_room(angle):
    return math.sin(angle / 2) ** 2 * math.cos(angle / 2) ** 2


@pytest.mark.parametrize("second", [(0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (-4.0, 0.0, 0.0)])
def test_a_plane_that_is_a_line_still_tells_how_far_away_a_point_is(second):
    plane = Plane(vector(1.0, 1.0, 1.0), vector(1.0, 0.0, 0.0), vector(*second))
    found = plane.project(vector(3.0, 1.0, 6.0))
    assert found.distance == pytest.approx(5.0, rel=1e-14)
    assert plane.at(found.alpha, found.beta).theta.tolist() == pytest.approx([3.0, 1.0, 1.0], rel=1e-14)


def test_marks_are_projected_and_checked():
    marks = {"on": vector(2.0, -6.0, 0.0), "off": Point(vector(1.0, 3.0, 4.0).float(), {"mean": vector(1.0)})}
    plane = Plane(torch.zeros(3, dtype=torch.float64), vector(2.0, 0, 0), vector(0, 3.0, 0), marks=marks)
    assert plane.marks == {"on": (1.0, -2.0, 0.0), "off": (0.5, 1.0, 4.0)}
    assert plane.walk is None
    for wrong in (torch.zeros(2), [0.0, 0.0, 0.0]):
        with pytest.raises(ShapeError):
            Plane(torch.zeros(3), torch.ones(3), torch.ones(3), marks={"wrong": wrong})


# Directions


def a_normalised(seed=0, theta=None):
    model = network()
    space = ParamSpace.of(model)
    theta = Point.of(model, space).theta if theta is None else theta
    direction = torch.randn(space.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scaled = normalised(direction, theta, space)
    return space, *(space.unflatten(v) for v in (theta, direction, scaled))


def test_every_filter_of_a_direction_is_as_long_as_that_of_theta_and_keeps_its_direction():
    space, theta, direction, scaled = a_normalised()
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
    space, theta, _, scaled = a_normalised()
    held = [name for name in space.names if theta[name].ndim < 2]
    assert held == ["0.bias", "1.weight", "1.bias", "3.bias"]
    assert not any(scaled[name].any() for name in held)


def test_a_filter_of_norm_zero_stays_where_it_is():
    space = ParamSpace(("weight",), (torch.Size([3, 2]),))
    theta, direction = vector(0.0, 0.0, 3.0, 4.0, 1.0, 0.0), vector(1.0, 1.0, 0.0, 2.0, 0.0, 0.0)
    scaled = normalised(direction, theta, space)
    assert scaled.tolist() == [0.0, 0.0, 0.0, 5.0, 0.0, 0.0]  # zero weight; length 5; zero direction


def test_the_length_of_a_direction_does_not_matter():
    model = network()
    space = ParamSpace.of(model)
    theta = Point.of(model, space).theta
    direction = torch.randn(space.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = normalised(direction, theta, space)
    assert torch.equal(normalised(1024 * direction, theta, space), plain)  # a power of two: exact
    assert torch.equal(normalised(direction, 8 * theta, space), 8 * plain)
    assert torch.allclose(normalised(plain, theta, space), plain, rtol=1e-14, atol=0)


def test_directions_or_theta_of_another_length_are_refused():
    space = ParamSpace(("weight",), (torch.Size([3, 2]),))
    with pytest.raises(ShapeError, match=r"direction of shape \(6,\)"):
        normalised(torch.zeros(5), torch.zeros(6), space)
    with pytest.raises(ShapeError, match=r"theta of shape \(6,\)"):
        normalised(torch.zeros(6), torch.zeros(7), space)
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
        assert torch.allclose(normalised(direction, plane.origin.theta, space), direction, rtol=1e-14, atol=0)
    assert abs(plane.cosine) < 1e-14


def test_a_random_plane_leaves_the_global_generator_alone():
    model = network()
    before = torch.get_rng_state()
    random_plane(Minimizer.of(model), ParamSpace.of(model))
    assert torch.equal(torch.get_rng_state(), before)


# Normalisations


BLOCKS = ParamSpace(
    ("conv", "conv_bias", "norm", "dense", "one", "scale"),
    tuple(torch.Size(shape) for shape in ((3, 2, 2, 2), (3,), (2,), (4, 5), (6, 1), ())),
)
ALL_WAYS = pytest.mark.parametrize(("by", "hold"), [(by, hold) for by in NORMALISATIONS for hold in (True, False)])


def parts(vector, by, hold):
    """Every part of a vector that is measured by itself: {name: rows of the part}; those held are left out."""
    moving = {name: piece for name, piece in BLOCKS.unflatten(vector).items() if piece.ndim > 1 or not hold}
    if by == "filter":
        return {name: rows(p) if p.ndim > 1 else p.reshape(1, -1) for name, p in moving.items()}
    if by == "layer":
        return {name: p.reshape(1, -1) for name, p in moving.items()}
    return {"all": torch.cat([p.reshape(-1) for p in moving.values()])[None]}


@ALL_WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_part_of_a_direction_is_as_long_as_that_of_theta_and_points_as_it_did(by, hold, dtype):
    theta, direction = randn(BLOCKS.size, seed=1, dtype=dtype), randn(BLOCKS.size, seed=2, dtype=dtype)
    scaled = normalised(direction, theta, BLOCKS, by, hold=hold)
    assert scaled.dtype == dtype
    still = [name for name, piece in BLOCKS.unflatten(scaled).items() if not piece.any()]
    assert still == (["conv_bias", "norm", "scale"] if hold else [])
    mine, before, target = (parts(v, by, hold) for v in (scaled, direction, theta))
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]  # a few dozen roundings
    for name, rows_of in mine.items():
        if by == "none":
            assert torch.equal(rows_of, before[name])
        elif by == "weight":
            assert torch.equal(rows_of, before[name] * target[name].abs())
        else:
            lengths = target[name].norm(dim=1, keepdim=True)
            assert torch.allclose(rows_of.norm(dim=1, keepdim=True), lengths, rtol=tolerance, atol=0)
            unit = before[name] / before[name].norm(dim=1, keepdim=True)
            assert torch.allclose(rows_of, lengths * unit, rtol=10 * tolerance, atol=0)


@ALL_WAYS
def test_parts_of_length_zero_and_of_one_entry_are_finite_and_as_long_as_those_of_theta(by, hold):
    theta = randn(BLOCKS.size, seed=1)
    pieces = BLOCKS.unflatten(theta)
    pieces["conv"][1] = 0
    pieces["norm"].zero_()
    pieces["one"][2] = 0
    plane = random_plane(theta, BLOCKS, by=by, hold=hold)
    for direction in (plane.first, plane.second):
        assert torch.isfinite(direction).all()
        found = BLOCKS.unflatten(direction)
        if by in ("filter", "weight"):
            assert not found["conv"][1].any()
            assert not found["norm"].any()
            assert found["one"][2] == 0
        if by == "filter":  # a filter of one entry can only be the weight's own size, either way up
            assert torch.allclose(found["one"].abs(), pieces["one"].abs(), rtol=1e-15)
            assert torch.allclose(found["scale"].abs(), pieces["scale"].abs() * (not hold), rtol=1e-15)
        if by == "layer" and not hold:
            assert not found["norm"].any()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@ALL_WAYS
def test_random_planes_have_orthogonal_normalised_axes(by, hold, dtype, seed):
    """Part by part, so that both axes are also as long as θ there; by single weights, there is no room for it."""
    theta = randn(BLOCKS.size, seed=5, dtype=dtype)
    plane = random_plane(theta, BLOCKS, by=by, hold=hold, seed=seed)
    assert plane.first.dtype == plane.second.dtype == dtype
    ours, theirs = (parts(axis.double(), by, hold) for axis in (plane.first, plane.second))
    bound = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    if by != "weight":
        for name, first in ours.items():
            if first.shape[1] > 1:  # filters of one entry can only be parallel
                cosines = (first * theirs[name]).sum(1) / (first.norm(dim=1) * theirs[name].norm(dim=1))
                assert cosines.abs().max() < bound, name
    for axis in (plane.first, plane.second):
        if by not in ("weight", "none"):
            assert torch.allclose(normalised(axis, theta, BLOCKS, by, hold=hold), axis, rtol=2e-6, atol=0)
    assert ("held" in plane.kind) == hold
    assert ("standard normal" if by == "none" else f"normalised by {by}") in plane.kind


@pytest.mark.parametrize("by", ["filter", "layer", "model", "none"])
@pytest.mark.parametrize("hold", [True, False])
def test_the_axes_of_a_random_plane_of_a_network_are_orthogonal(by, hold):
    space = ParamSpace.of(network())
    theta = randn(space.size, seed=4)
    for seed in range(5):
        assert abs(random_plane(theta, space, by=by, hold=hold, seed=seed).cosine) < 1e-12
        assert abs(random_plane(theta.float(), space, by=by, hold=hold, seed=seed).cosine) < 1e-6


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_filters_drawn_nearly_parallel_are_orthogonal_too(dtype, bound):
    """Of two thousand pairs of directions in the plane, some are within a thousandth of parallel."""
    space = ParamSpace(("weight",), (torch.Size([2000, 2]),))
    plane = random_plane(randn(space.size, dtype=dtype), space)
    first, second = (axis.double().view(2000, 2) for axis in (plane.first, plane.second))
    cosines = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    assert cosines.abs().max() < bound


def test_by_weight_is_the_first_axis_of_independent_numbers_times_magnitudes():
    theta = randn(BLOCKS.size, seed=1)
    plain, scaled = (random_plane(theta, BLOCKS, by=by, hold=False, seed=3) for by in ("none", "weight"))
    assert torch.equal(scaled.first, plain.first * theta.abs())


def test_random_directions_are_streams_by_key_and_seed():
    theta = randn(BLOCKS.size, seed=1)
    keys = [("plane", 0), ("plane", 1), ("profile", 0), ("profile", 1)]
    drawn = {(key, seed): random_direction(theta, BLOCKS, key=key, seed=seed) for key in keys for seed in (0, 1)}
    assert len({tuple(direction.tolist()) for direction in drawn.values()}) == 8
    plane = random_plane(theta, BLOCKS, seed=1)
    assert torch.equal(plane.first, drawn[("plane", 0), 1])
    beside = random_direction(theta, BLOCKS, key=("plane", 1), seed=1, beside=plane.first)
    assert torch.equal(plane.second, beside)


@pytest.mark.parametrize("by", ["filters", "", "Layer"])
def test_an_unknown_normalisation_is_refused_with_those_that_there_are(by):
    theta = randn(BLOCKS.size)
    message = f"filter, layer, model, weight, none; got '{by}'"
    with pytest.raises(ShapeError, match=message):
        normalised(theta, theta, BLOCKS, by)
    for make in (random_direction, random_plane):
        with pytest.raises(ShapeError, match=message):
            make(theta, BLOCKS, by=by)


# Planes through points


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 3])
def test_a_plane_through_points_has_them_on_it_and_keeps_their_angles_and_distances(count, dtype):
    points = {name: 3 + randn(BLOCKS.size, seed=seed, dtype=dtype) for seed, name in enumerate("abc"[:count])}
    plane = plane_through(points, BLOCKS)
    small = {torch.float32: 1e-6, torch.float64: 1e-13}[dtype]
    assert list(plane.marks) == list(points)
    assert plane.marks["a"] == (0.0, 0.0, 0.0)
    assert plane.marks["b"] == pytest.approx((1.0, 0.0, 0.0), abs=20 * small)
    assert abs(plane.cosine) < small
    unit = float((points["b"] - points["a"]).double().norm())
    assert plane.lengths == pytest.approx((unit, unit), rel=small)
    assert torch.equal(plane.at(0, 0).theta, points["a"])
    for name, (alpha, beta, distance) in plane.marks.items():
        assert torch.allclose(plane.at(alpha, beta).theta, points[name], rtol=0, atol=100 * small)
        assert distance <= 100 * small
    for name in points:
        for other in points:
            apart = math.hypot(*(plane.marks[name][axis] - plane.marks[other][axis] for axis in (0, 1)))
            assert apart * unit == pytest.approx(float((points[name] - points[other]).norm()), rel=100 * small)
    assert plane.kind == ("through a, b, c" if count == 3 else "through a, b; second axis random")


def test_the_second_axis_through_two_points_is_random_by_seed_and_moves_everything():
    points = {"SB": randn(BLOCKS.size, seed=1), "LB": randn(BLOCKS.size, seed=2)}
    axes = [plane_through(points, BLOCKS, seed=seed).second for seed in (0, 0, 1)]
    assert torch.equal(axes[0], axes[1])
    assert not torch.allclose(axes[0], axes[2])
    assert (axes[0] != 0).all()


def test_minimizers_of_two_dtypes_span_a_plane_in_that_of_the_first():
    first, second = Minimizer.of(network()), Minimizer.of(network().float())
    points = {"a": first, "b": Point(second.point.theta + 1)}
    plane = plane_through(points, ParamSpace.of(network()))
    assert plane.second.dtype == plane.at(0.5, 0.5).theta.dtype == torch.float64
    assert plane.origin.buffers.keys() == first.point.buffers.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, -1.0, 1e3, -1e4])
def test_points_on_one_line_are_refused_in_every_precision(dtype, factor):
    a, b = randn(BLOCKS.size, seed=1, dtype=dtype), randn(BLOCKS.size, seed=2, dtype=dtype)
    with pytest.raises(ShapeError, match="not on one line, for a plane; got a, b, c"):
        plane_through({"a": a, "b": b, "c": a + factor * (b - a)}, BLOCKS)
    with pytest.raises(ShapeError, match="distinct points"):
        plane_through({"a": a, "b": a.clone(), "c": b}, BLOCKS)
    with pytest.raises(ShapeError, match="distinct points"):
        plane_through({"a": a, "b": a.clone()}, BLOCKS)


def test_points_near_each_other_and_far_from_zero_still_span_a_plane():
    origin = 10 + randn(BLOCKS.size, seed=1)
    first, second = 1e-9 * randn(BLOCKS.size, seed=2), 1e-9 * randn(BLOCKS.size, seed=3)
    plane = plane_through({"a": origin, "b": origin + first, "c": origin + second}, BLOCKS)
    assert abs(plane.cosine) < 1e-12
    assert plane.marks["c"].distance < 1e-14


def test_planes_through_another_number_of_points_are_refused():
    for count in (0, 1, 4):
        with pytest.raises(ShapeError, match=f"two or three points .* got {count}"):
            plane_through({str(i): randn(3, seed=i) for i in range(count)}, ParamSpace(("w",), (torch.Size([3]),)))
    with pytest.raises(ShapeError, match="flat vectors of one length"):
        plane_through({"a": torch.zeros(3), "b": torch.ones(4)}, ParamSpace(("w",), (torch.Size([3]),)))


# Planes along eigenvectors and training runs


def test_a_plane_along_eigenvectors_has_the_first_two_columns_as_axes():
    origin, vectors = randn(9, seed=1), torch.linalg.qr(randn(9, 4))[0]
    plane = eigenvector_plane(origin, vectors, kind="two of four")
    assert torch.equal(plane.first, vectors[:, 0])
    assert torch.equal(plane.second, vectors[:, 1])
    assert plane.lengths == pytest.approx((1.0, 1.0), rel=1e-15)
    assert abs(plane.cosine) < 1e-15
    assert plane.kind == "two of four"
    for wrong in (vectors[:, :1], vectors[:, 0], vectors[None]):
        with pytest.raises(ShapeError, match="two or more eigenvectors as columns"):
            eigenvector_plane(origin, wrong)
    with pytest.raises(ShapeError, match="flat vectors of one length"):
        eigenvector_plane(origin, vectors[:8])


def run_of(steps=7, n=40, seed=0):
    """Iterates that go some way in a few directions, by epoch."""
    walk = (randn(steps, n, seed=seed) * torch.logspace(0, -2, n, dtype=torch.float64)).cumsum(0)
    return {0.5 * step: 5 + theta for step, theta in enumerate(walk)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plane_of_a_training_run_is_that_of_the_singular_vectors(dtype):
    iterates = {epoch: theta.to(dtype) for epoch, theta in run_of().items()}
    plane = trajectory_plane(iterates)
    thetas = np.array([theta.double().numpy() for theta in iterates.values()])
    centred = thetas - thetas.mean(0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    small = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    assert np.allclose(plane.walk.explained, values[:2] ** 2 / (values**2).sum(), rtol=1e-12)
    for axis, vector_ in ((plane.first, vectors[0]), (plane.second, vectors[1])):
        assert abs(axis.double().numpy() @ vector_) == pytest.approx(1, abs=small)  # up to their sign
    assert plane.lengths == pytest.approx((1, 1), rel=small)
    assert abs(plane.cosine) < small
    assert plane.walk.epochs.tolist() == list(iterates)
    offsets = thetas - thetas[-1]
    # Pythagoras: unit axes, orthogonal, and what is off the plane orthogonal to both
    assert np.allclose((plane.walk.places**2).sum(1), (offsets**2).sum(1), rtol=10 * small, atol=1e-24)
    inside = offsets @ vectors[:2].T
    assert np.allclose(np.hypot(*plane.walk.places[:, :2].T), np.hypot(*inside.T), rtol=10 * small, atol=1e-12)
    assert plane.walk.places[-1].tolist() == [0.0, 0.0, 0.0]
    assert plane.walk.places[1:-1, 2].min() > 0.01
    assert torch.equal(plane.origin.theta, list(iterates.values())[-1])
    assert plane.marks["start"] == pytest.approx(plane.walk.places[0], rel=1e-12)


def test_no_plane_shows_more_of_a_training_run_than_its_own():
    iterates = run_of()
    best = trajectory_plane(iterates)
    shown = [best, *(Plane(best.origin, *torch.linalg.qr(randn(40, 2, seed=s))[0].T) for s in range(5))]
    mean = torch.stack(list(iterates.values())).mean(0)
    off = [
        sum(Plane(mean, plane.first, plane.second).project(theta).distance ** 2 for theta in iterates.values())
        for plane in shown
    ]
    assert min(off[1:]) > off[0]
    spread = sum(float((theta - mean).square().sum()) for theta in iterates.values())
    assert off[0] == pytest.approx(spread * (1 - best.walk.explained.sum()), rel=1e-10)


def test_runs_that_span_no_plane_are_refused():
    a, b = randn(5, seed=1), randn(5, seed=2)
    with pytest.raises(ShapeError, match="three or more iterates for their principal components; got 2"):
        trajectory_plane({0: a, 1: b})
    for last in (a, a + 2 * (b - a)):
        with pytest.raises(ShapeError, match="span a plane"):
            trajectory_plane({0: a, 1: b, 2: last})
    with pytest.raises(ShapeError, match="span a plane"):
        trajectory_plane({0: a, 1: a.clone(), 2: a.clone()})
    with pytest.raises(ShapeError, match="flat vectors of one length"):
        trajectory_plane({0: a, 1: randn(4), 2: b})
