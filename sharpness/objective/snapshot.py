"""A model as a pure function: parameters and buffers in, output out, the caller's module untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sharpness.errors import DataError, ShapeError, UnsupportedModelError
from sharpness.objective.copies import copied, placed, plainly
from sharpness.random import preserved_random_state

POLICIES = ("eval", "batch", "recompute")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Snapshot:
    """A private copy of a model in eval mode, called with parameters and buffers as arguments."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.module = placed(copied(module), device, dtype).eval().requires_grad_(False)
        self._device = device
        self.draws = False  # from the global generators, without a difference to the output
        self.buffers = {name: b.detach() for name, b in self.module.named_buffers()}
        self.batchnorm_layers = {n: m for n, m in self.module.named_modules() if isinstance(m, _BatchNorm)}
        self._slots = _Slots(self.module)
        self._batch: tuple[nn.Module, _Slots] | None = None

    def parameters(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The model's own parameters of these names."""
        own = dict(self.module.named_parameters())
        return {name: own[name] for name in names}

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """All of the model's own parameters and buffers."""
        return {**dict(self.module.named_parameters()), **self.buffers}

    def bound(
        self, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor] | None
    ) -> Callable[..., Any]:
        """The model at these parameters, with buffers and frozen parameters from ``buffers`` (None: its own)."""
        return self._bound(self.module, self._slots, {**self.buffers, **(buffers or {}), **parameters})

    def bound_to_batch(
        self, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor] | None
    ) -> Callable[..., Any]:
        """The same, but every batch normalised by its own statistics, differentiably."""
        state = {**self.buffers, **(buffers or {})}
        state = {name: b for name, b in state.items() if not _is_statistic(name, self.batchnorm_layers)}
        return self._bound(*self._with_batch_statistics(), {**state, **parameters})

    def watched(self) -> Callable[..., Any]:
        """``bound`` to its own state, refusing a model whose forward pass changes its weights."""
        model, own = self.bound({}, None), dict(self.module.named_parameters())

        def run(*args: Any, **kwargs: Any) -> Any:
            before = {name: parameter._version for name, parameter in own.items()}
            output = model(*args, **kwargs)
            changed = [name for name, parameter in own.items() if parameter._version != before[name]]
            if changed:
                raise UnsupportedModelError(
                    f"expected a forward pass that leaves the weights as they are; it writes into {changed[0]!r}, of "
                    "which gradients know nothing. Take that out for the analysis: an embedding's max_norm=None, no "
                    "clamp_ in forward()."
                )
            return output

        return run

    def called(self, *, by_batch: bool) -> nn.Module:
        """The module that ``bound`` or, by batch, ``bound_to_batch`` calls."""
        return self._with_batch_statistics()[0] if by_batch else self.module

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
        state = self.state
        for name, value in buffers.items():
            own = state.get(name)
            if own is None or own.shape != value.shape:
                raise ShapeError(
                    f"buffer {name!r} of the point has shape {tuple(value.shape)}; the model has "
                    f"{'no such buffer' if own is None else tuple(own.shape)}"
                )

    def moments(
        self,
        parameters: Mapping[str, torch.Tensor],
        buffers: Mapping[str, torch.Tensor] | None,
        run: Callable[[Callable[..., Any]], object],
    ) -> tuple[list[tuple[str, int]], list[torch.Tensor], list[torch.Tensor]]:
        """What the batch-norm layers see of one batch that ``run(model)`` feeds, normalised by its own statistics.

        Returns:
            For every call of a layer its name and the number of values per channel; their means; their variances.
        """
        calls: list[tuple[str, int]] = []
        means: list[torch.Tensor] = []
        variances: list[torch.Tensor] = []

        def hook(name: str) -> Callable[..., None]:
            def see(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:  # noqa: ARG001 - a hook's signature
                x = inputs[0].detach()
                over = [d for d in range(x.ndim) if d != 1]
                mean = x.mean(over, keepdim=True)
                calls.append((name, x.numel() // x.shape[1]))
                means.append(mean.flatten())
                variances.append((x - mean).square().mean(over))  # torch.var_mean takes 6 to 20 times as long on a CPU

            return see

        layers = dict(self._with_batch_statistics()[0].named_modules())
        hooks = [layers[name].register_forward_pre_hook(hook(name)) for name in self.batchnorm_layers]
        try:
            with torch.no_grad():
                run(self.bound_to_batch(parameters, buffers))
        finally:
            for handle in hooks:
                handle.remove()
        return calls, means, variances

    def statistics(
        self,
        batches: Iterable[tuple[list[tuple[str, int]], list[torch.Tensor], list[torch.Tensor]]],
        buffers: Mapping[str, torch.Tensor] | None,
    ) -> dict[str, torch.Tensor]:
        """``buffers`` (None: its own) with batch-norm statistics from the ``moments`` of every batch.

        They are pooled exactly (law of total variance), and the variance is the unbiased one, as PyTorch's running
        variance is. Moments of several points, stacked in front, give statistics of each.
        """
        pools = {name: _Pool() for name in self.batchnorm_layers}
        for calls, means, variances in batches:
            for (name, count), mean, variance in zip(calls, means, variances, strict=True):
                pools[name].add(count, mean, variance)
        fresh = {key: value for name, pool in pools.items() for key, value in pool.buffers(name)}
        return {**self.buffers, **(buffers or {}), **fresh}

    def _bound(self, module: nn.Module, slots: _Slots, state: dict[str, torch.Tensor]) -> Callable[..., Any]:
        def model(*args: Any, **kwargs: Any) -> Any:
            try:
                with slots.filled(state), plainly(module, self._device), self._undisturbed():
                    return module(*args, **kwargs)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise DataError(
                    "expected batches that have statistics; one of a single example gives a batch-norm layer one value "
                    "per channel. Choose a chunk_size and a batch size that leave no batch of one."
                ) from error

        return model

    def _undisturbed(self) -> AbstractContextManager[None]:
        """Restores the global generators, where the model draws from them; to do it always would cost small ones."""
        return preserved_random_state() if self.draws else nullcontext()

    def _with_batch_statistics(self) -> tuple[nn.Module, _Slots]:
        if self._batch is None:
            module = copied(self.module)
            for layer in module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.track_running_stats = False
                    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            self._batch = module, _Slots(module)
        return self._batch


class _Slots:
    """Where a module keeps its parameters and buffers, each under every name it has.

    What ``torch.func.functional_call`` looks up at every call, looked up once: for small networks that is most of it.
    """

    def __init__(self, module: nn.Module) -> None:
        tied: dict[int, list[tuple[dict[str, Any], str]]] = {}
        self._slots: dict[str, list[tuple[dict[str, Any], str]]] = {}
        for prefix, part in module.named_modules(remove_duplicate=False):
            for kept in (part._parameters, part._buffers):
                for key, tensor in kept.items():
                    if tensor is not None:
                        places = tied.setdefault(id(tensor), [])
                        places.append((kept, key))
                        self._slots[f"{prefix}.{key}" if prefix else key] = places

    @contextmanager
    def filled(self, state: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """The module with these tensors in place of its own."""
        places = [(place, tensor) for name, tensor in state.items() for place in self._slots[name]]
        own = [kept[key] for (kept, key), _ in places]
        try:
            for (kept, key), tensor in places:
                kept[key] = tensor
            yield
        finally:
            for ((kept, key), _), tensor in zip(places, own, strict=True):
                kept[key] = tensor


class _Pool:
    """Count, mean and sum of squared deviations per channel, pooled over batches in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: torch.Tensor | float = 0.0
        self.deviation: torch.Tensor | float = 0.0

    def add(self, count: int, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.dtype, total = mean.dtype, self.count + count
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
