"""What computations return: frozen dataclasses of NumPy arrays that know their own dimensions, units and labels.

A field made by ``variable`` is a result and is stored as a dataset; one made by ``setting`` is a choice and is stored
as an attribute. The store and the plots read dimensions, units and labels from here and from nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import field
from typing import Any, NamedTuple

import numpy as np

NATS, FRACTION, PERCENT, ONE = "nat", "1", "percent", "1"

# Labels of what several records hold
STATUS = "0 pending, 1 done, 2 not finite, 3 left out"
BY_LBFGSB, BY_SIGN_ASCENT = (f"ε-sharpness by {how}, a lower bound" for how in ("L-BFGS-B", "sign ascent"))
SLOPE, GRADIENT = "first-order part of the ε-sharpness", "gradient norm ‖g‖"
WEIGHTS, DISTANCE = "weight norm ‖θ‖", "distance from the start ‖θ − θ₀‖"
CERTIFIED = "residual within tolerance, and no missed pair found"
TRACE, TRACE_ERROR = "trace of the Hessian", "standard error of the trace"


def variable(*dims: str, unit: str = ONE, label: str, default: Any = dataclasses.MISSING) -> Any:
    """A result with named dimensions; a variable named like its only dimension is that dimension's coordinate.

    ``default=None`` is for results that files of earlier releases do not hold.
    """
    return field(default=default, metadata={"dims": dims, "unit": unit, "label": label})


def setting(label: str, default: Any = dataclasses.MISSING) -> Any:
    """A choice under which the results hold."""
    return field(default=default, metadata={"label": label})


def conditions() -> Any:
    """Everything else that was in force (objective, device, execution plan, …), as a JSON-able mapping."""
    return field(default_factory=dict, repr=False)


class Variable(NamedTuple):
    """One result as the store and the plots see it."""

    name: str
    values: np.ndarray
    dims: tuple[str, ...]
    unit: str
    label: str


def variables(record: Any) -> Iterator[Variable]:
    """The results of a record that are there, coordinates included."""
    for item in dataclasses.fields(record):
        if "dims" in item.metadata and getattr(record, item.name) is not None:
            values = np.asarray(getattr(record, item.name))
            yield Variable(item.name, values, item.metadata["dims"], item.metadata["unit"], item.metadata["label"])


def settings(record: Any) -> dict[str, Any]:
    """The choices of a record by name."""
    return {
        item.name: getattr(record, item.name)
        for item in dataclasses.fields(record)
        if "label" in item.metadata and "dims" not in item.metadata
    }


def axis_label(record: Any, name: str) -> str:
    """A field's label with its unit, as an axis shows it: ``loss (nat)``."""
    item = next(item for item in dataclasses.fields(record) if item.name == name)
    unit = item.metadata.get("unit", ONE)
    return item.metadata["label"] + (f" ({unit})" if unit != ONE else "")
