"""Weights in several files: HuggingFace folders, and shards with the index that says what is where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sharpness.checkpoints.tensors import check_exists
from sharpness.errors import CheckpointError

INDEX = ".index.json"
NAMES = (  # in the order in which HuggingFace looks for them
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "diffusion_pytorch_model.safetensors",
    f"diffusion_pytorch_model.safetensors{INDEX}",
)
STATE = "trainer_state.json"  # what HuggingFace's Trainer writes beside the weights


def weights_file(path: Path) -> Path:
    """The file or index that holds a HuggingFace folder's weights; a file is itself.

    Raises:
        CheckpointError: a folder without them.
    """
    if not path.is_dir():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    files = sorted(file.name for file in path.iterdir())
    if any(name.endswith(".distcp") for name in files):
        raise CheckpointError(
            f"expected one checkpoint at {path}; there is a folder of torch.distributed.checkpoint. Gather it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt"
        )
    if "adapter_config.json" in files:
        raise CheckpointError(
            f"expected whole weights in {path}; there is a folder with adapters alone. Wrap the model that they adapt "
            "in --problem, peft.PeftModel.from_pretrained(model, folder), and save its state dict."
        )
    held = f"with {', '.join(files[:6])}{', …' if len(files) > 6 else ''}" if files else "that is empty"
    raise CheckpointError(
        f"expected a checkpoint file at {path}, or a HuggingFace folder with {', '.join(NAMES[:4])}; there is a folder "
        f"{held}"
    )


def read_shards(
    index: Path, read: Callable[[Path], tuple[Any, tuple[str, ...]]]
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors of all shards that an index names, read by ``read``, and the names of what ``read`` left out.

    Raises:
        CheckpointError: a shard is missing, lies elsewhere or lacks a tensor; the message names it.
    """
    where = _weight_map(index)
    shards = sorted({*where.values()})
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"expected all {len(shards)} shards of {index} beside it; {len(missing)} are not there: {_few(missing)}"
        )
    tensors: dict[str, torch.Tensor] = {}
    left_out: tuple[str, ...] = ()
    for shard in shards:
        held, without = read(index.parent / shard)
        lacking = [name for name, place in where.items() if place == shard and not _is_tensor(held, name)]
        if lacking:
            raise CheckpointError(
                f"expected in {index.parent / shard} what {index.name} says is there; it lacks {_few(lacking)}. "
                "Are the shards and the index of one save?"
            )
        tensors |= {name: held[name] for name in held if where.get(name, shard) == shard and _is_tensor(held, name)}
        left_out += without
    return tensors, left_out


def trainer_state(path: Path) -> dict[str, Any]:
    """What HuggingFace's Trainer noted beside a file of weights, ``{}`` where it noted nothing."""
    try:
        state = json.loads((path.parent / STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _weight_map(index: Path) -> dict[str, str]:
    check_exists(index)
    try:
        content = json.loads(index.read_bytes())
        where = content["weight_map"]
        if not where or not all(isinstance(shard, str) for shard in where.values()):
            raise ValueError("no names of files")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"expected an index {{'weight_map': {{tensor: file}}}} in {index}; it is damaged "
            f"({type(error).__name__}: {error})"
        ) from error
    outside = sorted({shard for shard in where.values() if not _is_name(shard)})
    if outside:
        raise CheckpointError(
            f"expected an index of files beside it in {index}; it names {_few([repr(s) for s in outside])}, which is "
            "refused"
        )
    return dict(where)


def _is_name(shard: str) -> bool:
    """Whether it is the name of a file in the same folder, and no index or folder itself."""
    return bool(shard) and not any(c in shard for c in "/\\:\0") and shard not in (".", "..") and INDEX not in shard


def _is_tensor(held: Any, name: str) -> bool:
    return isinstance(held, dict) and isinstance(held.get(name), torch.Tensor)


def _few(names: list[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (f", … ({len(names)} in all)" if len(names) > count else "")
