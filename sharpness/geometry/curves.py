"""Lines and curves from one point to another."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch

from sharpness.errors import ShapeError
from sharpness.params import Point, as_point, sha256


class Curve(ABC):
    """θ(α), a function of one coordinate: ``a`` at α = 0, ``b`` at α = 1. Buffers lie between those of a and b.

    ``a`` and ``b`` are ``Point``s, ``Minimizer``s or θ of shape (n,); between them may lie bends, points that shape the
    curve. Beyond its ends a curve goes on by the same formula.
    """

    formula: ClassVar[str]
    a: Point
    b: Point
    bends: tuple[torch.Tensor, ...]

    def __init__(self, a: Any, b: Any, bends: Sequence[Any] = ()) -> None:
        self.a, end = as_point(a), as_point(b)
        check_same_shape(self.a.theta, end.theta)
        self.b = _beside(end, self.a.theta)
        _check_same_buffers(self.a, self.b)
        self.bends = tuple(as_point(bend).theta.to(self.a.theta) for bend in bends)
        for bend in self.bends:
            check_same_shape(self.a.theta, bend)

    @abstractmethod
    def weights(self, alpha: float) -> list[float]:
        """What a, each bend and b count for at α: θ(α) = Σ weight · point."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the bends; empty where there are none."""
        return hashlib.sha256("".join(map(sha256, self.bends)).encode()).hexdigest() if self.bends else ""

    def at(self, alpha: float) -> Point:
        """The point at α; exactly a or b at 0 or 1."""
        if alpha in (0, 1):
            return self.b if alpha else self.a
        points = (self.a.theta, *self.bends, self.b.theta)
        theta, *others = (w * point for w, point in zip(self.weights(alpha), points, strict=True) if w)
        for term in others:
            theta += term
        if self.a.buffers is None or self.b.buffers is None:
            return Point(theta)
        return Point(theta, _mixed(self.a.buffers, self.b.buffers, alpha))


@final
class Line(Curve):
    """θ(α) = (1 − α)·a + α·b.

    >>> Line(torch.tensor([0.0, 2.0]), torch.tensor([4.0, 2.0])).at(0.25).theta
    tensor([1., 2.])
    """

    formula = "(1 − α)·a + α·b"

    def __init__(self, a: Any, b: Any) -> None:
        super().__init__(a, b)

    def weights(self, alpha: float) -> list[float]:
        return [1 - alpha, alpha]


@final
class Arc(Curve):
    """θ(α) = sin(απ/2)·b + cos(απ/2)·a (Keskar et al. 2017, Figure 7).

    >>> Arc(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).at(0.5).theta
    tensor([0.7071, 0.7071])
    """

    formula = "sin(απ/2)·b + cos(απ/2)·a"

    def __init__(self, a: Any, b: Any) -> None:
        super().__init__(a, b)

    def weights(self, alpha: float) -> list[float]:
        return [math.cos(alpha * math.pi / 2), math.sin(alpha * math.pi / 2)]


@final
class Bezier(Curve):
    """θ(α) = Σ C(d, i)·(1 − α)^(d−i)·αⁱ·pᵢ with p₀ = a, p_d = b and d − 1 bends between them (Garipov et al. 2018).

    >>> Bezier(torch.zeros(2), torch.tensor([2.0, 0.0]), [torch.tensor([1.0, 2.0])]).at(0.5).theta  # (a + 2·bend + b)/4
    tensor([1., 1.])
    """

    formula = "Bézier curve: Σ C(d, i)·(1 − α)^(d−i)·αⁱ·pᵢ"

    def weights(self, alpha: float) -> list[float]:
        degree = len(self.bends) + 1
        return [math.comb(degree, i) * (1 - alpha) ** (degree - i) * alpha**i for i in range(degree + 1)]


@final
class Polygon(Curve):
    """Straight pieces from a over the bends to b, each as long in α as the others (Garipov et al. 2018).

    >>> Polygon(torch.zeros(2), torch.tensor([2.0, 0.0]), [torch.tensor([1.0, 2.0])]).at(0.75).theta
    tensor([1.5000, 1.0000])
    """

    formula = "polygonal chain of equal pieces"

    def weights(self, alpha: float) -> list[float]:
        pieces = len(self.bends) + 1
        piece = min(max(math.floor(alpha * pieces), 0), pieces - 1)
        weights = [0.0] * (pieces + 1)
        weights[piece + 1] = alpha * pieces - piece
        weights[piece] = 1 - weights[piece + 1]
        return weights


def check_same_shape(a: torch.Tensor, b: torch.Tensor) -> None:
    """Raise ``ShapeError`` unless both are flat vectors of one length."""
    if a.ndim != 1 or a.shape != b.shape:
        raise ShapeError(
            f"expected flat vectors of one length; got shapes {tuple(a.shape)} and {tuple(b.shape)}. "
            "Do both checkpoints belong to one model?"
        )


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


def _check_same_buffers(a: Point, b: Point) -> None:
    ours, theirs = a.buffers or {}, b.buffers or {}
    wrong = [name for name in ours if name in theirs and ours[name].shape != theirs[name].shape]
    if wrong:
        raise ShapeError(
            f"expected buffers of one shape at both ends; got {tuple(ours[wrong[0]].shape)} and "
            f"{tuple(theirs[wrong[0]].shape)} for {wrong[0]!r}. Do both checkpoints belong to one model?"
        )
