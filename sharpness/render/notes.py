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


def model_text(conditions: Mapping[str, Any]) -> str:
    """The model, with what it was built with where that is not its default.

    >>> model_text({"model": "keskar-c2", "model_options": {"width": 0.25}})
    'model keskar-c2 (width 0.25)'
    """
    options = (f"{name} {value}" for name, value in (conditions.get("model_options") or {}).items())
    return f"model {conditions['model']} ({', '.join(options)})".removesuffix(" ()")


def training_facts(conditions: Mapping[str, Any]) -> list[str]:
    """What was trained on what, as far as the file holds it."""
    facts = [f"data {conditions['data']}"] if "data" in conditions else []
    facts += [model_text(conditions)] if "model" in conditions else []
    facts += [f"{conditions['train_examples']:,} training examples"] if "train_examples" in conditions else []
    recomputed = conditions.get("statistics") == "recomputed"
    return facts + ["recomputed batch-norm statistics"] * recomputed


def effort_text(plan: Mapping[str, Any]) -> str:
    """What the maximisers were allowed; nothing where the file does not hold it.

    >>> effort_text({"iterations": 10, "restarts": 2})
    'by at most 10 iterations from 2 starts'
    """
    if not {"iterations", "restarts"} <= set(plan):
        return ""
    return f"by at most {plan['iterations']} iterations from {counted(plan['restarts'], 'start')}"


def condition_notes(record: Comparison) -> list[str]:
    """What was run and measured, and what did not come out as it should."""
    known = record.conditions
    return [
        sentence
        for sentence in (
            "; ".join([_what_ran(record), *training_facts(known)]) + ".",
            _measured(record),
            *failures(record),
            f"{record.recipe}: {SMOKE}." if known.get("scale") == "smoke" else "",
        )
        if sentence
    ]


def _what_ran(record: Comparison) -> str:
    if record.over == "seeds":
        return f"{record.recipe}: {scale_text(record.conditions)}, {counted(record.seed.size, 'trial')}"
    sets = record.conditions.get("checkpoints", {})
    sizes = " and ".join(f"{len(names)} of {name}" for name, names in sets.items())
    return f"{record.recipe}: saved checkpoints, {sizes}, " + ("in pairs" if record.over == "pairs" else "not paired")


def failures(record: Comparison) -> Iterator[str]:
    """What did not converge, by regime, what diverged, and whether a probe found a missed eigenpair."""
    converged = np.asarray(record.converged, dtype=bool) | np.isnan(record.eigenvalues)
    for regime, flags, values in zip(record.regime, converged, record.eigenvalues, strict=True):
        failed = int((~flags).any(axis=1).sum())
        if failed:
            several = (record.seed.size, "trial")
            if record.over != "seeds":  # sets may be of different sizes
                several = (int((~np.isnan(values)).any(axis=1).sum()), "checkpoint")
            number = f"{failed} of {counted(*several)}"
            yield f"{record.recipe}, {regime}: eigenvalues that did not converge in {number}."
    if diverged := record.conditions.get("diverged"):
        yield f"{record.recipe}: training diverged, and nothing was measured, in {'; '.join(diverged)}."
    if record.conditions.get("probe_passed") is False:
        yield f"{record.recipe}: the probe for missed eigenpairs found one; λmax may be larger."


def _measured(record: Comparison) -> str:
    """On what, and with which effort, curvature and ε-sharpness were measured."""
    plan, parts = record.conditions.get("analysis") or {}, []
    if "measured_on" in record.conditions:
        parts.append(f"on {record.conditions['measured_on']}")
    if effort := effort_text(plan):
        parts.append(f"ε-sharpness {effort}, each a lower bound")
    if plan.get("subspace"):
        parts.append(f"random subspaces of {plan['subspace']} dimensions")
    return f"{record.recipe}: curvature and ε-sharpness {'; '.join(parts)}." if parts else ""
