"""Records and results as rows of text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from sharpness.errors import SharpnessError
from sharpness.journal import DONE, LEFT_OUT, NOT_FINITE, PENDING
from sharpness.records import (
    AxisCurvature,
    Comparison,
    LayerCurvature,
    LineLosses,
    PlaneLosses,
    ProductCost,
    ProfileLosses,
    Rescaling,
)
from sharpness.render.summary import is_pair, regimes_table, sharpness_table
from sharpness.shape import barrier, basin, roughness

Rows = list[tuple[str, ...]]


def analysis_rows(numbers: Mapping[str, Any]) -> Rows:
    """What ``analyse_checkpoints`` found for one checkpoint."""
    rows: Rows = []
    for name, value in numbers.items():
        if isinstance(value, float):
            rows.append((name, f"{value:.2%}" if name.endswith("accuracy") else f"{value:.5g}"))
        elif value is None:
            rows.append((name, "n/a"))
        elif isinstance(value, (int, str)):
            rows.append((name, f"{value:,}" if isinstance(value, int) else value))
    triples = zip(numbers["eigenvalues"], numbers["residuals"], numbers["converged"], strict=True)
    for number, (value, residual, converged) in enumerate(triples, 1):
        note = "" if converged else " (not converged)"
        note += " (the audit found more than Lanczos expected)" if number in numbers["doubted"] else ""
        rows.append((f"λ{number}", f"{value:.5g} ± {residual:.1g}{note}"))
    for policy, slope in numbers["gradient norm"].items():
        rows.append(("‖g‖" if policy == "none" else f"‖g‖, batch norm: {policy}", f"{slope:.3g}"))
    return rows


SHARPNESS_HEAD = ("ε-sharpness (%)", "L-BFGS-B", "sign ascent", "first order", "spread", "steps")


def sharpness_rows(numbers: Mapping[str, Any]) -> Rows:
    """Every ε-sharpness of one checkpoint; spread and steps are those of L-BFGS-B over its starts."""
    names = ("sharpness", "stronger", "first order", "spread")
    return [
        (case, *(f"{s[name]:.3g}" for name in names), ", ".join(str(count) for count in s["iterations"]))
        for case, s in numbers["epsilon-sharpness"].items()
    ]


LAYERS_HEAD = ("layer", "parameters", "λmax", "trace", "‖θ‖", "‖g‖")


def layer_rows(record: LayerCurvature) -> Rows:
    """Every layer and, last, all of them: their traces add up to that of H, and λmax of H is at least the largest.

    λmax stands with its residual, a trace with its standard error unless it is exact.
    """
    rows: Rows = []
    for row, (name, size) in enumerate(zip(record.titles, record.parameters, strict=True)):
        if record.status[row] != DONE:
            state = "pending" if record.status[row] == PENDING else "not finite"
            rows.append((name, f"{size:,}", state, state, *_norms(record, row)))
            continue
        value = f"{record.eigenvalue[row]:.5g} ± {record.residual[row]:.1g}"
        note = "" if record.converged[row] else " (not converged)"
        total = _with_error(record.trace[row], record.standard_error[row])
        rows.append((name, f"{size:,}", value + note, total, *_norms(record, row)))
    if (record.status == DONE).all():
        trace = _with_error(record.trace.sum(), float(np.linalg.norm(record.standard_error)))
        largest = f"≥ {record.eigenvalue.max():.5g}"
        rows.append(("all layers", f"{record.parameters.sum():,}", largest, trace, *_norms(record, slice(None))))
    return rows


def _with_error(value: float, error: float) -> str:
    return f"{value:.4g}" + (f" ± {error:.1g}" if error else "")


def _norms(record: LayerCurvature, rows: int | slice) -> tuple[str, ...]:
    """‖θ‖ and ‖g‖ over one layer or several."""
    norms = (np.linalg.norm(np.atleast_1d(values[rows])) for values in (record.weight_norm, record.gradient_norm))
    return tuple(f"{norm:.3g}" if np.isfinite(norm) else "n/a" for norm in norms)


def grouped(rows: Sequence[tuple[str, ...]]) -> Rows:
    """The rows of ``sharpness_table`` with each ε-sharpness under a heading of what it shares with its neighbours."""
    shown: Rows = []
    heading = ""
    for quantity, *values in rows:
        if quantity == "λmax" and any(" (residual " in value for value in values):
            split = [value.partition(" (residual ") for value in values]
            shown += [(quantity, *(s[0] for s in split)), ("  residual", *(s[2].rstrip(")") for s in split))]
            continue
        *shared, epsilon, maximiser = (
            quantity.rsplit(", ", 2) if quantity.startswith("ε-sharpness") else ("", "", quantity)
        )
        if shared[0] not in ("", heading):
            heading = shared[0]
            shown.append((f"[bold]{heading}[/]", *("" for _ in values)))
        shown.append((f"  {epsilon}, {maximiser}" if shared[0] else quantity.removeprefix("gradient norm "), *values))
    return shown


def result_table(record: Any) -> tuple[str, tuple[str, ...], Rows]:
    """What a recipe found: title, head and rows."""
    if isinstance(record, Comparison):
        seeds, measured = len(record.seed), record.conditions["measured_on"]
        over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
        title = f"{over}; curvature and sharpness on {measured}"
        if is_pair(record):
            return title, ("", "SB", "LB", "LB/SB"), [*sharpness_table(record)]
        table = regimes_table(record)
        whole = [tuple(table.head), *(tuple(row) for row in table.texts)]
        if len(whole) < len(whole[0]):  # the fewer columns, the more of them fit a terminal
            whole = list(zip(*whole, strict=True))
        return title, whole[0], whole[1:]
    if isinstance(record, Rescaling):
        head = ("α", "λmax", "predicted", "ε-sharpness (%)", "filter-normalised curvature", "change of outputs")
        columns = (record.sharpness, record.filter_curvature, record.output_change)
        pairs = (record.eigenvalue, record.residual), (record.predicted_eigenvalue, record.predicted_residual)
        certified = [[f"{value:.5g} ± {r:.1g}" for value, r in zip(*pair, strict=True)] for pair in pairs]
        texts = [[f"{value:.4g}" for value in column] for column in (record.factor, *columns)]
        return f"layers {record.layers}", head, list(zip(texts[0], *certified, *texts[1:], strict=True))
    return record.kind, ("data set", "least loss", "largest loss"), loss_rows(record)


Losses = LineLosses | ProfileLosses | PlaneLosses
ABOVE = 0.1  # nats above the loss in the middle of a plane, to which its basin is measured


def loss_rows(record: Losses) -> Rows:
    """The range of the loss on each data set, with the number of points that are not finite."""
    rows: Rows = []
    for name, loss in zip(record.split, record.loss, strict=True):
        evaluated = loss[(record.status == DONE) | (record.status == NOT_FINITE)]
        finite = evaluated[np.isfinite(evaluated)]
        lost = evaluated.size - finite.size
        low, high = (f"{finite.min():.4g}", f"{finite.max():.4g}") if finite.size else ("n/a", "n/a")
        rows.append((str(name), low, high + (f" ({lost} points not finite)" if lost else "")))
    return rows


def shape_numbers(record: Losses, curvature: AxisCurvature | None) -> dict[str, float | str]:
    """What a landscape says in numbers: barrier of a line, roughness, basin of a plane, curvature at its middle."""
    found: dict[str, float | str] = {}
    for split in map(str, record.split):
        with suppress(SharpnessError):  # not both ends on the line, or not finite there
            if isinstance(record, LineLosses):
                height, alpha = barrier(record, split)
                found[f"barrier, {split} (nat)"] = f"{height:.4g} at α = {alpha:.3g}"
        if not (record.status == LEFT_OUT).any():
            found[f"roughness, {split}"] = roughness(record, split)
    if isinstance(record, PlaneLosses):
        with suppress(SharpnessError):  # the middle is not on the plane, or no number
            row, column = (int(np.abs(axis).argmin()) for axis in (record.alpha, record.beta))
            level = float(record.loss[0, row, column]) + ABOVE
            area = basin(record, level, str(record.split[0]))
            found[f"basin to {level:.3g} nat: area in weights"] = (">= " * area.open) + f"{area.area_in_weights:.4g}"
    if curvature is not None:
        policy = "" if curvature.batchnorm == record.batchnorm else f" (batch norm: {curvature.batchnorm})"
        step = int(np.argmin(curvature.step))
        for name, differences, product in zip("αβ", curvature.second_difference, curvature.product, strict=True):
            along, h = f"curvature along {name}{policy}", f"{curvature.step[step]:.2g}"
            found[f"{along}: vᵀHv"] = float(product)
            found[f"{along}: second difference, h = {h}"] = float(differences[step])
    return found


def shape_rows(numbers: Mapping[str, float | str]) -> Rows:
    """``shape_numbers`` for people."""
    return [(name, value if isinstance(value, str) else f"{value:.4g}") for name, value in numbers.items()]


def cost_numbers(record: ProductCost) -> dict[str, Any]:
    """Medians and spread of a benchmark, for people and for JSON."""
    ratio = record.product_seconds / record.gradient_seconds
    return {
        "parameters": record.parameters,
        "examples": record.examples,
        "gradient_seconds": float(np.median(record.gradient_seconds)),
        "product_seconds": float(np.median(record.product_seconds)),
        "product_in_gradients": float(np.median(ratio)),
        "product_in_gradients_least": float(ratio.min()),
        "product_in_gradients_most": float(ratio.max()),
        "setup_in_gradients": float(record.setup_seconds / np.median(record.gradient_seconds)),
        "retained_bytes": record.retained_bytes,
        "relative_error": record.relative_error,
        "execution": dict(record.conditions.get("execution", {})),
    }


def cost_rows(record: ProductCost) -> Rows:
    """A benchmark in words."""
    c = cost_numbers(record)
    spread = f"{c['product_in_gradients_least']:.2f} – {c['product_in_gradients_most']:.2f}"
    return [
        ("parameters n", f"{record.parameters:,}"),
        ("examples N", f"{record.examples:,}"),
        ("gradient (G)", f"{c['gradient_seconds'] * 1e3:.4g} ms"),
        ("product", f"{c['product_seconds'] * 1e3:.4g} ms"),
        ("product / gradient", f"{c['product_in_gradients']:.2f} G ({spread} over {len(record.repeat)} repeats)"),
        ("set-up / gradient", f"{c['setup_in_gradients']:.2f} G"),
        ("computed by", _execution(record.conditions.get("execution", {}))),
        ("memory retained", f"{c['retained_bytes'] / 1e6:.4g} MB"),
        ("error against float64", f"{c['relative_error']:.2g}"),
    ]


def _execution(execution: Mapping[str, Any]) -> str:
    """The plan by which products were computed, and its reason."""
    return "{kernels} kernels, {replay} replay ({why})".format_map(
        {"kernels": "?", "replay": "?", "why": "?"} | dict(execution)
    )


def flat_rows(values: Mapping[str, Any], prefix: str = "") -> Rows:
    """A nested mapping, one row per leaf."""
    return list(_leaves(values, prefix))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
