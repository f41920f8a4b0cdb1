"""Figures of landscapes: what was left out is interpolated and nothing else, and places stand where they are."""

import os
import shutil
import stat
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.animation import PillowWriter
from matplotlib.colors import same_color
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from PIL import Image

from sharpness import store
from sharpness.errors import SchemaError, ShapeError, SharpnessError
from sharpness.records import AxisCurvature, ConvexityMap, LineLosses, PlaneLosses, ProfileLosses
from sharpness.render import draw, draw_figure, draw_file, draw_folder, draw_surfaces, save_animation, save_figure
from sharpness.render.curvature import convexity
from sharpness.render.planes import COLOURS, contour_levels, level_norm, surface_of
from sharpness.render.surfaces import faces

SPLITS = np.array(["train", "test"])
NAN = float("nan")
ALPHA, BETA = np.linspace(-1, 1, 13), np.linspace(-1, 1, 11)


def exponential(**changes):
    """f = exp(α + 2β): on the logarithmic scale a plane, which interpolation reproduces; the test loss is twice it."""
    loss = np.exp(ALPHA[:, None] + 2 * BETA)
    losses = np.stack([loss, 2 * loss])
    record = PlaneLosses(
        split=SPLITS, alpha=ALPHA, beta=BETA, loss=losses, accuracy=np.exp(-losses), status=np.ones((13, 11), np.uint8),
        length=np.array([4.0, 4.0]), batchnorm="recompute", origin="o", first="f", second="s", cosine=0.0,
        directions="random, normalised by filter; biases and norm layers held",
    )  # fmt: skip
    return replace(record, **changes)


def kept(stride, left_out=3):
    """Every so-many-th point along both axes and all corners evaluated, the others left out (or pending)."""
    status = np.full((13, 11), left_out, np.uint8)
    status[::stride, ::stride] = 1
    status[np.ix_([0, -1], [0, -1])] = 1
    return status


def sparse(stride=2, left_out=3, **changes):
    status = kept(stride, left_out)
    loss = np.where(status == 1, exponential().loss, NAN)
    return exponential(**{"status": status, "loss": loss, "accuracy": loss, "share": 0.3, **changes})


def marked(places, **changes):
    return exponential(mark=np.array(list(places)), mark_place=np.array(list(places.values())), **changes)


def walked(iterates=6, **changes):
    turn = np.linspace(0, np.pi / 2, iterates)
    places = np.stack([-0.8 * np.cos(turn), 0.6 * np.sin(2 * turn), 0.3 * np.cos(turn)], axis=1)
    places[-1] = 0
    record = exponential(
        epoch=np.arange(iterates) * 2.0, walk_place=places, explained=np.array([0.83, 0.12]), length=np.ones(2),
        directions="principal components of a training run",
    )  # fmt: skip
    return replace(record, **changes)


def profiles(**changes):
    random = np.random.default_rng(0)
    alpha = np.linspace(-1, 1, 9)
    loss = 0.1 + random.uniform(0.5, 2, (2, 20, 1)) * alpha**2
    record = ProfileLosses(
        split=SPLITS, direction=np.arange(20), alpha=alpha, loss=loss, accuracy=np.exp(-loss),
        status=np.ones((20, 9), np.uint8), batchnorm="recompute", origin="o", directions="random", seed=0,
    )  # fmt: skip
    return replace(record, **changes)


def convexity_map(**changes):
    """λmin of either sign, or smaller than its residual; λmax = 10 throughout."""
    smallest = np.array([[-5.0, -1.0, 0.01], [-2.0, 0.5, 2.0], [-0.005, 1.0, 4.0], [-3.0, -3.0, 3.0]])
    record = ConvexityMap(
        alpha=np.array([-1.0, 0.0, 1.0, 2.0]), beta=np.array([0.0, 1.0, 2.0]), smallest=smallest,
        largest=np.full((4, 3), 10.0), residual=np.full((4, 3), 0.02), converged=np.ones((4, 3), bool),
        status=np.ones((4, 3), np.uint8), batchnorm="eval", tolerance=1e-2, origin="o", first="f", second="s", seed=0,
    )  # fmt: skip
    return replace(record, **changes)


