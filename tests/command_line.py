"""The command line in this process or in another one, small runs to look at, and what their folders hold.

PYTEST_DONT_REWRITE: test modules both name this as their plugin, for its fixtures, and import from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from sharpness.cli.app import app
from sharpness.files import write_atomically

SMALL = """
recipe = "digits"
trials = 1
line_points = 5
plane_points = 3
[sb]
batch_size = 128
epochs = 3
[lb]
batch_size = 500
epochs = 3
[analysis]
eigenpairs = 1
subspace = 5
iterations = 2
restarts = 1
examples = 200
"""
QUICK = ("--k", "1", "--subspace", "0", "--restarts", "1", "--epsilon", "1e-3")
"""Options with which ``analyze`` takes a moment on a small model."""

PROBLEMS = """
import torch
from torch import nn
from sharpness import Problem, cross_entropy
from sharpness.data import load
from sharpness.models import mlp

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()
    def forward(self, x):
        return self.net(x) + torch.randn(len(x), 10)

def network():
    return mlp([64, 8, 10], batchnorm=True)

def data():
    digits = load("digits")
    return [(inputs[:60], targets[:60]) for inputs, targets in (digits.train, digits.test)]

def function():
    return network(), cross_entropy, *data()

value = function()
problem = Problem(*function())

def make_problem():
    return Problem(*function())

def of_loader():
    return network(), cross_entropy, torch.utils.data.TensorDataset(*data()[0])

def noisy():
    return Noisy(), cross_entropy, *data()

def narrow():
    return nn.Linear(63, 10), cross_entropy, *data()

def slope():
    inputs, targets = data()[0]
    return nn.Linear(64, 1), lambda output, target: (output[:, 0] - target) ** 2, (inputs, targets.float())

def nothing():
    return 3

def fails():
    raise ValueError("no such luck")
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def invoke(*arguments: Any) -> Ended:
    """The command in this process; an exception that it lets through is a failure of the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def environment(**more: str) -> dict[str, str]:
    """One thread (as in ``one_thread``), wide tables, no terminal."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **more}


def start(*arguments: Any, **more: str) -> subprocess.Popen[str]:
    """The command begun in another process; ``more`` goes into its environment."""
    command = [sys.executable, "-m", "sharpness", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more))


def run(*arguments: Any, **more: str) -> Ended:
    """The command in another process."""
    process = start(*arguments, **more)
    stdout, stderr = process.communicate(timeout=300)
    return Ended(process.returncode, stdout, stderr)


def refused(ended: Ended, code: int, *parts: str) -> bool:
    """Asserts that a command ended with this code and one message on standard error that holds ``parts``."""
    assert ended.code == code, ended
    assert ended.stdout == "", ended
    assert [line[:7] for line in ended.stderr.splitlines()].count("Error: ") == 1, ended
    assert ended.stderr.startswith("Error: "), ended
    assert "Traceback" not in ended.stderr, ended
    for part in parts:
        assert part in ended.stderr, ended
    return True


def results(folder: Path) -> dict[str, Any]:
    """Every array and choice in every HDF5 file below ``folder``, as bytes, without where they come from."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.h5")):
        with h5py.File(path, "r") as file:
            for group in file.values():
                if group.name == "/provenance":
                    continue
                place = f"{path.relative_to(folder)}{group.name}"
                found |= {f"{place}@{name}": value for name, value in group.attrs.items() if name != "_Netcdf4Dimid"}
                found |= {f"{place}/{name}": _bytes(dataset[()]) for name, dataset in group.items()}
    return found


def weights(folder: Path) -> dict[str, bytes]:
    """The bytes of every safetensors file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file below ``folder``, hidden ones too."""
    return {name: ((folder / name).stat().st_mtime_ns, content) for name, content in contents(folder).items()}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below ``folder``, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _bytes(values: Any) -> tuple[str, bytes] | list[Any]:
    values = np.asarray(values)
    return values.tolist() if values.dtype == object else (str(values.dtype), values.tobytes())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for PyTorch: small products then take no longer beside other work, and agree with ``run``."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands draw nothing, for tests of something else: drawing takes longer than all the rest."""
    monkeypatch.setattr("sharpness.render.draw_folder", lambda folder, formats=(): [])


class SmallRun(NamedTuple):
    """A finished small run: its recipe file, its folder, and how the command ended."""

    recipe: Path
    out: Path
    ended: Ended


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """``sharpness run`` of ``SMALL``, undisturbed. Not to be changed."""
    folder = tmp_path_factory.mktemp("small")
    recipe = folder / "small.toml"
    recipe.write_text(SMALL)
    return SmallRun(recipe, folder / "out", run("run", recipe, "--out", folder / "out"))


class Foreign(NamedTuple):
    """Weights from elsewhere: a folder with a problem file and state dicts that fit its ``network``."""

    folder: Path

    def problem(self, name: str) -> str:
        """The option's value."""
        return f"{self.folder / 'problems.py'}:{name}"

    def save(self, name: str, change: Callable[[torch.Tensor], torch.Tensor] = torch.clone, prefix: str = "") -> Path:
        """A file with the network's weights, changed."""
        state = {prefix + key: change(tensor) for key, tensor in network_state().items()}
        path = self.folder / name
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
        return path


@pytest.fixture
def foreign(tmp_path: Path) -> Foreign:
    write_atomically(tmp_path / "problems.py", PROBLEMS.encode())
    return Foreign(tmp_path)


def network_state() -> dict[str, torch.Tensor]:
    """Weights and buffers of the problems' network, with running statistics that are not those of a new one."""
    from sharpness.models import initialised, mlp

    state = initialised(lambda: mlp([64, 8, 10], batchnorm=True), seed=1).state_dict()
    return {name: t + 0.25 if name.endswith("running_mean") else t for name, t in state.items()}


def rows(table: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """A table's rows by their first entry."""
    return {first: list(others) for first, *others in table}
