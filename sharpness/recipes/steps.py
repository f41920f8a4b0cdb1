"""Checkpoints of one training run in their order, and what orders them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sharpness.checkpoints import training_step
from sharpness.errors import ShapeError
from sharpness.training import TrainingPlan

DIGITS = re.compile(r"(\d+)")
MOST = 2**63  # a number beyond it is a hash or a date, and no step


class Steps(NamedTuple):
    """Checkpoints in ascending order of their numbers.

    ``counts`` is what the numbers count, ``"epoch"``, ``"step"`` or ``"file"``, and ``origin`` where they come from.
    """

    numbers: list[int]
    files: list[Path]
    counts: str
    origin: str


def in_order(checkpoints: Sequence[Path]) -> Steps:
    """Checkpoints in the order of training.

    The numbers are the epochs or steps that the files hold beside the weights (minimizers in their metadata), if each
    has one and not all have the same: the end of training is often there twice. Else they are the one run of digits
    that differs between all names; else 0, 1, 2, …, in the order given.

    Raises:
        ShapeError: no checkpoints.
        CheckpointError: one is missing, damaged or unsafe.

    >>> in_names([Path("net-10.pt"), Path("net-9.pt")])
    [10, 9]
    """
    if not checkpoints:
        raise ShapeError("expected one checkpoint or more; got none")
    written = [training_step(path) for path in checkpoints]
    names = {step[0] for step in written if step is not None}
    within = [step[1] for step in written if step is not None]
    every = len(names) == 1 and len(within) == len(checkpoints) and max(within) < MOST
    if every and (len(within) == 1 or len(set(within)) > 1):
        return _sorted(within, checkpoints, names.pop(), "as the files say")
    found = in_names(checkpoints)
    if found is not None:
        return _sorted(found, checkpoints, "file", "by the numbers in their names")
    return Steps(list(range(len(checkpoints))), list(checkpoints), "file", "in the order given")


def in_names(checkpoints: Sequence[Path]) -> list[int] | None:
    """The run of digits that differs between all names, if there is one and the names are otherwise of one form."""
    parts = [DIGITS.split(str(path)) for path in checkpoints]
    if len({tuple(part[::2]) for part in parts}) != 1:
        return None
    columns = ([int(digits) for digits in column] for column in zip(*(part[1::2] for part in parts), strict=True))
    found = [numbers for numbers in columns if _tell_apart(numbers, checkpoints)]
    return found[0] if len(found) == 1 else None


def stability_edge(plan: TrainingPlan, epoch: int) -> float:
    """The λmax beyond which full-batch gradient descent by this plan diverges on a quadratic, after so many epochs.

    2/η; with momentum β 2(1 + β)/η, or 2(1 + β)/((1 + 2β) η) by Nesterov's (Cohen et al. 2021, Appendix B); less what
    weight decay adds to every eigenvalue. NaN for an adaptive method, which steps by another metric.

    >>> stability_edge(TrainingPlan(8, 3, "sgd", 0.1), 1), stability_edge(TrainingPlan(8, 3, "adam", 0.1), 1)
    (20.0, nan)
    """
    if plan.optimizer != "sgd" or not plan.rate(epoch - 1):
        return math.nan
    momentum = plan.momentum
    factor = (1 + momentum) / (1 + 2 * momentum if plan.nesterov else 1)
    return 2 * factor / plan.rate(epoch - 1) - plan.weight_decay


def _tell_apart(numbers: Sequence[int], checkpoints: Sequence[Path]) -> bool:
    return len(set(numbers)) == len(checkpoints) and max(numbers) < MOST


def _sorted(numbers: list[int], files: Sequence[Path], counts: str, origin: str) -> Steps:
    ordered = sorted(zip(numbers, files, strict=True), key=lambda pair: pair[0])
    return Steps([number for number, _ in ordered], [file for _, file in ordered], counts, origin)
