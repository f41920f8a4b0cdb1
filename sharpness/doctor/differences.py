"""Derivatives against what differences of f and of its gradient give, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

from sharpness.doctor.check import Check
from sharpness.doctor.products import HIDDEN, SHOW
from sharpness.objective import Objective
from sharpness.objective.batches import chunked
from sharpness.operators import Hessian
from sharpness.operators.diagnosis import own_functions
from sharpness.params import Point
from sharpness.random import normal

FEW = 16  # examples that are enough
COORDINATES = 6
STEPS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
AGREEMENT = 1e-4  # relative
SETTLED = 0.1  # of the difference to what is expected, by which differences with two steps differ
ROUNDING = 100 * torch.finfo(torch.float64).eps


def check_differences(f: Objective, place: Point, seed: int) -> Iterator[Check]:
    """g against differences of f along a random direction, and columns of H against those of g.

    Kinks of ReLU lie between the ends of large steps, and of small ones ever fewer; so the steps become smaller until
    both agree. Where differences settle at something else, a derivative is wrong. ``f`` is to be in float64, and of few
    examples.
    """
    point = f.point(place)
    value, gradient = f.value_and_gradient(point)
    random = normal(f.size, key=("doctor", "direction"), seed=seed, dtype=f.dtype, device=f.device)
    random /= random.norm()  # of length 1, as those of coordinates: fewer kinks lie on the way
    yield _gradient(f, point, random, value, gradient)
    yield _columns(f, point, random, gradient)


def _gradient(f: Objective, point: Point, v: torch.Tensor, value: float, gradient: torch.Tensor) -> Check:
    def values(theta: torch.Tensor) -> torch.Tensor:
        return gradient.new_tensor([f.value(Point(theta, point.buffers))])

    name, found = "gradient against differences of f", _compared(values, point, v, torch.dot(gradient, v)[None], value)
    if found.verdict == "agrees":
        return Check(name, "ok", f"relative difference {found.best:.1g}")
    cure = "let the model and the loss show their derivative; g and H are not those of f"
    return _different(name, [found], f, point, "", cure)


def _columns(f: Objective, point: Point, random: torch.Tensor, gradient: torch.Tensor) -> Check:
    name, hessian, scale = "sub-Hessian against differences of g", Hessian(f, point, replay="graph"), _scale(f, point)
    found: dict[str, Compared] = {}
    for at, direction in _directions(f, random, gradient):
        column = hessian @ direction
        found[at] = _compared(lambda t: f.gradient(Point(t, point.buffers)), point, direction, column, scale)
    wrong = [at for at, compared in found.items() if compared.verdict != "agrees"]
    if wrong:
        return _different(name, [found[at] for at in wrong], f, point, f": {', '.join(wrong)}", SHOW)
    first, best = (max(getattr(compared, which) for compared in found.values()) for which in ("first", "best"))
    seen = f"{len(found) - 1} columns and a random product; relative difference {best:.1g}"
    more = f" ({first:.1g} at h = {STEPS[0]:g}, over kinks and bends)" if first > AGREEMENT else ""
    return Check(name, "ok", seen + more)


def _different(name: str, found: list[Compared], f: Objective, point: Point, where: str, cure: str) -> Check:
    seen = f"relative difference {max(c.best for c in found):.2g} at best, for h from {STEPS[0]:g} to {STEPS[-1]:g}"
    verdicts = {compared.verdict for compared in found}
    if "hidden" in verdicts:
        own = own_functions(f, f.chunks[0], f.space.split(point.theta), point.buffers)
        cause = HIDDEN + (f"; there is {', '.join(own)}" if own else "")
        return Check(name, "fails", seen + where, cause, cure)
    if verdicts == {"kink"}:
        cause = "the point is on a kink, as ReLU is at exactly 0: f has two slopes there, and backward gives one"
    else:
        cause = "differences settle at nothing: on a kink, as ReLU is at exactly 0, or of sums that cancel in float64"
    return Check(name, "note", seen + where, cause, "look for weights that are all 0, and at the sizes of numbers")


def _directions(f: Objective, random: torch.Tensor, gradient: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The coordinate with the steepest slope of some parameters, spread over all, and a random direction."""
    count, parts = len(f.space.names), f.space.split(gradient)
    for i in sorted({round(i) for i in torch.linspace(0, count - 1, COORDINATES).tolist()}):
        unit = torch.zeros_like(gradient)
        unit[f.space.offsets[i] + int(parts[i].abs().argmax())] = 1.0
        yield f"column of '{f.space.names[i]}'", unit
    yield "a random product", random


class Compared(NamedTuple):
    """Relative differences at the largest step and at the best, and what they say.

    ``"agrees"``; ``"hidden"``: they settle at something else; ``"kink"``: those to both sides settle at different
    things; ``"rough"``: they do not settle.
    """

    first: float
    best: float
    verdict: str


def _compared(
    function: Callable[[torch.Tensor], torch.Tensor],
    point: Point,
    direction: torch.Tensor,
    expected: torch.Tensor,
    scale: float,
) -> Compared:
    """Central differences with ever smaller steps and what is expected of them, until they agree.

    They agree to within what the rounding of numbers as large as ``scale`` makes of them.
    """
    here, slopes, gaps, bends, relative = function(point.theta), [], [], [], []
    for h in STEPS:
        ahead, behind = function(point.theta + h * direction), function(point.theta - h * direction)
        slopes.append((ahead - behind) / (2 * h))
        gaps.append(float((slopes[-1] - expected).norm()))
        bends.append(float((ahead + behind - 2 * here).norm()) / (2 * h))
        larger = max(float(slopes[-1].norm()), float(expected.norm()))
        relative.append(gaps[-1] / larger if larger else 0.0)
        if gaps[-1] <= AGREEMENT * larger + ROUNDING * abs(scale) / h:
            return Compared(relative[0], relative[-1], "agrees")
    moves = [float((b - a).norm()) for a, b in pairwise(slopes)]
    steadiest = moves.index(min(moves))
    if moves[steadiest] > SETTLED * min(gaps):
        return Compared(relative[0], min(relative), "rough")
    kink = bends[steadiest + 1] > gaps[steadiest + 1] / 4
    return Compared(relative[0], min(relative), "kink" if kink else "hidden")


def _scale(f: Objective, point: Point) -> float:
    """Mean norm of the gradients of single examples: those of a minimum cancel."""
    pieces = f.chunks if f.batchnorm == "batch" and f.has_batchnorm else chunked(f.chunks, 1)
    norms, weight = 0.0, 0.0
    for parts, term in f.gradients(point, pieces):
        norms += math.sqrt(sum(float(part.square().sum()) for part in parts))
        weight += float(term.weight)
    return norms / weight


def spread(count: int, most: int) -> torch.Tensor:
    """A mask of at most ``most`` of so many examples, evenly over all.

    >>> spread(5, 3).tolist()
    [True, False, True, False, True]
    """
    mask = torch.zeros(count, dtype=torch.bool)
    mask[:: -(-count // most)] = True
    return mask
