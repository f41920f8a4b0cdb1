"""The flat parameter vector θ and the names behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from torch import nn

from sharpness.errors import ShapeError, UnsupportedModelError


@dataclass(frozen=True)
class ParamSpace:
    """Names and shapes of the n parameters, in the order in which they lie in θ.

    A tied weight appears once, under its first name. Frozen parameters (``requires_grad=False``) are constants,
    not part of θ.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, module: nn.Module, patterns: str | Sequence[str] | None = None) -> ParamSpace:
        """The trainable parameters of ``module``, or those of them whose name matches one of ``patterns``.

        >>> ParamSpace.of(nn.Linear(3, 2)).names
        ('weight', 'bias')
        >>> ParamSpace.of(nn.Linear(3, 2), "b*").size
        2
        """
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trainable:
            raise UnsupportedModelError(
                "expected a model with trainable parameters; none has requires_grad=True. "
                "Unfreeze the parameters to analyse: module.requires_grad_(True)."
            )
        wanted = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
        chosen = {name: p for name, p in trainable.items() if any(fnmatchcase(name, w) for w in wanted)}
        idle = [w for w in wanted if not any(fnmatchcase(name, w) for name in chosen)]
        if idle or not chosen:
            raise UnsupportedModelError(f"no trainable parameter matches {idle}; the model has {_few(list(trainable))}")
        return cls(tuple(chosen), tuple(p.shape for p in chosen.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(shape.numel() for shape in self.shapes)

    @property
    def size(self) -> int:
        """n, the length of θ."""
        return sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each parameter begins in θ."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    def flatten(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """θ of shape (n,) from named tensors."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    def split(self, theta: torch.Tensor) -> list[torch.Tensor]:
        """θ as a list of views in the parameters' shapes."""
        pieces = theta.split(self.sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def split_rows(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """b vectors as rows of shape (b, n), as a list of views of shapes (b, …)."""
        pieces = rows.split(self.sizes, dim=1)
        return [
            piece.unflatten(1, shape) if shape else piece[:, 0]
            for piece, shape in zip(pieces, self.shapes, strict=True)
        ]

    def unflatten(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        """θ as a dictionary of named views."""
        return dict(zip(self.names, self.split(theta), strict=True))

    def check(self, vector: torch.Tensor, what: str = "theta") -> None:
        """Raise ``ShapeError`` unless ``vector`` has shape (n,)."""
        if vector.shape != (self.size,):
            raise ShapeError(
                f"expected {what} of shape ({self.size},), one entry per parameter of the objective; "
                f"got {tuple(vector.shape)}"
            )


@dataclass(frozen=True, eq=False)
class Point:
    """A place in parameter space: θ of shape (n,) and the buffers that belong to it (None: the objective's own)."""

    theta: torch.Tensor
    buffers: Mapping[str, torch.Tensor] | None = None

    @classmethod
    def of(cls, module: nn.Module, space: ParamSpace) -> Point:
        """Where a module is now; its buffers are copied."""
        buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        return cls(space.flatten(dict(module.named_parameters())), buffers)

    @property
    def sha256(self) -> str:
        """SHA-256 of θ's bytes, the fingerprint that records carry."""
        return sha256(self.theta)


def sha256(vector: torch.Tensor) -> str:
    """SHA-256 of a vector's bytes, in hexadecimal."""
    return hashlib.sha256(vector.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def as_point(place: object) -> Point:
    """``place`` as a ``Point``: a point itself, anything with a ``.point`` (a ``Minimizer``), or θ."""
    place = getattr(place, "point", place)
    if isinstance(place, Point):
        return place
    if isinstance(place, torch.Tensor):
        return Point(place)
    raise ShapeError(f"expected a Point, a Minimizer or a flat tensor θ; got {type(place).__name__}")


def _few(names: Sequence[str], count: int = 6) -> str:
    more = f", … ({len(names)} in all)" if len(names) > count else ""
    return ", ".join(names[:count]) + more
