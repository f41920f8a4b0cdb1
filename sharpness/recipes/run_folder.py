"""A folder that belongs to one configuration: the same one resumes in it, another one is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sharpness import store
from sharpness.errors import SchemaError
from sharpness.files import write_atomically

CONFIGURATION = "run.json"


def claim(folder: Path, configuration: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Mark ``folder`` as holding the results of ``configuration`` (JSON-able).

    What a configuration of an earlier release lacks is taken to be as in ``defaults``, of the same form.

    Raises:
        SchemaError: it holds those of another configuration, whose differences are listed, or other files. A
            configuration alone, left by a start that failed at once, is no result: another one takes its place.
    """
    wanted = json.loads(json.dumps(configuration))
    file = folder / CONFIGURATION
    own = {CONFIGURATION, f".{CONFIGURATION}.part"}
    others = folder.exists() and any(found.name not in own for found in folder.iterdir())
    if file.exists() and others:
        try:
            present = json.loads(file.read_text())
        except ValueError as error:
            raise SchemaError(f"expected a JSON configuration in {file}; it is damaged ({error})") from error
        differences = list(_differences(_completed(present, json.loads(json.dumps(defaults or {}))), wanted))
        if differences:
            raise SchemaError(
                f"expected {folder} to be new or to hold this very configuration; it differs in "
                f"{'; '.join(differences[:6])}. Choose another --out, or remove the folder."
            )
        return
    if others:
        raise SchemaError(f"expected {folder} to be new, empty or a run; it holds other files. Choose another --out.")
    write_atomically(file, (json.dumps(wanted, indent=1) + "\n").encode())


def defaults_of(parameters: Any) -> dict[str, Any]:
    """The defaults of a dataclass's fields by name, with those of the dataclasses that it holds."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(parameters):
        value = getattr(parameters, item.name)
        if dataclasses.is_dataclass(value):
            found[item.name] = defaults_of(value)
        elif isinstance(value, Mapping) and any(dataclasses.is_dataclass(entry) for entry in value.values()):
            found[item.name] = {name: defaults_of(entry) for name, entry in value.items()}
        elif item.default is not dataclasses.MISSING:
            found[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            found[item.name] = item.default_factory()
    return found


def _completed(present: Any, defaults: Any) -> Any:
    """``present`` with what it lacks, where it is a mapping."""
    if not (isinstance(present, dict) and isinstance(defaults, dict)):
        return present
    return {**defaults, **{name: _completed(value, defaults.get(name)) for name, value in present.items()}}


def stored(path: Path, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The records in ``path``; computed and saved there unless an earlier start has."""
    if not path.exists():
        store.save(compute(), path)
    return store.load_all(path)


def _differences(present: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(present, dict) and isinstance(wanted, dict):
        for key in sorted(present.keys() | wanted.keys()):
            yield from _differences(present.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif present != wanted:
        yield f"{name} ({present!r} there, {wanted!r} here)"
