"""What this machine has, and whether a model can be trusted to give right numbers."""

from sharpness.doctor.check import Check
from sharpness.doctor.examine import check_problem
from sharpness.doctor.machine import check_machine
from sharpness.doctor.quick import check_quickly

__all__ = ["Check", "check_machine", "check_problem", "check_quickly"]
