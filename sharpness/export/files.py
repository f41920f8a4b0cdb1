"""Record files written again in formats of other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sharpness import store
from sharpness.errors import ShapeError
from sharpness.export.paraview import image_data, surface
from sharpness.export.rows import tables
from sharpness.files import write_atomically
from sharpness.records import ConvexityMap, PlaneLosses

PLANES: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "vti": (image_data, (PlaneLosses, ConvexityMap)),
    "vtp": (surface, (PlaneLosses,)),
}
FORMATS = ("csv", *PLANES)


def export_file(path: str | Path, formats: Sequence[str] = ("csv",), folder: str | Path | None = None) -> list[Path]:
    """Write every record of a file in other formats.

    Args:
        path: a record file.
        formats: ``"csv"`` (tables with one row per point, see ``tables``; every record), ``"vti"`` (``image_data``;
            planes and maps of convexity) and ``"vtp"`` (``surface``; planes), the last two for ParaView. For netCDF
            nothing is to be exported: ``xarray.open_dataset(path, group="plane")`` opens the record file itself.
        folder: where to; default: beside ``path``.

    Returns:
        The files written, named after ``path`` and, where it holds several records, after the record. Either all are
        written or, where one is refused, none.

    Raises:
        SchemaError: not a record file.
        ShapeError: an unknown format, or one that no record of the file has, or that this plane cannot have.

    Example:
        >>> export_file("plane.h5", ["csv", "vtp"])  # doctest: +SKIP
        [PosixPath('plane.csv'), PosixPath('plane-axis.csv'), PosixPath('plane-choices.csv'), PosixPath('plane.vtp')]
    """
    path = Path(path)
    _check(path, formats)
    records = store.load_all(path)
    contents: dict[str, bytes] = {}
    for ending in dict.fromkeys(formats):
        made = {name: _contents(record, ending) for name, record in records.items()}
        if not any(made.values()):
            kinds = ", ".join(sorted({record.kind for record in records.values()})) or "no record"
            wanted = " or ".join(kind.kind for kind in PLANES[ending][1]) if ending in PLANES else "record"
            raise ShapeError(f"expected a {wanted} in {path} for {ending}; it holds {kinds}. Choose csv.")
        for name, parts in made.items():
            stem = path.stem if name == records[name].kind else f"{path.stem}-{name}"
            contents |= {f"{stem}{part}": content for part, content in parts.items()}
    place = path.parent if folder is None else Path(folder)
    return [write_atomically(place / name, content) for name, content in contents.items()]


def _contents(record: Any, ending: str) -> dict[str, bytes]:
    """What files in this format hold, by the end of their names; none where the record does not have it."""
    if ending == "csv":
        return {f"{'-' if part else ''}{part}.csv": rows.csv.encode() for part, rows in tables(record).items()}
    write, kinds = PLANES[ending]
    return {f".{ending}": write(record)} if isinstance(record, kinds) else {}


def _check(path: Path, formats: Sequence[str]) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        opens = f" {path} is netCDF-4 already: xarray.open_dataset opens each of its groups." * ("netcdf" in unknown)
        raise ShapeError(f"expected formats among {', '.join(FORMATS)}; got {', '.join(unknown)}.{opens}")
