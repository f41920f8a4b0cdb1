"""A symmetric matrix between two copies of a diagonal one."""

from __future__ import annotations

from typing import Any, final

import torch

from sharpness.operators.base import SymmetricOperator


@final
class Scaled(SymmetricOperator):
    """D A D for a diagonal D.

    >>> from sharpness.operators.base import Dense
    >>> Scaled(Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]])), torch.tensor([1.0, 3.0])) @ torch.tensor([1.0, 1.0])
    tensor([ 5., 21.])
    """

    def __init__(self, operator: SymmetricOperator, diagonal: torch.Tensor) -> None:
        self._operator = operator
        self._diagonal = diagonal.to(operator.device, operator.dtype)[:, None]

    @property
    def shape(self) -> tuple[int, int]:
        return self._operator.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._operator.dtype

    @property
    def device(self) -> torch.device:
        return self._operator.device

    @property
    def conditions(self) -> dict[str, Any]:
        return {**self._operator.conditions, "scaled": True}

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._diagonal * (self._operator @ (self._diagonal * vectors))