def axis_curvature(**changes):
    step = np.geomspace(1e-3, 1, 4)
    record = AxisCurvature(
        axis=np.array(["α", "β"]), step=step[::-1], second_difference=np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])[:, ::-1],
        product=np.array([0.5, 5.0]), slope=np.array([0.01, -0.02]), length=np.array([3.0, 4.0]), batchnorm="eval",
        origin="o",
    )  # fmt: skip
    return replace(record, **changes)


def line(**changes):
    alpha = np.linspace(-1, 2, 13)
    loss = np.stack([1 - (alpha - 0.5) ** 2, np.ones(13)]) + 3
    record = LineLosses(
        split=SPLITS, alpha=alpha, loss=loss, accuracy=np.full((2, 13), NAN), status=np.ones(13, np.uint8),
        batchnorm="none", start="a", end="b",
    )  # fmt: skip
    return replace(record, **changes)


NEW = [profiles(), sparse(), walked(), convexity_map(), axis_curvature()]
BY_KIND = pytest.mark.parametrize("record", NEW, ids=["profiles", "sparse", "walked", "convexity", "axis_curvature"])


def caption(figure):
    return "; ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_fontsize() == 6)


def texts(figure):
    return {text.get_text() for text in figure.findobj(Text) if text.get_text()}


def contours(ax, *, filled):
    return [item for item in ax.collections if isinstance(item, QuadContourSet) and item.filled == filled]


def covered(ax, alpha, beta):
    return any(path.contains_point((alpha, beta)) for item in contours(ax, filled=True) for path in item.get_paths())


def hatched(ax, hatch="/////"):
    return [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_hatch() == hatch]


def curve(ax, label):
    (found,) = (item for item in ax.lines if item.get_label() == label)
    return found


def points(ax, marker):
    """(x, y, face colour) of the single points drawn with a marker."""
    single = [item for item in ax.lines if item.get_marker() == marker and np.size(item.get_xdata()) == 1]
    return [(item.get_xdata()[0], item.get_ydata()[0], item.get_markerfacecolor()) for item in single]


# Points that were left out


@pytest.mark.parametrize("record", [sparse(), sparse(share=1.0), sparse(3)], ids=["share", "status alone", "coarser"])
def test_points_left_out_are_interpolated_and_counted(record):
    np.testing.assert_allclose(surface_of(record, "train").values.filled(NAN), exponential().loss[0], rtol=1e-6)
    ax = draw(record)
    assert not hatched(ax)
    assert covered(ax, ALPHA[1] + 0.01, BETA[1] + 0.01)
    evaluated = int((record.status == 1).sum())
    assert f"{evaluated} of 143 points evaluated, the others interpolated" in caption(ax.figure)


def test_what_is_pending_of_a_share_is_interpolated_once_the_corners_are_there():
    record = sparse(left_out=0)
    ax = draw(record)
    assert not hatched(ax)
    assert f"{(record.status == 1).sum()} of 143 points evaluated so far, the others interpolated" in caption(ax.figure)
    begun = record.status.copy()
    begun[6:] = 0
    ax = draw(replace(record, status=begun))
    assert len(hatched(ax)) == 1
    assert not covered(ax, 0.9, 0.9)


def test_pending_points_of_a_whole_plane_are_never_filled():
    status = kept(2, left_out=0)
    loss = np.where(status == 1, exponential().loss, NAN)
    ax = draw(exponential(status=status, loss=loss))
    assert not any(covered(ax, alpha + 0.01, beta + 0.01) for alpha in ALPHA[:-1] for beta in BETA[:-1])
    assert [patch.get_label() for patch in hatched(ax)] == [f"{(status == 0).sum()} of 143 points pending"]


def test_holes_of_a_sparse_plane_are_never_filled():
    record = sparse()
    loss, status = record.loss.copy(), record.status.copy()
    loss[0, 4:9:2, 4:7:2], status[4:9:2, 4:7:2] = np.inf, 2
    record = replace(record, loss=loss, status=status)
    surface = surface_of(record, "train")
    assert np.ma.getmaskarray(surface.values)[4:9, 4:7].all()
    ax = draw(record)
    assert not any(covered(ax, alpha, beta) for alpha in ALPHA[4:9] for beta in BETA[4:7])
    assert covered(ax, -0.9, -0.9)
    assert [patch.get_label() for patch in hatched(ax)] == ["6 of 42 evaluated points not finite"]
    assert len(faces(surface)) < 12 * 10


