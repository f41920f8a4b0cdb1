"""Figures and tables of records: deterministic, readable at column width, and without PyTorch.

``draw`` puts one record on an axes, ``draw_figure`` several of one kind side by side, ``save_figure`` writes files;
``draw_surfaces`` draws planes in three dimensions, ``save_animation`` a training run that moves over its plane;
``comparison_table`` gives the numbers of a comparison and ``differences_table`` its statistics; ``save_table`` writes
them for people and for programs, ``draw_table`` makes a figure of them. ``draw_paper`` draws what published work shows
from finished runs.
"""

from sharpness.render.animation import MOVING, save_animation
from sharpness.render.comparison import draw_table
from sharpness.render.differences import differences_table
from sharpness.render.figures import draw, draw_figure
from sharpness.render.files import save_figure
from sharpness.render.folder import FORMATS, draw_file, draw_folder
from sharpness.render.paper import PAPER, draw_paper
from sharpness.render.summary import comparison_table, regimes_table, sharpness_table
from sharpness.render.surfaces import draw_surfaces
from sharpness.render.tables import Table, save_table

__all__ = [
    "FORMATS",
    "MOVING",
    "PAPER",
    "Table",
    "comparison_table",
    "differences_table",
    "draw",
    "draw_figure",
    "draw_file",
    "draw_folder",
    "draw_paper",
    "draw_surfaces",
    "draw_table",
    "regimes_table",
    "save_animation",
    "save_figure",
    "save_table",
    "sharpness_table",
]
