"""Points with what they spread over the trials, which several of the paper's figures share."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sharpness.records import Comparison, axis_label
from sharpness.render.cells import over_seeds
from sharpness.render.paper.runs import Run
from sharpness.render.style import BLUE, VERMILLION, number_text, pooled, set_scale
from sharpness.render.summary import Case, cases

LOOKS = ((BLUE, "o"), (VERMILLION, "s"))  # by maximiser
DASHES: Sequence[Any] = ("-", "--", ":")  # by treatment of batch norm


def draw_spread(ax: Axes, x: np.ndarray, values: np.ndarray, **look: Any) -> None:
    """Mean ± standard deviation over the trials at each x, and every trial as a dot; values of shape (x, seed)."""
    summaries = [over_seeds(row) for row in values]
    means, deviations = ([summary[part] for summary in summaries] for part in (0, 1))
    ax.errorbar(x, means, deviations, markersize=3.5, linewidth=0.9, elinewidth=0.7, **look)
    across = np.broadcast_to(np.asarray(x)[:, None], values.shape)
    ax.plot(across, values, ".", color=look["color"], markersize=2)


def full_cases(record: Comparison) -> Iterator[Case]:
    """The ways of measuring in the full space with the largest ε."""
    largest = int(np.argmax(record.epsilon))
    return (case for case in cases(record) if str(record.space[case.space]) == "full" and case.epsilon == largest)


def draw_sharpness(run: Run, ax: Axes, x: np.ndarray, regimes: Sequence[int]) -> None:
    """ε-sharpness in the full space with the largest ε, by maximiser (colour) and batch norm (dash), over x."""
    record = run.comparison
    for case in full_cases(record):
        color, marker = LOOKS[case.maximiser % len(LOOKS)]
        batchnorm = str(record.batchnorm[case.batchnorm])
        policy = "" if batchnorm == "none" else f" ({batchnorm})"
        draw_spread(
            ax, x, record.sharpness[regimes][:, :, *case], color=color, marker=marker,
            linestyle=DASHES[case.batchnorm % len(DASHES)], label=f"{record.maximiser[case.maximiser]}{policy}",
            markerfacecolor="white" if case.batchnorm else color,
        )  # fmt: skip
    shown = pooled(record.sharpness[regimes][:, :, *case] for case in full_cases(record))
    set_scale(ax, "y", shown)
    ax.set_ylabel(axis_label(record, "sharpness"))


def sharpness_captions(record: Comparison) -> list[str]:
    """What the ε-sharpness of these figures is."""
    policies = [str(name) for name in record.batchnorm if str(name) != "none"]
    box = f"ε-sharpness: full space, ε = {number_text(float(record.epsilon.max()))}, lower bounds"
    return [box, f"batch norm: {' or '.join(policies)}" if policies else ""]
