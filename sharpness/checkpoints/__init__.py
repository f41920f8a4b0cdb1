"""Weights on disk: minimizers that training leaves, and anyone's checkpoints. No pickle is ever executed."""

from sharpness.checkpoints.contents import Weights
from sharpness.checkpoints.fitting import Fitted, load_state
from sharpness.checkpoints.minimizer import FORMAT, Minimizer, is_minimizer, load_minimizer
from sharpness.checkpoints.reading import Checkpoint, load_checkpoint, read_checkpoint, training_step

__all__ = [
    "FORMAT",
    "Checkpoint",
    "Fitted",
    "Minimizer",
    "Weights",
    "is_minimizer",
    "load_checkpoint",
    "load_minimizer",
    "load_state",
    "read_checkpoint",
    "training_step",
]
