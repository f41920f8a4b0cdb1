"""Planes of which a share is evaluated: contours as of all points, never more than the budget, resumed to the bit."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import contourpy
import numpy as np
import pytest
import torch
from command_line import environment
from scipy.spatial import cKDTree
from test_landscape import Interrupt, bowl, into, logarithm, quadratic, same, two_ends, vector

from sharpness import store
from sharpness.checkpoints import Minimizer
from sharpness.errors import SchemaError, ShapeError
from sharpness.geometry import Plane, plane_through
from sharpness.interpolation import bending, between
from sharpness.journal import DONE, LEFT_OUT, NOT_FINITE, PENDING, MemoryJournal
from sharpness.landscape import evaluate_plane, plane_template
from sharpness.landscape.refine import budget_of, coarse_to_fine
from sharpness.objective import Objective
from sharpness.random import normal

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = "command_line"
THIRD = 1 / 3


def stages_on(surface, share=THIRD, hidden=np.nan):
    """What is chosen on a surface, stage by stage; what is not known yet is ``hidden``."""
    shape = surface.shape
    grids = [np.linspace(-1, 1, size) for size in shape]
    known, stages = np.zeros(shape, bool), []
    for stage in coarse_to_fine(*grids, budget_of(share, surface.size), lambda: np.where(known, surface, hidden)):
        known.flat[stage] = True
        stages.append(stage)
    return known, stages


def surface(name, shape=(51, 51)):
    """Closed forms of what planes look like, and how near to a sharp valley they come."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return {
        "bowl": 0.01 + x**2 + 10 * y**2,
        "two minimizers": 0.2
        - np.log(
            0.6 * np.exp(-((x - 0.4) ** 2 + y**2) / 0.1) + np.exp(-((x + 0.5) ** 2 + (y - 0.2) ** 2) / 0.05) + 1e-6
        ),
        "bent valley": 1 + (1 - 2 * x) ** 2 + 20 * (2 * y + 0.5 - 4 * x**2) ** 2,
        "Rosenbrock": 0.01 + (1 - 2 * x) ** 2 + 100 * (2 * y + 0.5 - 4 * x**2) ** 2,
        "saddles": np.sin(3 * x) * np.cos(2 * y),
    }[name]


# Contours


def contour(values, level):
    """Points on a contour line, a fiftieth of a cell apart, in units of cells."""
    lines = contourpy.contour_generator(z=values).lines(level)
    pieces = [np.zeros((0, 2))]
    for line in lines:
        way = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
        steps = np.linspace(0, way[-1], max(2, math.ceil(50 * way[-1])))
        pieces.append(np.stack([np.interp(steps, way, line[:, axis]) for axis in (0, 1)], axis=1))
    return np.concatenate(pieces)


def deviations(full, guess, count=10):
    """Distances between the contour lines of two surfaces, both ways, in cells; one array for each level."""
    if full.min() > 0:
        full, guess = np.log(full), np.log(guess)
    found = []
    for level in np.linspace(full.min(), full.max(), count + 2)[1:-1]:
        ours, theirs = contour(full, level), contour(guess, level)
        found.append(np.concatenate([cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]]))
    return found


@pytest.mark.parametrize("shape", [(51, 51), (51, 31), (25, 71)], ids=str)
@pytest.mark.parametrize(
    ("name", "furthest", "most"),
    [
        ("bowl", 0.1, 0.05),
        ("two minimizers", 0.1, 0.06),
        ("saddles", 0.3, 0.06),  # a contour at the height of a saddle turns off early or late
        ("bent valley", 0.6, 0.06),
        ("Rosenbrock", 1.0, 0.1),  # whose valley is narrower than a cell
    ],
)
def test_contours_of_a_third_of_the_points_are_within_a_fraction_of_a_cell_of_those_of_all(name, shape, furthest, most):
    full = surface(name, shape)
    known, _ = stages_on(full)
    grids = [np.linspace(-1, 1, size) for size in shape]
    found = deviations(full, between(*grids, full, known))
    assert max(each.max() for each in found) < furthest
    assert max(np.quantile(each, 0.95) for each in found) < most


