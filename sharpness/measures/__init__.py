"""Measures of sharpness at one point, of f as a whole and layer by layer."""

from sharpness.measures.epsilon import epsilon_sharpness
from sharpness.measures.layers import layer_curvature, layer_template

__all__ = ["epsilon_sharpness", "layer_curvature", "layer_template"]
