"""Symmetric matrices known by their products with vectors."""

from sharpness.operators.base import Dense, SymmetricOperator
from sharpness.operators.gauss_newton import Fisher, GaussNewton
from sharpness.operators.hessian import Hessian
from sharpness.operators.recorded import Recorded, begin_products, recorded_plan
from sharpness.operators.scaled import Scaled

__all__ = [
    "Dense",
    "Fisher",
    "GaussNewton",
    "Hessian",
    "Recorded",
    "Scaled",
    "SymmetricOperator",
    "begin_products",
    "recorded_plan",
]
