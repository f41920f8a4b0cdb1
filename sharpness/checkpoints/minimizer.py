"""Minimizers: what training leaves and analysis takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from sharpness.checkpoints.fitting import load_state
from sharpness.checkpoints.tensors import own_header, read_safetensors
from sharpness.errors import CheckpointError
from sharpness.files import write_atomically
from sharpness.objective.copies import unwrap
from sharpness.params import ParamSpace, Point

FORMAT = "sharpness-minimizer-1"


@dataclass(frozen=True, eq=False)
class Minimizer:
    """Where a training run ended: its parameters and buffers by name, and what is known about them.

    ``metadata`` is JSON: recipe and its parameters, regime, seed, epochs, … On disk it is one safetensors file whose
    header carries the metadata.
    """

    parameters: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, metadata: Mapping[str, Any] | None = None) -> Minimizer:
        """A copy of a module's trainable parameters and, as buffers, of all else that its state dict holds."""
        module = unwrap(module)
        space = ParamSpace.of(module)
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        persistent = module.state_dict().keys()
        rest = [name for name in own if name not in space.names and name in persistent]
        trained, others = ({n: own[n].detach().cpu().clone() for n in names} for names in (space.names, rest))
        return cls(trained, others, metadata or {})

    @property
    def point(self) -> Point:
        """θ of shape (n,), in the order of the module's parameters, with its buffers."""
        theta = torch.cat([parameter.reshape(-1) for parameter in self.parameters.values()])
        return Point(theta, dict(self.buffers))

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, complete or not at all."""
        header = {"format": FORMAT, "parameters": list(self.parameters), "metadata": dict(self.metadata)}
        tensors = {name: t.contiguous() for name, t in {**self.parameters, **self.buffers}.items()}
        return write_atomically(path, save(tensors, {"sharpness": json.dumps(header, sort_keys=True)}))

    def load_into(self, module: nn.Module) -> None:
        """Copy the values into ``module``, whose names and shapes must be these, as ``load_state`` fits them."""
        load_state(module, {**self.parameters, **self.buffers}, "the minimizer")


def load_minimizer(path: str | Path) -> Minimizer:
    """The ``Minimizer`` in a file that training wrote.

    Raises:
        CheckpointError: the file is missing, damaged or something else.
    """
    tensors, header = read_safetensors(Path(path)), own_header(Path(path))
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"expected a minimizer written by this package in {path}; got a safetensors file without its header. "
            "For weights from elsewhere say which model they belong to: --problem FILE.py:NAME."
        )
    try:
        parameters = {name: tensors.pop(name) for name in header["parameters"]}
        return Minimizer(parameters, tensors, header["metadata"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"expected a complete minimizer in {path}; its header is damaged ({error})") from error


def is_minimizer(path: str | Path) -> bool:
    """Whether a file carries a minimizer's header."""
    return Path(path).suffix == ".safetensors" and own_header(Path(path)).get("format") == FORMAT
