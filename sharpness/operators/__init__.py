"""Symmetric matrices known by their products with vectors."""

from sharpness.operators.base import Dense, SymmetricOperator
from sharpness.operators.hessian import Hessian

__all__ = ["Dense", "Hessian", "SymmetricOperator"]
