"""What exact products say of vectors that a solver proposes as eigenvectors."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import eigh

from sharpness.errors import NonFiniteError
from sharpness.operators import SymmetricOperator
from sharpness.random import generator
from sharpness.spectrum.rows import Rows

COLUMNS_AT_ONCE = 16  # vectors in one block product: enough to share what its vectors have in common
FAR_BELOW = 0.1  # of the tolerance: residuals below this agree, whatever either of them is
ROUNDING = 3.0  # floors that an exact residual may exceed the recurrence's by: other products round otherwise


def images_of(operator: SymmetricOperator, vectors: Rows) -> Rows:
    """A V for vectors as rows: one product each, up to 16 in one call."""
    images = vectors.like(vectors.count)
    for first in range(0, vectors.count, COLUMNS_AT_ONCE):
        last = min(first + COLUMNS_AT_ONCE, vectors.count)
        images.write(first, (operator @ vectors.read(first, last).T).T)
    return images


def rayleigh_ritz(vectors: Rows, images: Rows) -> tuple[np.ndarray, np.ndarray]:
    """One Rayleigh–Ritz step on nearly orthonormal ``vectors``, which become the Ritz vectors, and ``images`` theirs.

    From W = A V come the values and rotation of VᵀW c = λ VᵀV c and the residuals ‖W c − λ V c‖, with sums in float64.

    Returns:
        Ritz values in descending order and the residual norm of each.

    Raises:
        NonFiniteError: an image is NaN or infinite.
    """
    gram, small = torch.zeros(2, vectors.count, vectors.count, dtype=torch.float64, device=vectors.device)
    for columns in vectors.chunks():
        v, w = vectors.cut(columns).double(), images.cut(columns).double()
        gram += v @ v.T
        small += v @ w.T
    if not bool(small.isfinite().all()):
        raise NonFiniteError("expected finite products; one of an eigenvector found holds NaN or infinite entries.")
    values, rotation = eigh(((small + small.T) / 2).cpu().numpy(), gram.cpu().numpy())
    values, rotation = values[::-1].copy(), torch.as_tensor(rotation[:, ::-1].T.copy(), device=vectors.device)
    squares = torch.zeros_like(gram[0])
    for columns in vectors.chunks():
        v, w = (rotation @ rows.cut(columns).double() for rows in (vectors, images))
        squares += (w - torch.as_tensor(values, device=vectors.device)[:, None] * v).square().sum(1)
        vectors.paste(columns, v)
        images.paste(columns, w)
    return values, squares.sqrt().cpu().numpy()


def combination(count: int, seed: int) -> np.ndarray:
    """Random weights ω of magnitude 1 to 2 by which the errors e of ``count`` images are checked with one product.

    ‖Σ ω e‖ estimates the root of Σ ω² ‖e‖², which is no less than any ‖e‖. That it is less than t·‖e‖ for a given e
    has a probability of at most t, whatever the others are.
    """
    drawn = generator("audit", seed=seed)
    signs = 2 * torch.randint(0, 2, (count,), generator=drawn) - 1
    return (signs * (1 + torch.rand(count, generator=drawn, dtype=torch.float64))).numpy()


def agrees(exact: np.ndarray, recurrence: np.ndarray, floor: float, tolerance: float) -> np.ndarray:
    """Whether residuals that an exact product has checked are what the recurrence says, relative to the largest |λ|.

    One may be up to twice that of the recurrence and three floors beside; a tenth of the tolerance is small enough in
    any case. Where it is larger, rounding (or a product that is none of one symmetric matrix) has spoilt the
    recurrence, and further steps do not help.

    >>> agrees(np.array([3e-4, 3e-4, 5e-5]), np.array([2e-4, 1e-6, 0.0]), floor=1e-7, tolerance=1e-3).tolist()
    [True, False, True]
    """
    return (exact <= 2 * recurrence + ROUNDING * floor) | (exact <= FAR_BELOW * tolerance)
