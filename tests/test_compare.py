"""Two sets of checkpoints: the statistics by hand and against SciPy, what is paired with what, and what people see."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Foreign, invoke, results
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_render import NAN, comparison, texts
from test_resume import KILLED, disturbed

import sharpness as sh
from sharpness import store
from sharpness.checkpoints import Minimizer
from sharpness.contrasts import holm, paired, sign_flips, unpaired
from sharpness.recipes import AnalysisPlan, Source, analyse_checkpoints, compare_checkpoints
from sharpness.recipes.sets import checkpoints_in, set_names
from sharpness.records import Comparison
from sharpness.render import comparison_table, differences_table, draw
from sharpness.render.differences import contrasts

pytest_plugins = "command_line"
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL, LARGE = np.array([1.0, 2.0, 4.0]), np.array([2.0, 6.0, 5.0])
PLAN = AnalysisPlan(eigenpairs=2, epsilons=(1e-3,), subspace=3, iterations=2, restarts=1)
QUICK = ("--k", "2", "--subspace", "0", "--restarts", "1", "--epsilon", "1e-3", "--probes", "4")


# Statistics


def test_paired_statistics_are_scipys() -> None:
    found, test = paired(SMALL, LARGE), stats.ttest_rel(LARGE, SMALL)
    assert found.p == pytest.approx(test.pvalue, rel=1e-12)
    assert found.difference == pytest.approx((2.0, *test.confidence_interval()), rel=1e-12)
    logs = stats.ttest_rel(np.log(LARGE), np.log(SMALL)).confidence_interval()
    assert found.ratio == pytest.approx((7.5 ** (1 / 3), *np.exp(logs)), rel=1e-12)


def test_paired_statistics_by_hand() -> None:
    """d = 1, 4, 1: mean 2, s = √3, t = 2; with two degrees of freedom p = 1 − t/√(2 + t²)."""
    found = paired(np.zeros(3), np.array([1.0, 4.0, 1.0]))
    assert found.p == pytest.approx(1 - 2 / math.sqrt(6), rel=1e-12)
    assert (found.larger, found.smaller, found.pairs) == (3, 0, 3)
    assert (found.exact, found.least) == (0.25, 0.25)
    assert math.isnan(found.ratio.value)  # of zeros


def test_differences_that_are_equal_but_for_rounding_are_no_evidence() -> None:
    found = paired(np.array([0.9, 0.8]), np.array([0.92, 0.82]))
    assert found.difference.value == pytest.approx(0.02)
    assert math.isnan(found.p)
    assert found.exact == 0.5


def test_unpaired_statistics_are_scipys() -> None:
    first, second = np.array([1.0, 2.0, 4.0, 7.0]), np.array([5.0, 9.0, 30.0])
    found, test = unpaired(first, second), stats.ttest_ind(second, first, equal_var=False)
    assert found.p == pytest.approx(test.pvalue, rel=1e-12)
    assert found.difference[1:] == pytest.approx(tuple(test.confidence_interval()), rel=1e-12)
    assert found.exact == pytest.approx(stats.mannwhitneyu(first, second, method="exact").pvalue, rel=1e-12)
    logs = stats.ttest_ind(np.log(second), np.log(first), equal_var=False).confidence_interval()
    assert found.ratio[1:] == pytest.approx(tuple(np.exp(logs)), rel=1e-12)
    assert found.pairs == 0


def test_equal_numbers_have_an_exact_rank_test_too() -> None:
    """1, 1 against 1, 2: of the six ways to choose two, three hold the 2, and none is higher; twice that is 1."""
    assert unpaired(np.ones(2), np.array([1.0, 2.0])).exact == 1.0
    apart = unpaired(np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0]))
    assert (apart.exact, apart.least) == (0.1, 0.1)
    assert apart.difference == (1.0, 1.0, 1.0)


def test_large_sets_have_the_normal_rank_test() -> None:
    first, second = np.arange(30.0), np.arange(30.0) + 3.5
    assert unpaired(first, second).exact == stats.mannwhitneyu(first, second, method="asymptotic").pvalue


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=9))
def test_sign_flips_are_scipys_permutations(differences: list[int]) -> None:
    d = np.array(differences, float)

    def mean(x: np.ndarray, y: np.ndarray, axis: int) -> Any:
        return (x - y).mean(axis)

    found = stats.permutation_test(
        (d, np.zeros_like(d)), mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    assert sign_flips(d) == pytest.approx(found.pvalue, rel=1e-12)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=8), st.floats(0.2, 5))
def test_a_constant_factor_is_the_ratio_and_its_interval_a_point(values: list[float], factor: float) -> None:
    first = np.array(values)
    found = paired(first, factor * first)
    assert found.ratio == pytest.approx((factor,) * 3, rel=1e-9)
    back = paired(factor * first, first)
    assert back.difference.value == pytest.approx(-found.difference.value)
    assert (back.larger, back.smaller) == (found.smaller, found.larger)


def test_holm_by_hand() -> None:
    """0.01 · 4, then max(0.04, 0.02 · 3), then max(0.06, 0.025 · 2), then max(0.06, 0.9)."""
    assert holm([0.02, 0.01, 0.9, 0.025]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([NAN, 0.01])[1] == 0.01


def test_one_pair_and_none_have_no_statistics() -> None:
    one = paired(np.array([2.0]), np.array([6.0]))
    assert (one.difference.value, one.ratio.value, one.pairs) == (4.0, pytest.approx(3.0), 1)
    assert all(math.isnan(value) for value in (one.p, one.exact, one.least, one.difference.low, one.ratio.high))
    none = paired(np.array([NAN]), np.array([1.0]))
    assert none.pairs == 0
    assert math.isnan(none.difference.value)
    alone = unpaired(np.array([1.0]), np.array([2.0, 4.0]))
    assert alone.difference.value == 2.0
    assert all(math.isnan(value) for value in (alone.p, alone.exact, alone.difference.low))


def test_what_is_not_known_is_left_out() -> None:
    first, second = np.append(SMALL, [NAN, 3.0]), np.append(LARGE, [1.0, np.inf])
    assert paired(first, second) == paired(SMALL, LARGE)
    assert unpaired(np.append(SMALL, NAN), LARGE) == unpaired(SMALL, LARGE)


def test_equal_pairs_and_wide_ratios_are_numbers() -> None:
    same = paired(SMALL, SMALL)
    assert (same.difference, same.exact) == ((0.0, 0.0, 0.0), 1.0)
    assert math.isnan(same.p)
    wide = paired(np.array([1e-100, 1e100]), np.array([1e100, 1e99]))
    assert wide.ratio.high == math.inf
    with pytest.raises(sh.ShapeError, match="expected pairs"):
        paired(SMALL, LARGE[:2])


# Which checkpoints


def test_folders_files_and_patterns_name_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("net-10.pt", "net-9.pt", "seed-0/SB/end.safetensors", "seed-1/SB/end.safetensors", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints_in(str(tmp_path))] == ["net-9.pt", "net-10.pt"]
    assert checkpoints_in(str(tmp_path / "net-9.pt")) == [tmp_path / "net-9.pt"]
    ends = [tmp_path / f"seed-{seed}/SB/end.safetensors" for seed in (0, 1)]
    assert checkpoints_in(str(tmp_path / "seed-*/SB/end.safetensors")) == ends
    monkeypatch.chdir(tmp_path)
    assert checkpoints_in("seed-*/SB/*") == [path.relative_to(tmp_path) for path in ends]
    (tmp_path / "seed-0" / "config.json").touch()
    assert checkpoints_in(str(tmp_path / "seed-0")) == [tmp_path / "seed-0"]
    assert tmp_path / "seed-0" in checkpoints_in(str(tmp_path))
    for nothing in ("seed-1", "other-*"):
        with pytest.raises(sh.CheckpointError, match="a pattern in quotes"):
            checkpoints_in(nothing)


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (("runs/seed-*/SB/minimizer.safetensors", "runs/seed-*/LB/minimizer.safetensors"), ("SB", "LB")),
        (("runs/small-*.pt", "runs/large-*.pt"), ("small", "large")),
        (("small", "large"), ("small", "large")),
        (("runs/seed-*/SB/end.pt", "runs/seed-[01]/LB/end.pt"), ("SB", "LB")),
        (("runs/*.pt", "runs/*.pth"), ("first", "second")),
    ],
)
def test_sets_are_called_by_what_differs(places: tuple[str, str], names: tuple[str, str]) -> None:
    assert set_names(*places) == names


def sets_of(foreign: Foreign, sizes: tuple[int, int] = (2, 2)) -> dict[str, list[Path]]:
    """Two sets of weights near each other."""
    return {
        name: [
            foreign.save(f"{name}-{number}.pt", lambda t, f=factor + 0.1 * number: t * f)
            for number in range(1, size + 1)
        ]
        for name, size, factor in zip(("SB", "LB"), sizes, (0.8, 1.2), strict=True)
    }


def compared(foreign: Foreign, out: Path, sets: dict[str, list[Path]] | None = None, **changes: Any) -> Comparison:
    options = {"source": Source(foreign.problem("function")), "probes": 4, **changes}
    return compare_checkpoints(sets or sets_of(foreign), PLAN, out, **options).comparison


def test_a_comparison_is_what_each_checkpoint_gives_alone(foreign: Foreign, tmp_path: Path) -> None:
    sets = sets_of(foreign)
    record = compared(foreign, tmp_path / "out", sets)
    assert (record.regime.tolist(), record.seed.tolist(), record.over) == (["SB", "LB"], [1, 2], "pairs")
    alone = analyse_checkpoints(
        [path for paths in sets.values() for path in paths],
        PLAN,
        tmp_path / "alone",
        source=Source(foreign.problem("function")),
    )
    made = Source(foreign.problem("function")).make()
    train = made.objectives(device="cpu", dtype=torch.float32)[0]["train"]
    for row, (name, paths) in enumerate(sets.items()):
        for column, path in enumerate(paths):
            one = alone[path.stem]
            assert record.eigenvalues[row, column].tolist() == one["eigenvalues"]
            assert record.residuals[row, column].tolist() == one["residuals"]
            assert record.loss[row, column].tolist() == [one["train loss"], one["test loss"]]
            assert record.accuracy[row, column].tolist() == [one["train accuracy"], one["test accuracy"]]
            for mode, policy in enumerate(record.batchnorm):
                assert record.gradient_norm[row, column, mode] == one["gradient norm"][policy]
                for place, space in enumerate(record.space):
                    case = one["epsilon-sharpness"][f"{policy}-{space}-0.001"]
                    found = record.sharpness[row, column, mode, place, 0].tolist()
                    assert found == [case["sharpness"], case["stronger"]]
                    assert record.first_order[row, column, mode, place, 0] == case["first order"]
            point = Source(foreign.problem("function")).point(path, made)
            assert record.weight_norm[row, column] == float(point.theta.double().norm()), name
            hessian = sh.Hessian(train, point)
            pairs = sh.eigenpairs(hessian, 2)
            assert record.trace is not None
            assert record.trace[row, column] == sh.trace(hessian, samples=4, pairs=pairs).value
    assert np.isnan(record.distance).all()
    assert np.isnan(record.epochs).all()


def test_sets_of_other_sizes_are_not_paired(foreign: Foreign, tmp_path: Path) -> None:
    sets = sets_of(foreign, (2, 3))
    with pytest.raises(sh.ShapeError, match=r"got 2 in SB and 3 in LB\. Give --unpaired"):
        compared(foreign, tmp_path / "out", sets)
    record = compared(foreign, tmp_path / "out", sets, paired=False)
    assert record.over == "checkpoints"
    assert np.isnan(record.loss[0, 2]).all()
    table = {str(row[0]): row for row in differences_table(record).rows}
    expected = unpaired(record.loss[0, :2, 0], record.loss[1, :, 0])
    found = {one.measure.name: one.contrast for one in contrasts(record)}
    assert found["train loss (nat)"] == expected
    assert [cell.columns["n"] for cell in table["λmax"][1:3]] == [2, 3]
    assert "Mann–Whitney" in differences_table(record).head[-1]
    assert "seeds" not in "".join(text for row in comparison_table(record).texts for text in row)


def test_the_same_weights_twice_are_refused(foreign: Foreign, tmp_path: Path) -> None:
    sets = sets_of(foreign)
    again = foreign.save("again.pt", lambda t: t * 0.9)  # as the first of SB
    for wrong in ({**sets, "LB": [again, sets["LB"][0]]}, {**sets, "SB": [sets["SB"][0], again]}):
        with pytest.raises(sh.ShapeError, match=r"same weights in .*SB-1\.pt and .*again\.pt"):
            compared(foreign, tmp_path / "out", wrong)
    assert not (tmp_path / "out").exists()


FROZEN = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    return model, nn.CrossEntropyLoss(), (torch.randn(20, 4), torch.arange(20) % 3)
"""


