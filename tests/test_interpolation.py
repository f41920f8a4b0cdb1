"""A surface between known points: exact where it can be, blind to what is not known, and never a number in a hole."""

from __future__ import annotations

import numpy as np
import pytest

from sharpness.interpolation import bending, between

ACROSS, ALONG = np.linspace(-1.0, 2.0, 13), np.array([0.0, 0.1, 0.3, 0.7, 1.0, 1.5, 2.5, 3.0])  # not square, not even
HERE, THERE = np.meshgrid(ACROSS, ALONG, indexing="ij")
BOWL = 0.5 + HERE**2 + 2 * (THERE - 1) ** 2


def some(seed=0, share=0.4):
    """The four corners and a random share of the other points."""
    known = np.random.default_rng(seed).random(HERE.shape) < share
    known[np.ix_([0, -1], [0, -1])] = True
    return known


def distances(known):
    """From every place to every known one, in the units of the interpolation: both sides of the grid are 1."""
    unit = [(axis - axis[0]) / (axis[-1] - axis[0]) for axis in (ACROSS, ALONG)]
    places = np.stack(np.meshgrid(*unit, indexing="ij"), axis=-1)
    return np.linalg.norm(places[:, :, None] - places[known], axis=-1)


@pytest.mark.parametrize("seed", range(3))
def test_known_points_are_as_they_are_and_no_other_value_is_read(seed):
    known = some(seed)
    found = between(ACROSS, ALONG, BOWL, known)
    assert found[known].tobytes() == BOWL[known].tobytes()
    assert np.isfinite(found).all()
    for garbage in (np.nan, np.inf, -1e300, 0.0):
        other = np.where(known, BOWL, garbage)
        assert between(ACROSS, ALONG, other, known).tobytes() == found.tobytes()
        assert np.array_equal(bending(ACROSS, ALONG, other, known), bending(ACROSS, ALONG, BOWL, known))


def test_where_everything_is_known_nothing_changes():
    values = BOWL.copy()
    values[2, 3], values[0, 0], values[5, 5] = np.nan, np.inf, -np.inf
    everywhere = np.ones(BOWL.shape, bool)
    found = between(ACROSS, ALONG, values, everywhere)
    assert np.array_equal(found, np.where(np.isfinite(values), values, np.nan), equal_nan=True)
    assert not bending(ACROSS, ALONG, values, everywhere).any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("logarithmic", [True, False])
def test_planes_are_exact_on_the_scale_on_which_they_are_planes(seed, logarithmic):
    flat = 3 * HERE - 2 * THERE
    values = np.exp(flat) if logarithmic else flat  # which has negative values, so that there are no logarithms
    found = between(ACROSS, ALONG, values, some(seed))
    # the scheme estimates slopes by sweeps that stop at a relative change of 1e-6
    assert np.allclose(np.log(found) if logarithmic else found, flat, rtol=0, atol=1e-5 * np.abs(flat).max())
    assert bending(ACROSS, ALONG, values, some(seed)).max() < 1e-5 * np.abs(flat).max()


def test_one_value_that_is_not_positive_takes_the_logarithms_away():
    known, values = some(), BOWL.copy()
    logarithmic = between(ACROSS, ALONG, values, known)
    values[0, 0] = 0.0
    linear = between(ACROSS, ALONG, values, known)
    far = distances(known)[:, :, 0] > 0.6  # the changed corner's own neighbourhood apart
    assert np.abs(linear - logarithmic)[far & ~known].max() > 1e-4
    shifted = between(ACROSS, ALONG, values - 7, known)
    assert np.allclose(shifted, linear - 7, rtol=0, atol=1e-4)  # on a linear scale, only differences count


@pytest.mark.parametrize("seed", range(3))
def test_units_do_not_matter(seed):
    known = some(seed)
    found, bent = between(ACROSS, ALONG, BOWL, known), bending(ACROSS, ALONG, BOWL, known)
    for units in (256.0, 2.0**-40):  # powers of two: the same numbers
        assert between(units * ACROSS, ALONG / units, BOWL, known).tobytes() == found.tobytes()
    scaled = between(ACROSS, ALONG, 2.0**60 * BOWL, known)
    assert np.allclose(scaled, 2.0**60 * found, rtol=1e-5, atol=0)
    assert np.allclose(bending(ACROSS, ALONG, 2.0**60 * BOWL, known), bent, rtol=1e-3, atol=1e-5)


def test_a_finer_grid_of_known_points_gives_a_surface_that_much_closer():
    grid = np.linspace(-1, 1, 49)
    surface = np.exp(np.sin(2 * grid[:, None]) * np.cos(3 * grid[None, :]))
    errors = []
    for stride in (12, 6, 3):
        known = np.zeros(surface.shape, bool)
        known[::stride, ::stride] = True
        errors.append(np.abs(np.log(between(grid, grid, surface, known) / surface)).max())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]  # a quarter each time, as of slopes estimated at the edges
    assert errors[2] < 0.02


