"""Numbers under ordinary conditions, by this package and by its peers, beside the true ones.

Claim to be tested: under every one of these conditions this package gives the true number. Each peer that has such a
number is asked for it as its documentation says; one that is off is marked, and so is an error in its place.
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch
from answers import CURVLINOPS, EIGENTHINGS, LANDSCAPES, PYHESSIAN
from conditions import ROWS, Row, ghost_copies
from peers import OURS
from report import Record, Result, Unavailable, short

PACKAGES = (OURS, PYHESSIAN, EIGENTHINGS, CURVLINOPS, LANDSCAPES)
SHOWN = 4  # numbers of a longer list that a cell shows
WORDS = 60  # characters of an error that a cell shows
QUICK_SIZE = 2_000


class Cell(NamedTuple):
    """What one package found: as text, the numbers or the error, whether they are right, and a remark."""

    text: str
    found: object = None
    right: bool | None = None
    remark: str = ""


def cell(row: Row, name: str) -> Cell:
    """Ask one package, from the same random state, without what it prints."""
    ask = row.ours if name == OURS else row.peers.get(name)
    if ask is None:
        return Cell("–")
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            found = ask()
    except Unavailable as reason:
        return Cell(str(reason))
    except Exception as error:  # whatever a package raises in place of a number
        message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        words = message if len(message) <= WORDS else message[:WORDS].rsplit(" ", 1)[0] + " …"
        return Cell(f"✗ {words}", message, False)
    right = row.right(found)
    return Cell(
        _text(found.numbers) if right else f"✗ {_text(found.numbers)}", list(found.numbers), right, found.remark
    )


def _text(numbers: Sequence[float | None]) -> str:
    texts = ["–" if number is None else short(number) for number in numbers]
    return ", ".join(texts if len(texts) <= SHOWN else [*texts[: SHOWN - 1], "…", texts[-1]])


def measure(rows: Sequence[Row]) -> Result:
    """The table of all rows."""
    table, raw, notes = [], {}, []
    for row in rows:
        cells = {name: cell(row, name) for name in PACKAGES}
        table.append([row.condition, row.asked, _text(row.truth), *(found.text for found in cells.values())])
        raw[row.condition] = {
            "asked": row.asked,
            "truth": row.truth,
            "tolerance": row.tolerance,
            "found": {name: found._asdict() for name, found in cells.items()},
        }
        notes += [
            f"{row.condition}: {name}: {found.remark}"
            for name, found in cells.items()
            if found.right is False and found.remark
        ]
    about = [
        "✗: off by more than 1 % (planes and lines: 1e-5), or an error; –: no such feature",
        "truth: a dense Hessian in float64 by `torch.autograd.functional.hessian`, or a closed form",
        "hessian-eigenthings: unless steps are given, its default, doubled until it marks every pair as converged; "
        "curvlinops: `scipy.sparse.linalg.eigsh` on its operator; PyHessian: 1,000 iterations and a tolerance of 1e-6, "
        "but its defaults for several eigenvalues",
    ]
    columns = ["condition", "asked", "truth", *PACKAGES]
    return Result("Right under ordinary conditions", columns, table, [*about, *notes], raw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the parameters where there are many")
    parser.set_defaults(device="cpu")
    args = parser.parse_args()
    rows = [make(QUICK_SIZE) if make is ghost_copies and args.quick else make() for make in ROWS]
    Record(Path(__file__).stem, quick=args.quick).put("pitfalls", measure(rows), args)


if __name__ == "__main__":
    main()
