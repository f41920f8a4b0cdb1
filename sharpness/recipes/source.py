"""What saved weights belong to: the problem that a file makes, a model and data by name, or what a minimizer knows."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharpness.checkpoints import (
    Minimizer,
    is_minimizer,
    load_checkpoint,
    load_minimizer,
    load_state,
    read_checkpoint,
)
from sharpness.errors import DataError, SharpnessError, UnsupportedModelError
from sharpness.objective import Problem
from sharpness.params import ParamSpace, Point
from sharpness.recipes import huggingface
from sharpness.recipes.registry import recipe_problem
from sharpness.recipes.shortcuts import Preprocessing, named_problem


def _nobody(_: str) -> None:
    pass


@dataclass(frozen=True)
class Source:
    """What checkpoints belong to, and how they are read. A minimizer that this program trained needs none of it.

    Args:
        problem: ``FILE.py:NAME``, which makes a ``Problem``; its model receives the weights.
        model: instead, ``torchvision:NAME``, ``timm:NAME`` (either with options: ``timm:resnet18,in_chans=1``),
            ``hf:DIR`` (a HuggingFace folder) or a model of ``sharpness.models``; with ``data``.
        data: ``NAME:PATH`` of ``sharpness.data.DATASETS``, as ``cifar10:DIR``, ``text:FILE`` or ``table:FILE``.
        preprocessing: of the inputs of ``data``.
        data_dir: where the data of a minimizer's recipe lie.
        weights: which of the weights in a file: ``"auto"`` (the plain ones), ``"model"``, ``"ema"`` or a set by its
            name, as ``load_checkpoint`` takes them.
        allow: names, or patterns of them, of weights that may be missing, left over or of another shape.
    """

    problem: str | None = None
    model: str | None = None
    data: str | None = None
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    data_dir: str | Path | None = None
    weights: str = "auto"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.problem is not None and (self.model is not None or self.data is not None):
            raise UnsupportedModelError("expected --problem, or --model with --data; got both")
        if (self.model is None) != (self.data is None):
            given, other = ("model", "data") if self.data is None else ("data", "model")
            raise UnsupportedModelError(f"expected --model and --data together; got --{given} without --{other}")
        if not self.foreign and (self.weights != "auto" or self.allow):
            raise UnsupportedModelError(
                "expected --weights and --allow with --problem, or --model and --data; minimizers need none"
            )
        if self.model is None and self.preprocessing != Preprocessing():
            raise DataError("expected --mean, --std, --own-transform and --limit with --data; got them without")

    @property
    def foreign(self) -> bool:
        """Whether it names a problem, rather than leave that to minimizers."""
        return self.problem is not None or self.model is not None

    def make(self) -> Problem:
        """The problem that it names, with the weights it was made with.

        Raises:
            UnsupportedModelError: it names none, or that cannot be made.
        """
        if self.problem is not None:
            return load_problem(self.problem)
        if self.model is None or self.data is None:
            raise UnsupportedModelError("expected --problem FILE.py:NAME, or --model and --data; got neither")
        return named_problem(self.model, self.data, self.preprocessing)

    def open(self, path: Path) -> tuple[Problem, Point]:
        """The problem that a checkpoint belongs to, its model with the weights in it, and where that is.

        Raises:
            CheckpointError: missing, damaged, unsafe, or not of this model.
            UnsupportedModelError: a state dict, and nothing says what it belongs to.
        """
        if self.foreign:
            made = self.make()
            return made, self.point(path, made)
        minimizer = minimizer_at(path)
        made = recipe_problem(minimizer, self.data_dir)
        minimizer.load_into(made.model)
        return made, minimizer.point

    def point(self, path: Path, made: Problem, tell: Callable[[str], None] = _nobody) -> Point:
        """Where a further checkpoint of a problem is; a state dict is read into the problem's model.

        What it is allowed to lack stays there as it was: give the problem as it was made. ``tell`` is told what a
        reader of the results should know of how the file was read.
        """
        if not self.foreign:
            return minimizer_at(path).point
        found = read_checkpoint(path, self.weights)
        of_library = (self.model or "").startswith("hf:")
        state = huggingface.state_in(found.weights, made.model) if of_library else found.weights
        fitted = load_state(made.model, state, path, allow=self.allow)
        objects = f"not loaded, being objects of code: {', '.join(found.left_out)}" if found.left_out else ""
        for told in filter(None, (found.note, objects, str(fitted))):
            tell(told)
        return Point.of(made.model, ParamSpace.of(made.model))

    @property
    def identity(self) -> dict[str, Any] | None:
        """What distinguishes it from others, as JSON-able values: a problem file by name and content."""
        if not self.foreign:
            return None
        if self.problem is not None:
            named: dict[str, Any] = {"spec": self.problem, "sha256": _sha256(*_files(self.problem))}
        else:
            shown = {n: v for n, v in dataclasses.asdict(self.preprocessing).items() if v}
            named = {"model": self.model, "data": self.data, **shown}
            if (self.model or "").startswith("hf:"):
                named["sha256"] = _sha256(huggingface.configuration(Path((self.model or "").removeprefix("hf:"))))
        chosen = {} if self.weights == "auto" else {"weights": self.weights}
        return {**named, **chosen, **({"allow": list(self.allow)} if self.allow else {})}


def load_problem(spec: str) -> Problem:
    """The problem that ``FILE.py:NAME`` makes: NAME is a ``Problem``, the tuple, or a function that returns either.

    The file is executed: name only files that you trust.

    Raises:
        UnsupportedModelError: no such file or name, or it fails or makes something else.
    """
    file, separator, name = spec.rpartition(":")
    path = Path(file)
    if not separator or not name or path.suffix != ".py" or not path.is_file():
        raise UnsupportedModelError(f"expected --problem FILE.py:NAME with an existing file; got {spec!r}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module, before, folder = importlib.util.module_from_spec(module_spec), dict(sys.modules), str(path.resolve().parent)
    sys.modules[path.stem] = module  # where decorators look for it
    sys.path.insert(0, folder)  # so that the file can import its neighbours
    try:
        module_spec.loader.exec_module(module)
        made = getattr(module, name)
        made = made() if callable(made) and not isinstance(made, Problem) else made
    except SharpnessError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"expected {spec} to make a problem; it failed with {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(folder)
        _NEIGHBOURS[spec] = _forgotten(before, Path(folder))
    return Problem.of(made)


_NEIGHBOURS: dict[str, list[Path]] = {}
"""The files that each problem file imported from its own folder."""


def _forgotten(before: Mapping[str, Any], folder: Path) -> list[Path]:
    """The files of modules that came from ``folder``, which another problem's must not be taken for."""
    files = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if before.get(name) is not module and file and Path(file).resolve().is_relative_to(folder):
            files.append(Path(file))
            if name in before:
                sys.modules[name] = before[name]
            else:
                del sys.modules[name]
    return files


def _files(spec: str) -> list[Path]:
    """A problem file, and those beside it that it was made with."""
    file = Path(spec.rpartition(":")[0])
    return [file, *sorted(path for path in _NEIGHBOURS.get(spec, []) if path.resolve() != file.resolve())]


def _sha256(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def minimizer_at(path: Path) -> Minimizer:
    """The minimizer in a file, which knows its problem; anything else is refused with the ways to name one."""
    if not is_minimizer(path):
        load_checkpoint(path)  # a file that cannot be read at all says so first
        raise UnsupportedModelError(
            f"expected what the weights in {path} belong to: --problem FILE.py:NAME, which makes (model, loss, train[, "
            "test]), or --model torchvision:NAME, timm:NAME or hf:DIR with --data cifar10:DIR, text:FILE, …; only "
            "minimizers that this program trained know their model and data"
        )
    return load_minimizer(path)
