"""A surface between the points of a grid at which it is known."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator, NearestNDInterpolator


def between(alphas: np.ndarray, betas: np.ndarray, values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The surface on the whole grid: as it is where known, elsewhere interpolated, smoothly and on a logarithmic scale.

    Args:
        alphas, betas: ascending coordinates, of shapes (A,) and (B,).
        values: of shape (A, B); not read where not known. Logarithms are taken where all known ones are positive.
        known: truth values of shape (A, B); the four corners among them, so that nothing lies outside.

    Returns:
        Shape (A, B), by the Clough–Tocher scheme. NaN where a known value is not finite, and at places to which such a
        point is the nearest known one.

    >>> grid = np.array([0.0, 1.0, 2.0])
    >>> known = np.array([[True, False, True], [False, False, False], [True, False, True]])
    >>> between(grid, grid, np.add.outer(grid, grid), known)[0].round(6)
    array([0., 1., 2.])
    """
    return _interpolated(alphas, betas, values, known)[0]


def bending(alphas: np.ndarray, betas: np.ndarray, values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How much the surface curves between its known points: |smooth − linear interpolation|, of shape (A, B).

    On the logarithmic scale, where there is one. Infinite at the edge of a hole, among known points of which some are
    finite and some are not; 0 inside, where there is nothing to find. Arguments as for ``between``.
    """
    smooth, linear = _interpolated(alphas, betas, values, known, both=True)
    places = _places(alphas, betas)
    finite = LinearNDInterpolator(places[known], np.isfinite(values[known]).astype(float))(places)
    edge = np.abs(finite - 0.5) < 0.5 - 1e-9
    return np.where(known, 0.0, np.where(edge, np.inf, np.nan_to_num(np.abs(smooth - linear))))


def _interpolated(
    alphas: np.ndarray, betas: np.ndarray, values: np.ndarray, known: np.ndarray, *, both: bool = False
) -> list[np.ndarray]:
    places = _places(alphas, betas)
    finite = known & np.isfinite(values)
    if not _spread(places[finite]):
        return [np.where(finite, values, np.nan)] * (1 + both)
    logarithmic = bool((values[finite] > 0).all())
    heights = np.log(values[finite]) if logarithmic else values[finite]
    open_ = NearestNDInterpolator(places[known], finite[known].astype(float))(places) > 0.5
    kinds = (CloughTocher2DInterpolator, LinearNDInterpolator)[: 1 + both]
    surfaces = [np.where(open_, kind(places[finite], heights)(places), np.nan) for kind in kinds]
    if not both and logarithmic:
        surfaces = [np.exp(surface) for surface in surfaces]
    return [np.where(finite, values, surface) for surface in surfaces] if not both else surfaces


def _spread(places: np.ndarray) -> bool:
    """Whether there are points, and not all of them on one line."""
    return len(places) > 0 and np.linalg.matrix_rank(places - places.mean(axis=0)) == 2


def _places(alphas: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """The grid's points, of shape (A, B, 2), both sides of length 1."""
    units = ((axis - axis[0]) / (axis[-1] - axis[0]) for axis in (alphas, betas))
    return np.stack(np.meshgrid(*units, indexing="ij"), axis=-1)
