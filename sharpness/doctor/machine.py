"""What this machine has."""

from __future__ import annotations

import platform

import torch

from sharpness.doctor.check import Check
from sharpness.provenance import LIBRARIES, package_version

OPTIONAL = ("xarray", "h5netcdf")


def check_machine() -> list[Check]:
    """Versions, devices and what is missing."""
    checks = [Check("python", "ok", platform.python_version())]
    for name in LIBRARIES:
        found = package_version(name)
        missing = found == "not installed"
        checks.append(Check(name, "fails", found, cure=f"pip install {name}") if missing else Check(name, "ok", found))
    for name in OPTIONAL:
        checks.append(Check(f"{name} (tests only)", "ok", package_version(name)))
    checks.append(Check("cpu threads", "ok", str(torch.get_num_threads())))
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    checks.append(Check("cuda devices", "ok", ", ".join(devices) or "none: everything runs on the CPU"))
    return checks