def test_points_chosen_where_it_bends_are_better_than_as_many_evenly():
    full = surface("bent valley")
    chosen, _ = stages_on(full)
    even = np.zeros(full.shape, bool)
    lines = np.linspace(0, 50, 29).round().astype(int)  # 29² = 841 of 867
    even[np.ix_(lines, lines)] = True
    grids = [np.linspace(-1, 1, 51)] * 2
    errors = [np.concatenate(deviations(full, between(*grids, full, known))).max() for known in (chosen, even)]
    assert errors[0] < errors[1] / 2


# Which points


SHAPES = (3, 3), (3, 40), (40, 3), (4, 5), (9, 12), (51, 7), (30, 31)


@pytest.mark.parametrize(
    ("shape", "share"),
    [(shape, s) for shape in SHAPES for s in (0.05, 0.2, THIRD, 0.5, 0.97) if budget_of(s, math.prod(shape)) >= 4],
)
def test_the_budget_is_never_exceeded_and_the_corners_are_always_there(shape, share):
    budget = budget_of(share, math.prod(shape))
    for values in (surface("Rosenbrock", shape), np.ones(shape), np.full(shape, np.nan), normal_numbers(shape)):
        known, stages = stages_on(values, share)
        assert sum(map(len, stages)) == known.sum() <= budget  # nowhere twice
        assert set(np.ravel_multi_index(np.ix_([0, -1], [0, -1]), shape, mode="wrap").flat) <= set(stages[0])
        assert len(stages[0]) <= max(4, budget / 3)
        flat = np.isnan(values).all() or np.ptp(values) == 0
        assert known.sum() == (len(stages[0]) if flat else budget)  # what is flat, or a hole, needs no more


def normal_numbers(shape):
    return normal(*shape, key=("surface",), seed=0, dtype=torch.float64).numpy()


def test_a_share_is_of_whole_points_and_not_cut_by_its_rounding():
    assert 0.07 * 100 > 7
    assert 0.29 * 100 < 29
    assert [budget_of(share, 100) for share in (0.07, 0.29, 0.299, 1.0)] == [7, 29, 29, 100]
    assert budget_of(THIRD, 51 * 51) == 867
    assert budget_of(THIRD, 31 * 31) == 320  # 320.33


def test_the_first_points_are_a_grid_and_the_others_lie_where_the_surface_bends():
    shape = 51, 41
    x, y = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    ring = np.hypot(x, y) - 0.6
    known, stages = stages_on(2 + np.tanh(20 * ring))
    rows, columns = (sorted(set(index.tolist())) for index in np.unravel_index(stages[0], shape))
    assert len(rows) * len(columns) == len(stages[0])
    assert max(np.diff(rows)) == max(np.diff(columns)) == 4
    assert {rows[0], rows[-1], columns[0], columns[-1]} == {0, 50, 40}
    known.flat[stages[0]] = False
    near = np.abs(ring) < 0.15
    assert known[near].sum() > 0.6 * known.sum() > 3 * near.mean() * known.sum() / 2
    assert max(map(len, stages[1:])) == math.ceil(budget_of(THIRD, 51 * 41) / 10)


def test_choices_are_the_same_every_time_and_do_not_depend_on_what_is_not_known():
    values = surface("bent valley", (31, 41))
    _, stages = stages_on(values)
    assert len(stages) > 5
    for hidden in (np.nan, 0.0, np.inf, -1e300):
        assert stages_on(values, hidden=hidden)[1] == stages


def test_the_edge_of_a_hole_is_looked_at_first_and_its_inside_is_left_alone():
    values, grids = surface("bowl"), [np.linspace(-1, 1, 51)] * 2
    hole = np.zeros(values.shape, bool)
    hole[30:, 35:] = True
    values[hole] = np.inf
    known, stages = stages_on(values)
    before = np.zeros(values.shape, bool)
    before.flat[stages[0]] = True
    assert np.isinf(bending(*grids, values, before)).flat[stages[1][:12]].all()
    inside = np.zeros(values.shape, bool)
    inside[34:, 39:] = True  # further within than the coarse grid is wide
    assert not (known & ~before)[inside].any()
    guess = between(*grids, values, known)
    assert np.isnan(guess[inside]).all()
    assert np.isnan(guess[hole]).mean() > 0.99  # the edge is found to a cell
    assert np.isfinite(guess[~hole]).mean() > 0.99
    assert np.abs(np.log(guess / values))[~hole].max() < 0.05  # and the rest is as near as without a hole


