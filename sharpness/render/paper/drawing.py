"""What one of the paper's figures and tables becomes."""

from typing import NamedTuple

from matplotlib.figure import Figure

from sharpness.render.tables import Table


class Drawing(NamedTuple):
    """A figure and a table; ``None`` where there is none, or the runs at hand do not hold it."""

    figure: Figure | None = None
    table: Table | None = None