def test_checkpoints_that_differ_in_frozen_weights_are_not_the_same(tmp_path: Path) -> None:
    """Nor does one that lacks some get those of the one before."""
    (tmp_path / "frozen.py").write_text(FROZEN)
    source = Source(f"{tmp_path / 'frozen.py'}:make", allow=("0.*",))
    whole = source.make().model.state_dict()
    states = {"a": {**whole, "0.bias": whole["0.bias"] + 1}, "b": {n: t for n, t in whole.items() if n[0] == "2"}}
    for name, state in states.items():
        torch.save(state, tmp_path / f"{name}.pt")
    record, remarks = compare_checkpoints(
        {name: [tmp_path / f"{name}.pt"] for name in states}, PLAN, tmp_path / "out", source=source
    )
    made = source.make()
    objective = made.objectives()[0]["train"]
    assert record.loss[1, 0, 0] == objective.value(sh.Point.of(made.model, objective.space))
    assert record.loss[0, 0, 0] != record.loss[1, 0, 0]
    assert record.weight_norm[0, 0] == record.weight_norm[1, 0]
    assert any("b.pt: 2 kept as the model had them" in remark for remark in remarks)


def test_minimizers_of_other_data_are_refused(tmp_path: Path) -> None:
    files = [Minimizer({"w": torch.ones(2) * n}, {}, {"data": n}).save(tmp_path / f"{n}.safetensors") for n in (1, 2)]
    ended = invoke("compare", *files, *QUICK, "--out", tmp_path / "out")
    assert ended.code == 2
    assert "one model and the same data" in ended.stderr
    assert "fingerprint of the data (1 and 2)" in ended.stderr
    assert not (tmp_path / "out").exists()


