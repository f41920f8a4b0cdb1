"""What the model is made of: parameters, precision, batch norm, dropout."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from sharpness.doctor.check import Check, listed
from sharpness.objective import Objective
from sharpness.params import Point

HALF = (torch.float16, torch.bfloat16)
MANY_ZEROS = 0.1  # of the weights; new biases and norms are fewer
POLICIES = {
    "eval": "by the running statistics of the point",
    "batch": "by the statistics of each chunk, differentiated through",
    "recompute": "by statistics re-estimated over the data at every point",
}


def check_model(f: Objective, point: Point) -> Iterator[Check]:
    """What can be seen without computing anything."""
    yield _parameters(f)
    yield _precision(f)
    yield _zeros(point)
    yield _batchnorm(f, point)
    yield _dropout(f)


def check_used(f: Objective, gradient: torch.Tensor, product: torch.Tensor, examples: int) -> Check:
    """Whether f depends on every parameter: its slope, or its row of H, is not all zero."""
    parts = zip(f.space.names, f.space.split(gradient), f.space.split(product), strict=True)
    idle = [name for name, slope, row in parts if not bool(slope.any()) and not bool(row.any())]
    if not idle:
        return Check("unused parameters", "ok", "none")
    return Check(
        "unused parameters",
        "note",
        f"{len(idle)} of {len(f.space.names)} have no slope and no curvature on {examples:,} examples: {listed(idle)}",
        "the forward pass does not use them, uses them detached, or behind units that are off for all these examples",
        "nothing, if that is meant: their eigenvalues are 0. Otherwise freeze them, or name the others in parameters=",
    )


def _parameters(f: Objective) -> Check:
    constant = {name: p for name, p in f.module.named_parameters() if name not in f.space.names}
    seen = f"{f.size:,} in {len(f.space.names)} tensors"
    if constant:
        seen += f"; constants: {sum(p.numel() for p in constant.values()):,} in {len(constant)}, {listed(constant)}"
    return Check("parameters", "ok", seen)


def _precision(f: Objective) -> Check:
    given = {t.dtype for t in (*f.module.parameters(), *f.module.buffers()) if t.is_floating_point()}
    names, own = ", ".join(sorted(map(_short, given))), _short(f.dtype)
    if given.isdisjoint(HALF):
        return Check("precision", "ok", own if given == {f.dtype} else f"{names} weights, analysed in {own}")
    return Check(
        "precision",
        "note",
        f"{names} weights, analysed in {own}",
        "products need more digits than half precision has; the weights are taken exactly as they are",
        "nothing; loss and accuracy may differ in the third digit from those of the model in its own precision",
    )


def _zeros(point: Point) -> Check:
    share = float((point.theta == 0).double().mean())
    seen = f"{share:.1%} of the parameters"
    if share < MANY_ZEROS:
        return Check("exact zeros", "ok", seen)
    return Check(
        "exact zeros",
        "note",
        seen,
        "pruned weights, or adapters and layers that begin at zero and were not trained",
        "nothing, if they are free to move; pruned weights are not: multiply them by a mask in the model",
    )


def _batchnorm(f: Objective, point: Point) -> Check:
    layers = {name: part for name, part in f.module.named_modules() if isinstance(part, _NormBase) and _counts(part)}
    if not layers:
        return Check("batch norm", "ok", "none")
    came = "; the model came in train mode" if f.module.training else ""
    seen = f"layers: {len(layers)}, {POLICIES[f.batchnorm]}{came}"
    cumulative = [name for name, layer in layers.items() if layer.momentum is None]
    if cumulative:
        seen += f"; averaging over all of training (momentum None): {len(cumulative)}"
    new = [name for name in layers if _is_new(name, f, point)]
    if not new or f.batchnorm != "eval":
        return Check("batch norm", "ok", seen)
    return Check(
        "batch norm",
        "note",
        f"{seen}; as new, with running mean 0 and variance 1: {len(new)}, {listed(new)}",
        "they were never run in train mode, or the checkpoint came without their statistics",
        'load the buffers too, take objective.with_statistics(place), or choose batchnorm="batch"',
    )


def _counts(layer: _NormBase) -> bool:
    """Whether a policy applies to it, or it has statistics."""
    return isinstance(layer, _BatchNorm) or layer.running_mean is not None


def _is_new(name: str, f: Objective, point: Point) -> bool:
    own = dict(f.module.named_buffers()) | dict(point.buffers or {})
    mean, variance = (own.get(f"{name}.{which}" if name else which) for which in ("running_mean", "running_var"))
    return mean is not None and variance is not None and not bool(mean.any()) and bool((variance == 1).all())


def _dropout(f: Objective) -> Check:
    found = [(name, part) for name, part in f.module.named_modules() if _drops(part)]
    if not found:
        return Check("dropout", "ok", "none")
    kinds = ", ".join(sorted({type(part).__name__ for _, part in found}))
    return Check("dropout", "ok", f"switched off: {len(found)} ({kinds}), {listed(name for name, _ in found)}")


def _drops(part: nn.Module) -> bool:
    """Whether it leaves something out at random while it is trained."""
    if isinstance(part, (nn.MultiheadAttention, nn.RNNBase)):
        return part.dropout > 0
    kind = type(part).__name__
    chance = getattr(part, "p", getattr(part, "drop_prob", 1.0))
    return ("Drop" in kind or kind == "StochasticDepth") and bool(chance)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
