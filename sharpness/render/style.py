"""What all figures share: sizes, colours, ticks, captions, holes and the scale of an axis."""

import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

COLUMN = 3.4  # inches, one column of a two-column page
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"  # the first three by Okabe and Ito
ORANGE, SKY, PURPLE, BLACK = "#E69F00", "#56B4E9", "#CC79A7", "#000000"  # by them, too; their yellow is lost on white
LARGE, SMALL, CAPTION = 8, 7, 6  # points

LOOKS: tuple[tuple[str, str, Any], ...] = (
    (BLUE, "o", "-"),
    (VERMILLION, "s", "--"),
    (GREEN, "^", "-."),
    (ORANGE, "D", ":"),
    (PURPLE, "v", (0, (5, 1, 1, 1, 1, 1))),
    (SKY, "P", (0, (3, 1))),
    (BLACK, "X", (0, (1, 3))),
    (GREY, "*", (0, (8, 3))),
)
"""Colour, marker and dash of training regimes that share a panel, in their order."""

# Font and hash salt are fixed so that a file looks the same, byte for byte, wherever it is drawn; text is never taken
# as mathematics because names of data sets and models may hold a dollar sign.
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": SMALL,
    "axes.labelsize": LARGE,
    "axes.titlesize": LARGE,
    "axes.linewidth": 0.6,
    "axes.ymargin": 0.08,
    "axes.formatter.useoffset": False,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "hatch.linewidth": 0.4,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "text.parse_math": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "sharpness",
    "pdf.fonttype": 42,
} | {f"{axis}tick.{rank}.width": 0.5 for axis in "xy" for rank in ("major", "minor")}


def style() -> AbstractContextManager[None]:
    """The look of every figure, whatever the user's own settings; they are back on leaving."""
    return matplotlib.style.context(["default", STYLE])


def set_sizes(ax: Axes) -> None:
    """Give an axes that was made under other settings the text sizes of this package."""
    ax.tick_params(which="both", labelsize=SMALL)
    for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
        text.set_fontsize(LARGE)


def holes(values: np.ndarray, status: np.ndarray) -> np.ma.MaskedArray:
    """The values with what is pending or not finite masked; ``status`` belongs to the last axis."""
    return np.ma.masked_where(~np.isfinite(values) | (np.asarray(status) == 0), values)


def pooled(arrays: Iterable[Any]) -> np.ndarray:
    """The finite values of several arrays of any shape, masked ones left out, as one flat array."""
    flat = np.concatenate([np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).ravel() for values in arrays])
    return flat[np.isfinite(flat)]


def set_scale(ax: Axes, name: str, values: np.ndarray, *, beyond: float = 100.0) -> None:
    """A logarithmic axis where magnitudes differ by more than a factor ``beyond``, symlog if not all are positive."""
    magnitudes = np.abs(values[values != 0])
    if magnitudes.size == 0 or magnitudes.max() <= beyond * magnitudes.min():
        return
    set_axis_scale, axis = (ax.set_xscale, ax.xaxis) if name == "x" else (ax.set_yscale, ax.yaxis)
    decades = np.log10(magnitudes.max() / magnitudes.min())
    if values.min() > 0:
        set_axis_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    else:
        smallest = max(magnitudes.min(), magnitudes.max() * 1e-4)
        set_axis_scale("symlog", linthresh=10 ** np.floor(np.log10(smallest)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    axis.set_minor_formatter(NullFormatter())
    ax.autoscale_view(scalex=name == "x", scaley=name == "y")  # margins that suit the new scale


def number_text(value: float) -> str:
    """A short number without mathematical markup.

    >>> number_text(0.02), number_text(-100), number_text(1e-6), number_text(2.5e7)
    ('0.02', '−100', '10⁻⁶', '2.5·10⁷')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}".replace("-", "−") if abs(value) < 1e3 else f"{value:.0f}".replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = {"1": "", "-1": "−"}.get(mantissa, mantissa.replace("-", "−") + "·")
    return factor + power


def count_axis(ax: Axes) -> None:
    """Whole numbers on the horizontal axis: epochs, pairs and repeats are counted."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def policy_text(batchnorm: str | None) -> str:
    """The batch-norm policy as captions say it; nothing for a model without batch norm."""
    return f"batch norm: {batchnorm}" if batchnorm and batchnorm != "none" else ""


def joined(parts: Iterable[str], width: int, whole: int | None = None) -> str:
    """Parts of a caption in lines that break between parts, and in those longer than ``whole``, by default a line."""
    kept = (part if len(part) > (whole or width) else part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts if part)
    text = textwrap.fill("; ".join(kept), width, break_long_words=False, break_on_hyphens=False)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def set_caption(ax: Axes, *parts: str, width: int = 66, whole: int | None = None) -> None:
    """Small print under an axes: the conditions without which its numbers cannot be read."""
    text = joined(parts, width, whole)
    # Tied to the label of the axis, so that it stays clear of ticks of any height.
    ax.annotate(
        text, (0.5, 0), (0, -2), xycoords=ax.xaxis.label, textcoords="offset points", ha="center", va="top",
        fontsize=CAPTION, color=GREY,
    )  # fmt: skip


def legend_entries(axes: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    """Handles and labels of several axes, each label once."""
    entries: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return list(entries.values()), list(entries)


def legend_columns(labels: Sequence[str], inches: float) -> int:
    """How many columns of a legend fit a width, at most two for each column of the page."""
    fitting = inches / (0.45 + 0.055 * max(len(label) for label in labels))
    return max(1, min(int(fitting), 2 * round(inches / COLUMN)))


def legend_above(axes: Sequence[Axes]) -> None:
    """A legend of several axes that share a frame, over it and clear of the title."""
    handles, labels = legend_entries(axes)
    if handles:
        title = axes[0].get_title()
        room = 1.2 + (1.5 * (1 + title.count("\n")) if title else 0)
        place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "borderaxespad": room}
        axes[0].legend(handles, labels, ncols=legend_columns(labels, COLUMN), **place)
