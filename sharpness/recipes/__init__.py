"""Whole experiments: train, analyse, draw. A recipe is a function and a frozen dataclass of parameters."""

from sharpness.recipes.analysis import AnalysisPlan, Report, analyse, measured_on, no_report
from sharpness.recipes.checkpoint import analyse_checkpoints
from sharpness.recipes.experiment import Experiment, random_problem
from sharpness.recipes.landscapes import LandscapePlan, landscape
from sharpness.recipes.recipe import Recipe, Scale
from sharpness.recipes.registry import RECIPES, from_toml, recipe_named, recipe_problem
from sharpness.recipes.series import follow_checkpoints
from sharpness.recipes.sets import checkpoints_in, compare_checkpoints, set_names
from sharpness.recipes.shortcuts import Preprocessing
from sharpness.recipes.source import Source
from sharpness.recipes.stages import Place, run, train_regimes

__all__ = [
    "RECIPES",
    "AnalysisPlan",
    "Experiment",
    "LandscapePlan",
    "Place",
    "Preprocessing",
    "Recipe",
    "Report",
    "Scale",
    "Source",
    "analyse",
    "analyse_checkpoints",
    "checkpoints_in",
    "compare_checkpoints",
    "follow_checkpoints",
    "from_toml",
    "landscape",
    "measured_on",
    "no_report",
    "random_problem",
    "recipe_named",
    "recipe_problem",
    "run",
    "set_names",
    "train_regimes",
]
