"""Barriers, widths, basins and roughness: closed forms, exact on piecewise linear losses, and their invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sharpness.errors import NonFiniteError, ShapeError
from sharpness.records import LineLosses, PlaneLosses, ProfileLosses
from sharpness.shape import Barrier, Width, barrier, basin, excess_variation, roughness, width

SHA = {"batchnorm": "none", "origin": "", "first": "", "second": ""}


def line(alphas, losses, status=None, split=("train",)):
    alphas, losses = np.asarray(alphas, float), np.atleast_2d(np.asarray(losses, float))
    status = np.ones(len(alphas), np.uint8) if status is None else np.asarray(status, np.uint8)
    ends = {"batchnorm": "none", "start": "", "end": ""}
    return LineLosses(split=np.array(split), alpha=alphas, loss=losses, accuracy=losses * np.nan, status=status, **ends)


def profiles(losses):
    losses = np.asarray(losses, float)
    own = {"direction": np.arange(len(losses)), "alpha": np.arange(losses.shape[1], dtype=float)}
    shown = {"status": np.ones(losses.shape, np.uint8), "batchnorm": "none", "origin": "", "directions": "", "seed": 0}
    return ProfileLosses(split=np.array(["train"]), loss=losses[None], accuracy=losses[None] * np.nan, **own, **shown)


def plane(function, alphas, betas, **shown):
    """A function of α and β on a grid; ``status`` and what else the record shows as given."""
    alphas, betas = np.asarray(alphas, float), np.asarray(betas, float)
    loss = np.array([[function(a, b) for b in betas] for a in alphas], float)
    shown = {"status": np.ones(loss.shape, np.uint8), **shown}
    values = {"loss": loss[None], "accuracy": loss[None] * np.nan}
    return PlaneLosses(split=np.array(["train"]), alpha=alphas, beta=betas, **values, **SHA, **shown)


def quadratic(a, b):
    return lambda alpha, beta: (a * alpha**2 + b * beta**2) / 2


def double_well(alpha, beta):
    """Minima 0 at α = ±1, a saddle of height 1 between them."""
    return (alpha**2 - 1) ** 2 + beta**2


floats = st.floats(-100, 100, allow_subnormal=False)
curves = hnp.arrays(float, st.integers(2, 12), elements=floats)

# Barriers


def test_the_barrier_is_the_largest_height_above_the_chord_between_the_ends():
    alphas = np.linspace(-1, 2, 13)
    hill = line(alphas, 2 * alphas + 4 * alphas * (1 - alphas))  # the chord is 2α; beyond the ends it lies far below
    assert barrier(hill) == Barrier(1.0, 0.5)
    other = line(alphas, [alphas * 0, 2 * alphas + 4 * alphas * (1 - alphas)], split=("train", "test"))
    assert barrier(other) == Barrier(0.0, 0.0)
    assert barrier(other, "test") == Barrier(1.0, 0.5)


def test_a_convex_line_has_no_barrier():
    alphas = np.linspace(0, 1, 11)
    assert barrier(line(alphas, alphas**2)).height == 0


@given(losses=curves, offset=floats, slope=floats)
def test_the_barrier_does_not_see_a_linear_function_nor_the_direction(losses, offset, slope):
    alphas = np.linspace(0, 1, len(losses))
    found = barrier(line(alphas, losses))
    tilted = barrier(line(alphas, losses + offset + slope * alphas))
    mirrored = barrier(line(1 - alphas, losses))
    assert found.height >= 0
    assert tilted.height == pytest.approx(found.height, abs=1e-10)
    assert mirrored.height == pytest.approx(found.height, abs=1e-10)


@given(losses=curves, data=st.data())
def test_the_order_of_the_points_and_those_beyond_the_ends_do_not_matter(losses, data):
    alphas = np.linspace(0, 1, len(losses))
    order = data.draw(st.permutations(range(len(losses) + 2)))
    with_others = np.r_[alphas, -1, 2][order], np.r_[losses, 1e3, np.nan][order]
    assert barrier(line(*with_others)) == barrier(line(alphas, losses))


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_a_loss_between_the_ends_that_is_not_finite_is_an_infinite_barrier(lost):
    found = barrier(line([0, 0.25, 0.5, 1], [1, 2, lost, 1], status=[1, 1, 2, 1]))
    assert found == Barrier(math.inf, 0.5)


def test_coordinates_that_miss_the_ends_by_rounding_are_the_ends():
    alphas = np.arange(-0.3, 1.2, 0.1)  # 5.6e-17 for 0, and 1 less or more by as much
    assert 0 not in alphas
    assert barrier(line(alphas, (alphas - 0.5) ** 2)).height == 0
    assert barrier(line(alphas, -((alphas - 0.5) ** 2))).height == pytest.approx(0.25)


def test_what_has_no_barrier_is_refused():
    with pytest.raises(ShapeError, match=r"α = 0 and α = 1 among the points of the line; got 0, 0\.5$"):
        barrier(line([0, 0.5], [1, 2]))
    with pytest.raises(ShapeError, match="1 of 3 are pending"):
        barrier(line([0, 0.5, 1], [1, np.nan, 2], status=[1, 0, 1]))
    with pytest.raises(ShapeError, match="split to be one of train; got 'test'"):
        barrier(line([0, 1], [1, 2]), "test")
    with pytest.raises(NonFiniteError, match="both ends of the line; got 1 and inf"):
        barrier(line([0, 1], [1, np.inf]))


# Widths


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0, 1.75])
def test_the_width_of_an_absolute_value_is_twice_the_level_over_its_slope(level):
    alphas = np.array([-2.0, -0.5, 0.0, 1.0, 2.0])
    found = width(alphas, np.where(alphas < 0, -4 * alphas, 2 * alphas), level)
    assert (found.low, found.high) == pytest.approx((-level / 4, level / 2), abs=1e-15)
    assert found.length == pytest.approx(level * 0.75)
    assert not found.open_low
    assert not found.open_high


@given(losses=curves, level=floats, where=st.floats(0, 1), data=st.data())
def test_an_interval_ends_where_the_loss_reaches_the_level_or_the_points_end(losses, level, where, data):
    gaps = data.draw(hnp.arrays(float, len(losses), elements=st.floats(0.1, 10)))
    alphas = np.cumsum(gaps)
    at = np.clip(alphas[0] + where * np.ptp(alphas), alphas[0], alphas[-1])  # the sum may round past the end
    assume(np.interp(at, alphas, losses) < level - 1e-9)
    found = width(alphas, losses, level, at)
    assert found.low <= at <= found.high
    inside = (alphas > found.low) & (alphas < found.high)
    assert (losses[inside] <= level).all()
    for end, is_open, last in ((found.low, found.open_low, alphas[0]), (found.high, found.open_high, alphas[-1])):
        if is_open:
            assert end == last
        else:
            assert np.interp(end, alphas, losses) == pytest.approx(level, abs=1e-9)


def test_an_interval_does_not_reach_a_point_above_the_level_by_rounding():
    for low in np.linspace(0.1, 1.5, 15):
        for high in np.linspace(1.6, 9.6, 81):  # low + (high - low) is more than high for some
            assert width([low, high], [-1, 0], level=-4e-184, at=low).high <= high


def test_an_interval_does_not_go_on_behind_a_hill():
    assert width([0, 1, 2, 3, 4], [0, 2, 0, 2, 0], level=1) == Width(0, 0.5, True, False)
    assert width([4, 2, 0, 3, 1], [0, 0, 0, 2, 2], level=1, at=2) == Width(1.5, 2.5, False, False)


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_ends_an_interval_at_its_neighbour(lost):
    assert width([-2, -1, 0, 1], [lost, 0.5, 0.0, lost], level=1) == Width(-1, 0, False, False)
    with pytest.raises(ShapeError, match=r"level at or above the loss at α = -1\.5, inf; got 1"):
        width([-2, -1, 0, 1], [lost, 0.5, 0.0, lost], level=1, at=-1.5)


def test_what_has_no_width_is_refused():
    with pytest.raises(ShapeError, match=r"level at or above the loss at α = 0\.5, 1; got 0\.9"):
        width([0, 1], [0, 2], level=0.9, at=0.5)
    with pytest.raises(ShapeError, match="a place between 0 and 1, where the points are; got -1"):
        width([0, 1], [0, 2], level=1, at=-1)
    with pytest.raises(ShapeError, match="distinct coordinates along α; got 0, 0"):
        width([0, 0], [0, 2], level=1)
    with pytest.raises(ShapeError, match=r"as many losses; got shapes \(2,\) and \(3,\)"):
        width([0, 1], [0, 2, 3], level=1)


# Basins


def test_the_basin_of_a_quadratic_is_an_ellipse_as_the_grid_refines():
    a, b, level = 2.0, 0.5, 0.5
    exact = 2 * math.pi * level / math.sqrt(a * b)
    errors = []
    for points in (21, 41, 81):
        found = basin(plane(quadratic(a, b), np.linspace(-1, 1, points), np.linspace(-2, 2, points)), level)
        assert not found.open
        errors.append(exact - found.area)
    assert abs(errors[-1]) < 2e-3 * exact
    # linear interpolation errs by h²; where the contour meets the grid varies a little
    assert 3 < errors[0] / errors[1] < 5
    assert 3 < errors[1] / errors[2] < 5


def test_the_basin_of_a_linear_cone_is_a_diamond_exactly_and_not_transposed():
    found = basin(plane(lambda alpha, beta: abs(alpha) + 2 * abs(beta), [-3, -1, 0, 1, 3], [-2, -1, 0, 1, 2]), 1.0)
    assert found.area == pytest.approx(2 * 1 * 0.5, abs=1e-12)
    shifted = basin(plane(lambda alpha, beta: abs(alpha - 3) + abs(beta), [0, 1, 2, 3, 4], [-2, -1, 0, 1, 2]), 3.0)
    assert shifted.open
    assert shifted.area == pytest.approx(2 * 3**2 - 2 * 1 - 2**2)  # less what β = ±2 and α = 4 cut off


@pytest.mark.parametrize("border", [(-2, 0), (2, 0), (0, -2), (0, 2)])
def test_a_basin_is_open_where_it_touches_any_border(border):
    axes, near = np.linspace(-2, 2, 9), [border[0] / 2, border[1] / 2]
    mark = {"mark": np.array(["near"]), "mark_place": np.array([[*near, 0.0]])}
    cone = plane(lambda alpha, beta: math.hypot(alpha - near[0], beta - near[1]), axes, axes, **mark)
    assert basin(cone, 1.1, mark="near").open
    assert not basin(cone, 0.9, mark="near").open


def test_an_area_in_weights_is_that_of_the_parallelogram():
    axes = np.linspace(-1, 1, 5)
    plain = basin(plane(quadratic(1, 1), axes, axes), 0.3)
    assert math.isnan(plain.area_in_weights)
    turned = basin(plane(quadratic(1, 1), axes, axes, length=np.array([3.0, 5.0]), cosine=0.6), 0.3)
    assert turned.area == plain.area
    assert turned.area_in_weights == pytest.approx(plain.area * 3 * 5 * 0.8)


def test_a_basin_is_the_part_around_its_place_alone():
    axes, marks = np.linspace(-2, 2, 81), {"mark": np.array(["a", "b", "far"])}
    marks["mark_place"] = np.array([[-1, 0, 0], [1, 0, 0], [9, 0, 0.0]])
    wells = plane(double_well, axes, axes, **marks)
    left, right, both = basin(wells, 0.5, mark="a"), basin(wells, 0.5, mark="b"), basin(wells, 1.5)
    assert left.area == pytest.approx(right.area)
    assert both.area > 2 * left.area
    half = np.linspace(-2, 0, 41)
    assert left.area == pytest.approx(basin(plane(double_well, half, axes, **marks), 0.5, mark="a").area)
    with pytest.raises(ShapeError, match=r"loss at the origin \(α = 0, β = 0\), 1; got 0\.5"):
        basin(wells, 0.5)
    with pytest.raises(ShapeError, match="a mark of the plane, a, b, far; got 'c'"):
        basin(wells, 0.5, mark="c")
    with pytest.raises(ShapeError, match=r"far \(α = 9, β = 0\) on the grid; it goes from -2 to 2 along α"):
        basin(wells, 0.5, mark="far")


def test_a_hill_inside_a_basin_is_no_part_of_it():
    def moat(alpha, beta):
        return abs(max(abs(alpha), abs(beta)) - 2)

    axes = np.arange(-4, 5)
    mark = {"mark": np.array(["low"]), "mark_place": np.array([[2.0, 0.0, 0.0]])}
    found = basin(plane(moat, axes, axes, **mark), 1.0, mark="low")
    assert found.area == pytest.approx(6**2 - 2)  # less the diamond between the four neighbours of the origin
    assert not found.open


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_a_hole_of_losses_that_are_not_finite_is_cut_out(lost):
    def holed(alpha, beta):
        return lost if (alpha, beta) == (1, 1) else 0.0

    axes, far = np.arange(-2, 3), {"mark": np.array(["hole"]), "mark_place": np.array([[1.0, 1.0, 0.0]])}
    found = basin(plane(holed, axes, axes, **far), 1.0)
    assert found.open
    assert found.area == pytest.approx(16 - 2)  # the diamond between the four neighbours of the hole
    with pytest.raises(ShapeError, match="level at or above the loss at hole"):
        basin(plane(holed, axes, axes, **far), 1.0, mark="hole")


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_a_place_on_the_edge_of_its_basin_finds_it(level):
    """Where the origin is a corner of the grid, or the level is the loss there."""
    corner = basin(plane(quadratic(2, 2), np.linspace(0, 1, 21), np.linspace(0, 1, 21)), level)
    assert corner.open
    assert corner.area == pytest.approx(math.pi * level / 4, abs=2e-3)
    assert basin(plane(lambda alpha, beta: alpha, [-1, 0, 1], [-1, 0, 1]), 0.0).area == pytest.approx(2)


@given(heights=hnp.arrays(float, (5, 4), elements=st.floats(0, 10)), level=st.floats(0, 10, allow_subnormal=False))
def test_turning_mirroring_and_scaling_a_plane_change_its_basin_accordingly(heights, level):
    alphas, betas = np.array([-2.0, -1, 0, 1, 3]), np.array([-1.0, 0, 0.5, 2])
    assume(heights[2, 1] <= level)
    table = {(a, b): heights[i, j] for i, a in enumerate(alphas) for j, b in enumerate(betas)}
    found = basin(plane(lambda a, b: table[a, b], alphas, betas), level)
    assert 0 <= found.area <= 15 * (1 + 1e-12)
    others = (
        (basin(plane(lambda a, b: table[b, a], betas, alphas), level), 1.0),
        (basin(plane(lambda a, b: table[-a, b], -alphas, betas), level), 1.0),
        (basin(plane(lambda a, b: 2 * table[a, b] + 1, alphas, betas), 2 * level + 1), 1.0),
        (basin(plane(lambda a, b: table[a / 4, b], 4 * alphas, betas), level), 4.0),
    )
    # a saddle within a cell is decided by the mean of its corners, which rounding can move across the level
    middles = (heights[1:, 1:] + heights[:-1, 1:] + heights[1:, :-1] + heights[:-1, :-1]) / 4
    assume((np.abs(middles - level) > 1e-9).all())
    assume((np.abs(heights - level) > 1e-9).all())
    for other, factor in others:
        assert other.area == pytest.approx(factor * found.area, abs=1e-8)
        assert other.open == found.open


def test_points_left_out_are_interpolated():
    axes = np.linspace(-1, 1, 9)
    whole = plane(lambda alpha, beta: math.exp(alpha**2 + beta**2), axes, axes)
    status = np.where(np.add.outer(np.arange(9), np.arange(9)) % 2, 3, 1)
    partly = plane(lambda alpha, beta: math.exp(alpha**2 + beta**2), axes, axes, status=status.astype(np.uint8))
    partly.loss[0][status == 3] = np.nan
    assert basin(partly, 1.5).area == pytest.approx(basin(whole, 1.5).area, rel=0.01)
    with pytest.raises(ShapeError, match=r"40 were left out\. Evaluate the plane with share=1"):
        roughness(partly)


def test_what_has_no_basin_is_refused():
    status = np.array([[1, 1, 1], [0, 1, 2], [1, 0, 1]], np.uint8)
    with pytest.raises(ShapeError, match="2 of 9 are pending"):
        basin(plane(quadratic(1, 1), [-1, 0, 1], [-1, 0, 1], status=status), 1.0)
    with pytest.raises(ShapeError, match="two or more distinct coordinates along β; got 0"):
        basin(plane(quadratic(1, 1), [-1, 0, 1], [0]), 1.0)
    with pytest.raises(ShapeError, match="got nan"):
        basin(plane(quadratic(1, 1), [-1, 0, 1], [-1, 0, 1]), math.nan)


# Roughness


@given(falling=curves, rising=curves)
def test_a_profile_that_only_falls_and_then_only_rises_is_not_rough(falling, rising):
    falling, rising = -np.sort(-falling), np.sort(rising)
    valley = np.r_[falling - falling[-1], rising - rising[0]]
    assert excess_variation(valley) == 0


@given(losses=curves, scale=st.floats(0.1, 10), offset=floats)
def test_roughness_sees_neither_scale_nor_offset_nor_direction_nor_points_between(losses, scale, offset):
    assume(np.ptp(losses) > 1e-3)
    rough = excess_variation(losses)
    assert rough >= 0
    between = np.c_[losses, np.r_[(losses[1:] + losses[:-1]) / 2, losses[-1]]].ravel()
    for other in (scale * losses + offset, losses[::-1], between):
        assert excess_variation(other) == pytest.approx(rough, abs=1e-8)


def test_each_detour_counts_twice_its_share_of_the_range():
    waves = np.array([10.0, 0.0, 1.0, 0.0, 1.0, 0.0, 10.0])
    assert excess_variation(waves) == pytest.approx(2 * 2 * 0.1)
    assert roughness(line(np.arange(7), waves)) == pytest.approx(0.4)
    assert roughness(line(np.arange(7)[::-1], waves)) == pytest.approx(0.4)
    assert roughness(line([3, 0, 1, 2], [1, 0, 1, 0])) == pytest.approx(2)  # 0, 1, 0, 1 in order


def test_roughness_of_profiles_and_planes_is_the_mean_over_them():
    assert roughness(profiles([[0, 1, 0, 1], [0, 1, 2, 3], [5, 5, 5, 5]])) == pytest.approx(2 / 3)
    along_beta = plane(lambda alpha, beta: beta % 2, [0, 1, 2], [0, 1, 2, 3])  # 3 rough rows, 4 flat columns
    assert roughness(along_beta) == pytest.approx(3 * 2 / 7)
    assert roughness(plane(double_well, np.linspace(-2, 2, 9), np.linspace(-2, 2, 9))) > 0
    assert roughness(plane(quadratic(1, 9), np.linspace(-2, 2, 9), [3, -1, 0])) == 0


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_a_profile_with_losses_that_are_not_finite_has_no_roughness(lost):
    assert np.isnan(excess_variation(np.array([1.0, lost, 1.0])))
    assert np.isnan(excess_variation(np.array([1.0, 0.0, lost])))
    assert math.isnan(roughness(line([0, 1, 2], [1, lost, 1], status=[1, 2, 1])))
