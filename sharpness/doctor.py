"""What this machine has, and whether a model can be trusted to give right numbers."""

from __future__ import annotations

import platform
from typing import NamedTuple

import torch

from sharpness.errors import SharpnessError
from sharpness.objective import Objective, Problem
from sharpness.operators import Hessian
from sharpness.provenance import LIBRARIES, package_version
from sharpness.random import normal

OPTIONAL = ("xarray", "h5netcdf")


class Check(NamedTuple):
    """One thing looked at: whether it is well, what was seen, and what to do where it is not."""

    name: str
    good: bool
    seen: str
    cure: str = ""


def check_machine() -> list[Check]:
    """Versions, devices and what is missing."""
    checks = [Check("python", True, platform.python_version())]
    for name in LIBRARIES:
        found = package_version(name)
        checks.append(Check(name, found != "not installed", found, f"pip install {name}"))
    for name in OPTIONAL:
        checks.append(Check(f"{name} (tests only)", True, package_version(name)))
    checks.append(Check("cpu threads", True, str(torch.get_num_threads())))
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    checks.append(Check("cuda devices", True, ", ".join(devices) or "none: everything runs on the CPU"))
    return checks


def check_problem(
    problem: Problem, *, device: str = "cpu", dtype: torch.dtype | None = None, seed: int = 0
) -> list[Check]:
    """Whether f is one deterministic, twice differentiable function of θ whose products can be trusted.

    Two evaluations agree, a loss averages over any split, ⟨u, Hv⟩ = ⟨v, Hu⟩, products agree with float64, and ‖g‖ says
    whether this is a minimum at all.

    Cost: about ten gradients over the training data, half of them in float64.
    """
    try:
        objectives, theta = problem.objectives(device=device, dtype=dtype)
        f = objectives["train"]
        hessian = Hessian(f, theta)
    except SharpnessError as error:
        return [Check("objective", False, str(error), "see the message")]
    except Exception as error:  # of the model or the loss itself, on these data
        return [Check("objective", False, f"{type(error).__name__}: {error}", "do model, loss and data fit together?")]
    value = f.evaluate(theta)
    u, v = (normal(f.size, key=("doctor", i), seed=seed, dtype=f.dtype, device=f.device) for i in (0, 1))
    product = hessian @ v
    scale = float(u.norm() * product.norm())
    asymmetry = abs(float(u @ product) - float(v @ (hessian @ u))) / scale if scale else 0.0
    exact = Hessian(f.replace(dtype=torch.float64), theta) @ v.double()
    difference = float((product.double() - exact).norm() / exact.norm()) if exact.any() else 0.0
    slope = float(f.gradient(theta).norm())
    norm = float(theta.norm())
    return [
        Check("objective", True, f"deterministic; batches add up; {f.size:,} parameters, {f.examples:,} examples"),
        Check("loss and accuracy (train)", True, f"{value.loss:.6g} nat, {value.accuracy:.4f}"),
        Check("batch norm", True, "running statistics (eval)" if f.has_batchnorm else "none"),
        Check(
            "gradient norm ‖g‖", True, f"{slope:.3g} at ‖θ‖ = {norm:.3g}" + (": not a minimum" if slope > 0.1 else "")
        ),
        Check("symmetry ⟨u, Hv⟩ = ⟨v, Hu⟩", asymmetry < 1e-4, f"relative difference {asymmetry:.1g}", _FLOAT64),
        Check("product against float64", difference < 1e-3, f"relative difference {difference:.1g}", _FLOAT64),
        *_check_split(f, theta, value.loss),
    ]


_FLOAT64 = "kinks of ReLU or badly scaled weights; use --dtype float64"


def _check_split(f: Objective, theta: torch.Tensor, value: float) -> list[Check]:
    """The same value for another chunk size."""
    other = f.replace(chunk_size=max(1, f.chunk_size // 3))
    difference = abs(other.value(theta) - value) / max(abs(value), 1e-30)
    seen = f"relative difference {difference:.1g}"
    return [Check("two batch splits agree", difference < 1e-4, seen, "return per-example losses")]
