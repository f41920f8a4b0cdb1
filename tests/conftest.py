"""Real data for the tests that want it (without it they are skipped and say why), and one thread for all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

# Threads of small networks wait for each other most of the time, and ten times longer on a machine that is busy.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import pytest

from sharpness.data import cifar, mnist

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data: SHARPNESS_DATA, else shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SHARPNESS_DATA") or beside).expanduser()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is no folder; name one in SHARPNESS_DATA")
    return folder


@pytest.fixture(scope="session")
def mnist_folder(real_data: Path) -> Path:
    """A folder from which ``load_mnist`` reads the real MNIST."""
    if not any((real_data / place / name).exists() for place in mnist.PLACES for name in mnist.FILES):
        pytest.skip(f"no MNIST files in {real_data}")
    return real_data


@pytest.fixture(scope="session")
def cifar10_folder(real_data: Path) -> Iterator[Path]:
    """A folder from which ``load_cifar10`` reads the real CIFAR-10, unpacked while the tests run where it is packed."""
    if any((real_data / place / cifar.TEST).exists() for place in cifar.PLACES):
        yield real_data
        return
    script = real_data / "unpack.py"
    if not (script.exists() and (real_data / "cifar10" / "cifar10_train_1.npz").exists()):
        pytest.skip(f"no CIFAR-10 files in {real_data}, neither binary nor packed")
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: pytest would keep 370 MB of each of three sessions
        subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
        yield Path(folder)
