"""Weights on disk: minimizers that training leaves, and state dicts from elsewhere. No pickle is ever executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from sharpness.errors import CheckpointError
from sharpness.files import write_atomically
from sharpness.objective.snapshot import unwrap
from sharpness.params import ParamSpace, Point

FORMAT = "sharpness-minimizer-1"
WRAPPINGS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


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
        """Copy the values into ``module``, which must have exactly these names and shapes."""
        load_state(module, {**self.parameters, **self.buffers}, "the minimizer")


def load_minimizer(path: str | Path) -> Minimizer:
    """The ``Minimizer`` in a file that training wrote.

    Raises:
        CheckpointError: the file is missing, damaged or something else.
    """
    tensors, header = _read_safetensors(Path(path))
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
    return Path(path).suffix == ".safetensors" and _read_header(Path(path)).get("format") == FORMAT


def load_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in ``path``, on the CPU: ``.safetensors``, or ``.pt``, ``.pth``, … as ``torch.save`` wrote it.

    The usual wrappings (``{"state_dict": …}``, ``{"model": …}``) and prefixes (``module.``, ``_orig_mod.``) are taken
    off. Files that would have to run code to load are refused.

    Raises:
        CheckpointError: missing, damaged, unsafe, or without tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _without_prefix(_read_safetensors(path)[0])
    return _without_prefix(_state_dict(_read_torch(path), path))


def load_state(module: nn.Module, state: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Copy a state dict into ``module``; names or shapes that do not fit are listed in a ``CheckpointError``."""
    module = unwrap(module)
    own = module.state_dict()
    given = {own[name].data_ptr() for name in state if name in own}  # a tied weight may come under one name only
    optional = "num_batches_tracked"  # files from before PyTorch 0.4.1 lack it
    missing = [n for n in own if n not in state and own[n].data_ptr() not in given and not n.endswith(optional)]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name}: model {tuple(own[name].shape)}, file {tuple(state[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("shapes differ", shapes)]
    if any(names for _, names in problems):
        listed = "; ".join(f"{kind}: {_few(names)}" for kind, names in problems if names)
        raise CheckpointError(f"expected {source} to fit the model; got {listed}. Is it another architecture?")
    module.load_state_dict(dict(state), strict=False)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    header = _read_header(path)
    with safe_open(path, framework="pt") as file:
        # clones: memory-mapped tensors begin anywhere, and a product's last bits can depend on alignment
        return {name: file.get_tensor(name).clone() for name in file.keys()}, header  # noqa: SIM118 - not a mapping


def _read_header(path: Path) -> dict[str, Any]:
    _check_exists(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("sharpness", "{}"))
            return header if isinstance(header, dict) else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"expected a complete safetensors file at {path}; it is damaged ({error})") from error


def _read_torch(path: Path) -> Any:
    _check_exists(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle fails in any way: IndexError, struct.error, AssertionError, …
        if not _holds_code(path, error):
            raise CheckpointError(f"expected a PyTorch checkpoint at {path}; it is damaged ({_line(error)})") from error
        raise CheckpointError(
            f"expected a state dict in {path}; loading it would execute code stored in the file, which is refused. "
            "Where you trust it, load the module in its own project and save its weights: "
            "torch.save(module.state_dict(), 'weights.pth')."
        ) from error


def _holds_code(path: Path, error: Exception) -> bool:
    """Whether the safe reader stopped at something to import or to call, or at a pickle newer than torch writes."""
    with path.open("rb") as file:
        start = file.read(2)
    newer = len(start) == 2 and start[0] == 0x80 and 2 < start[1] <= pickle.HIGHEST_PROTOCOL
    refusals = ("GLOBAL ", "unrecognized function", "Can only create new object", "Can only build", "TorchScript")
    return newer or any(words in str(error) for words in refusals)


def _state_dict(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    for name in WRAPPINGS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    tensors = {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)} if isinstance(loaded, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"expected named tensors (a state dict) in {path}; got {type(loaded).__name__}")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in PREFIXES * 2:  # compiled and parallel wrappers come in either order
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"expected a checkpoint file at {path}; there is {'a folder' if path.is_dir() else 'none'}"
        )


def _few(names: list[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (f", … ({len(names)} in all)" if len(names) > count else "")


def _line(error: Exception) -> str:
    """The first line of what an error says; of PyTorch's long advice only what went wrong."""
    said = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    return f"{type(error).__name__}: {(said.strip().splitlines() or ['no details'])[0][:200]}"