def test_bending_is_zero_where_known_and_largest_where_the_surface_curves():
    grid = np.linspace(-1, 1, 33)
    distance = np.hypot(grid[:, None] - 0.4, grid[None, :] + 0.3)
    bump = 1 + np.exp(-((distance / 0.15) ** 2))
    known = np.zeros(bump.shape, bool)
    known[::4, ::4] = True
    bent = bending(grid, grid, bump, known)
    assert not bent[known].any()
    assert np.isfinite(bent).all()
    assert distance.flat[bent.argmax()] < 0.3
    assert bent[distance > 0.8].max() < 0.05 * bent.max()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_places_nearest_to_a_point_that_is_not_finite_are_holes_and_those_amid_finite_ones_are_not(seed, value):
    known, values = some(seed), BOWL.copy()
    hole = (HERE > 0.8) & (THERE > 0.9)  # a corner
    hole[3:6, 3:5] = True  # and a place inside
    values[hole] = value
    found, bent = between(ACROSS, ALONG, values, known), bending(ACROSS, ALONG, values, known)
    away, bad = distances(known), hole[known]
    to_finite, to_hole = away[:, :, ~bad].min(axis=2), away[:, :, bad].min(axis=2)
    inside, outside = to_hole < to_finite - 1e-9, to_finite < to_hole - 1e-9
    assert np.isnan(found[inside]).all()
    assert np.isnan(found[-1, -1])
    assert np.isfinite(found[outside & (HERE < 0.8) & (THERE < 2)]).all()  # within the hull of the finite ones
    assert not bent[known].any()
    assert not np.isnan(bent).any()
    assert found[known & ~hole].tobytes() == values[known & ~hole].tobytes()
    assert (np.isnan(found) | ((found > 0) & (found < 2 * BOWL.max()))).all()


def test_the_edge_of_a_hole_bends_without_bound_and_its_inside_not_at_all():
    grid = np.linspace(0, 1, 25)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    values, known = 1 + x + y**2, np.zeros((25, 25), bool)
    known[::4, ::4] = True
    values[(x > 0.45) & (y > 0.45)] = np.nan  # beyond the twelfth point of each axis, which is a known one
    bent, index = bending(grid, grid, values, known), np.arange(25)
    finite_block = np.add.outer(index < 8, index < 8).astype(bool)  # cells of known points all of which are finite
    hole_block = np.logical_and.outer(index >= 12, index >= 12)
    assert np.isfinite(bent[finite_block]).all()
    assert not bent[hole_block].any()
    edge = ~finite_block & ~hole_block & ~known
    assert np.isinf(bent[edge]).mean() > 0.6  # but for those that lie on a side between two alike
    assert np.isinf(bent[10, 13:]).all()
    assert np.isinf(bent[13:, 9]).all()
    bordering = np.zeros_like(known)
    bordering[12:, 12:] = True
    assert np.isinf(bending(grid, grid, values, known | ~bordering))[~known & ~bordering].sum() == 0


@pytest.mark.parametrize(
    "finite",
    [
        pytest.param([], id="none"),
        pytest.param([(3, 2)], id="one"),
        pytest.param([(3, 2), (7, 2)], id="two"),
        pytest.param([(4, j) for j in range(0, 8, 2)], id="a line across"),
        pytest.param([(i, 0) for i in range(0, 13, 2)], id="an edge"),
    ],
)
def test_points_that_span_no_surface_stay_alone(finite):
    """As where a loss is finite along one line only."""
    known, values = np.zeros(BOWL.shape, bool), np.full(BOWL.shape, np.inf)
    known[::2, ::2] = known[::12, ::7] = True
    for place in finite:
        known[place], values[place] = True, BOWL[place]
    found, bent = between(ACROSS, ALONG, values, known), bending(ACROSS, ALONG, values, known)
    assert np.array_equal(found, np.where(np.isfinite(values), values, np.nan), equal_nan=True)
    assert np.isinf(bent).any() == bool(finite)  # the edge, where there is one
    assert not bent[np.isfinite(bent)].any()


def test_three_points_span_a_triangle():
    grid = np.array([0.0, 1.0, 2.0])
    values, known = np.add.outer(grid, 10 * grid) - 1, np.zeros((3, 3), bool)
    known[[0, 0, 2, 2], [0, 2, 0, 2]] = True
    values[2, 2] = np.nan
    found = between(grid, grid, values, known)
    assert found[0, 1] == pytest.approx(9.0, abs=1e-4)
    assert found[1, 0] == pytest.approx(0.0, abs=1e-4)
    assert np.isnan(found[[1, 2, 2], [2, 1, 2]]).all()
