"""What was chosen for a run and its records, and where the numbers come from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sharpness.errors import SchemaError
from sharpness.records import settings
from sharpness.store import load_provenance

CONFIGURATION = "run.json"
OF_ONE_FILE = ("written", "choices")


class Choice(NamedTuple):
    """A setting of a record, and what it means."""

    name: str
    value: Any
    label: str


class Origin(NamedTuple):
    """Where the numbers of some files come from, and when the first and the last of them were written."""

    facts: Mapping[str, Any]
    files: list[Path]
    first: str
    last: str


def choices(record: Any) -> list[Choice]:
    """The settings of a record."""
    labels = {item.name: item.metadata.get("label", "") for item in dataclasses.fields(record)}
    return [Choice(name, value, labels[name]) for name, value in settings(record).items()]


def configuration(folder: Path) -> dict[str, Any]:
    """The parameters in ``run.json``; nothing where there is none.

    Raises:
        SchemaError: it is not JSON, or no mapping.
    """
    file = folder / CONFIGURATION
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise SchemaError(f"expected a JSON configuration in {file}; it is damaged ({error})") from error
    if not isinstance(found, dict):
        raise SchemaError(f"expected the parameters of a run in {file}; it holds a {type(found).__name__}")
    return found


def origins(files: Sequence[Path], folder: Path) -> list[Origin]:
    """The provenance of results files, once for all files that share one.

    Raises:
        SchemaError: a damaged file.
    """
    grouped: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for file in files:
        known = load_provenance(file)
        shared = {name: value for name, value in known.items() if name not in OF_ONE_FILE}
        grouped.setdefault(json.dumps(shared, sort_keys=True), []).append((file.relative_to(folder), known))
    return [_origin(json.loads(shared), members) for shared, members in grouped.items()]


def _origin(facts: dict[str, Any], members: list[tuple[Path, dict[str, Any]]]) -> Origin:
    written = sorted(str(known.get("written", "")) for _, known in members)
    return Origin(facts, [file for file, _ in members], written[0], written[-1])
