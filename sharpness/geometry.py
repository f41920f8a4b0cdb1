"""Lines and planes through parameter space, and directions for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from sharpness.errors import ShapeError
from sharpness.params import ParamSpace, Point, as_point
from sharpness.random import normal


@dataclass(frozen=True, init=False)
class Line:
    """θ(α) = (1 − α)·a + α·b: a at α = 0, b at α = 1. Buffers are interpolated the same way.

    ``a`` and ``b`` are ``Point``s, ``Minimizer``s or θ of shape (n,).

    >>> Line(torch.tensor([0.0, 2.0]), torch.tensor([4.0, 2.0])).at(0.25).theta
    tensor([1., 2.])
    """

    path: ClassVar[str] = "(1 − α)·a + α·b"
    a: Point
    b: Point

    def __init__(self, a: Any, b: Any) -> None:
        first, second = as_point(a), as_point(b)
        _check_same_shape(first.theta, second.theta)
        second = _beside(second, first.theta)
        _check_same_buffers(first, second)
        object.__setattr__(self, "a", first)
        object.__setattr__(self, "b", second)

    def at(self, alpha: float) -> Point:
        """The point at α; exactly a or b at 0 or 1."""
        if alpha in (0, 1):
            return self.b if alpha else self.a
        theta = (1 - alpha) * self.a.theta + alpha * self.b.theta
        if self.a.buffers is None or self.b.buffers is None:
            return Point(theta)
        return Point(theta, _mixed(self.a.buffers, self.b.buffers, alpha))


@dataclass(frozen=True, init=False)
class Arc:
    """θ(α) = sin(απ/2)·b + cos(απ/2)·a: a at α = 0, b at α = 1 (Keskar et al. 2017, Figure 7).

    Buffers lie between those of a and b as on the ``Line``.

    >>> Arc(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).at(0.5).theta
    tensor([0.7071, 0.7071])
    """

    path: ClassVar[str] = "sin(απ/2)·b + cos(απ/2)·a"
    a: Point
    b: Point

    def __init__(self, a: Any, b: Any) -> None:
        chord = Line(a, b)
        object.__setattr__(self, "a", chord.a)
        object.__setattr__(self, "b", chord.b)

    def at(self, alpha: float) -> Point:
        """The point at α; exactly a or b at 0 or 1."""
        between = Line(self.a, self.b).at(alpha)
        if alpha in (0, 1):
            return between
        angle = alpha * math.pi / 2
        return Point(math.sin(angle) * self.b.theta + math.cos(angle) * self.a.theta, between.buffers)


@dataclass(frozen=True, init=False)
class Plane:
    """θ(α, β) = origin + α·first + β·second, with the origin's buffers.

    ``origin`` is a ``Point``, ``Minimizer`` or θ; ``first`` and ``second`` are directions of shape (n,).

    >>> Plane(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).at(2.0, -1.0).theta
    tensor([ 2., -1.])
    """

    origin: Point
    first: torch.Tensor
    second: torch.Tensor

    def __init__(self, origin: Any, first: torch.Tensor, second: torch.Tensor) -> None:
        point = as_point(origin)
        _check_same_shape(point.theta, first)
        _check_same_shape(point.theta, second)
        object.__setattr__(self, "origin", point)
        object.__setattr__(self, "first", first.to(point.theta))
        object.__setattr__(self, "second", second.to(point.theta))

    def at(self, alpha: float, beta: float) -> Point:
        """The point at (α, β)."""
        return Point(self.origin.theta + alpha * self.first + beta * self.second, self.origin.buffers)


def filter_normalised(direction: torch.Tensor, theta: torch.Tensor, space: ParamSpace) -> torch.Tensor:
    """The direction with each filter scaled to the norm of the same filter in θ (Li et al. 2018).

    A filter is one row of a weight matrix or one output channel of a convolution. Parameters of one dimension (biases,
    norm layers) are held: their entries become 0, as in the paper's plots.

    Args:
        direction, theta: shape (n,).
        space: the names and shapes behind θ.

    >>> space = ParamSpace(("weight", "bias"), (torch.Size([2, 1]), torch.Size([2])))
    >>> filter_normalised(torch.tensor([3.0, -1.0, 1.0, 1.0]), torch.tensor([2.0, 5.0, 1.0, 1.0]), space)
    tensor([ 2., -5.,  0.,  0.])
    """
    space.check(direction, "direction")
    space.check(theta)
    pieces = []
    for step, weight in zip(space.split(direction), space.split(theta), strict=True):
        if weight.ndim < 2:
            pieces.append(torch.zeros_like(step))
            continue
        norms = (torch.linalg.vector_norm(part.flatten(1), dim=1) for part in (weight, step))
        scale = torch.nan_to_num(next(norms) / next(norms), posinf=0.0)  # a filter of norm 0 stays where it is
        pieces.append(step * scale.view(-1, *[1] * (step.ndim - 1)))
    return torch.cat([piece.reshape(-1) for piece in pieces])


def random_plane(origin: Any, space: ParamSpace, *, seed: int = 0) -> Plane:
    """A plane along two random filter-normalised directions: independent, so nearly but not exactly orthogonal."""
    point = as_point(origin)
    space.check(point.theta)
    drawn = (
        normal(space.size, key=("plane", axis), seed=seed, dtype=point.theta.dtype, device=point.theta.device)
        for axis in (0, 1)
    )
    first, second = (filter_normalised(direction, point.theta, space) for direction in drawn)
    return Plane(point, first, second)


def _beside(point: Point, theta: torch.Tensor) -> Point:
    """The point on the device of ``theta``, in its dtype."""
    if (point.theta.device, point.theta.dtype) == (theta.device, theta.dtype):
        return point
    buffers = point.buffers and {name: buffer.to(theta.device) for name, buffer in point.buffers.items()}
    return Point(point.theta.to(theta), buffers)


def _mixed(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """Buffers between those of a and b; what only one of them knows (a frozen weight, say) is as it is there."""
    between = {name: (1 - alpha) * a[name] + alpha * b[name] for name in a if name in b and a[name].is_floating_point()}
    return {**b, **a, **between}


def _check_same_shape(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.ndim != 1 or a.shape != b.shape:
        raise ShapeError(
            f"expected flat vectors of one length; got shapes {tuple(a.shape)} and {tuple(b.shape)}. "
            "Do both checkpoints belong to one model?"
        )


def _check_same_buffers(a: Point, b: Point) -> None:
    ours, theirs = a.buffers or {}, b.buffers or {}
    wrong = [name for name in ours if name in theirs and ours[name].shape != theirs[name].shape]
    if wrong:
        raise ShapeError(
            f"expected buffers of one shape at both ends; got {tuple(ours[wrong[0]].shape)} and "
            f"{tuple(theirs[wrong[0]].shape)} for {wrong[0]!r}. Do both checkpoints belong to one model?"
        )
