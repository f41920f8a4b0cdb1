"""All figures of a run, from its files alone."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharpness import store
from sharpness.errors import SchemaError
from sharpness.records import Comparison, EigenPairs, EpsilonSharpness
from sharpness.render.comparison import MOST, draw_table
from sharpness.render.figures import draw_figure
from sharpness.render.files import save_figure
from sharpness.render.summary import REGIMES, comparison_table
from sharpness.render.tables import save_table

FORMATS = ("svg", "pdf", "png")
PANELS = 24  # at most in one figure: eight rows


def draw_folder(folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw every results file below ``folder`` into ``folder/figures``.

    Files of one name in sibling folders become panels of one figure, titled by their folders: ``seed-0/SB/plane.h5``
    and ``seed-0/LB/plane.h5`` give ``seed-0-plane``, with equal axes and levels. A comparison gives its figure, unless
    it has more regimes than colours can tell apart, and its table, as a figure and as Markdown, CSV and LaTeX; beside
    one, the eigenvalues that it summarises are not drawn again one by one. Single sharpnesses, of which a run holds
    many, are drawn by ``draw_file`` alone, and so are the members of a family that would be more than 24 panels.

    Returns:
        The files written.

    Raises:
        SchemaError: no results there, or a damaged file.
    """
    found = {path: store.load_all(path) for path in sorted(folder.rglob("*.h5"))}
    if not found:
        raise SchemaError(f"expected results (.h5 files) in {folder}; there are none")
    summarised = any(isinstance(record, Comparison) for records in found.values() for record in records.values())
    families: dict[str, dict[str, Any]] = {}
    for path, records in found.items():
        for name, record in records.items():
            if not isinstance(record, (EpsilonSharpness, EigenPairs) if summarised else EpsilonSharpness):
                stem, panel = _place(path.relative_to(folder), "" if name == record.kind else name)
                families.setdefault(stem, {})[panel] = record
    written = []
    for stem, family in families.items():
        family = {name: family[name] for name in sorted(family, key=_panel_order)}
        written += _draw_family(family, folder / "figures" / stem, formats)
    return written


def draw_file(path: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw every record of one file beside it; errors as ``draw_folder``."""
    written = []
    for name, record in store.load_all(path).items():
        stem = path.with_suffix("") if name == record.kind else path.with_name(f"{path.stem}-{name}")
        written += _draw_family({"": record}, stem, formats)
    return written


def _draw_family(family: dict[str, Any], stem: Path, formats: Sequence[str]) -> list[Path]:
    written = []
    crowded = any(isinstance(record, Comparison) and record.regime.size > MOST for record in family.values())
    if not crowded and len(family) <= PANELS:
        written += save_figure(draw_figure(family), stem, formats)
    for record in family.values():
        if isinstance(record, Comparison):
            table = stem.with_name("table")
            written += save_figure(draw_table(record), table, formats)
            written += save_table(comparison_table(record), table)
    return written


def _panel_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """SB and what is derived from it stand before LB, others by name, numbers in names by size."""
    family = name.split("-")[0]
    parts = [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
    return (REGIMES.index(family) if family in REGIMES else len(REGIMES), parts)


def _place(path: Path, name: str) -> tuple[str, str]:
    """The figure that a record belongs to, and its panel there."""
    *folders, file = path.with_suffix("").parts
    return "-".join([*folders[:-1], file] + [name] * bool(name)), folders[-1] if folders else ""
