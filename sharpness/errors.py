"""What can go wrong, by kind.

Every message says what was expected, what came and what to do. An error that interrupts costly work carries
what was already computed in ``partial``.
"""

from __future__ import annotations

from typing import Any


class SharpnessError(Exception):
    """Base of every error this package raises on purpose."""

    def __init__(self, message: str, *, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial


class ShapeError(SharpnessError, ValueError):
    """An argument has the wrong shape, size or range."""


class NonFiniteError(SharpnessError, FloatingPointError):
    """A loss, gradient or product is NaN or infinite where a number is needed."""


class NonDeterministicError(SharpnessError, RuntimeError):
    """The same parameters and data gave two different answers."""


class NotConvergedError(SharpnessError, RuntimeError):
    """The budget ran out before the tolerance was met; ``partial`` holds the best result so far."""


class SchemaError(SharpnessError, ValueError):
    """A file or folder is not what its place promises: other format, other version, other configuration."""


class UnsupportedModelError(SharpnessError, TypeError):
    """The model cannot be analysed as asked."""


class DataError(SharpnessError, ValueError):
    """The data are missing, damaged or inconsistent."""


class CheckpointError(SharpnessError, ValueError):
    """A checkpoint is missing, damaged, unsafe to read or does not fit the model."""
