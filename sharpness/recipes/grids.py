"""Lines, profiles and planes evaluated into files, going on with what is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpness import store
from sharpness.geometry import Curve, Plane
from sharpness.landscape import (
    evaluate_line,
    evaluate_plane,
    evaluate_profiles,
    line_template,
    plane_template,
    profiles_template,
)
from sharpness.objective import Objective
from sharpness.progress import Progress
from sharpness.records import LineLosses, PlaneLosses, ProfileLosses


def resumed_line(
    objectives: Mapping[str, Objective],
    line: Curve,
    alphas: np.ndarray,
    path: Path,
    ends: Sequence[str],
    progress: Progress,
    batchnorm: str | None = None,
) -> LineLosses:
    """``evaluate_line`` into a file, going on with what it holds; ``ends`` names α = 0 and α = 1."""
    template = line_template(objectives, line, alphas, batchnorm=batchnorm)
    template = dataclasses.replace(template, conditions={**template.conditions, "ends": list(ends)})
    with store.begin(path, {"line": template})["line"] as journal:
        found = evaluate_line(objectives, line, alphas, batchnorm=batchnorm, journal=journal, progress=progress)
    return dataclasses.replace(found, conditions={**found.conditions, "ends": list(ends)})


def resumed_profiles(
    objectives: Mapping[str, Objective], origin: Any, alphas: np.ndarray, path: Path, progress: Progress, **choices: Any
) -> ProfileLosses:
    """``evaluate_profiles`` into a file, going on with what it holds."""
    template = profiles_template(objectives, origin, alphas, **choices)
    with store.begin(path, {"profiles": template})["profiles"] as journal:
        return evaluate_profiles(objectives, origin, alphas, **choices, journal=journal, progress=progress)


def resumed_plane(
    objectives: Mapping[str, Objective],
    plane: Plane,
    alphas: np.ndarray,
    betas: np.ndarray,
    path: Path,
    progress: Progress,
    **choices: Any,
) -> PlaneLosses:
    """``evaluate_plane`` into a file, going on with what it holds."""
    template = plane_template(objectives, plane, alphas, betas, **choices)
    with store.begin(path, {"plane": template})["plane"] as journal:
        return evaluate_plane(objectives, plane, alphas, betas, **choices, journal=journal, progress=progress)