def test_coordinates_in_any_order_give_the_same_contours():
    rows, columns = np.random.default_rng(0).permutation(13), np.random.default_rng(1).permutation(11)
    place = np.ix_(rows, columns)
    shuffled = exponential(
        alpha=ALPHA[rows], beta=BETA[columns], loss=exponential().loss[:, *place], status=np.ones((13, 11), np.uint8)
    )
    for mine, theirs in zip(surface_of(shuffled, "test"), surface_of(exponential(), "test"), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# Contours of the test loss


def test_test_contours_lie_at_the_levels_of_the_train_loss():
    dense = np.linspace(-1, 1, 401)
    linear = 3 + dense[:, None] + 0 * dense
    record = exponential(
        alpha=dense, beta=dense, loss=np.stack([linear, linear + 0.5]), accuracy=np.full((2, 401, 401), NAN),
        status=np.ones((401, 401), np.uint8),
    )  # fmt: skip
    ax = draw(record)
    train, test = contours(ax, filled=False)
    assert set(test.levels) <= set(contour_levels([record]))
    assert len(test.levels) > 5
    for level, path in zip(test.levels, test.get_paths(), strict=True):
        np.testing.assert_allclose(path.vertices[:, 0], level - 3.5, atol=1e-9)
    assert all(style[1] for style in test.get_linestyles())
    assert not any(style[1] for style in train.get_linestyles())
    assert "test loss, same levels" in texts(ax.figure)


def test_without_a_test_split_there_are_no_test_contours():
    record = exponential(split=SPLITS[:1], loss=exponential().loss[:1], accuracy=exponential().accuracy[:1])
    ax = draw(record)
    assert len(contours(ax, filled=False)) == 1
    assert "test loss, same levels" not in texts(ax.figure)


# Marks and runs


def test_marks_stand_at_their_places_and_are_hollow_off_the_plane():
    extent = 2 * 4.0  # of coordinates from -1 to 1 with directions of length 4
    ax = draw(marked({"SB": [0, 0, 0], "LB": [1, 0, 0.9e-6 * extent], "start": [0.5, -0.4, 1.1e-6 * extent]}))
    found = {(x, y): same_color(face, "white") for x, y, face in points(ax, "o")}
    assert found == {(0, 0): False, (1, 0): False, (0.5, -0.4): True}
    names = {text.get_text(): text.xy for text in ax.texts if text.get_text() in ("SB", "LB", "start")}
    assert names == {"SB": (0, 0), "LB": (1, 0), "start": (0.5, -0.4)}
    assert "hollow: off the plane, start by 8.8·10⁻⁶ in θ" in caption(ax.figure)
    assert "origin" not in texts(ax.figure)  # SB is there


def test_a_mark_beyond_the_edges_is_named_and_not_drawn():
    ax = draw(marked({"SB": [0.5, 0.5, 0], "far": [3, 0.25, 0]}))
    assert [(x, y) for x, y, _ in points(ax, "o")] == [(0.5, 0.5)]
    assert "far beyond the edges, at α = 3, β = 0.25" in caption(ax.figure)
    assert {"SB", "origin"} <= texts(ax.figure)
    assert "far" not in texts(ax.figure)


def test_names_of_marks_stay_within_the_frame_and_apart():
    corners = {"north-east": [1, 1, 0], "south-west": [-1, -1, 0], "one": [0, 0, 0], "other": [0.05, 0.0, 0]}
    figure = draw_figure({"": marked(corners)})
    figure.draw_without_rendering()
    ax = figure.axes[0]
    frame = ax.get_window_extent()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in corners]
    for box in boxes:
        assert frame.x0 - 1 <= box.x0
        assert box.x1 <= frame.x1 + 1
        assert frame.y0 - 1 <= box.y0
        assert box.y1 <= frame.y1 + 1
    assert not boxes[2].overlaps(boxes[3])


def test_a_run_is_drawn_over_its_plane():
    record = walked()
    ax = draw(record)
    for trail in (item for item in ax.lines if item.get_label() == "_walk"):
        np.testing.assert_array_equal(np.transpose(trail.get_data()), record.walk_place[:, :2])
        assert trail.get_marker() == "."
    first, last = curve(ax, "first iterate"), curve(ax, "last iterate")
    assert (first.get_xdata()[0], first.get_ydata()[0]) == tuple(record.walk_place[0, :2])
    assert (last.get_xdata()[0], last.get_ydata()[0]) == (0, 0)
    assert first.get_marker() != last.get_marker()
    assert same_color(first.get_markerfacecolor(), "white")  # off the plane
    assert not same_color(last.get_markerfacecolor(), "white")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("α, 83 % of the variance", "β, 12 % of the variance")
    assert "iterates of epochs 0 to 10, up to 0.3 off the plane" in caption(ax.figure)
    assert "α, β: distances in θ" in caption(ax.figure)
    assert "origin" not in texts(ax.figure)


