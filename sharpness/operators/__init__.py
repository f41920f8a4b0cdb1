"""Symmetric matrices known by their products with vectors."""

from sharpness.operators.base import Dense, SymmetricOperator
from sharpness.operators.hessian import Hessian
from sharpness.operators.recorded import Recorded, begin_products, recorded_plan

__all__ = ["Dense", "Hessian", "Recorded", "SymmetricOperator", "begin_products", "recorded_plan"]
