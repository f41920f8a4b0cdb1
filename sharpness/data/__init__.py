"""Data sets to train and analyse on: handwritten digits inside the package, MNIST and CIFAR-10 from a folder.

Nothing is ever downloaded and nothing is unpickled. The readers (``digits``, ``mnist``, ``cifar``) give the stored
bytes; here they become tensors.

>>> digits = load("digits")
>>> digits.name, len(digits.train[0]), len(digits.test[0]), digits.classes
('digits', 1437, 360, 10)
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sharpness.data import cifar, digits, mnist
from sharpness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["DATASETS", "Data", "data_folder", "load", "load_cifar10", "load_digits", "load_mnist"]


@dataclass(frozen=True, eq=False)
class Data:
    """A classification data set on the CPU: inputs (N, …) float32 and targets (N,) int64 in [0, ``classes``).

    ``source`` says who made it and where it is published, ``licence`` what its makers allow.
    """

    name: str
    train: tuple[Tensor, Tensor] = field(repr=False)
    test: tuple[Tensor, Tensor] = field(repr=False)
    classes: int
    source: str
    licence: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the bytes of the train inputs, train targets, test inputs and test targets, in this order.

        Computed when first asked for (about a second for CIFAR-10) and then kept; do not change the tensors in place.

        >>> load_digits().fingerprint[:16]
        '60bb6b4a3c1c62e2'
        """
        digest = hashlib.sha256()
        for tensor in (*self.train, *self.test):
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


def load_digits() -> Data:
    """The 1,797 handwritten digits inside the package: inputs (N, 64), 8×8 pixels in [0, 1], steps of 1/16.

    The first 1,437 images in the order of the source are the training set, the last 360 the test set, not shuffled:
    the source goes from form to form of about 130 digits, so nearly all test images come from forms that no training
    image comes from.

    Source: test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, as scikit-learn distributes it; pixel values unchanged. Licence: CC BY 4.0.

    >>> inputs, targets = load_digits().train
    >>> inputs.shape, targets[:5].tolist()
    (torch.Size([1437, 64]), [0, 1, 2, 3, 4])
    """
    train, test = digits.read()
    return Data(
        "digits",
        _tensors(*train, scale=16),
        _tensors(*test, scale=16),
        classes=10,
        source="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits (test set), UCI Machine Learning "
        "Repository, 1998, https://doi.org/10.24432/C50P49, as distributed with scikit-learn",
        licence="CC BY 4.0",
    )


def load_mnist(folder: str | Path | None = None) -> Data:
    """MNIST, 60,000 + 10,000 images: inputs (N, 784), 28×28 pixels in [0, 1], steps of 1/255.

    The four original IDX files, plain or gzip-compressed, lie in ``folder`` (see ``data_folder``), in
    ``folder/mnist`` or in ``folder/MNIST/raw``. Files that are missing, damaged or of other sizes raise ``DataError``.

    Source: Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits. Licence: none stated.

    >>> load_mnist("~/data").train[0].shape  # doctest: +SKIP
    torch.Size([60000, 784])
    """
    train, test = mnist.read(_place(data_folder(folder), mnist.PLACES, mnist.FILES))
    return Data(
        "mnist",
        _tensors(*train, scale=255),
        _tensors(*test, scale=255),
        classes=10,
        source="Y. LeCun, C. Cortes, C. J. C. Burges: The MNIST database of handwritten digits, "
        "http://yann.lecun.com/exdb/mnist/",
        licence="none stated",
    )


def load_cifar10(folder: str | Path | None = None) -> Data:
    """CIFAR-10, 50,000 + 10,000 images: inputs (N, 3, 32, 32), red, green, blue in [0, 1], steps of 1/255.

    Pixels are scaled, nothing else: no mean is taken off. The six files of the original binary version
    (``cifar-10-binary.tar.gz``) lie in ``folder`` (see ``data_folder``), in ``folder/cifar10``, or in a folder
    ``cifar-10-batches-bin`` in either. Files that are missing, damaged or of other sizes raise ``DataError``.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Licence: none stated.

    >>> load_cifar10("~/data").train[0].shape  # doctest: +SKIP
    torch.Size([50000, 3, 32, 32])
    """
    train, test = cifar.read(_place(data_folder(folder), cifar.PLACES, cifar.FILES))
    return Data(
        "cifar10",
        _tensors(*train, scale=255),
        _tensors(*test, scale=255),
        classes=10,
        source="A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009, "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        licence="none stated",
    )


DATASETS: dict[str, Callable[[str | Path | None], Data]] = {
    "digits": lambda _: load_digits(),
    "mnist": load_mnist,
    "cifar10": load_cifar10,
}


def load(name: str, folder: str | Path | None = None) -> Data:
    """The data set called ``name``, one of ``DATASETS``; the embedded ``digits`` need no folder and ignore it.

    >>> load("letters")
    Traceback (most recent call last):
    sharpness.errors.DataError: expected a data set named digits, mnist or cifar10; got 'letters'
    """
    if name not in DATASETS:
        *others, last = DATASETS
        raise DataError(f"expected a data set named {', '.join(others)} or {last}; got {name!r}")
    return DATASETS[name](folder)


def data_folder(argument: str | Path | None = None) -> Path:
    """The folder that holds data sets: ``argument``, else the environment variable ``SHARPNESS_DATA``.

    ``DataError`` if neither is given or the folder does not exist.

    >>> data_folder(".") == Path(".")
    True
    """
    chosen = argument or os.environ.get("SHARPNESS_DATA")
    if not chosen:
        raise DataError(
            "expected a folder with data sets; none was given. "
            "Pass one as argument or name it in the environment variable SHARPNESS_DATA."
        )
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        origin = "the argument" if argument else "the environment variable SHARPNESS_DATA"
        raise DataError(f"expected a folder with data sets at {folder}, named by {origin}; there is no such folder")
    return folder


def _place(folder: Path, places: Sequence[str], files: Sequence[str]) -> Path:
    """The one of ``folder / place`` that holds most of ``files``, so that a stray file hides no complete set."""
    candidates = [folder / place for place in places]
    return max(candidates, key=lambda candidate: sum((candidate / name).exists() for name in files))


def _tensors(images: np.ndarray, labels: np.ndarray, scale: int) -> tuple[Tensor, Tensor]:
    inputs = torch.from_numpy(images.astype(np.float32)).div_(scale)
    return inputs, torch.from_numpy(labels.astype(np.int64))
