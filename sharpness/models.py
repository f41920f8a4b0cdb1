"""The models that recipes train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from sharpness.random import derive_seed, preserved_random_state

Module = TypeVar("Module", bound=nn.Module)


def mlp(sizes: Sequence[int], *, batchnorm: bool = False) -> nn.Sequential:
    """A fully connected ReLU network; with ``batchnorm``, a batch-norm layer before every ReLU.

    >>> [type(layer).__name__ for layer in mlp([4, 3, 2], batchnorm=True)]
    ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers.append(nn.Linear(inputs, outputs))
        if batchnorm:
            layers.append(nn.BatchNorm1d(outputs))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def keskar_f1() -> nn.Sequential:
    """F1 of Keskar et al. 2017: 784 inputs, five batch-normalised ReLU layers of 512, 10 outputs; n = 1,462,794.

    >>> sum(p.numel() for p in keskar_f1().parameters())
    1462794
    """
    return mlp([784] + 5 * [512] + [10], batchnorm=True)


def initialised(build: Callable[[], Module], *, seed: int) -> Module:
    """A model built from the seed's own stream; the global generator is left as it was.

    >>> a, b = (initialised(lambda: nn.Linear(2, 2), seed=1) for _ in range(2))
    >>> bool((a.weight == b.weight).all())
    True
    """
    with preserved_random_state():
        torch.manual_seed(derive_seed("initialise", seed=seed))
        return build()
