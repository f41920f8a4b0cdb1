"""What is asked of a loss at the model's own weights before anything is computed with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from sharpness.errors import NonDeterministicError, NonFiniteError, UnsupportedModelError
from sharpness.objective.batches import chunked, joined
from sharpness.objective.losses import MASKED, Term, length
from sharpness.random import random_state

ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}
SPLIT_EXAMPLES = 16  # how many are split at least; a batch of one cannot be
CHECKED_EXAMPLES = 256  # at most, of each batch that is split
SPLIT_BATCHES = 8  # how many batches that are, from all over the data


def verify(
    term: Callable[[Any], Term], batches: list[Any], chunks: Sequence[Any], *, dtype: torch.dtype, adds_up: bool
) -> bool:
    """One finite answer, twice the same, and the parts of a batch add up to it, where they are meant to.

    Returns:
        Whether random numbers were drawn from the global generators on the way, without a difference to the answer.
    """
    sample = chunked(batches, max(min(length(chunks[0]), CHECKED_EXAMPLES), SPLIT_EXAMPLES))[0]
    before = random_state()
    verify_answer(term, sample, dtype)
    draws = random_state() != before
    if not adds_up:
        return draws
    if length(sample) == 1:  # cannot be split, but a few of its kind can be joined
        sample = joined(batches[:SPLIT_EXAMPLES]) or sample
    step = math.ceil(len(chunks) / SPLIT_BATCHES)
    some = (chunked([chunk], CHECKED_EXAMPLES)[0] for chunk in chunks[step::step])
    verify_split(term, [sample, *some], dtype)
    return draws


def verify_counts(chunks: Sequence[Any]) -> None:
    """As many targets for each example in every chunk: a mean over a chunk cannot be weighed otherwise."""
    shares = [share for share in map(_targets_each, chunks) if share is not None]
    if shares and max(shares) - min(shares) > 1e-9 * max(shares):
        raise UnsupportedModelError(
            f"expected as many targets for each example in every batch; there are {min(shares):.6g} to "
            f"{max(shares):.6g}, and the loss gives a mean, which would count short or masked batches as much as "
            "others. Return per-example losses (reduction='none') or a pair (sum, weight), or pass weight=."
        )


def _targets_each(chunk: Any) -> float | None:
    """Targets that are not masked, for each example; None where there are none to count."""
    targets = chunk.get("labels") if isinstance(chunk, Mapping) else chunk[-1]
    if not isinstance(targets, torch.Tensor) or targets.ndim == 0:
        return None
    counted = targets.numel() if targets.is_floating_point() else int((targets != MASKED).sum())
    return counted / len(targets)


def verify_answer(term: Callable[[Any], Term], sample: Any, dtype: torch.dtype) -> None:
    """One finite answer, twice the same."""
    first, second = (float(term(sample).total) for _ in range(2))
    if not math.isfinite(first):
        raise NonFiniteError(
            f"expected a finite loss at the model's weights; the first {length(sample)} examples give {first}. "
            "Check the weights (did training diverge?), the scale of the inputs and, where targets are masked, "
            "that the loss is no mean over no target: return a pair (sum, weight)."
        )
    if abs(first - second) > ROUNDING[dtype] * abs(first):
        raise NonDeterministicError(
            f"expected one answer for the same weights and data; two evaluations gave {first:.9g} and "
            f"{second:.9g}. Dropout and batch norm are already off; turn off what else is random in the model."
        )


def verify_split(term: Callable[[Any], Term], batches: Iterable[Any], dtype: torch.dtype) -> None:
    """The parts of each batch add up to it."""
    for batch in batches:
        parts = chunked([batch], math.ceil(length(batch) / 3))
        together, shares = term(batch), [term(part) for part in parts]
        whole = float(together.total)
        again = math.fsum(float(share.total) for share in shares if float(share.weight))  # none where all is masked
        allowed = 10 * _rounding(together, dtype) * max(abs(whole), 1e-6 * length(batch))
        if not abs(whole - again) <= allowed:  # also for NaN
            raise UnsupportedModelError(
                f"expected a loss whose batches add up; a batch gives {whole:.9g}, its parts {again:.9g}. A scalar "
                "loss is taken as a mean over examples (ignore_index, class weights and reduction='sum' break that). "
                "Return per-example losses (reduction='none') or a pair (sum, weight), or pass weight=."
            )


def _rounding(term: Term, dtype: torch.dtype) -> float:
    """Of the caller's own loss and weight, which may have fewer digits than the model."""
    own = [part.dtype for part in (term.total, term.weight) if isinstance(part, torch.Tensor)]
    return max(ROUNDING[found] for found in (dtype, *own) if found in ROUNDING)
