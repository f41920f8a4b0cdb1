"""The objective: f on one data set as a frozen function of θ, and the problem it comes from."""

from sharpness.objective.execution import exact_arithmetic, free_bytes, seconds_of
from sharpness.objective.kernels import Kernels
from sharpness.objective.losses import BatchLoss, cross_entropy, squared_error, usual_loss
from sharpness.objective.objective import Evaluation, Objective
from sharpness.objective.problem import Problem

__all__ = [
    "BatchLoss",
    "Evaluation",
    "Kernels",
    "Objective",
    "Problem",
    "cross_entropy",
    "exact_arithmetic",
    "free_bytes",
    "seconds_of",
    "squared_error",
    "usual_loss",
]
