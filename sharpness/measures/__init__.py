"""Measures of sharpness at one point."""

from sharpness.measures.epsilon import epsilon_sharpness

__all__ = ["epsilon_sharpness"]
