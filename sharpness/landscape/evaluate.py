"""Loss and accuracy along curves, on planes and on many lines from one point, into a journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from sharpness.errors import ShapeError
from sharpness.geometry import Curve, Plane, random_direction
from sharpness.geometry.directions import described
from sharpness.journal import DONE, PENDING, Journal, MemoryJournal
from sharpness.landscape.points import Evaluator, conditions_of
from sharpness.landscape.refine import budget_of, coarse_to_fine
from sharpness.objective import Objective
from sharpness.params import Point, as_point, sha256
from sharpness.progress import Progress, silent
from sharpness.records import LineLosses, PlaneLosses, ProfileLosses

COMMIT_SECONDS = 0.5  # what a kill can cost


def evaluate_line(
    objectives: Mapping[str, Objective],
    line: Curve,
    alphas: Sequence[float] | np.ndarray,
    *,
    batchnorm: str | None = None,
    points_at_once: int | None = None,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> LineLosses:
    """Loss and accuracy of each objective at θ(α) for each α, on a ``Line``, ``Arc``, ``Bezier`` or ``Polygon``.

    Args:
        objectives: by name, as ``{"train": …, "test": …}``; all of one model. The first (``"train"`` if there is one)
            gives the data from which batch-norm statistics are re-estimated.
        line: from a (α = 0) to b (α = 1).
        alphas: one-dimensional, any order; the paper uses 25 points in [-1, 2].
        batchnorm: ``"recompute"``: statistics re-estimated over the training data at every point (the default where
            the model has batch norm and the objective's policy is ``"eval"``); ``"eval"``: statistics interpolated
            between those of a and b; ``"batch"``: each chunk's own.
        points_at_once: evaluated together, every operation vectorised over their parameters. Default: 1 on a CPU,
            where that is slower; on a GPU up to 64, where a rehearsal finds it faster. Values agree to rounding.
        journal: where points are committed, at least every half second, and found again; default: in memory.
        progress: called with the points done.

    Returns:
        A record with ``loss`` and ``accuracy`` of shape (split, alpha). Points that are not finite stay so.

    Cost: one pass over the data of each objective per point, and one more over the training data for ``"recompute"``.

    Raises:
        ShapeError: a, b or alphas do not fit; no objective, or an unknown ``batchnorm``.

    Example (f = θ², from 0 to 2):
        >>> import torch
        >>> from sharpness.geometry import Line
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> f, theta = Objective.from_module(model, lambda o, t: (o - t) ** 2, (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> evaluate_line({"train": f}, Line(torch.zeros(1), torch.full((1,), 2.0)), [0, 0.5, 1]).loss
        array([[0., 1., 4.]])
    """
    grid = coordinates(alphas, "alphas")
    template = line_template(objectives, line, grid, batchnorm=batchnorm, points_at_once=points_at_once)
    return _evaluated(
        template,
        Evaluator(objectives, batchnorm),
        lambda row: line.at(float(grid[row])),
        lambda row: f"α = {grid[row]:.3g}",
        journal,
        progress,
    )


def evaluate_plane(
    objectives: Mapping[str, Objective],
    plane: Plane,
    alphas: Sequence[float] | np.ndarray,
    betas: Sequence[float] | np.ndarray,
    *,
    share: float = 1.0,
    batchnorm: str | None = None,
    points_at_once: int | None = None,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> PlaneLosses:
    """Loss and accuracy of each objective at θ(α, β) = origin + α·first + β·second on a grid.

    The other arguments, the cost per point and errors are those of ``evaluate_line``.

    Args:
        alphas, betas: the grid; with ``share`` below 1, in ascending order.
        share: at most this share of the points is evaluated, from coarse to fine and then where the loss curves most;
            the others are left out (status 3, NaN). A third suffices for contours.

    Returns:
        A record with ``loss`` and ``accuracy`` of shape (split, alpha, beta).
    """
    across, along = coordinates(alphas, "alphas"), coordinates(betas, "betas")
    template = plane_template(
        objectives, plane, across, along, share=share, batchnorm=batchnorm, points_at_once=points_at_once
    )

    def place(row: int) -> tuple[float, float]:
        return float(across[row // len(along)]), float(along[row % len(along)])

    return _evaluated(
        template,
        Evaluator(objectives, batchnorm),
        lambda row: plane.at(*place(row)),
        lambda row: "α = {:.3g}, β = {:.3g}".format(*place(row)),
        journal,
        progress,
    )


def evaluate_profiles(
    objectives: Mapping[str, Objective],
    origin: Any,
    alphas: Sequence[float] | np.ndarray,
    *,
    directions: int = 20,
    by: str = "filter",
    hold: bool = True,
    seed: int = 0,
    batchnorm: str | None = None,
    points_at_once: int | None = None,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> ProfileLosses:
    """Loss and accuracy along many random lines from one point: what a plane, which is two of them, cannot show.

    Args:
        origin: a ``Point``, ``Minimizer`` or θ.
        directions: how many lines.
        by, hold, seed: of the directions, as in ``random_direction``.

    The other arguments, the cost per point and errors are those of ``evaluate_line``.

    Returns:
        A record with ``loss`` and ``accuracy`` of shape (split, direction, alpha).
    """
    grid, start = coordinates(alphas, "alphas"), as_point(origin)
    choices: dict[str, Any] = {"directions": directions, "by": by, "hold": hold, "seed": seed}
    template = profiles_template(objectives, start, grid, **choices, batchnorm=batchnorm, points_at_once=points_at_once)
    space = next(iter(objectives.values())).space

    @lru_cache(maxsize=1)
    def direction(number: int) -> torch.Tensor:
        return random_direction(start.theta, space, by, hold=hold, key=("profile", number), seed=seed)

    def at(row: int) -> Point:
        number, index = divmod(row, len(grid))
        return Point(start.theta + float(grid[index]) * direction(number), start.buffers)

    return _evaluated(
        template,
        Evaluator(objectives, batchnorm),
        at,
        lambda row: f"direction {row // len(grid) + 1} of {directions}",
        journal,
        progress,
    )


def line_template(
    objectives: Mapping[str, Objective],
    line: Curve,
    alphas: np.ndarray,
    *,
    batchnorm: str | None = None,
    points_at_once: int | None = None,
) -> LineLosses:
    """The record that ``evaluate_line`` will return, every point pending; a file in progress begins as this."""
    grid = np.asarray(alphas, float)
    return LineLosses(
        alpha=grid,
        start=line.a.sha256,
        end=line.b.sha256,
        path=line.formula,
        bends=line.fingerprint,
        **_pending(objectives, line.a, batchnorm, points_at_once, len(grid)),
    )


def plane_template(
    objectives: Mapping[str, Objective],
    plane: Plane,
    alphas: np.ndarray,
    betas: np.ndarray,
    *,
    share: float = 1.0,
    batchnorm: str | None = None,
    points_at_once: int | None = None,
) -> PlaneLosses:
    """The record that ``evaluate_plane`` will return, every point pending."""
    across, along = np.asarray(alphas, float), np.asarray(betas, float)
    if not 0 < share <= 1:
        raise ShapeError(f"expected a share of the points in (0, 1]; got {share:g}")
    if share < 1 and not all((np.diff(axis) > 0).all() and len(axis) > 2 for axis in (across, along)):
        raise ShapeError("expected three or more ascending coordinates along each axis for a share below 1")
    if share < 1 and budget_of(share, len(across) * len(along)) < 4:
        raise ShapeError(f"expected a share of four points or more; got {share:g} of {len(across) * len(along)}")
    shown: dict[str, Any] = {"length": np.array(plane.lengths)}
    if plane.marks:
        shown |= {"mark": np.array(list(plane.marks)), "mark_place": np.array(list(plane.marks.values()))}
    if plane.walk is not None:
        shown |= {"epoch": plane.walk.epochs, "walk_place": plane.walk.places, "explained": plane.walk.explained}
    return PlaneLosses(
        alpha=across,
        beta=along,
        origin=plane.origin.sha256,
        first=sha256(plane.first),
        second=sha256(plane.second),
        directions=plane.kind,
        cosine=plane.cosine,
        share=float(share),
        **shown,
        **_pending(objectives, plane.origin, batchnorm, points_at_once, len(across), len(along)),
    )


def profiles_template(
    objectives: Mapping[str, Objective],
    origin: Any,
    alphas: np.ndarray,
    *,
    directions: int = 20,
    by: str = "filter",
    hold: bool = True,
    seed: int = 0,
    batchnorm: str | None = None,
    points_at_once: int | None = None,
) -> ProfileLosses:
    """The record that ``evaluate_profiles`` will return, every point pending."""
    if directions < 1:
        raise ShapeError(f"expected one or more directions; got {directions}")
    grid, start = np.asarray(alphas, float), as_point(origin)
    return ProfileLosses(
        direction=np.arange(directions),
        alpha=grid,
        origin=start.sha256,
        directions=described(by, hold),
        seed=seed,
        **_pending(objectives, start, batchnorm, points_at_once, directions, len(grid)),
    )


def _pending(
    objectives: Mapping[str, Objective], point: Point, batchnorm: str | None, points_at_once: int | None, *sizes: int
) -> dict[str, Any]:
    """What every template holds: no value yet, and the conditions of the objectives as they are evaluated."""
    evaluator = Evaluator(objectives, batchnorm)
    if points_at_once is not None and points_at_once < 1:
        raise ShapeError(f"expected points_at_once >= 1; got {points_at_once}")
    at_once = points_at_once or evaluator.at_once(point)
    return {
        "split": np.array(list(objectives)),
        "loss": np.full((len(objectives), *sizes), np.nan),
        "accuracy": np.full((len(objectives), *sizes), np.nan),
        "status": np.zeros(sizes, np.uint8),
        "batchnorm": evaluator.policy,
        "conditions": {**conditions_of(evaluator.objectives), "points_at_once": at_once},
    }


def _evaluated(
    template: Any,
    evaluator: Evaluator,
    at: Callable[[int], Point],
    note: Callable[[int], str],
    journal: Journal | None,
    progress: Progress,
) -> Any:
    """The template with every point that was to be evaluated; those that the journal holds are not evaluated again."""
    shape = template.status.shape
    rows = journal or MemoryJournal({"loss": template.loss, "accuracy": template.accuracy}, shape)
    if rows.status.shape != shape:
        raise ShapeError(
            f"expected a journal with a row for each point, in shape {shape}; got {rows.status.shape}. A file that an "
            "earlier release began cannot be gone on with: choose another output."
        )
    at_once = rows.conditions.get("points_at_once", template.conditions["points_at_once"])
    status = rows.status.reshape(-1)
    budget = budget_of(getattr(template, "share", 1.0), status.size)
    order: Iterable[Sequence[int]] = [range(status.size)]
    if budget < status.size and (status == PENDING).any():
        split = [str(name) for name in template.split].index("train") if "train" in template.split else 0
        order = coarse_to_fine(template.alpha, template.beta, budget, lambda: rows.column("loss")[split])
    kept = _Kept(rows)
    try:
        for batch in order:
            for begin in range(0, len(batch), at_once):
                group = batch[begin : begin + at_once]  # the same points together as without a kill, so the same bits
                missing = [i for i, row in enumerate(group) if status[row] == PENDING]
                if not missing:
                    continue
                loss, accuracy = evaluator([at(row) for row in group])
                kept.add([group[i] for i in missing], loss[:, missing], accuracy[:, missing])
                status[[group[i] for i in missing]] = DONE
                progress(min(int((status != PENDING).sum()), budget), budget, note(group[-1]))
            kept.commit()
    finally:
        kept.commit()  # also when interrupted
    rows.leave_out(np.flatnonzero(status == PENDING).tolist())
    values = {name: rows.column(name) for name in ("loss", "accuracy")}
    conditions = {**template.conditions, "points_at_once": at_once}
    return type(template)(**{**vars(template), **values, "status": rows.status, "conditions": conditions})


class _Kept:
    """Points that are done and not yet committed."""

    def __init__(self, rows: Journal) -> None:
        self._rows, self._since = rows, time.monotonic()
        self._groups: list[tuple[list[int], np.ndarray, np.ndarray]] = []

    def add(self, points: list[int], loss: np.ndarray, accuracy: np.ndarray) -> None:
        self._groups.append((points, loss, accuracy))
        if time.monotonic() - self._since > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        if self._groups:
            groups, losses, accuracies = zip(*self._groups, strict=True)
            points = [point for group in groups for point in group]
            loss, accuracy = (np.concatenate(parts, axis=1) for parts in (losses, accuracies))
            # accuracy is NaN where it has no meaning: only the loss says whether a point is finite
            finite = np.isfinite(loss).all(axis=0)
            self._rows.commit(points, {"loss": loss, "accuracy": accuracy}, finite=finite)
        self._groups, self._since = [], time.monotonic()


def coordinates(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    """One axis of a grid, checked."""
    grid = np.asarray(values, float)
    if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
        raise ShapeError(f"expected {name} to be a non-empty list of finite numbers; got shape {grid.shape}")
    return grid