@pytest.mark.parametrize("rows", [1, 2])
def test_where_a_surface_is_nowhere_finite_but_on_a_line_the_line_is_followed(rows):
    values = np.full((41, 31), np.nan)
    values[20 : 20 + rows] = surface("bowl", (41, 31))[20 : 20 + rows]
    known, stages = stages_on(values)
    first = np.zeros(values.shape, bool)
    first.flat[stages[0]] = True
    assert known.sum() <= budget_of(THIRD, 41 * 31)
    assert known[20 : 20 + rows].sum() > 2 * first[20 : 20 + rows].sum() > 0
    assert np.abs((known & ~first).nonzero()[0] - 20).max() < 5  # nothing new further than the coarse grid is wide
    assert len(stages_on(np.full((41, 31), np.inf))[1]) == 1  # nothing to be found


# Planes


def valley_case():
    """A small classifier with batch norm on a grid that is not square: data, plane, coordinates."""
    objectives, first, second = two_ends()
    plane = plane_through({"a": Minimizer.of(first), "b": Minimizer.of(second)}, objectives["train"].space)
    return objectives, plane, np.linspace(-0.5, 1.5, 13), np.linspace(-1, 1, 9)


@pytest.fixture(scope="module")
def whole_plane():
    return evaluate_plane(*valley_case())


def counted(monkeypatch):
    """How often every place is evaluated."""
    evaluate_one, calls = Objective.evaluate, []

    def counting(self, place):
        calls.append(place.theta.numpy().tobytes())
        return evaluate_one(self, place)

    monkeypatch.setattr(Objective, "evaluate", counting)
    return calls


@pytest.mark.parametrize("share", [0.1, THIRD, 0.8])
def test_a_share_of_a_plane_has_the_values_of_the_whole_plane_at_its_points(whole_plane, share):
    objectives, plane, alphas, betas = valley_case()
    told = []
    found = evaluate_plane(
        objectives, plane, alphas, betas, share=share, progress=lambda *told_: told.append(told_[:2])
    )
    budget = budget_of(share, 117)
    done = found.status == DONE
    assert done.sum() == budget
    assert (found.status[~done] == LEFT_OUT).all()
    for name in ("loss", "accuracy"):
        assert getattr(found, name)[:, done].tobytes() == getattr(whole_plane, name)[:, done].tobytes()
        assert np.isnan(getattr(found, name)[:, ~done]).all()
    assert told == [(count, budget) for count in range(1, budget + 1)]
    assert found.share == share


def test_the_losses_of_a_refined_quadratic_are_its_own_everywhere():
    objective, theta, _, _ = quadratic()
    axes = [normal(len(theta), key=(name,), seed=0, dtype=torch.float64) for name in "uv"]
    plane, alphas, betas = Plane(theta, *axes), np.linspace(-1, 1, 25), np.linspace(-2, 1, 19)
    whole = evaluate_plane({"f": objective}, plane, alphas, betas).loss[0]
    found = evaluate_plane({"f": objective}, plane, alphas, betas, share=THIRD)
    guess = between(alphas, betas, found.loss[0], found.status == DONE)
    assert np.abs(guess - whole).max() < 0.02 * np.ptp(whole)


def test_the_whole_plane_is_evaluated_point_by_point_in_c_order(tmp_path, whole_plane):
    objectives, plane, alphas, betas = valley_case()
    assert same(evaluate_plane(objectives, plane, alphas, betas, share=1), whole_plane)
    assert (whole_plane.status == DONE).all()
    with into(tmp_path / "p.h5", plane_template(objectives, plane, alphas, betas)) as journal:
        with pytest.raises(KeyboardInterrupt):
            evaluate_plane(objectives, plane, alphas, betas, share=1.0, journal=journal, progress=Interrupt(50))
        assert np.flatnonzero(journal.status).tolist() == list(range(50))
    place = objectives["train"].with_statistics(plane.at(alphas[3], betas[4]))
    assert whole_plane.loss[:, 3, 4].tolist() == [objective.value(place) for objective in objectives.values()]


def test_the_training_loss_decides_wherever_it_stands():
    objectives, plane, alphas, betas = valley_case()
    alone = evaluate_plane({"train": objectives["train"]}, plane, alphas, betas, share=THIRD)
    last = evaluate_plane(dict(reversed(objectives.items())), plane, alphas, betas, share=THIRD)
    test = evaluate_plane({"other": objectives["test"]}, plane, alphas, betas, share=THIRD, batchnorm="eval")
    assert np.array_equal(alone.status, last.status)
    assert alone.loss[0].tobytes() == last.loss[1].tobytes()
    assert not np.array_equal(alone.status, test.status)


