"""Anyone's checkpoints: a file or folder of any usual kind, as named tensors on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sharpness.checkpoints.contents import Kind, Step, choose, step_beside, step_in, weights_in
from sharpness.checkpoints.folders import INDEX, NAMES, read_shards, trainer_state, weights_file
from sharpness.checkpoints.inert import StandIn
from sharpness.checkpoints.pickles import read_torch, refusal
from sharpness.checkpoints.tensors import header, own_header, read_safetensors
from sharpness.errors import CheckpointError

PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights out of a file, and what else the file holds.

    ``name`` says which of the file's ``sets``, kinds by name, the weights are: ``"state_dict"``, or ``""`` for the file
    itself. ``left_out`` names the classes and functions of other objects beside them, which were not loaded.
    """

    weights: dict[str, torch.Tensor]
    name: str
    sets: Mapping[str, Kind]
    left_out: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What whoever chose nothing should know; empty where there was no choice.

        For example: "this file also holds EMA weights: --weights ema".
        """
        averages = [name for name, kind in self.sets.items() if kind == "ema" and name != self.name]
        if self.sets.get(self.name) == "ema":
            return "these are EMA weights" + (f", {self.name}" if self.name else "")
        if averages:
            return f"this file also holds EMA weights: --weights {'ema' if len(averages) == 1 else averages[0]}"
        return ""


def load_checkpoint(path: str | Path, weights: str = "auto") -> dict[str, torch.Tensor]:
    """The state dict in ``path``, on the CPU.

    Kinds: ``.safetensors``; ``.pt``, ``.pth``, ``.ckpt``, ``.bin``, … as ``torch.save`` wrote it, on whichever device,
    in its present or its older format; an index of shards, ``*.index.json``; a HuggingFace folder with one of these.
    Wrappings (``{"state_dict": …}``, ``{"model": …}``, also within one another) are taken off, what lies beside the
    weights is left, and so are the prefixes ``module.`` and ``_orig_mod.`` where every name has them.

    Nothing in a file is executed. Where other objects lie beside the weights, as ``argparse.Namespace`` does in many,
    they are left out without being made. A file whose weights themselves would need code is refused.

    Args:
        path: the file or folder.
        weights: which of several sets. ``"auto"``: the plain weights, or the only ones; ``"model"``: the plain ones;
            ``"ema"``: their average over training (``{"model_ema": …}``, ``AveragedModel``, …); or a set by its name,
            as the error for a choice among several lists them: ``"generator"``, ``"state_dict/student."``.

    Raises:
        CheckpointError: missing, damaged, unsafe, without tensors, or without exactly one set that is meant.
    """
    return read_checkpoint(path, weights).weights


def read_checkpoint(path: str | Path, weights: str = "auto") -> Checkpoint:
    """``load_checkpoint`` with what else there is in the file."""
    content, left_out = _read(Path(path))
    found = weights_in(content)
    if not found:
        if left_out or isinstance(content, StandIn):
            raise refusal(Path(path), left_out)
        raise CheckpointError(f"expected named tensors (a state dict) in {path}; got {type(content).__name__}")
    try:
        chosen = choose(found, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if any(isinstance(value, StandIn) for value in chosen.beside):
        raise refusal(Path(path), left_out)
    sets = {one.name: one.kind for one in found}
    return Checkpoint(_without_prefix(dict(chosen.tensors)), chosen.name, sets, left_out)


def training_step(path: str | Path) -> Step | None:
    """When in training a checkpoint was saved, ``("step", 1200)`` or ``("epoch", 3)``, if it says so.

    A ``Minimizer`` says it in its metadata, a wrapping beside the weights (``epoch``, ``global_step``, ``step``,
    ``iteration``), a folder of HuggingFace's Trainer in ``trainer_state.json``. Where a step and an epoch are given it
    is the step. Tensors are not read, except from files of PyTorch's older format.

    Raises:
        CheckpointError: missing, damaged or unsafe.
    """
    file = weights_file(Path(path))
    if file.name.endswith(INDEX):
        return step_in(trainer_state(file))
    if file.suffix == ".safetensors":
        levels: tuple[Mapping[str, Any], ...] = (own_header(file).get("metadata", {}), header(file))
        written = step_in(*(level for level in levels if isinstance(level, Mapping)))
    else:
        content, _ = read_torch(file, mapped=True)
        sets = sorted(weights_in(content), key=lambda one: one.kind == "ema")
        written = next((step for step in (step_beside(content, one.place) for one in sets) if step), None)
    return written or (step_in(trainer_state(file)) if file.name in NAMES else None)


def _read(path: Path) -> tuple[Any, tuple[str, ...]]:
    file = weights_file(path)
    if file.name.endswith(INDEX):
        return read_shards(file, _read_file)
    return _read_file(file)


def _read_file(file: Path) -> tuple[Any, tuple[str, ...]]:
    return (read_safetensors(file), ()) if file.suffix == ".safetensors" else read_torch(file)


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in PREFIXES * 2:  # compiled and parallel wrappers come in either order
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
