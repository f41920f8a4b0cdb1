"""Published figures and tables from runs: every number where it belongs, every ordering as the trials have it."""

import csv
import functools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from test_render import rescaling, trajectory

from sharpness import store
from sharpness.errors import SchemaError, ShapeError
from sharpness.records import Comparison, History, LineLosses
from sharpness.render import (
    PAPER,
    Table,
    comparison_table,
    draw,
    draw_folder,
    draw_paper,
    draw_table,
    save_table,
    sharpness_table,
)
from sharpness.render.cells import Reported, over_seeds
from sharpness.render.paper.orderings import generalises_worse, ordering, sharper
from sharpness.render.paper.runs import Run, run_notes
from sharpness.render.published import (
    ACCURACY,
    DISTANCE_RATIO,
    LI_TEST_ERRORS,
    NETWORKS,
    SHARPNESS,
    published_gap,
    published_sharpness,
)
from sharpness.render.summary import Case
from sharpness.render.tables import comma_separated, latex, markdown

SPLITS = np.array(["train", "test"])
NAN = float("nan")
TRIALS = 3
REDUCED = {
    "scale": "reduced", "data": "mnist", "model": "keskar-f1", "train_examples": 6000, "batchnorm": "eval",
    "measured_on": "6000 training examples", "analysis": {"iterations": 10, "restarts": 2, "subspace": 100},
    "probe_passed": True, "model_options": {}, "statistics": "running",
}  # fmt: skip
NARROW = {
    **REDUCED, "data": "cifar10", "model": "keskar-c1", "model_options": {"width": 0.25}, "statistics": "recomputed",
    "train_examples": 1500,
}  # fmt: skip
SMOKE = {**NARROW, "scale": "smoke", "analysis": {"subspace": 3}}


def spread(means, *, trials=TRIALS, share=0.1):
    """One row per regime; trials at mean · (1 − share), mean, mean · (1 + share): mean and std are known exactly."""
    steps = 1 + share * (np.arange(trials) - (trials - 1) / 2)
    return np.asarray(means, float)[:, None] * steps


def comparison(recipe="keskar-f1", regimes=("SB", "LB"), *, trials=TRIALS, sharpness=None, **changes):
    """φ is the regime's value, times 1.5 by sign ascent, a tenth with batch statistics, a quarter at the smaller ε."""
    count = len(regimes)
    base = spread(np.geomspace(2, 200, count) if sharpness is None else sharpness, trials=trials)
    factors = np.ones((2, 2, 2, 2))
    for axis, factor in enumerate((0.1, 0.05, 0.25, 1.5)):  # batch norm, space, ε, maximiser
        factors *= np.array([1, factor]).reshape([2 if place == axis else 1 for place in range(4)])
    phi = base[..., None, None, None, None] * factors
    eigenvalues = spread(np.geomspace(0.6, 3, count), trials=trials)[..., None] * np.array([1, 0.7])
    test = spread(np.linspace(0.98, 0.97, count), trials=trials, share=0.001)
    losses = spread(np.geomspace(1e-3, 1e-4, count), trials=trials)
    record = Comparison(
        regime=np.array(regimes), seed=np.arange(trials), split=SPLITS, pair=np.array([1, 2]),
        batchnorm=np.array(["eval", "batch"]), space=np.array(["full", "subspace"]), epsilon=np.array([1e-3, 5e-4]),
        maximiser=np.array(["L-BFGS-B", "sign ascent"]), loss=np.stack([losses, 80 * losses], axis=-1),
        accuracy=np.stack([np.ones_like(test), test], axis=-1), eigenvalues=eigenvalues,
        residuals=1e-4 * eigenvalues, converged=np.ones(eigenvalues.shape, bool),
        gradient_norm=spread(np.full(count, 0.01), trials=trials)[..., None] * np.array([1, 0.5]), sharpness=phi,
        spread=0.1 * phi[..., 0], first_order=0.02 * phi[..., 0],
        distance=spread(np.geomspace(50, 10, count), trials=trials),
        weight_norm=spread(np.geomspace(80, 60, count), trials=trials),
        epochs=np.full((count, trials), 40), batch_size=np.geomspace(26, 600, count).astype(int),
        warm_epochs=np.zeros(count, int), recipe=recipe, conditions=REDUCED,
    )  # fmt: skip
    return replace(record, **changes)


def history(epochs, end, rate):
    epoch = np.arange(1, epochs + 1)
    accuracy = end - 0.3 * np.exp(-rate * epoch)
    noise = 0.004 * np.sin(3.0 * epoch) / np.sqrt(epoch)
    return History(
        split=SPLITS, epoch=epoch, loss=np.stack([1 - accuracy, 1.1 - accuracy]),
        accuracy=np.minimum(1, np.stack([accuracy + 0.02, accuracy + noise])), learning_rate=np.full(epochs, 1e-3),
        status=np.ones(epochs, np.uint8), batch_size=26, stopped="loss ceased to improve",
    )  # fmt: skip


def line(ends=("SB", "LB"), *, narrow=0.08, wide=0.5, points=25, **changes):
    """A wide well at α = 0 and a narrow one at α = 1."""
    alpha = np.linspace(-1, 2, points)
    loss = np.minimum(2.3 * (alpha / wide) ** 2, 2.3 * ((alpha - 1) / narrow) ** 2)
    loss = 1e-3 + 4 * loss / (4 + loss)
    record = LineLosses(
        split=SPLITS, alpha=alpha, loss=np.stack([loss, loss + 0.1]), accuracy=np.stack([np.exp(-loss)] * 2),
        status=np.ones(points, np.uint8), batchnorm="recompute", start="a", end="b", conditions={"ends": list(ends)},
    )  # fmt: skip
    return replace(record, **changes)


def profile(name, width, points=21):
    alpha = np.linspace(-1, 1, points)
    loss = 1e-3 + (alpha / width) ** 2
    record = line(points=points)
    return replace(
        record, alpha=alpha, loss=np.stack([loss, loss + 0.1]), accuracy=np.exp(-np.stack([loss, loss])),
        conditions={"ends": [name, ""]},
    )  # fmt: skip


