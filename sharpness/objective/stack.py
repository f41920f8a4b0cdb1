"""Several points at once: functions of one point, vectorised over parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch.func import vmap

from sharpness.errors import ShapeError, SharpnessError, UnsupportedModelError
from sharpness.params import ParamSpace, Point
from sharpness.random import preserved_random_state


@final
class Stack:
    """Points, their θ and their buffers stacked, and functions of one point applied to all of them.

    ``state`` is the model's own, for what some points bring and others do not.
    """

    def __init__(self, points: list[Point], space: ParamSpace, state: Mapping[str, torch.Tensor]) -> None:
        if not points:
            raise ShapeError("expected one or more points to evaluate together; got none")
        self.points, self._space = points, space
        self.thetas = torch.stack([point.theta for point in points])
        self._names = list(dict.fromkeys(name for point in points for name in point.buffers or ()))
        self.buffers = [
            torch.stack([(point.buffers or state).get(name, state[name]) for point in points]) for name in self._names
        ]

    def named(self, buffers: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, buffers, strict=True))

    def each(self, function: Callable[..., Any], chunk: Any) -> Any:
        """``function(parameters, buffers, chunk)`` of every point, its results stacked."""
        try:
            with torch.no_grad(), preserved_random_state():
                over_points = vmap(function, in_dims=(0, 0, None))
                return over_points(self._space.split_rows(self.thetas), self.buffers, chunk)
        except SharpnessError:
            raise
        except (RuntimeError, ValueError) as error:
            raise UnsupportedModelError(
                f"expected a model that can be vectorised over its parameters; got {error}. Evaluate one point at a "
                "time: points_at_once=1"
            ) from error
