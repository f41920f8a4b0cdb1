"""The recipes by name, and how their parameters are overridden."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch

from sharpness.checkpoints import Minimizer
from sharpness.data import load
from sharpness.errors import CheckpointError, SchemaError, ShapeError
from sharpness.objective import Problem
from sharpness.recipes import critics, keskar
from sharpness.recipes.experiment import Experiment
from sharpness.recipes.language import CHAR_LM
from sharpness.recipes.recipe import Recipe
from sharpness.recipes.small import DIGITS

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (DIGITS, *keskar.RECIPES, *critics.RECIPES, CHAR_LM)}


def recipe_named(name: str, scale: str | None = None) -> Recipe:
    """The recipe of this name at a scale (default: its own), or ``ShapeError`` with those that exist."""
    if name not in RECIPES:
        raise ShapeError(f"expected a recipe ({', '.join(RECIPES)}) or a .toml file; got {name!r}")
    return RECIPES[name].at(scale)


def from_toml(path: Path, scale: str | None = None) -> Recipe:
    """The recipe that a TOML file names under ``recipe``, with the parameters that it overrides.

    ::

        recipe = "keskar-f1"
        scale = "reduced"
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
    named = content.pop("scale", None)
    if not (named is None or isinstance(named, str)):
        raise SchemaError(f'expected scale as a name, like "reduced", in {path}; got {named!r}')
    recipe = recipe_named(content.pop("recipe"), scale or named)
    return recipe.with_parameters(override(recipe.parameters, content))


def override(parameters: Any, changes: Mapping[str, Any], place: str = "") -> Any:
    """A dataclass with fields changed, nested ones by nested mappings; unknown names and wrong kinds are refused.

    The regimes of an experiment may be named directly, in small letters: ``[sb]`` is ``[regimes.SB]``.
    """
    kinds = get_type_hints(type(parameters))
    regimes = {name.lower(): name for name in getattr(parameters, "regimes", ())}
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in kinds and name.lower() in regimes:
            known = values.get("regimes", parameters.regimes)
            values["regimes"] = _changed_entries(known, {regimes[name.lower()]: value}, place)
        elif name not in kinds:
            raise SchemaError(f"expected one of the parameters {', '.join(kinds)}; got {place}{name}")
        elif dataclasses.is_dataclass(current := getattr(parameters, name)):
            values[name] = override(current, _table(value, f"{place}{name}"), f"{place}{name}.")
        elif name == "regimes":
            known = values.get(name, current)
            values[name] = _changed_entries(known, _table(value, f"{place}{name}"), f"{place}{name}.")
        elif _fits(value, kinds[name]):
            values[name] = {**current, **value} if isinstance(value, Mapping) else _tuples(value)
        else:
            raise SchemaError(f"expected {place}{name} as {_name(kinds[name])}, like {current!r}; got {value!r}")
    return dataclasses.replace(parameters, **values)


def restored(kind: Any, recorded: Mapping[str, Any]) -> Any:
    """A dataclass from what ``dataclasses.asdict`` and JSON made of it; fields of a later release have their defaults.

    >>> from sharpness.training import TrainingPlan
    >>> restored(TrainingPlan, {"batch_size": 2, "epochs": 3, "augment": ["flip"]}).augment
    ('flip',)
    """
    kinds, values = get_type_hints(kind), {}
    for name, value in recorded.items():
        if name not in kinds:
            raise CheckpointError(f"expected parameters of {kind.__name__}; got {name!r}, of another release")
        inner = get_args(kinds[name])
        if dataclasses.is_dataclass(kinds[name]):
            values[name] = restored(kinds[name], value)
        elif isinstance(value, Mapping) and inner and dataclasses.is_dataclass(inner[-1]):
            values[name] = {key: restored(inner[-1], entry) for key, entry in value.items()}
        else:
            values[name] = _tuples(value)
    return kind(**values)


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
    recorded = dict(metadata["parameters"])
    if "regimes" not in recorded:
        raise CheckpointError(
            "expected a minimizer of an experiment with regimes, as this release trains them; this one is older. Name "
            "its model and data: --problem FILE.py:NAME"
        )
    order = metadata.get("regimes", recorded["regimes"])  # which the metadata's sorted mappings have lost
    parameters = restored(Experiment, {**recorded, "regimes": {name: recorded["regimes"][name] for name in order}})
    data = load(parameters.data, data_dir)
    if data.fingerprint != metadata["data"]:
        raise CheckpointError(
            f"expected the {parameters.data} data that the minimizer was trained on; these have another fingerprint. "
            "Name the right folder with --data-dir."
        )
    return parameters.problem(data, metadata["seed"], getattr(torch, metadata["dtype"].removeprefix("torch.")))


def _changed_entries(entries: Mapping[str, Any], changes: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A mapping of dataclasses with some of their fields changed."""
    if unknown := [name for name in changes if name not in entries]:
        raise SchemaError(f"expected one of {', '.join(entries)}; got {place}{unknown[0]}")
    return {
        **entries,
        **{
            name: override(entries[name], _table(value, f"{place}{name.lower()}"), f"{place}{name.lower()}.")
            for name, value in changes.items()
        },
    }


def _table(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SchemaError(f"expected a table [{place}]; got {value!r}")
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that a field is annotated with; an int also serves as a float."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is ... and isinstance(value, (list, tuple)) else inner
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(kinds)
            and all(_fits(v, k) for v, k in zip(value, kinds, strict=True))
        )
    if origin is not None and issubclass(origin if isinstance(origin, type) else object, Mapping):
        return isinstance(value, Mapping) and all(_fits(v, inner[1]) for v in value.values())
    if inner:  # one of several kinds
        return any(_fits(value, k) for k in inner)
    return type(value) is kind or (type(value) is int and kind is float)


def _tuples(value: Any) -> Any:
    """Lists, which JSON and TOML have, as the tuples that parameters hold."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
