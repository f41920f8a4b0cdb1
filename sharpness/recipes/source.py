"""What saved weights belong to: the problem that a file makes, a model and data by name, or what a minimizer knows."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable
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
from sharpness.recipes.registry import recipe_problem
from sharpness.recipes.shortcuts import Preprocessing, folder_of, named_problem, state_in


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
        folder = folder_of(self.model, path)
        if folder is None:
            found = read_checkpoint(path, self.weights)
            state, note = found.weights, found.note
            if found.left_out:
                tell(f"not loaded, being code or objects of it: {', '.join(found.left_out)}")
        else:
            state, note = state_in(folder, made.model), ""
        fitted = load_state(made.model, state, path, allow=self.allow)
        for told in filter(None, (note, str(fitted))):
            tell(told)
        return Point.of(made.model, ParamSpace.of(made.model))

    @property
    def identity(self) -> dict[str, Any] | None:
        """What distinguishes it from others, as JSON-able values: a problem file by name and content."""
        if not self.foreign:
            return None
        if self.problem is not None:
            content = Path(self.problem.rpartition(":")[0]).read_bytes()
            named: dict[str, Any] = {"spec": self.problem, "sha256": hashlib.sha256(content).hexdigest()}
        else:
            shown = {n: v for n, v in dataclasses.asdict(self.preprocessing).items() if v}
            named = {"model": self.model, "data": self.data, **shown}
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
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.resolve().parent))  # so that the file can import its neighbours
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
        sys.path.pop(0)
    return Problem.of(made)


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