# Resumed


@pytest.mark.parametrize("store_in", ["memory", "hdf5"])
@pytest.mark.parametrize("at_once", [1, 4])
def test_interrupted_at_many_moments_it_is_the_undisturbed_plane_to_the_bit(tmp_path, monkeypatch, store_in, at_once):
    objectives, plane, alphas, betas = valley_case()
    how = {"share": 0.5, "points_at_once": at_once}
    whole = evaluate_plane(objectives, plane, alphas, betas, **how)
    template = plane_template(objectives, plane, alphas, betas, **how)
    memory = MemoryJournal({"loss": template.loss, "accuracy": template.accuracy}, (13, 9))
    chance, interrupts, calls = np.random.default_rng(at_once), 0, counted(monkeypatch)
    done = np.zeros((13, 9), bool)
    while True:
        journal = memory if store_in == "memory" else into(tmp_path / "plane.h5", template)
        try:
            found = evaluate_plane(
                objectives,
                plane,
                alphas,
                betas,
                **how,
                journal=journal,
                progress=Interrupt(chance.integers(1, 9 if at_once == 1 else 4)),
            )
            break
        except KeyboardInterrupt:
            interrupts += 1
            assert (journal.status > PENDING)[done].all()  # nothing is lost
            assert (journal.status < LEFT_OUT).all()
            done = journal.status > PENDING
        finally:
            if store_in == "hdf5":
                journal.close()
    assert interrupts >= (10 if at_once == 1 else 3)
    assert same(found, whole)
    if store_in == "hdf5":
        assert same(store.load(tmp_path / "plane.h5"), whole)
    if at_once == 1:
        assert len(calls) == 2 * (found.status == DONE).sum()  # two data sets, no point twice


def test_a_finished_share_is_read_and_not_computed_again_and_another_share_is_refused(tmp_path, monkeypatch):
    objectives, plane, alphas, betas = valley_case()
    path, template = tmp_path / "p.h5", plane_template(objectives, plane, alphas, betas, share=THIRD)
    with into(path, template) as journal:
        whole = evaluate_plane(objectives, plane, alphas, betas, share=THIRD, journal=journal)
    before = path.read_bytes()
    monkeypatch.setattr(Objective, "evaluate", None)
    with into(path, template) as journal:
        assert same(evaluate_plane(objectives, plane, alphas, betas, share=THIRD, journal=journal), whole)
    for share in (1.0, 0.5):
        with pytest.raises(SchemaError, match=f"share is 0.3333333333333333 there and {share} here"):
            into(path, plane_template(objectives, plane, alphas, betas, share=share))
    assert path.read_bytes() == before


# Not finite


@pytest.mark.parametrize(("share", "furthest"), [(0.2, 0.6), (THIRD, 0.06), (0.6, 0.03)])
def test_a_corner_that_is_not_finite_stays_a_hole(share, furthest):
    plane, grid = Plane(vector(1.0, 1.0), vector(1.0, 0.0), vector(0.0, 1.0)), np.linspace(-2.0, 1.0, 19)
    betas = np.linspace(-2.0, 1.0, 13)
    found = evaluate_plane({"f": logarithm()}, plane, grid, betas, share=share)
    height = 2 + grid[:, None] + betas[None, :]  # f = −log of it
    evaluated = found.status != LEFT_OUT
    assert evaluated.sum() == budget_of(share, 19 * 13)
    assert (found.status == NOT_FINITE).sum() < 0.6 * evaluated.sum()  # its edge, not all of it
    assert np.array_equal(found.status[evaluated] == DONE, height[evaluated] > 0)
    assert np.array_equal(found.status[evaluated] == NOT_FINITE, height[evaluated] <= 0)
    guess = between(grid, betas, found.loss[0], evaluated)
    assert np.isnan(guess[found.status == NOT_FINITE]).all()
    assert np.isnan(guess[height < -0.5]).all()  # within a few cells of the edge
    assert np.isfinite(guess[height > 1]).all()
    assert np.abs(guess + np.log(np.maximum(height, 1e-300)))[height > 1].max() < furthest


