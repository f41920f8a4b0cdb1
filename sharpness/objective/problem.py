"""What is analysed or trained: a model, a loss and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sharpness.errors import UnsupportedModelError
from sharpness.objective.objective import Objective


@dataclass(frozen=True)
class Problem:
    """A model, its loss, training data and, where there are any, test data.

    What a user's ``FILE.py:NAME`` returns (or the plain tuple ``(model, loss, train[, test])``) and what recipes are
    written against. ``loss``, ``weight`` and the data are as in ``Objective.from_module``.
    """

    model: nn.Module
    loss: Callable[..., Any] | str
    train: Any
    test: Any = None
    weight: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, made: Any) -> Problem:
        """``made`` as a problem: a problem itself, or a tuple (model, loss, train[, test])."""
        if isinstance(made, Problem):
            return made
        if isinstance(made, tuple) and len(made) in (3, 4) and isinstance(made[0], nn.Module):
            return cls(*made)
        raise UnsupportedModelError(
            "expected a sharpness.Problem or a tuple (model, loss, train[, test]) whose model is a torch.nn.Module; "
            f"got {type(made).__name__}"
        )

    def objectives(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, batchnorm: str = "eval"
    ) -> tuple[dict[str, Objective], torch.Tensor]:
        """The objectives on ``train`` and, where there is test data, ``test``; and the model's θ."""
        splits = {"train": self.train} | ({} if self.test is None else {"test": self.test})
        made = {
            name: Objective.from_module(
                self.model, self.loss, data, weight=self.weight, device=device, dtype=dtype, batchnorm=batchnorm
            )
            for name, data in splits.items()
        }
        return {name: objective for name, (objective, _) in made.items()}, made["train"][1]
