"""Planes as surfaces in space, for plotly.js to draw and readers to turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from matplotlib.colors import to_hex

from sharpness.journal import LEFT_OUT, PENDING
from sharpness.records import PlaneLosses, axis_label
from sharpness.render.maps import Surface, on_grid
from sharpness.render.planes import COLOURS, drawn_split, hole_text, plane_labels, plane_notes, surface_of
from sharpness.render.style import pooled
from sharpness.render.surfaces import draw_surfaces
from sharpness.report.frame import Frame, frame_of
from sharpness.report.inline import inline_svg
from sharpness.report.places import place_names, place_traces, plain

SCALE = [[float(place), to_hex(COLOURS(place))] for place in np.linspace(0, 1, 17)]
CAMERA = {"eye": {"x": 1.35, "y": -1.55, "z": 0.9}, "center": {"x": 0, "y": 0, "z": -0.12}}
MOST_LINES = 24
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
    scales: list[str]
    """Scales of the height to choose from, ``log`` or ``linear``; the first is shown."""
    still: Markup
    """The same without JavaScript, and on paper."""


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
    frame = frame_of(list(family.values()), losses)
    return Surfaces(
        [Panel(title, _figure(record, frame), _notes(record)) for title, record in family.items()],
        list(dict.fromkeys(split for record in family.values() for split in _splits(record))),
        frame.scales,
        inline_svg(draw_surfaces(family), f"{name}, surfaces"),
    )


def _splits(record: PlaneLosses) -> list[str]:
    """The data sets, first the one that the contours show."""
    return sorted(map(str, record.split), key=lambda split: split != drawn_split(record))


def _figure(record: PlaneLosses, frame: Frame) -> Markup:
    found = {split: surface_of(record, split) for split in _splits(record)}
    figure = go.Figure(layout=_layout(record, found, frame))
    for split, surface in found.items():
        figure.add_traces([_surface(record, surface, split, frame), *place_traces(record, surface, split, frame)])
    return Markup(figure.to_json().replace("<", "\\u003c"))  # no name may end the element that this stands in


def _layout(record: PlaneLosses, found: Mapping[str, Surface], frame: Frame) -> dict[str, Any]:
    """Axes and view; in ``meta`` what depends on the scale of the height and the data set, for the page to choose."""
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
        "meta": {
            scale: {
                "axis": frame.axis(scale),
                "names": {split: place_names(record, surface, frame, scale) for split, surface in found.items()},
            }
            for scale in frame.scales
        },
    }


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
        meta={"split": split},
        name="surface",
    )


def _mesh(axis: np.ndarray) -> dict[str, Any]:
    """Lines at every point of an axis, or every second, …, so that they are not too many."""
    every = -(-(axis.size - 1) // MOST_LINES)
    step = every * float(np.ptp(axis)) / (axis.size - 1)
    look = {"show": True, "color": "rgba(0,0,0,0.45)", "width": 1, "highlight": False}
    return look | {"start": float(axis[0]), "end": float(axis[-1]) + step / 4, "size": step}


def _said(record: PlaneLosses, surface: Surface, split: str) -> np.ndarray:
    """What pointing at each point says, of shape (alpha, beta); nothing at holes."""
    row = [str(name) for name in record.split].index(split)
    accuracy, status = (on_grid(record, values).values for values in (record.accuracy[row], record.status))
    said = np.full(status.shape, "", dtype=object)
    for i, j in np.argwhere(~np.ma.getmaskarray(surface.values)):
        known = status[i, j] not in (PENDING, LEFT_OUT)
        lines = (
            f"α {surface.alpha[i]:.4g}",
            f"β {surface.beta[j]:.4g}",
            f"{plain(split)} loss {surface.values[i, j]:.4g} nat",
            f"accuracy {100 * accuracy[i, j]:.4g} %" if known else "interpolated, not evaluated",
        )
        said[i, j] = "<br>".join(lines)
    return said


def _notes(record: PlaneLosses) -> list[str]:
    """What the axes are, what is missing, and what is interpolated."""
    return [note for note in (*plane_notes(record), hole_text(record)) if note]
