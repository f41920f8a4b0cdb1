"""From the files of a run to the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from sharpness.errors import ShapeError
from sharpness.files import write_atomically
from sharpness.progress import Progress, silent
from sharpness.records import Comparison, PlaneLosses
from sharpness.render import comparison_table, draw_figure
from sharpness.render.differences import differences_table
from sharpness.render.folder import Family, families, fits_a_figure
from sharpness.render.tables import Table
from sharpness.report.inline import inline_svg
from sharpness.report.numbers import OVERVIEWS, number_tables
from sharpness.report.settings import Choice, choices, configuration, origins
from sharpness.report.surfaces import Surfaces, surfaces
from sharpness.report.template import filled

NAME = "report.html"


def write_report(folder: Path, out: Path | None = None, *, progress: Progress = silent) -> Path:
    """Write one HTML file with every figure, table and setting of a run, and its planes as surfaces that turn.

    The file holds all that it needs: a browser shows it without a network, and is told not to ask for one. Figures are
    those of ``draw_folder``, whose grouping it shares; beside them stand the numbers and the conditions of every
    record below ``folder``, the parameters in ``run.json`` where there is one, and where the numbers come from.

    Args:
        folder: a run, or any folder with results (.h5 files).
        out: the file to write, replaced atomically, or a folder for it; by default ``folder/report.html``.
        progress: called after each figure.

    Returns:
        The file. It takes 5 MB for plotly.js where there are surfaces, and the figures as SVG.

    Raises:
        SchemaError: no results there, or a damaged file, which is named.
        OSError: the file could not be written; what had its name before is untouched.

    Example:
        >>> write_report(Path("runs/digits"))  # doctest: +SKIP
        PosixPath('runs/digits/report.html')
    """
    out = folder / NAME if out is None else out / NAME if out.is_dir() else out
    return write_atomically(out, report_text(folder, progress).encode())


def report_text(folder: Path, progress: Progress = silent) -> str:
    """What ``write_report`` writes."""
    found, drawn = families(folder), []
    for number, family in enumerate(found):
        if not family.summarised:
            drawn.append(_drawn(family, folder))
        progress(number + 1, len(found), family.stem)
    return filled(
        "page.html",
        name=folder.resolve().name,
        parameters=configuration(folder),
        drawn=drawn,
        listed=_listed([family for family in found if family.summarised], folder),
        turning=any(section.surfaces for section in drawn),
        origins=origins(sorted({file for family in found for file in family.files.values()}), folder),
    )


class Entry(NamedTuple):
    """One record: its name, where it lies, its choices, and its numbers."""

    name: str
    file: Path
    choices: list[Choice]
    conditions: Mapping[str, Any]
    tables: list[Table]


class Section(NamedTuple):
    """Records that belong together."""

    key: str
    """Where it stands in the page."""
    title: str
    about: str
    tables: list[Table]
    entries: list[Entry]
    figure: Markup | None = None
    undrawn: str = ""
    """Why there is no figure."""
    surfaces: Surfaces | None = None


def _drawn(family: Family, folder: Path) -> Section:
    """Records that share a figure."""
    records = family.records
    compared = [record for record in records.values() if isinstance(record, Comparison)]
    tables = [_upright(comparison_table(record)) for record in compared]
    tables += [differences_table(record) for record in compared if record.over != "seeds"]
    places = {panel: file.relative_to(folder) for panel, file in family.files.items()}
    entries = [_entry(panel or family.stem, record, places[panel]) for panel, record in records.items()]
    figure, undrawn = _figure(family)
    planes = {panel: record for panel, record in records.items() if isinstance(record, PlaneLosses)}
    turning = surfaces(planes, family.stem) if planes else None
    title = _title(family, folder)
    return Section(key_of(family.stem), title, _about(records), tables, entries, figure, undrawn, turning)


def _listed(found: list[Family], folder: Path) -> list[Section]:
    """Records that other figures summarise, those of one kind together, by the folders of their minimizers."""
    kinds: dict[str, list[tuple[Path, str, Any]]] = {}
    for family in found:
        for panel, record in family.records.items():
            place = family.files[panel].relative_to(folder)
            kinds.setdefault(record.kind, []).append((place, _name(family, place), record))
    sections = []
    for kind, members in kinds.items():
        members.sort(key=lambda member: member[:2])
        title, overview = OVERVIEWS[kind]
        tables = [overview([(str(place.parent), record) for place, _, record in members])]
        entries = [_entry(f"{place.parent} {name}", record, place) for place, name, record in members]
        sections.append(Section(key_of(kind), title, _about({kind: members[0][2]}), tables, entries))
    return sections


def _upright(table: Table) -> Table:
    """With rows for columns where that leaves fewer columns, which are what a page has little room for."""
    if len(table.rows) + 1 >= len(table.head):
        return table
    head = (table.head[0], *(texts[0] for texts in table.texts))
    rows = list(zip(table.head, *table.rows, strict=True))[1:]
    return Table(table.title, head, rows, table.notes)


def _entry(name: str, record: Any, file: Path) -> Entry:
    return Entry(name, file, choices(record), record.conditions, number_tables(record))


def key_of(name: str) -> str:
    """An identifier for HTML, another one for each name.

    >>> key_of("seed-0-plane"), key_of("a b")
    ('records-seed-0-plane', 'records-a_20b')
    """
    return "records-" + "".join(sign if sign.isalnum() or sign in "-." else f"_{ord(sign):x}" for sign in name)


def _title(family: Family, folder: Path) -> str:
    """What the records are called, and then the folder in which several of that name lie."""
    place = "-".join(next(iter(family.files.values())).relative_to(folder).parts[:-2])
    name = family.stem.removeprefix(f"{place}-")
    return name[:1].upper() + name[1:] + (f", {place}" if place else "")


def _name(family: Family, place: Path) -> str:
    """What the file at a place calls the record; nothing where it holds no other."""
    return family.stem.removeprefix("-".join([*place.parts[:-2], place.stem])).removeprefix("-")


def _about(records: Mapping[str, Any]) -> str:
    """What such records are, as their class says in its first line."""
    return (type(next(iter(records.values()))).__doc__ or "").strip().splitlines()[0]


def _figure(family: Family) -> tuple[Markup | None, str]:
    """The figure, or why there is none."""
    if not fits_a_figure(family.records):
        return None, "Too many for one figure: “sharpness figures FILE” draws one file."
    try:
        return inline_svg(draw_figure(family.records), family.stem), ""
    except ShapeError as error:
        return None, f"Not drawn: {error}."