def test_distances_that_nobody_recorded_are_not_invented():
    places = walked().walk_place.copy()
    places[:, 2] = NAN
    ax = draw(walked(walk_place=places))
    assert "how far off the plane is not recorded" in caption(ax.figure)


@pytest.mark.parametrize(
    ("changes", "said", "unsaid", "label"),
    [
        ({"cosine": 0.009}, "random, normalised by filter; biases and norm layers held", "cosine", "α"),
        ({"cosine": -0.25}, "cosine between the axes −0.25", "distance", "α"),
        ({"length": np.array([4.0, 4.0001])}, "‖Δθ‖ per unit: 4;", "(α)", "α"),
        ({"length": np.array([4.0, 5.0])}, "‖Δθ‖ per unit: 4 (α), 5 (β)", "distance", "α"),
        ({"length": np.ones(2)}, "batch norm: recompute", "‖Δθ‖", "α (distance in θ)"),
        ({"length": None, "cosine": NAN}, "batch norm: recompute", "cosine", "α"),
    ],
)
def test_axes_say_what_they_are(changes, said, unsaid, label):
    ax = draw(exponential(**changes))
    assert said in caption(ax.figure)
    assert unsaid not in caption(ax.figure)
    assert ax.get_xlabel() == label


# Profiles


def test_profiles_show_quantiles_of_the_finite_losses():
    record = profiles()
    loss, status = record.loss.copy(), record.status.copy()
    loss[0, 3, 5], loss[:, 7, 8] = np.inf, NAN
    status[3, 5], status[7, 8], status[19, 0] = 2, 2, 0
    ax, right = draw(replace(record, loss=loss, status=status)).figure.axes
    for index, split in enumerate(SPLITS):
        values = np.where(np.isfinite(loss[index]) & (status != 0), loss[index], NAN)
        low, middle, high = np.nanquantile(values, [0.1, 0.5, 0.9], axis=0)
        np.testing.assert_allclose(curve(ax, f"{split} loss").get_ydata(), middle, rtol=1e-12)
        (band,) = (item for item in ax.collections if item.get_label() == f"_{split} band")
        (outline,) = band.get_paths()
        for alpha, bottom, top in zip(record.alpha, low, high, strict=True):
            heights = outline.vertices[np.isclose(outline.vertices[:, 0], alpha), 1]
            assert (heights.min(), heights.max()) == (pytest.approx(bottom), pytest.approx(top))
        shown = np.where(status != 0, record.accuracy[index], NAN)
        np.testing.assert_allclose(curve(right, f"{split} accuracy").get_ydata(), np.nanmedian(shown, axis=0))
    assert len([item for item in ax.lines if item.get_label() == "_direction"]) == 40
    assert curve(ax, "test loss").get_linestyle() == "--"
    assert "1 of 180 points pending" in caption(ax.figure)
    assert "loss not finite at 2 of 180 points" in caption(ax.figure)


def test_profiles_without_accuracy_have_one_axis():
    assert len(draw(profiles(accuracy=np.full((2, 20, 9), NAN))).figure.axes) == 1


def test_profiles_with_nothing_at_some_alpha_have_a_gap():
    status = profiles().status.copy()
    status[:, 4] = 0
    middle = curve(draw(profiles(status=status)), "train loss").get_ydata()
    assert np.flatnonzero(np.isnan(middle)).tolist() == [4]


# Convexity


