"""What evaluated lines and planes say in numbers: barriers, widths, basins, roughness."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from contourpy import FillType, contour_generator
from scipy.interpolate import RegularGridInterpolator

from sharpness.errors import NonFiniteError, ShapeError
from sharpness.interpolation import between
from sharpness.journal import LEFT_OUT, PENDING
from sharpness.records import LineLosses, PlaneLosses, ProfileLosses

ROUNDING = 1e-9  # by which a coordinate may miss an end or a border, as a share of the range
CLIFF = 1e12  # times all other heights: how high a point that is not finite stands in contours


class Barrier(NamedTuple):
    """How far the loss rises between two points, in nats, and at which evaluated α; infinite where it is not finite."""

    height: float
    alpha: float


class Width(NamedTuple):
    """An interval in which the loss stays low; open ends are where the evaluated points end, so it may go on."""

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def length(self) -> float:
        """``high − low``; where an end is open, a lower bound."""
        return self.high - self.low


class Basin(NamedTuple):
    """A region in which the loss stays low; where it is open, it reaches the border and its area is a lower bound."""

    area: float
    """In units of α · β."""
    area_in_weights: float
    """The same times ‖first‖ · ‖second‖ · sin of the angle between them; NaN where the record does not know these."""
    open: bool


def barrier(record: LineLosses, split: str = "train") -> Barrier:
    """max over evaluated α in [0, 1] of f(θ(α)) − [(1 − α) f(a) + α f(b)], never below 0.

    The loss barrier of Entezari et al. 2022; Frankle et al. 2020 subtract the mean of f(a) and f(b) instead, which is
    the same where the ends are equally low. A point between the ends whose loss is NaN or infinite is an infinite
    barrier, the first such point its place.

    Args:
        record: a line or curve, with α = 0 and α = 1 among its points; the more between them, the less is missed.
        split: the data set.

    Raises:
        ShapeError: α = 0 or 1 is missing, points between them are pending, or there is no such split.
        NonFiniteError: the loss at an end is NaN or infinite.

    >>> line = {"alpha": np.array([0, 0.5, 1]), "loss": np.array([[1.0, 4.0, 3.0]]), "status": np.ones(3, np.uint8)}
    >>> names = {"split": np.array(["train"]), "accuracy": line["loss"], "batchnorm": "none", "start": "", "end": ""}
    >>> barrier(LineLosses(**line, **names))
    Barrier(height=2.0, alpha=0.5)
    """
    inside = np.flatnonzero((record.alpha >= -ROUNDING) & (record.alpha <= 1 + ROUNDING))
    order = inside[np.argsort(record.alpha[inside], kind="stable")]
    alphas, losses = record.alpha[order], _losses(record, split)[order]
    _check_finished(record.status[order])
    if not order.size or not np.allclose(alphas[[0, -1]], [0, 1], rtol=0, atol=ROUNDING):
        raise ShapeError(f"expected α = 0 and α = 1 among the points of the line; got {_listed(record.alpha)}")
    ends = losses[[0, -1]]
    if not np.isfinite(ends).all():
        raise NonFiniteError(f"expected finite losses at both ends of the line; got {ends[0]:g} and {ends[1]:g}")
    rise = losses - ((1 - alphas) * ends[0] + alphas * ends[1])
    rise = np.where(np.isfinite(losses), rise, np.inf)
    rise[[0, -1]] = 0.0  # what an α that misses its end by rounding would leave
    highest = int(rise.argmax())
    return Barrier(float(rise[highest]), float(alphas[highest]))


def width(
    alphas: Sequence[float] | np.ndarray, losses: Sequence[float] | np.ndarray, level: float, at: float = 0.0
) -> Width:
    """The connected interval around ``at`` in which the loss, linear between the points, is at most ``level``.

    A point whose loss is NaN or infinite lies above every level, from its neighbour on.

    Args:
        alphas: two or more distinct coordinates, in any order.
        losses: one for each.
        level: in nats.
        at: a place among the coordinates, where the loss is not above the level.

    Raises:
        ShapeError: the arguments do not fit, or the loss at ``at`` is above the level.

    >>> width([-1, 0, 1, 2], [4.0, 0.0, 1.0, 2.0], level=1.0)
    Width(low=-0.25, high=1.0, open_low=False, open_high=False)
    """
    places, heights = np.asarray(alphas, float), np.asarray(losses, float)
    if places.ndim != 1 or places.shape != heights.shape:
        raise ShapeError(f"expected coordinates and as many losses; got shapes {places.shape} and {heights.shape}")
    order = np.argsort(places)
    places, heights = _ascending(places[order], "α"), np.where(np.isfinite(heights), heights, np.inf)[order]
    if not places[0] <= at <= places[-1]:
        raise ShapeError(f"expected a place between {places[0]:g} and {places[-1]:g}, where the points are; got {at:g}")
    here = _interpolated(places, heights, at)
    _check_below(here, level, f"α = {at:g}")
    after, before = places > at, places < at
    high, open_high = _reach(np.r_[at, places[after]], np.r_[here, heights[after]], level)
    low, open_low = _reach(np.r_[at, places[before][::-1]], np.r_[here, heights[before][::-1]], level)
    return Width(low, high, open_low, open_high)


def basin(record: PlaneLosses, level: float, split: str = "train", mark: str | None = None) -> Basin:
    """The connected region around the origin, or around a mark, in which the loss is at most ``level``.

    Its edge is the contour line of the loss, linear along the edges of the grid; holes do not count. Points that were
    left out are interpolated as in plots. A point whose loss is NaN or infinite lies above every level, from its
    neighbours on.

    Args:
        record: a plane of two or more points along each axis.
        level: in nats.
        split: the data set.
        mark: the name of a point on the plane.

    Raises:
        ShapeError: points are pending, no such split or mark, or the loss at the place is above the level.
    """
    _check_finished(record.status)
    alphas, betas, heights = _surface(record, split)
    place = _marked(record, mark)
    finite = np.isfinite(heights)
    heights = np.where(finite, heights, CLIFF * (1 + np.max(np.abs(heights[finite]), initial=abs(level))))
    name = f"{mark or 'the origin'} (α = {place[0]:.3g}, β = {place[1]:.3g})"
    if not (alphas[0] <= place[0] <= alphas[-1] and betas[0] <= place[1] <= betas[-1]):
        raise ShapeError(f"expected {name} on the grid; it goes {_range(alphas)} along α and {_range(betas)} along β")
    _check_below(float(RegularGridInterpolator((alphas, betas), heights)([place])[0]), level, name)
    contours = contour_generator(alphas, betas, heights.T, fill_type=FillType.OuterOffset)
    regions: Any = zip(*contours.filled(-np.inf, level), strict=True)
    rings = min(([points[i:j] for i, j in pairwise(starts)] for points, starts in regions), key=_nearness(place))
    area = sum(_signed_area(ring) for ring in rings)  # holes run the other way round
    borders = zip(rings[0].T, (alphas, betas), strict=True)
    touches = any(
        np.isclose(edge, axis[[0, -1], None], rtol=0, atol=ROUNDING * np.ptp(axis)).any() for edge, axis in borders
    )
    unit = np.nan if record.length is None else float(np.prod(record.length)) * np.sqrt(1 - min(record.cosine**2, 1))
    return Basin(float(area), float(area * unit), touches)


def roughness(record: LineLosses | ProfileLosses | PlaneLosses, split: str = "train") -> float:
    """The mean ``excess_variation`` of the loss over the profiles of a record: 0 where all of them are quasi-convex.

    Of a line, of the line alone; of profiles, over the directions; of a plane, over its rows and columns. It depends on
    how dense the points are, so compare records of one grid. NaN where a loss is NaN or infinite.

    Raises:
        ShapeError: points are pending or were left out, or there is no such split.
    """
    _check_finished(record.status)
    if (left_out := int((record.status == LEFT_OUT).sum())) > 0:
        raise ShapeError(f"expected every point evaluated; {left_out} were left out. Evaluate the plane with share=1.")
    losses = _losses(record, split)[..., np.argsort(record.beta if isinstance(record, PlaneLosses) else record.alpha)]
    if not isinstance(record, PlaneLosses):
        return float(np.mean(excess_variation(losses)))
    losses = losses[np.argsort(record.alpha)]
    return float(np.mean([*excess_variation(losses), *excess_variation(losses.T)]))


def excess_variation(losses: np.ndarray) -> np.ndarray:
    """(Σ |fᵢ₊₁ − fᵢ| − (f₀ − min f) − (f_last − min f)) / (max f − min f) along the last axis.

    The total variation of a profile, less that of one that falls from the same end to the same minimum and rises to the
    same other end, in units of its range. It is 0 exactly for the quasi-convex profiles (nowhere up and then down
    again), and each detour of a share s of the range adds 2s. Neither scale nor offset of the loss matters, nor the
    spacing of the points, which must be in order. NaN where an entry is NaN or infinite, 0 for a constant.

    >>> excess_variation(np.array([[3.0, 1.0, 0.0, 4.0], [3.0, 1.0, 2.0, 5.0]])).tolist()
    [0.0, 0.0]
    >>> excess_variation(np.array([0.0, 1.0, 0.0, 4.0])).tolist()
    0.5
    """
    losses = np.asarray(losses, float)
    with np.errstate(invalid="ignore"):
        varied = np.abs(np.diff(losses, axis=-1)).sum(-1)
        least = losses.min(-1)
        excess = varied - (losses[..., 0] - least) - (losses[..., -1] - least)
        spread = losses.max(-1) - least
        # rounding in the sums must not make a smooth profile rough, nor less than smooth
        excess = np.where(excess <= losses.shape[-1] * np.finfo(float).eps * spread, 0.0 * excess, excess)
        return excess / np.where(spread == 0, 1.0, spread)


def _losses(record: Any, split: str) -> np.ndarray:
    names = [str(name) for name in record.split]
    if split not in names:
        raise ShapeError(f"expected split to be one of {', '.join(names)}; got {split!r}")
    losses: np.ndarray = record.loss[names.index(split)]
    return losses


def _check_finished(status: np.ndarray) -> None:
    if pending := int((status == PENDING).sum()):
        raise ShapeError(f"expected every point evaluated; {pending} of {status.size} are pending. Finish the record.")


def _check_below(here: float, level: float, name: str) -> None:
    if not here <= level < np.inf:
        raise ShapeError(f"expected a finite level at or above the loss at {name}, {here:.6g}; got {level:g}")


def _ascending(axis: np.ndarray, name: str) -> np.ndarray:
    if len(axis) < 2 or not np.isfinite(axis).all() or not (np.diff(axis) > 0).all():
        raise ShapeError(f"expected two or more distinct coordinates along {name}; got {_listed(axis)}")
    return axis


def _interpolated(places: np.ndarray, heights: np.ndarray, at: float) -> float:
    """Linear between the points; infinite beside one that is."""
    below, above = int(np.searchsorted(places, at, "right")) - 1, int(np.searchsorted(places, at))
    if below == above:
        return float(heights[below])
    share = (at - places[below]) / (places[above] - places[below])
    return float((1 - share) * heights[below] + share * heights[above])


def _reach(places: np.ndarray, heights: np.ndarray, level: float) -> tuple[float, bool]:
    """How far from the first place on the loss stays at most the level, and whether the places end before that."""
    above = np.flatnonzero(heights > level)
    if not above.size:
        return float(places[-1]), True
    last, first = above[0] - 1, above[0]
    share = (level - heights[last]) / (heights[first] - heights[last])
    reached = places[last] + share * (places[first] - places[last])
    return float(np.clip(reached, *sorted((places[last], places[first])))), False  # the sum may round past its end


def _surface(record: PlaneLosses, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ascending α, ascending β and the loss on the whole grid."""
    rows, columns = np.argsort(record.alpha), np.argsort(record.beta)
    alphas, betas = _ascending(record.alpha[rows], "α"), _ascending(record.beta[columns], "β")
    losses, known = (array[np.ix_(rows, columns)] for array in (_losses(record, split), record.status != LEFT_OUT))
    return alphas, betas, losses if known.all() else between(alphas, betas, losses, known)


