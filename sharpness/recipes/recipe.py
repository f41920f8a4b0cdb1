"""What a recipe is: a named experiment at one or more scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sharpness.errors import ShapeError
from sharpness.recipes.experiment import Experiment
from sharpness.recipes.stages import run


@dataclass(frozen=True)
class Scale:
    """The parameters of a recipe at one scale, and what a run costs."""

    cost: str
    parameters: Any


@dataclass(frozen=True)
class Recipe:
    """A named experiment.

    Args:
        name, summary: what the command line shows.
        scales: by name, the usual one first: ``smoke`` (seconds, for trying and tests), ``reduced`` (two cores),
            ``paper`` (the size of the publication).
        run: ``(name, scale, parameters, place) → record``.
        scale: the one chosen; default: the first.
    """

    name: str
    summary: str
    scales: Mapping[str, Scale]
    run: Callable[..., Any] = field(default=run, repr=False)
    scale: str = ""

    def at(self, scale: str | None) -> Recipe:
        """The recipe at this scale (None: as it is), or ``ShapeError`` with the scales that it has."""
        if scale is None:
            return self
        if scale not in self.scales:
            raise ShapeError(f"expected --scale {', '.join(self.scales)} for {self.name}; got {scale!r}")
        return dataclasses.replace(self, scale=scale)

    @property
    def chosen(self) -> str:
        """The name of the scale."""
        return self.scale or next(iter(self.scales))

    @property
    def parameters(self) -> Any:
        """The parameters at the chosen scale."""
        return self.scales[self.chosen].parameters

    @property
    def cost(self) -> str:
        """What a run at the chosen scale costs."""
        return self.scales[self.chosen].cost

    @property
    def experiment(self) -> Experiment:
        """The part of the parameters that says what is trained, or ``ShapeError`` where nothing is."""
        experiment = getattr(self.parameters, "experiment", self.parameters)
        if not isinstance(experiment, Experiment):
            raise ShapeError(f"expected a recipe that trains, for sharpness train, --trials or --seed; got {self.name}")
        return experiment

    def with_parameters(self, parameters: Any) -> Recipe:
        """The recipe with other parameters at the chosen scale."""
        changed = {**self.scales, self.chosen: dataclasses.replace(self.scales[self.chosen], parameters=parameters)}
        return dataclasses.replace(self, scales=changed)

    def with_trials(self, trials: int | None, seed: int | None) -> Recipe:
        """The recipe with another number of trials or first seed, where given and where it has such."""
        given: dict[str, Any] = {n: value for n, value in (("trials", trials), ("seed", seed)) if value is not None}
        if not given:
            return self
        changed = dataclasses.replace(self.experiment, **given)
        whole = self.parameters
        return self.with_parameters(
            changed if whole is self.experiment else dataclasses.replace(whole, experiment=changed)
        )
