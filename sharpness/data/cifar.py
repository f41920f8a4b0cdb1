"""CIFAR-10 in its original binary version (``cifar-10-binary.tar.gz``).

Each of the six files holds 10,000 records of 3,073 bytes: the label, then the red, the green and the blue pixels, row
by row. The Python version holds pickles and is not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sharpness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

PLACES = ("", "cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin")  # below the data folder
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
FILES = (*TRAIN, TEST)
RECORDS = 10_000
SHAPE = (3, 32, 32)
RECORD_SIZE = 1 + 3 * 32 * 32
_REMEDY = "Replace it by the file of that name in the original cifar-10-binary.tar.gz."


def read(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train and test set from ``folder``, each as images (N, 3, 32, 32) and labels (N,), uint8; or ``DataError``."""
    images, labels = zip(*(read_batch(folder / name) for name in TRAIN), strict=True)
    return (np.concatenate(images), np.concatenate(labels)), read_batch(folder / TEST)


def read_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of one file."""
    content = _content(file)
    expected = RECORDS * RECORD_SIZE
    if len(content) != expected:
        raise DataError(
            f"{file}: expected {expected:,} bytes ({RECORDS:,} records of {RECORD_SIZE:,}); got {len(content):,}. "
            f"{_REMEDY}"
        )
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, RECORD_SIZE)
    images, labels = records[:, 1:].reshape(RECORDS, *SHAPE), records[:, 0]
    if labels.max() > 9:
        raise DataError(f"{file}: expected labels from 0 to 9; got {labels.max()}. {_REMEDY}")
    return images, labels


def _content(file: Path) -> bytes:
    if not file.exists():
        raise DataError(
            f"expected the CIFAR-10 file {file.name} in {file.parent}; there is none. Unpack the original "
            f"cifar-10-binary.tar.gz there (the Python version is pickled and not read), or name the folder that "
            f"holds the six files (or holds them in {' or '.join(place for place in PLACES if place)})."
        )
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: expected a readable file; reading it failed ({error}). {_REMEDY}") from error