def _marked(record: PlaneLosses, mark: str | None) -> tuple[float, float]:
    if mark is None:
        return 0.0, 0.0
    names = [] if record.mark is None else [str(name) for name in record.mark]
    if mark not in names or record.mark_place is None:
        raise ShapeError(f"expected a mark of the plane, {', '.join(names) or 'which has none'}; got {mark!r}")
    alpha, beta, *_ = record.mark_place[names.index(mark)]
    return float(alpha), float(beta)


def _nearness(place: tuple[float, float]) -> Any:
    """Of a region, given by its rings: 0 where the place lies in it, else the distance to its edge."""

    def distance(rings: list[np.ndarray]) -> float:
        starts, ends = np.concatenate([r[:-1] for r in rings]), np.concatenate([r[1:] for r in rings])
        run = ends - starts
        crossed = (starts[:, 1] > place[1]) != (ends[:, 1] > place[1])
        slope = run[crossed, 0] / run[crossed, 1]
        inside = np.sum(starts[crossed, 0] + slope * (place[1] - starts[crossed, 1]) > place[0]) % 2
        if inside:
            return 0.0
        along = np.sum((place - starts) * run, 1) / np.maximum(np.sum(run**2, 1), np.finfo(float).tiny)
        nearest = starts + np.clip(along, 0, 1)[:, None] * run
        return float(np.linalg.norm(nearest - place, axis=1).min())

    return distance


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring.T - ring[0][:, None]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def _range(axis: np.ndarray) -> str:
    return f"from {axis[0]:g} to {axis[-1]:g}"


def _listed(axis: np.ndarray, count: int = 6) -> str:
    return ", ".join(f"{value:g}" for value in axis[:count]) + (", …" if len(axis) > count else "")
