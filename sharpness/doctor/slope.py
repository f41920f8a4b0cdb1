"""Whether a point is a minimum at all."""

from __future__ import annotations

import torch

from sharpness.doctor.check import Check
from sharpness.params import Point

EPSILON = 1e-3  # Keskar et al.'s larger box
DESCENT = 1.0  # percent of 1 + |f|: trained networks lay below 0.1, new and half-trained ones above 3
NOTHING = 1e-4  # percent: rounding


def towards(point: Point, gradient: torch.Tensor) -> torch.Tensor:
    """s, from the point to the corner of the box |sᵢ| <= ε (|θᵢ| + 1) to which the slope points."""
    return EPSILON * (point.theta.abs() + 1) * gradient.sign()


def check_slope(point: Point, value: float, gradient: torch.Tensor, product: torch.Tensor) -> Check:
    """How far f would fall: by its slope gᵀs and its curvature ½ sᵀHs along s, in percent of 1 + |f|.

    The best step along −s lowers f by slope² / (4 · curvature). ``product`` is H s.
    """
    step, scale = towards(point, gradient).double(), 100.0 / (1.0 + abs(value))
    slope, curvature = scale * float(step @ gradient.double()), 0.5 * scale * float(step @ product.double())
    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    length = float(torch.linalg.vector_norm(point.theta, dtype=torch.float64))
    seen = (
        f"‖g‖ = {norm:.3g} at ‖θ‖ = {length:.3g}; to the corner of the box of ε = {EPSILON:g}, slope alone adds "
        f"{slope:.3g} % and curvature {curvature:.3g} % of 1 + |f|"
    )
    if slope <= NOTHING:
        return Check("minimum", "ok", seen)
    if curvature <= 0:
        cause = "f curves down along its slope: no minimum"
    elif (fall := slope**2 / (4 * curvature)) >= DESCENT:
        cause = f"no minimum: one step along the slope would lower f by {fall:.2g} % of 1 + |f|"
    else:
        return Check("minimum", "ok", f"{seen}; one step would lower f by {fall:.2g} %")
    cure = "train on, or load the final weights; else read eigenvalues and ε-sharpness as those of a slope"
    return Check("minimum", "note", seen, cause, cure)
