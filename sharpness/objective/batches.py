"""Any form of data as a fixed list of batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sharpness.errors import DataError
from sharpness.objective.losses import length
from sharpness.random import preserved_random_state

COLLATE = 1024  # examples stacked at a time when a Dataset is read


def freeze(data: Any) -> list[Any]:
    """The batches of ``data``, read once and held: tensors stay one batch, a loader keeps its own batches.

    A loader that reshuffles is accepted, since the order of examples is no part of f; one that yields other examples
    the second time (random augmentation) is refused with ``DataError``.
    """
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, (tuple, list)) and data and all(isinstance(part, torch.Tensor) for part in data):
        return [_plain(tuple(data))]
    if isinstance(data, Dataset):
        data = DataLoader(data, batch_size=COLLATE)
    if isinstance(data, Iterator) or not isinstance(data, Iterable):
        raise DataError(
            "expected data that can be read more than once (tensors, Dataset, DataLoader, a list of batches); got "
            f"{type(data).__name__}. Pass list(data) where that is an iterator."
        )
    with _preserved_state(data):  # one for both readings: random augmentation must differ in the second
        batches = [_plain(batch) for batch in data]
        again = fingerprint(_plain(batch) for batch in data)
    if not batches:
        raise DataError("expected at least one batch of data; got none")
    if again != fingerprint(batches):
        raise DataError(
            "expected the same examples each time the data are read; got others the second time. Turn off random "
            "augmentation (and drop_last together with shuffle) in the loader given to the analysis."
        )
    return batches


def chunked(batches: list[Any], size: int) -> list[Any]:
    """The batches cut to at most ``size`` examples each, as views."""
    return [piece for batch in batches for piece in _cut(batch, size)]


def joined(batches: list[Any]) -> Any:
    """Batches of plain tensors as one batch; None where their shapes do not allow it."""
    if not all(isinstance(batch, tuple) and all(isinstance(t, torch.Tensor) for t in batch) for batch in batches):
        return None
    try:
        return tuple(torch.cat(column) for column in zip(*batches, strict=True))
    except (RuntimeError, ValueError):
        return None


def chosen(batches: list[Any], examples: torch.Tensor) -> Any:
    """The examples of these numbers as one batch, in the order of the batches that they come from."""
    parts, begin = [], 0
    for batch in batches:
        own = examples[(examples >= begin) & (examples < begin + length(batch))] - begin
        parts += [tree_map(partial(rows_of, index=own), batch)] if len(own) else []
        begin += length(batch)
    whole = parts[0] if len(parts) == 1 else joined(parts) if parts else None
    if whole is None or length(whole) != len(examples):
        raise DataError(
            f"expected numbers below {begin} of examples that can be stacked; got {len(examples)}, from "
            f"{len(parts)} batches. Where batches differ in shape or are dictionaries, give all examples as one."
        )
    return whole


def selected(batches: Sequence[Any], examples: torch.Tensor) -> list[Any]:
    """The examples of batches at which a mask over all of them is true, as one batch where they can be joined."""
    masks = examples.split([length(batch) for batch in batches])
    kept = [tree_map(partial(rows_of, index=mask), b) for b, mask in zip(batches, masks, strict=True) if mask.any()]
    whole = joined(kept)
    return kept if whole is None else [whole]


def rows_of(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows by number or by mask, wherever that lies."""
    return tensor[index.to(tensor.device)]


def fingerprint(batches: Iterable[Any]) -> int:
    """A number that depends on which examples the batches hold but not on their order."""
    return sum(map(_fingerprint, batches))


def tree_map(function: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    """``function`` applied to every tensor of a batch."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: tree_map(function, value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(tree_map(function, part) for part in batch)
    return batch


def _cut(batch: Any, size: int) -> Iterator[Any]:
    count = length(batch)
    for start in range(0, count, size):
        yield tree_map(lambda t, start=start: t[start : start + size], batch)  # type: ignore[misc]


@contextmanager
def _preserved_state(data: Iterable[Any]) -> Iterator[None]:
    """Restore the global generators and the loader's own on leaving, also after an error."""
    own = getattr(data, "generator", None)
    state = own.get_state() if isinstance(own, torch.Generator) else None
    try:
        with preserved_random_state():
            yield
    finally:
        if isinstance(own, torch.Generator) and state is not None:
            own.set_state(state)


def _plain(batch: Any) -> Any:
    """A batch of tuples, dictionaries and tensors only; mappings such as BatchEncoding become dictionaries."""
    if isinstance(batch, torch.Tensor) or (isinstance(batch, (tuple, list)) and len(batch) == 1):
        raise DataError("expected batches of (inputs, targets) or dictionaries; got a lone tensor without targets")
    plain = tree_map(lambda t: t, batch)
    tensors = list(_tensors(plain))
    if not tensors:
        raise DataError(f"expected batches of tensors; got {type(batch).__name__} without any")
    _check_lengths(tensors)
    return plain


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)


def _check_lengths(tensors: Iterable[torch.Tensor]) -> None:
    lengths = [len(t) if t.ndim else 0 for t in tensors]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise DataError(f"expected inputs and targets of one equal, positive length; got lengths {lengths}")


def _fingerprint(batch: Any) -> int:
    columns = [t.detach().cpu().contiguous() for t in _tensors(batch)]
    total = 0
    for row in range(length(batch)):
        code = 0
        for column in columns:
            code = zlib.crc32(column[row].reshape(-1).view(torch.uint8).numpy().tobytes(), code)
        total += code
    return total
