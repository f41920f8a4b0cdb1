"""The sets of weights in what a file holds, which of them is meant, and the step they are from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sharpness.errors import CheckpointError

Kind = Literal["model", "ema", "other"]
Step = tuple[Literal["epoch", "step"], int]
WRAPPINGS = (
    *("state_dict", "model_state_dict", "model_state", "current_model_state", "module_state_dict"),
    *("model", "module", "net", "network", "params", "weights"),
)
AVERAGES = {"ema", "averaged", "swa"}  # words in the names of averaged weights
TRAINING = re.compile(r"optimi[sz]er|sched|scaler|(?<![a-z])(optim|opt|rng|amp)(?![a-z])", re.IGNORECASE)  # no weights
STEPS = ("global_step", "step", "steps", "iteration", "iterations", "iter", "iter_num", "num_updates")
EPOCHS = ("epoch", "epochs", "current_epoch")
MEANINGS = {"auto": "one set of weights", "model": "one set of plain weights", "ema": "one set of EMA weights"}
DEPTH = 6  # of wrappings in wrappings; what lies deeper is no weights


@dataclass(frozen=True, eq=False)
class Weights:
    """One set of named tensors in a file.

    ``place`` are the keys that lead to it, and its ``name`` these with slashes: ``state_dict``,
    ``callbacks/EMA/ema_weights``, or ``model_ema.`` for those tensors whose names begin so. ``kind`` is ``"ema"`` for
    averages over training, ``"model"`` for what stands where a model's weights stand, and else ``"other"``.
    """

    place: tuple[str, ...]
    kind: Kind
    tensors: Mapping[str, torch.Tensor]
    beside: tuple[object, ...] = ()
    """Values among the tensors that are none."""

    @property
    def name(self) -> str:
        return "/".join(self.place)

    def __str__(self) -> str:
        name, count = self.name if self.name.isprintable() else repr(self.name), len(self.tensors)
        about = f"{count} tensor{'s' * (count != 1)}{', EMA' * (self.kind == 'ema')}"
        return f"{name or 'the file itself'} ({about})"


def weights_in(content: object) -> list[Weights]:
    """Every set of weights in what a file holds, wrapped or not; optimizer states and the like are none.

    >>> inside = {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}, "optimizer": {"m": torch.ones(2)}}
    >>> [str(weights) for weights in weights_in(inside)]
    ['model (1 tensor)', 'ema (1 tensor, EMA)']
    """
    return list(_walk(content, (), "model", set())) if isinstance(content, Mapping) else []


def choose(found: Sequence[Weights], wanted: str) -> Weights:
    """The set that ``wanted`` means: ``"auto"``, ``"model"``, ``"ema"``, or a name, if need be with a prefix.

    Raises:
        CheckpointError: none, or more than one. The message says only this; it needs the file's name in front.
    """
    plain, averaged = ([w for w in found if w.kind == kind] for kind in ("model", "ema"))
    if wanted in ("auto", "model"):
        candidates = plain or (list(found) if wanted == "auto" else [])
    elif wanted == "ema":
        candidates = averaged
    else:
        candidates = [w for w in found if w.name == wanted] or [w for w in _prefixed(found, wanted) if w.tensors]
    if len(candidates) != 1:
        held = ", ".join(map(str, found[:8])) + (f", … ({len(found)} in all)" if len(found) > 8 else "")
        raise CheckpointError(
            f"expected {MEANINGS.get(wanted, f'weights {wanted!r}')}; it holds {held}. "
            f"Name one: --weights '{_other(found, wanted)}'."
        )
    return candidates[0]


def step_beside(content: object, place: Sequence[str]) -> Step | None:
    """What a file's wrappings, down to the weights at ``place``, say of when they were saved.

    Steps are finer than epochs: where both are given it is the step.

    >>> step_beside({"epoch": 3, "global_step": 1200, "state_dict": {}}, ["state_dict"])
    ('step', 1200)
    >>> step_beside({"epoch": 3.0, "model": {}}, ["model"])
    ('epoch', 3)
    """
    levels: list[Mapping[Any, Any]] = []
    for key in place:
        if not isinstance(content, Mapping) or key not in content:
            break
        levels.append(content)
        content = content[key]
    return step_in(*levels)


def step_in(*levels: Mapping[Any, Any]) -> Step | None:
    """The step, or else the epoch, that the first of some mappings gives that gives one."""
    names: Mapping[Literal["step", "epoch"], tuple[str, ...]] = {"step": STEPS, "epoch": EPOCHS}
    numbers = ((unit, _whole(level.get(name))) for unit in names for level in levels for name in names[unit])
    return next(((unit, number) for unit, number in numbers if number is not None), None)


def _walk(content: Mapping[Any, Any], place: tuple[str, ...], kind: Kind, seen: set[int]) -> Iterator[Weights]:
    seen.add(id(content))  # each once, also where a file holds it within itself
    inside: list[Weights] = []
    for key, value in content.items():
        new = isinstance(value, Mapping) and id(value) not in seen and len(place) < DEPTH
        if new and isinstance(key, str) and not TRAINING.search(key):
            inside += _walk(value, (*place, key), _kind(kind, key, content), seen)
    named = {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    weighs = named and (not place or any(t.ndim for t in named.values()))  # numbers below are counters and scores
    if not weighs or any(weights.kind != "other" for weights in inside):
        yield from inside
        return
    beside = tuple(v for v in content.values() if not isinstance(v, torch.Tensor))
    if "n_averaged" in named and any(name.startswith("module.") for name in named):  # AveragedModel
        del named["n_averaged"]
        kind = "ema"
    yield from _averages_apart(Weights(place, kind, named, beside))


def _averages_apart(weights: Weights) -> Iterator[Weights]:
    """A set, and as further sets the averages that it holds under names of their own, as ``ema_model.``."""
    firsts = {name.partition(".")[0]: None for name in weights.tensors}
    averages = [first for first in firsts if is_average(first) and first not in weights.tensors]
    if len(averages) < len(firsts):
        yield weights
    for first in averages:
        yield from _prefixed([weights], "/".join((*weights.place, f"{first}.")), "ema")


def _prefixed(found: Sequence[Weights], name: str, kind: Kind = "other") -> Iterator[Weights]:
    """The tensors whose names begin with the last part of ``name``, without it, in the set that its rest names."""
    *place, prefix = name.split("/")
    for weights in found if prefix.endswith(".") else ():
        if list(weights.place) == place or (not place and weights.kind == "model"):
            inner = {n.removeprefix(prefix): t for n, t in weights.tensors.items() if n.startswith(prefix)}
            if "n_averaged" in inner and len(inner) > 1:
                del inner["n_averaged"]
            yield Weights((*weights.place, prefix), kind, inner)


def _kind(outer: Kind, key: str, beside: Mapping[Any, Any]) -> Kind:
    """The kind of what lies under ``key``."""
    lightning = key == "state_dict" and "current_model_state" in beside  # where WeightAveraging keeps the plain ones
    if outer == "ema" or lightning or is_average(key):
        return "ema"
    return "model" if outer == "model" and key in WRAPPINGS else "other"


def is_average(key: str) -> bool:
    """Whether a word of a key says so: ``model_ema``, ``EMACallback`` and ``modelEMA``, not ``schema``."""
    return not AVERAGES.isdisjoint(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key))


def _other(found: Sequence[Weights], wanted: str) -> str:
    """A choice that would do."""
    names = [w.name for w in found if w.name and w.name != wanted]
    return "auto" if len(found) == 1 else (names or ["auto"])[0]


def _whole(value: object) -> int | None:
    """A whole number from 0, be it a number, a tensor or, as in safetensors, which hold no other, a text."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < 20 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63 or value != int(value):
        return None
    return int(value)
