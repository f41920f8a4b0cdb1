"""All figures of a run, from its files alone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sharpness import store
from sharpness.errors import SchemaError
from sharpness.records import Comparison, EigenPairs, EpsilonSharpness, PlaneLosses, TraceEstimate
from sharpness.render.animation import MOVING, has_walk, save_animation
from sharpness.render.comparison import MOST, draw_table
from sharpness.render.differences import differences_table
from sharpness.render.figures import draw_figure
from sharpness.render.files import save_figure
from sharpness.render.summary import REGIMES, comparison_table
from sharpness.render.surfaces import draw_surfaces
from sharpness.render.tables import save_table

FORMATS = ("svg", "pdf", "png")
PANELS = 24  # at most in one figure: eight rows


def draw_folder(folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw every results file below ``folder`` into ``folder/figures``.

    Files of one name in sibling folders become panels of one figure, titled by their folders: ``seed-0/SB/plane.h5``
    and ``seed-0/LB/plane.h5`` give ``seed-0-plane``, with equal axes and levels. A comparison gives its figure, unless
    it has more regimes than colours can tell apart, and its table, as a figure and as Markdown, CSV and LaTeX, and
    one of saved checkpoints its statistics; beside one, the eigenvalues and traces that it summarises are not drawn
    again one by one. Single sharpnesses, of which a run holds
    many, are drawn by ``draw_file`` alone, and so are the members of a family that would be more than 24 panels.

    Planes are drawn as contours and, as ``…-surface``, in three dimensions. Of the formats, ``"gif"`` and ``"mp4"``
    animate planes with a training run, each by itself (``seed-0-plane-SB.gif``), and nothing else.

    Returns:
        The files written.

    Raises:
        SchemaError: no results there, a damaged file, or formats for animations and no plane with a training run.
        SharpnessError: MP4 without ``ffmpeg`` on the path.
    """
    written, found = [], families(folder)
    _check_moving(formats, [record for family in found for record in family.records.values()], folder)
    for family in found:
        if not family.summarised:
            written += _draw_family(family.records, folder / "figures" / family.stem, formats)
    return written


class Family(NamedTuple):
    """Records that share a figure, and the file of each, by the panel that they become there."""

    stem: str
    records: dict[str, Any]
    files: dict[str, Path]
    summarised: bool
    """Whether other figures and tables of the run say what these records say."""


def families(folder: Path) -> list[Family]:
    """Every record below ``folder``, together with those that share its figure; errors as ``draw_folder``."""
    files = {path: store.load_all(path) for path in sorted(folder.rglob("*.h5"))}
    if not files:
        raise SchemaError(f"expected results (.h5 files) in {folder}; there are none")
    compared = any(isinstance(record, Comparison) for records in files.values() for record in records.values())
    summarised = (EpsilonSharpness, EigenPairs, TraceEstimate) if compared else EpsilonSharpness
    grouped: dict[tuple[str, bool], dict[str, tuple[Any, Path]]] = {}
    for path, records in files.items():
        for name, record in records.items():
            stem, panel = _place(path.relative_to(folder), "" if list(records) == [record.kind] else name)
            grouped.setdefault((stem, isinstance(record, summarised)), {})[panel] = (record, path)
    found = []
    for (stem, told), members in grouped.items():
        panels = sorted(members, key=_panel_order)
        records, paths = ({panel: members[panel][part] for panel in panels} for part in (0, 1))
        found.append(Family(stem, records, paths, told))
    return found


def fits_a_figure(family: Mapping[str, Any]) -> bool:
    """Whether there are few enough panels, and in each few enough regimes."""
    crowded = any(isinstance(record, Comparison) and record.regime.size > MOST for record in family.values())
    return not crowded and len(family) <= PANELS


def draw_file(path: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw every record of one file beside it; errors as ``draw_folder``."""
    written, records = [], store.load_all(path)
    _check_moving(formats, list(records.values()), path)
    for name, record in records.items():
        stem = path.with_suffix("") if name == record.kind else path.with_name(f"{path.stem}-{name}")
        written += _draw_family({"": record}, stem, formats)
    return written


def _draw_family(family: dict[str, Any], stem: Path, formats: Sequence[str]) -> list[Path]:
    written = []
    still = [ending for ending in formats if ending not in MOVING]
    if still and fits_a_figure(family):
        written += save_figure(draw_figure(family), stem, still)
        if all(isinstance(record, PlaneLosses) for record in family.values()):
            written += save_figure(draw_surfaces(family), stem.with_name(f"{stem.name}-surface"), still)
    for name, record in family.items():
        if still and isinstance(record, Comparison):
            table = stem.with_name("table")
            written += save_figure(draw_table(record), table, still)
            written += save_table(comparison_table(record), table)
            if record.over != "seeds":
                written += save_table(differences_table(record), stem.with_name("differences"))
        if has_walk(record):
            own = f"{stem.name}-{name}" if name else stem.name
            written += [save_animation(record, stem.with_name(f"{own}.{e}")) for e in formats if e in MOVING]
    return written


def _check_moving(formats: Sequence[str], records: Sequence[Any], place: Path) -> None:
    moving = [ending for ending in formats if ending in MOVING]
    if moving and not any(map(has_walk, records)):
        kinds = ", ".join(sorted({record.kind for record in records}))
        raise SchemaError(
            f"expected a plane with a training run in {place}, to animate as {' and '.join(moving)}; there is none "
            f"among what it holds ({kinds}). Ask for {', '.join(FORMATS)}, or evaluate the plane of a trajectory first"
        )


def _panel_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """SB and what is derived from it stand before LB, others by name, numbers in names by size."""
    family = name.split("-")[0]
    parts = [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
    return (REGIMES.index(family) if family in REGIMES else len(REGIMES), parts)


def _place(path: Path, name: str) -> tuple[str, str]:
    """The figure that a record belongs to, and its panel there."""
    *folders, file = path.with_suffix("").parts
    return "-".join([*folders[:-1], file] + [name] * bool(name)), folders[-1] if folders else ""
