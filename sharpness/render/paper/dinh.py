"""Rescaled networks (Dinh et al. 2017): one function, any sharpness."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sharpness.records import Rescaling, axis_label
from sharpness.render.cells import Cell, ratio_text
from sharpness.render.figures import draw_figure
from sharpness.render.layout import set_figure_caption
from sharpness.render.notes import effort_text, scale_text, smoke_text, training_facts
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.runs import first_record, no_run
from sharpness.render.style import number_text, style
from sharpness.render.tables import Table

RECIPE = "dinh-rescaling"
ROUNDING = 1e-4  # of the largest output, in float32
COLUMNS = {
    "factor": "factor α",
    "output_change": "change of outputs",
    "loss": "loss (nat)",
    "accuracy": "accuracy",
    "eigenvalue": "λmax",
    "residual": "residual",
    "predicted_eigenvalue": "λmax predicted",
    "predicted_residual": "its residual",
    "sharpness": "φ (%), L-BFGS-B",
    "stronger": "φ (%), sign ascent",
    "first_order": "first-order part (%)",
    "predicted_first_order": "first-order part predicted (%)",
    "filter_curvature": "filter-normalised curvature",
    "gradient_norm": "‖g‖",
    "weight_norm": "‖θ‖",
}


def draw_dinh(runs: Path) -> Drawing:
    """Curvature and ε-sharpness against the factor of the rescaling, measured and predicted."""
    record = first_record(runs / RECIPE / "rescaling.h5")
    if record is None:
        raise no_run([RECIPE], runs)
    figure = draw_figure({"": record})
    known = record.conditions
    with style():
        effort = effort_text(known)
        facts = [", ".join(training_facts(known)), f"ε-sharpness {effort}" if effort else ""]
        set_figure_caption(figure, [*facts, smoke_text(known) or scale_text(known)])
    return Drawing(figure, _table(record))


def _table(record: Rescaling) -> Table:
    done = np.asarray(record.status) != 0
    values = {name: np.where(done, np.asarray(getattr(record, name), float), np.nan) for name in COLUMNS}
    values["factor"] = np.asarray(record.factor, float)
    rows: list[list[Cell]] = [[float(column[index]) for column in values.values()] for index in range(done.size)]
    title = f"Measures of sharpness of one function: layers {record.layers} rescaled by α and 1/α (Dinh et al. 2017)"
    return Table(title, tuple(COLUMNS.values()), rows, [sentence for sentence in _sentences(record) if sentence])


def _sentences(record: Rescaling) -> Iterator[str]:
    known = record.conditions
    facts = [*training_facts(known), f"measured on {known['examples']} examples" if "examples" in known else ""]
    box = ", ".join(filter(None, [f"φ: ε = {record.epsilon:g}, full space", effort_text(known), "lower bounds"]))
    yield "; ".join([f"{record.recipe}: {scale_text(known)}, one trained network", *filter(None, facts), box]) + "."
    yield smoke_text(known).capitalize() + "." * bool(smoke_text(known))
    pending = int(np.sum(np.asarray(record.status) == 0))
    yield f"{pending} of {record.factor.size} factors are pending." if pending else ""
    yield _same_function(record)
    yield from (_range(record, name) for name in ("eigenvalue", "sharpness", "stronger", "filter_curvature"))
    yield _agreement(record)


def _same_function(record: Rescaling) -> str:
    change = _known(record, "output_change").max(initial=0.0)
    same = "one function, to rounding" if change <= ROUNDING else "not the same function"
    return f"Outputs change by at most {number_text(change)} of the largest: the networks compute {same}."


def _range(record: Rescaling, name: str) -> str:
    """How far a measure moves while the function stays."""
    values = _known(record, name)
    if not values.size:
        return f"{axis_label(record, name)}: not measured."
    low, high = values.min(), values.max()
    ratio = ratio_text(high / low) if low > 0 else "n/a"
    limits = f"from {number_text(low)} to {number_text(high)}"
    return f"{axis_label(record, name)}: {limits}, a factor of {ratio}, for one function."


def _agreement(record: Rescaling) -> str:
    """At how many factors the measured and the predicted λmax agree within their residuals."""
    names = ("eigenvalue", "predicted_eigenvalue", "residual", "predicted_residual")
    measured, predicted, own, its = (np.asarray(getattr(record, name), float) for name in names)
    known = np.isfinite(measured) & np.isfinite(predicted) & (np.asarray(record.status) != 0)
    within = known & (np.abs(measured - predicted) <= own + its)
    off = np.abs(measured - predicted)[known] / np.abs(predicted)[known]
    largest = f"; the largest relative difference is {number_text(off.max())}" if off.size else ""
    return (
        f"Measured and predicted λmax agree within their residuals at {within.sum()} of {known.sum()} factors{largest}."
    )


def _known(record: Rescaling, name: str) -> np.ndarray:
    values = np.asarray(getattr(record, name), float)
    return values[np.isfinite(values) & (np.asarray(record.status) != 0)]
