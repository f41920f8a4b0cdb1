"""Planes as surfaces in space, for plotly.js to draw and readers to turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from matplotlib.colors import to_hex
from scipy.interpolate import RegularGridInterpolator

from sharpness.journal import LEFT_OUT, PENDING
from sharpness.records import PlaneLosses, axis_label
from sharpness.render.maps import Surface, on_grid
from sharpness.render.places import is_off
from sharpness.render.planes import COLOURS, drawn_split, hole_text, plane_labels, plane_notes, surface_of
from sharpness.render.style import BLACK, VERMILLION, pooled
from sharpness.render.surfaces import DECADES, draw_surfaces
from sharpness.report.inline import inline_svg

SCALE = [[float(place), to_hex(COLOURS(place))] for place in np.linspace(0, 1, 17)]
CAMERA = {"eye": {"x": 1.35, "y": -1.55, "z": 0.9}, "center": {"x": 0, "y": 0, "z": -0.12}}
MOST_LINES = 24
MARGIN = 0.04  # under and over the surface
LIGHT = {"ambient": 0.72, "diffuse": 0.6, "specular": 0.06, "roughness": 0.9}


class Panel(NamedTuple):
    """One plane: its title, the figure as JSON for ``Plotly.newPlot``, and what to know about its points."""

    title: str
    figure: Markup
    notes: list[str]


class Surfaces(NamedTuple):
    """Planes that stand side by side, on equal axes and colours."""

    panels: list[Panel]
    splits: list[str]
    """Data sets to choose from; the first is shown."""
    heights: list[str]
    """Scales of the height to choose from, ``log`` or ``linear``; the first is shown."""
    still: Markup
    """The same without JavaScript, and on paper."""


class Frame(NamedTuple):
    """What the surfaces of a family have in common: limits of α, β and loss, and the scales of the height."""

    alpha: list[float]
    beta: list[float]
    loss: list[float]
    heights: list[str]

    def colour(self, loss: Any) -> np.ndarray:
        """As in the contours: by the logarithm, where there is one."""
        return np.log10(loss) if "log" in self.heights else np.asarray(loss)


def surfaces(family: Mapping[str, PlaneLosses], name: str) -> Surfaces | None:
    """The losses of planes as surfaces z = loss(α, β), one for each data set.

    Heights are logarithmic at first where the losses of the family are positive and span more than two decades. Points
    that are pending or not finite are holes. Points that refinement left out are interpolated, and say so when pointed
    at. Marked points and iterates stand on the surface above their α and β.

    Args:
        family: planes by the title of their panel.
        name: of the family, for readers who do not see it.

    Returns:
        None where no loss is finite, or a plane has fewer than two points along an axis.
    """
    if any(min(record.alpha.size, record.beta.size) < 2 for record in family.values()):
        return None
    losses = pooled(surface_of(record, split).values for record in family.values() for split in _splits(record))
    if losses.size == 0:
        return None
    frame = _frame(list(family.values()), losses)
    return Surfaces(
        [Panel(title, _figure(record, frame), _notes(record)) for title, record in family.items()],
        list(dict.fromkeys(split for record in family.values() for split in _splits(record))),
        frame.heights,
        inline_svg(draw_surfaces(family), f"{name}, surfaces"),
    )


def _splits(record: PlaneLosses) -> list[str]:
    """The data sets, first the one that the contours show."""
    return sorted(map(str, record.split), key=lambda split: split != drawn_split(record))


def _frame(family: Sequence[PlaneLosses], losses: np.ndarray) -> Frame:
    limits = [pooled(getattr(record, name) for record in family) for name in ("alpha", "beta")]
    alpha, beta, loss = ([float(values.min()), float(values.max())] for values in (*limits, losses))
    heights = ["linear"]
    if loss[0] > 0:
        heights.insert(0 if loss[1] > 10**DECADES * loss[0] else 1, "log")
    return Frame(alpha, beta, loss, heights)


def _figure(record: PlaneLosses, frame: Frame) -> Markup:
    figure = go.Figure(layout=_layout(record, frame))
    for split in _splits(record):
        surface = surface_of(record, split)
        figure.add_traces([_surface(record, surface, split, frame), *_places(record, surface, split)])
    return Markup(figure.to_json().replace("<", "\\u003c"))  # no name may end the element that this stands in


def _layout(record: PlaneLosses, frame: Frame) -> dict[str, Any]:
    alpha, beta = plane_labels(record)
    plain = {"showspikes": False, "showbackground": False, "exponentformat": "power"}
    return {
        "template": "none",
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "scene": {
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
            "camera": CAMERA,
            "dragmode": "turntable",
            "xaxis": plain | {"title": {"text": alpha}, "range": frame.alpha},
            "yaxis": plain | {"title": {"text": beta}, "range": frame.beta},
            "zaxis": plain | {"title": {"text": axis_label(record, "loss")}},
        },
        "meta": {name: _height(frame, name) for name in frame.heights},  # for the page to choose from
    }


def _height(frame: Frame, scale: str) -> dict[str, Any]:
    """The axis of the loss on one scale."""
    low, high = np.log10(frame.loss) if scale == "log" else frame.loss
    margin = MARGIN * (high - low)
    return {"type": scale, "range": [low - margin, high + margin], "dtick": 1 if scale == "log" else None}


def _surface(record: PlaneLosses, surface: Surface, split: str, frame: Frame) -> go.Surface:
    loss = surface.values.filled(np.nan)
    low, high = frame.colour(frame.loss)
    return go.Surface(
        x=surface.alpha,
        y=surface.beta,
        z=loss.T,  # rows along y
        surfacecolor=frame.colour(loss).T,
        cmin=low,
        cmax=high,
        colorscale=SCALE,
        showscale=False,
        hovertext=_said(record, surface, split).T,
        hoverinfo="text",  # a template would look up the text of another point: it exchanges rows and columns
        contours={name: _mesh(axis) for name, axis in (("x", surface.alpha), ("y", surface.beta))},
        lighting=LIGHT,
        meta=split,
        name="surface",
    )


def _mesh(axis: np.ndarray) -> dict[str, Any]:
    """Lines at every point of an axis, or every second, …, so that they are not too many."""
    every = -(-(axis.size - 1) // MOST_LINES)
    step = every * float(np.ptp(axis)) / (axis.size - 1)
    look = {"show": True, "color": "rgba(0,0,0,0.45)", "width": 1, "highlight": False}
    return look | {"start": float(axis[0]), "end": float(axis[-1]) + step / 4, "size": step}


def _said(record: PlaneLosses, surface: Surface, split: str) -> np.ndarray:
    """What pointing at each point says, of shape (alpha, beta)."""
    row = [str(name) for name in record.split].index(split)
    accuracy, status = (on_grid(record, values).values for values in (record.accuracy[row], record.status))
    said = np.empty(status.shape, dtype=object)
    for i, j in np.ndindex(*said.shape):
        found = f"accuracy {100 * accuracy[i, j]:.4g} %"
        if status[i, j] in (PENDING, LEFT_OUT):
            found = "interpolated, not evaluated"
        loss = f"{_plain(split)} loss {surface.values[i, j]:.4g} nat"
        said[i, j] = "<br>".join((f"α {surface.alpha[i]:.4g}", f"β {surface.beta[j]:.4g}", loss, found))
    return said


def _places(record: PlaneLosses, surface: Surface, split: str) -> Iterator[go.Scatter3d]:
    """Iterates as a path, named points as dots; the origin where there is neither."""
    if record.walk_place is not None and record.epoch is not None:
        names = [f"epoch {epoch}" for epoch in record.epoch]
        yield _above(record, surface, record.walk_place, names, mode="lines+markers", meta=split, name="iterates")
    if record.mark_place is not None and record.mark is not None:
        names = [str(name) for name in record.mark]
        yield _above(record, surface, record.mark_place, names, mode="markers+text", meta=split, name="marks")
    elif record.walk_place is None:
        yield _above(record, surface, np.zeros((1, 3)), ["origin"], mode="markers", meta=split, name="origin")


def _above(
    record: PlaneLosses, surface: Surface, places: np.ndarray, names: Sequence[str], **look: Any
) -> go.Scatter3d:
    """Points on the surface above (or below) where they lie; none where there is a hole or the plane has ended."""
    grid = (surface.alpha, surface.beta)
    height = RegularGridInterpolator(grid, surface.values.filled(np.nan), bounds_error=False)(places[:, :2])
    said = [
        f"{_plain(name)}<br>α {place[0]:.4g}<br>β {place[1]:.4g}"
        + (f"<br>{place[2]:.3g} off the plane in θ" if is_off(record, place) else "")
        for name, place in zip(names, places, strict=True)
    ]
    symbols = ["circle-open" if is_off(record, place) else "circle" for place in places]
    colour = VERMILLION if look["name"] == "origin" else BLACK
    return go.Scatter3d(
        x=places[:, 0],
        y=places[:, 1],
        z=height,
        text=[_plain(name) for name in names],
        hovertext=said,
        hovertemplate="%{hovertext}<extra></extra>",
        marker={"size": 3 if look["name"] == "iterates" else 5, "color": colour, "symbol": symbols},
        line={"color": colour, "width": 3},
        **look,
    )


def _plain(name: str) -> str:
    """A name in which plotly.js finds no markup."""
    return escape(name, quote=False)


def _notes(record: PlaneLosses) -> list[str]:
    """What the axes are, what is missing, and what is interpolated."""
    return [note for note in (*plane_notes(record), hole_text(record)) if note]
