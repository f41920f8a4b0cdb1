"""Whole experiments: train, analyse, draw. A recipe is a function and a frozen dataclass of parameters."""

from sharpness.recipes.analysis import AnalysisPlan, Report, analyse, no_report
from sharpness.recipes.registry import RECIPES, Recipe, from_toml, recipe_named, recipe_problem
from sharpness.recipes.run_folder import claim
from sharpness.recipes.small_large import SmallLarge, run, train_pairs

__all__ = [
    "RECIPES",
    "AnalysisPlan",
    "Recipe",
    "Report",
    "SmallLarge",
    "analyse",
    "claim",
    "from_toml",
    "no_report",
    "recipe_named",
    "recipe_problem",
    "run",
    "train_pairs",
]
