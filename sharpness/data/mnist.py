"""MNIST in its four original IDX files, plain or gzip-compressed.

An IDX file is a magic number, one size per dimension (32-bit integers, big-endian) and the values, one byte each.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from sharpness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

PLACES = ("", "mnist", "MNIST/raw")  # below the data folder; the last is where torchvision puts the files
COUNTS = {"train": 60_000, "t10k": 10_000}
KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
FILES = tuple(f"{part}-{kind}{suffix}" for part in COUNTS for kind in KINDS for suffix in ("", ".gz"))

IMAGES, LABELS = 2051, 2049  # magic numbers 0x0803 and 0x0801: bytes, in three dimensions and in one
GZIP = b"\x1f\x8b"
_REMEDY = "Replace it by the original file."


def read(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train and test set from ``folder``, each as images (N, 784) and labels (N,), uint8; or ``DataError``."""
    return read_part(folder, "train"), read_part(folder, "t10k")


def read_part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 784) and labels (N,) of one part, ``train`` or ``t10k``, checked against each other."""
    image_file, label_file = (_find(folder, f"{part}-{kind}") for kind in KINDS)
    images, labels = read_idx(image_file, IMAGES), read_idx(label_file, LABELS)
    if images.shape[1:] != (28, 28):
        size = "×".join(map(str, images.shape[1:]))
        raise DataError(f"{image_file}: expected images of 28×28 pixels; got {size}. {_REMEDY}")
    for file, values in ((image_file, images), (label_file, labels)):
        if len(values) != COUNTS[part]:
            raise DataError(f"{file}: expected the {COUNTS[part]:,} entries of MNIST; got {len(values):,}. {_REMEDY}")
    if labels.max() > 9:
        raise DataError(f"{label_file}: expected labels from 0 to 9; got {labels.max()}. {_REMEDY}")
    return images.reshape(len(images), -1), labels


def read_idx(file: Path, magic: int) -> np.ndarray:
    """The values of one IDX file of bytes whose magic number is ``magic``, in the shape that its header gives."""
    content = _content(file)
    words = 1 + magic % 256  # the last byte of a magic number counts the dimensions
    if len(content) < 4 * words:
        raise DataError(f"{file}: expected an IDX header of {4 * words} bytes; got {len(content)} bytes. {_REMEDY}")
    found, *shape = struct.unpack_from(f">{words}I", content)
    if found != magic:
        raise DataError(f"{file}: expected the IDX magic number {magic}; got {found}. {_REMEDY}")
    promised, size = math.prod(shape), len(content) - 4 * words
    if size != promised:
        raise DataError(f"{file}: its header promises {promised:,} bytes of values; got {size:,}. {_REMEDY}")
    return np.frombuffer(content, np.uint8, offset=4 * words).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.exists():
            return file
    raise DataError(
        f"expected the MNIST file {name} or {name}.gz in {folder}; there is none. Put the four original files there, "
        f"or name the folder that holds them (or holds them in {' or '.join(place for place in PLACES if place)})."
    )


def _content(file: Path) -> bytes:
    """The bytes of ``file``, decompressed. The bytes decide, not the name: browsers decompress and keep ``.gz``."""
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: expected a readable file; reading it failed ({error}). {_REMEDY}") from error
