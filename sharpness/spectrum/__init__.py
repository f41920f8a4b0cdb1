"""Spectra of symmetric operators: certified eigenpairs, and estimates of density and trace."""

from sharpness.spectrum.solver import default_products, eigenpairs
from sharpness.spectrum.stochastic import spectral_density, trace

__all__ = ["default_products", "eigenpairs", "spectral_density", "trace"]
