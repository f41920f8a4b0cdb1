"""What models of any library need: the library itself, and how it prepares images."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sharpness.errors import ShapeError, UnsupportedModelError

BATCH = 256  # images resized at a time


@dataclass(frozen=True)
class Views:
    """How a library prepares images: the shorter side, the square cut from the middle, mean and deviation."""

    side: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    mode: str = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, channels, height, width) in [0, 1], prepared."""
        parts = [self._resized(part) for part in images.split(BATCH)]
        images = torch.cat(parts) if len(parts) > 1 else parts[0]
        mean, deviation = (_per_channel(values, images) for values in (self.mean or (0.0,), self.std or (1.0,)))
        return (images - mean) / deviation if self.mean or self.std else images

    def _resized(self, images: Tensor) -> Tensor:
        if self.side is not None:
            scale = self.side / min(images.shape[-2:])
            size = [max(self.side, round(scale * length)) for length in images.shape[-2:]]
            images = F.interpolate(images, size, mode=self.mode, antialias=True, align_corners=False).clamp(0, 1)
        if self.crop is not None:
            top, left = ((length - self.crop) // 2 for length in images.shape[-2:])
            images = images[..., top : top + self.crop, left : left + self.crop]
        return images


def library_of(name: str, module: str) -> Any:
    """A library that is asked for only where a model of it is."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnsupportedModelError(f"expected {name} installed for its models; {error}. pip install {name}") from error
    except (ImportError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"expected {name} to load; it fails with {type(error).__name__}: {first_line(error)}. Install the version "
            f"that belongs to PyTorch {torch.__version__}"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, shortly."""
    return (str(error).strip().splitlines() or ["no details"])[0][:200]


def _per_channel(values: tuple[float, ...], inputs: Tensor) -> Tensor:
    """Numbers that fit the channels of inputs (N, channels, …), or the one that fits all."""
    channels = inputs.shape[1]
    if len(values) not in (1, channels):
        raise ShapeError(f"expected --mean and --std with 1 or {channels} numbers; got {len(values)}")
    return torch.tensor(values).view(-1, *[1] * (inputs.ndim - 2))
