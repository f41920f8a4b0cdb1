"""Which points of a plane to evaluate, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sharpness.interpolation import bending

COARSE = 1 / 3  # of the budget goes to the coarse grid at most
STAGE = 1 / 10  # of the budget goes to the points that are chosen together
BESIDE = 1 / 4  # what the neighbours of a chosen point still count for


def budget_of(share: float, points: int) -> int:
    """How many points a share of them is at most; shares such as 0.07 are not cut by their rounding."""
    return int(round(share * points, 6))


def coarse_to_fine(
    alphas: np.ndarray, betas: np.ndarray, budget: int, losses: Callable[[], np.ndarray]
) -> Iterator[list[int]]:
    """Stages of points, as indices into the grid in C order: a coarse grid, then where the loss bends most.

    Each choice depends on the losses of the stages before and on nothing else, so that it is the same again after a
    kill.

    Args:
        alphas, betas: the grid, ascending, of shapes (A,) and (B,).
        budget: how many points at most; 4 or more, for the corners.
        losses: called after each stage: the losses so far, of shape (A, B).
    """
    shape = len(alphas), len(betas)
    known = np.zeros(shape, bool)
    stage = _coarse(shape, budget)
    while stage.size:
        known.flat[stage] = True
        yield stage.tolist()
        room = budget - int(known.sum())
        if room <= 0:
            return
        bent = bending(alphas, betas, losses(), known)
        stage = _chosen(bent, min(room, int(np.ceil(STAGE * budget))))


def _coarse(shape: tuple[int, int], budget: int) -> np.ndarray:
    """Every so-many-th point along each axis and the last; the finest such grid within its part of the budget."""
    for stride in range(1, max(shape)):
        rows, columns = (sorted({*range(0, size, stride), size - 1}) for size in shape)
        if len(rows) * len(columns) <= COARSE * budget:
            break
    return np.ravel_multi_index(np.ix_(rows, columns), shape).reshape(-1)


def _chosen(bent: np.ndarray, count: int) -> np.ndarray:
    """The points that bend most, not all of them in one place."""
    most = np.max(bent[np.isfinite(bent)], initial=1.0)
    bent = np.where(np.isfinite(bent), bent, 2 * most)  # the edge of a hole first
    chosen: list[int] = []
    while len(chosen) < count and bent.max() > 0:
        row, column = np.unravel_index(int(bent.argmax()), bent.shape)
        chosen.append(int(np.ravel_multi_index((row, column), bent.shape)))
        bent[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] *= BESIDE
        bent[row, column] = 0.0
    return np.array(chosen, int)
