"""Tables on disk: Markdown and LaTeX for people, CSV for programs."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from sharpness.files import write_atomically
from sharpness.render.cells import Cell, cell_text

MATHEMATICS = {
    "±": r"\pm",
    "×": r"\times",
    "·": r"\cdot",
    "−": "-",
    "≤": r"\leq",
    "≥": r"\geq",
    "→": r"\to",
    "√": r"\surd",
    "‖": r"\|",
    "ℓ": r"\ell",
    "α": r"\alpha",
    "β": r"\beta",
    "ε": r"\varepsilon",
    "θ": r"\theta",
    "λ": r"\lambda",
    "π": r"\pi",
    "φ": r"\varphi",
    "ᵀ": "{}^T",
    "⁻": "{}^-",
    "₋": "{}_-",
    **{digit: f"{{}}_{number}" for number, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{digit: f"{{}}^{number}" for number, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}
ESCAPES = {
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "^": r"\^{}",
    "~": r"\textasciitilde{}",
    "\\": r"\textbackslash{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
}  # as tabulate's for cells


@dataclass(frozen=True)
class Table:
    """A table before it is formatted.

    Args:
        title: one line.
        head: a name for each column.
        rows: cells, one for each column; ``None`` where there is no number.
        notes: sentences that belong under it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    @property
    def texts(self) -> list[list[str]]:
        """The rows as people read them."""
        return [[cell_text(cell) for cell in row] for row in self.rows]


def save_table(table: Table, stem: Path) -> list[Path]:
    """Write a table as Markdown, CSV and LaTeX, each file replaced atomically.

    In Markdown and LaTeX (``booktabs``) a mean stands with its standard deviation, ``98.03 ± 0.07``, and the notes
    stand below. CSV has head and rows only, with a column of its own for each number (``SB mean``, ``SB std``,
    ``SB n``) in full precision; ``nan`` is a number that was not computed.

    Args:
        table: what to write.
        stem: folder (made where missing) and name without ending.

    Returns:
        ``stem.md``, ``stem.csv`` and ``stem.tex``.

    Raises:
        OSError: a file could not be written; what had its name before is untouched.

    Example:
        >>> save_table(comparison_table(comparison), Path("table"))  # doctest: +SKIP
        [PosixPath('table.md'), PosixPath('table.csv'), PosixPath('table.tex')]
    """
    contents = {"md": markdown(table), "csv": comma_separated(table), "tex": latex(table)}
    return [write_atomically(f"{stem}.{ending}", text.encode()) for ending, text in contents.items()]


def markdown(table: Table) -> str:
    """Title, table and notes in GitHub's Markdown."""
    rows = [[text.replace("|", r"\|") for text in row] for row in [list(table.head), *table.texts]]
    grid = tabulate(rows[1:], rows[0], tablefmt="github", disable_numparse=True, colalign=alignment(table))
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"**{table.title}**\n\n{grid}\n" + (f"\n{notes}" if notes else "")


def latex(table: Table) -> str:
    """A ``table`` environment with title as caption and notes below, for ``\\usepackage{booktabs}``."""
    grid = tabulate(
        table.texts, list(table.head), tablefmt="latex_booktabs", disable_numparse=True, colalign=alignment(table)
    )
    notes = [f"\\par {{\\footnotesize {_escaped(note)}}}" for note in table.notes]
    lines = ["\\begin{table}", "\\centering", f"\\caption{{{_escaped(table.title)}}}", grid, *notes, "\\end{table}"]
    return _with_mathematics("\n".join(lines)) + "\n"


def comma_separated(table: Table) -> str:
    """Head and rows, every number in a column of its own."""
    columns = [_parts(name, [row[index] for row in table.rows]) for index, name in enumerate(table.head)]
    names = [name for part in columns for name in part]
    lists = [values for part in columns for values in part.values()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*lists, strict=True))
    return text.getvalue()


def _parts(head: str, cells: Sequence[Cell]) -> dict[str, list[float | str]]:
    """The columns of a CSV behind one column of a table."""
    numbers = [_numbers(cell) for cell in cells]
    kinds = list(dict.fromkeys(kind for parts in numbers for kind in parts)) or [""]
    if len(kinds) > 1 and "" in kinds:  # plain numbers among means stand with the means
        kinds.remove("")
        numbers = [{kinds[0]: parts[""]} if "" in parts else parts for parts in numbers]
    return {f"{head} {kind}".strip(): [parts.get(kind, "") for parts in numbers] for kind in kinds}


def _numbers(cell: Cell) -> Mapping[str, float | str]:
    if cell is None or cell == "":
        return {}
    return {"": cell} if isinstance(cell, (str, float, int)) else cell.columns


def alignment(table: Table) -> list[str]:
    """Columns of words to the left, of numbers to the right."""
    columns = ([row[index] for row in table.rows] for index in range(len(table.head)))
    return ["left" if all(isinstance(cell, str) for cell in column) else "right" for column in columns]


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(sign, sign) for sign in text)


def _with_mathematics(text: str) -> str:
    """Signs that plain LaTeX lacks as formulas, neighbours in one formula."""
    signs = "".join(MATHEMATICS)
    return re.sub(
        f"[{re.escape(signs)}]+", lambda run: "$" + "".join(MATHEMATICS[sign] for sign in run[0]) + "$", text
    ).replace("–", "--")
