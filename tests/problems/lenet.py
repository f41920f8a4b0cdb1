"""A LeNet on MNIST: pixels in [0, 1], two 5×5 convolutions, each max-pooled, and two fully connected layers."""

from __future__ import annotations

from torch import Tensor, nn

from sharpness import Problem, cross_entropy
from sharpness.data import load


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(convolution(x), 2).relu()
        return self.fc2(self.fc1(x.flatten(1)).relu())


def problem() -> Problem:
    """The first 1,000 training images and all 10,000 test images."""
    mnist = load("mnist")
    train, test = ((inputs.view(-1, 1, 28, 28), labels) for inputs, labels in (mnist.train, mnist.test))
    return Problem(LeNet(), cross_entropy, (train[0][:1000], train[1][:1000]), test)
