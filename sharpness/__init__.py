"""Loss-landscape sharpness of PyTorch models.

Certified Hessian eigenvalues, Keskar's ε-sharpness and loss landscapes of anyone's checkpoint. Start with
``Objective.from_module``; everything public is named below and imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharpness.checkpoints import Minimizer as Minimizer
    from sharpness.checkpoints import load_checkpoint as load_checkpoint
    from sharpness.checkpoints import load_minimizer as load_minimizer
    from sharpness.geometry import Arc as Arc
    from sharpness.geometry import Bezier as Bezier
    from sharpness.geometry import Line as Line
    from sharpness.geometry import Plane as Plane
    from sharpness.geometry import Polygon as Polygon
    from sharpness.geometry import eigenvector_plane as eigenvector_plane
    from sharpness.geometry import plane_through as plane_through
    from sharpness.geometry import random_plane as random_plane
    from sharpness.geometry import trajectory_plane as trajectory_plane
    from sharpness.landscape import axis_curvature as axis_curvature
    from sharpness.landscape import connect as connect
    from sharpness.landscape import convexity_map as convexity_map
    from sharpness.landscape import evaluate_line as evaluate_line
    from sharpness.landscape import evaluate_plane as evaluate_plane
    from sharpness.landscape import evaluate_profiles as evaluate_profiles
    from sharpness.measures import epsilon_sharpness as epsilon_sharpness
    from sharpness.measures import layer_curvature as layer_curvature
    from sharpness.objective import Evaluation as Evaluation
    from sharpness.objective import Objective as Objective
    from sharpness.objective import Problem as Problem
    from sharpness.objective import cross_entropy as cross_entropy
    from sharpness.objective import squared_error as squared_error
    from sharpness.operators import Dense as Dense
    from sharpness.operators import Fisher as Fisher
    from sharpness.operators import GaussNewton as GaussNewton
    from sharpness.operators import Hessian as Hessian
    from sharpness.operators import SymmetricOperator as SymmetricOperator
    from sharpness.params import ParamSpace as ParamSpace
    from sharpness.params import Point as Point
    from sharpness.render import draw as draw
    from sharpness.spectrum import eigenpairs as eigenpairs
    from sharpness.spectrum import spectral_density as spectral_density
    from sharpness.spectrum import trace as trace
    from sharpness.store import load as load
    from sharpness.store import save as save
    from sharpness.training import TrainingPlan as TrainingPlan
    from sharpness.training import train as train

_HOME = {
    "Minimizer": "checkpoints",
    "load_checkpoint": "checkpoints",
    "load_minimizer": "checkpoints",
    "Line": "geometry",
    "Plane": "geometry",
    "random_plane": "geometry",
    "Arc": "geometry",
    "Bezier": "geometry",
    "Polygon": "geometry",
    "plane_through": "geometry",
    "eigenvector_plane": "geometry",
    "trajectory_plane": "geometry",
    "evaluate_line": "landscape",
    "evaluate_plane": "landscape",
    "evaluate_profiles": "landscape",
    "connect": "landscape",
    "axis_curvature": "landscape",
    "convexity_map": "landscape",
    "epsilon_sharpness": "measures",
    "layer_curvature": "measures",
    "Evaluation": "objective",
    "Objective": "objective",
    "Problem": "objective",
    "cross_entropy": "objective",
    "squared_error": "objective",
    "Dense": "operators",
    "Fisher": "operators",
    "GaussNewton": "operators",
    "Hessian": "operators",
    "SymmetricOperator": "operators",
    "ParamSpace": "params",
    "Point": "params",
    "draw": "render",
    "eigenpairs": "spectrum",
    "spectral_density": "spectrum",
    "trace": "spectrum",
    "load": "store",
    "save": "store",
    "TrainingPlan": "training",
    "train": "training",
}
_ERRORS = (
    "SharpnessError",
    "ShapeError",
    "NonFiniteError",
    "NonDeterministicError",
    "NotConvergedError",
    "SchemaError",
    "UnsupportedModelError",
    "DataError",
    "CheckpointError",
)
_HOME |= dict.fromkeys(_ERRORS, "errors")
__all__ = sorted(_HOME)

try:
    __version__ = version("sharpness")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``import sharpness`` alone loads neither torch nor matplotlib."""
    if name not in _HOME:
        raise AttributeError(f"module 'sharpness' has no attribute {name!r}")
    value = getattr(import_module(f"sharpness.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
