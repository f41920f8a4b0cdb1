"""Figures on disk: the same bytes for the same figure, whole or not at all."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sharpness.files import write_atomically
from sharpness.render.style import style

PIXELS_PER_INCH = 200
UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save_figure(figure: Figure, stem: Path, formats: Sequence[str] = ("svg", "pdf", "png")) -> list[Path]:
    """Write a figure in several formats, each file replaced atomically.

    The same figure gives the same bytes each time: no date, no random identifiers; text in SVG is stored as outlines.
    The layout of the figure is settled here and stays as it is, so that all formats look alike.

    Args:
        figure: what to write.
        stem: folder (made where missing) and name without ending; ``.svg`` and so on is appended.
        formats: endings that Matplotlib can write.

    Returns:
        The files written, in the order of ``formats``.

    Raises:
        OSError: a file could not be written. What had its name before is untouched and nothing else is left behind.

    Example:
        >>> save_figure(draw_figure({"SB": small, "LB": large}), Path("figures/plane"))  # doctest: +SKIP
        [PosixPath('figures/plane.svg'), PosixPath('figures/plane.pdf'), PosixPath('figures/plane.png')]
    """
    contents = figure_bytes(figure, formats)
    return [write_atomically(f"{stem}.{ending}", content) for ending, content in contents.items()]


def figure_bytes(figure: Figure, formats: Sequence[str]) -> dict[str, bytes]:
    """What ``save_figure`` writes, by format."""
    with style():
        settled(figure)
        return {ending: _bytes(figure, ending) for ending in formats}


def settled(figure: Figure) -> Figure:
    """The figure with its layout as it is now: an engine would move the axes a little at every drawing, and by other
    amounts in every format."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _bytes(figure: Figure, ending: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending, dpi=PIXELS_PER_INCH, metadata=UNDATED.get(ending))
    return buffer.getvalue()
