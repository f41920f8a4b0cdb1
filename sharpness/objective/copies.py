"""A model of one's own: unwrapped, copied, and free of what belongs to training only."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
import torch.utils.checkpoint
from torch import nn

from sharpness.errors import UnsupportedModelError

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside ``torch.compile`` and data-parallel wrappers; sharded models are refused."""
    while True:
        if "FullyShardedDataParallel" in type(module).__name__ or "FSDPModule" in {
            c.__name__ for c in type(module).__mro__
        }:
            raise UnsupportedModelError(
                "expected an unsharded model; got FSDP, which ignores parameters given to it. "
                "Gather the full state dict and load it into the plain module."
            )
        if isinstance(module, PARALLEL):
            module = module.module
        elif _is_compiled(module):
            module = cast("nn.Module", module._orig_mod)
        else:
            return module


def copied(module: nn.Module) -> nn.Module:
    """A deep copy of the unwrapped model, which calls the parts that are wrapped inside it directly.

    What a forward pass left behind with its graph, as weight norm's hook leaves ``weight``, is copied as a constant.
    """
    module = unwrap(module)
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                "expected a model in Python; got TorchScript" + (f" in {name!r}" if name else "") + ", which takes no "
                "weights as arguments. Load its state_dict() into the module that it was made from."
            )
    left = (
        value
        for part in module.modules()
        for value in pytree.tree_leaves(vars(part))
        if isinstance(value, torch.Tensor) and value.grad_fn is not None
    )
    own: nn.Module = copy.deepcopy(module, {id(value): value.detach().clone() for value in left})
    for part in own.modules():
        inner: Any = part.module if isinstance(part, PARALLEL) else part._orig_mod if _is_compiled(part) else None
        if inner is not None:  # names keep the wrapper's; a compiler's own __setattr__ would pass it on to the inside
            object.__setattr__(part, "forward", inner.__call__)
    return own


def _is_compiled(module: nn.Module) -> bool:
    """Whether it is ``torch.compile``'s wrapper, whose class takes a second to import."""
    return type(module).__name__ == "OptimizedModule"


def placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model on a device, in a dtype, and with it the tensors that are attributes of its parts, also in lists.

    Complex numbers, as of rotary embeddings, stay complex.
    """

    def place(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_complex():
            return tensor.to(device=device, dtype=dtype.to_complex())
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    for part in module._apply(place).modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor) or (isinstance(value, (list, tuple, dict)) and not name.startswith("_")):
                vars(part)[name] = pytree.tree_map_only(torch.Tensor, place, value)
    return module


@contextmanager
def plainly(module: nn.Module, device: torch.device) -> Iterator[None]:
    """While it runs a forward pass: no activation checkpointing, and recurrent layers that can be differentiated twice.

    Checkpointing computes activations again in the backward pass, when the module has its own weights back; it changes
    memory, which chunks bound here, and no value. cuDNN's recurrent layers have no second derivative and, in eval mode,
    not even a first.
    """
    recurrent = device.type == "cuda" and any(isinstance(part, nn.RNNBase) for part in module.modules())
    _exchange(1)
    try:
        with torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
            yield
    finally:
        _exchange(-1)


class _Direct:
    """Stands for the reentrant checkpoint's function: calls, keeps everything."""

    @staticmethod
    def apply(function: Any, _: bool, *args: Any) -> Any:
        return function(*args)


def _around(*_: Any, **__: Any) -> Iterator[None]:
    """Stands for what the other checkpoint does before and after the call."""
    yield


_AT_ONCE: dict[str, Any] = {"CheckpointFunction": _Direct, "_checkpoint_without_reentrant_generator": _around}
_OWN = {name: getattr(torch.utils.checkpoint, name) for name in _AT_ONCE}
_passes, _lock = 0, threading.Lock()


def _exchange(more: int) -> None:
    """One forward pass more or less, in whichever thread; PyTorch's own functions are back after the last."""
    global _passes
    with _lock:
        _passes += more
        for name, function in (_AT_ONCE if _passes else _OWN).items():
            setattr(torch.utils.checkpoint, name, function)
