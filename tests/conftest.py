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
def unpacked_cifar(real_data: Path) -> Iterator[Path]:
    """A folder with CIFAR-10 and CIFAR-100, unpacked while the tests run."""
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: pytest would keep 370 MB of each of three sessions
        subprocess.run([sys.executable, real_data / "unpack.py", folder], check=True, capture_output=True)
        yield Path(folder)


@pytest.fixture(scope="session")
def cifar10_folder(real_data: Path, request: pytest.FixtureRequest) -> Path:
    """A folder from which ``load_cifar10`` reads the real CIFAR-10, unpacked while the tests run where it is packed."""
    return cifar_folder(cifar.CIFAR10, real_data, request)


@pytest.fixture(scope="session")
def cifar100_folder(real_data: Path, request: pytest.FixtureRequest) -> Path:
    """A folder from which ``load_cifar100`` reads the real CIFAR-100, unpacked likewise."""
    return cifar_folder(cifar.CIFAR100, real_data, request)


def cifar_folder(kind: cifar.Cifar, real_data: Path, request: pytest.FixtureRequest) -> Path:
    _, _, found = cifar.find(kind, real_data)
    if found:
        return real_data
    if not ((real_data / "unpack.py").exists() and (real_data / kind.folder / f"{kind.folder}_train_1.npz").exists()):
        pytest.skip(f"no {kind.name} files in {real_data}, neither original nor packed")
    return request.getfixturevalue("unpacked_cifar")