def test_the_map_shows_ratios_signs_and_doubts():
    converged = np.ones((4, 3), bool)
    converged[3, 0] = False
    record = convexity_map(converged=converged)
    ax, bar = draw_figure({"": record}).axes
    (mesh,) = (item for item in ax.collections if hasattr(item, "get_coordinates"))
    np.testing.assert_allclose(mesh.get_array(), np.abs(record.smallest / 10).T)
    signs = {item.get_marker(): np.transpose(item.get_data()).tolist() for item in ax.lines}
    assert signs["+"] == [[0, 1], [0, 2], [1, 1], [1, 2], [2, 2]]
    assert signs["."] == [[-1, 2], [1, 0]]  # smaller than the residual 0.02
    (cell,) = hatched(ax, "xxxxx")
    assert (*cell.get_xy(), cell.get_width(), cell.get_height()) == (1.5, -0.5, 1, 1)
    assert {"λmin > 0", "|λmin| ≤ residual", "not converged"} <= texts(ax.figure)
    assert "unmarked: λmin < 0; residuals ≤ 0.02; 1 of 12 points not converged to 0.01" in caption(ax.figure)
    assert bar.get_ylabel() == "|λmin / λmax|"
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1.5, 2.5), (-0.5, 2.5))


def test_holes_of_the_map_stay_open():
    record = convexity_map()
    smallest, status = record.smallest.copy(), record.status.copy()
    smallest[1, 1], status[1, 1], status[3] = NAN, 2, 0
    record = replace(record, smallest=smallest, status=status)
    assert np.argwhere(np.ma.getmaskarray(convexity(record).values)).tolist() == [[1, 1], [3, 0], [3, 1], [3, 2]]
    ax = draw(record)
    assert [patch.get_label() for patch in hatched(ax)] == ["3 of 12 points pending, 1 of 12 points not finite"]
    drawn = {tuple(place) for item in ax.lines for place in np.transpose(item.get_data()).tolist()}
    assert not {(0, 1), (2, 0), (2, 1), (2, 2)} & drawn


def test_maps_side_by_side_share_their_colours():
    figure = draw_figure({"SB": convexity_map(), "LB": convexity_map(largest=np.full((4, 3), 100.0))})
    meshes = [item for ax in figure.axes[:2] for item in ax.collections if hasattr(item, "get_coordinates")]
    assert len({(mesh.norm.vmin, mesh.norm.vmax) for mesh in meshes}) == 1
    assert len(figure.axes) == 3


# Curvature along axes


def test_second_differences_stand_beside_products():
    record = axis_curvature()
    ax = draw(record)
    assert ax.get_xscale() == "log"
    for index, name in enumerate("αβ"):
        differences = curve(ax, f"second difference, {name}")
        np.testing.assert_array_equal(differences.get_xdata(), record.step)
        np.testing.assert_array_equal(differences.get_ydata(), record.second_difference[index])
        assert set(curve(ax, f"vᵀHv, {name}").get_ydata()) == {record.product[index]}
    bars = [list(item.get_ydata()) for item in ax.lines if item.get_label() == "_difference"]
    assert bars == [[0.5, 1.0], [5.0, 5.0]]
    assert "difference at the smallest h, 0.001: 0.5 (α), 0 (β)" in caption(ax.figure)
    assert "gᵀv: 0.01 (α), −0.02 (β)" in caption(ax.figure)


def test_nine_directions_are_refused():
    record = axis_curvature(
        axis=np.arange(9).astype(str), second_difference=np.ones((9, 4)), product=np.ones(9), slope=np.ones(9),
        length=np.ones(9),
    )  # fmt: skip
    with pytest.raises(ShapeError, match=r"at most 8 directions.*got 9"):
        draw(record)


# Barriers


def test_the_barrier_of_a_line_is_said():
    """1 − (α − ½)² rises by ¼ over its ends."""
    assert "barrier 0.25 nat at α = 0.5" in caption(draw(line()).figure)
    assert "no barrier" in caption(draw(line(loss=-line().loss)).figure)


@pytest.mark.parametrize(
    "record",
    [
        line(conditions={"ends": ["LB", ""]}),
        line(end=""),
        line(alpha=np.linspace(-1, 0.9, 13)),
        line(status=np.zeros(13, np.uint8)),
        line(split=np.array(["test", "validation"])),
    ],
    ids=["profile", "no point at 1", "not that far", "pending", "no train loss"],
)
def test_lines_without_two_ends_have_no_barrier(record):
    assert "barrier" not in caption(draw(record).figure)


# Surfaces


def polygons(ax):
    (found,) = (item for item in ax.collections if isinstance(item, Poly3DCollection))
    return found