def sketch():
    alpha = np.linspace(-3, 3, 301)

    def f(x):
        return 1 - 0.5 * np.exp(-((x + 1.2) ** 2) / 0.98) - 0.5 * np.exp(-((x - 1.4) ** 2) / 0.0288)

    return LineLosses(
        split=np.array(["training function", "testing function"]), alpha=alpha,
        loss=np.stack([f(alpha), f(alpha - 0.15)]),
        accuracy=np.full((2, 301), NAN), status=np.ones(301, np.uint8), batchnorm="none", start="a", end="b",
        conditions={"flat": -1.2, "sharp": 1.4},
    )  # fmt: skip


CURVE = "sin(απ/2)·b + cos(απ/2)·a"


def make_network(runs, recipe="keskar-f1", **changes):
    """All that a run of one of the paper's networks leaves."""
    record = comparison(recipe, **changes)
    store.save(record, runs / recipe / "comparison.h5")
    for seed in record.seed:
        folder = runs / recipe / f"seed-{seed}"
        store.save(line(), folder / "line.h5")
        store.save(line(path=CURVE), folder / "curve.h5")
        store.save(history(30 + 3 * int(seed), 0.981, 0.5), folder / "SB" / "history.h5")
        store.save(history(60, 0.972, 0.15), folder / "LB" / "history.h5")
    for regime, record in (("SB", trajectory(60, 0.2)), ("LB", trajectory(60, -0.4))):
        store.save(record, runs / recipe / "seed-0" / regime / "trajectory.h5")


def make_regimes(runs, recipe, regimes, **changes):
    store.save(comparison(recipe, regimes, **changes), runs / recipe / "comparison.h5")


WARM_STARTS = (0, 1, 2, 5, 10, 20, 30)
HOFFER = ("SB", "LB", "LB-longer", "LB-sqrt-rate", "LB-ghost", "LB-all")
REMEDIES = ("SB", "SB-augmented", "LB", "LB-augmented", "LB-conservative", "LB-adversarial", "LB-robust")
DECAYS = ("SB", "LB", "SB-decay", "LB-decay")


def make_warm_start(runs):
    regimes = ["SB", *(f"LB-from-{epoch}" for epoch in WARM_STARTS)]
    test = spread([0.98, *np.linspace(0.965, 0.979, 7)], share=0.001)
    make_regimes(
        runs, "keskar-warm-start", regimes, warm_epochs=np.array([0, *WARM_STARTS]),
        sharpness=[2, *np.geomspace(300, 5, 7)], accuracy=np.stack([np.ones_like(test), test], axis=-1),
    )  # fmt: skip
    for seed in range(TRIALS):
        store.save(history(30, 0.98, 0.5), runs / "keskar-warm-start" / f"seed-{seed}" / "SB" / "history.h5")