# What people see


def test_the_command_prints_pairs_numbers_and_sentences(
    foreign: Foreign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # room for the long names of temporary folders
    sets = sets_of(foreign)
    command = ("compare", foreign.folder / "SB-*.pt", foreign.folder / "LB-*.pt", *QUICK)
    options = ("--problem", foreign.problem("function"), "--out", tmp_path / "out")
    shown = invoke(*command, *options)
    assert shown.code == 0, shown
    for first, second in zip(*sets.values(), strict=True):
        line = next(line for line in shown.stdout.splitlines() if str(first) in line)
        assert str(second) in line
    record = store.load(tmp_path / "out" / "comparison.h5")
    for one in contrasts(record):
        assert one.words in shown.stdout
    assert "cannot be less than 0.5" in shown.stdout
    printed = json.loads(invoke(*command, *options, "--json").stdout)
    assert printed["eigenvalues"] == record.eigenvalues.tolist()
    about = printed["differences"]["λmax"]
    expected = paired(*record.eigenvalues[:, :, 0])
    assert about["difference"] == list(expected.difference)
    assert (about["p"], about["exact"], about["pairs"]) == (expected.p, expected.exact, 2)
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"comparison.svg", "differences.md", "differences.csv", "differences.tex", "table.md"} <= names
    assert not any("trace" in name or "eigenpairs" in name for name in names)


