"""A model as a pure function: parameters and buffers in, output out, the caller's module untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from sharpness.errors import DataError, ShapeError, UnsupportedModelError

POLICIES = ("eval", "batch", "recompute")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside ``torch.compile`` and data-parallel wrappers; sharded models are refused."""
    while True:
        if "FullyShardedDataParallel" in type(module).__name__ or "FSDPModule" in {
            c.__name__ for c in type(module).__mro__
        }:
            raise UnsupportedModelError(
                "expected an unsharded model; got FSDP, which ignores parameters given to it. "
                "Gather the full state dict and load it into the plain module."
            )
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = cast("nn.Module", module._orig_mod)
        else:
            return module


class Snapshot:
    """A private copy of a model in eval mode, called with parameters and buffers as arguments."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.module = copy.deepcopy(unwrap(module)).to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.buffers = {name: b.detach() for name, b in self.module.named_buffers()}
        self.batchnorm_layers = {n: m for n, m in self.module.named_modules() if isinstance(m, _BatchNorm)}
        self._batch_module: nn.Module | None = None

    def parameters(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The model's own parameters of these names."""
        own = dict(self.module.named_parameters())
        return {name: own[name] for name in names}

    def bound(
        self, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor] | None
    ) -> Callable[..., Any]:
        """The model at these parameters, with buffers and frozen parameters from ``buffers`` (None: its own)."""
        return _bound(self.module, {**self.buffers, **(buffers or {}), **parameters})

    def bound_to_batch(
        self, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor] | None
    ) -> Callable[..., Any]:
        """The same, but every batch normalised by its own statistics, differentiably."""
        state = {**self.buffers, **(buffers or {})}
        state = {name: b for name, b in state.items() if not _is_statistic(name, self.batchnorm_layers)}
        return _bound(self._batch_statistics_module(), {**state, **parameters})

    def check_policy(self, policy: str) -> None:
        """Refuse an unknown policy, and running statistics that are not there."""
        if policy not in POLICIES:
            raise ShapeError(f"expected batchnorm to be one of {', '.join(POLICIES)}; got {policy!r}")
        missing = [name for name, layer in self.batchnorm_layers.items() if layer.running_mean is None]
        if missing and policy != "batch":
            raise UnsupportedModelError(
                f"expected running statistics in every batch-norm layer for batchnorm={policy!r}; {missing[0]!r} keeps "
                'none. Choose batchnorm="batch", which normalises each batch of a fixed partition by itself.'
            )

    def check_buffers(self, buffers: Mapping[str, torch.Tensor]) -> None:
        """Raise ``ShapeError`` when a point's buffers do not fit this model."""
        known = {**dict(self.module.named_parameters()), **self.buffers}
        for name, value in buffers.items():
            own = known.get(name)
            if own is None or own.shape != value.shape:
                raise ShapeError(
                    f"buffer {name!r} of the point has shape {tuple(value.shape)}; the model has "
                    f"{'no such buffer' if own is None else tuple(own.shape)}"
                )

    def statistics(
        self,
        parameters: Mapping[str, torch.Tensor],
        buffers: Mapping[str, torch.Tensor] | None,
        run: Callable[[Callable[..., Any]], None],
    ) -> dict[str, torch.Tensor]:
        """``buffers`` (None: its own) with batch-norm statistics re-estimated from the data that ``run(model)`` feeds.

        Every batch is normalised by its own statistics, as in training; means and variances of the batches are pooled
        exactly (law of total variance) and the variance is the unbiased one, as PyTorch's running variance is.
        """
        moments: dict[str, _Moments] = {name: _Moments() for name in self.batchnorm_layers}
        module = self._batch_statistics_module()
        layers = dict(module.named_modules())
        hooks = [layers[name].register_forward_pre_hook(moment.hook) for name, moment in moments.items()]
        try:
            with torch.no_grad():
                run(self.bound_to_batch(parameters, buffers))
        finally:
            for hook in hooks:
                hook.remove()
        fresh = {key: value for name, m in moments.items() for key, value in m.buffers(name)}
        return {**self.buffers, **(buffers or {}), **fresh}

    def _batch_statistics_module(self) -> nn.Module:
        if self._batch_module is None:
            self._batch_module = copy.deepcopy(self.module)
            for layer in self._batch_module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.track_running_stats = False
                    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        return self._batch_module


class _Moments:
    """Count, mean and sum of squared deviations per channel, pooled over batches in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: torch.Tensor | float = 0.0
        self.deviation: torch.Tensor | float = 0.0

    def hook(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:  # noqa: ARG002 - a hook's signature
        x = inputs[0].detach()
        variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        count = x.numel() // x.shape[1]
        self.dtype, total = x.dtype, self.count + count
        shift = mean.double() - self.mean
        self.deviation = self.deviation + variance.double() * count + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def buffers(self, layer: str) -> Iterator[tuple[str, torch.Tensor]]:
        if not self.count:  # a layer that the forward pass never reaches keeps what it has
            return
        prefix = f"{layer}." if layer else ""
        assert isinstance(self.mean, torch.Tensor)
        assert isinstance(self.deviation, torch.Tensor)
        yield prefix + "running_mean", self.mean.to(self.dtype)
        yield prefix + "running_var", (self.deviation / max(self.count - 1, 1)).to(self.dtype)


def _is_statistic(name: str, layers: Mapping[str, nn.Module]) -> bool:
    layer, _, own = name.rpartition(".")
    return layer in layers and own in STATISTICS


def _bound(module: nn.Module, state: dict[str, torch.Tensor]) -> Callable[..., Any]:
    def model(*args: Any, **kwargs: Any) -> Any:
        try:
            return functional_call(module, state, args, kwargs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                "expected batches that have statistics; one of a single example gives a batch-norm layer one value "
                "per channel. Choose a chunk_size and a batch size that leave no batch of one."
            ) from error

    return model
