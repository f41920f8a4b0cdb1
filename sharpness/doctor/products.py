"""Whether products with the Hessian are symmetric, and the same in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from sharpness.doctor.check import Check
from sharpness.errors import NonFiniteError
from sharpness.objective import Objective
from sharpness.objective.batches import chunked
from sharpness.operators import Hessian
from sharpness.operators.linearised import RetainedGraph
from sharpness.params import Point
from sharpness.random import normal

SYMMETRIC = 1e-4  # relative; float32 gave 1e-9 to 1e-6
PRECISE = 1e-3  # relative; the default tolerance of eigenpairs
LOOKED_AT = 4  # examples with the largest differences
DRAWS, PARTS = 8, 16  # of steps away from the point, and of each
ROUNDING = 8 * torch.finfo(torch.float32).eps  # length of a step, relative to each weight
STEADY = 1e-2  # of the largest change, that a smooth function exceeds everywhere

HIDDEN = "a derivative is hidden: an own torch.autograd.Function, detach() or .data, straight-through estimators"
SHOW = "let backward() compute with differentiable operations on saved tensors; torch.autograd.gradgradcheck tests it"


def check_products(f: Objective, place: Point, seed: int) -> Iterator[Check]:
    """Symmetry, and agreement with float64 at the same point, on the examples of ``f``."""
    point = f.point(place)
    u, v = (normal(f.size, key=("doctor", i), seed=seed, dtype=f.dtype, device=f.device) for i in (0, 1))
    hessian = Hessian(f, point, replay="graph")
    product = hessian @ v
    yield check_symmetry(u, v, hessian @ u, product)
    exact = f.replace(dtype=torch.float64)
    expected = Hessian(exact, point, replay="graph") @ v.double()
    difference = float((product.double() - expected).norm() / expected.norm()) if bool(expected.any()) else 0.0
    name, seen = "product against float64", f"relative difference {difference:.1g}"
    if difference < PRECISE:
        yield Check(name, "ok", seen)
        return
    found = _kinks(f, exact, point, v)
    cure = "use --dtype float64 (dtype=torch.float64)"
    if found is None:
        cause = "sums in float32 cancel: weights, inputs or outputs of very different size"
        yield Check(name, "fails", seen, cause, cure)
        return
    on, count, rest = found
    cause = "there H jumps between two values, both right, within the rounding of float32"
    seen += f": on a kink of ReLU or its like {on} of {count} examples; the others differ by {rest:.1g}"
    yield Check(name, "note", seen, cause, f"nothing, or {cure} to be on one side for sure")


def check_symmetry(u: torch.Tensor, v: torch.Tensor, of_u: torch.Tensor, of_v: torch.Tensor) -> Check:
    """⟨u, Hv⟩ = ⟨v, Hu⟩ relative to ‖u‖ ‖Hv‖.

    Raises:
        NonFiniteError: a product is not finite.
    """
    if not (bool(of_u.isfinite().all()) and bool(of_v.isfinite().all())):
        raise NonFiniteError(
            "expected finite products; got NaN or infinite entries. A second derivative is infinite there, as that of "
            "a square root or a norm at 0: add a small number inside."
        )
    scale = float(u.norm() * of_v.norm())
    asymmetry = abs(float(u @ of_v) - float(v @ of_u)) / scale if scale else 0.0
    name, seen = "symmetry ⟨u, Hv⟩ = ⟨v, Hu⟩", f"relative difference {asymmetry:.1g}"
    return Check(name, "ok", seen) if asymmetry < SYMMETRIC else Check(name, "fails", seen, HIDDEN, SHOW)


def _kinks(f: Objective, exact: Objective, point: Point, vector: torch.Tensor) -> tuple[int, int, float] | None:
    """Whether jumps of H within rounding explain how far products in float32 are from those in float64.

    Returns:
        How many examples lie where H jumps, of how many, and the relative difference without them. None where an
        example differs and H is smooth there.
    """
    ours, theirs = _shares(f, point, vector), _shares(exact, point, vector.double())
    total = torch.stack(theirs).sum(0).norm()
    gaps = torch.stack([(a - b).norm() for a, b in zip(ours, theirs, strict=True)])
    differ = (gaps > PRECISE * total / len(gaps)).nonzero()[:, 0]
    worst = sorted(differ.tolist(), key=lambda i: -float(gaps[i]))[:LOOKED_AT]
    pieces = _pieces(exact)
    if not worst or not all(_jumps(exact, point, pieces[i], vector.double(), float(gaps[i])) for i in worst):
        return None
    same = [i for i in range(len(gaps)) if i not in set(differ.tolist())]
    rest = torch.stack([ours[i] - theirs[i] for i in same]).sum(0).norm() if same else torch.zeros(())
    return len(differ), len(gaps), float(rest / total)


def _pieces(f: Objective) -> list[Any]:
    """The examples one by one, or where they see each other through batch norm, chunk by chunk."""
    return f.chunks if f.batchnorm == "batch" and f.has_batchnorm else chunked(f.chunks, 1)


def _shares(f: Objective, point: Point, vector: torch.Tensor) -> list[torch.Tensor]:
    """What each piece adds to Σ weights · H v, in float64."""
    return [_product(f, f.point(point), piece, vector).double() for piece in _pieces(f)]


def _product(f: Objective, point: Point, piece: Any, vector: torch.Tensor) -> torch.Tensor:
    leaves = [part.detach().clone().requires_grad_() for part in f.space.split(point.theta)]
    return RetainedGraph(f, piece, leaves, point.buffers).product(f.space.split(vector))


def _jumps(f: Objective, place: Point, piece: Any, vector: torch.Tensor, gap: float) -> bool:
    """Whether H v changes by as much as ``gap`` within a rounding of θ, and not little by little."""
    point = f.point(place)
    for draw in range(DRAWS):
        away = normal(f.size, key=("kinks", draw), seed=0, dtype=f.dtype, device=f.device)
        step = ROUNDING / PARTS * point.theta.abs() * away
        images = [_product(f, Point(point.theta + i * step, point.buffers), piece, vector) for i in range(PARTS + 1)]
        changes = torch.stack([(b - a).norm() for a, b in pairwise(images)])
        if float(changes.max()) > gap / 4:
            return bool(changes.median() <= STEADY * changes.max())
    return False
