"""Curvature at one of many points: the top eigenpairs, begun from a neighbour's, and the trace of what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from sharpness.objective import Objective
from sharpness.progress import Progress
from sharpness.recipes.analysis import AnalysisPlan, resumed_hessian, resumed_search
from sharpness.records import EigenPairs, TraceEstimate
from sharpness.spectrum import trace

PROBES = 30  # with which traces along the training of digits have standard errors of 3 to 5 %, more at its very start


class Curvature(NamedTuple):
    """Top eigenpairs, with their vectors, and the trace."""

    pairs: EigenPairs
    trace: TraceEstimate


def curvature(
    objective: Objective,
    place: Any,
    plan: AnalysisPlan,
    products: Path,
    *,
    probes: int = PROBES,
    start: torch.Tensor | None = None,
    seed: int = 0,
    progress: Progress,
) -> Curvature:
    """The plan's eigenpairs of the Hessian at a place, and its trace; batch norm by running statistics.

    The trace is the sum of the eigenvalues found and Hutchinson's estimate of the rest, from ``probes`` random vectors
    that the seed alone decides: they are the same at every place, so that differences between places are not theirs.

    ``start`` holds vectors near the eigenvectors, as those of the checkpoint before, of shape (n, k). Their sum begins
    the search; what it finds is certified and probed for missed pairs as ever. Along the kept iterates of the recipe
    ``digits``, one epoch apart at first and then twice as many each time, that took 67 products instead of 79 (SB) and
    107 instead of 135 (LB) at k = 1; 119 for 132 and 183 for 195 at k = 5; 172 for 174 and 246 for 266 at k = 10. A
    block of all k vectors took more than no start at all: 178 and 262 at k = 5.

    ``products`` is where products are kept, so that a killed search goes on; to be removed once the result is stored.
    """
    if plan.parameters:
        objective, place = objective.restricted(plan.parameters, place)
    operator = resumed_hessian(objective.replace(batchnorm="eval"), place, products)
    choices = {"tolerance": plan.tolerance, "seed": seed, "start": start}
    pairs = resumed_search(operator, plan.eigenpairs, products, progress, **choices)
    return Curvature(pairs, trace(operator, samples=probes, pairs=pairs, seed=seed, progress=progress))
