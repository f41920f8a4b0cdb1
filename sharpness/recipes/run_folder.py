"""A folder that belongs to one configuration: the same one resumes in it, another one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sharpness import store
from sharpness.errors import SchemaError
from sharpness.files import write_atomically

CONFIGURATION = "run.json"


def claim(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Mark ``folder`` as holding the results of ``configuration`` (JSON-able).

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
        differences = list(_differences(present, wanted))
        if differences:
            raise SchemaError(
                f"expected {folder} to be new or to hold this very configuration; it differs in "
                f"{'; '.join(differences[:6])}. Choose another --out, or remove the folder."
            )
        return
    if others:
        raise SchemaError(f"expected {folder} to be new, empty or a run; it holds other files. Choose another --out.")
    write_atomically(file, (json.dumps(wanted, indent=1) + "\n").encode())


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