def test_a_plane_that_is_finite_on_one_line_only_or_nowhere_is_evaluated_all_the_same():
    model = torch.nn.Linear(2, 1, bias=False).double()
    data = (torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))
    f, _ = Objective.from_module(model, lambda o, t: (o - t) ** 2, data)
    huge = Plane(vector(0.0, 0.0), vector(1.0, 0.0), vector(0.0, 1e200))  # β ≠ 0 overflows
    alphas, betas = np.linspace(-1, 1, 11), np.linspace(-1, 1, 9)
    found = evaluate_plane({"f": f}, huge, alphas, betas, share=0.5)
    evaluated = found.status != LEFT_OUT
    assert 4 < evaluated.sum() <= budget_of(0.5, 99)
    assert np.array_equal(found.status == DONE, evaluated & (betas == 0)[None, :])
    assert (found.status == DONE).sum() >= 6  # of 11: the line is followed
    nowhere = Plane(vector(1e200, 1e200), vector(1.0, 0.0), vector(0.0, 1.0))
    found = evaluate_plane({"f": f}, nowhere, alphas, betas, share=0.5)
    assert sorted(np.unique(found.status)) == [NOT_FINITE, LEFT_OUT]
    assert 4 <= (found.status == NOT_FINITE).sum() <= budget_of(0.5, 99) / 3  # and no more than the coarse grid


# Refusals


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, math.nan, math.inf])
def test_a_share_is_between_zero_and_one(share):
    plane, grid = Plane(vector(0.0, 0.0), vector(1.0, 0.0), vector(0.0, 1.0)), np.linspace(-1, 1, 5)
    for make in (evaluate_plane, plane_template):
        with pytest.raises(ShapeError, match=r"share of the points in \(0, 1\]"):
            make({"f": bowl([2.0, 0.5])}, plane, grid, grid, share=share)


@pytest.mark.parametrize("axis", [[0.0, 1.0], [0.0], [0.0, 2.0, 1.0], [1.0, 0.5, 0.0], [0.0, 0.0, 1.0]], ids=str)
def test_a_share_needs_ascending_coordinates_on_both_axes(axis):
    plane, grid = Plane(vector(0.0, 0.0), vector(1.0, 0.0), vector(0.0, 1.0)), np.linspace(-1, 1, 9)
    for grids in ((axis, grid), (grid, axis)):
        with pytest.raises(ShapeError, match="three or more ascending coordinates"):
            evaluate_plane({"f": bowl([2.0, 0.5])}, plane, *grids, share=0.9)
        assert (evaluate_plane({"f": bowl([2.0, 0.5])}, plane, *grids).status == DONE).all()


def test_a_share_has_room_for_the_corners():
    plane, grid = Plane(vector(0.0, 0.0), vector(1.0, 0.0), vector(0.0, 1.0)), np.linspace(-1, 1, 4)
    with pytest.raises(ShapeError, match=r"four points or more; got 0.2 of 16"):
        evaluate_plane({"f": bowl([2.0, 0.5])}, plane, grid, grid, share=0.2)
    found = evaluate_plane({"f": bowl([2.0, 0.5])}, plane, grid, grid, share=0.25)
    assert np.flatnonzero(found.status == DONE).tolist() == [0, 3, 12, 15]


# Kills


@pytest.mark.parametrize("share", [1.0, THIRD])
def test_a_plane_killed_again_and_again_ends_with_the_bytes_of_the_undisturbed_one(tmp_path, share):
    script = Path(__file__).with_name("killed_plane.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, repr(share), "0"],
        capture_output=True, text=True, env=environment(), timeout=300, check=True,
    )  # fmt: skip
    *cut, last = json.loads(done.stdout)
    assert [end["code"] for end in cut] == [-signal.SIGKILL] * len(cut)
    assert last["code"] == 0
    kept = [end["kept"] for end in cut]  # points in the file after each kill
    assert kept == sorted(kept)
    assert len(set(kept)) > 8  # kills came at different places
    assert all(end["same"] for end in cut)  # what is marked as done has its values already
    paths = tmp_path / "killed.h5", tmp_path / "undisturbed.h5"
    killed, undisturbed = (store.load(path) for path in paths)
    assert same(killed, undisturbed)
    for name in ("loss", "accuracy", "status"):
        assert getattr(killed, name).tobytes() == getattr(undisturbed, name).tobytes()
    assert (undisturbed.status == DONE).sum() == budget_of(share, undisturbed.status.size)
