"""Planes as ParaView sees them: a grid of values, or a surface whose height is the loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import griddata
from scipy.spatial import Delaunay

from sharpness.errors import ShapeError
from sharpness.export.vtk import image, polygons
from sharpness.journal import LEFT_OUT, PENDING
from sharpness.records import ConvexityMap, PlaneLosses, axis_label, settings, variables

GRID = ("alpha", "beta")
UNEVEN = 1e-5  # of a step: coordinates in single precision still count as evenly spaced
RATIO = 100.0  # two decades; where losses span more, the height is their logarithm


def image_data(record: PlaneLosses | ConvexityMap) -> bytes:
    """The content of a ``.vti`` file (ImageData): the plane as an evenly spaced grid, with its values at the points.

    Point data are all variables on the grid, one array for each data set (``train_loss``, ``test_accuracy``), and
    ``status``; NaN where a value is missing or not finite. Settings and units are texts in the field data.

    Raises:
        ShapeError: coordinates that are not evenly spaced; ``surface`` can show them.
    """
    record = _ascending(record)
    axes = [_even(name, getattr(record, name)) for name in GRID]
    points = {name: values.ravel(order="F") for name, values in _on_grid(record).items()}
    origin, spacing = zip(*axes, strict=True)
    return image((record.alpha.size, record.beta.size), origin, spacing, points=points, notes=_notes(record))


def surface(record: PlaneLosses) -> bytes:
    """The content of a ``.vtp`` file (PolyData): the plane as a surface over (α, β) whose height is the loss.

    The height is the train loss (or that of the first data set), its logarithm to base 10 where it is positive and
    spans more than two decades; the field data's ``height`` says which. Only measured points are there: quadrilaterals
    with a missing or non-finite corner are holes; where refinement left points out, triangles join the others.

    A training run is a polyline and each mark a vertex, at the height of the surface below it, or of its nearest point
    where there is none. The plane holds no loss of theirs: their point data are NaN, except ``epoch`` and ``distance``
    (from the plane). ``part`` tells surface (0), training run (1) and marks (2) apart, ``name`` says which mark.

    Raises:
        ShapeError: no cell of the plane has been measured.
    """
    record = _ascending(record)
    grid, split = _on_grid(record), _shown(record)
    known = np.isfinite(grid[f"{split}_loss"]) & (grid["status"] != PENDING)
    polys = _cells(known, grid["status"] == LEFT_OUT)
    loss, guests = grid[f"{split}_loss"][known], _guests(record)
    logarithmic = bool(loss.min() > 0 and loss.max() > RATIO * loss.min())
    heights = np.log10(loss) if logarithmic else loss
    ground = np.argwhere(known)
    ground = np.column_stack([record.alpha[ground[:, 0]], record.beta[ground[:, 1]]])
    height = ("log10 of the " if logarithmic else "") + f"{split} {axis_label(record, 'loss')}"
    return polygons(
        np.vstack([np.column_stack([ground, heights]), _standing(guests.places, ground, heights)]),
        {"Polys": polys, **guests.cells(len(heights))},
        points={
            **{name: guests.after(values[known]) for name, values in grid.items()},
            **guests.columns(len(heights)),
        },
        notes={"height": [height], "part": ["0 surface, 1 training run, 2 mark"], **_notes(record)},
    )


class _Guests(NamedTuple):
    """What stands on a surface: the iterates of a training run, then the marks."""

    places: np.ndarray
    """(guests, 2): α and β."""
    distance: np.ndarray
    epoch: np.ndarray
    """NaN for marks."""
    name: np.ndarray
    """Empty for iterates."""

    def after(self, values: np.ndarray) -> np.ndarray:
        """Values of the surface's points, NaN for the guests after them."""
        return np.append(values.astype(float), np.full(len(self.places), np.nan))

    def columns(self, before: int) -> dict[str, np.ndarray]:
        """What is known of the guests, after so many points of the surface."""
        part = np.where(np.isnan(self.epoch), 2, 1)
        return {
            "part": np.append(np.zeros(before), part).astype(np.uint8),
            "epoch": np.append(np.full(before, np.nan), self.epoch),
            "distance": np.append(np.zeros(before), self.distance),
            "name": np.append(np.full(before, ""), self.name),
        }

    def cells(self, before: int) -> dict[str, list[list[int]]]:
        """A polyline through the iterates and a vertex at each mark."""
        numbers = np.arange(before, before + len(self.places))
        walk = numbers[~np.isnan(self.epoch)].tolist()
        return {"Verts": numbers[np.isnan(self.epoch)][:, None].tolist(), "Lines": [walk] if walk else []}


