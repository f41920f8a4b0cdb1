"""Weights into a model: what belongs where, what was allowed not to, and nothing changed where that fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sharpness.checkpoints.harmless import counters, left_over, missing, untied
from sharpness.checkpoints.mismatch import Mismatch, by_module, message
from sharpness.checkpoints.naming import assign
from sharpness.errors import CheckpointError
from sharpness.objective.copies import unwrap


@dataclass(frozen=True)
class Fitted:
    """How a file's weights came to fit a model; empty where every name, shape and dtype was the model's own.

    ``removed`` is the prefix that was taken off the file's names, ``added`` that which was put in front of them.
    ``missing`` and ``reshaped`` are the model's names that it keeps its own values for, ``unexpected`` the file's that
    have no place, all because the caller allowed them. ``dtype`` is the file's where the model has another.
    """

    removed: str = ""
    added: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    dtype: str = ""

    def __str__(self) -> str:
        """What is to be told, empty where nothing is.

        >>> print(Fitted(removed="model.", missing=("fc.weight", "fc.bias"), dtype="float16"))
        prefix 'model.' taken off; converted from float16; 2 kept as the model had them (fc: weight, bias)
        """
        kept = self.missing + self.reshaped
        clauses = {
            f"prefix {self.removed!r} taken off": self.removed,
            f"prefix {self.added!r} put in front": self.added,
            f"converted from {self.dtype}": self.dtype,
            f"{len(kept)} kept as the model had them ({'; '.join(by_module(kept))})": kept,
            f"{len(self.unexpected)} not used ({'; '.join(by_module(self.unexpected))})": self.unexpected,
        }
        return "; ".join(clause for clause, told in clauses.items() if told)


def load_state(
    module: nn.Module, state: Mapping[str, torch.Tensor], source: str | Path, *, allow: Sequence[str] = ()
) -> Fitted:
    """Copy a state dict into ``module``, whose names, shapes and kinds of numbers it must have.

    Names may differ by what wrappers add to them (``module.``, ``_orig_mod.``, … anywhere), by a prefix that all of the
    file's or all of the model's have, and by weight norm's old and new names; prefixes that serve equally well are
    refused. Floats of any precision are converted. Let pass is what provably does not matter: a tied weight under one
    of its names only, counters of batch norm, and constants that a model computes itself (``position_ids``, causal
    masks, rotary frequencies).

    >>> whole, part = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Linear(2, 3)
    >>> load_state(nn.Sequential(part), whole.state_dict(), "w.pth", allow="1.*").unexpected
    ('1.weight', '1.bias')
    >>> bool((part.weight == whole[0].weight).all())
    True

    Args:
        module: the model; after an error it is as it was.
        state: tensors by name.
        source: what messages call them, a file's path.
        allow: names, or patterns (``fc.*``), that may be missing, left over or of another shape. For the first and the
            last the model keeps its own values.

    Raises:
        CheckpointError: names, shapes or kinds do not fit; the message shows them by module.
    """
    module = unwrap(module)
    whole = module.state_dict(keep_vars=True)
    own = {name: tensor for name, tensor in whole.items() if isinstance(tensor, torch.Tensor)}
    _check_values(own, state, source)
    try:
        places, shift = assign(state, own, lambda given, name: _suits(state[given], own[name]))
    except CheckpointError as error:
        raise CheckpointError(f"expected {source} to fit the model; {error}") from None
    fitting = {name: given for name, given in places.items() if _suits(state[given], own[name])}
    counted = counters(module)
    places = {name: given for name, given in places.items() if name in fitting or name not in counted}
    found = Mismatch(
        missing=[*missing(module, own, places), *(name for name in whole if name not in own)],
        unexpected=left_over(module, state, places),
        reshaped={name: (own[name], state[given]) for name, given in places.items() if name not in fitting},
        untied=untied(own, {name: state[given] for name, given in fitting.items()}),
    )
    refused = found.without([allow] if isinstance(allow, str) else allow)
    if refused:
        raise CheckpointError(
            message(refused, source, module, fitting, len(fitting) + len(found.missing) + len(found.reshaped))
        )
    values = {name: state[given] for name, given in fitting.items()}
    _check_range(values, own, source)
    module.load_state_dict(values, strict=False)
    dtypes = {str(t.dtype).removeprefix("torch.") for name, t in values.items() if _converted(t, own[name])}
    kept = tuple(found.missing), tuple(found.unexpected), tuple(found.reshaped)
    return Fitted(shift.removed, shift.added, *kept, ", ".join(sorted(dtypes)))


def _suits(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether values can be copied: floats whatever their precision, integers and truth values exactly.

    A quantised weight's integers are no values of a float.
    """
    ways = [(t.shape, t.layout, t.is_quantized, t.is_complex()) for t in (given, own)]
    if ways[0] != ways[1]:
        return False
    if own.is_floating_point() or own.is_complex() or own.is_quantized:
        return given.is_floating_point() == own.is_floating_point()
    return torch.equal(given.to(own.dtype).to(given.dtype), given)


def _converted(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a float is copied into one of another precision."""
    return given.dtype != own.dtype and own.is_floating_point()


def _check_values(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Refuse a model and a file of shapes without values."""
    unmade = [name for name, tensor in own.items() if is_lazy(tensor) or tensor.is_meta]
    if unmade:
        raise CheckpointError(
            f"expected a model with values to load {source} into; {unmade[0]} has none yet. Run a lazy model once on a "
            "batch; move one from the meta device with module.to_empty(device='cpu')."
        )
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise CheckpointError(
            f"expected values in {source}; {empty[0]} has none, as it was saved from the meta device. Save the model's "
            "state dict after its weights are loaded."
        )


def _check_range(values: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Refuse numbers that are finite in the file and would not be in the model's own precision."""
    for name, given in values.items():
        dtype = own[name].dtype
        if _converted(given, own[name]) and not torch.equal(given.isfinite(), given.to(dtype).isfinite()):
            raise CheckpointError(
                f"expected {source} to fit the model; {name} has values beyond {dtype}, the model's precision. "
                "Make the model float32: module.float()."
            )
