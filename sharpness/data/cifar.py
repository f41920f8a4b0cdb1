"""CIFAR-10 and CIFAR-100, in the original binary version or the original Python version.

A file of the binary version holds records: one label byte (CIFAR-100: the coarse label, then the fine one), then the
red, the green and the blue pixels, row by row. One of the Python version is a pickled dict of the same bytes and of
lists of labels; it is read without executing it (see ``pickled``).
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sharpness.data import pickled
from sharpness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
PICKLED_RECORD = 2 * PIXELS + 256  # bytes at most: Python 3 writes some as two; labels and the name of the image


@dataclass(frozen=True)
class Version:
    """A form in which a data set is published: its archive, the folder in it, and how its files' names end."""

    archive: str
    folder: str
    suffix: str


@dataclass(frozen=True)
class Cifar:
    """One of the data sets: its files, without suffix, and how many records each holds and how it labels them."""

    name: str
    folder: str  # in which users may keep it, below the data folder
    train: tuple[str, ...]
    test: str
    train_records: int  # in each file
    test_records: int
    classes: int
    label_bytes: int  # of a binary record; the last is the class
    label_key: bytes  # of the classes in a pickled dict
    binary: Version
    python: Version

    def files(self, version: Version) -> list[str]:
        """The names of all files in one version."""
        return [name + version.suffix for name in (*self.train, self.test)]

    def places(self, version: Version) -> tuple[str, ...]:
        """Where the files of one version are looked for, below the data folder."""
        return "", version.folder, self.folder, f"{self.folder}/{version.folder}"


CIFAR10 = Cifar(
    name="CIFAR-10",
    folder="cifar10",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    train_records=10_000,
    test_records=10_000,
    classes=10,
    label_bytes=1,
    label_key=b"labels",
    binary=Version("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin"),
    python=Version("cifar-10-python.tar.gz", "cifar-10-batches-py", ""),
)
CIFAR100 = Cifar(
    name="CIFAR-100",
    folder="cifar100",
    train=("train",),
    test="test",
    train_records=50_000,
    test_records=10_000,
    classes=100,
    label_bytes=2,
    label_key=b"fine_labels",
    binary=Version("cifar-100-binary.tar.gz", "cifar-100-binary", ".bin"),
    python=Version("cifar-100-python.tar.gz", "cifar-100-python", ""),
)


def read(cifar: Cifar, folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train and test set below ``folder``, each as images (N, 3, 32, 32) and labels (N,), uint8; or ``DataError``.

    Labels are the classes: of CIFAR-100 the fine ones.
    """
    version, place, _ = find(cifar, folder)
    read_file = read_binary if version == cifar.binary else read_python
    *train, test = (place / name for name in cifar.files(version))
    images, labels = zip(*(read_file(cifar, file, cifar.train_records) for file in train), strict=True)
    return (np.concatenate(images), np.concatenate(labels)), read_file(cifar, test, cifar.test_records)


def find(cifar: Cifar, folder: Path) -> tuple[Version, Path, int]:
    """The version, the place below ``folder`` that holds most of its files, and how many; of equals the binary one."""
    candidates = [
        (version, place, sum((place / name).is_file() for name in cifar.files(version)))
        for version in (cifar.binary, cifar.python)
        for place in (folder / name for name in cifar.places(version))
    ]
    return max(candidates, key=lambda candidate: candidate[2])


def read_binary(cifar: Cifar, file: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of one file of the binary version, which must hold ``count`` records."""
    size = cifar.label_bytes + PIXELS
    content = _content(cifar, file)
    if len(content) != count * size:
        raise DataError(
            f"{file}: expected {count * size:,} bytes ({count:,} records of {size:,}); got {len(content):,}. "
            f"{_remedy(cifar.binary)}"
        )
    records = np.frombuffer(content, np.uint8).reshape(count, size)
    images, labels = records[:, cifar.label_bytes :].reshape(count, *SHAPE), records[:, cifar.label_bytes - 1]
    if labels.max() >= cifar.classes:
        raise DataError(
            f"{file}: expected labels from 0 to {cifar.classes - 1}; got {labels.max()}. {_remedy(cifar.binary)}"
        )
    return images, labels


def read_python(cifar: Cifar, file: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of one file of the Python version, which must hold ``count`` records."""
    remedy = _remedy(cifar.python)
    if file.is_file() and (size := file.stat().st_size) > (most := 10_000 + count * PICKLED_RECORD):
        raise DataError(f"{file}: expected at most {most:,} bytes; got {size:,}. {remedy}")
    try:
        stored = pickled.load(_content(cifar, file))
        if not isinstance(stored, dict):
            raise pickle.UnpicklingError(f"it holds {pickled.brief(stored)} instead of a dict")
        images = pickled.byte_array(stored.get(b"data"), (count, PIXELS))
    except pickle.UnpicklingError as error:
        raise DataError(f"{file}: expected a pickled dict of images and labels; {error}. {remedy}") from error
    labels = stored.get(cifar.label_key)
    if not isinstance(labels, list) or len(labels) != count:
        got = f"{len(labels):,}" if isinstance(labels, list) else "none"
        raise DataError(f"{file}: expected {count:,} labels under {cifar.label_key!r}; got {got}. {remedy}")
    for label in labels:
        if type(label) is not int or not 0 <= label < cifar.classes:
            got = pickled.brief(label)
            raise DataError(f"{file}: expected labels from 0 to {cifar.classes - 1}; got {got}. {remedy}")
    return images.reshape(count, *SHAPE), np.array(labels, np.uint8)


def _content(cifar: Cifar, file: Path) -> bytes:
    if not file.exists():
        places = [place for version in (cifar.binary, cifar.python) for place in cifar.places(version) if place]
        raise DataError(
            f"expected the {cifar.name} file {file.name} in {file.parent}; there is none. Unpack the original "
            f"{cifar.binary.archive} or {cifar.python.archive} there, or name the folder that holds its files (or "
            f"holds them in {' or '.join(dict.fromkeys(places))})."
        )
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: expected a readable file; reading it failed ({error}). Replace it by the file of that name in "
            f"the original archive."
        ) from error


def _remedy(version: Version) -> str:
    return f"Replace it by the file of that name in the original {version.archive}."
