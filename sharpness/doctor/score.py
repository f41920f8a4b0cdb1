"""Loss and accuracy, and whether guessing would do as well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from sharpness.doctor.check import Check
from sharpness.objective import Objective
from sharpness.objective.losses import logits_of
from sharpness.params import Point

NOISE = 3.0  # standard deviations of a share among so many examples
SAME = 1e-3  # relative difference up to which a loss is the cross-entropy

CURE = (
    "look at the preprocessing first (scale, --mean, --std, order of the channels, size, tokenizer), then at the order "
    "of the classes and at which weights were loaded"
)


class Score(NamedTuple):
    """Loss and accuracy of some examples and, of a classifier, its classes and how many labels are of each."""

    loss: float
    accuracy: float
    counts: torch.Tensor | None
    entropic: bool
    """Whether the loss is the cross-entropy in nats."""


def score(f: Objective, point: Point, pieces: Iterable[Any]) -> Score:
    """One forward pass over ``pieces``, which are chunks or parts of them."""
    total = weight = hits = 0.0
    counts: torch.Tensor | None = None
    entropic = False
    parameters = f.space.split(point.theta)
    with torch.no_grad():
        for piece in pieces:
            term = f.terms(piece, parameters, point.buffers)
            total, weight = total + float(term.total), weight + float(term.weight)
            found = classified(term.output, piece)
            if found is None:
                continue
            logits, labels = found
            if counts is None:
                counts = torch.zeros(logits.shape[1], dtype=torch.int64)
                entropic = bool(term.weight) and _is_entropy(logits, labels, float(term.total) / float(term.weight))
            counts += torch.bincount(labels[labels >= 0].flatten().cpu(), minlength=len(counts))[: len(counts)]
            shifted = isinstance(piece, Mapping) and labels.ndim > 1  # as language models do by themselves
            hits += math.nan if shifted else float((logits.argmax(1) == labels).sum())
    penalty = 0.5 * f.l2 * float(point.theta.double().square().sum())
    counted = 0 if counts is None else int(counts.sum())
    loss = total / weight + penalty if weight else math.nan
    return Score(loss, hits / counted if counted else math.nan, counts, entropic and not f.l2)


def check_score(name: str, found: Score) -> Check:
    """Whether the loss is finite, and both are better than guessing."""
    if found.counts is not None and not int(found.counts.sum()):
        return Check(name, "ok", "no targets: all are masked")
    seen = f"{found.loss:.6g} nat" + ("" if math.isnan(found.accuracy) else f", accuracy {found.accuracy:.4f}")
    if not math.isfinite(found.loss):
        return Check(name, "fails", seen, "weights or inputs that are not finite, or overflow", "look at the weights")
    if found.counts is None:
        return Check(name, "ok", f"{found.loss:.6g} nat; no classes that could be guessed")
    counted, classes = int(found.counts.sum()), len(found.counts)
    commonest = float(found.counts.max()) / counted
    if commonest == 1.0:
        return Check(name, "ok", f"{seen}; all targets are of class {int(found.counts.argmax())}")
    even, worst = 1.0 / classes, math.log(classes)
    guess = max(even, commonest)
    seen += f"; of {classes} classes the commonest makes up {commonest:.4f}"
    if found.accuracy < even - NOISE * _deviation(even, counted):
        return Check(name, "note", seen, "worse than guessing: the classes may be numbered otherwise", CURE)
    if found.accuracy <= guess + NOISE * _deviation(guess, counted):
        return Check(name, "note", seen, "no better than guessing: not trained, or not on inputs like these", CURE)
    if found.entropic and found.loss > worst:
        seen += f"; a guess among all costs ln {classes} = {worst:.4g} nat"
        return Check(name, "note", seen, "sure of answers that are wrong", CURE)
    return Check(name, "ok", seen)


def classified(output: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Logits with the classes in dimension 1, and the labels, negative where masked; None where there are none."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else batch[-1]
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or not labels.ndim:
        return None
    if not isinstance(getattr(output, "logits", output), torch.Tensor):
        return None
    logits = logits_of(output, labels)
    if logits.ndim < 2 or logits.shape[1] < 2 or logits.shape[:1] + logits.shape[2:] != labels.shape:
        return None
    return logits, labels


def _is_entropy(logits: torch.Tensor, labels: torch.Tensor, value: float) -> bool:
    """Whether the mean loss is that of these logits, or of each token's as a guess at the next."""
    pairs = [(logits, labels)] + ([(logits[:, :, :-1], labels[:, 1:])] if labels.ndim == 2 else [])
    for guesses, targets in pairs:
        masked = targets.masked_fill((targets < 0) | (targets >= logits.shape[1]), -100)
        if abs(float(F.cross_entropy(guesses, masked)) - value) <= SAME * abs(value):
            return True
    return False


def _deviation(share: float, count: int) -> float:
    """Of a share among so many."""
    return math.sqrt(share * (1 - share) / count)
