"""Small networks with numbers of their own, written to files as others write them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sharpness import CheckpointError, load_checkpoint
from sharpness.checkpoints import Fitted, load_state
from sharpness.random import normal


def filled(module: nn.Module, key: str = "") -> nn.Module:
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.copy_(5 * normal(*tensor.shape, key=(name, key), seed=0).to(tensor.dtype))
    return module


def network(key: str = "") -> nn.Module:
    return filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)), key)


class Tied(nn.Module):
    def __init__(self, key: str = "") -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        filled(self, key)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """The same names in the same order, dtypes, shapes and bytes."""
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].detach().numpy().tobytes() == b[name].detach().numpy().tobytes()
        for name in a
    )


def write(state: Any, path: Path) -> Path:
    """A checkpoint as others write it, by the kind that its name says."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization="legacy" not in path.name)
    return path


def same(path: Path, state: dict[str, torch.Tensor]) -> bool:
    """Whether a file gives this state dict, in whichever order."""
    loaded = load_checkpoint(path)
    return len(loaded) == len(state) and same_bits({name: loaded[name] for name in state}, state)


State = dict[str, torch.Tensor]


def state_of(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def renamed(state: State, change: Callable[[str], str]) -> State:
    return {change(name): tensor for name, tensor in state.items()}


class Net(nn.Module):
    """A body in blocks and a head."""

    def __init__(self, key: str = "", classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(2, width)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(3)))
        self.head = nn.Linear(width, classes)
        filled(self, key)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


def fits(module: nn.Module, state: State, expected: State, **options: Any) -> Fitted:
    """Loads, asserts that the module's state is then the expected one, and returns what was told."""
    told = load_state(module, state, "w.pth", **options)
    found = state_of(module)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    return told


def refused(module: nn.Module, state: State, **options: Any) -> str:
    """Asserts a refusal that leaves the module as it was, and returns its message."""
    before = copy.deepcopy(state_of(module))
    with pytest.raises(CheckpointError) as caught:
        load_state(module, state, "w.pth", **options)
    assert same_bits(state_of(module), before)
    return str(caught.value)


def one_line(error: pytest.ExceptionInfo[CheckpointError], path: Path) -> bool:
    """Whether a message names the file and has no second line, as an advice of PyTorch's would."""
    return (
        str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(path))
    )
