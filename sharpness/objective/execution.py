"""How f is run: in exact arithmetic, and with how much memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """No autocast, attention twice differentiable and, on CUDA, no TF32 and deterministic cuDNN; then as before."""
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(precision)


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