@pytest.mark.usefixtures("no_figures")
def test_names_are_given_or_refused(foreign: Foreign, tmp_path: Path) -> None:
    sets_of(foreign, (1, 1))
    command = ("compare", foreign.folder / "SB-1.pt", foreign.folder / "LB-1.pt", *QUICK)
    options = ("--problem", foreign.problem("function"), "--out", tmp_path / "out")
    assert invoke(*command, *options, "--names", "one").code == 2
    ended = invoke(*command, *options, "--names", "small,large")
    assert "large against small, 1 pair" in ended.stdout
    assert "no statistics" in ended.stdout
    table = differences_table(store.load(tmp_path / "out" / "comparison.h5"))
    assert all(cell.text == "n/a" for row in table.rows for cell in row[6:])


@pytest.mark.usefixtures("no_figures")
def test_killed_it_goes_on_and_ends_with_the_same_bits(foreign: Foreign, tmp_path: Path) -> None:
    sets_of(foreign, (1, 1))
    command = ("compare", foreign.folder / "SB-1.pt", foreign.folder / "LB-1.pt", *QUICK)
    options = ("--problem", foreign.problem("function"), "--quiet", "--out")
    troubles: list[Any] = [
        ["flush", "SB-1/eigenpairs.products.h5", 9, "SIGKILL"],
        ["replace", "LB-1/eigenpairs.h5", 1, "SIGKILL"],  # pairs and trace are known, and not there
        ["replace", "comparison.h5", 1, "SIGKILL"],
        ["nothing"],
    ]
    *ends, last = disturbed(troubles, *command, *options, tmp_path / "killed")
    assert [end.code for end in ends] == [KILLED] * len(ends), ends
    assert last.code == 0, last
    assert invoke(*command, *options, tmp_path / "whole").code == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def of_checkpoints(**changes: Any) -> Comparison:
    """As of three pairs from elsewhere: SB 1, 2, 3 and LB ten times those."""
    checkpoints = {name: ["a", "b", "c"] for name in ("SB", "LB")}
    unknown = np.full((2, 3), NAN)
    given = {"distance": unknown, "epochs": unknown, "recipe": "compare", "over": "pairs"}
    about = {"checkpoints": checkpoints, "measured_on": "60 training examples"}
    trace = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    return comparison(**{**given, "conditions": about, "trace": trace, "trace_error": 0 * trace, **changes})


