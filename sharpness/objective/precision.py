"""Casts to fewer digits than the numbers have, which models make for memory and speed: left out.

Language models compute their loss, their norms and the softmax of attention in ``.float()``, which is more than their
own half precision and less than the float64 of an analysis. Like automatic mixed precision, which is off while f is
computed, such casts are no part of f.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = {torch.float64: 64, torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}


def kept(own: torch.dtype, asked: Any) -> Any:
    """The wider of two floating dtypes; whatever else is asked for as it is.

    >>> kept(torch.float64, torch.float32), kept(torch.float32, torch.float64), kept(torch.float64, torch.int64)
    (torch.float64, torch.float64, torch.int64)
    """
    narrower = isinstance(asked, torch.dtype) and BITS.get(asked, 64) < BITS.get(own, 0)
    return own if narrower else asked


def _taking(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that takes a dtype, which narrows nothing."""

    def run(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        named = {name: kept(input.dtype, value) for name, value in kwargs.items()}
        return function(input, *(kept(input.dtype, value) for value in args), **named)

    return run


def _casting(dtype: torch.dtype) -> Callable[..., Tensor]:
    """A method that casts to this dtype, which narrows nothing."""

    def run(input: Tensor, **kwargs: Any) -> Tensor:
        return input.to(kept(input.dtype, dtype), **kwargs)

    return run


def _weighted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that takes weights in fewer digits than its input has, as those of classes may be."""

    def run(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def fitting(given: Any) -> Any:
            return (
                given.to(kept(given.dtype, input.dtype)) if isinstance(given, Tensor) and given.dtype in BITS else given
            )

        return function(input, *map(fitting, args), **{name: fitting(value) for name, value in kwargs.items()})

    return run


REDUCTIONS = ("softmax", "log_softmax", "sum", "mean", "cumsum", "prod")
TAKING = (
    Tensor.to,
    Tensor.type,
    F.softmax,
    F.log_softmax,
    *(getattr(o, r) for o in (torch, Tensor) for r in REDUCTIONS),
)
CASTING = {Tensor.float: torch.float32, Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16}
WEIGHTED = (
    F.cross_entropy,
    F.nll_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.multi_margin_loss,
)
WIDENED: dict[Any, Callable[..., Tensor]] = {
    **{function: _taking(function) for function in TAKING},
    **{method: _casting(dtype) for method, dtype in CASTING.items()},
    **{function: _weighted(function) for function in WEIGHTED},
}
"""Functions that can narrow numbers, and the same ones that cannot."""
