"""The figures and tables of published work, drawn from finished runs: what the paper shows, beside what it printed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sharpness.errors import SchemaError, ShapeError
from sharpness.render.files import save_figure
from sharpness.render.folder import FORMATS
from sharpness.render.paper.accuracy import draw_keskar_2
from sharpness.render.paper.batches import SIZES, WARM, draw_keskar_4, draw_keskar_5
from sharpness.render.paper.dinh import RECIPE as DINH
from sharpness.render.paper.dinh import draw_dinh
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.li import RECIPE as LI
from sharpness.render.paper.li import draw_li
from sharpness.render.paper.networks import CURVES, NAMES, draw_keskar_3, draw_keskar_6, draw_keskar_7
from sharpness.render.paper.regimes import HOFFER, REMEDIES, draw_hoffer, draw_remedies
from sharpness.render.paper.sketch import RECIPE as SKETCH
from sharpness.render.paper.sketch import draw_keskar_1
from sharpness.render.tables import save_table

__all__ = ["PAPER", "Artefact", "draw_paper"]


class Artefact(NamedTuple):
    """What can be drawn by name: one line about it, the recipes whose runs it needs, and how."""

    summary: str
    recipes: tuple[str, ...]
    draw: Callable[[Path], Drawing]


NETWORKS = tuple(NAMES)
PAPER: dict[str, Artefact] = {
    "keskar-1": Artefact("Figure 1: a flat and a sharp minimum, a sketch", (SKETCH,), draw_keskar_1),
    "keskar-2": Artefact("Figure 2 and Table 2: accuracy of SB and LB", NETWORKS, draw_keskar_2),
    "keskar-3": Artefact("Figure 3 and Table 3: lines, ε-sharpness in the full space", NETWORKS, draw_keskar_3),
    "keskar-4": Artefact(
        "Figure 4 and Table 4: batch sizes, ε-sharpness in random subspaces", (SIZES, *NETWORKS), draw_keskar_4
    ),
    "keskar-5": Artefact("Figure 5: large batches after a start with small ones", (WARM,), draw_keskar_5),
    "keskar-6": Artefact("Figure 6: ε-sharpness against the loss along training", NETWORKS, draw_keskar_6),
    "keskar-7": Artefact("Figure 7: curves through SB and LB", (CURVES, *NETWORKS), draw_keskar_7),
    "keskar-remedies": Artefact("Appendix E: remedies for large batches", (REMEDIES,), draw_remedies),
    "dinh-rescaling": Artefact("Dinh et al. 2017: one function, any sharpness", (DINH,), draw_dinh),
    "hoffer-longer": Artefact("Hoffer et al. 2017: longer training of large batches", (HOFFER,), draw_hoffer),
    "li-weight-decay": Artefact("Li et al. 2018: weight decay and filter normalisation", (LI,), draw_li),
}
"""Every figure and table that ``draw_paper`` knows, by name."""


def draw_paper(name: str, runs: Path, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw one of the published figures, and the table that belongs to it, from the HDF5 files of finished runs.

    Args:
        name: a key of ``PAPER``.
        runs: the folder in which runs lie under the names of their recipes, as ``runs/keskar-f1``. What is there is
            drawn; captions and notes say what is not.
        out: where files go: ``keskar-3.svg``, … and ``keskar-3-table.md``, ``.csv``, ``.tex``.
        formats: endings of the figure that Matplotlib can write.

    Returns:
        The files written.

    Raises:
        ShapeError: no figure of that name.
        SchemaError: none of the runs is there, or a file is damaged or lacks what is drawn; says how to make it.

    Example:
        >>> draw_paper("keskar-3", Path("runs"), Path("figures"), ["svg"])  # doctest: +SKIP
        [PosixPath('figures/keskar-3.svg'), PosixPath('figures/keskar-3-table.md'), …]
    """
    if name not in PAPER:
        raise ShapeError(f"expected a figure among {', '.join(PAPER)}; got {name!r}")
    drawing = PAPER[name].draw(Path(runs))
    if drawing.figure is None and drawing.table is None:
        raise SchemaError(f"expected something to draw for {name} in {runs}; its runs hold none of it")
    written = [] if drawing.figure is None else save_figure(drawing.figure, Path(out) / name, formats)
    return written + ([] if drawing.table is None else save_table(drawing.table, Path(out) / f"{name}-table"))
