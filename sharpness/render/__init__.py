"""Figures of records: deterministic, readable at column width, and without PyTorch.

``draw`` puts one record on an axes, ``draw_figure`` several of one kind side by side, ``save_figure`` writes files;
``sharpness_table`` and ``draw_table`` give the numbers of a comparison as text and as a figure.
"""

from sharpness.render.comparison import draw_table
from sharpness.render.figures import draw, draw_figure
from sharpness.render.files import save_figure
from sharpness.render.folder import FORMATS, draw_file, draw_folder
from sharpness.render.summary import sharpness_table

__all__ = ["FORMATS", "draw", "draw_figure", "draw_file", "draw_folder", "draw_table", "save_figure", "sharpness_table"]
