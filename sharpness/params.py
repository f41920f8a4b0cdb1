"""The flat parameter vector θ and the names behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    partial: bool = field(default=False, compare=False)
    """Whether other parameters of f are held constant, so that f may not depend on these at all."""

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
        names = _matching(tuple(trainable), "*" if patterns is None else patterns)
        unreal = [name for name in names if trainable[name].is_complex()]
        if unreal:
            raise UnsupportedModelError(
                f"expected real parameters, of which f has a Hessian; {_few(unreal)} is complex. Keep its real and "
                "imaginary parts as a real parameter (torch.view_as_real), or leave it out: parameters=."
            )
        return cls(names, tuple(trainable[name].shape for name in names))

    def part(self, patterns: str | Sequence[str]) -> ParamSpace:
        """The parameters among these whose name is, or matches, one of ``patterns``.

        >>> ParamSpace.of(nn.Linear(3, 2)).part("b*").names
        ('bias',)
        """
        names, shapes = _matching(self.names, patterns), dict(zip(self.names, self.shapes, strict=True))
        return ParamSpace(names, tuple(shapes[name] for name in names), partial=True)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """The parameters of each module that has any of its own, by its dotted path; that of the model itself is empty.

        A weight that is parametrized (``torch.nn.utils.parametrize``) belongs to the module that uses it.

        >>> ParamSpace.of(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))).layers
        {'0': ('0.weight', '0.bias'), '2': ('2.weight',)}
        """
        found: dict[str, tuple[str, ...]] = {}
        for name in self.names:
            path = name.split(".")[:-1]
            path = path[: path.index("parametrizations")] if "parametrizations" in path else path
            owner = ".".join(path)
            found[owner] = (*found.get(owner, ()), name)
        return found

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
        """Where a module is now; its buffers, and the parameters that are no part of θ, are copied."""
        own = dict(module.named_parameters())
        others = {**dict(module.named_buffers()), **{name: own[name] for name in own.keys() - set(space.names)}}
        return cls(space.flatten(own), {name: tensor.detach().clone() for name, tensor in others.items()})

    @property
    def sha256(self) -> str:
        """SHA-256 of θ's bytes, the fingerprint that records carry."""
        return sha256(self.theta)

    @property
    def digest(self) -> str:
        """SHA-256 of θ and of the buffers, which also say where f is."""
        parts = [sha256(tensor) for _, tensor in sorted((self.buffers or {}).items())]
        return hashlib.sha256("".join([self.sha256, *parts]).encode()).hexdigest()


def sha256(vector: torch.Tensor) -> str:
    """SHA-256 of a vector's bytes, in hexadecimal."""
    content = vector.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()


def as_point(place: object) -> Point:
    """``place`` as a ``Point``: a point itself, anything with a ``.point`` (a ``Minimizer``), or θ."""
    place = getattr(place, "point", place)
    if isinstance(place, Point):
        return place
    if isinstance(place, torch.Tensor):
        return Point(place)
    raise ShapeError(f"expected a Point, a Minimizer or a flat tensor θ; got {type(place).__name__}")


def _matching(names: Sequence[str], patterns: str | Sequence[str]) -> tuple[str, ...]:
    """The names that are, or match, one of the patterns, each of which has to find one."""
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    found = {w: [w] if w in names else [name for name in names if fnmatchcase(name, w)] for w in wanted}
    idle = [w for w, chosen in found.items() if not chosen]
    if idle or not wanted:
        raise UnsupportedModelError(f"no trainable parameter matches {idle}; the model has {_few(names)}")
    return tuple(name for name in names if any(name in chosen for chosen in found.values()))


def _few(names: Sequence[str], count: int = 6) -> str:
    more = f", … ({len(names)} in all)" if len(names) > count else ""
    return ", ".join(names[:count]) + more
