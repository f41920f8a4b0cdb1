"""Under which conditions the numbers of a record hold, in sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sharpness.records import Comparison

SMOKE = "smoke scale: a test of the program, not a result"


def counted(number: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "trial"), counted(3, "trial")
    ('1 trial', '3 trials')
    """
    return f"{number} {what}" + ("" if number == 1 else "s")


def scale_text(conditions: Mapping[str, Any]) -> str:
    """The scale of a run; files of earlier releases do not hold it."""
    scale = conditions.get("scale")
    return f"{scale} scale" if scale else "scale not recorded"


def smoke_text(conditions: Mapping[str, Any]) -> str:
    """The warning that belongs to a run at smoke scale; nothing for others."""
    return SMOKE if conditions.get("scale") == "smoke" else ""


def condition_notes(record: Comparison) -> list[str]:
    """What was run and measured, and what did not come out as it should."""
    known = record.conditions
    trained = [f"{name} {known[name]}" for name in ("data", "model") if name in known]
    if "train_examples" in known:
        trained.append(f"{known['train_examples']} training examples")
    notes = [f"{record.recipe}: {scale_text(known)}, {counted(record.seed.size, 'trial')}", *trained]
    return [
        sentence
        for sentence in (
            "; ".join(notes) + ".",
            _measured(record),
            *failures(record),
            f"{record.recipe}: {SMOKE}." if known.get("scale") == "smoke" else "",
        )
        if sentence
    ]


def failures(record: Comparison) -> Iterator[str]:
    """What did not converge, by regime, and whether a probe found a missed eigenpair."""
    converged = np.asarray(record.converged, dtype=bool) | np.isnan(record.eigenvalues)
    for regime, flags in zip(record.regime, converged, strict=True):
        failed = int((~flags).any(axis=1).sum())
        if failed:
            number = f"{failed} of {counted(record.seed.size, 'trial')}"
            yield f"{record.recipe}, {regime}: eigenvalues that did not converge in {number}."
    if record.conditions.get("probe_passed") is False:
        yield f"{record.recipe}: the probe for missed eigenpairs found one; λmax may be larger."


def _measured(record: Comparison) -> str:
    """On what, and with which effort, curvature and ε-sharpness were measured."""
    plan, parts = record.conditions.get("analysis") or {}, []
    if "measured_on" in record.conditions:
        parts.append(f"on {record.conditions['measured_on']}")
    if {"iterations", "restarts"} <= set(plan):
        starts = counted(plan["restarts"], "start")
        parts.append(f"ε-sharpness by at most {plan['iterations']} iterations from {starts}, each a lower bound")
    return f"{record.recipe}: curvature and ε-sharpness {'; '.join(parts)}." if parts else ""
