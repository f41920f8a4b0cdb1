"""Points and training runs that belong to a plane, just over its surface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from scipy.interpolate import RegularGridInterpolator

from sharpness.records import PlaneLosses
from sharpness.render.maps import Surface
from sharpness.render.places import is_off
from sharpness.render.style import BLACK, VERMILLION
from sharpness.report.frame import Frame

LIFT = 0.015  # of the height, so that the surface does not swallow what stands on it
LEGS = 12  # pieces of a path from one iterate to the next


def place_traces(record: PlaneLosses, surface: Surface, split: str, frame: Frame) -> Iterator[go.Scatter3d]:
    """Iterates as dots on a path, named points as dots, the origin where there is neither.

    Their heights on every scale stand in ``meta.z``; those on the first are drawn.
    """
    over = _Over(record, surface, split, frame)
    if record.walk_place is not None and record.epoch is not None:
        line = {"color": VERMILLION, "width": 4}
        yield over.trace("path", _path(record.walk_place), mode="lines", hoverinfo="skip", line=line)
        yield over.points("iterates", record.walk_place, [f"epoch {epoch}" for epoch in record.epoch], VERMILLION, 4)
    if record.mark_place is not None and record.mark is not None:
        yield over.points("marks", record.mark_place, [str(name) for name in record.mark], BLACK, 5)
    elif record.walk_place is None:
        yield over.points("origin", np.zeros((1, 3)), ["origin"], VERMILLION, 5)


def place_names(record: PlaneLosses, surface: Surface, frame: Frame, scale: str) -> list[dict[str, Any]]:
    """The names of the named points as annotations for plotly, their heights along the axis."""
    if record.mark_place is None or record.mark is None:
        return []
    heights = heights_over(surface, record.mark_place, frame, scale)
    places = zip(record.mark, record.mark_place, heights, strict=True)
    return [
        {"x": float(place[0]), "y": float(place[1]), "z": float(height), "text": plain(str(name))}
        for name, place, height in places
        if np.isfinite(height)
    ]


def plain(name: str) -> str:
    """A name in which plotly.js finds no markup."""
    return escape(name, quote=False)


def heights_over(surface: Surface, places: np.ndarray, frame: Frame, scale: str) -> np.ndarray:
    """Along the axis of the loss, a little more than the surface at places; NaN at holes and beyond the edges."""
    loss = frame.on_scale(surface.values.filled(np.nan), scale)
    over = RegularGridInterpolator((surface.alpha, surface.beta), loss, bounds_error=False)(places[:, :2])
    return over + LIFT * frame.spread(scale)


class _Over:
    """Makes what stands over the surface of one data set."""

    def __init__(self, record: PlaneLosses, surface: Surface, split: str, frame: Frame) -> None:
        self._record, self._surface, self._split, self._frame = record, surface, split, frame

    def points(self, name: str, places: np.ndarray, names: Sequence[str], colour: str, size: float) -> go.Scatter3d:
        """Dots that say what they are, hollow where they lie off the plane."""
        off = [is_off(self._record, place) for place in places]
        said = [
            "<br>".join([plain(text), f"α {a:.4g}", f"β {b:.4g}", *([f"{far:.3g} off the plane in θ"] if away else [])])
            for text, (a, b, far), away in zip(names, places, off, strict=True)
        ]
        symbols = ["circle-open" if away else "circle" for away in off]
        marker = {"size": size, "color": colour, "symbol": symbols}
        return self.trace(name, places, mode="markers", hovertext=said, hoverinfo="text", marker=marker)

    def trace(self, name: str, places: np.ndarray, **look: Any) -> go.Scatter3d:
        """Anything at these places."""
        heights = {scale: self._losses(places, scale) for scale in self._frame.scales}
        first = heights[self._frame.scales[0]]
        meta = {"split": self._split, "z": heights}
        return go.Scatter3d(x=places[:, 0], y=places[:, 1], z=first, name=name, meta=meta, **look)

    def _losses(self, places: np.ndarray, scale: str) -> list[float | None]:
        heights = heights_over(self._surface, places, self._frame, scale)
        losses = 10**heights if scale == "log" else heights
        return [float(loss) if np.isfinite(loss) else None for loss in losses]


def _path(places: np.ndarray) -> np.ndarray:
    """Points close enough for the path through them to follow the surface."""
    legs = [np.linspace(start, end, LEGS, endpoint=False) for start, end in pairwise(places)]
    return np.concatenate([*legs, places[-1:]])
