"""What the surfaces of a family have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sharpness.records import PlaneLosses
from sharpness.render.style import pooled
from sharpness.render.surfaces import DECADES

MARGIN = 0.04  # of the height, under and over the surfaces


class Frame(NamedTuple):
    """Limits of α, β and the loss, and the scales on which the loss can be shown, ``linear`` or ``log``."""

    alpha: list[float]
    beta: list[float]
    loss: list[float]
    scales: list[str]
    """The first is the one to begin with."""

    def on_scale(self, loss: Any, scale: str) -> np.ndarray:
        """The loss as a coordinate along its axis."""
        return np.log10(loss) if scale == "log" else np.asarray(loss)

    def colour(self, loss: Any) -> np.ndarray:
        """What is coloured: as in the contours the logarithm, where there is one."""
        return self.on_scale(loss, "log" if "log" in self.scales else "linear")

    def spread(self, scale: str) -> float:
        """From the smallest to the largest loss along the axis; not 0."""
        low, high = self.on_scale(self.loss, scale)
        return float(high - low) or abs(float(high)) or 1.0

    def axis(self, scale: str) -> dict[str, Any]:
        """The axis of the loss, for plotly."""
        low, high = self.on_scale(self.loss, scale)
        margin = MARGIN * self.spread(scale)
        return {"type": scale, "range": [low - margin, high + margin], "dtick": 1 if scale == "log" else None}


def frame_of(family: Sequence[PlaneLosses], losses: np.ndarray) -> Frame:
    """The frame of planes with these finite losses: logarithmic at first where they span more than two decades."""
    limits = [pooled(getattr(record, name) for record in family) for name in ("alpha", "beta")]
    alpha, beta, loss = ([float(values.min()), float(values.max())] for values in (*limits, losses))
    scales = ["linear"]
    if loss[0] > 0:
        scales.insert(0 if loss[1] > 10**DECADES * loss[0] else 1, "log")
    return Frame(alpha, beta, loss, scales)
