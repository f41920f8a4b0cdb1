"""Dinh et al. 2017: one function, any sharpness. Two layers of a ReLU network are rescaled by α and 1/α."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch

from sharpness import store
from sharpness.data import load
from sharpness.errors import NonFiniteError, NotConvergedError, ShapeError
from sharpness.geometry import normalised
from sharpness.journal import PENDING
from sharpness.measures import epsilon_sharpness
from sharpness.objective import Objective
from sharpness.operators import Hessian, Scaled, SymmetricOperator
from sharpness.params import ParamSpace, Point
from sharpness.random import normal
from sharpness.recipes.analysis import AnalysisPlan, measured_on
from sharpness.recipes.experiment import Experiment, cpu_threads
from sharpness.recipes.stages import Place, train_regimes
from sharpness.recipes.trajectory import norm
from sharpness.records import EigenPairs, Rescaling
from sharpness.spectrum import eigenpairs

COORDINATES = ("factor", "status")
SAME = 1e-3  # of the largest output: more than float32 rounds, less than another function differs


@dataclass(frozen=True)
class Rescale:
    """Parameters of the rescaling.

    Args:
        experiment: trains the network that is rescaled: one regime, one trial. Of its analysis, tolerance, the first ε,
            iterations, restarts and examples count.
        factors: α, each > 0; 1 is the network as it was trained.
        layers: names of two layers with nothing but ReLU between them; weights and bias of the first are multiplied by
            α, the weights of the second by 1/α.
    """

    experiment: Experiment
    factors: tuple[float, ...] = (0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
    layers: tuple[str, str] = ("0", "2")

    def __post_init__(self) -> None:
        if not self.factors or not all(0 < factor < inf for factor in self.factors):
            raise ShapeError(f"expected factors > 0; got {self.factors}. All must be finite.")
        if self.experiment.trials != 1 or len(self.experiment.regimes) != 1:
            raise ShapeError(
                f"expected one trial of one regime, whose network is rescaled; got {self.experiment.trials} trials "
                f"of {', '.join(self.experiment.regimes)}. Choose another network with --seed."
            )


def rescale(name: str, scale: str, parameters: Rescale, place: Place) -> Rescaling:
    """Train one network, then measure it at every factor, into ``out/rescaling.h5``, going on with what it holds."""
    experiment = parameters.experiment
    problem = experiment.problem(load(experiment.data, place.data_dir), experiment.seed, place.dtype)
    _diagonal(ParamSpace.of(problem.model), parameters.layers, 1.0)  # layers that are not there are refused first
    _, trials = train_regimes(name, scale, experiment, place)
    end = next(iter(trials[experiment.seed].ends.values()), None)
    if end is None:
        raise NonFiniteError("expected a network to rescale; its training diverged. Lower the learning rate.")
    part = measured_on(problem, experiment.analysis.examples)
    objectives, _ = part.objectives(device=place.device)
    objective, progress = objectives["train"], place.report("rescaled networks")
    template = _template(name, scale, parameters, objective, len(problem.train[1]))
    with (
        cpu_threads(experiment.threads),
        store.begin(place.out / "rescaling.h5", {"rescaling": template})["rescaling"] as journal,
    ):
        origin = _Origin(objective, objective.point(end), experiment.analysis, experiment.seed, part)
        for row in np.flatnonzero(journal.status == PENDING):
            factor = parameters.factors[row]
            diagonal = _diagonal(objective.space, parameters.layers, factor)
            journal.commit(int(row), origin.measured(diagonal.to(objective.device, objective.dtype)))
            progress(int((journal.status != PENDING).sum()), len(journal), f"α = {factor:g}")
    return store.load(place.out / "rescaling.h5")


@dataclass(frozen=True)
class _Origin:
    """The network as it was trained, and what is asked of it rescaled."""

    objective: Objective
    point: Point
    plan: AnalysisPlan
    seed: int
    problem: Any

    def measured(self, diagonal: torch.Tensor) -> dict[str, float]:
        """Everything at Tθ, and from θ what must come out there."""
        objective, plan = self.objective, self.plan
        there = Point(diagonal * self.point.theta, self.point.buffers)
        change, hessian = self._output_change(there), Hessian(objective, there)
        pairs = self._largest(hessian)
        predicted = self._largest(Scaled(Hessian(objective, self.point), 1 / diagonal))
        score = objective.evaluate(there)
        found = epsilon_sharpness(
            objective, there, plan.epsilons[0], None, plan.iterations, seed=self.seed, restarts=plan.restarts
        )
        drawn = normal(objective.size, key=("rescaled direction",), seed=self.seed, dtype=objective.dtype)
        direction = normalised(drawn.to(there.theta), there.theta, objective.space)
        return {
            "loss": score.loss,
            "accuracy": score.accuracy,
            "output_change": change,
            "eigenvalue": pairs.eigenvalues[0],
            "residual": pairs.residuals[0],
            "predicted_eigenvalue": predicted.eigenvalues[0],
            "predicted_residual": predicted.residuals[0],
            "sharpness": found.sharpness,
            "stronger": found.stronger,
            "first_order": found.first_order,
            "predicted_first_order": self._first_order(diagonal),
            "gradient_norm": found.gradient_norm,
            "weight_norm": norm(there.theta),
            "filter_curvature": float(direction.double() @ (hessian @ direction).double()),
        }

    def _largest(self, operator: SymmetricOperator) -> EigenPairs:
        try:
            return eigenpairs(operator, 1, tolerance=self.plan.tolerance, seed=self.seed)
        except NotConvergedError as error:
            return error.partial

    def _first_order(self, diagonal: torch.Tensor) -> float:
        """100 ε Σ |gᵢ / tᵢ| (|tᵢ θᵢ| + 1) / (1 + f), by the chain rule from the gradient g at θ."""
        value, gradient = self.objective.value_and_gradient(self.point)
        box = (diagonal * self.point.theta).double().abs() + 1.0
        total = ((gradient.double() / diagonal.double()).abs() * box).sum()
        return float(100.0 * self.plan.epsilons[0] * total / (1.0 + value))

    def _output_change(self, there: Point) -> float:
        """max |y(Tθ) − y(θ)| / max |y(θ)| over the examples measured on."""
        inputs, space = self.problem.train[0].to(self.objective.device), self.objective.space
        with torch.no_grad():
            before, after = (
                torch.func.functional_call(self.problem.model.eval(), space.unflatten(point.theta), (inputs,)).double()
                for point in (self.point, there)
            )
        change = float((after - before).abs().max() / before.abs().max())
        if change > SAME:
            raise ShapeError(
                f"expected two layers with only ReLU between them; rescaled, outputs change by {change:.2g} of the "
                "largest. Name layers that follow each other."
            )
        return change


def _diagonal(space: ParamSpace, layers: tuple[str, str], factor: float) -> torch.Tensor:
    """t of shape (n,): α for weights and bias of the first layer, 1/α for the weights of the second, 1 elsewhere."""
    first, second = layers
    wanted = {f"{first}.weight": factor, f"{first}.bias": factor, f"{second}.weight": 1 / factor}
    if missing := [name for name in wanted if name not in space.names]:
        raise ShapeError(f"expected layers with the parameters {', '.join(wanted)}; the model lacks {missing[0]}")
    pieces = (
        torch.full((size,), wanted.get(name, 1.0), dtype=torch.float64)
        for name, size in zip(space.names, space.sizes, strict=True)
    )
    return torch.cat(list(pieces))


def _template(name: str, scale: str, parameters: Rescale, objective: Objective, examples: int) -> Rescaling:
    """The record before anything is measured."""
    experiment, plan, count = parameters.experiment, parameters.experiment.analysis, len(parameters.factors)
    columns = [
        item.name
        for item in dataclasses.fields(Rescaling)
        if item.metadata.get("dims") == ("factor",) and item.name not in COORDINATES
    ]
    return Rescaling(
        factor=np.array(parameters.factors, float),
        status=np.zeros(count, np.uint8),
        epsilon=plan.epsilons[0],
        layers=" and ".join(parameters.layers),
        recipe=name,
        conditions={
            **objective.conditions,
            "scale": scale,
            "data": experiment.data,
            "train_examples": examples,
            "model": experiment.model,
            "model_options": dict(experiment.model_options),
            "iterations": plan.iterations,
            "restarts": plan.restarts,
        },
        **{column: np.full(count, np.nan) for column in columns},
    )
