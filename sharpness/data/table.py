"""Tables with a class or a quantity in every row, out of a CSV or an NPZ file."""

from __future__ import annotations

import csv
import math
import zipfile
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from sharpness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FEWEST = 10  # rows
HOLD_OUT = 5  # where a file names no test set, every fifth row is in it
ARRAYS = ("inputs", "targets")
TEST_ARRAYS = tuple(f"test_{name}" for name in ARRAYS)
_CLASSES = "Number the classes; for a quantity name the data regression instead of table."

Part = tuple[np.ndarray, list[Any]]  # inputs (N, d), float64 and finite, and N labels: integers or texts, or floats


def read(file: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], int]:
    """Train and test set, each as standardised inputs (N, d) float32 and targets (N,) int64, and how many classes."""
    train, test = _parts(file, quantities=False)
    inputs = _standardised(train[0], test[0], file)
    targets, classes = _numbered(train[1], test[1], file)
    return (inputs[0], targets[0]), (inputs[1], targets[1]), classes


def read_quantities(file: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train and test set, each as standardised inputs (N, d) and targets (N,), both float32."""
    train, test = _parts(file, quantities=True)
    inputs = _standardised(train[0], test[0], file)
    quantities = [np.array(labels, float)[:, None] for _, labels in (train, test)]
    targets = _standardised(quantities[0], quantities[1], file)
    if not targets[0].any():
        raise DataError(f"{file}: expected a quantity to predict; it is the same in every training row.")
    return (inputs[0], targets[0][:, 0]), (inputs[1], targets[1][:, 0])


def _parts(file: Path, *, quantities: bool) -> tuple[Part, Part]:
    """Train and test part of a file of either kind."""
    readers = {".csv": read_csv, ".npz": read_npz}
    if file.suffix.lower() not in readers:
        raise DataError(f"expected a table in a file that ends in .csv or .npz; got {file}. Convert it to one of them.")
    if not file.is_file():
        raise DataError(f"expected a table at {file}; there is {'a folder' if file.exists() else 'none'}. Name a file.")
    return readers[file.suffix.lower()](file, quantities=quantities)


def _split(inputs: np.ndarray, labels: list[Any], file: Path) -> tuple[Part, Part]:
    """Rows 4, 9, 14, … as the test part, all others as the training part."""
    _check_count(inputs, file)
    held_out = np.arange(len(inputs)) % HOLD_OUT == HOLD_OUT - 1
    train, test = (
        (inputs[chosen], [labels[row] for row in np.flatnonzero(chosen)]) for chosen in (~held_out, held_out)
    )
    return train, test


def _check_count(inputs: np.ndarray, file: Path) -> None:
    if len(inputs) < FEWEST:
        raise DataError(f"{file}: expected at least {FEWEST} rows; got {len(inputs)}. Add more.")


def _standardised(train: np.ndarray, test: np.ndarray, file: Path) -> list[np.ndarray]:
    """Both parts in float32, less the training part's mean, by its standard deviation; its constant columns are 0."""
    # by comparison: rounding gives many constants another mean, and with it a small deviation to divide by
    constant = train.max(axis=0) == train.min(axis=0)
    with np.errstate(all="ignore"):
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        parts = [np.where(constant, 0, (part - mean) / deviation).astype(np.float32) for part in (train, test)]
    finite = [constant | np.isfinite(deviation), *(np.isfinite(part).all(axis=0) for part in parts)]
    wrong = np.flatnonzero(~np.all(finite, axis=0))
    if wrong.size:
        raise DataError(
            f"{file}: expected columns that can be standardised; the numbers of column {wrong[0] + 1} (counted from 1) "
            f"are too large or too close to each other. Give them in another unit."
        )
    return parts


def _numbered(train: list[Any], test: list[Any], file: Path) -> tuple[list[np.ndarray], int]:
    """Both lists of labels as numbers from 0, in the sorted order of the training labels, and how many these are."""
    classes = sorted(set(train))
    if len(classes) < 2:
        raise DataError(f"{file}: expected at least 2 classes; got {len(classes)} in the training rows. {_CLASSES}")
    unknown = sorted(set(test) - set(classes))
    if unknown:
        some = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        raise DataError(
            f"{file}: expected test labels that occur in training; {len(unknown)} of them do not: {some}. "
            f"Leave these rows out or add more of them; where no test arrays are given every fifth row is for testing."
        )
    numbers = {label: number for number, label in enumerate(classes)}
    return [np.array([numbers[label] for label in labels], np.int64) for labels in (train, test)], len(classes)


# ---- CSV ----------------------------------------------------------------------------------------------------------


def read_csv(file: Path, *, quantities: bool = False) -> tuple[Part, Part]:
    """Train and test part of numbers with a label in the last column, below a line of names or without one.

    ``quantities``: the labels are numbers of any size.
    """
    names: list[str] = []
    values, labels = array("d"), []
    lines: list[int] = []
    width = 0
    for line, cells in _records(file):
        width = width or len(cells)
        if len(cells) != width or width < 2:
            wanted = f"{width} cells as in the first line" if width > 1 else "numbers and a label, separated by commas"
            got = f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}"
            raise DataError(f"{file}, line {line}: expected {wanted}; got {got}. Correct the line.")
        if not names and not lines and all(_number(cell) is None for cell in cells[:-1]):
            names = cells
            continue
        values.extend(_numbers(cells[: None if quantities else -1], names, f"{file}, line {line}"))
        labels.append(cells[-1].strip())
        lines.append(line)
    table = np.array(values).reshape(len(lines), -1 if lines else 1)
    if quantities:
        return _split(table[:, :-1], table[:, -1].tolist(), file)
    return _split(table, _csv_labels(labels, lines, file), file)


