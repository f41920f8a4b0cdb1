"""Spectra of symmetric operators: certified eigenpairs."""

from sharpness.spectrum.solver import eigenpairs

__all__ = ["eigenpairs"]
