"""A plane of losses: its time, its memory, and its contour lines where only a share of the points is evaluated.

Claims to be tested: on two cores a plane takes no longer than the bare loop over its points in plain PyTorch, and at
most half as long as loss-landscapes; on a GPU, for a small network, at most a tenth of the bare loop. Memory does not
grow with the grid. A third of the points suffices for contours.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
import torch
import torch.nn.functional as F
import workloads
from contours import STEP, deviations
from memory_budget import Memory
from peers import peer
from report import Line, Result, Samples, Unavailable
from torch.nn.utils import vector_to_parameters
from torch.optim.swa_utils import update_bn
from workloads import MEAN_LOSS, Workload

import sharpness as sh
from sharpness.geometry import plane_through
from sharpness.journal import DONE, LEFT_OUT
from sharpness.objective.terms import ACTIVATION_BYTES
from sharpness.recipes import Source
from sharpness.records import PlaneLosses

TIMED = {"digits": 25, "f1": 9}  # points along each axis
MEMORY, REFINEMENT = "memory", "refinement"
PARTS = (*TIMED, MEMORY, REFINEMENT)

FULL = 25  # points along each axis with ``--full``
SMALL = 0.01  # a loss below which differences are taken over this
AGREEMENT = 1e-4  # at most this difference of a loss from the bare loop's, over the loss
BARE, OURS, PACKAGE = "bare loop", "sharpness", "loss-landscapes"
RECOMPUTE = ", statistics re-estimated"  # at every point

GRIDS = (5, 25, 101)  # points along each axis, of which memory is measured
GROWTH = 8e6  # bytes by which the peak of the largest grid may exceed that of the smallest: what allocators vary by

SHARES = (1 / 3, 1 / 4, 1 / 6)
SIDE, QUICK_SIDE = 51, 17
MINIMIZERS = report.HERE.parent / "figures" / "digits" / "seed-0"  # left by ``sharpness run digits``


def measure(part: str, args: argparse.Namespace) -> Result:
    if part == MEMORY:
        return _memory(args)
    return _refinement(args) if part == REFINEMENT else _timed(part, args)


def _workload(part: str, args: argparse.Namespace) -> Workload:
    if part == "f1":
        return workloads.make("f1-10000", args)
    return workloads.ready(workloads.digits(args, batchnorm=True), args)


class Grid(NamedTuple):
    """As many points along each of two random, filter-normalised directions, from -1 to 1."""

    objective: sh.Objective
    plane: sh.Plane
    axis: np.ndarray

    @classmethod
    def of(cls, workload: Workload, side: int) -> Grid:
        objective, theta = workload.objective()
        return cls(objective, sh.random_plane(theta, objective.space), np.linspace(-1, 1, side))

    def evaluated(self, **choices: Any) -> PlaneLosses:
        return sh.evaluate_plane({"train": self.objective}, self.plane, self.axis, self.axis, **choices)


# Time


class Values(NamedTuple):
    """What a way found, of shape (alpha, beta); NaN where a point was left out, no accuracy where a way has none."""

    loss: np.ndarray
    accuracy: np.ndarray | None = None
    at_once: int = 1

    @property
    def points(self) -> int:
        return int((~np.isnan(self.loss)).sum())


@dataclass(frozen=True)
class Way:
    """A way to the values of a plane."""

    run: Callable[[], Values]
    recompute: bool = False  # batch-norm statistics re-estimated at every point


class BareLoop:
    """The loop over the points that one would write: load the weights, run the data through, in the same chunks."""

    def __init__(self, workload: Workload, grid: Grid, *, recompute: bool = False) -> None:
        self._workload = workload.copy(batch_size=grid.objective.chunk_size)
        self._grid, self._recompute = grid, recompute

    @torch.no_grad()
    def __call__(self) -> Values:
        axis = self._grid.axis.tolist()
        values = np.array([[self._point(alpha, beta) for beta in axis] for alpha in axis])
        return Values(values[..., 0], values[..., 1])

    def _point(self, alpha: float, beta: float) -> tuple[float, float]:
        plane, module, batches = self._grid.plane, self._workload.module, self._workload.batches
        vector_to_parameters(plane.origin.theta + alpha * plane.first + beta * plane.second, module.parameters())
        if self._recompute:
            update_bn(batches, module)
        total, hits = torch.zeros((), device=plane.first.device), 0
        for inputs, targets in batches:
            output = module(inputs)
            total += F.cross_entropy(output, targets, reduction="sum")
            hits += (output.argmax(1) == targets).sum()
        return float(total) / len(self._workload.inputs), float(hits) / len(self._workload.inputs)


def _ours(grid: Grid, **choices: Any) -> Values:
    record = grid.evaluated(**choices)
    return Values(record.loss[0], record.accuracy[0], record.conditions["points_at_once"])


def _package(workload: Workload, side: int) -> Values:
    """``loss_landscapes.random_plane`` as its README says, on a plane of its own."""
    metric = peer("loss_landscapes.metrics").Loss(MEAN_LOSS, workload.inputs, workload.targets)
    choices = {"distance": 1, "steps": side, "normalization": "filter", "deepcopy_model": True}
    try:
        return Values(peer("loss_landscapes").random_plane(workload.module, metric, **choices))
    except (RuntimeError, ZeroDivisionError) as error:  # a model on a GPU; parameters that are 0
        raise Unavailable(f"fails: {str(error).splitlines()[0]}") from error


def _ways(workload: Workload, grid: Grid, device: str) -> dict[str, Way]:
    ours = partial(_ours, grid, batchnorm="eval")
    ways = {BARE: Way(BareLoop(workload, grid)), OURS: Way(ours)}
    if device.startswith("cuda"):
        ways[f"{OURS}, points_at_once=1"] = Way(partial(ours, points_at_once=1))
    ways[f"{OURS}, share=1/3"] = Way(partial(ours, share=1 / 3))
    ways[PACKAGE] = Way(partial(_package, workload, len(grid.axis)))
    ways[BARE + RECOMPUTE] = Way(BareLoop(workload, grid, recompute=True), recompute=True)
    ways[OURS + RECOMPUTE] = Way(partial(_ours, grid, batchnorm="recompute"), recompute=True)
    return ways


def _timed(part: str, args: argparse.Namespace) -> Result:
    workload = _workload(part, args)
    lines, notes, raw = _compared(workload, TIMED[part], args)
    if args.full and TIMED[part] < FULL:
        only = argparse.Namespace(**vars(args) | {"repeats": 1})
        more, _, raw["full"] = _compared(workload, FULL, only, (BARE, OURS))
        lines += [dataclasses.replace(line, label=f"{line.label}, {FULL} × {FULL}") for line in more]
        notes.append(f"{FULL} × {FULL}: one round")
    return report.result(
        f"{part}: a plane of losses", "s per plane", lines, notes=[workload.describe(), *notes], raw=raw
    )


def _compared(
    workload: Workload, side: int, args: argparse.Namespace, only: Sequence[str] = ()
) -> tuple[list[Line], list[str], dict[str, Any]]:
    """A line for every way, what to know about them, and all times."""
    grid = Grid.of(workload, side)
    ways = {name: way for name, way in _ways(workload, grid, args.device).items() if not only or name in only}
    found, refused = {}, {}
    for name, way in ways.items():  # the first run, not timed
        try:
            found[name] = way.run()
        except Unavailable as reason:
            refused[name] = str(reason)
    differences = {name: _difference(name, ways, found) for name in found}
    runs: dict[str, Callable[[], Any]] = {
        "forward": partial(_forward, workload.copy(batch_size=grid.objective.chunk_size))
    }
    runs |= {name: ways[name].run for name in found}
    took = report.interleaved(runs, args.repeats, args.device, once=list(found))
    lines = [_line(name, ways[name], found[name], took, differences[name]) for name in found]
    lines += [Line(name, None, note=reason) for name, reason in refused.items()]
    notes = [
        f"{side} × {side} points, median and (least..most) of {args.repeats} interleaved rounds; chunks of "
        f"{grid.objective.chunk_size:,} examples for the bare loop and {OURS}; loss and accuracy",
        "× bare loop: over that of the same round with the same statistics; floor: the forward passes alone, in plain "
        "PyTorch, one point at a time",
        f"largest difference: from the bare loop's values, of the loss over the loss (or {SMALL}, where it is less)",
        f"{PACKAGE}: the loss of one batch, which is all data, and no accuracy; on a plane of its own, every other row "
        "of which is one step aside",
        f"to be reached: on two cores at most 1.0 bare loops, {PACKAGE} at least 2.0 × sharpness; on a GPU, on the "
        "digits, at most 0.1 bare loops",
    ]
    return lines, notes, {"side": side, "seconds": {name: list(samples.values) for name, samples in took.items()}}


@torch.no_grad()
def _forward(workload: Workload) -> None:
    for inputs, _ in workload.batches:
        workload.module(inputs)


def _difference(name: str, ways: Mapping[str, Way], found: Mapping[str, Values]) -> dict[str, str]:
    """The largest from the bare loop with the same statistics, in cells of the table."""
    bare = _beside(BARE, ways[name])
    values, others = found[name], found[bare]
    if name == bare or values.accuracy is None or others.accuracy is None:
        return {}
    loss = np.nanmax(np.abs(values.loss - others.loss) / np.maximum(others.loss, SMALL))
    # statistics of several chunks are pooled in ours, averaged in PyTorch's
    assert loss <= AGREEMENT or ways[name].recompute, f"{name}: losses differ by {loss:.1e} from those of the {bare}"
    accuracy = np.nanmax(np.abs(values.accuracy - others.accuracy))
    return {"largest difference": f"{loss:.1e}", "of the accuracy": f"{accuracy:.1e}"}


def _line(name: str, way: Way, values: Values, took: Mapping[str, Samples], difference: Mapping[str, str]) -> Line:
    seconds = took[name]
    cells = {
        "× bare loop": str(seconds.per(took[_beside(BARE, way)])),
        "× sharpness": str(seconds.per(took[_beside(OURS, way)])),
        "ms per point": report.short(1e3 * seconds.median / values.points),
        "points": values.points,
        "at once": values.at_once,
        **difference,
    }
    return Line(name, seconds, cells, floor=values.points * (1 + way.recompute) * took["forward"].median)


def _beside(name: str, way: Way) -> str:
    """The one that treats batch-norm statistics as ``way`` does."""
    return name + RECOMPUTE if way.recompute else name


# Memory


def _memory(args: argparse.Namespace) -> Result:
    """Peaks of planes of few and of many points, each in a process of its own."""
    workload = _workload(MEMORY, args)
    sides = GRIDS[:2] if args.quick else GRIDS
    grown = {side: [_in_own_process(side) for _ in range(args.repeats)] for side in sides}
    peaks = {side: Samples(tuple(row["peak"] / 1e6 for row in rows)) for side, rows in grown.items()}
    least, most = peaks[sides[0]].median, peaks[sides[-1]].median
    lines = []
    for side in sides:
        every = 4e-6 * workload.size * side**2
        cells = {"values, MB": f"{grown[side][0]['values'] / 1e6:.2g}", "θ of all points, MB": report.short(every)}
        lines.append(Line(f"{side} × {side}", peaks[side], cells))
    budget = ACTIVATION_BYTES["cuda" if args.device.startswith("cuda") else "cpu"]
    verdict = "kept" if most - least <= GROWTH / 1e6 and most <= budget / 1e6 else "NOT kept"
    return report.result(
        "memory of a plane",
        "MB",
        lines,
        notes=[
            workload.describe(),
            f"growth from before the plane to its peak, median and (least..most) of {args.repeats} processes",
            "values: loss, accuracy and status of every point, which the record holds; θ of all points is never held",
            f"{verdict}: at most {GROWTH / 1e6:.0f} MB between the smallest and the largest grid, and at most "
            f"{budget / 1e6:,.0f} MB, the budget of activations",
        ],
        raw={"bytes": grown, "budget": budget},
    )


def _in_own_process(side: int) -> dict[str, int]:
    command = [sys.executable, *sys.argv, "--only", MEMORY, "--side", str(side)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(args: argparse.Namespace) -> dict[str, int]:
    """How far memory grew during one plane beyond what libraries, model, data and a first plane had taken."""
    grid = Grid.of(_workload(MEMORY, args), args.side)
    grid._replace(axis=np.array([-1.0, 1.0])).evaluated()
    memory = Memory(args.device)
    record = grid.evaluated()
    values = record.loss.nbytes + record.accuracy.nbytes + record.status.nbytes
    return {"peak": memory.growth()[1], "values": values}


# Contour lines


def _refinement(args: argparse.Namespace) -> Result:
    """How far contour lines move where only a share of the points is evaluated and the others are interpolated."""
    side = QUICK_SIDE if args.quick else SIDE
    lines, raw = [], {}
    for plane, grid in _planes(side, args.device):
        whole = sh.evaluate_plane(*grid)
        sparse = {f"1/{round(1 / share)}": sh.evaluate_plane(*grid, share=share) for share in SHARES}
        sparse["every second"] = _coarse(whole)
        for label, record in sparse.items():
            moved = deviations(whole, record)
            lines.append(_moved(f"{plane}: {label}", moved, record))
            raw[lines[-1].label] = {f"{level:g}": None if _lost(p) else _summary(p) for level, p in moved.items()}
    return report.result(
        "contour lines of a share of the points",
        "largest, cells",
        lines,
        notes=[
            f"SB and LB minimizers of `sharpness run digits`, seed 0; {side} × {side} points, train loss, statistics "
            "re-estimated at every point",
            "distance of places on the lines of either surface from the other's lines of the same level, in grid "
            "cells; lines on the logarithm of the loss, as the other points are interpolated, at the levels drawn",
            f"places every {STEP} cells along a line, so that the largest may be {STEP / 2:g} more",
            "1/3, 1/4, 1/6: `share=`; every second: along each axis, a coarser grid interpolated in the same way",
        ],
        raw={"largest_and_95_percent": raw},
    )


def _moved(label: str, moved: Mapping[float, np.ndarray], record: PlaneLosses) -> Line:
    lost = [level for level, places in moved.items() if _lost(places)]
    most, nearly_all = _summary(np.concatenate([places for places in moved.values() if not _lost(places)]))
    cells = {
        "95 %": report.short(nearly_all),
        "levels": f"{len(moved) - len(lost)} of {len(moved)}",
        "points": f"{(record.status == DONE).sum():,} of {record.status.size:,}",
    }
    if lost:
        return Line(label, None, cells, note=f"loses level {', '.join(f'{level:g}' for level in lost)}")
    return Line(label, Samples((most,)), cells)


def _lost(places: np.ndarray) -> bool:
    return bool(np.isinf(places).any())


def _summary(places: np.ndarray) -> tuple[float, float]:
    """The largest, and what 95 % do not exceed."""
    return float(places.max()), float(np.percentile(places, 95))


def _planes(side: int, device: str) -> list[tuple[str, tuple[Any, ...]]]:
    """Around each minimizer, and through both and their start: a name and the arguments of ``evaluate_plane``."""
    files = {name: MINIMIZERS / name / "minimizer.safetensors" for name in ("SB", "LB")}
    opened = {name: Source().open(path) for name, path in (files | {"start": MINIMIZERS / "start.safetensors"}).items()}
    objectives = {"train": opened["SB"][0].objectives(device=device)[0]["train"]}
    points, space = {name: point for name, (_, point) in opened.items()}, objectives["train"].space
    axis = np.linspace(-1, 1, side)
    planes = [(f"around {name}", (objectives, sh.random_plane(points[name], space), axis, axis)) for name in files]
    through = plane_through(points, space)
    places = np.array([place[:2] for place in through.marks.values()])
    margin = np.ptp(places, axis=0).max() / 4
    axes = [
        np.linspace(low - margin, high + margin, side) for low, high in zip(places.min(0), places.max(0), strict=True)
    ]
    return [*planes, ("through SB, LB, start", (objectives, through, *axes))]


def _coarse(whole: PlaneLosses) -> PlaneLosses:
    """What a coarser grid finds: every second point along each axis, the others left out."""
    status = np.full_like(whole.status, LEFT_OUT)
    status[::2, ::2] = DONE
    return dataclasses.replace(whole, status=status, share=float((status == DONE).mean()))


def main() -> None:
    parser = report.parser(__doc__, PARTS, repeats=3)
    parser.add_argument("--full", action="store_true", help=f"f1 also on {FULL} × {FULL} points, one round")
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    args = report.arguments(parser)
    if args.side is None:
        report.run(Path(__file__).stem, args, measure)
        return
    with report.settled(MEMORY, args):
        print(json.dumps(child(args)))


if __name__ == "__main__":
    main()
