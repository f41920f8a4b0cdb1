"""What a refusal shows when a file's weights do not fit a model: names by module, shapes side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

LINES = 8  # of modules or shapes; more are counted
NAMES = 3  # of a module; more are counted


@dataclass(frozen=True)
class Mismatch:
    """Names that a model has and a file lacks, the other way round, with the tensors of both where they differ, and
    pairs that are one tensor in the model and two in the file.
    """

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    reshaped: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    untied: Sequence[tuple[str, str]] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped or self.untied)

    @property
    def names(self) -> list[str]:
        """Those that can be allowed."""
        return [*self.missing, *self.unexpected, *self.reshaped]

    def without(self, allow: Iterable[str]) -> Mismatch:
        """What is left when names that match a pattern are allowed; tied weights that differ never are."""
        patterns = list(allow)

        def kept(names: Iterable[str]) -> list[str]:
            return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]

        shapes = {name: self.reshaped[name] for name in kept(self.reshaped)}
        return Mismatch(kept(self.missing), kept(self.unexpected), shapes, self.untied)


def message(found: Mismatch, source: str | Path, module: nn.Module, fitting: Mapping[str, str], count: int) -> str:
    """The message of a refusal, in lines; ``fitting``, with the file's names, are those of the model's that do fit."""
    lines = [f"expected {source} to fit the model, {type(module).__name__}; {len(fitting)} of its {count} tensors do."]
    sections = {
        "missing": by_module(found.missing),
        "unexpected": by_module(found.unexpected),
        "shapes differ": _limited([_side_by_side(name, *pair) for name, pair in found.reshaped.items()]),
        "one tensor in the model, two with other values in the file": _limited([" = ".join(p) for p in found.untied]),
    }
    for title, entries in sections.items():
        several = [f"  {title}:", *(f"    {entry}" for entry in entries)]
        lines += several if len(entries) > 1 else [f"  {title}: {entry}" for entry in entries]
    return "\n".join([*lines, _looks_like(found, fitting), *_way_out(found, fitting)])


def by_module(names: Iterable[str]) -> list[str]:
    """Names as lines, one for each module or block, like blocks in one.

    >>> by_module(["head.weight", "head.bias", "layers.0.a.weight", "layers.1.a.weight"])
    ['head: weight, bias', 'layers.0–1: a.weight']
    """
    blocks: dict[tuple[str, str], list[str]] = {}
    for name in names:
        stem, number, rest = _block(name if name.isprintable() else repr(name))
        blocks.setdefault((stem, number), []).append(rest)
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (stem, number), rests in blocks.items():
        alike.setdefault((stem, tuple(rests)), []).append(number)
    return _limited([_line(stem, numbers, rests) for (stem, rests), numbers in alike.items()])


def _block(name: str) -> tuple[str, str, str]:
    """The module or, up to its number, the block that a name belongs to, and the rest of the name.

    >>> _block("layer1.0.conv1.weight"), _block("head.fc.weight"), _block("scale")
    (('layer1', '0', 'conv1.weight'), ('head.fc', '', 'weight'), ('', '', 'scale'))
    """
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts[:-1]) if part.isdecimal()), None)
    if numbered is None:
        return ".".join(parts[:-1]), "", parts[-1]
    return ".".join(parts[:numbered]), parts[numbered], ".".join(parts[numbered + 1 :])


def _line(stem: str, numbers: Sequence[str], rests: Sequence[str]) -> str:
    label = ".".join(part for part in (stem, _ranges(numbers)) if part)
    if label and len(rests) == len(numbers) == 1:
        return f"{label}.{rests[0]}"
    more = f", … ({len(rests)}{' each' * (len(numbers) > 1)})" if len(rests) > NAMES else ""
    return f"{label}: " * bool(label) + ", ".join(rests[:NAMES]) + more


def _ranges(numbers: Sequence[str]) -> str:
    """``["0", "1", "2", "5"]`` as ``0–2, 5``."""
    values = sorted(int(number) for number in numbers if number)
    starts = values[:1] + [b for a, b in pairwise(values) if b > a + 1]
    ends = [a for a, b in pairwise(values) if b > a + 1] + values[-1:]
    return ", ".join(f"{a}–{b}" if b > a else str(a) for a, b in zip(starts, ends, strict=True))


def _limited(lines: list[str]) -> list[str]:
    return lines if len(lines) <= LINES + 1 else [*lines[:LINES], f"… and {len(lines) - LINES} more"]


def _side_by_side(name: str, own: torch.Tensor, given: torch.Tensor) -> str:
    """Both shapes, and both kinds of numbers where these differ."""
    kinds = ["", ""]
    if own.shape == given.shape:
        kinds = [
            f" {str(t.dtype).removeprefix('torch.')}, {str(t.layout).removeprefix('torch.')}" for t in (own, given)
        ]
    return f"{name}: model {tuple(own.shape)}{kinds[0]}, file {tuple(given.shape)}{kinds[1]}"


def _looks_like(found: Mismatch, fitting: Mapping[str, str]) -> str:
    layers = {name.rpartition(".")[0] for name in found.reshaped}
    if not fitting:
        return "It looks like another model: no tensor of the file has a place in this one."
    if any(own.shape == given.shape for own, given in found.reshaped.values()):
        return "It looks like a file with numbers of another kind, quantised or sparse: save plain floats."
    if any("lora_" in name for name in found.unexpected):
        return "It looks like a model with LoRA adapters: wrap this one as it was wrapped in training (peft)."
    if found.missing or found.unexpected or not layers:
        heads = [{name.rpartition(".")[0] for name in names} for names in (found.missing, found.unexpected)]
        alike = not layers and [*map(len, heads)] == [1, 1]
        return f"It looks like {'the same network with another head' if alike else 'another variant of the network'}."
    if len(layers) == 1 and all(own.shape[1:] == given.shape[1:] for own, given in found.reshaped.values()):
        own, given = next(iter(found.reshaped.values()))
        return f"It looks like the same network for {given.shape[0]} classes instead of {own.shape[0]}."
    return "It looks like the same network in another size."


def _way_out(found: Mismatch, fitting: Mapping[str, str]) -> list[str]:
    """How to allow by name what there is, where that can be meant."""
    used = [*fitting, *fitting.values()]
    patterns = list(dict.fromkeys(_pattern(name, used) for name in found.names)) if fitting else []
    if not patterns:
        return []
    shown = " ".join(f"--allow '{pattern}'" for pattern in patterns[:3])
    return [f"What the model may keep as it is, and the file have in excess, is to be allowed by name: {shown}"]


def _pattern(name: str, used: Sequence[str]) -> str:
    """The shortest beginning of a name, with a star, that no name begins with that is used; else the name.

    >>> _pattern("head.fc.weight", ["body.weight"]), _pattern("body.bias", ["body.weight"])
    ('head.*', 'body.bias')
    """
    ends = (dot.end() for dot in re.finditer(r"\.", name))
    free = (name[:end] for end in ends if not any(other.startswith(name[:end]) for other in used))
    return next((f"{start}*" for start in free), name)
