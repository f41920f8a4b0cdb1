"""Directions that the code of Li et al. (2018) wrote, as directions in θ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sharpness.errors import ShapeError
from sharpness.foreign import read_directions
from sharpness.objective.copies import unwrap
from sharpness.params import ParamSpace


def load_directions(path: str | Path, module: nn.Module, space: ParamSpace | None = None) -> tuple[torch.Tensor, ...]:
    """The one or two directions of a loss-landscape file, each of shape (n,), for a ``Plane`` or ``origin + α·first``.

    Such files know no names: an array for each parameter (``dir_type`` weights) or for each entry of the state dict
    (states), in the order of ``module``, which must be the model they were made for. Of states, the entries of
    parameters are taken and those of running statistics, which a ``Plane`` does not move, are not: re-estimate the
    statistics (``batchnorm="recompute"``, the default of ``evaluate_plane``) where they matter.

    Args:
        path: the direction file.
        module: the model; it is only looked at.
        space: the parameters behind θ, as in ``objective.space``; default: all that are trainable.

    Raises:
        SchemaError: not a direction file.
        ShapeError: the arrays are not those of this model, or move a parameter that is not part of θ.

    Example:
        >>> plane = Plane(theta, *load_directions("resnet56_weights.h5", resnet56))  # doctest: +SKIP
    """
    model = unwrap(module)
    space = space or ParamSpace.of(model)
    return tuple(_flat(arrays, model, space, Path(path)) for arrays in read_directions(path))


def _flat(arrays: Sequence[np.ndarray], model: nn.Module, space: ParamSpace, path: Path) -> torch.Tensor:
    entries = next(_fitting(arrays, model), None)
    if entries is None:
        raise ShapeError(_difference(arrays, model, path))
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    constant = [name for name in entries if name in parameters and name not in space.names and entries[name].any()]
    if constant:
        raise ShapeError(
            f"expected directions in {path} along the {len(space.names)} parameters of θ; they move {constant[0]!r} "
            "too, which is frozen, tied to another or left out of θ here. Take it in, or use other directions."
        )
    return space.flatten({name: torch.from_numpy(entries[name]) for name in space.names})


def _fitting(arrays: Sequence[np.ndarray], model: nn.Module) -> Iterator[dict[str, np.ndarray]]:
    """The arrays by the names of parameters or of state-dict entries, in each way in which their shapes agree."""
    for layout in _layouts(model).values():
        if [array.shape for array in arrays] == list(layout.values()):
            yield dict(zip(layout, arrays, strict=True))


def _layouts(model: nn.Module) -> dict[str, dict[str, tuple[int, ...]]]:
    weights = {name: tuple(p.shape) for name, p in model.named_parameters()}
    states = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # PyTorch before 0.4.1 counted no batches
    uncounted = {name: shape for name, shape in states.items() if not name.endswith("num_batches_tracked")}
    return {"parameters": weights, "state-dict entries": states, "state-dict entries without counters": uncounted}


def _difference(arrays: Sequence[np.ndarray], model: nn.Module, path: Path) -> str:
    layouts = {what: list(layout.items()) for what, layout in _layouts(model).items()}
    counts = f"{len(layouts['parameters'])} parameters and {len(layouts['state-dict entries'])} state-dict entries"
    same = next((layout for layout in layouts.values() if len(layout) == len(arrays)), None)
    if same is None:
        found = f"there are {len(arrays)}"
    else:
        found = next(
            f"array {number} has shape {array.shape} and {name!r} {shape}"
            for number, (array, (name, shape)) in enumerate(zip(arrays, same, strict=True))
            if array.shape != shape
        )
    return (
        f"expected directions in {path} with an array for each of the model's {counts}; {found}. "
        "Give the model that they were made for."
    )