def test_a_surface_has_a_face_for_each_cell_in_the_colour_of_its_contour():
    record = exponential()
    ax = draw_surfaces({"": record}).axes[0]
    corners = faces(surface_of(record, "train"))
    assert corners.shape == (120, 4, 3)
    np.testing.assert_allclose(corners[..., 2], np.exp(corners[..., 0] + 2 * corners[..., 1]))
    norm = level_norm(contour_levels([record]))
    expected = COLOURS(norm(corners[..., 2].mean(axis=1)))
    drawn = polygons(ax)
    np.testing.assert_allclose(np.asarray(drawn._facecolor3d), expected)
    np.testing.assert_allclose(ax.get_zlim(), np.array([-3, 3]) / np.log(10))  # e⁻³ to e³ is more than two decades


def test_holes_of_a_surface_have_no_faces():
    loss, status = exponential().loss.copy(), exponential().status.copy()
    loss[0, 5, 5], status[5, 5], status[12] = np.inf, 2, 0
    record = exponential(loss=loss, status=status)
    corners = faces(surface_of(record, "train"))
    assert len(corners) == 11 * 10 - 4
    assert not (corners[..., :2] == [ALPHA[5], BETA[5]]).all(axis=-1).any()
    assert "11 of 143 points pending, 1 of 143 points not finite" in caption(draw_surfaces({"": record}))


def test_surfaces_side_by_side_have_equal_limits():
    figure = draw_surfaces({"SB": exponential(), "LB": exponential(loss=9 * exponential().loss, alpha=2 * ALPHA)})
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("SB", "LB")
    for limits in ("get_xlim", "get_ylim", "get_zlim"):
        assert getattr(left, limits)() == getattr(right, limits)()
    assert left.get_zlim()[1] == pytest.approx(np.log10(9 * np.exp(3)))


def test_heights_within_two_decades_or_not_positive_are_linear():
    assert draw_surfaces({"": exponential(loss=0.5 + exponential().loss)}).axes[0].get_zlim()[1] == pytest.approx(
        0.5 + np.exp(3)
    )
    shifted = exponential(loss=exponential().loss - 1)
    assert draw_surfaces({"": shifted}).axes[0].get_zlim()[0] == pytest.approx(np.exp(-3) - 1)


@pytest.mark.parametrize("records", [{}, {"a": line()}], ids=["none", "a line"])
def test_what_has_no_surface_is_refused(records):
    with pytest.raises(ShapeError, match=r"expected planes.*got (none|LineLosses): use draw_figure"):
        draw_surfaces(records)
    with pytest.raises(ShapeError, match="13 × 1"):
        draw_surfaces({"": exponential(beta=np.zeros(1))})


# Animations


def test_an_animation_has_a_frame_for_each_iterate(tmp_path):
    path = save_animation(walked(4), tmp_path / "new" / "run.gif")
    with Image.open(path) as film:
        assert film.n_frames == 4
        durations, frames = [], []
        for number in range(4):
            film.seek(number)
            durations.append(film.info["duration"])
            frames.append(np.asarray(film.convert("RGB"), dtype=float))
    assert durations == [500, 500, 500, 1500]  # the last frame rests for a second
    below = frames[0].shape[0] - 80  # small print, which does not move; colours of a GIF are rounded in each frame
    for one, other in pairwise(frames):
        assert np.abs(one - other)[below:].mean() < 1 < np.abs(one - other)[:below].max()
    assert save_animation(walked(4), tmp_path / "again.gif").read_bytes() == path.read_bytes()
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["again.gif", "run.gif"]


def test_the_iterate_moves_and_leaves_its_trail(tmp_path, monkeypatch):
    record, seen = walked(4), []

    class Camera(PillowWriter):
        def grab_frame(self, **_):
            ax = self.fig.axes[0]
            trail = next(item for item in ax.lines if item.get_label() == "_walk")
            seen.append((ax.get_title(), len(trail.get_xdata()), *(item[0] for item in ax.lines[-1].get_data())))
            super().grab_frame()

    monkeypatch.setattr("sharpness.render.animation.PillowWriter", Camera)
    save_animation(record, tmp_path / "run.gif")
    expected = [(f"epoch {2 * i}", i + 1, *record.walk_place[i, :2]) for i in range(4)]
    assert seen == expected + 2 * expected[-1:]


