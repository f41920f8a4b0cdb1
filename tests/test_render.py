"""Figures show exactly what the records hold: every number in its place, holes as holes, doubts by name."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from sharpness.errors import ShapeError
from sharpness.records import (
    Comparison,
    EigenPairs,
    EpsilonSharpness,
    History,
    LineLosses,
    PlaneLosses,
    ProductCost,
    Rescaling,
    Trajectory,
    axis_label,
)
from sharpness.render import draw, draw_figure, draw_table, regimes_table, save_figure, sharpness_table
from sharpness.render.style import BLUE, VERMILLION

SPLITS = np.array(["train", "test"])
NAN = float("nan")


def history(epochs=6, spread=10.0):
    loss = np.geomspace(spread, 1.0, epochs) * np.array([[1.0], [1.0]])
    accuracy = np.linspace(0.1, 0.9, epochs) * np.array([[1.0], [0.9]])
    return History(
        split=SPLITS, epoch=np.arange(epochs), loss=loss, accuracy=accuracy, learning_rate=np.full(epochs, 0.1),
        status=np.ones(epochs, np.uint8), batch_size=256, stopped="epoch limit",
    )  # fmt: skip


def line(top=3.0, **changes):
    alpha = np.linspace(-1, 2, 13)
    loss = np.stack([0.5 + top * (alpha - 0.3) ** 2, 0.7 + top * (alpha - 0.3) ** 2])
    record = LineLosses(
        split=SPLITS, alpha=alpha, loss=loss, accuracy=np.exp(-loss), status=np.ones(13, np.uint8),
        batchnorm="recompute", start="a", end="b", conditions={"ends": ["SB", "LB"]},
    )  # fmt: skip
    return replace(record, **changes)


def plane(slope=1.0, **changes):
    """A loss that is linear in α and does not depend on β: its contours are known exactly."""
    alpha, beta = np.linspace(-1, 1, 9), np.linspace(-1, 1, 7)
    loss = np.broadcast_to(3 + slope * alpha[:, None], (2, 9, 7)).copy()
    record = PlaneLosses(
        split=SPLITS, alpha=alpha, beta=beta, loss=loss, accuracy=np.exp(-loss), status=np.ones(7, np.uint8),
        batchnorm="batch", origin="o", first="f", second="s",
    )  # fmt: skip
    return replace(record, **changes)


def eigenpairs(values=(9.0, 4.0, 1.0), converged=(True, True, False), **changes):
    values = np.array(values)
    record = EigenPairs(
        eigenvalues=values, residuals=0.1 * np.abs(values), recurrence_residuals=0.1 * np.abs(values),
        converged=np.array(converged), products=30, probe_products=5, probe_passed=True, restarts=0, floor=1e-7,
        which="largest", tolerance=1e-3, seed=0, conditions={"batchnorm": "eval"},
    )  # fmt: skip
    return replace(record, **changes)


def epsilon_sharpness():
    return EpsilonSharpness(
        restart=np.arange(3), restart_sharpness=np.array([10.0, 12.0, 11.0]), restart_iterations=np.full(3, 10),
        restart_evaluations=np.full(3, 21), restart_stronger=np.array([14.0, 15.0, 13.0]), sharpness=12.0,
        stronger=15.0, first_order=2.0, gradient_norm=0.02, value=0.01, epsilon=1e-3, subspace=0, iterations=10, seed=0,
        conditions={"batchnorm": "batch"},
    )  # fmt: skip


def product_cost():
    return ProductCost(
        repeat=np.arange(3), gradient_seconds=np.array([0.1, 0.1, 0.4]), product_seconds=np.array([0.25, 0.25, 0.2]),
        setup_seconds=0.3, retained_bytes=2.0**21, relative_error=1e-7, name="$mlp$", parameters=1000, examples=60,
    )  # fmt: skip


def comparison(**changes):
    """Three seeds; SB values 1, 2, 3 (mean 2, std 1) and LB values ten times those, unless said otherwise."""
    base = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    full = base[..., None, None, None, None]
    eigenvalues = base[..., None] * np.array([2.0, 1.0])
    record = Comparison(
        regime=np.array(["SB", "LB"]), seed=np.arange(3), split=SPLITS, pair=np.array([1, 2]),
        batchnorm=np.array(["eval"]), space=np.array(["full"]), epsilon=np.array([1e-3]),
        maximiser=np.array(["L-BFGS-B", "sign ascent"]), loss=np.stack([base / 100, base / 10], axis=-1),
        accuracy=np.stack([1 - base / 100, 1 - base / 50], axis=-1), eigenvalues=eigenvalues,
        residuals=eigenvalues / 1000, converged=np.ones((2, 3, 2), bool), gradient_norm=base[..., None] / 1000,
        sharpness=full * np.array([1.0, 2.0]), spread=full[..., 0] * 0.1, first_order=full[..., 0] * 0.2,
        distance=base, weight_norm=base + 5, epochs=np.full((2, 3), 40), recipe="digits",
    )  # fmt: skip
    return replace(record, **changes)


def trajectory(top, falls):
    epoch = np.array([1, 2, 5, 10, 20, 40])
    loss = np.geomspace(0.5, 1e-3, 6)
    phi = top * loss**falls
    return Trajectory(
        split=SPLITS, epoch=epoch, loss=np.stack([loss, loss + 0.1]), accuracy=np.exp(-np.stack([loss, loss])),
        sharpness=phi, stronger=1.4 * phi, first_order=0.3 * phi * loss**0.3, gradient_norm=loss,
        weight_norm=50 + epoch, distance=np.sqrt(epoch), status=np.ones(6, np.uint8), epsilon=1e-3, batchnorm="eval",
        iterations=10,
    )  # fmt: skip


def rescaling(**changes):
    factor = np.geomspace(1e-2, 1e2, 9)
    curvature = factor**-2.0 + factor**2 + 3
    record = Rescaling(
        factor=factor, loss=np.full(9, 0.01), accuracy=np.full(9, 0.98), output_change=np.full(9, 3e-7),
        eigenvalue=curvature, residual=1e-3 * curvature, predicted_eigenvalue=curvature * (1 + 1e-5),
        predicted_residual=1e-3 * curvature, sharpness=curvature**0.5, stronger=1.2 * curvature**0.5,
        first_order=0.1 * curvature**0.5, predicted_first_order=0.1 * curvature**0.5,
        gradient_norm=0.01 * curvature**0.5, weight_norm=20 * curvature**0.2, filter_curvature=np.full(9, 4.2),
        status=np.ones(9, np.uint8), epsilon=1e-3, layers="0 and 2", recipe="dinh-rescaling",
        conditions={"scale": "reduced", "model": "mlp"},
    )  # fmt: skip
    return replace(record, **changes)


RECORDS = [history(), line(), plane(), eigenpairs(), epsilon_sharpness(), product_cost(), comparison()]
RECORDS += [trajectory(60, -0.4), rescaling()]
BY_KIND = pytest.mark.parametrize("record", RECORDS, ids=[record.kind for record in RECORDS])


def texts(figure):
    return [text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_text()]


def curves(ax):
    """Curves with more than two points by label."""
    return {curve.get_label(): curve for curve in ax.lines if np.size(curve.get_xdata()) > 2}


def contour_sets(ax, *, filled):
    return [item for item in ax.collections if isinstance(item, QuadContourSet) and item.filled == filled]


def covered(ax, point):
    return any(path.contains_point(point) for item in contour_sets(ax, filled=True) for path in item.get_paths())


@pytest.mark.parametrize(("record", "along"), [(history(), "epoch"), (line(), "alpha")], ids=["history", "line"])
def test_curves_are_the_records_numbers(record, along):
    left, right = draw(record).figure.axes
    for ax, name, color in ((left, "loss", BLUE), (right, "accuracy", VERMILLION)):
        drawn = curves(ax)
        for split, dash, values in zip(SPLITS, ("-", "--"), getattr(record, name), strict=True):
            curve = drawn[f"{split} {name}"]
            np.testing.assert_array_equal(curve.get_xdata(), getattr(record, along))
            np.testing.assert_array_equal(curve.get_ydata(), values)
            assert curve.get_linestyle() == dash
            assert same_color(curve.get_color(), color)
        assert ax.get_ylabel() == axis_label(record, name)
    assert left.get_xlabel() == axis_label(record, along)


@pytest.mark.parametrize(("spread", "scale"), [(99.0, "linear"), (101.0, "log")])
def test_loss_axis_is_logarithmic_beyond_a_factor_of_100(spread, scale):
    assert draw(history(spread=spread)).get_yscale() == scale


def test_line_marks_its_ends_and_names_its_policy():
    ax = draw(line())
    assert [curve.get_xdata()[0] for curve in ax.lines if np.size(curve.get_xdata()) == 2] == [0, 1]
    assert {"SB", "LB", "batch norm: recompute; no barrier"} <= set(texts(ax.figure))


def test_legend_leaves_the_curves_uncovered():
    figure = draw_figure({"": line()})
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().y0 >= figure.axes[0].get_window_extent().y1


def test_further_splits_get_dashes_of_their_own():
    record = line(split=np.array(["train", "validation"]))
    dashes = {curve.get_linestyle() for curve in curves(draw(record)).values()}
    assert dashes == {"-", ":"}


def test_pending_and_non_finite_points_are_gaps():
    record = line()
    loss, status = record.loss.copy(), record.status.copy()
    loss[:, 4], loss[0, 6] = np.inf, NAN
    status[[4, 6]], status[10:] = 2, 0  # the pending rows still hold finite numbers here: they must not be shown
    figure = draw(replace(record, loss=loss, status=status)).figure
    drawn = np.ma.masked_invalid(curves(figure.axes[0])["train loss"].get_ydata(orig=False))
    np.testing.assert_array_equal(np.flatnonzero(drawn.mask), [4, 6, 10, 11, 12])
    np.testing.assert_array_equal(drawn.compressed(), loss[0][~drawn.mask])
    assert any("3 of 13 points pending; loss not finite at 2 of 13 points" in text for text in texts(figure))
    assert curves(figure.axes[0])["train loss"].get_markevery() == [5]  # alone between two gaps, no line shows it


def test_a_regression_has_no_accuracy_axis():
    record = line()
    assert len(draw(replace(record, accuracy=np.full_like(record.accuracy, NAN))).figure.axes) == 1


def test_contours_lie_where_the_loss_has_their_level():
    ax = draw(plane(split=SPLITS[:1], loss=plane().loss[:1]))
    (lines,) = contour_sets(ax, filled=False)
    assert len(lines.levels) > 5
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        # Linear interpolation of a linear function is exact up to rounding.
        np.testing.assert_allclose(path.vertices[:, 0], level - 3, atol=1e-12)
    assert ax.get_aspect() == 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("α", "β")
    assert {"origin", "batch norm: batch", "train loss (nat)"} <= set(texts(ax.figure))


def test_contour_levels_are_logarithmic():
    ratios = np.diff(np.log(contour_sets(draw(plane(slope=2.99)), filled=True)[0].levels))
    # Two digits leave each level within 5 % of its place.
    np.testing.assert_allclose(ratios, np.log(5.99 / 0.01) / 10, atol=0.1)


def test_holes_of_a_plane_stay_open_and_are_named():
    record = plane()
    loss, status = record.loss.copy(), record.status.copy()
    loss[0, 2, 2] = np.inf
    status[2, 2], status[:, 5:] = 2, 0
    record = replace(record, loss=loss, status=status)
    ax = draw(record)
    at = [(record.alpha[column] + 0.01, record.beta[row] + 0.01) for column, row in ((2, 2), (4, 5), (5, 1))]
    assert [covered(ax, point) for point in at] == [False, False, True]
    hatched = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert [patch.get_label() for patch in hatched] == ["18 of 63 points pending, 1 of 63 points not finite"]
    assert hatched[0].get_label() in texts(ax.figure)
    np.testing.assert_array_equal(record.loss, loss)


@pytest.mark.parametrize("loss", [np.full((2, 9, 7), NAN), np.zeros((2, 9, 7)), np.ones((2, 9, 7))])
def test_planes_without_contours_are_drawn(loss):
    ax = draw(plane(loss=loss))
    assert bool(contour_sets(ax, filled=True)) == bool(np.isfinite(loss).all())
    assert not contour_sets(ax, filled=False)


def test_planes_side_by_side_share_levels_colours_and_axes():
    wide = plane(slope=2.9, alpha=np.linspace(-2, 2, 9))
    figure = draw_figure({"SB": plane(slope=0.5), "LB": wide})
    small, large, bar = figure.axes
    first, second = (contour_sets(ax, filled=True)[0] for ax in (small, large))
    np.testing.assert_array_equal(first.levels, second.levels)
    np.testing.assert_array_equal(first.norm.boundaries, second.norm.boundaries)
    assert first.cmap == second.cmap
    assert small.get_xlim() == large.get_xlim() == (-2, 2)
    assert small.get_ylim() == large.get_ylim()
    assert [small.get_title(), large.get_title(), bar.get_ylabel()] == ["SB", "LB", "train loss (nat)"]


@BY_KIND
def test_panels_have_equal_axes_and_titles(record):
    taller = replace(record, loss=300 * record.loss) if hasattr(record, "split") else record
    figure = draw_figure({"SB": record, "LB": taller})
    titled = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title().split("\n")[0] for ax in titled] == ["SB", "LB"]
    assert len({(*ax.get_xlim(), *ax.get_ylim(), ax.get_yscale()) for ax in titled}) == 1


@BY_KIND
def test_draws_on_given_axes_and_changes_no_setting(record):
    before = dict(matplotlib.rcParams)
    ax = Figure().subplots()
    assert draw(record, ax) is ax
    assert ax.has_data()
    assert ax.get_legend() is not None
    assert dict(matplotlib.rcParams) == before


@BY_KIND
def test_figures_ignore_the_users_settings(record, tmp_path):
    plain = save_figure(draw_figure({"a": record}), tmp_path / "plain", ["svg"])
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "axes.grid": True, "svg.fonttype": "none"}):
        other = save_figure(draw_figure({"a": record}), tmp_path / "other", ["svg"])
    assert plain[0].read_bytes() == other[0].read_bytes()


def test_draw_without_axes_makes_a_figure_of_column_width():
    assert draw(line()).figure.get_figwidth() == 3.4
    assert draw_figure({"SB": line(), "LB": line()}).get_figwidth() == 6.8


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({}, "got none"),
        ({"a": line(), "b": plane()}, "got LineLosses, PlaneLosses"),
        ({"a": plane(beta=np.zeros(1))}, "9 × 1"),
    ],
)
def test_what_cannot_share_a_figure_is_refused(records, message):
    with pytest.raises(ShapeError, match=message):
        draw_figure(records)


def test_what_is_no_record_is_refused():
    with pytest.raises(TypeError, match=r"expected a record .*; got float"):
        draw(1.0)


def test_comparison_needs_a_place_to_divide():
    with pytest.raises(ShapeError, match="subplots"):
        draw(comparison(), Figure().add_axes((0, 0, 1, 1)))


def error_bars(ax):
    """(label, x, y, half-length, hollow) of every point with an error bar."""
    for container in ax.containers:
        points, _, (bars,) = container
        hollow = same_color(points.get_markerfacecolor(), "white")
        for x, y, segment in zip(points.get_xdata(), points.get_ydata(), bars.get_segments(), strict=True):
            yield container.get_label(), x, y, np.ptp(segment, axis=0).max() / 2, hollow


def test_eigenvalues_carry_residuals_and_the_unconverged_are_hollow():
    ax = draw(eigenpairs())
    drawn = sorted(error_bars(ax), key=lambda point: point[1])
    assert [(label, x, y, hollow) for label, x, y, _, hollow in drawn] == [
        ("converged", 1, 9, False),
        ("converged", 2, 4, False),
        ("not converged", 3, 1, True),
    ]
    np.testing.assert_allclose([half for *_, half, _ in drawn], [0.9, 0.4, 0.1], rtol=1e-12)
    assert "not converged" in texts(ax.figure)
    assert any("batch norm: eval; 1 of 3 not converged" in text for text in texts(ax.figure))


def test_a_failed_probe_is_said():
    figure = draw(eigenpairs(probe_passed=False)).figure
    assert any("the probe found a missed pair" in text for text in texts(figure))


def test_the_risk_of_a_missed_pair_is_said_where_it_is_known():
    told, silent = texts(draw(eigenpairs(probe_risk=0.002)).figure), texts(draw(eigenpairs(probe_risk=1.0)).figure)
    assert any("missed pairs: probability 0.002 at most" in text for text in told)
    assert not any("missed pairs" in text for text in silent)


def test_eigenvalues_of_both_signs_and_sizes_get_a_symlog_axis():
    assert draw(eigenpairs(values=(1e3, 1.0, -1e2))).get_yscale() == "symlog"
    assert draw(eigenpairs(values=(3.0, 1.0, -2.0))).get_yscale() == "linear"


def test_epsilon_sharpness_shows_every_start_and_the_first_order_part():
    record = epsilon_sharpness()
    ax = draw(record)
    drawn = {curve.get_label(): curve.get_ydata() for curve in ax.lines}
    np.testing.assert_array_equal(drawn["L-BFGS-B"], record.restart_sharpness)
    np.testing.assert_array_equal(drawn["sign ascent"], record.restart_stronger)
    assert list(drawn["first-order part"]) == [2.0, 2.0]
    assert any("‖g‖ = 0.02; batch norm: batch" in text for text in texts(ax.figure))


def test_product_cost_shows_every_repeat_and_the_ratio_of_medians():
    record = product_cost()
    ax = draw(record)
    np.testing.assert_array_equal(curves(ax)["gradient"].get_ydata(), record.gradient_seconds)
    np.testing.assert_array_equal(curves(ax)["Hessian-vector product"].get_ydata(), record.product_seconds)
    assert ax.get_title() == "$mlp$: a product takes 2.5 gradients"


def test_comparison_draws_every_seed_and_the_means():
    converged = np.ones((2, 3, 2), bool)
    converged[1, 2, 0] = False
    left, right = draw(comparison(converged=converged)).figure.axes
    assert sorted(y for label, _, y, _, _ in error_bars(left) if label == "SB") == [1, 2, 2, 3, 4, 6]
    assert [(label, y) for label, _, y, _, hollow in error_bars(left) if hollow] == [("LB, not converged", 60)]
    assert [list(curve.get_ydata()) for curve in left.lines if curve.get_linestyle() in ("-", "--")] == [
        [4, 2],
        [40, 20],
    ]
    assert right.get_xscale() == "log"
    means = sorted((label, x, half) for label, x, _, half, _ in error_bars(right))
    assert means == [("LB", 20, 10), ("LB", 40, 20), ("SB", 2, 1), ("SB", 4, 2)]
    seeds = [list(curve.get_xdata()) for curve in right.lines if curve.get_marker() == "."]
    assert sorted(seeds) == [[1, 2, 3], [2, 4, 6], [10, 20, 30], [20, 40, 60]]
    labels = [label.get_text() for label in right.get_yticklabels()]
    assert labels == ["batch norm: eval, full", "ε = 0.001, L-BFGS-B", "ε = 0.001, sign ascent"]


def test_table_by_hand():
    rows = {quantity: rest for quantity, *rest in sharpness_table(comparison())}
    assert rows == {
        "train loss (nat)": ["0.020 ± 0.010", "0.20 ± 0.10", "10.0"],
        "test loss (nat)": ["0.20 ± 0.10", "2.0 ± 1.0", "10.0"],
        "train accuracy (%)": ["98.0 ± 1.0", "80 ± 10", "0.816"],
        "test accuracy (%)": ["96.0 ± 2.0", "60 ± 20", "0.625"],
        "λmax": ["4.0 ± 2.0 (residual ≤ 0.006)", "40 ± 20 (residual ≤ 0.06)", "10.0"],
        "gradient norm ‖g‖, batch norm: eval": ["0.0020 ± 0.0010", "0.020 ± 0.010", "10.0"],
        "ε-sharpness (%), batch norm: eval, full, ε = 0.001, L-BFGS-B": ["2.0 ± 1.0", "20 ± 10", "10.0"],
        "ε-sharpness (%), batch norm: eval, full, ε = 0.001, sign ascent": ["4.0 ± 2.0", "40 ± 20", "10.0"],
        "distance from the start ‖θ − θ₀‖": ["2.0 ± 1.0", "20 ± 10", "10.0"],
        "weight norm ‖θ‖": ["7.0 ± 1.0", "25 ± 10", "3.57"],
        "epochs trained": ["40 ± 0", "40 ± 0", "1.00"],
    }


def test_table_says_what_is_missing_or_not_converged():
    converged = np.ones((2, 3, 2), bool)
    converged[1, :2, 0] = False
    record = comparison(
        converged=converged,
        distance=np.array([[NAN, NAN, NAN], [1.0, 3.0, NAN]]),
        weight_norm=np.array([[1.0, 2.0, np.inf], [1e-9, 2e-9, 3e-9]]),
    )
    rows = {quantity: rest for quantity, *rest in sharpness_table(record)}
    assert rows["λmax"][1] == "40 ± 20 (residual ≤ 0.06; not converged: 2 of 3)"
    assert rows["distance from the start ‖θ − θ₀‖"] == ["n/a", "2.0 ± 1.4 (2 of 3 seeds)", "n/a"]
    assert rows["weight norm ‖θ‖"] == ["not finite", "(2.0 ± 1.0)e-09", "n/a"]


def test_table_of_one_seed_claims_no_deviation():
    record = comparison()
    dims = ("loss", "accuracy", "eigenvalues", "residuals", "converged", "gradient_norm", "sharpness", "spread")
    one = {name: getattr(record, name)[:, :1] for name in (*dims, "first_order", "distance", "weight_norm", "epochs")}
    rows = {quantity: rest for quantity, *rest in sharpness_table(replace(record, seed=record.seed[:1], **one))}
    assert rows["λmax"] == ["2 (residual ≤ 0.002)", "20 (residual ≤ 0.02)", "10.0"]
    assert not any("±" in text for row in rows.values() for text in row)


def test_table_needs_both_regimes():
    with pytest.raises(ShapeError, match="LB is missing from its regimes SB, XB"):
        sharpness_table(comparison(regime=np.array(["SB", "XB"])))


def test_table_figure_holds_the_rows_of_the_table():
    figure = draw_table(comparison())
    cells = figure.axes[0].tables[0].get_celld()
    for index, row in enumerate([("", "SB", "LB", "LB/SB"), *sharpness_table(comparison())]):
        assert tuple(cells[index, column].get_text().get_text() for column in range(4)) == row


def regimes(count, **changes):
    """So many regimes, each with the numbers of SB."""
    record = comparison()
    names = ("loss", "accuracy", "eigenvalues", "residuals", "converged", "gradient_norm", "sharpness", "spread")
    every = {
        name: np.repeat(getattr(record, name)[:1], count, axis=0)
        for name in (*names, "first_order", "distance", "weight_norm", "epochs")
    }
    return replace(record, regime=np.array([f"R{number}" for number in range(count)]), **{**every, **changes})


def test_up_to_eight_regimes_can_be_told_apart():
    left, right = draw(regimes(8)).figure.axes
    means = [curve for curve in left.lines if curve.get_linestyle() != "None" and curve.get_marker() == "None"]
    assert len({curve.get_color() for curve in means}) == 8
    markers = {container[0].get_marker() for container in right.containers}
    assert len(markers) == 8
    places = {round(float(y) % 1, 3) for _, _, y, _, _ in error_bars(right)}
    assert len(places) == 8
    assert "first-order part" in texts(left.figure)


def test_nine_regimes_are_refused_and_named():
    with pytest.raises(ShapeError, match=r"at most 8 regimes.*got 9 \(R0, .*R8\).*choose fewer, or take the table"):
        draw(regimes(9))


def test_table_of_other_regimes_has_a_row_for_each():
    converged = np.ones((3, 3, 2), bool)
    converged[2, 1, 0] = False
    table = regimes_table(regimes(3, converged=converged, batch_size=np.array([8, 16, 32])))
    columns = dict(zip(table.head, zip(*table.texts, strict=True), strict=True))
    assert columns["regime"] == ("R0", "R1", "R2")
    assert columns["batch size"] == ("8", "16", "32")
    assert columns["λmax"] == 3 * ("4.0 ± 2.0",)
    assert columns["certificate of λmax"][1:] == ("residual ≤ 0.006", "residual ≤ 0.006; not converged: 1 of 3")
    assert columns["ε-sharpness (%), batch norm: eval, full, ε = 0.001, sign ascent"] == 3 * ("4.0 ± 2.0",)
    expected = [quantity for quantity, *_ in sharpness_table(comparison())]
    assert [name for name in table.head if name not in ("regime", "batch size", "certificate of λmax")] == expected
    assert any("did not converge in 1 of 3 trials" in note for note in table.notes)


def test_figure_of_the_table_is_turned_where_that_is_narrower():
    for count in (3, 20):
        table = regimes_table(regimes(count))
        cells = draw_table(regimes(count)).axes[0].tables[0].get_celld()
        rows, columns = (max(places) for places in zip(*cells, strict=True))
        assert (rows, columns) == ((len(table.head) - 1, 3) if count == 3 else (20, len(table.head) - 1))
    assert cells[20, 0].get_text().get_text() == "R19"


def test_trajectory_runs_with_the_loss_from_left_to_right():
    record = trajectory(60, -0.4)
    status = record.status.copy()
    status[-1] = 0
    ax = draw(replace(record, status=status))
    assert ax.get_xlim()[0] > ax.get_xlim()[1]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    drawn = curves(ax)
    for name, label in (("sharpness", "L-BFGS-B"), ("stronger", "sign ascent"), ("first_order", "first-order part")):
        values = np.ma.masked_invalid(drawn[label].get_ydata(orig=False))
        np.testing.assert_array_equal(values.compressed(), getattr(record, name)[:-1])
        x = np.ma.masked_invalid(drawn[label].get_xdata(orig=False))
        np.testing.assert_array_equal(x.compressed(), record.loss[0, :-1])
    assert any("1 of 6 iterates pending" in text for text in texts(ax.figure))


def test_the_end_of_a_trajectory_is_marked():
    record = trajectory(60, -0.4)
    ax = draw(record)
    ends = [curve for curve in ax.lines if curve.get_xdata().size == 1]
    assert [(*curve.get_xdata(), *curve.get_ydata()) for curve in ends] == [
        (record.loss[0, -1], values[-1]) for values in (record.sharpness, record.stronger, record.first_order)
    ]
    assert {curve.get_markersize() for curve in ends} == {6}
    assert {curve.get_markersize() for curve in curves(ax).values()} == {3}
    assert any("large markers: the minimizer" in text for text in texts(ax.figure))


def test_trajectory_through_zero_is_drawn():
    record = trajectory(60, -0.4)
    stronger = record.stronger.copy()
    stronger[0] = 0.0  # the maximiser found nothing above its start
    assert draw(replace(record, stronger=stronger)).get_yscale() == "symlog"


def test_rescaling_shows_measured_on_predicted():
    record = rescaling()
    left, right = draw(record).figure.axes
    points = list(error_bars(left))
    assert [label for label, *_ in points] == 9 * ["λmax, measured"]
    np.testing.assert_allclose([y for _, _, y, _, _ in points], record.eigenvalue, rtol=1e-12)
    np.testing.assert_allclose([half for *_, half, _ in points], record.residual, rtol=1e-12)
    np.testing.assert_array_equal(curves(left)["λmax, predicted"].get_ydata(), record.predicted_eigenvalue)
    flat = curves(left)["along a filter-normalised direction"].get_ydata()
    np.testing.assert_array_equal(flat, record.filter_curvature)
    for label, name in (
        ("ε-sharpness, L-BFGS-B", "sharpness"),
        ("ε-sharpness, sign ascent", "stronger"),
        ("first-order part, measured", "first_order"),
        ("first-order part, predicted", "predicted_first_order"),
    ):
        np.testing.assert_array_equal(curves(right)[label].get_ydata(), getattr(record, name))
    assert {ax.get_xscale() for ax in (left, right)} == {ax.get_yscale() for ax in (left, right)} == {"log"}
    assert any("outputs change by at most 3·10⁻⁷" in text for text in texts(left.figure))


def test_a_profile_marks_its_one_end():
    ax = draw(line(conditions={"ends": ["LB", ""]}))
    assert [curve.get_xdata()[0] for curve in ax.lines if np.size(curve.get_xdata()) == 2] == [0]


def test_a_curved_path_is_said_at_the_axis():
    path = "sin(απ/2)·b + cos(απ/2)·a"
    assert draw(line(path=path)).get_xlabel() == f"α;  θ(α) = {path}"
    assert draw(line()).get_xlabel() == "α"


def test_more_than_three_panels_stand_in_rows():
    figure = draw_figure({str(number): line() for number in range(5)})
    assert figure.get_size_inches().tolist() == pytest.approx([3 * 3.4, 2 * 2.7])
    titled = [ax for ax in figure.axes if ax.get_title()]
    assert [bool(ax.get_xlabel()) for ax in titled] == [False, False, True, True, True]
    assert [bool(ax.get_ylabel()) for ax in titled] == [True, False, False, True, False]
    right = [bool(ax.get_ylabel()) for ax in figure.axes if ax not in titled]
    assert right == [False, False, True, False, True]


@BY_KIND
def test_saving_twice_gives_the_same_bytes(record, tmp_path):
    figure = draw_figure({"SB": record, "LB": record})
    first = save_figure(figure, tmp_path / "a.b")
    again = save_figure(figure, tmp_path / "again")
    redrawn = save_figure(draw_figure({"SB": record, "LB": record}), tmp_path / "redrawn")
    assert [path.name for path in first] == ["a.b.svg", "a.b.pdf", "a.b.png"]
    for paths in (again, redrawn):
        assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in first]
    assert len(list(tmp_path.iterdir())) == 9


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (old,) = save_figure(draw(history()).figure, tmp_path / "figure", ["png"])
    content = old.read_bytes()

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_figure(draw(line()).figure, tmp_path / "figure", ["png", "svg"])
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == content


def test_a_missing_folder_is_made(tmp_path):
    files = save_figure(draw(history()).figure, tmp_path / "new" / "figure")
    assert [file.name for file in files] == ["figure.svg", "figure.pdf", "figure.png"]


def test_needs_neither_torch_nor_pyplot():
    script = """
import sys
sys.modules["torch"] = None
import sharpness.render
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
