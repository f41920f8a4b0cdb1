"""The search on a cheaper operator nearby, which can leave the exact one little more to do than to certify."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from sharpness.operators import SymmetricOperator
from sharpness.progress import Progress
from sharpness.random import derive_seed, normal
from sharpness.spectrum.rows import Rows
from sharpness.spectrum.search import PROBE_STEPS, Search, Task

LIKE = 1.2  # tolerances by which products with a leading vector may differ; residuals are then a half of that or less
SHARPER = 0.5  # of the tolerance, to which the cheaper operator's own pairs converge


class Rehearsal(NamedTuple):
    """Eigenvectors of a cheaper operator, as rows; how much of a product one of its products is, and their number."""

    vectors: Rows
    share: float
    products: int


def rehearse(
    operator: SymmetricOperator, exact: SymmetricOperator, task: Task, start: torch.Tensor | None, progress: Progress
) -> tuple[Rehearsal | None, int]:
    """The wanted eigenvectors of ``operator.cheaper``, if there is such an operator and it is near enough.

    Near enough is one that multiplies a leading vector as A does, to about the tolerance, which one product ``exact @
    v`` tells. Nothing rests on that but time: the pairs are certified by exact products afterwards.

    Returns:
        The rehearsal or None, and the products of ``exact`` used.
    """
    enough = task.wanted + PROBE_STEPS + task.block + 2 <= task.budget  # also if what is rehearsed turns out wrong
    offer = operator.cheaper(task.tolerance) if enough else None
    if offer is None:
        return None, 0
    share, cheap = offer
    if not _alike(exact, cheap, task):
        return None, 1

    def report(done: int, total: int | None, note: str = "") -> None:  # noqa: ARG001 - these count other products
        progress(1, None, f"on {share:.0%} of the data: {note}")

    search = Search(cheap, replace(task, seed=derive_seed("rehearsal", seed=task.seed)), start, report)
    if not search.converge(SHARPER * task.tolerance):
        return None, 1
    return Rehearsal(search.wanted_vectors(), share, search.products + 3), 1


def _alike(exact: SymmetricOperator, cheap: SymmetricOperator, task: Task) -> bool:
    n, key = cheap.shape[0], ("rehearsal",)
    vector = normal(n, key=key, seed=task.seed, dtype=cheap.dtype, device=cheap.device)
    for _ in range(2):  # what the cheaper operator leaves out of a random vector does not matter
        vector = cheap @ vector
        vector = vector / vector.norm()
    image = exact @ vector
    return bool((image - cheap @ vector).norm() <= LIKE * task.tolerance * image.norm())
