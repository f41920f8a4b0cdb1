"""Numbers, labels and weights that are the same in every run, for small networks."""

from __future__ import annotations

import torch
from torch import nn

from sharpness.random import normal


def randn(*shape: int, key: str = "x", dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The same numbers in float64 and, rounded, in float32."""
    return normal(*shape, key=(key,), seed=0, dtype=torch.float64).to(dtype)


def labels(count: int) -> torch.Tensor:
    return torch.randint(3, (count,), generator=torch.Generator().manual_seed(1))


def filled(module: nn.Module) -> nn.Module:
    """The module in float64 with numbers of named streams in its weights and statistics."""
    with torch.no_grad():
        for name, tensor in [*module.double().named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                numbers = randn(*tensor.shape, key=name)
                tensor.copy_(0.5 + numbers.abs() if name.endswith("running_var") else 0.5 * numbers)
    return module
