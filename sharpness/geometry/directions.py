"""Random directions, and their length measured by the weights that they change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from sharpness.errors import ShapeError
from sharpness.params import ParamSpace
from sharpness.random import normal

Parts = list[torch.Tensor]


def normalised(
    direction: torch.Tensor, theta: torch.Tensor, space: ParamSpace, by: str = "filter", *, hold: bool = True
) -> torch.Tensor:
    """The direction with the length of every part of it that of the same part of θ (Li et al. 2018).

    Args:
        direction, theta: shape (n,).
        space: the names and shapes behind θ.
        by: what a part is: ``"filter"`` a row of a weight matrix or an output channel of a convolution, ``"layer"`` a
            parameter tensor, ``"model"`` all of θ; ``"weight"`` multiplies every entry by the magnitude of its weight,
            and ``"none"`` leaves the direction as it is.
        hold: parameters of one dimension (biases, norm layers) do not move: their entries become 0, as in the paper's
            plots. Otherwise, each is one part.

    Parts of θ of length 0 do not move.

    Raises:
        ShapeError: not of shape (n,), or an unknown ``by``.

    >>> space = ParamSpace(("weight", "bias"), (torch.Size([2, 1]), torch.Size([2])))
    >>> normalised(torch.tensor([3.0, -1.0, 1.0, 1.0]), torch.tensor([2.0, 5.0, 1.0, 1.0]), space)
    tensor([ 2., -5.,  0.,  0.])
    """
    _check(by)
    space.check(direction, "direction")
    space.check(theta)
    return _by_parts(partial(_scaled, by=by), direction, theta, space, by, hold)


def random_direction(
    theta: torch.Tensor,
    space: ParamSpace,
    by: str = "filter",
    *,
    hold: bool = True,
    key: tuple[str | int, ...] = ("plane", 0),
    seed: int = 0,
    beside: torch.Tensor | None = None,
) -> torch.Tensor:
    """A direction of independent standard normal entries, ``normalised``; orthogonal to ``beside`` where one is given.

    It is made orthogonal part by part before it is normalised, so that it remains both; where a part is one weight
    (``by="weight"``, filters of one entry) there is no room for that, and the two are only nearly orthogonal.

    Args:
        key, seed: the random stream it is drawn from.
        beside: another direction, normalised in the same way.
    """
    _check(by)
    space.check(theta)
    drawn = normal(space.size, key=key, seed=seed, dtype=theta.dtype, device=theta.device)
    if beside is not None:
        drawn = _by_parts(_orthogonal, drawn, beside, space, by, hold)
    return normalised(drawn, theta, space, by, hold=hold)


def described(by: str, hold: bool) -> str:
    """What random directions are, in words."""
    _check(by)
    drawn = "random, standard normal" if by == "none" else f"random, normalised by {by}"
    return drawn + ("; biases and norm layers held" if hold else "")


def _by_parts(
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    direction: torch.Tensor,
    other: torch.Tensor,
    space: ParamSpace,
    by: str,
    hold: bool,
) -> torch.Tensor:
    """``change`` of each part of the direction, given the same part of the other vector; parts are rows of matrices."""
    moving = [not (hold and len(shape) < 2) for shape in space.shapes]
    kept = torch.cat([torch.full((size,), move) for size, move in zip(space.sizes, moving, strict=True)])
    direction, other = (torch.where(kept.to(v.device), v, 0.0) for v in (direction, other))
    if by in ("model", "weight", "none"):
        return change(direction[None], other[None])[0]
    pieces = []
    for mine, theirs in zip(space.split(direction), space.split(other), strict=True):
        rows = len(mine) if by == "filter" and mine.ndim > 1 else 1
        pieces.append(change(mine.reshape(rows, -1), theirs.reshape(rows, -1)).reshape(-1))
    return torch.cat(pieces)


def _scaled(direction: torch.Tensor, theta: torch.Tensor, *, by: str) -> torch.Tensor:
    if by in ("weight", "none"):
        return direction * theta.abs() if by == "weight" else direction
    mine, target = (torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in (direction, theta))
    return direction * torch.nan_to_num(target / mine, posinf=0.0)  # a part of length 0 stays where it is


def _orthogonal(direction: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Each row without its share along the same row of the other; rows of one entry stay as they are."""
    if direction.shape[1] == 1:
        return direction
    for _ in range(2):  # what one pass leaves of a nearly parallel row is rounding in large part
        share = (direction * other).sum(1, keepdim=True) / (other * other).sum(1, keepdim=True)
        direction = direction - torch.nan_to_num(share) * other
    return direction


def _check(by: str) -> None:
    if by not in NORMALISATIONS:
        raise ShapeError(f"expected a normalisation by {', '.join(NORMALISATIONS)}; got {by!r}")


NORMALISATIONS = ("filter", "layer", "model", "weight", "none")
