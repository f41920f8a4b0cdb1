"""Stand-ins for what a pickle names besides tensors: hyper-parameters, paths, NumPy scalars, …

PyTorch's reader of weights stops at every name that it does not know, and with it the whole file: weights beside which
an ``argparse.Namespace`` lies could not be read. Here such a name gets a class of this file, made for one reading,
which takes whatever it is given and keeps none of it. The name is never imported, looked up or called. The reader stays
PyTorch's own, in its weights-only mode, with all that this mode forbids: it calls stand-ins and what it calls in every
file, so a hostile file can do no more than it could without them.
"""

from __future__ import annotations

import _compat_pickle
import builtins
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

# No safety rests on these: nothing that a file names is called. But whoever names them stores no hyper-parameters.
HOSTILE = {"os", "posix", "nt", "sys", "io", "_io", "subprocess", "shutil", "socket", "importlib", "runpy", "ctypes"}
FILLING: dict[str, type] = {"SETITEM": OrderedDict, "SETITEMS": OrderedDict, "APPEND": list, "APPENDS": list}
LEGACY_PICKLES = 4  # of the format before zip archives: a magic number, the version, facts on the system, the content


class StandIn:
    """What a pickle made of something that it names; it holds nothing."""

    __slots__ = ()

    def __new__(cls, *_: object) -> Any:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Ignore the state."""


def load_with_stand_ins(names: Mapping[str, type], load: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
    """What ``load`` reads with stand-ins for ``names``, and those of the names that were made something of.

    PyTorch keeps the names that its reader accepts in one table for the process; those it accepts anyhow, or that the
    caller's own program has allowed, keep their meaning.
    """
    allowed = {_full_name(entry) for entry in torch.serialization.get_safe_globals()}
    made: set[str] = set()
    table: list[Any] = [(_stand_in(name, kind, made), name) for name, kind in names.items() if name not in allowed]
    with torch.serialization.safe_globals(table):
        content = load()
    return content, tuple(sorted(made))


def _stand_in(name: str, kind: type, made: set[str]) -> type:
    class Named(StandIn):
        __slots__ = ()

        def __new__(cls, *_: object) -> Any:
            made.add(name)
            return super().__new__(cls) if kind is object else kind()

    return Named


def _full_name(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def hostile(name: str) -> bool:
    """Whether a name is of no data but of a function that can do anything.

    >>> hostile("os.system"), hostile("builtins.eval"), hostile("builtins.frozenset"), hostile("argparse.Namespace")
    (True, True, False, False)
    """
    module, _, rest = name.partition(".")
    return module in HOSTILE or (module == "builtins" and not isinstance(getattr(builtins, rest, None), type))


def names_in(path: Path) -> dict[str, type]:
    """The names in a file of ``torch.save``, each with what is done with what it makes: items, entries or neither.

    The kinds are ``OrderedDict``, ``list`` and ``object``. Nothing is unpickled.
    """
    kinds: dict[str, type] = {}
    for pickled in _pickles(path):
        _scan(pickled, kinds)
    return kinds


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for record in archive.namelist():
                if record.endswith("/data.pkl"):
                    with archive.open(record) as file:
                        yield file
    else:
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                yield file  # each is read to its end, where the next begins


def _scan(pickled: IO[bytes], kinds: dict[str, type]) -> None:
    """Follow a pickle's stack with nothing on it but the names that its values come from (None: no name)."""
    stack: list[str | None] = []
    marks: list[int] = []
    memo: dict[Any, str | None] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif opcode.name == "GLOBAL":
            name = _modern(str(argument))
            kinds.setdefault(name, object)
            stack.append(name)
        else:
            lowest = _take(stack, marks, opcode)
            if lowest in kinds and opcode.name in FILLING:
                kinds[lowest] = FILLING[opcode.name]
            keeps = opcode.name in FILLING or opcode.name in ("REDUCE", "NEWOBJ", "BUILD")
            stack += [lowest if keeps else None] * len(opcode.stack_after)


def _take(stack: list[str | None], marks: list[int], opcode: pickletools.OpcodeInfo) -> str | None:
    """Take off the stack what an opcode consumes; the lowest of it is what it calls or changes."""
    before = opcode.stack_before
    if pickletools.markobject in before:
        start = marks.pop() - before.index(pickletools.markobject)
    else:
        start = len(stack) - len(before)
    lowest = stack[start] if start < len(stack) else None
    del stack[start:]
    return lowest


def _modern(name: str) -> str:
    """``module.name`` of Python 3 for the ``module name`` in a pickle of protocol 2, which has those of Python 2."""
    module, _, rest = name.partition(" ")
    if (module, rest) in _compat_pickle.NAME_MAPPING:
        module, rest = _compat_pickle.NAME_MAPPING[module, rest]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{rest}"
