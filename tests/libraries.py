"""Libraries of models, where they are installed."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch

STUBS: list[Any] = []  # they last as long as they are held


@cache
def torchvision() -> ModuleType | None:
    """The library, None where there is none; its import stops where it was built for another PyTorch than is here.

    What it then lacks are operators that finding objects needs, and no model here.
    """
    try:
        import torchvision
    except ModuleNotFoundError:
        return None
    except RuntimeError:
        STUBS.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            STUBS[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def library(name: str) -> ModuleType:
    """A library that imports torchvision where there is one, or torchvision itself; without it the test is skipped."""
    torchvision()
    return pytest.importorskip(name, reason=f"{name} is not installed")
