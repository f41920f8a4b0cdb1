"""Lines and planes evaluated into files, row by row, going on with what is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sharpness import store
from sharpness.geometry import Arc, Line, Plane
from sharpness.landscape import evaluate_line, evaluate_plane, line_template, plane_template
from sharpness.objective import Objective
from sharpness.progress import Progress
from sharpness.records import LineLosses, PlaneLosses


def resumed_line(
    objectives: dict[str, Objective],
    line: Line | Arc,
    alphas: np.ndarray,
    path: Path,
    ends: Sequence[str],
    progress: Progress,
) -> LineLosses:
    """``evaluate_line`` into a file, going on with what it holds; ``ends`` names α = 0 and α = 1."""
    template = line_template(objectives, line, alphas)
    template = dataclasses.replace(template, conditions={**template.conditions, "ends": list(ends)})
    with store.begin(path, {"line": template})["line"] as journal:
        return evaluate_line(objectives, line, alphas, journal=journal, progress=progress)


def resumed_plane(
    objectives: dict[str, Objective], plane: Plane, axis: np.ndarray, path: Path, progress: Progress
) -> PlaneLosses:
    """``evaluate_plane`` on a square grid into a file, going on with what it holds."""
    with store.begin(path, {"plane": plane_template(objectives, plane, axis, axis)})["plane"] as journal:
        return evaluate_plane(objectives, plane, axis, axis, journal=journal, progress=progress)
