"""Records in HDF5 files: self-describing, netCDF-4 compatible, each file complete or not there.

``/<name>`` is a group per record: datasets with dimension scales, ``units`` and ``long_name``; choices as attributes.
``/provenance`` says where the numbers come from. ``xarray.open_dataset(file, group=name)`` reads any of them.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from sharpness import foreign
from sharpness.errors import SchemaError
from sharpness.files import write_atomically
from sharpness.journal import HDF5Journal
from sharpness.provenance import provenance
from sharpness.records import RECORDS, Variable, settings, variables

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT, SCHEMA_VERSION = "sharpness", 1
DAMAGE = (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)  # as h5py and JSON report it
PLAN = ("device", "threads", "chunk_size", "last_chunk", "chunks", "points_at_once")
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."  # netCDF-4's mark of a dimension without values


def save(record: Any, path: str | Path) -> Path:
    """Write one record, or several by name, as a whole file: complete or, on failure, as it was before.

    Args:
        record: a record, stored under its kind (``"line"``, ``"eigenpairs"``, …), or a mapping from names to records.
        path: the HDF5 file; folders are made.

    Raises:
        OSError: the disk is full or the place cannot be written.
    """
    records = record if isinstance(record, Mapping) else {record.kind: record}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update({"format": FORMAT, "schema_version": SCHEMA_VERSION, "Conventions": "CF-1.11"})
        for name, item in records.items():
            _write_record(file.create_group(name), item)
        choices = {name: {**settings(item), **item.conditions} for name, item in records.items()}
        _write_attributes(file.create_group("provenance"), {**provenance(), "choices": choices})
    return write_atomically(path, buffer.getvalue())


def load(path: str | Path) -> Any:
    """The record in a file; where it holds several, or one under another name than its kind, a dictionary by name.

    Raises:
        SchemaError: the file is missing, damaged, of another format or of another schema version.
    """
    records = load_all(path)
    if not records:
        raise SchemaError(f"expected at least one record in {path}; it holds none")
    name, record = next(iter(records.items()))
    return record if len(records) == 1 and name == record.kind else records


def load_all(path: str | Path) -> dict[str, Any]:
    """The records in a file by name; errors as ``load``."""
    with _opened(Path(path)) as file:
        return {name: _read_record(group) for name, group in file.items() if "kind" in group.attrs}


def load_provenance(path: str | Path) -> dict[str, Any]:
    """Where the numbers in a file come from; errors as ``load``."""
    with _opened(Path(path)) as file:
        return {name: _from_attribute(value) for name, value in file["provenance"].attrs.items()}


def begin(path: str | Path, templates: Mapping[str, Any]) -> dict[str, HDF5Journal]:
    """Journals on the records of a file in progress, by name; made from ``templates`` unless they are there already.

    A file that holds the same records with other coordinates or choices is refused with ``SchemaError``, and left as
    it is. Close the journals when done; the file then is the finished record file.
    """
    path = Path(path)
    if path.exists():
        found = load_all(path)
        for name, template in templates.items():
            difference = "it is missing" if name not in found else _difference(template, found[name])
            if difference:
                raise SchemaError(
                    f"expected {path} to hold the same computation of {name!r}, to go on with; {difference}. "
                    "Choose another output, or remove the file."
                )
    else:
        save(templates, path)
    return {name: HDF5Journal(path, name) for name in templates}


def _difference(template: Any, found: Any) -> str:
    """In which coordinate or choice two records of one computation differ; empty if in none."""
    if type(template) is not type(found):
        return f"it holds {found.kind!r} instead of {template.kind!r}"
    ours, theirs = _coordinates(template), _coordinates(found)
    for name, mine in {**theirs, **ours}.items():
        if not (name in ours and name in theirs and np.array_equal(mine.values, theirs[name].values)):
            return f"{mine.label} differs"
    for name, value in settings(template).items():
        if value != (other := getattr(found, name)):
            return f"{name} is {other!r} there and {value!r} here"
    here, there = (_binding(json.loads(_json(dict(record.conditions)))) for record in (template, found))
    return "" if here == there else f"its conditions are {there} there and {here} here"


def _coordinates(record: Any) -> dict[str, Variable]:
    return {column.name: column for column in variables(record) if column.dims == (column.name,)}


def _binding(conditions: Any) -> Any:
    """The conditions without the execution plan, with which results change by rounding only."""
    if not isinstance(conditions, dict):
        return conditions
    return {name: _binding(value) for name, value in conditions.items() if name not in PLAN}


# Writing


def _write_record(group: h5py.Group, record: Any) -> None:
    _write_attributes(group, {"kind": record.kind, **settings(record), "conditions": _json(dict(record.conditions))})
    columns = list(variables(record))
    sizes = {dim: size for column in columns for dim, size in zip(column.dims, column.values.shape, strict=True)}
    coordinates = _coordinates(record)
    for dim, size in sizes.items():
        if dim not in coordinates:  # a dimension that has a length but no values
            group.create_dataset(dim, data=np.zeros(size, np.float32)).make_scale(f"{NO_VARIABLE}{size:10d}")
    for column in sorted(columns, key=lambda c: c.name not in coordinates):
        _write_variable(group, column, column.name in coordinates)
    for number, dim in enumerate(sizes):
        group[dim].attrs["_Netcdf4Dimid"] = number


def _write_variable(group: h5py.Group, column: Variable, is_coordinate: bool) -> None:
    values = column.values
    if values.dtype.kind == "U":
        dataset = group.create_dataset(column.name, data=values.astype(object), dtype=h5py.string_dtype())
    else:
        dataset = group.create_dataset(column.name, data=values.astype(np.uint8) if values.dtype == bool else values)
    dataset.attrs.update({"long_name": column.label, "units": column.unit})
    if values.dtype == bool:
        dataset.attrs["dtype"] = "bool"  # xarray's own mark, by which flags come back as such
    if column.name == "status":
        flags = {"flag_values": np.arange(4, dtype=np.uint8), "flag_meanings": "pending done not_finite left_out"}
        dataset.attrs.update(flags)
    if is_coordinate:
        dataset.make_scale(column.name)
        return
    for axis, dim in enumerate(column.dims):
        dataset.dims[axis].attach_scale(group[dim])


def _write_attributes(group: h5py.Group, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, (bool, np.bool_)):
            value = np.uint8(value)  # netCDF-4 knows no truth values
        group.attrs[name] = _json(value) if isinstance(value, (Mapping, list, tuple)) else value


def _json(value: Any) -> str:
    return json.dumps(value, default=_number)


def _number(value: Any) -> Any:
    """NumPy's numbers as Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected conditions and choices that JSON can hold; got {type(value).__name__}")


