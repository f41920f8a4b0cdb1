"""The sketch of flat and sharp minima: a function of one number in closed form (Keskar et al. 2017, Figure 1)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sharpness import store
from sharpness.errors import ShapeError
from sharpness.geometry import Line
from sharpness.landscape import evaluate_line
from sharpness.objective import Objective
from sharpness.recipes.recipe import Recipe, Scale
from sharpness.recipes.run_folder import claim
from sharpness.recipes.stages import Place
from sharpness.records import LineLosses


@dataclass(frozen=True)
class Sketch:
    """f(θ) = 1 − ½ exp(−(θ − flat)² / 2w²) − ½ exp(−(θ − sharp)² / 2v²); testing function: f(θ − shift).

    Args:
        points: on θ in [-3, 3].
        flat, wide: the flat minimum and its width w.
        sharp, narrow: the sharp minimum and its width v.
        shift: by which the testing function lies to the right.
    """

    points: int = 301
    flat: float = -1.2
    wide: float = 0.7
    sharp: float = 1.4
    narrow: float = 0.12
    shift: float = 0.15

    def __post_init__(self) -> None:
        if self.points < 2 or min(self.wide, self.narrow) <= 0:
            raise ShapeError("expected points >= 2, wide > 0 and narrow > 0")

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """f at the output less the target, which is 0 in training and ``shift`` in testing."""
        flat, sharp = (
            0.5 * torch.exp(-((output - target - minimum) ** 2) / (2 * width**2))
            for minimum, width in ((self.flat, self.wide), (self.sharp, self.narrow))
        )
        return 1 - flat - sharp


def sketch(name: str, scale: str, parameters: Sketch, place: Place) -> LineLosses:
    """Both functions along the line of all θ, into ``out/sketch.h5``."""
    claim(place.out, {"recipe": name, "scale": scale, "parameters": dataclasses.asdict(parameters)})
    model, one = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    objectives = {}
    for split, shift in (("training function", 0.0), ("testing function", parameters.shift)):
        data = (one, torch.full((1, 1), shift, dtype=torch.float64))
        objectives[split], _ = Objective.from_module(model, parameters.loss, data, dtype=torch.float64)
    line = Line(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))  # α is θ
    record = evaluate_line(objectives, line, np.linspace(-3.0, 3.0, parameters.points))
    minima = {"flat": parameters.flat, "sharp": parameters.sharp}
    record = dataclasses.replace(record, conditions={**record.conditions, **minima})
    store.save(record, place.out / "sketch.h5")
    return record


SKETCH = Recipe(
    "keskar-sketch",
    "Flat and sharp minima of a function of one number (Figure 1)",
    {"paper": Scale("a second", Sketch()), "smoke": Scale("a second", Sketch(points=31))},
    sketch,
)
