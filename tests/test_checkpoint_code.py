"""A pickle is a program: none is run, weights beside foreign objects load all the same, and what needs code says so."""

from __future__ import annotations

import argparse
import builtins
import collections
import dataclasses
import datetime
import decimal
import enum
import io
import pathlib
import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from weights import network, one_line, same, write

from sharpness import CheckpointError, load_checkpoint
from sharpness.checkpoints import read_checkpoint, training_step
from sharpness.checkpoints.inert import StandIn, names_in

REFUSED = r"would execute code.*module\.state_dict\(\)"


class Malicious:
    """Unpickled, it would create the file that it names."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return builtins.open, (str(self.victim), "w")


def pickled(make: Any, tmp_path: Path, kind: str) -> Path:
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind.startswith("protocol"):
        path.write_bytes(pickle.dumps(make, protocol=int(kind[-1])))
    elif kind == "safetensors":
        path.write_bytes(pickle.dumps(make))
    else:
        torch.save(make, path, _use_new_zipfile_serialization=kind == "zip")
    return path


KINDS = ["zip", "legacy", *(f"protocol {number}" for number in range(pickle.HIGHEST_PROTOCOL + 1)), "safetensors"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["alone", "among weights", "beside weights", "as a wrapping"])
def test_a_malicious_pickle_is_refused_and_not_executed(kind, place, tmp_path):
    victim = tmp_path / "victim"
    evil = Malicious(victim)
    content = {
        "alone": evil,
        "among weights": {"weight": torch.ones(2), "evil": evil},
        "beside weights": {"state_dict": {"weight": torch.ones(2)}, "evil": evil},
        "as a wrapping": {"state_dict": evil},
    }
    path = pickled(content[place], tmp_path, kind)
    for read in (load_checkpoint, training_step):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert one_line(caught, path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(evil)).close()  # it would have worked
    assert victim.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "protocol 2", "protocol 5"])
def test_a_file_that_holds_code_is_called_so_with_a_way_out(kind, tmp_path):
    with pytest.raises(CheckpointError, match=REFUSED):
        load_checkpoint(pickled(Malicious(tmp_path / "victim"), tmp_path, kind))


@pytest.mark.parametrize("name", ["w.pth", "legacy.pth"])
@pytest.mark.parametrize("beside", [None, {"epoch": 3}, {"mean": torch.ones(2)}], ids=["alone", "wrapped", "weights"])
def test_a_pickled_module_is_refused_even_of_pytorchs_own_classes(beside, name, tmp_path):
    module = nn.Linear(2, 2)
    path = write(module if beside is None else {"model": module, **beside}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"stored in the file \(torch\.nn\.modules\.linear\.Linear\), which is"):
        load_checkpoint(path)


def test_the_environment_cannot_turn_the_refusal_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match=REFUSED):
        load_checkpoint(write({"evil": Malicious(tmp_path / "victim")}, tmp_path / "w.pth"))
    assert not (tmp_path / "victim").exists()


# ---- objects beside weights -----------------------------------------------------------------------------------------


class Config(dict):
    """A dict with attributes, as many configurations are."""


class History(list):
    pass


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Plan:
    epochs: int = 3


class Slotted:
    __slots__ = ("x",)

    def __init__(self) -> None:
        self.x = 1


def config() -> Config:
    made = Config(width=4, inner=Config(depth=2))
    made.frozen = True
    return made


BESIDE: dict[str, tuple[Callable[[], Any], str]] = {  # and the name that is left out
    "Namespace": (lambda: argparse.Namespace(lr=0.1, more=argparse.Namespace(w=torch.ones(2))), "argparse.Namespace"),
    "path": (lambda: pathlib.PurePosixPath("runs/a"), "pathlib.PurePosixPath"),
    "NumPy scalar": (lambda: np.float64(0.25), "numpy._core.multiarray.scalar"),
    "NumPy array": (lambda: np.arange(3), "numpy._core.multiarray._reconstruct"),
    "NumPy's random state": (lambda: np.random.RandomState(0).get_state(), "numpy._core.multiarray._reconstruct"),
    "random state": (lambda: {"state": random.getstate(), "at": datetime.datetime(2024, 1, 2)}, "datetime.datetime"),
    "defaultdict": (lambda: collections.defaultdict(list, {"loss": [1.0, 0.5]}), "collections.defaultdict"),
    "deque": (lambda: collections.deque([1, 2]), "collections.deque"),
    "frozenset": (lambda: frozenset([1]), "builtins.frozenset"),
    "decimal": (lambda: decimal.Decimal("0.1"), "decimal.Decimal"),
    "version": (lambda: torch.__version__, "torch.torch_version.TorchVersion"),
    "configuration": (config, f"{__name__}.Config"),
    "history": (lambda: History([1, 2]), f"{__name__}.History"),
    "enum": (lambda: {Colour.RED: Colour.RED}, f"{__name__}.Colour"),
    "dataclass": (Plan, f"{__name__}.Plan"),
    "slots": (Slotted, f"{__name__}.Slotted"),
    "optimizer": (lambda: torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), "torch.optim.sgd.SGD"),
}


@pytest.mark.parametrize("name", ["w.pth", "legacy.pth"])
@pytest.mark.parametrize("thing", BESIDE)
def test_objects_beside_weights_are_left_out_and_named(thing, name, tmp_path):
    make, left_out = BESIDE[thing]
    content = {"hyper_parameters": {"x": make()}, "epoch": 3, "state_dict": network().state_dict(), "again": make()}
    path = write(content, tmp_path / name)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert same(path, network().state_dict())
    assert left_out in read_checkpoint(path).left_out
    assert training_step(path) == ("epoch", 3)
    if name == "w.pth":
        assert {*read_checkpoint(path).left_out} <= {*torch.serialization.get_unsafe_globals_in_checkpoint(path)}


def test_nothing_is_left_out_of_a_plain_file(tmp_path):
    assert read_checkpoint(write({"state_dict": network().state_dict()}, tmp_path / "w.pth")).left_out == ()


def test_a_module_beside_weights_is_left_out_with_its_weights(tmp_path):
    path = write({"state_dict": network().state_dict(), "loss": nn.Linear(2, 2)}, tmp_path / "w.pth")
    assert same(path, network().state_dict())
    assert read_checkpoint(path).left_out == ("torch.nn.modules.linear.Linear",)


def test_the_table_of_names_that_pytorch_accepts_is_as_before(tmp_path):
    path = write({"state_dict": network().state_dict(), "args": argparse.Namespace()}, tmp_path / "w.pth")
    before = torch.serialization.get_safe_globals()
    load_checkpoint(path)
    with pytest.raises(CheckpointError):
        load_checkpoint(write({"a": Malicious(tmp_path / "victim"), "b": argparse.Namespace()}, tmp_path / "evil.pth"))
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_what_the_callers_own_program_allows_keeps_its_meaning(tmp_path):
    content = {"state_dict": network().state_dict(), "args": argparse.Namespace(), "plan": Plan()}
    path = write(content, tmp_path / "w.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert read_checkpoint(path).left_out == (f"{__name__}.Plan",)


@pytest.mark.parametrize("name", ["w.pth", "legacy.pth"])
def test_a_changed_file_with_objects_beside_its_weights_is_loaded_or_refused(name, tmp_path):
    content = {"args": argparse.Namespace(a=[1], b=config()), "state_dict": {"w": torch.ones(2)}, "p": np.float64(1)}
    whole, path = write(content, tmp_path / name).read_bytes(), tmp_path / f"changed-{name}"
    drawn, outcomes = random.Random(0), set()
    for _ in range(200):
        changed = bytearray(whole)
        for _ in range(2):
            changed[drawn.randrange(len(whole))] = drawn.randrange(256)
        path.write_bytes(changed)
        try:
            outcomes.add(all(type(t) is torch.Tensor for t in load_checkpoint(path).values()))
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}


# ---- hostile pickles, written by hand -------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def hidden(opcodes: bytes, path: Path, *, zipped: bool = True) -> Path:
    """A checkpoint with good weights, beside which these opcodes are to make something."""
    file = io.BytesIO()
    torch.save({"model": network().state_dict(), "x": "HERE"}, file, _use_new_zipfile_serialization=zipped)
    content, mark = file.getvalue(), text("HERE")
    if not zipped:
        start = content.index(mark)
        path.write_bytes(content[:start] + opcodes + content[start + len(mark) :])
        return path
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(path, "w") as changed:
        for record in archive.infolist():
            held = archive.read(record)
            changed.writestr(record.filename, held.replace(mark, opcodes) if mark in held else held)
    return path


def command(victim: Path) -> str:
    return f"{sys.executable} -c \"open('{victim}', 'w')\""


def hostile(victim: Path) -> dict[str, bytes]:
    """Programs that would make the file ``victim``, each in its way."""
    call = b"(" + text(command(victim)) + b"tR"
    path = text(str(victim)) + b"\x85R"
    touch = text(str(victim)) + text("w") + b"\x86R"
    code = text(f"open({str(victim)!r}, 'w')") + b"\x85R"
    state = b"}" + text("__reduce__") + name("os", "system") + b"s"
    setstate = b"}" + text("__setstate__") + name("pathlib", "Path.touch") + b"sb"
    result = name("pathlib", "os") + b"\x85R" + call
    rebuilt = name("os", "system") + name("torch", "Tensor") + text(command(victim)) + b"\x85}tR"
    return {
        "os.system": name("os", "system") + call,
        "posix.system": name("posix", "system") + call,
        "subprocess": name("subprocess", "getoutput") + call,
        "eval": name("builtins", "eval") + code,
        "eval of Python 2": name("__builtin__", "eval") + code,
        "exec": name("builtins", "exec") + code,
        "open": name("builtins", "open") + touch,
        "io.open": name("io", "open") + touch,
        "getattr": name("builtins", "getattr") + name("pathlib", "os") + text("system") + b"\x86R" + call,
        "import": name("builtins", "__import__") + text("os") + b"\x85R",
        "partial": name("functools", "partial") + name("os", "system") + text(command(victim)) + b"\x86R)R",
        "map": name("builtins", "map") + name("os", "system") + b"]" + text(command(victim)) + b"a\x86R",
        "runpy": name("runpy", "run_path") + path,
        "a rebuilder": name("torch._tensor", "_rebuild_from_type_v2") + b"(" + rebuilt,
        "keywords": name("subprocess", "Popen") + text(command(victim)) + b"\x85}" + text("shell") + b"\x88s\x92",
        "a state with a method": name("argparse", "Namespace") + b")\x81" + state + b"b",
        "slots with a method": name("argparse", "Namespace") + b")\x81N" + state + b"\x86b",
        "a class with a method": name("argparse", "Namespace") + setstate + text(str(victim)) + b"b",
        "a method": name("pathlib", "Path.touch") + name("pathlib", "Path") + path + b"\x85R",
        "a result called": name("operator", "attrgetter") + text("system") + b"\x85R" + result,
        "code as data": name("types", "FunctionType") + name("marshal", "loads") + text("c") + b"\x85R}\x86R)R",
        "torch.load": name("torch", "load") + path,
        "torch.serialization": name("torch.serialization", "load") + path,
        "torch.hub": name("torch.hub", "load") + text("a/b") + text("c") + b"\x86R",
        "torch.jit": name("torch.jit", "load") + path,
        "pickle in pickle": name("pickle", "loads") + name("_codecs", "encode") + text("cos\n") + b"\x85R\x85R",
        "an extension": b"\x82\x01",
        "a persistent id": text("os.system") + b"Q",
        "a stacked name": text("os") + text("system") + b"\x93" + call,
        "an instance": b"(" + text(command(victim)) + b"ios\nsystem\n",
        "an object": b"(" + name("os", "system") + text(command(victim)) + b"o",
    }


REFUSED_PROGRAMS = [  # the others make nothing and are left out, or are no opcodes that the reader knows
    *("os.system", "posix.system", "subprocess", "eval", "eval of Python 2", "exec", "open", "io.open", "getattr"),
    *("import", "partial", "map", "runpy", "a rebuilder", "keywords", "a state with a method", "an object"),
]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("program", hostile(Path("victim")))
def test_no_hostile_program_is_run(program, zipped, tmp_path):
    victim = tmp_path / "victim"
    path = hidden(hostile(victim)[program], tmp_path / "w.pth", zipped=zipped)
    with pytest.raises(CheckpointError) if program in REFUSED_PROGRAMS else suppress(CheckpointError):
        assert same(path, network().state_dict())
    with suppress(CheckpointError):
        training_step(path)
    assert not victim.exists()


def test_the_programs_are_programs(tmp_path):
    """Read by a reader that obeys, they do what is said of them: the test above could fail."""
    for program in ("os.system", "open", "eval", "getattr", "partial", "a result called"):
        victim = tmp_path / program
        made = torch.load(hidden(hostile(victim)[program], tmp_path / "w.pth"), weights_only=False)["x"]
        assert victim.exists()
        if isinstance(made, io.IOBase):
            made.close()


def test_names_are_shown_and_not_as_control_characters(tmp_path):
    strange = b"c\x1b[31mred\nname\n)R"
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(hidden(strange + name("os", "system") + b"0", tmp_path / "w.pth"))
    assert "\x1b" not in str(caught.value)


def test_a_stand_in_takes_anything_and_keeps_nothing():
    made = StandIn(1, [2])
    made.__setstate__({"x": 1})
    assert not hasattr(made, "__dict__")
    with pytest.raises(AttributeError):
        made.x = 1


def test_names_come_with_what_is_done_with_what_they_make(tmp_path):
    content = {"a": config(), "b": History([1]), "c": argparse.Namespace(x=[{1: 2}]), "w": torch.ones(2)}
    for file in ("w.pth", "legacy.pth"):
        kinds = names_in(write(content, tmp_path / file))
        assert kinds[f"{__name__}.Config"] is collections.OrderedDict
        assert kinds[f"{__name__}.History"] is list
        assert kinds["argparse.Namespace"] is object