def test_every_measure_is_told_apart_and_counted() -> None:
    table = differences_table(of_checkpoints())
    words = {str(row[0]): str(row[3]) for row in table.rows}
    assert words["λmax"] == words["λ2"] == "LB larger in 3 of 3 pairs, ratio 10.0 [10.0, 10.0]"
    assert words["trace of the Hessian"].startswith("LB larger in 1 of 3 pairs (1 equal), ratio 1.00 [")
    assert words["test accuracy (%)"].startswith("LB smaller in 3 of 3 pairs, difference -")
    assert words["gap, test − train loss (nat)"].startswith("LB larger in 3 of 3 pairs, difference ")
    assert {"first-order part (%), batch norm: eval, full, ε = 0.001", "weight norm ‖θ‖"} <= set(words)
    assert not any("distance" in name or "epochs" in name for name in words)
    looked = sum(not math.isnan(cell.p) for row in table.rows for cell in row[6:7])
    assert table.notes[0].startswith(f"{looked} measures were looked at")
    assert "cannot be less than 0.25" in "".join(table.notes)
    assert "saved checkpoints, 3 of SB and 3 of LB, in pairs" in "".join(table.notes)


def test_a_comparison_over_seeds_has_statistics_too() -> None:
    table = differences_table(comparison())
    assert [str(row[3]) for row in table.rows if row[0] == "λmax"] == [
        "LB larger in 3 of 3 pairs, ratio 10.0 [10.0, 10.0]"
    ]
    with pytest.raises(sh.ShapeError, match="two sets"):
        differences_table(comparison(regime=np.array(["SB"])))


def test_figure_and_tables_come_from_the_file_alone(tmp_path: Path) -> None:
    store.save(of_checkpoints(), tmp_path / "comparison.h5")
    assert invoke("figures", tmp_path).code == 0
    with (tmp_path / "figures" / "differences.csv").open() as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    assert float(rows["λmax"]["LB/SB value"]) == pytest.approx(10)
    assert float(rows["λmax"]["p (sign flips)"]) == 0.25
    assert invoke("report", tmp_path).code == 0
    assert "in 3 of 3 pairs" in (tmp_path / "report.html").read_text()


def test_the_figure_says_checkpoints_and_the_table_leaves_out_what_is_not_known() -> None:
    assert any("dots: single checkpoints" in text for text in texts(draw(of_checkpoints()).figure))
    quantities = [str(row[0]) for row in comparison_table(of_checkpoints()).rows]
    assert "trace of the Hessian" in quantities
    assert not any("distance" in name or "epochs" in name for name in quantities)
