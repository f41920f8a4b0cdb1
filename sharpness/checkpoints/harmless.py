"""What provably does not matter where names of a file and a model differ, and what does although they agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

COUNTER = "num_batches_tracked"  # of batch norm; no output depends on it once the running statistics are there
MASKED = -1e4  # GPT-2's masked_bias; other models have lower ones


def missing(module: nn.Module, own: Mapping[str, torch.Tensor], places: Mapping[str, str]) -> list[str]:
    """The model's names without a ``place`` in the file that matter.

    Not those of a weight tied to one that has its place, counters of batch norm, and constants among the buffers.
    """
    tied = {_memory(own[name]) for name in places}
    absent = [name for name in own if name not in places and _memory(own[name]) not in tied and own[name].numel()]
    if not absent:
        return []
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    counted = counters(module)
    return [name for name in absent if name not in counted and not (name in buffers and _constant(name, own[name]))]


def counters(module: nn.Module) -> set[str]:
    """The names of a model's counters of batches."""
    return {f"{name}.{COUNTER}".lstrip(".") for name, part in module.named_modules() if isinstance(part, _NormBase)}


def left_over(module: nn.Module, state: Mapping[str, torch.Tensor], places: Mapping[str, str]) -> list[str]:
    """The file's names without a place in the model that matter.

    Not counters of layers whose other tensors have their place, constants, and buffers of which the model has one of
    the same last name and the same values, but saves it no more.
    """
    placed = set(places.values())
    over = [name for name in state if name not in placed]
    if not over:
        return []
    layers = {name.rpartition(".")[0] for name in placed}
    computed = defaultdict(list)
    for name, buffer in _unsaved(module):
        computed[_last(name)].append(buffer)
    return [
        name
        for name in over
        if not (_last(name) == COUNTER and name.rpartition(".")[0] in layers)
        and not _constant(name, state[name])
        and not any(_same(state[name], buffer) for buffer in computed[_last(name)])
    ]


def untied(own: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Pairs of the model's names that are one tensor, for which the file has two with other values."""
    first: dict[object, str] = {}
    pairs = [(first.setdefault(_memory(own[name]), name), name) for name in values if own[name].numel()]
    return [
        (one, other)
        for one, other in pairs
        if one != other and not torch.allclose(values[one], values[other], rtol=0, atol=0, equal_nan=True)
    ]


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    """What tensors that are the same numbers have in common."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _constant(name: str, tensor: torch.Tensor) -> bool:
    """Whether it is known from its name and values to be no weight: 0, 1, 2, …; a causal mask; what masks with."""
    last = _last(name)
    if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.nbytes:
        return False  # expanded from a few numbers it could claim any size
    flat = tensor.flatten()
    if last == "position_ids":
        return not tensor.is_floating_point() and torch.equal(flat, torch.arange(len(flat)).to(flat))
    if last in ("bias", "mask") and tensor.ndim == 4 and tensor.shape[:2] == (1, 1):
        return torch.equal(tensor, torch.ones_like(tensor).tril()) and len(flat) > 1
    return last == "masked_bias" and len(flat) == 1 and bool(flat[0] <= MASKED)


def _same(given: torch.Tensor, buffer: torch.Tensor) -> bool:
    """Whether the values are equal in the file's precision."""
    return given.shape == buffer.shape and torch.equal(given, buffer.detach().to(given))


def _unsaved(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    saved = module.state_dict().keys()
    return ((name, b) for name, b in module.named_buffers(remove_duplicate=False) if name not in saved)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
