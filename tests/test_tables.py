"""Tables: what a CSV or NPZ file holds arrives standardised and numbered, and every fault is named by its place."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sharpness.data import load, load_table, table
from sharpness.errors import DataError

ROWS, COLUMNS = 20, 3
TEST = np.arange(ROWS) % 5 == 4


def numbers(rows: int = ROWS, key: int = 0) -> np.ndarray:
    """Columns of different size and place; float64."""
    return np.random.default_rng(key).normal(size=(rows, COLUMNS)) * [1, 100, 1e-3] + [0, -5, 1e3]


def labels(rows: int = ROWS) -> list[int]:
    """Three classes, each of them in both parts."""
    return [(row // 2) % 3 for row in range(rows)]


def lines(inputs: Any = None, targets: Any = None) -> list[str]:
    """A table as CSV without a header; numbers come back bit for bit."""
    inputs, targets = numbers() if inputs is None else inputs, labels() if targets is None else targets
    return [",".join([*map(repr, row.tolist()), str(target)]) for row, target in zip(inputs, targets, strict=True)]


def csv_file(folder: Path, content: list[str] | str | bytes, name: str = "table.csv") -> Path:
    text = "\n".join(content) + "\n" if isinstance(content, list) else content
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def npz_file(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "table.npz", **arrays)
    return folder / "table.npz"


def standardised(part: np.ndarray, train: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((part - train.mean(0)) / train.std(0)).float()


def assert_the_table(data: Any) -> None:
    """What ``numbers`` and ``labels`` are, split and standardised."""
    inputs, targets = numbers(), np.array(labels())
    for (found, classes), chosen in ((data.train, ~TEST), (data.test, TEST)):
        assert (found.dtype, classes.dtype) == (torch.float32, torch.int64)
        assert torch.equal(found, standardised(inputs[chosen], inputs[~TEST]))
        assert classes.tolist() == targets[chosen].tolist()
    assert data.classes == 3


# ---- CSV ----------------------------------------------------------------------------------------------------------

HEADER = "height,width,depth,class"


@pytest.mark.parametrize(
    "content",
    {
        "bare": lines(),
        "with a header": [HEADER, *lines()],
        "with a quoted header": ['"height, in m",width,,"class"', *lines()],
        "with a byte order mark": ["\ufeff" + HEADER, *lines()],
        "with a byte order mark alone": ["\ufeff" + lines()[0], *lines()[1:]],
        "as Windows ends lines": "\r\n".join([HEADER, *lines()]),
        "with blank lines": ["", HEADER, "", *lines()[:3], "  ", *lines()[3:], ""],
        "with spaces": [line.replace(",", " , ") for line in lines()],
        "with labels as floats": [line + ".0" for line in lines()],
    }.items(),
    ids=lambda item: item[0],
)
def test_a_csv_file_is_split_standardised_and_numbered(tmp_path, content):
    assert_the_table(load_table(csv_file(tmp_path, content[1])))


def test_a_table_is_named_after_its_file(tmp_path):
    data = load("table", csv_file(tmp_path, lines(), "Flowers.CSV"))
    assert (data.name, data.source, data.licence) == ("table", "Flowers.CSV", "the user's")


def test_every_fifth_row_is_for_testing(tmp_path):
    data = load_table(csv_file(tmp_path, lines(numbers(23), labels(23))))
    assert (len(data.train[0]), len(data.test[0])) == (19, 4)
    inputs = numbers(23)
    rest = inputs[np.arange(23) % 5 != 4]
    assert torch.equal(data.test[0], standardised(inputs[[4, 9, 14, 19]], rest))


def test_training_columns_have_mean_0_and_deviation_1(tmp_path):
    inputs = load_table(csv_file(tmp_path, lines())).train[0].double()
    assert inputs.mean(0).abs().max() < 1e-6
    assert (inputs.square().mean(0) - 1).abs().max() < 1e-6


def test_columns_that_are_constant_in_training_become_0(tmp_path):
    inputs = numbers()
    inputs[:, 0] = 0.1
    assert inputs[~TEST].std(axis=0)[0] > 0  # the mean is not exactly 0.1
    inputs[:, 1] = np.where(TEST, 7, 3)
    data = load_table(csv_file(tmp_path, lines(inputs)))
    assert not data.train[0][:, :2].any()
    assert not data.test[0][:, :2].any()
    assert data.train[0][:, 2].std() > 0.9


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["rose", "Iris", "ashe"], [2, 0, 1]),  # sorted as Python sorts text: capitals first
        (["10", "-3", "9"], [2, 0, 1]),
        (["007", "1e3", "8.0"], [0, 2, 1]),
        (["9007199254740993", "9007199254740992", "12345678901234567890123"], [1, 0, 2]),  # one float, two integers
        (["ö", "a b", "1_000"], [2, 1, 0]),
    ],
)
def test_labels_are_numbered_in_sorted_order(tmp_path, names, order):
    data = load_table(csv_file(tmp_path, lines(targets=[names[label] for label in labels()])))
    assert data.classes == 3
    for (_, targets), chosen in ((data.train, ~TEST), (data.test, TEST)):
        assert targets.tolist() == [order[label] for label in np.array(labels())[chosen]]


def test_a_table_of_a_thousand_classes_is_read(tmp_path):
    inputs, targets = numbers(6000), [f"class {row % 1000 // 5 * 5 + row % 6 % 5}" for row in range(6000)]
    data = load_table(csv_file(tmp_path, lines(inputs, targets)))
    assert data.classes == len(set(targets)) == 1000
    assert (int(data.train[1].min()), int(data.train[1].max())) == (0, 999)


def altered(row: int, change: Any) -> list[str]:
    return [change(line) if number == row else line for number, line in enumerate(lines())]


def with_cell(row: int, cell: str) -> list[str]:
    """The table with another cell in its second column."""
    return altered(row, lambda line: ",".join([line.split(",")[0], cell, *line.split(",")[2:]]))


CSV_FAULTS = {
    "empty": ("", "at least 10 rows; got 0"),
    "only names": ([HEADER], "at least 10 rows; got 0"),
    "nine rows": (lines()[:9], "at least 10 rows; got 9"),
    "one class": (lines(targets=[4] * ROWS), "at least 2 classes; got 1"),
    "one column": (["1"] * ROWS, "line 1: expected numbers and a label, separated by commas; got 1 cell."),
    "semicolons": ([line.replace(",", ";") for line in lines()], "separated by commas; got 1 cell"),
    "not a number": (with_cell(6, "red"), "line 7, column 2: expected a finite number; got 'red'"),
    "not a number below names": (
        [HEADER, *with_cell(6, "red")],
        "line 8, column 2 ('width'): expected a finite number",
    ),
    "not a number in the first row": (with_cell(0, "red"), "line 1, column 2: expected a finite number; got 'red'"),
    "empty cell": (with_cell(6, ""), "line 7, column 2: expected a finite number; got ''"),
    "nan": (with_cell(6, "nan"), "line 7, column 2: expected a finite number; got 'nan'"),
    "infinite": (with_cell(6, "-inf"), "line 7, column 2: expected a finite number; got '-inf'"),
    "beyond float64": (with_cell(6, "1e400"), "line 7, column 2: expected a finite number; got '1e400'"),
    "Python's underscores": (with_cell(6, "1_000"), "line 7, column 2: expected a finite number; got '1_000'"),
    "beyond what has a deviation": (with_cell(6, "1e300"), "numbers of column 2 (counted from 1) are too large"),
    "beyond float32 in a test row": (with_cell(4, "1e200"), "numbers of column 2 (counted from 1) are too large"),
    "short line": (
        altered(6, lambda line: line[: line.rindex(",")]),
        "line 7: expected 4 cells as in the first line; got 3",
    ),
    "long line": (altered(6, lambda line: line + ",1"), "line 7: expected 4 cells as in the first line; got 5 cells"),
    "regression": (lines(targets=[0.5 * row for row in range(ROWS)]), "line 2: expected a class in the last column"),
    "a label missing": (altered(6, lambda line: line[: line.rindex(",") + 1]), "line 7 has '', line 20 has '0'"),
    "a label nan": (altered(6, lambda line: line[: line.rindex(",") + 1] + "nan"), "line 7: expected a class"),
    "a text among numbers": (
        altered(6, lambda line: line[: line.rindex(",") + 1] + "?"),
        "line 7 has '?', line 20 has",
    ),
    "a blank among texts": (
        lines(targets=["" if row == 6 else "ab"[row % 2] for row in range(ROWS)]),
        "line 7: expected a class in the last column, a whole number or text; got ''",
    ),
    "unknown test labels": (
        lines(targets=["new" if row == 9 else "old" if row == 4 else "ab"[row % 2] for row in range(ROWS)]),
        "test labels that occur in training; 2 of them do not: 'new', 'old'.",
    ),
    "numbered rows as labels": (lines(targets=range(ROWS)), "4 of them do not: 4, 9, 14, 19."),
    "many unknown test labels": (lines(numbers(50), range(50)), "10 of them do not: 4, 9, 14, 19, 24, …."),
    "no UTF-8": ("\n".join(lines()).encode() + b"\xff", "expected a CSV file in UTF-8; reading it failed"),
    "an endless cell": (with_cell(6, "1" * 200_000), "reading it failed (field larger than field limit"),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_a_faulty_csv_file_is_refused_by_name_and_place(tmp_path, fault):
    content, complaint = CSV_FAULTS[fault]
    with pytest.raises(DataError, match=r"table\.csv") as caught:
        load_table(csv_file(tmp_path, content))
    assert complaint in str(caught.value)


def test_a_regression_target_is_told_what_tables_are_for(tmp_path):
    with pytest.raises(DataError, match=r"got '480.48'. Number the classes; for a quantity name the data regression"):
        load_table(csv_file(tmp_path, lines(targets=[480.48] * ROWS)))


def test_the_real_power_plant_is_a_regression(real_data):
    file = real_data / "tables" / "power_plant.csv"
    if not file.exists():
        pytest.skip(f"no {file}")
    with pytest.raises(
        DataError,
        match=r"power_plant.csv, line 2: .* got '480.48'. Number the classes; for a quantity name the data regression",
    ):
        load_table(file)


# ---- NPZ ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets",
    [
        np.array(labels(), np.uint8),
        np.array(labels(), np.float32),
        np.array(["cat", "dog", "eel"])[labels()],
        np.array([b"cat", b"dog", b"eel"])[labels()],
        np.array([-1, 0, 2**63 - 1])[labels()],
    ],
    ids=lambda targets: targets.dtype.str,
)
def test_an_npz_file_is_split_standardised_and_numbered(tmp_path, targets):
    assert_the_table(load_table(npz_file(tmp_path, inputs=numbers(), targets=targets, others=np.zeros(3))))


def test_both_kinds_of_file_give_the_same_bytes(tmp_path):
    compressed = tmp_path / "compressed.npz"
    np.savez_compressed(compressed, inputs=numbers(), targets=labels())
    assert load_table(compressed).fingerprint == load_table(csv_file(tmp_path, lines())).fingerprint


def test_a_test_set_of_its_own_is_kept_whole_and_standardised_by_training(tmp_path):
    inputs, others = numbers().astype(np.float32), numbers(7, key=1)
    data = load_table(
        npz_file(tmp_path, inputs=inputs, targets=labels(), test_inputs=others, test_targets=[2, 0, 1, 2, 2, 0, 0])
    )
    train = inputs.astype(np.float64)
    assert torch.equal(data.train[0], standardised(train, train))
    assert torch.equal(data.test[0], standardised(others, train))
    assert data.train[1].tolist() == labels()
    assert data.test[1].tolist() == [2, 0, 1, 2, 2, 0, 0]


def test_whole_inputs_are_taken_as_numbers(tmp_path):
    inputs = np.random.default_rng(0).integers(0, 9, (ROWS, 2))
    data = load_table(npz_file(tmp_path, inputs=inputs, targets=labels()))
    assert torch.equal(data.test[0], standardised(inputs[TEST], inputs[~TEST].astype(float)))


def with_number(value: float) -> np.ndarray:
    inputs = numbers()
    inputs[6, 1] = value
    return inputs


NPZ_FAULTS = {
    "no targets": ({"inputs": numbers()}, "expected the arrays inputs, targets; there is no targets"),
    "no arrays": ({}, "there is no inputs and no targets"),
    "half a test set": (
        {"inputs": numbers(), "targets": labels(), "test_inputs": numbers(3)},
        "expected the arrays inputs, targets, test_inputs, test_targets; there is no test_targets",
    ),
    "no columns": (
        {"inputs": np.zeros((ROWS, 0)), "targets": labels()},
        "shape (N, d) and targets of shape (N,); got (20, 0)",
    ),
    "one dimension": ({"inputs": numbers()[:, 0], "targets": labels()}, "of shape (N,); got (20,) and (20,)"),
    "images": ({"inputs": np.zeros((ROWS, 2, 2)), "targets": labels()}, "of shape (N,); got (20, 2, 2) and (20,)"),
    "targets in a column": ({"inputs": numbers(), "targets": np.zeros((ROWS, 1))}, "got (20, 3) and (20, 1)"),
    "unequal lengths": ({"inputs": numbers(), "targets": labels()[1:]}, "got (20, 3) and (19,)"),
    "nine rows": ({"inputs": numbers(9), "targets": labels(9)}, "at least 10 rows; got 9"),
    "nine rows to train on": (
        {"inputs": numbers(9), "targets": labels(9), "test_inputs": numbers(3), "test_targets": labels(3)},
        "at least 10 rows; got 9",
    ),
    "no rows to test on": (
        {"inputs": numbers(), "targets": labels(), "test_inputs": numbers(0), "test_targets": np.zeros(0, int)},
        "test_inputs of shape (1 or more, 3), as many columns as inputs; got (0, 3)",
    ),
    "other columns to test on": (
        {"inputs": numbers(), "targets": labels(), "test_inputs": numbers(3)[:, :2], "test_targets": labels(3)},
        "test_inputs of shape (1 or more, 3), as many columns as inputs; got (3, 2)",
    ),
    "unknown test labels": (
        {"inputs": numbers(), "targets": labels(), "test_inputs": numbers(3), "test_targets": [0, 8, -1]},
        "2 of them do not: -1, 8.",
    ),
    "one class": ({"inputs": numbers(), "targets": np.ones(ROWS)}, "at least 2 classes; got 1"),
    "nan": (
        {"inputs": with_number(np.nan), "targets": labels()},
        "got nan in row 6, column 1 of inputs (counted from 0)",
    ),
    "infinite": ({"inputs": with_number(-np.inf), "targets": labels()}, "got -inf in row 6, column 1 of inputs"),
    "infinite in the test set": (
        {"inputs": numbers(), "targets": labels(), "test_inputs": with_number(np.inf), "test_targets": labels()},
        "got inf in row 6, column 1 of test_inputs",
    ),
    "text for inputs": (
        {"inputs": numbers().astype(str), "targets": labels()},
        "expected numbers in inputs; got dtype <U",
    ),
    "complex inputs": ({"inputs": numbers() + 1j, "targets": labels()}, "in inputs; got dtype complex128"),
    "regression": ({"inputs": numbers(), "targets": numbers()[:, 0]}, "whole numbers or text in targets; got 0.12"),
    "a target nan": ({"inputs": numbers(), "targets": [np.nan, *labels()[1:]]}, "in targets; got nan in row 0"),
    "an infinite target": ({"inputs": numbers(), "targets": [np.inf, *labels()[1:]]}, "in targets; got inf in row 0"),
    "dates": ({"inputs": numbers(), "targets": np.arange(ROWS).astype("M8[D]")}, "in targets; got dtype datetime64[D]"),
    "objects as inputs": ({"inputs": numbers().astype(object), "targets": labels()}, "without arrays of objects"),
    "objects as targets": ({"inputs": numbers(), "targets": np.array(labels(), object)}, "without arrays of objects"),
}


@pytest.mark.parametrize("fault", NPZ_FAULTS)
def test_a_faulty_npz_file_is_refused_by_name_and_place(tmp_path, fault):
    arrays, complaint = NPZ_FAULTS[fault]
    with pytest.raises(DataError, match=r"table\.npz") as caught:
        load_table(npz_file(tmp_path, **arrays))
    assert complaint in str(caught.value)


class Marking:
    """Touches a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def test_objects_in_an_npz_file_are_not_unpickled(tmp_path):
    marker = tmp_path / "marker"
    file = npz_file(tmp_path, inputs=np.array([Marking(marker)], object), targets=labels())
    with pytest.raises(DataError, match="without arrays of objects"):
        load_table(file)
    file.write_bytes(pickle.dumps(Marking(marker)))
    with pytest.raises(DataError, match="it is no zip archive"):
        load_table(file)
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0, 10, 300, 800])
def test_a_damaged_npz_file_is_refused(tmp_path, kept):
    file = npz_file(tmp_path, inputs=numbers(), targets=labels())
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"table.npz: expected arrays .* reading it failed"):
        load_table(file)


