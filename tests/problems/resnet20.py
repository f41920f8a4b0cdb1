"""ResNet-20 on CIFAR-10 as in akamaster/pytorch_resnet_cifar10, whose weights fit.

With SHARPNESS_DATA naming a folder with the original CIFAR-10 files:

    sharpness analyze resnet20-12fca82f.th --problem tests/problems/resnet20.py:full --examples 256
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpness import cross_entropy
from sharpness.data import load

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEW = 300


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters (option A): pixels are skipped, channels padded."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        half = self.new // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet20(nn.Module):
    """Three stages of three blocks with 16, 32 and 64 channels; n = 269,722."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def full() -> tuple:
    """All 50,000 training and 10,000 test images."""
    return _problem(None)


def few() -> tuple:
    """The first of the images, for a test that takes seconds."""
    return _problem(FEW)


def _problem(count: int | None) -> tuple:
    cifar = load("cifar10")
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    train, test = (
        ((images[:count] - mean) / deviation, labels[:count]) for images, labels in (cifar.train, cifar.test)
    )
    return ResNet20(), cross_entropy, train, test
