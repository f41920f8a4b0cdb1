"""Planes: through minimizers, along random directions, eigenvectors or a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from sharpness.errors import ShapeError
from sharpness.geometry.curves import check_same_shape
from sharpness.geometry.directions import described, random_direction
from sharpness.params import ParamSpace, Point, as_point


class Projected(NamedTuple):
    """The nearest place on a plane: θ ≈ origin + α·first + β·second, ``distance`` away from it."""

    alpha: float
    beta: float
    distance: float


class Walk(NamedTuple):
    """A training run seen from a plane."""

    epochs: np.ndarray
    """(T,): after how many epochs each iterate was taken."""
    places: np.ndarray
    """(T, 3): α, β and the distance from the plane."""
    explained: np.ndarray
    """(2,): the share of the iterates' variance along each axis."""


@dataclass(frozen=True, init=False)
class Plane:
    """θ(α, β) = origin + α·first + β·second, with the origin's buffers.

    ``origin`` is a ``Point``, ``Minimizer`` or θ; ``first`` and ``second`` are directions of shape (n,). ``kind`` says
    what they are; ``marks`` are points by name to be shown, and ``walk`` a training run.

    >>> plane = Plane(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    >>> plane.at(2.0, -1.0).theta
    tensor([ 2., -1.])
    >>> plane.project(torch.tensor([3.0, 4.0]))
    Projected(alpha=3.0, beta=4.0, distance=0.0)
    """

    origin: Point
    first: torch.Tensor
    second: torch.Tensor
    kind: str
    marks: Mapping[str, Projected]
    walk: Walk | None

    def __init__(
        self,
        origin: Any,
        first: torch.Tensor,
        second: torch.Tensor,
        *,
        kind: str = "given directions",
        marks: Mapping[str, Any] | None = None,
        walk: Walk | None = None,
    ) -> None:
        point = as_point(origin)
        check_same_shape(point.theta, first)
        check_same_shape(point.theta, second)
        object.__setattr__(self, "origin", point)
        object.__setattr__(self, "first", first.to(point.theta))
        object.__setattr__(self, "second", second.to(point.theta))
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "walk", walk)
        object.__setattr__(self, "marks", {name: self.project(place) for name, place in (marks or {}).items()})

    def at(self, alpha: float, beta: float) -> Point:
        """The point at (α, β)."""
        return Point(self.origin.theta + alpha * self.first + beta * self.second, self.origin.buffers)

    @property
    def lengths(self) -> tuple[float, float]:
        """‖first‖ and ‖second‖: how far apart in θ two points are whose α, or β, differ by 1."""
        first, second = (float(torch.linalg.vector_norm(axis.double())) for axis in (self.first, self.second))
        return first, second

    @property
    def cosine(self) -> float:
        """Of the angle between the directions; 0 where one has length 0."""
        product = float(self.first.double() @ self.second.double())
        return product / (self.lengths[0] * self.lengths[1] or 1.0)

    def project(self, place: Any) -> Projected:
        """Where on the plane a point lies, and how far from it, by least squares."""
        theta = as_point(place).theta
        check_same_shape(self.origin.theta, theta)
        offset = (theta.to(self.origin.theta) - self.origin.theta).double()
        axes = torch.stack([self.first, self.second], 1).double()
        axes = axes / axes.new_tensor([length or 1.0 for length in self.lengths])
        found = torch.linalg.lstsq((axes.T @ axes).cpu(), (axes.T @ offset).cpu(), driver="gelsd").solution
        distance = float(torch.linalg.vector_norm(offset - axes @ found.to(axes)))
        alpha, beta = (share / (length or 1.0) for share, length in zip(found.tolist(), self.lengths, strict=True))
        return Projected(alpha, beta, distance)


def random_plane(origin: Any, space: ParamSpace, *, by: str = "filter", hold: bool = True, seed: int = 0) -> Plane:
    """A plane along two random directions, ``normalised`` by filters (or as ``by`` says) and orthogonal.

    Arguments are those of ``random_direction``, which also says when they are only nearly orthogonal.
    """
    point = as_point(origin)
    first = random_direction(point.theta, space, by, hold=hold, key=("plane", 0), seed=seed)
    second = random_direction(point.theta, space, by, hold=hold, key=("plane", 1), seed=seed, beside=first)
    return Plane(point, first, second, kind=described(by, hold))