# Reading


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise SchemaError(f"expected a results file at {path}; there is {'a folder' if path.is_dir() else 'none'}")
    try:
        # unlocked, so that a file in progress can be drawn: all that changes in it is values, each row's status last
        with h5py.File(path, "r", locking=False) as file:
            _check_format(file, path)
            yield file
    except SchemaError:
        raise
    except DAMAGE as error:
        raise SchemaError(
            f"expected a complete HDF5 file at {path}; it is damaged or something else ({error})"
        ) from error


def _check_format(file: h5py.File, path: Path) -> None:
    kind, version = file.attrs.get("format"), file.attrs.get("schema_version")
    if kind != FORMAT:
        raise SchemaError(
            f"expected a file with format {FORMAT!r} at {path}; its format is {kind!r}. {foreign.advice(file)}".rstrip()
        )
    if version != SCHEMA_VERSION:
        raise SchemaError(
            f"expected schema version {SCHEMA_VERSION} in {path}; it has version {version}. "
            "Read it with the release of sharpness that wrote it (see its /provenance)."
        )


def _read_record(group: h5py.Group) -> Any:
    kind = RECORDS.get(group.attrs["kind"])
    if kind is None:
        raise SchemaError(f"expected a record of a known kind in {group.name}; got {group.attrs['kind']!r}")
    types = {item.name: item.type for item in dataclasses.fields(kind) if "label" in item.metadata}
    values = {name: _from_dataset(group[name]) for name in types.keys() & set(group)}
    choices = {name: _choice(group.attrs[name], types[name]) for name in types.keys() & set(group.attrs)}
    return kind(**values, **choices, conditions=json.loads(group.attrs["conditions"]))


def _from_dataset(dataset: h5py.Dataset) -> Any:
    if h5py.check_string_dtype(dataset.dtype):
        return np.array(dataset.asstr()[...], dtype=str)
    values = dataset[()]
    if dataset.attrs.get("dtype") == "bool":
        values = values.astype(bool)
    return values.item() if values.ndim == 0 else values


def _choice(value: Any, type_name: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return bool(value) if type_name == "bool" else value


def _from_attribute(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json.loads(value)
    return value