@pytest.mark.parametrize(
    ("record", "name", "message"),
    [
        (exponential(), "a.gif", "expected a plane with a training run.*got PlaneLosses without"),
        (line(), "a.gif", "got LineLosses"),
        (walked(), "a.webm", r"ends in .gif or .mp4; got a.webm"),
    ],
)
def test_what_cannot_move_is_refused(record, name, message, tmp_path):
    with pytest.raises(ShapeError, match=message):
        save_animation(record, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_mp4_without_ffmpeg_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SharpnessError, match=r"expected the program ffmpeg.*Install it .*or write a GIF"):
        save_animation(walked(), tmp_path / "run.mp4")
    assert not list(tmp_path.iterdir())


def test_mp4_is_what_ffmpeg_makes_of_the_frames(tmp_path, monkeypatch):
    """A stand-in that keeps what it is fed: raw frames, as many as there are iterates and a second of the last."""
    program = tmp_path / "ffmpeg"
    program.write_text('#!/bin/sh\nfor last; do :; done\ncat > "$last"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    content = save_animation(walked(3), tmp_path / "run.mp4").read_bytes()
    assert len(content) % (3 + 2) == 0  # two frames a second
    frames = [content[i * len(content) // 5 : (i + 1) * len(content) // 5] for i in range(5)]
    assert len(set(frames)) == 3
    assert frames[2] == frames[3] == frames[4]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg")
def test_mp4_is_an_mp4(tmp_path):
    assert save_animation(walked(3), tmp_path / "run.mp4").read_bytes()[4:8] == b"ftyp"


# Folders


def test_a_folder_has_surfaces_beside_contours_and_runs_that_move(tmp_path):
    store.save(walked(3), tmp_path / "SB" / "plane.h5")
    store.save(exponential(), tmp_path / "LB" / "plane.h5")
    store.save(line(), tmp_path / "line.h5")
    written = draw_folder(tmp_path, ["png", "gif"])
    names = ["plane.png", "plane-surface.png", "plane-SB.gif", "line.png"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)


def test_a_file_is_drawn_beside_itself(tmp_path):
    store.save(walked(3), tmp_path / "plane.h5")
    assert [path.name for path in draw_file(tmp_path / "plane.h5", ["gif"])] == ["plane.gif"]
    written = draw_file(tmp_path / "plane.h5", ["svg"])
    assert [path.name for path in written] == ["plane.svg", "plane-surface.svg"]


@pytest.mark.parametrize("of", [draw_file, draw_folder])
def test_where_nothing_moves_nothing_is_written(of, tmp_path):
    file = store.save(line(), tmp_path / "line.h5")
    with pytest.raises(SchemaError, match=r"expected a plane with a training run in .*, to animate as gif.*\(line\)"):
        of(file if of is draw_file else tmp_path, ["png", "gif"])
    assert list(tmp_path.rglob("*")) == [file]


# All kinds


@BY_KIND
def test_panels_have_equal_axes(record):
    figure = draw_figure({"SB": record, "LB": record})
    left, right = [ax for ax in figure.axes if ax.get_title()]
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())


@BY_KIND
def test_draws_on_given_axes(record):
    ax = Figure().subplots()
    assert draw(record, ax) is ax
    assert ax.has_data()
    assert ax.get_legend() is not None


@BY_KIND
def test_saving_twice_gives_the_same_bytes(record, tmp_path):
    first = save_figure(draw_figure({"SB": record, "LB": record}), tmp_path / "first", ["svg"])
    again = save_figure(draw_figure({"SB": record, "LB": record}), tmp_path / "again", ["svg"])
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def figures():
    run = walked(mark=np.array(["start"]), mark_place=walked().walk_place[:1])
    records = {"profiles": NEW[0], "sparse": NEW[1], "run": run, "convexity": NEW[3], "axes": NEW[4]}
    kinds = [(name, draw_figure, record) for name, record in records.items()] + [("surface", draw_surfaces, run)]
    for name, make, record in kinds:
        for panels in (["SB"], ["SB", "LB"]):
            yield pytest.param(make, dict.fromkeys(panels, record), id=f"{name}-{len(panels)}")


@pytest.mark.parametrize(("make", "records"), list(figures()))
def test_nothing_is_cut_off_and_captions_stand_apart(make, records):
    figure = make(records)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()  # inches
    assert (box.min >= -0.02).all()
    assert (box.max <= figure.get_size_inches() + 0.02).all()
    captions = [text for text in figure.findobj(Text) if "\n" in text.get_text() and text.get_fontsize() == 6]
    assert len(captions) == len(records)
    assert not any(one.get_window_extent().overlaps(other.get_window_extent()) for one, other in pairwise(captions))