def plane_through(points: Mapping[str, Any], space: ParamSpace, *, seed: int = 0) -> Plane:
    """The plane through two or three points; through two, the second axis is random.

    The first point is the origin, the second lies at (1, 0). The axes are orthogonal and of one length, so that the
    plane shows true angles, and distances in units of that between the first two.

    >>> space = ParamSpace(("w",), (torch.Size([2, 2]),))
    >>> corners = {"a": torch.zeros(4), "b": torch.tensor([2.0, 0, 0, 0]), "c": torch.tensor([1.0, 4.0, 0, 0])}
    >>> plane_through(corners, space).marks["c"]
    Projected(alpha=0.5, beta=2.0, distance=0.0)
    """
    if len(points) not in (2, 3):
        raise ShapeError(f"expected two or three points for a plane through them; got {len(points)}")
    origin, *others = (as_point(point) for point in points.values())
    for other in others:
        check_same_shape(origin.theta, other.theta)
    first = others[0].theta.to(origin.theta) - origin.theta
    if len(others) == 2:
        aside = others[1].theta.to(origin.theta) - origin.theta
    else:
        aside = random_direction(origin.theta, space, "none", hold=False, key=("plane", 1), seed=seed)
    given = aside.norm() if len(others) == 1 else max(first.norm(), aside.norm())
    for _ in range(2):
        aside = aside - (aside @ first) / (first @ first) * first
    scale = first.norm() / aside.norm()
    if not torch.isfinite(scale) or aside.norm() < 1e-5 * given:
        raise ShapeError(f"expected distinct points, not on one line, for a plane; got {', '.join(points)}")
    kind = f"through {', '.join(points)}" + ("" if len(others) == 2 else "; second axis random")
    return Plane(origin, first, scale * aside, kind=kind, marks=points)


def eigenvector_plane(origin: Any, vectors: torch.Tensor, *, kind: str = "top two Hessian eigenvectors") -> Plane:
    """The plane along two eigenvectors, the first columns of ``vectors``, of shape (n, 2 or more) and length 1."""
    if vectors.ndim != 2 or vectors.shape[1] < 2:
        raise ShapeError(f"expected two or more eigenvectors as columns; got shape {tuple(vectors.shape)}")
    return Plane(origin, vectors[:, 0], vectors[:, 1], kind=kind)


def trajectory_plane(iterates: Mapping[float, Any]) -> Plane:
    """The plane of most variance of a training run: origin the last iterate, axes the first two principal components.

    Principal components of the iterates about their mean, of length 1 and orthogonal; coordinates are thus distances in
    θ. The share of the variance along each is stated; so is how far each iterate lies off the plane.

    Args:
        iterates: three or more points by epoch, in order.

    Cost: T²·n for T iterates, which are held in memory at once.

    >>> plane = trajectory_plane({0: torch.tensor([4.0, 0, 1]), 1: torch.tensor([2.0, 0, 0]), 2: torch.zeros(3)})
    >>> plane.walk.places[:, 2].round(5).tolist(), round(float(plane.walk.explained.sum()), 5)  # three points span it
    ([0.0, 0.0, 0.0], 1.0)
    """
    if len(iterates) < 3:
        raise ShapeError(f"expected three or more iterates for their principal components; got {len(iterates)}")
    origin = as_point(list(iterates.values())[-1])
    thetas = [as_point(place).theta for place in iterates.values()]
    for theta in thetas:
        check_same_shape(origin.theta, theta)
    centred = torch.stack([theta.to(origin.theta) for theta in thetas]).double()
    centred = centred - centred.mean(0)
    # the small Gram matrix of T × T has the same spectrum as the covariance of n × n
    variances, mixtures = torch.linalg.eigh(centred @ centred.T)
    if not variances[-2] > 1e-12 * variances[-1]:
        raise ShapeError("expected iterates that span a plane; they lie on a line, or are all the same")
    axes = centred.T @ mixtures[:, [-1, -2]]
    axes, _ = torch.linalg.qr(axes)
    plane = Plane(origin, axes[:, 0], axes[:, 1], kind="principal components of a training run")
    explained = (variances[[-1, -2]] / variances.sum()).cpu().numpy()
    places = np.array([plane.project(theta) for theta in thetas])
    return Plane(
        plane.origin,
        plane.first,
        plane.second,
        kind=plane.kind,
        marks={"start": thetas[0]},
        walk=Walk(np.array(list(iterates), float), places, explained),
    )