def _records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The number, from 1, and the cells of every line that is not blank."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:  # some programs begin with a byte order mark
            lines = csv.reader(stream)
            for cells in lines:
                if len(cells) > 1 or any(cell.strip() for cell in cells):
                    yield lines.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file}: expected a CSV file in UTF-8; reading it failed ({error}). Save it as one."
        ) from error


def _numbers(cells: list[str], names: list[str], place: str) -> list[float]:
    """The numbers in the cells of a line, all finite."""
    numbers = [_number(cell) for cell in cells]
    finite = [number for number in numbers if number is not None and math.isfinite(number)]
    if len(finite) == len(cells):
        return finite
    column = next(c for c, number in enumerate(numbers) if number is None or not math.isfinite(number))
    name = f" ({names[column].strip()!r})" if names else ""
    raise DataError(
        f"{place}, column {column + 1}{name}: expected a finite number; got {cells[column].strip()[:40]!r}. "
        f"Fill it in or leave the line out; write names of kinds as columns of 0 and 1."
    )


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # 1_000 is a number to Python alone
    except ValueError:
        return None


def _csv_labels(cells: list[str], lines: list[int], file: Path) -> list[Any]:
    """All labels as integers, or all as they are."""
    numbers = [_number(cell) for cell in cells]
    written = {number is None: (line, cell) for line, cell, number in zip(lines, cells, numbers, strict=True)}
    if len(written) == 2:
        (line, text), (other, number) = written[True], written[False]
        raise DataError(
            f"{file}: expected labels in the last column that are all numbers or all text; line {line} has {text!r}, "
            f"line {other} has {number!r}. Write all as text, or leave lines without a class out."
        )
    for line, cell, value in zip(lines, cells, numbers, strict=True):
        if not cell or (value is not None and not value.is_integer()):
            raise DataError(
                f"{file}, line {line}: expected a class in the last column, a whole number or text; got {cell!r}. "
                f"{_CLASSES}"
            )
    return [_integer(cell) for cell in cells] if False in written else cells


