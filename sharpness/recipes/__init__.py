"""Whole experiments: train, analyse, draw. A recipe is a function and a frozen dataclass of parameters."""

from sharpness.recipes.analysis import AnalysisPlan, Report, analyse, measured_on, no_report
from sharpness.recipes.checkpoint import analyse_checkpoints, landscape, load_problem
from sharpness.recipes.registry import RECIPES, Recipe, from_toml, recipe_named, recipe_problem
from sharpness.recipes.small_large import SmallLarge, random_problem, run, train_pairs

__all__ = [
    "RECIPES",
    "AnalysisPlan",
    "Recipe",
    "Report",
    "SmallLarge",
    "analyse",
    "analyse_checkpoints",
    "from_toml",
    "landscape",
    "load_problem",
    "measured_on",
    "no_report",
    "random_problem",
    "recipe_named",
    "recipe_problem",
    "run",
    "train_pairs",
]
