"""Everything that can be said of a problem before it is analysed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from sharpness.doctor.check import Check, attempt
from sharpness.doctor.differences import FEW, check_differences, spread
from sharpness.doctor.forecast import check_cost
from sharpness.doctor.model import check_model, check_used
from sharpness.doctor.products import check_products
from sharpness.doctor.score import check_score, score
from sharpness.doctor.slope import check_slope, towards
from sharpness.objective import Objective, Problem, seconds_of
from sharpness.operators import Hessian
from sharpness.params import Point
from sharpness.random import preserved_random_state

SAMPLE = 64  # examples on which products are looked at
SAME = 1e-5  # relative: sums over all examples in another order


def check_problem(
    problem: Problem,
    place: Any = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    batchnorm: str = "eval",
    seed: int = 0,
) -> list[Check]:
    """Whether f is one deterministic, twice differentiable function of θ whose products can be trusted.

    On all data: two evaluations agree, as do two splits into chunks; loss and accuracy are better than guessing; the
    point is a minimum; parameters are used; memory and time of the top eigenpairs. On ``SAMPLE`` examples: products are
    symmetric, and those of float64. On ``FEW``, in float64: gradients and columns of H are what differences give. And
    what the model is made of: precision, exact zeros, batch norm, dropout.

    Args:
        problem: model, loss, data.
        place: θ of shape (n,), a ``Point`` or a ``Minimizer``; default: the model's own weights.
        device, dtype, batchnorm: of the objective.
        seed: of the directions.

    Returns:
        Checks, of which those that are not ``"ok"`` have a cause and a cure. What the model, the loss or the data raise
        is one that fails. The model, its data and the random state are the same after as before.

    Cost: on all data four forward passes, a gradient, and a product with what it needs: about six gradients. On ``FEW``
    examples some fifty, in float64.
    """
    made: dict[str, Objective] = {}
    start: list[torch.Tensor] = []

    def make() -> Iterator[Check]:
        objectives, theta = problem.objectives(device=device, dtype=dtype, batchnorm=batchnorm)
        f = objectives["train"]
        f.check_differentiable()
        f.point(theta if place is None else place)
        made.update(objectives)
        start.append(theta)
        yield Check("objective", "ok", f"deterministic; batches add up; {f.size:,} parameters, {f.examples:,} examples")

    with preserved_random_state():
        checks = attempt("objective", make)
        if not made:
            return checks
        f = made["train"]
        point = f.point(start[0] if place is None else place)
        for split, objective in made.items():
            checks += attempt(f"loss and accuracy ({split})", partial(_score, split, objective, point))
        checks += attempt("model", lambda: check_model(f, point))
        checks += attempt("value", lambda: _value(f, point))
        checks += attempt("derivatives", lambda: _derivatives(f, point, seed))
    return checks


def _score(split: str, f: Objective, point: Point) -> Iterator[Check]:
    yield check_score(f"loss and accuracy ({split})", score(f, f.point(point), f.chunks))


def _value(f: Objective, point: Point) -> Iterator[Check]:
    """Whether f is one number."""
    value = f.value(point)
    if not math.isfinite(value):  # which was said before
        return
    yield _equal(
        "two evaluations agree",
        value,
        f.value(point),
        "the model or the loss draws random numbers, or keeps a state from call to call",
        "turn off what is random; dropout is off already",
    )
    if f.batchnorm == "batch" and f.has_batchnorm:
        yield Check("two batch splits agree", "ok", 'not asked for: with batchnorm="batch" the chunks are a part of f')
        return
    yield _equal(
        "two batch splits agree",
        value,
        f.replace(chunk_size=max(1, f.chunk_size // 3)).value(point),
        "the loss of a batch is no sum over its examples: a mean over what differs from batch to batch, or examples "
        "that see each other",
        "return per-example losses (reduction='none') or a pair (sum, weight), or pass weight=",
    )


def _equal(name: str, value: float, again: float, cause: str, cure: str) -> Check:
    difference = abs(again - value) / max(abs(value), 1e-30)
    seen = f"relative difference {difference:.1g}"
    return Check(name, "ok", seen) if difference <= SAME else Check(name, "fails", seen, cause, cure)


def _derivatives(f: Objective, point: Point, seed: int) -> Iterator[Check]:
    sample = f.replace(examples=spread(f.examples, SAMPLE))
    yield from check_products(sample, point, seed)
    yield from check_differences(f.replace(examples=spread(f.examples, FEW), dtype=torch.float64), point, seed)
    value, gradient = f.value_and_gradient(point)
    hessian = Hessian(f, point, replay="graph")
    seconds, product = seconds_of(lambda: hessian @ towards(point, gradient), f.device)
    yield check_slope(point, value, gradient, product)
    yield check_used(f, gradient, product, f.examples)
    yield from check_cost(f, hessian, seconds)