def test_a_changed_byte_in_an_npz_file_is_noticed(tmp_path):
    file = npz_file(tmp_path, inputs=numbers(), targets=labels())
    content = bytearray(file.read_bytes())
    content[250] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="reading it failed"):
        load_table(file)


# ---- which file ---------------------------------------------------------------------------------------------------


def test_the_environment_variable_counts_where_it_names_a_file(tmp_path, monkeypatch):
    file = csv_file(tmp_path, lines())
    monkeypatch.setenv("SHARPNESS_DATA", str(file))
    assert_the_table(load("table"))
    monkeypatch.setenv("SHARPNESS_DATA", str(tmp_path))
    assert_the_table(load_table(str(file)))
    with pytest.raises(DataError, match=r"which is no file. Name the file itself"):
        load_table()


def test_without_a_file_the_way_to_name_one_is_told(monkeypatch):
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    with pytest.raises(DataError, match=r"names none. Name .* --data-dir \(in Python path= .* folder= of load\)"):
        load("table")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    csv_file(tmp_path, lines())
    assert_the_table(load_table("~/table.csv"))


def test_other_files_folders_and_none_at_all_are_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name, complaint in (
        ("a.txt", "ends in .csv or .npz"),
        ("a.csv", "there is none"),
        ("folder.csv", "is a folder"),
    ):
        with pytest.raises(DataError, match=name) as caught:
            load_table(tmp_path / name)
        assert complaint in str(caught.value)


def test_the_reader_gives_arrays(tmp_path):
    (inputs, targets), _, classes = table.read(csv_file(tmp_path, lines()))
    assert (inputs.dtype, targets.dtype, classes) == (np.float32, np.int64, 3)
