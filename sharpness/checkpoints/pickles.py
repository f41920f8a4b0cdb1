"""What ``torch.save`` wrote, read without executing it."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sharpness.checkpoints.inert import hostile, load_with_stand_ins, names_in
from sharpness.checkpoints.tensors import check_exists
from sharpness.errors import CheckpointError

ZIP = b"PK\x03\x04"
CURE = (
    "Where you trust it, load the module in its own project and save its weights: "
    "torch.save(module.state_dict(), 'weights.pth')."
)
ORDINARY = re.compile(r"torch\._utils\.|torch\.\w+Storage$|collections\.|_codecs\.|builtins\.set$")  # in any file
REFUSALS = ("GLOBAL ", "unrecognized function", "Can only create new object", "Can only build")  # of PyTorch's reader


def read_torch(path: Path, *, mapped: bool = False) -> tuple[Any, tuple[str, ...]]:
    """What ``torch.save`` wrote, with its tensors on the CPU.

    Objects of other classes than those of weights are replaced by ``StandIn``, which is empty.

    Args:
        path: the file.
        mapped: leave tensors in the file until they are looked at, where its format allows that.

    Returns:
        The content, and the names of what was replaced.

    Raises:
        CheckpointError: missing, damaged, or in need of code.
    """
    check_exists(path)
    with path.open("rb") as file:
        start = file.read(4)
    zipped = start == ZIP
    if zipped and _is_program(path):
        raise CheckpointError(
            f"expected a state dict in {path}; it is a TorchScript archive, which holds a program. Where you trust it: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pth')."
        )
    load = partial(_load, path, mapped and zipped)
    try:
        return load(), ()
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle fails in any way: IndexError, struct.error, AssertionError, …
        _refuse_other_formats(path, error, zipped)
        if not _holds_code(start, error):
            raise CheckpointError(f"expected a PyTorch checkpoint at {path}; it is damaged ({_line(error)})") from error
        names: dict[str, type] = {}
        try:
            names = names_in(path)
            if not any(map(hostile, names)):
                return load_with_stand_ins(names, load)
        except MemoryError:
            raise
        except Exception:  # as above; the first reading's refusal stands
            pass
        raise refusal(path, sorted(names, key=hostile, reverse=True)) from error


def refusal(path: Path, names: Sequence[str]) -> CheckpointError:
    """The error for a file whose weights are not to be had without executing ``names``."""
    foreign = [name for name in names if not ORDINARY.match(name)]
    shown = ", ".join(name[:60] if name.isprintable() else repr(name[:60]) for name in foreign[:2])
    what = f" ({shown}{', …' if len(foreign) > 2 else ''})" if shown else ""
    return CheckpointError(
        f"expected a state dict in {path}; loading it would execute code stored in the file{what}, which is refused. "
        + CURE
    )


def _load(path: Path, mapped: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer protocols, which are refused or read
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _is_program(path: Path) -> bool:
    """Whether a zip archive is of TorchScript; a damaged one is not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _refuse_other_formats(path: Path, error: Exception, zipped: bool) -> None:
    if "legacy .tar format" in str(error):
        raise CheckpointError(
            f"expected a PyTorch checkpoint at {path}; it is a tar archive. Unpack it, or, where PyTorch before 0.1.10 "
            f"wrote it: {CURE[0].lower()}{CURE[1:]}"
        ) from error
    if "DTensor" in str(error):
        raise CheckpointError(
            f"expected whole tensors in {path}; they are spread over the processes that trained. Gather them there: "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True."
        ) from error
    if zipped and "Unsupported operand" in str(error):
        raise CheckpointError(
            f"expected pickle protocol 2, in which torch.save writes by default, in {path}; PyTorch's safe reader "
            f"knows no other. {CURE}"
        ) from error


def _holds_code(start: bytes, error: Exception) -> bool:
    """Whether the safe reader stopped at something to import or to call, or at a pickle newer than torch writes."""
    newer = len(start) >= 2 and start[0] == 0x80 and 2 < start[1] <= pickle.HIGHEST_PROTOCOL
    return newer or any(words in str(error) for words in REFUSALS)


def _line(error: Exception) -> str:
    """The first line of what an error says; of PyTorch's long advice only what went wrong."""
    said = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    return f"{type(error).__name__}: {(said.strip().splitlines() or ['no details'])[0][:200]}"
