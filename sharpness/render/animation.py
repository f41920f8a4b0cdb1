"""A training run that moves over its plane."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter

from sharpness.errors import ShapeError, SharpnessError
from sharpness.files import write_atomically
from sharpness.records import PlaneLosses
from sharpness.render.figures import draw_figure
from sharpness.render.files import PIXELS_PER_INCH, settled
from sharpness.render.style import VERMILLION, number_text, style

MOVING = ("gif", "mp4")
SECONDS = 8.0  # that a run takes, within the limits of what can be followed and what is not tedious
FRAMES_PER_SECOND = (2, 25)
REST = 1.0  # seconds at the end


def has_walk(record: Any) -> bool:
    """Whether a record is a plane with a training run, which can be animated."""
    return isinstance(record, PlaneLosses) and _walk(record) is not None


def save_animation(record: PlaneLosses, path: Path) -> Path:
    """Write a plane whose training run moves over its contours, one frame for each iterate, as GIF or MP4.

    The iterate and the path behind it are those of ``draw``; the title says the epoch. The last frame rests for a
    second. The same record gives the same bytes as GIF. The file is replaced atomically.

    Args:
        record: a plane with a training run, as of ``trajectory_plane``.
        path: where; its ending, ``.gif`` or ``.mp4``, says which.

    Raises:
        ShapeError: the record has no training run, or another ending.
        SharpnessError: MP4 without ``ffmpeg`` on the path.

    Example:
        >>> save_animation(load("plane.h5"), Path("plane.gif"))  # doctest: +SKIP
    """
    if not isinstance(record, PlaneLosses) or (walk := _walk(record)) is None:
        raise ShapeError(
            f"expected a plane with a training run, whose iterates can move; got {type(record).__name__} without. "
            "Evaluate the plane of a trajectory, or draw it as svg, pdf or png"
        )
    rate = int(np.clip(len(walk.places) / SECONDS, *FRAMES_PER_SECOND))
    with style(), tempfile.TemporaryDirectory() as folder:
        part = Path(folder, path.name)
        _write_frames(record, walk, _writer(path, rate), part, rest=int(REST * rate))
        return write_atomically(path, part.read_bytes())


def _writer(path: Path, rate: int) -> AbstractMovieWriter:
    ending = path.suffix.removeprefix(".")
    if ending not in MOVING:
        raise ShapeError(f"expected a file that ends in .{' or .'.join(MOVING)}; got {path.name}")
    if ending == "gif":
        return PillowWriter(fps=rate)
    if shutil.which("ffmpeg") is None:
        raise SharpnessError(
            "expected the program ffmpeg, which writes MP4; there is none on the PATH. Install it (apt install ffmpeg, "
            "brew install ffmpeg, conda install ffmpeg), or write a GIF"
        )
    return FFMpegWriter(fps=rate, codec="h264", extra_args=["-fflags", "+bitexact"])


class _Walk(NamedTuple):
    epochs: list[str]
    """The title of each frame."""
    places: np.ndarray
    """(T, 2): α and β."""


def _walk(record: PlaneLosses) -> _Walk | None:
    if record.epoch is None or record.walk_place is None:
        return None
    return _Walk([f"epoch {number_text(epoch)}" for epoch in record.epoch], record.walk_place[:, :2])


def _write_frames(record: PlaneLosses, walk: _Walk, writer: AbstractMovieWriter, path: Path, *, rest: int) -> None:
    figure = settled(draw_figure({max(walk.epochs, key=len): record}))  # with room for every title
    ax = figure.axes[0]
    trails = [curve for curve in ax.lines if curve.get_label() == "_walk"]
    (iterate,) = ax.plot([], [], "o", color=VERMILLION, markersize=6, markeredgecolor="white", zorder=6)
    with writer.saving(figure, str(path), PIXELS_PER_INCH):
        for number, epoch in enumerate(walk.epochs, 1):
            for trail in trails:
                trail.set_data(*walk.places[:number].T)
            iterate.set_data(*walk.places[number - 1 : number].T)
            ax.set_title(epoch)
            for _ in range(1 + rest * (number == len(walk.epochs))):
                writer.grab_frame()
