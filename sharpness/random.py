"""Named random streams: one seed, the same numbers on every device, and nobody else's generator touched.

>>> generator("probe", seed=0).initial_seed() == generator("probe", seed=0).initial_seed()
True
>>> generator("probe", seed=0).initial_seed() == generator("batches", seed=0).initial_seed()
False
"""

from __future__ import annotations

import pickle
import random as python_random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: str | int, seed: int) -> int:
    """A 63-bit seed for the stream called ``key``: ``SeedSequence(seed, spawn_key=key)``, words hashed by CRC-32."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key]
    state = np.random.SeedSequence(seed, spawn_key=words).generate_state(2, np.uint32)
    return int(state[0]) << 31 ^ int(state[1])


def generator(*key: str | int, seed: int) -> torch.Generator:
    """The CPU generator of the stream called ``key``."""
    return torch.Generator().manual_seed(derive_seed(*key, seed=seed))


def normal(
    *shape: int,
    key: tuple[str | int, ...],
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Standard normal numbers, drawn on the CPU in ``dtype`` and then moved."""
    return torch.randn(shape, generator=generator(*key, seed=seed), dtype=dtype, device="cpu").to(device)


def random_state() -> bytes:
    """The state of the global generators of Python, NumPy and PyTorch (every device), to compare with another."""
    own = [torch.get_rng_state()]
    own += [torch.get_device_module().get_rng_state(i) for i in range(torch.accelerator.device_count())]
    return pickle.dumps((python_random.getstate(), np.random.get_state(), [state.numpy() for state in own]))


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and PyTorch (every device) on leaving, also after an error."""
    python_state, numpy_state = python_random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.accelerator.device_count())):
        try:
            yield
        finally:
            python_random.setstate(python_state)
            np.random.set_state(numpy_state)