def _integer(cell: str) -> int:
    try:
        return int(cell)  # exact beyond 2**53
    except ValueError:
        return int(float(cell))


# ---- NPZ ----------------------------------------------------------------------------------------------------------


def read_npz(file: Path, *, quantities: bool = False) -> tuple[Part, Part]:
    """Train and test part of the arrays ``inputs`` and ``targets`` and, if there, ``test_inputs``, ``test_targets``."""
    arrays = _arrays(file)
    wanted = (*ARRAYS, *TEST_ARRAYS) if arrays.keys() & set(TEST_ARRAYS) else ARRAYS
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise DataError(
            f"{file}: expected the arrays {', '.join(wanted)}; there is no {' and no '.join(missing)}. "
            "Save them under these names, numpy.savez(file, inputs=…, targets=…)."
        )
    train = _npz_part(arrays, ARRAYS, file, quantities)
    if wanted == ARRAYS:
        return _split(*train, file)
    test = _npz_part(arrays, TEST_ARRAYS, file, quantities)
    _check_count(train[0], file)
    if not len(test[0]) or test[0].shape[1] != train[0].shape[1]:
        raise DataError(
            f"{file}: expected test_inputs of shape (1 or more, {train[0].shape[1]}), as many columns as inputs; "
            f"got {test[0].shape}."
        )
    return train, test


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """Those arrays of the file that have a name to look for; never one of objects, which are pickled."""
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no zip archive")
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name]) for name in (*ARRAYS, *TEST_ARRAYS) if name in stored}
    except MemoryError:
        raise
    except Exception as error:  # damage shows in any way: ValueError, BadZipFile, zlib.error, EOFError, …
        raise DataError(
            f"{file}: expected arrays of numbers as numpy.savez writes them; reading it failed ({error}). "
            f"Save it again, without arrays of objects."
        ) from error


def _npz_part(arrays: dict[str, np.ndarray], names: tuple[str, ...], file: Path, quantities: bool) -> Part:
    """Inputs as finite float64 and labels, checked against each other."""
    inputs, targets = (arrays[name] for name in names)
    if inputs.ndim != 2 or not inputs.shape[1] or targets.shape != inputs.shape[:1]:
        raise DataError(
            f"{file}: expected {names[0]} of shape (N, d) and {names[1]} of shape (N,); "
            f"got {inputs.shape} and {targets.shape}. Give every row its numbers and one label."
        )
    if inputs.dtype.kind not in "biuf":
        raise DataError(f"{file}: expected numbers in {names[0]}; got dtype {inputs.dtype}. Convert them to float64.")
    values = inputs.astype(np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{file}: expected finite numbers; got {values[row, column]} in row {row}, column {column} of {names[0]} "
            f"(counted from 0). Fill it in or leave the row out."
        )
    return values, _npz_quantities(targets, names[1], file) if quantities else _npz_labels(targets, names[1], file)


def _npz_quantities(targets: np.ndarray, name: str, file: Path) -> list[Any]:
    if targets.dtype.kind not in "biuf" or not np.isfinite(targets).all():
        raise DataError(f"{file}: expected finite numbers in {name}; got others, of dtype {targets.dtype}.")
    return targets.astype(np.float64).tolist()


def _npz_labels(targets: np.ndarray, name: str, file: Path) -> list[Any]:
    if targets.dtype.kind in "biuUS":
        return targets.tolist()
    if targets.dtype.kind != "f":
        raise DataError(f"{file}: expected whole numbers or text in {name}; got dtype {targets.dtype}. {_CLASSES}")
    wrong = np.flatnonzero(~np.isfinite(targets) | (targets != np.rint(targets)))
    if wrong.size:
        raise DataError(
            f"{file}: expected whole numbers or text in {name}; got {targets[wrong[0]]} in row {wrong[0]} (counted "
            f"from 0). {_CLASSES}"
        )
    return [int(value) for value in targets.tolist()]
