"""How f is run: where, in exact arithmetic, and with how much memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness.errors import ShapeError, UnsupportedModelError

Result = TypeVar("Result")


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """No autocast, full float32, attention twice differentiable and, on CUDA, deterministic cuDNN; then as before."""
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(device.type, enabled=False):
        precision, fast = torch.get_float32_matmul_precision(), torch.backends.mha.get_fastpath_enabled()
        torch.set_float32_matmul_precision("highest")  # no TF32 on GPUs, no bfloat16 on CPUs that have it
        torch.backends.mha.set_fastpath_enabled(False)  # it is taken without gradients only, and cuts padding off
        try:
            if device.type != "cuda":
                yield
                return
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.backends.mha.set_fastpath_enabled(fast)


def placement(
    module: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Where f is computed and in which precision: by default as the module is, half precision raised to float32."""
    first = next(module.parameters())
    if dtype is None:
        dtype = first.dtype if first.dtype == torch.float64 else torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"expected dtype torch.float32 or torch.float64 for the analysis; got {dtype}")
    where = torch.device(device) if device is not None else first.device
    if where.type == "mps":
        raise UnsupportedModelError("device mps has no float64, in which sums are accumulated; use device='cpu'")
    return where, dtype


@cache
def warm_allocator() -> None:
    """Let the C library keep the memory of freed activations, as it does once a large block has come and gone.

    Until then glibc gives every freed block of 128 KiB and more back to the system and takes it anew, page by page: on
    small networks that is half of the time of a forward pass. It keeps what is below the largest block freed so far, up
    to 32 MiB; so one block is freed here, once in a process.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def saved_bytes(run: Callable[[], Any], exclude: Sequence[torch.Tensor] = ()) -> int:
    """Bytes of distinct tensors that autograd saves while ``run()`` runs, those of ``exclude`` not counted."""
    ignored = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in ignored:  # a view of the data counts with its own size, not with that of the data
            seen[place] = max(seen.get(place, 0), tensor.nbytes)
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()  # alive until counted, so that no storage is reused
    del kept
    return sum(seen.values())


def device_name(device: torch.device) -> str:
    """The device as records carry it: a GPU with its model."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def seconds_of(run: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """How long ``run()`` takes on ``device``, and its result."""
    _synchronise(device)
    begin = time.perf_counter()
    result = run()
    _synchronise(device)
    return time.perf_counter() - begin, result


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """Memory that is free for the taking on ``device`` now, within what a container allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = 2**31  # systems without /proc: be modest
    return min([free, *_container_bytes()])


def _container_bytes() -> Iterator[int]:
    """What the control group of this process, if it has one, leaves free."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return
    if limit.isdigit():
        yield max(0, int(limit) - int(used))
