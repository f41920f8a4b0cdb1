"""Safetensors files: named tensors and a header, without code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sharpness.errors import CheckpointError

OWN = "sharpness"  # the key of a header under which this package keeps what it knows, as JSON


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file, on the CPU."""
    own_header(path)  # which says what is wrong with a file
    with safe_open(path, framework="pt") as file:
        # clones: memory-mapped tensors begin anywhere, and a product's last bits can depend on alignment
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping


def own_header(path: Path) -> dict[str, Any]:
    """What this package wrote into a file's header, ``{}`` where it wrote nothing. No tensor is read."""
    written = header(path).get(OWN, "{}")
    try:
        own = json.loads(written)
    except ValueError as error:
        raise _damaged(path, error) from error
    return own if isinstance(own, dict) else {}


def header(path: Path) -> dict[str, str]:
    """A file's header, texts by name. No tensor is read."""
    check_exists(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def check_exists(path: Path) -> None:
    """Refuse a place where no file is."""
    if not path.is_file():
        raise CheckpointError(
            f"expected a checkpoint file at {path}; there is {'a folder' if path.is_dir() else 'none'}"
        )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"expected a complete safetensors file at {path}; it is damaged ({error})")