def make_li(runs, **changes):
    make_regimes(runs, "li-weight-decay", DECAYS, **changes)
    for seed in range(TRIALS):
        folder = runs / "li-weight-decay" / f"seed-{seed}"
        store.save(line(points=31), folder / "line-SB-LB.h5")
        reversed_line = line(("SB-decay", "LB-decay"), wide=0.08, narrow=0.5, points=31)
        store.save(reversed_line, folder / "line-SB-decay-LB-decay.h5")
        for name, width in zip(DECAYS, (1.0, 0.7, 0.9, 0.6), strict=True):
            store.save(profile(name, width), folder / name / "profile.h5")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Runs of F1 and C1, and of every other recipe that a figure needs."""
    folder = tmp_path_factory.mktemp("runs")
    make_network(folder)
    make_network(folder, "keskar-c1", sharpness=[30, 20], conditions=SMOKE)
    sizes = (16, 32, 64, 128, 256, 600, 1500, 6000)
    make_regimes(folder, "keskar-batch-sizes", [str(size) for size in sizes], batch_size=np.array(sizes))
    make_warm_start(folder)
    make_regimes(folder, "hoffer-longer", HOFFER)
    make_regimes(folder, "keskar-remedies", REMEDIES)
    make_li(folder)
    store.save(rescaling(), folder / "dinh-rescaling" / "rescaling.h5")
    store.save(sketch(), folder / "keskar-sketch" / "sketch.h5")
    return folder


def svg_free_texts(figure):
    return [text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_text()]


@functools.cache
def drawing_of(name, runs):
    return PAPER[name].draw(runs)


def drawn(name, runs):
    """The figure's texts, the table's cells as text by row, and its notes."""
    drawing = drawing_of(name, runs)
    words = svg_free_texts(drawing.figure) if drawing.figure else []
    return words, (drawing.table.texts if drawing.table else []), (drawing.table.notes if drawing.table else [])


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Files


FIGURE_ALONE = ("keskar-1", "keskar-5", "keskar-6", "keskar-7")


@pytest.mark.parametrize("name", PAPER)
def test_every_artefact_is_drawn_and_again_the_same(name, runs, tmp_path):
    files = draw_paper(name, runs, tmp_path / "first", ["svg"])
    table = [] if name in FIGURE_ALONE else [f"{name}-table.{ending}" for ending in ("md", "csv", "tex")]
    assert [path.name for path in files] == [f"{name}.svg", *table]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == sorted(path.name for path in files)
    again = draw_paper(name, runs, tmp_path / "again", ["svg"])
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


def test_formats_are_those_asked_for(runs, tmp_path):
    assert [path.suffix for path in draw_paper("keskar-1", runs, tmp_path)] == [".svg", ".pdf", ".png"]


@pytest.mark.parametrize("name", PAPER)
def test_without_runs_the_command_that_makes_one_is_said(name, tmp_path):
    recipes = PAPER[name].recipes
    message = rf"expected a finished run of {', '.join(recipes)} in .*Make one: sharpness run {recipes[0]}$"
    with pytest.raises(SchemaError, match=message):
        draw_paper(name, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_none_is_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"keskar-1, .*; got 'keskar-8'"):
        draw_paper("keskar-8", tmp_path, tmp_path)


def test_a_run_without_trajectory_or_curve_is_said(tmp_path):
    store.save(comparison(), tmp_path / "keskar-f1" / "comparison.h5")
    for name, lacking in (("keskar-6", "trajectory.h5"), ("keskar-7", "curve.h5")):
        with pytest.raises(SchemaError, match=lacking):
            draw_paper(name, tmp_path, tmp_path)
    make_network(tmp_path, "keskar-c1")
    words, _, _ = drawn("keskar-6", tmp_path)
    assert any("not measured: F1" in text and "no finished run of F2, C2, C3, C4" in text for text in words)


def test_tables_are_drawn_where_there_is_no_figure(tmp_path):
    store.save(comparison(), tmp_path / "keskar-f1" / "comparison.h5")
    for name in ("keskar-2", "keskar-3", "keskar-4"):
        assert [path.suffix for path in draw_paper(name, tmp_path, tmp_path / "out", ["svg"])] == [
            ".md",
            ".csv",
            ".tex",
        ]


# Figures


def test_sketch_labels_its_minima_and_has_no_numbers(runs):
    ax = drawing_of("keskar-1", runs).figure.axes[0]
    looks = {curve.get_label(): curve.get_linestyle() for curve in ax.lines}
    assert looks == {"training function": "-", "testing function": "--"}
    arrows = {text.get_text(): text.xy for text in ax.texts if "minimum" in text.get_text()}
    assert arrows["flat minimum"][0] == -1.2
    assert arrows["sharp minimum"][0] == 1.4
    assert not ax.get_xticks().size
    assert not ax.get_yticks().size


def test_accuracy_is_the_mean_to_the_epoch_that_all_trials_reached(runs):
    figure = drawing_of("keskar-2", runs).figure
    f1, c1 = figure.axes
    assert (f1.get_title(), c1.get_title()) == ("F1", "C1")
    curves = {curve.get_label(): curve for curve in f1.lines if not curve.get_label().startswith("_")}
    assert list(curves) == ["SB, train", "SB, test", "LB, train", "LB, test"]
    expected = history(30, 0.981, 0.5)  # the shortest of the three, and all agree where they overlap
    np.testing.assert_array_equal(curves["SB, test"].get_xdata(), expected.epoch)
    np.testing.assert_allclose(curves["SB, test"].get_ydata(), expected.accuracy[1], rtol=1e-12)
    single = [curve.get_xdata().size for curve in f1.lines if curve.get_label().startswith("_")]
    assert sorted(single) == [30, 30, 33, 33, 36, 36, *6 * [60]]


def test_captions_say_scale_trials_smoke_and_what_is_missing(runs):
    for name in ("keskar-2", "keskar-3", "keskar-6", "keskar-7"):
        words, _, _ = drawn(name, runs)
        caption = next(text for text in words if "F1: data" in text)
        assert "F1: data mnist, model keskar-f1, 6,000 training examples, reduced scale, 3 trials" in caption
        assert (
            "C1: data cifar10, model keskar-c1 (width 0.25), 1,500 training examples, "
            "recomputed batch-norm statistics, smoke scale, 3 trials"
        ) in caption
        assert "smoke scale: a test of the program, not a result" in caption
        assert "no finished run of F2, C2, C3, C4" in caption


def test_batch_sizes_stand_on_a_logarithmic_axis_with_every_trial(runs):
    record = store.load(runs / "keskar-batch-sizes" / "comparison.h5")
    left, right = drawing_of("keskar-4", runs).figure.axes
    assert {left.get_xscale(), right.get_xscale()} == {"log"}
    for ax, values in ((left, 100 * record.accuracy[:, :, 1]), (right, record.sharpness[:, :, 0, 0, 0, 0])):
        means, *_ = ax.containers[0]
        np.testing.assert_array_equal(means.get_xdata(), record.batch_size)
        np.testing.assert_allclose(means.get_ydata().astype(float), values.mean(axis=1), rtol=1e-12)
        dots = [curve.get_ydata() for curve in ax.lines if curve.get_marker() == "."][:TRIALS]
        np.testing.assert_array_equal(np.sort(dots, axis=0), np.sort(values.T, axis=0))


def test_warm_starts_stand_at_their_epochs(runs):
    record = store.load(runs / "keskar-warm-start" / "comparison.h5")
    upper, lower = drawing_of("keskar-5", runs).figure.axes
    means = upper.containers[0][0]
    np.testing.assert_array_equal(means.get_xdata(), WARM_STARTS)
    np.testing.assert_allclose(
        means.get_ydata().astype(float), 100 * record.accuracy[1:, :, 1].mean(axis=1), rtol=1e-12
    )
    small = next(curve for curve in upper.lines if curve.get_label() == "SB after that epoch")
    np.testing.assert_allclose(small.get_ydata(), 100 * history(30, 0.98, 0.5).accuracy[1], rtol=1e-12)
    np.testing.assert_allclose(
        lower.containers[0][0].get_ydata().astype(float), record.sharpness[1:, :, 0, 0, 0, 0].mean(axis=1), rtol=1e-12
    )


def test_descents_of_both_regimes_share_a_panel(runs):
    ax = drawing_of("keskar-6", runs).figure.axes[0]
    curves = {curve.get_label(): curve for curve in ax.lines}
    for regime, record in (("SB", trajectory(60, 0.2)), ("LB", trajectory(60, -0.4))):
        for name, label in (
            ("sharpness", "L-BFGS-B"),
            ("stronger", "sign ascent"),
            ("first_order", "first-order part"),
        ):
            np.testing.assert_array_equal(curves[f"{regime}, {label}"].get_ydata(), getattr(record, name))
            np.testing.assert_array_equal(curves[f"{regime}, {label}"].get_xdata(), record.loss[0])
    assert ax.xaxis.get_inverted()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_curves_name_their_path(runs):
    words, _, _ = drawn("keskar-7", runs)
    assert f"α;  θ(α) = {CURVE}" in words


def test_a_run_for_curves_alone_serves_figure_7(tmp_path):
    make_network(tmp_path, "keskar-curves")
    words, _, _ = drawn("keskar-7", tmp_path)
    assert "keskar-curves" in words


def test_eigenvalues_that_did_not_converge_are_hollow_and_named(tmp_path):
    record = comparison("hoffer-longer", HOFFER)
    converged = record.converged.copy()
    converged[2, 1, 0] = False
    make_regimes(tmp_path, "hoffer-longer", HOFFER, converged=converged)
    words, _, notes = drawn("hoffer-longer", tmp_path)
    assert "λmax, not converged" in words
    assert "hoffer-longer, LB-longer: eigenvalues that did not converge in 1 of 3 trials." in notes


# Published numbers


def test_published_tables_are_those_of_the_paper():
    table_2 = """
    F1 99.66 0.05 99.92 0.01 98.03 0.07 97.81 0.07 / F2 99.99 0.03 98.35 2.08 64.02 0.20 59.45 1.05
    C1 99.89 0.02 99.66 0.20 80.04 0.12 77.26 0.42 / C2 99.99 0.04 99.99 0.01 89.24 0.12 87.26 0.07
    C3 99.56 0.44 99.88 0.30 49.58 0.39 46.45 0.43 / C4 99.10 1.23 99.57 1.84 63.08 0.50 57.81 0.17"""
    table_3 = """
    F1 1.23 0.83 205.14 69.52 0.61 0.27 42.90 17.14 / F2 1.39 0.02 310.64 38.46 0.90 0.05 93.15 6.81
    C1 28.58 3.13 707.23 43.04 7.08 0.88 227.31 23.23 / C2 8.68 1.32 925.32 38.29 2.07 0.86 175.31 18.28
    C3 29.85 5.98 258.75 8.96 8.56 0.99 105.11 13.22 / C4 12.83 3.84 421.84 36.97 4.07 0.87 109.35 16.57"""
    table_4 = """
    F1 0.11 0.00 nan nan 0.05 0.00 nan nan / F2 0.29 0.02 23.63 0.54 0.05 0.00 6.28 0.19
    C1 2.18 0.23 137.25 21.60 0.71 0.15 29.50 7.48 / C2 0.95 0.34 25.09 2.61 0.31 0.08 5.82 0.52
    C3 17.02 2.20 236.03 31.26 4.03 1.45 86.96 27.39 / C4 6.05 1.13 72.99 10.96 1.89 0.33 19.85 4.12"""
    cases = [(1e-3, "SB"), (1e-3, "LB"), (5e-4, "SB"), (5e-4, "LB")]
    splits = [("train", "SB"), ("train", "LB"), ("test", "SB"), ("test", "LB")]
    for text, table, keys in (
        (table_2, ACCURACY, splits),
        (table_3, SHARPNESS["full"], cases),
        (table_4, SHARPNESS["subspace"], cases),
    ):
        lines = [line.split() for line in re.split("[/\n]", text) if line.strip()]
        assert [f"keskar-{name.lower()}" for name, *_ in lines] == list(table) == list(NETWORKS)
        for name, *fields in lines:
            numbers = np.array(fields, float).reshape(4, 2)
            row = table[f"keskar-{name.lower()}"]
            assert list(row) == keys
            got = [(NAN, NAN) if row[key] is None else tuple(row[key]) for key in keys]
            np.testing.assert_array_equal(got, numbers)
    assert DISTANCE_RATIO == (3, 10)
    assert LI_TEST_ERRORS == {"SB": 7.37, "LB": 11.07, "SB-decay": 6.0, "LB-decay": 10.19}


def test_published_numbers_of_other_recipes_are_unknown():
    assert published_sharpness("digits", "full", 1e-3, "SB") is None
    assert published_sharpness("keskar-f1", "full", 1e-2, "SB") is None
    assert math.isnan(published_gap("digits"))


# Orderings


@pytest.mark.parametrize(
    ("small", "large", "count", "verdict"),
    [
        ([1, 1, 1], [2, 3, 4], "3 of 3 trials", "holds"),
        ([1, 1, 1], [2, 3, 1], "2 of 3 trials (1 tied)", "is open"),
        ([1, 1], [2, 0], "1 of 2 trials", "is mixed"),
        ([1, 1, 1], [2, 0, 1], "1 of 3 trials (1 tied)", "is mixed"),
        ([1, 1, 1], [0, 0, 1], "0 of 3 trials (1 tied)", "does not hold"),
        ([1, 1, 1], [2, 0, 0], "1 of 3 trials", "does not hold"),
        ([1, 1], [1, 1], "0 of 2 trials (2 tied)", "is open"),
        ([0.3], [0.1 + 0.2], "0 of 1 trial (1 tied)", "is open"),
        ([1, 1, NAN], [2, 1, 4], "1 of 2 trials (1 tied, 1 of 3 not measured)", "is open"),
        ([1, 1, 1], [0, 0, 0], "0 of 3 trials", "does not hold"),
        ([1, 1, NAN], [2, 3, 4], "2 of 2 trials (1 of 3 not measured)", "is open"),
        ([1, 1, NAN], [0, 0, 4], "0 of 2 trials (1 of 3 not measured)", "does not hold"),
        ([NAN], [1], "0 of 0 trials (1 of 1 not measured)", "is open"),
        ([1], [2], "1 of 1 trial", "holds"),
    ],
)
def test_an_ordering_holds_only_in_every_trial(small, large, count, verdict):
    found = ordering(np.array(small, float), np.array(large, float))
    assert (found.tally, found.verdict) == (count, verdict)


def run_of(recipe="keskar-f1", conditions=REDUCED, **pairs):
    """A run with φ and test accuracy (in percent) by hand, measured in one way."""
    phi, test = (np.array(pairs.get(name, 2 * [3 * [NAN]]), float) for name in ("phi", "test"))
    record = comparison(recipe, conditions=conditions)
    sharpness = np.broadcast_to(phi[..., None, None, None, None], record.sharpness.shape)
    return Run(recipe, Path(), replace(record, sharpness=sharpness, accuracy=np.stack([test, test], axis=-1) / 100))


def test_sentences_by_hand():
    case, where = Case(0, 0, 0, 0), "F1 at reduced scale, ε = 0.001, full space, batch norm eval, L-BFGS-B"
    assert sharper(run_of(phi=[[1, 2, 3], [100, 224, 348]]), case) == (
        f"{where}: LB is sharper than SB in 3 of 3 trials; LB/SB = 112 (published 167). The paper's ordering holds."
    )
    assert sharper(run_of("keskar-remedies", phi=[[1, 2, 3], 3 * [NAN]]), case).endswith(
        "LB is sharper than SB in 0 of 0 trials (3 of 3 not measured); LB/SB = n/a. The paper's ordering is open."
    )
    assert generalises_worse(run_of(test=[[98, 98, 98], [97.9, 98.1, 98.2]])) == (
        "F1 at reduced scale: LB tests worse than SB in 1 of 3 trials; the gap SB − LB is −0.07 points "
        "(published 0.22). The paper's ordering does not hold."
    )
    assert generalises_worse(run_of("keskar-remedies"), finding="").endswith("the gap SB − LB is n/a points.")


def test_smoke_scale_has_numbers_and_no_verdicts(tmp_path):
    make_network(tmp_path, "keskar-c1", conditions=SMOKE)
    make_li(tmp_path, conditions=SMOKE)
    for recipe, regimes in (("hoffer-longer", HOFFER), ("keskar-remedies", REMEDIES)):
        make_regimes(tmp_path, recipe, regimes, conditions=SMOKE)
    sentences = {
        "keskar-2": 1, "keskar-3": 8 + 1, "keskar-4": 8, "li-weight-decay": 6, "hoffer-longer": 5 * 5,
        "keskar-remedies": 5 * 5,
    }  # fmt: skip
    for name, count in sentences.items():
        notes = drawn(name, tmp_path)[2]
        told = [note for note in notes if re.search(r" than .* in \d of 3 trials", note)]
        assert len(told) == count
        assert not re.search(r"ordering|finding", " ".join(notes))
        assert any("smoke scale: a test of the program, not a result" in note for note in notes)


# Tables 2 to 4


def test_accuracies_stand_over_the_published(runs):
    _, rows, notes = drawn("keskar-2", runs)
    assert rows == [
        ["F1", "measured", "100 ± 0", "100 ± 0", "98.000 ± 0.098", "97.000 ± 0.097", "1.0000 ± 0.0010"],
        ["F1", "published", "99.66 ± 0.05", "99.92 ± 0.01", "98.03 ± 0.07", "97.81 ± 0.07", "0.22"],
        ["C1", "measured", "100 ± 0", "100 ± 0", "98.000 ± 0.098", "97.000 ± 0.097", "1.0000 ± 0.0010"],
        ["C1", "published", "99.89 ± 0.02", "99.66 ± 0.20", "80.04 ± 0.12", "77.26 ± 0.42", "2.78"],
    ]
    sentence = (
        "F1 at reduced scale: LB tests worse than SB in 3 of 3 trials; the gap SB − LB is 1.00 points (published 0.22)."
    )
    assert f"{sentence} The paper's ordering holds." in notes
    assert "keskar-c1: smoke scale: a test of the program, not a result." in notes


PAPER_SCALE = {"scale": "paper", "data": "mnist", "model": "keskar-f1", "train_examples": 60_000}


@pytest.mark.parametrize(
    ("recipe", "changes", "reasons"),
    [
        ("keskar-f1", {}, ""),
        ("keskar-f1", {"scale": "reduced"}, "F1: reduced scale"),
        ("keskar-f1", {"scale": None}, "F1: scale not recorded"),
        ("keskar-f1", {"train_examples": 6000, "scale": "reduced"}, "F1: 6,000 of 60,000 training images"),
        ("keskar-f1", {"train_examples": 6000}, "F1: 6,000 of 60,000 training images"),
        ("keskar-f2", {"data": "table", "train_examples": 10}, "F2: published on TIMIT, measured on table"),
        ("keskar-c1", {"data": "cifar10", "train_examples": 1500}, "C1: 1,500 of 50,000 training images"),
        (
            "li-weight-decay",
            {"data": "cifar10", "train_examples": 50_000, "model": "vgg9", "model_options": {"width": 0.25}},
            "li-weight-decay: model vgg9 (width 0.25)",
        ),
    ],
)
def test_why_numbers_do_not_compare_is_said(recipe, changes, reasons):
    notes = run_notes(run_of(recipe, conditions=PAPER_SCALE | changes))
    said = [note for note in notes if "do not compare" in note]
    assert said == ([f"{reasons}: the numbers do not compare, the orderings may."] if reasons else [])


def test_tables_beside_published_numbers_say_that_they_do_not_compare(runs):
    for name, said in (
        ("keskar-2", "F1: 6,000 of 60,000 training images: the numbers do not compare, the orderings may."),
        ("keskar-3", "C1: 1,500 of 50,000 training images, model keskar-c1 (width 0.25): the numbers do not compare."),
        ("keskar-4", "F1: 6,000 of 60,000 training images: the numbers do not compare, the orderings may."),
        ("li-weight-decay", "li-weight-decay: published on CIFAR-10, measured on mnist: the numbers do not compare, "
         "the orderings may."),
    ):  # fmt: skip
        assert said in drawn(name, runs)[2]


@pytest.mark.parametrize(
    ("plan", "warned"),
    [({"subspace": 100}, ""), ({"subspace": 3}, "3 dimensions"), ({}, "unknown dimensions")],
)
def test_the_dimension_of_the_subspaces_is_said(plan, warned, tmp_path):
    make_network(tmp_path, conditions={**PAPER_SCALE, "analysis": plan})
    notes = drawn("keskar-4", tmp_path)[2]
    said = [note for note in notes if "published: 100" in note]
    assert said == ([f"F1: subspaces of {warned}; published: 100."] if warned else [])
    assert any(f"random subspaces of {plan.get('subspace')} dimensions" in note for note in notes) == bool(plan)
    assert not any("published: 100" in note for note in drawn("keskar-3", tmp_path)[2])


def test_sharpness_stands_beside_the_published(runs):
    _, rows, notes = drawn("keskar-3", runs)
    full = "φ (%), full space"
    assert rows[0] == ["F1", full, "eval", "0.001", "L-BFGS-B", "2.00 ± 0.20", "200 ± 20", "100",
                       "1.23 ± 0.83", "205.14 ± 69.52", "167"]  # fmt: skip
    assert rows[7] == ["F1", full, "batch", "0.0005", "sign ascent", "0.0750 ± 0.0075", "7.50 ± 0.75", "100",
                       "0.61 ± 0.27", "42.90 ± 17.14", "70.3"]  # fmt: skip
    named = {row[1]: row[5:] for row in rows if row[0] == "F1"}
    assert named["λmax"][:3] == ["0.600 ± 0.060 (residual ≤ 6.6e-05)", "3.00 ± 0.30 (residual ≤ 0.00033)", "5.00"]
    assert named["distance ratio SB/LB"] == ["", "", "5 ± 0", "", "", "3–10"]
    assert {"gradient norm ‖g‖", "first-order part of φ (%)", "weight norm ‖θ‖"} <= set(named)
    where = "F1 at reduced scale, ε = 0.001, full space, batch norm eval, L-BFGS-B"
    assert (
        f"{where}: LB is sharper than SB in 3 of 3 trials; LB/SB = 100 (published 167). The paper's ordering holds."
        in notes
    )
    where = "C1 at smoke scale, ε = 0.0005, full space, batch norm batch, sign ascent"
    assert f"{where}: LB is sharper than SB in 0 of 3 trials; LB/SB = 0.667 (published 32.1)." in notes
    assert "F1 at reduced scale: the paper's ordering holds in 8 of 8 ways of measuring." in notes
    assert (
        "F1 at reduced scale: λmax is larger at LB than at SB in 3 of 3 trials; LB/SB = 5.00 (the paper reports none)."
        in notes
    )
    assert any(
        "SB ends 5.00 times as far from the start as LB (published 3–10); within that range in 3" in n for n in notes
    )


def test_subspaces_leave_out_what_the_paper_has_in_doubt(runs):
    _, rows, notes = drawn("keskar-4", runs)
    assert rows[0][5:] == ["0.100 ± 0.010", "10.0 ± 1.0", "100", "0.11 ± 0.00", "n/a", "n/a"]
    assert [row[1] for row in rows] == 16 * ["φ (%), random subspaces"]
    assert any("F1, LB: the published values are left out" in note for note in notes)
    where = "F1 at reduced scale, ε = 0.001, random subspaces, batch norm eval, L-BFGS-B"
    assert f"{where}: LB is sharper than SB in 3 of 3 trials; LB/SB = 100. The paper's ordering holds." in notes


def test_what_was_not_measured_is_said(tmp_path):
    record = comparison()
    alone = {"sharpness": record.sharpness[:, :, :, :1], "first_order": record.first_order[:, :, :, :1]}
    make_network(
        tmp_path,
        space=np.array(["full"]),
        spread=record.spread[:, :, :, :1],
        **{**alone, "trials": TRIALS, "sharpness": None},
    )
    broken = replace(
        record, space=np.array(["full"]), spread=record.spread[:, :, :, :1], **alone,
        distance=np.full((2, TRIALS), NAN), accuracy=np.full_like(record.accuracy, NAN),
    )  # fmt: skip
    broken.sharpness[1, 2] = NAN
    store.save(broken, tmp_path / "keskar-f1" / "comparison.h5")
    _, rows, notes = drawn("keskar-4", tmp_path)
    assert not rows
    assert "F1 at reduced scale: not measured in random subspaces." in notes
    _, rows, notes = drawn("keskar-3", tmp_path)
    assert rows[0][6] == "190 ± 14 (2 of 3 seeds)"
    assert any("2 of 2 trials (1 of 3 not measured)" in note and note.endswith("ordering is open.") for note in notes)
    assert any("SB ends n/a times as far" in note and "in 0 of 3 trials" in note for note in notes)
    _, rows, notes = drawn("keskar-2", tmp_path)
    assert rows[0][2:] == 5 * ["n/a"]
    assert any("0 of 0 trials (3 of 3 not measured)" in note for note in notes)


def test_points_that_are_no_minima_are_said(tmp_path):
    record = comparison()
    make_network(tmp_path, first_order=0.9 * record.sharpness[..., 0])
    _, _, notes = drawn("keskar-3", tmp_path)
    assert any("at SB more than half of φ is its first-order part in 8 of 8 rows" in note for note in notes)


# Critics and remedies


def test_rescaling_is_told_in_numbers(runs):
    _, rows, notes = drawn("dinh-rescaling", runs)
    assert [row[0] for row in rows][::4] == ["0.01", "1", "100"]
    assert rows[4][4:8] == ["5", "0.005", "5", "0.005"]
    assert "Outputs change by at most 3·10⁻⁷ of the largest: the networks compute one function, to rounding." in notes
    assert "λmax: from 5 to 10⁴, a factor of 2001, for one function." in notes
    assert any("agree within their residuals at 9 of 9 factors" in note for note in notes)
    assert any("filter-normalised direction d: from 4.2 to 4.2, a factor of 1.00" in note for note in notes)


def test_rescaling_says_what_was_trained_and_how_it_was_measured(tmp_path):
    known = {
        "scale": "reduced", "data": "digits", "train_examples": 1437, "model": "mlp",
        "model_options": {"batchnorm": False}, "iterations": 10, "restarts": 2, "examples": 1437,
    }  # fmt: skip
    store.save(rescaling(conditions=known), tmp_path / "dinh-rescaling" / "rescaling.h5")
    words, _, notes = drawn("dinh-rescaling", tmp_path)
    assert (
        "data digits, model mlp (batchnorm False), 1,437 training examples; "
        "ε-sharpness by at most 10 iterations from 2 starts; reduced scale"
    ) in words
    assert notes[0] == (
        "dinh-rescaling: reduced scale, one trained network; data digits; model mlp (batchnorm False); 1,437 training "
        "examples; measured on 1437 examples; φ: ε = 0.001, full space, by at most 10 iterations from 2 starts, "
        "lower bounds."
    )


def test_rescaling_that_changes_the_function_or_is_pending_is_said(tmp_path):
    status = np.ones(9, np.uint8)
    status[-1] = 0
    record = rescaling(
        output_change=np.full(9, 0.1), status=status, conditions={"scale": "smoke"}, predicted_eigenvalue=np.ones(9)
    )
    store.save(record, tmp_path / "dinh-rescaling" / "rescaling.h5")
    words, rows, notes = drawn("dinh-rescaling", tmp_path)
    assert rows[-1][1:] == 14 * ["n/a"]
    assert "Outputs change by at most 0.1 of the largest: the networks compute not the same function." in notes
    assert "1 of 9 factors are pending." in notes
    assert any("agree within their residuals at 0 of 8 factors" in note for note in notes)
    assert any("smoke scale: a test of the program, not a result" in text for text in words)


def test_weight_decay_turns_the_line_and_not_the_profile(runs):
    words, rows, notes = drawn("li-weight-decay", runs)
    named = {row[0]: row for row in rows}
    assert named["SB-decay"][2] == "6.00"
    # width w: (0.25 / w)², interpolated between 0.2 and 0.3
    for name, width in zip(DECAYS, (1.0, 0.7, 0.9, 0.6), strict=True):
        assert float(named[name][6].split(" ±")[0]) == pytest.approx(0.065 / width**2, rel=1e-3)
    loss = line(points=31)
    rise = np.interp(0.25, loss.alpha, loss.loss[0]) - np.interp(0, loss.alpha, loss.loss[0])
    assert float(named["SB"][4].split(" ±")[0]) == pytest.approx(rise, rel=1e-3)
    ends = [sentence.split(": ", 1)[1] for sentence in notes if "published ordering" in sentence]
    assert ends == [
        f"{claim} in 3 of 3 trials. The published ordering holds."
        for claim in (
            "along the line LB rises more than SB", "along filter-normalised directions LB rises more than SB",
            "LB tests worse than SB", "along the line SB-decay rises more than LB-decay",
            "along filter-normalised directions LB-decay rises more than SB-decay",
            "LB-decay tests worse than SB-decay",
        )
    ]  # fmt: skip
    assert {"no weight decay", "weight decay", "SB-decay", "LB-decay, test"} <= set(words)


def test_weight_decay_without_lines_has_a_table(tmp_path):
    make_regimes(tmp_path, "li-weight-decay", DECAYS)
    _, rows, notes = drawn("li-weight-decay", tmp_path)
    assert [row[4:] for row in rows] == 4 * [4 * ["n/a"]]
    assert any(note.endswith("The published ordering is open.") for note in notes)


def test_regimes_are_compared_with_small_batches_trained_alike(runs):
    _, rows, notes = drawn("keskar-remedies", runs)
    assert [row[0] for row in rows] == list(REMEDIES)
    where = "keskar-remedies at reduced scale"
    assert (
        f"{where}: LB-augmented tests worse than SB-augmented in 3 of 3 trials; the gap SB-augmented − LB-augmented is "
        "0.33 points. It is less than SB − LB, 0.33 points, in 0 of 3 trials (3 tied). "
        "The paper's finding, less of a gap, is open."
    ) in notes
    assert any(
        "LB-robust is sharper than SB in 3 of 3 trials; LB-robust/SB = 100. "
        "The paper's finding, a minimum still sharp, holds." in note
        for note in notes
    )
    for name, verdicts in (("conservative", 1), ("adversarial", 0), ("robust", 0)):  # of the last two sources differ
        (gap,) = [note for note in notes if f"LB-{name} tests worse" in note]
        assert "It is less than SB − LB, 0.33 points, in 0 of 3 trials." in gap
        assert gap.count("less of a gap") == verdicts
    _, rows, notes = drawn("hoffer-longer", runs)
    assert [row[0] for row in rows] == list(HOFFER)
    said = [note for note in notes if "LB-all" in note]
    assert said
    assert not any("finding" in note or "ordering" in note for note in said)


# Tables as files


def test_csv_holds_the_records_numbers(runs, tmp_path):
    for name in ("keskar-2", "keskar-3", "keskar-remedies"):
        draw_paper(name, runs, tmp_path, ["svg"])
    record = store.load(runs / "keskar-f1" / "comparison.h5")
    phi = [row for row in read(tmp_path / "keskar-3-table.csv") if row["network"] == "F1" and row["maximiser"]]
    assert len(phi) == 8
    for row in phi:
        case = (
            ["eval", "batch"].index(row["batch norm"]), 0, [1e-3, 5e-4].index(float(row["ε"])),
            ["L-BFGS-B", "sign ascent"].index(row["maximiser"]),
        )  # fmt: skip
        for regime, values in zip(("SB", "LB"), record.sharpness[:, :, *case], strict=True):
            assert float(row[f"{regime} mean"]) == values.mean()
            assert float(row[f"{regime} std"]) == values.std(ddof=1)
            assert int(row[f"{regime} n"]) == TRIALS
            entry = published_sharpness("keskar-f1", "full", float(row["ε"]), regime)
            assert (float(row[f"published {regime} mean"]), float(row[f"published {regime} std"])) == tuple(entry)
    (top,) = [
        row for row in read(tmp_path / "keskar-3-table.csv") if row["network"] == "F1" and row["measure"] == "λmax"
    ]
    assert float(top["LB residual"]) == record.residuals[1, :, 0].max()
    assert int(top["LB not converged"]) == 0

    accuracy = read(tmp_path / "keskar-2-table.csv")[0]
    assert float(accuracy["test accuracy LB (%) mean"]) == (100 * record.accuracy[1, :, 1]).mean()

    remedies = store.load(runs / "keskar-remedies" / "comparison.h5")
    for row, weights in zip(read(tmp_path / "keskar-remedies-table.csv"), remedies.weight_norm, strict=True):
        assert float(row["weight norm ‖θ‖ mean"]) == weights.mean()


WITH_TABLE = [name for name in PAPER if name not in FIGURE_ALONE]


@pytest.mark.parametrize("name", WITH_TABLE)
def test_csv_has_head_and_rows_only(name, runs):
    table = drawing_of(name, runs).table
    head, *rows = csv.reader(comma_separated(table).split("\n")[:-1])
    assert {len(row) for row in rows} == {len(head)} == {len(set(head))}
    assert len(rows) == len(table.rows)


@pytest.mark.parametrize("name", WITH_TABLE)
def test_latex_is_balanced_and_plain(name, runs):
    text = latex(drawing_of(name, runs).table)
    assert text.isascii()  # every other sign has become a formula
    assert not re.search(r"(?<!\\)[%#]", text)
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ended[::-1] == ["table", "tabular"]
    rows = [line for line in text.split("\n") if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1


def test_formats_by_hand(tmp_path):
    cells = [over_seeds(np.array([1.0, 3.0])), None, Reported(0.11, 0.0)]
    table = Table(
        "100 % of φ", ("a|b", "x (%)", "p"), [["s_1", cells[0], cells[2]], ["‖θ₀‖", 2.5, cells[1]]], ["5 ± 1 & ε"]
    )
    assert markdown(table).split("\n") == [
        "**100 % of φ**",
        "",
        r"| a\|b   |     x (%) |           p |",
        "|--------|-----------|-------------|",
        "| s_1    | 2.0 ± 1.4 | 0.11 ± 0.00 |",
        "| ‖θ₀‖   |       2.5 |         n/a |",
        "",
        "- 5 ± 1 & ε",
        "",
    ]
    assert comma_separated(table) == (
        "a|b,x (%) mean,x (%) std,x (%) n,p mean,p std\n"
        f"s_1,2.0,{math.sqrt(2)},2,0.11,0.0\n"
        "‖θ₀‖,2.5,,,,\n"
    )  # fmt: skip
    text = latex(table)
    assert r"\caption{100 \% of $\varphi$}" in text
    assert r" s\_1   & 2.0 $\pm$ 1.4 & 0.11 $\pm$ 0.00 \\" in text
    assert r"$\|\theta{}_0\|$" in text
    assert r"\par {\footnotesize 5 $\pm$ 1 \& $\varepsilon$}" in text
    files = save_table(table, tmp_path / "new" / "a.b")
    assert [path.name for path in files] == ["a.b.md", "a.b.csv", "a.b.tex"]
    assert files[1].read_text() == comma_separated(table)


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    table = Table("t", ("a",), [["1"]])
    old = save_table(table, tmp_path / "t")[0].read_bytes()

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_table(replace(table, title="other"), tmp_path / "t")
    assert (tmp_path / "t.md").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 3


# Folders


def test_a_run_of_sb_and_lb_has_its_table_in_all_forms(tmp_path):
    store.save(comparison("digits"), tmp_path / "comparison.h5")
    store.save(line(), tmp_path / "seed-0" / "line.h5")
    written = draw_folder(tmp_path, ["svg"])
    names = ["comparison.svg", "table.svg", "table.md", "table.csv", "table.tex", "line.svg"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    rows = [
        line.split(" | ") for line in (tmp_path / "figures" / "table.md").read_text().split("\n") if line[:1] == "|"
    ]
    texts = [[cell.strip("| ") for cell in row] for row in rows]
    assert texts[0] == ["quantity", "SB", "LB", "LB/SB"]
    assert [tuple(row) for row in texts[2:]] == sharpness_table(comparison("digits"))
    values = read(tmp_path / "figures" / "table.csv")
    assert float(values[4]["LB mean"]) == comparison().eigenvalues[1, :, 0].mean()


@pytest.mark.parametrize(
    ("recipe", "families"),
    [
        (
            "keskar-f1",
            {"curve": 3, "line": 3, "comparison": 1, "seed-0-trajectory": 2}
            | {f"seed-{s}-history": 2 for s in range(3)},
        ),
        ("li-weight-decay", {"line-SB-LB": 3, "line-SB-decay-LB-decay": 3, "comparison": 1}
         | {f"seed-{s}-profile": 4 for s in range(3)}),
        ("dinh-rescaling", {"rescaling": 1}),
    ],
)  # fmt: skip
def test_files_of_one_name_become_panels_in_the_order_of_the_regimes(recipe, families, runs, monkeypatch):
    drawn = {}

    def save(names, stem, formats):
        drawn[stem.name] = names
        return []

    monkeypatch.setattr("sharpness.render.folder.draw_figure", list)
    monkeypatch.setattr("sharpness.render.folder.draw_table", lambda _: None)
    monkeypatch.setattr(
        "sharpness.render.folder.save_figure", lambda names, stem, _: drawn.update({stem.name: names}) or []
    )
    monkeypatch.setattr("sharpness.render.folder.save_table", lambda *_: [])
    draw_folder(runs / recipe)
    assert drawn.pop("table", None) is None
    assert {stem: len(names) for stem, names in drawn.items()} == families
    if recipe == "li-weight-decay":
        assert drawn["seed-0-profile"] == ["SB", "SB-decay", "LB", "LB-decay"]


def test_families_of_very_many_panels_are_left_to_single_drawings(tmp_path):
    for number in range(25):
        store.save(line(), tmp_path / "runs" / f"part-{number}" / "line.h5")
    assert draw_folder(tmp_path / "runs", ["svg"]) == []


def test_more_regimes_than_colours_have_their_table_alone(tmp_path):
    names = ["SB", *(f"LB-from-{epoch}" for epoch in range(9))]
    store.save(comparison("keskar-warm-start", names, warm_epochs=np.arange(10)), tmp_path / "comparison.h5")
    assert [path.name for path in draw_folder(tmp_path, ["svg"])] == ["table.svg", "table.md", "table.csv", "table.tex"]
    rows = read(tmp_path / "figures" / "table.csv")
    assert [row["regime"] for row in rows] == names
    assert [int(row["epochs before"]) for row in rows] == list(range(10))


def test_smoke_scale_is_said_in_table_and_figure():
    record = comparison(conditions={**REDUCED, "scale": "smoke", "probe_passed": False})
    assert any("smoke scale: a test of the program" in text for text in svg_free_texts(draw(record).figure))
    notes = comparison_table(record).notes
    assert "keskar-f1: smoke scale: a test of the program, not a result." in notes
    assert "keskar-f1: the probe for missed eigenpairs found one; λmax may be larger." in notes


def test_records_without_conditions_have_tables():
    table = comparison_table(comparison(conditions={}))
    assert table.notes == ["keskar-f1: scale not recorded, 3 trials."]
    assert draw_table(comparison(conditions={})).axes
