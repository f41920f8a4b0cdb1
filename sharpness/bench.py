"""What a gradient and a Hessian-vector product cost on this machine, for one model."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from sharpness.errors import ShapeError
from sharpness.objective import Objective, seconds_of
from sharpness.operators import Hessian
from sharpness.progress import Progress, silent
from sharpness.random import normal
from sharpness.records import ProductCost


def product_cost(
    objective: Objective,
    theta: torch.Tensor,
    *,
    name: str = "model",
    repeats: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> ProductCost:
    """Time gradients and Hessian-vector products over the same data, interleaved, and the product's error.

    The unit to quote is G, one gradient by PyTorch's own functions and chunks: a product costs
    ``product_seconds / gradient_seconds`` G. The error is ‖Hv − H₆₄v‖ / ‖H₆₄v‖ for a random v, with H₆₄ computed in
    float64 over the same data. ``conditions["execution"]`` says how products were computed, and why so.

    Args:
        objective, theta: the model at the point where to measure.
        name: stored with the record.
        repeats: timed pairs, after one untimed.
        seed: of v.
        progress: called after each pair.

    Raises:
        ShapeError: repeats < 1.
    """
    if repeats < 1:
        raise ShapeError(f"expected repeats >= 1; got {repeats}")
    vector = normal(objective.size, key=("bench",), seed=seed, dtype=objective.dtype, device=objective.device)
    plain = objective.replace(kernels="torch")
    plain.gradient(theta)  # untimed: threads and caches warm up
    setup, hessian = seconds_of(lambda: Hessian(objective, theta), objective.device)
    product = hessian @ vector
    gradient_seconds, product_seconds = np.empty(repeats), np.empty(repeats)
    for repeat in range(repeats):
        gradient_seconds[repeat], _ = seconds_of(partial(plain.gradient, theta), objective.device)
        product_seconds[repeat], _ = seconds_of(partial(hessian.__matmul__, vector), objective.device)
        progress(repeat + 1, repeats, f"{product_seconds[repeat] / gradient_seconds[repeat]:.2f} G")
    exact = Hessian(objective.replace(dtype=torch.float64), theta) @ vector.double()
    return ProductCost(
        repeat=np.arange(1, repeats + 1),
        gradient_seconds=gradient_seconds,
        product_seconds=product_seconds,
        setup_seconds=setup,
        retained_bytes=float(hessian.retained_bytes),
        relative_error=float((product.double() - exact).norm() / exact.norm()),
        name=name,
        parameters=objective.size,
        examples=objective.examples,
        conditions=hessian.conditions,
    )
