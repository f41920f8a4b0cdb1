"""The few things that are worth a look before every analysis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sharpness.doctor.check import Check, attempt
from sharpness.doctor.differences import FEW, check_differences, spread
from sharpness.doctor.model import check_model, check_used
from sharpness.doctor.products import check_symmetry
from sharpness.doctor.score import check_score, score
from sharpness.objective import Objective
from sharpness.objective.batches import chunked, tree_map
from sharpness.objective.losses import length
from sharpness.operators.diagnosis import has_own_functions
from sharpness.operators.linearised import RetainedGraph, flat
from sharpness.params import Point
from sharpness.random import normal, preserved_random_state

SCORED, MULTIPLIED = 512, 32  # examples, at most
CHUNKS = 8  # from which they are taken


def check_quickly(objective: Objective, place: Any, *, seed: int = 0) -> list[Check]:
    """What is worth saying of an objective at a point before it is analysed; nothing where all is well.

    Loss and accuracy on at most ``SCORED`` examples are better than guessing; products on ``MULTIPLIED`` are symmetric,
    and no parameter is without slope and curvature there; batch norm was trained; weights came in full precision, and
    few of them are exactly zero.

    Args:
        objective: f; where it has values only (``batchnorm="recompute"``), products are not looked at.
        place: θ of shape (n,), a ``Point`` or a ``Minimizer``.
        seed: of the vectors.

    Returns:
        Notes and failures, each with a cause and a cure. What the model, the loss or the data raise is one that fails.

    Cost: forward passes over ``SCORED`` examples, and two products over ``MULTIPLIED``. Where the model has functions
    of its own (``torch.autograd.Function``), some ten gradients of ``FEW`` examples in float64 as well.
    """
    checks: list[Check] = []
    with preserved_random_state():
        point = objective.point(place)
        checks += attempt("model", lambda: check_model(objective, point))
        if objective.batchnorm != "recompute" or not objective.has_batchnorm:
            checks += attempt("loss and accuracy", lambda: _score(objective, point))
            checks += attempt("derivatives", lambda: _products(objective, point, seed))
    return [check for check in checks if check.outcome != "ok"]


def _score(f: Objective, point: Point) -> Iterator[Check]:
    pieces = _sample(f, SCORED)
    yield check_score(f"loss and accuracy of {sum(map(length, pieces)):,} examples", score(f, point, pieces))


def _products(f: Objective, point: Point, seed: int) -> Iterator[Check]:
    piece = chunked(_sample(f, SCORED), MULTIPLIED)[0]
    leaves = [part.detach().clone().requires_grad_() for part in f.space.split(point.theta)]
    graph = RetainedGraph(f, piece, leaves, point.buffers)
    graph.check()
    u, v = (normal(f.size, key=("doctor", i), seed=seed, dtype=f.dtype, device=f.device) for i in (0, 1))
    of_u, of_v = (graph.product(f.space.split(vector)) for vector in (u, v))
    yield check_symmetry(u, v, of_u, of_v)
    yield check_used(f, flat(graph.gradient, batched=False), of_v, length(piece))
    if has_own_functions(graph.total):  # whose second derivative may be wrong without a word
        yield from check_differences(f.replace(examples=spread(f.examples, FEW), dtype=torch.float64), point, seed)


def _sample(f: Objective, most: int) -> list[Any]:
    """At most so many examples, evenly from some chunks; none alone, for that has no statistics of its batch."""
    chunks = f.chunks[:: -(-len(f.chunks) // CHUNKS)]
    stride = -(-sum(map(length, chunks)) // most)
    pieces = [tree_map(lambda t: t[::stride], chunk) for chunk in chunks]
    return [piece for piece in pieces if length(piece) > 1] or pieces
