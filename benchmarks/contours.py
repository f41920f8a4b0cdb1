"""How far the contour lines of a plane move where a part of its points is interpolated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import contourpy
import numpy as np

from sharpness.records import PlaneLosses
from sharpness.render.planes import contour_levels, drawn_surface

STEP = 0.05  # grid cells between the places of a line whose distances are taken
BLOCK = 2**20  # pairs of a place and a segment, tens of megabytes, at once


def deviations(whole: PlaneLosses, sparse: PlaneLosses) -> dict[float, np.ndarray]:
    """By level, how far places on the lines of one surface are from the lines of the other, both ways, in grid cells.

    Levels are those at which the whole plane is drawn. Places follow each other every ``STEP`` along a line; distances
    are those to the nearest segment, and infinite where the other surface lacks the level. Lines are taken on the
    logarithm of the loss, as interpolation is.
    """
    losses = [drawn_surface(record).values.filled(np.nan) for record in (whole, sparse)]
    levels = [float(level) for level in contour_levels([whole]) if losses[0].min() < level < losses[0].max()]
    contours: list[Any] = [contourpy.contour_generator(z=np.log(loss)) for loss in losses]
    moved = {}
    for level in levels:
        one, other = (contour.lines(np.log(level)) for contour in contours)
        moved[level] = np.concatenate([_distances(one, other), _distances(other, one)])
    return moved


def _distances(lines: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    if not lines:
        return np.empty(0)
    places = np.concatenate([_places(line) for line in lines])
    if not others:
        return np.full(len(places), np.inf)
    begins, ends = (np.concatenate([line[part] for line in others]) for part in (slice(-1), slice(1, None)))
    blocks = np.array_split(places, 1 + len(places) * len(begins) // BLOCK)
    return np.concatenate([_to_segments(block, begins, ends) for block in blocks])


def _places(line: np.ndarray) -> np.ndarray:
    """At equal distances along a line, its ends among them."""
    along = np.concatenate([[0.0], np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()])
    wanted = np.linspace(0, along[-1], 2 + int(along[-1] / STEP))
    return np.stack([np.interp(wanted, along, coordinate) for coordinate in line.T], axis=1)


def _to_segments(places: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """From each place to the nearest point of any segment."""
    spans, offsets = ends - begins, places[:, None] - begins
    shares = (offsets * spans).sum(-1) / np.maximum((spans**2).sum(-1), 1e-30)  # a segment may be a point
    return np.linalg.norm(offsets - np.clip(shares, 0, 1)[..., None] * spans, axis=-1).min(axis=1)