def _guests(record: PlaneLosses) -> _Guests:
    walk = np.empty((0, 3)) if record.walk_place is None else np.asarray(record.walk_place, float)
    marks = np.empty((0, 3)) if record.mark_place is None else np.asarray(record.mark_place, float)
    epochs, names = (np.empty(0) if values is None else values for values in (record.epoch, record.mark))
    places = np.vstack([walk, marks])
    epoch = np.append(np.asarray(epochs, float), np.full(len(marks), np.nan))
    return _Guests(places[:, :2], places[:, 2], epoch, np.append(np.full(len(walk), ""), np.asarray(names, str)))


def _standing(places: np.ndarray, ground: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """The places with the height of the surface there: linear between its points, as at the nearest one elsewhere."""
    if not len(places):
        return np.empty((0, 3))
    linear, nearest = (griddata(ground, heights, places, method=how, rescale=True) for how in ("linear", "nearest"))
    return np.column_stack([places, np.where(np.isfinite(linear), linear, nearest)])


def _cells(known: np.ndarray, left_out: np.ndarray) -> list[list[int]]:
    """Cells whose corners are all known, as numbers of known points, counter-clockwise seen from above."""
    if left_out.any():
        joined = np.argwhere(~left_out)
        corners = joined[Delaunay(joined).simplices].transpose(2, 0, 1)
    else:
        i, j = np.indices(np.maximum(np.array(known.shape) - 1, 0)).reshape(2, -1)
        corners = np.array([[i, i + 1, i + 1, i], [j, j, j + 1, j + 1]]).transpose(0, 2, 1)
    number = np.where(known, known.cumsum().reshape(known.shape) - 1, -1)[corners[0], corners[1]]
    cells: list[list[int]] = number[(number >= 0).all(1)].tolist()
    if not cells:
        raise ShapeError(
            "expected a plane with measured, finite losses at neighbouring points for a surface; "
            f"{known.sum()} of {known.shape[0]} × {known.shape[1]} points are, and no cell has all of its corners. "
            "Measure more of the plane, or export it as csv."
        )
    return cells


def _ascending(record: Any) -> Any:
    """The record with both coordinates in ascending order."""
    across, along = (np.argsort(getattr(record, name)) for name in GRID)
    values = {v.name: v.values[..., across, :][..., along] for v in variables(record) if v.dims[-2:] == GRID}
    return replace(record, **{name: np.sort(getattr(record, name)) for name in GRID}, **values)


def _even(name: str, coordinates: np.ndarray) -> tuple[float, float]:
    """First coordinate and step."""
    steps = np.diff(coordinates)
    step = float(steps.mean()) if steps.size else 1.0
    if not step > 0 or np.abs(steps - step).max(initial=0.0) > UNEVEN * step:
        raise ShapeError(
            f"expected evenly spaced coordinates for vti, which knows no others; the steps of {name} go from "
            f"{steps.min():.4g} to {steps.max():.4g}. Choose vtp, which takes any."
        )
    return float(coordinates[0]), step


def _on_grid(record: Any) -> dict[str, np.ndarray]:
    """The variables on the grid, each of shape (α, β), one for each data set, NaN where not finite."""
    found: dict[str, np.ndarray] = {}
    for variable in variables(record):
        values = variable.values.astype(np.uint8) if variable.values.dtype == bool else variable.values
        if values.dtype.kind == "f":
            values = np.where(np.isfinite(values), values, np.nan)
        if variable.dims == GRID:
            found[variable.name] = values
        elif variable.dims == ("split", *GRID):
            found |= {f"{split}_{variable.name}": one for split, one in zip(record.split, values, strict=True)}
    return found


def _shown(record: PlaneLosses) -> str:
    return "train" if "train" in record.split else str(record.split[0])


def _notes(record: Any) -> dict[str, list[str]]:
    """Settings, and what the variables are, as texts."""
    known = {v.name: [axis_label(record, v.name)] for v in variables(record) if v.dims[-2:] == GRID}
    return known | {name: [str(value)] for name, value in settings(record).items()}
