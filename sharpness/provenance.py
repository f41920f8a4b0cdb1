"""Where a number comes from: versions, commit, command and machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "numpy", "scipy", "h5py", "safetensors", "matplotlib")


def provenance() -> dict[str, Any]:
    """Package and library versions, git commit (of an editable checkout), command, machine and time (UTC)."""
    return {
        "sharpness": package_version("sharpness"),
        "python": platform.python_version(),
        "libraries": {name: package_version(name) for name in LIBRARIES},
        "git_commit": _git_commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def package_version(name: str) -> str:
    """The installed version of a package, or ``not installed``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@cache
def _git_commit() -> str:
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
