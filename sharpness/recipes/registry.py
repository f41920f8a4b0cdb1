"""The recipes by name, and how their parameters are overridden."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sharpness.checkpoints import Minimizer
from sharpness.data import load
from sharpness.errors import CheckpointError, SchemaError, ShapeError
from sharpness.objective import Problem
from sharpness.recipes.small_large import SmallLarge
from sharpness.training import TrainingPlan


@dataclass(frozen=True)
class Recipe:
    """A named experiment: its parameters' defaults, a line about it and its usual cost."""

    name: str
    summary: str
    cost: str
    parameters: SmallLarge


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "digits",
            "SB 16 against LB 10 % on 1,797 handwritten digits (embedded), MLP with batch norm, 3 seeds",
            "about a minute on two cores",
            SmallLarge(
                data="digits",
                model="digits-mlp",
                # to rate 0: at a constant one the last SB iterate is a point of the noise around a minimum, ‖g‖ ≈ 0.1
                sb=TrainingPlan(batch_size=16, epochs=60, schedule="cosine", patience=20),
                lb=TrainingPlan(batch_size=0.1, epochs=150, schedule="cosine", patience=20),
                line_points=49,
                plane_points=21,
                threads=1,
            ),
        ),
        Recipe(
            "mnist-f1",
            "SB 256 against LB 6,000 on MNIST, the network F1 of Keskar et al., 3 seeds",
            "hours on two cores",
            SmallLarge(
                data="mnist",
                model="keskar-f1",
                sb=TrainingPlan(batch_size=256, epochs=20),
                lb=TrainingPlan(batch_size=6000, epochs=60),
                line_points=25,
                plane_points=11,
            ),
        ),
        Recipe(
            "keskar-f1",
            "SB 256 against LB 6,000 on MNIST, the network F1 of Keskar et al.",
            "hours on two cores",
            SmallLarge(
                data="mnist",
                model="keskar-f1",
                sb=TrainingPlan(batch_size=256, epochs=100, patience=10, resolution=1e-5),
                lb=TrainingPlan(batch_size=0.1, epochs=200, patience=10, resolution=1e-5),
                kept_epochs=(1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135),
                trials=5,
                line_points=25,
                plane_points=11,
                threads=1,
            ),
        ),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of this name, or ``ShapeError`` with those that exist."""
    if name not in RECIPES:
        raise ShapeError(f"expected a recipe ({', '.join(RECIPES)}) or a .toml file; got {name!r}")
    return RECIPES[name]


def from_toml(path: Path) -> Recipe:
    """The recipe that a TOML file names under ``recipe``, with the parameters that it overrides.

    ::

        recipe = "digits"
        trials = 5
        [sb]
        batch_size = 32

    Raises:
        SchemaError: missing or malformed, or a parameter that the recipe does not have.
    """
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise SchemaError(f"expected a recipe file at {path}; there is none") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"expected a TOML file at {path}; it does not parse ({error})") from error
    if not isinstance(content.get("recipe"), str):
        raise SchemaError(f'expected a line recipe = "digits" (or another recipe) in {path}; got none')
    recipe = recipe_named(content.pop("recipe"))
    return dataclasses.replace(recipe, parameters=override(recipe.parameters, content))


def override(parameters: Any, changes: Mapping[str, Any], place: str = "") -> Any:
    """A dataclass with fields changed, nested ones by nested mappings; unknown names and wrong kinds are refused."""
    kinds = {item.name: item.type for item in dataclasses.fields(parameters)}
    values = {}
    for name, value in changes.items():
        if name not in kinds:
            raise SchemaError(f"expected one of the parameters {', '.join(kinds)}; got {place}{name}")
        current = getattr(parameters, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise SchemaError(f"expected a table [{place}{name}]; got {value!r}")
            values[name] = override(current, value, f"{place}{name}.")
        elif _fits(value, kinds[name]):
            values[name] = tuple(value) if isinstance(value, list) else value
        else:
            raise SchemaError(f"expected {place}{name} as {kinds[name]}, like {current!r}; got {value!r}")
    return dataclasses.replace(parameters, **values)


def recipe_problem(minimizer: Minimizer, data_dir: str | Path | None = None) -> Problem:
    """The problem whose minimizer this is, rebuilt from its metadata.

    Raises:
        CheckpointError: its recipe is unknown here, or the data are not those that it was trained on.
    """
    metadata = minimizer.metadata
    if metadata.get("recipe") not in RECIPES:
        raise CheckpointError(
            f"expected a minimizer of one of the recipes {', '.join(RECIPES)}; got {metadata.get('recipe')!r}. "
            "Say what it belongs to: --problem FILE.py:NAME."
        )
    parameters = override(RECIPES[metadata["recipe"]].parameters, metadata["parameters"])
    data = load(parameters.data, data_dir)
    if data.fingerprint != metadata["data"]:
        raise CheckpointError(
            f"expected the {parameters.data} data that the minimizer was trained on; these have another fingerprint. "
            "Name the right folder with --data-dir."
        )
    return parameters.problem(data, metadata["seed"], getattr(torch, metadata["dtype"].removeprefix("torch.")))


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that a field is annotated with; an int also serves as a float."""
    if str(kind).startswith("tuple["):  # of any length, of one kind
        return isinstance(value, (list, tuple)) and all(_fits(v, kind[6:].removesuffix(", ...]")) for v in value)
    if type(value) is int:
        return kind in ("int", "float", "int | float")
    return type(value).__name__ in str(kind).split(" | ")
