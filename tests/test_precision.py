"""Casts to fewer digits, and losses with fewer digits than the model: float64 is float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import labels, randn
from torch import nn

from sharpness import GaussNewton, Hessian, Objective, cross_entropy

COUNT = 12
EXACT = 1e-11  # two exact formulas for one number in float64: some hundred roundings of 1.1e-16 along the way


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def test_class_weights_that_are_rounded_in_float32_are_no_reason_to_refuse_float64():
    weights, (x, y) = torch.tensor([0.2, 1.0, 3.0]), (randn(40, 4), labels(40))
    model, loss = nn.Linear(4, 3).double(), nn.CrossEntropyLoss(weight=weights)
    objective, theta = Objective.from_module(model, loss, (x, y), weight=lambda batch: weights[batch[1]].sum())
    expected = nn.functional.cross_entropy(model(x), y, weight=weights.double())
    assert objective.value(theta) == pytest.approx(float(expected.detach()), rel=1e-6)  # 40 roundings of 6e-8


class Applying(nn.Module):
    """A layer and a function of what it gives."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 3), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.layer(x))


NARROWING: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "float": (lambda z: z.float().square(), torch.square),
    "half and back": (lambda z: z.half().to(torch.float32).square(), torch.square),
    "bfloat16": (lambda z: z.bfloat16().square(), torch.square),
    "to, by position": (lambda z: z.to("cpu", torch.float16).square(), torch.square),
    "to, by name": (lambda z: z.to(dtype=torch.float32).square(), torch.square),
    "type": (lambda z: z.type(torch.float32).square(), torch.square),
    "softmax": (lambda z: nn.functional.softmax(z, 1, dtype=torch.float32), lambda z: torch.softmax(z, 1)),
    "log_softmax": (lambda z: z.log_softmax(1, dtype=torch.float32), lambda z: torch.log_softmax(z, 1)),
    "sums": (lambda z: z + torch.sum(z, 1, True, dtype=torch.float32), lambda z: z + z.sum(1, keepdim=True)),
    "cumulative": (lambda z: z.cumsum(1, dtype=torch.float16), lambda z: z.cumsum(1)),
}


@pytest.mark.parametrize("name", NARROWING)
def test_casts_to_fewer_digits_inside_the_model_are_left_out(name):
    data = randn(COUNT, 4, dtype=torch.float32), labels(COUNT)
    models = [Applying(function) for function in NARROWING[name]]
    models[1].load_state_dict(models[0].state_dict())
    (found, theta), (expected, _) = (
        Objective.from_module(model, cross_entropy, data, dtype=torch.float64) for model in models
    )
    v = randn(len(theta), key="v")
    assert found.value(theta) == pytest.approx(expected.value(theta), rel=EXACT)
    for matrix in (Hessian, GaussNewton):
        assert off(matrix(found, theta) @ v, matrix(expected, theta) @ v) < EXACT


@pytest.mark.parametrize("name", NARROWING)
def test_casts_to_fewer_digits_inside_the_loss_are_left_out(name):
    model, data = nn.Linear(4, 3), (randn(COUNT, 4, dtype=torch.float32), labels(COUNT))
    losses = [lambda z, y, function=function: cross_entropy(function(z), y) for function in NARROWING[name]]
    (found, theta), (expected, _) = (Objective.from_module(model, loss, data, dtype=torch.float64) for loss in losses)
    v = randn(len(theta), key="v")
    assert found.value(theta) == pytest.approx(expected.value(theta), rel=EXACT)
    for matrix in (Hessian, GaussNewton):
        assert off(matrix(found, theta) @ v, matrix(expected, theta) @ v) < EXACT


def test_casts_to_more_digits_stay():
    seen = []
    model = Applying(lambda z: seen.append(z.double().dtype) or z)
    Objective.from_module(model, cross_entropy, (randn(COUNT, 4, dtype=torch.float32), labels(COUNT)))
    assert set(seen) == {torch.float64}
