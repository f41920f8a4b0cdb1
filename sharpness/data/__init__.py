"""Data sets to train and analyse on.

Handwritten digits inside the package, MNIST and CIFAR from a folder, any table or text from a file, and small generated
ones. Nothing is ever downloaded, and no pickle is executed. The readers (``digits``, ``mnist``, ``cifar``, ``table``,
``text``) and ``generated`` give arrays; here they become tensors.

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

from sharpness.data import cifar, digits, generated, mnist, table, text
from sharpness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "DATASETS",
    "Data",
    "data_folder",
    "load",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_generated_images",
    "load_generated_table",
    "load_generated_text",
    "load_mnist",
    "load_regression",
    "load_table",
    "load_text",
    "text_file",
]


@dataclass(frozen=True, eq=False)
class Data:
    """A classification data set on the CPU: inputs (N, …) float32 and targets (N,) int64 in [0, ``classes``).

    Of a text, sequences of T characters: inputs and targets are (N, T) int64, and ``classes`` is the size of the
    vocabulary. A target is then a class for every character, and an example is a sequence.

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
    (``cifar-10-binary.tar.gz``) or Python version (``cifar-10-python.tar.gz``) lie in ``folder`` (see ``data_folder``),
    in ``folder/cifar10``, or in the archive's folder, ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, in either.
    Where both versions are, the binary one is taken; pickles of the other are read without executing them. Files that
    are missing, damaged, of other sizes or that want more than arrays and lists raise ``DataError``.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Licence: none stated.

    >>> load_cifar10("~/data").train[0].shape  # doctest: +SKIP
    torch.Size([50000, 3, 32, 32])
    """
    return _cifar("cifar10", cifar.CIFAR10, folder)


def load_cifar100(folder: str | Path | None = None) -> Data:
    """CIFAR-100, 50,000 + 10,000 images: inputs as in ``load_cifar10``, targets the 100 fine labels.

    The two files of the original binary version (``cifar-100-binary.tar.gz``) or Python version
    (``cifar-100-python.tar.gz``) lie in ``folder`` (see ``data_folder``), in ``folder/cifar100``, or in the archive's
    folder, ``cifar-100-binary`` or ``cifar-100-python``, in either. They are chosen, read and refused as in
    ``load_cifar10``.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Licence: none stated.

    >>> load_cifar100("~/data").classes  # doctest: +SKIP
    100
    """
    return _cifar("cifar100", cifar.CIFAR100, folder)


def _cifar(name: str, kind: cifar.Cifar, folder: str | Path | None) -> Data:
    train, test = cifar.read(kind, data_folder(folder))
    return Data(
        name,
        _tensors(*train, scale=255),
        _tensors(*test, scale=255),
        classes=kind.classes,
        source="A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009, "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        licence="none stated",
    )


def load_table(path: str | Path | None = None) -> Data:
    """Any table of numbers with a class in every row, from a CSV or NPZ file: standardised inputs (N, d).

    ``path`` is the file itself, else the environment variable ``SHARPNESS_DATA`` where that names a file.

    - CSV: cells separated by commas, the class in the last column, finite numbers in all others. A first line whose
      cells before the last are all no numbers is a line of names.
    - NPZ: arrays ``inputs`` (N, d) and ``targets`` (N,) and, if there is a test set, ``test_inputs``, ``test_targets``.

    Without test arrays every fifth row (rows 4, 9, 14, … counted from 0) is the test set. Classes are whole numbers or
    texts; those of the training set, sorted, become 0, 1, 2, … From every column the mean of the training set is taken
    off, and what remains is divided by its standard deviation (that of all rows, not the estimate from a sample);
    columns that are constant in the training set become 0. Inputs have no unit.

    ``DataError`` where the file is missing or damaged, has fewer than 10 rows (of training, where test arrays are
    given) or 2 classes, a cell that is no finite number, rows of unequal length, a test label that never occurs in
    training, arrays of objects, or targets that are not whole, as in a regression.

    Source: the file's name. Licence: the user's.

    >>> load_table("flowers.csv").train[0].shape  # doctest: +SKIP
    torch.Size([120, 4])
    """
    file = _table_file(path)
    train, test, classes = table.read(file)
    return Data("table", _tensors(*train), _tensors(*test), classes=classes, source=file.name, licence="the user's")


def load_regression(path: str | Path | None = None) -> Data:
    """Any table of numbers with a quantity to predict in every row: standardised inputs (N, d), targets (N,) float32.

    As ``load_table``, but the last column, or the array ``targets``, is a finite number, standardised like the inputs
    (a squared error of 1 is the variance of the training targets). ``classes`` is 1, the number of outputs.

    >>> load_regression("power_plant.csv").train[1].dtype  # doctest: +SKIP
    torch.float32
    """
    file = _table_file(path)
    (inputs, targets), (test_inputs, test_targets) = table.read_quantities(file)
    train = torch.from_numpy(inputs), torch.from_numpy(targets)
    test = torch.from_numpy(test_inputs), torch.from_numpy(test_targets)
    return Data("regression", train, test, classes=1, source=file.name, licence="the user's")


def load_text(path: str | Path | None = None, *, length: int = 64) -> Data:
    """Characters of any text in UTF-8: inputs (N, T) and targets (N, T), the character after each; T is ``length``.

    ``path`` is the file itself, or a folder with ``text/tinyshakespeare.txt`` in it or with exactly one file that ends
    in ``.txt``; else the environment variable ``SHARPNESS_DATA`` names the one or the other.

    Characters are numbered from 0 in the sorted order of all that occur in the whole file, also in its test part, so
    that no test character lacks a number; line ends, tabs and case are kept as they are. The last tenth of the
    characters is the test set. Either part is cut into sequences that do not overlap, where every character but the
    first is predicted once, from those before it in its own sequence; fewer than T at the end are dropped.

    ``DataError`` where the file is missing, is not in UTF-8, has fewer than 10 (T + 1) characters, or one that is
    always the same.

    Source: the file's name. Licence: the user's.

    >>> load_text("~/data/text/tinyshakespeare.txt").train[0].shape  # doctest: +SKIP
    torch.Size([15685, 64])
    """
    file = text_file(path)
    train, test, characters = text.split(text.read(file), length, str(file))
    return Data("text", _characters(*train), _characters(*test), characters, source=file.name, licence="the user's")


def load_generated_images(classes: int = 10) -> Data:
    """Generated images of 10 or 100 classes: inputs (N, 3, 32, 32) in [0, 1], steps of 1/255.

    256 + 64 images of 10 classes, 512 + 128 of 100; other numbers of classes raise ``DataError``. The same on every
    machine. For trying things out, not for conclusions.

    Source: ``sharpness.data.generated``. Licence: MIT.

    >>> load_generated_images().train[0].shape
    torch.Size([256, 3, 32, 32])
    """
    if classes not in generated.IMAGES:
        raise DataError(f"expected classes to be {' or '.join(map(str, generated.IMAGES))}; got {classes!r}")
    train, test = generated.images(classes)
    name = "generated-images" if classes == 10 else f"generated-images-{classes}"
    return _generated(name, _tensors(*train, scale=255), _tensors(*test, scale=255), classes)


def load_generated_table() -> Data:
    """A generated table of 300 classes, 3,000 + 600 rows: inputs (N, 60), standard deviation near 2, no unit.

    The same on every machine. For trying things out, not for conclusions.

    Source: ``sharpness.data.generated``. Licence: MIT.

    >>> load_generated_table().train[0].shape
    torch.Size([3000, 60])
    """
    train, test = generated.table()
    return _generated("generated-table", _tensors(*train), _tensors(*test), generated.CLASSES)


def load_generated_text() -> Data:
    """Generated sentences, as sequences of 16 characters: inputs and targets (N, 16), 29 different characters.

    The same on every machine, made up of 20 words. For trying things out, not for conclusions.

    Source: ``sharpness.data.generated``. Licence: MIT.

    >>> load_generated_text().train[0].shape
    torch.Size([362, 16])
    """
    train, test, characters = text.split(generated.sentences(), 16, "generated-text")
    return _generated("generated-text", _characters(*train), _characters(*test), characters)


def _generated(name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int) -> Data:
    return Data(name, train, test, classes, source="generated by sharpness.data.generated", licence="MIT")


DATASETS: dict[str, Callable[[str | Path | None], Data]] = {
    "digits": lambda _: load_digits(),
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "table": load_table,
    "regression": load_regression,
    "text": load_text,
    "generated-images": lambda _: load_generated_images(),
    "generated-images-100": lambda _: load_generated_images(100),
    "generated-table": lambda _: load_generated_table(),
    "generated-text": lambda _: load_generated_text(),
}


def load(name: str, folder: str | Path | None = None) -> Data:
    """The data set called ``name``, one of ``DATASETS``.

    ``folder`` holds its files (see ``data_folder``); for ``table`` it is the file, for ``text`` either. ``digits`` and
    the generated ones need none and ignore it.

    >>> load("letters")
    Traceback (most recent call last):
    sharpness.errors.DataError: expected a data set named digits, mnist, cifar10, cifar100, table, regression,
    text, generated-images, generated-images-100, generated-table or generated-text; got 'letters'
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
            "Name one with --data-dir (in Python folder=) or in the environment variable SHARPNESS_DATA."
        )
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        origin = "the argument" if argument else "the environment variable SHARPNESS_DATA"
        raise DataError(f"expected a folder with data sets at {folder}, named by {origin}; there is no such folder")
    return folder


def text_file(argument: str | Path | None = None) -> Path:
    """The file of a text: ``argument``, or in that folder; else what the variable SHARPNESS_DATA names."""
    return text.find(Path(argument or os.environ.get("SHARPNESS_DATA") or data_folder()).expanduser())


def _table_file(argument: str | Path | None) -> Path:
    """The file of a table: ``argument``, else the environment variable ``SHARPNESS_DATA`` where it names a file."""
    if argument:
        return Path(argument).expanduser()
    named = os.environ.get("SHARPNESS_DATA")
    if named and Path(named).expanduser().is_file():
        return Path(named).expanduser()
    raise DataError(
        f"expected the CSV or NPZ file of a table; none was given, and the environment variable SHARPNESS_DATA "
        f"names {repr(named) + ', which is no file' if named else 'none'}. "
        "Name the file itself with --data-dir (in Python path= of load_table or folder= of load)."
    )


def _place(folder: Path, places: Sequence[str], files: Sequence[str]) -> Path:
    """The one of ``folder / place`` that holds most of ``files``, so that a stray file hides no complete set."""
    candidates = [folder / place for place in places]
    return max(candidates, key=lambda candidate: sum((candidate / name).is_file() for name in files))


def _tensors(values: np.ndarray, labels: np.ndarray, scale: int = 1) -> tuple[Tensor, Tensor]:
    inputs = torch.from_numpy(values.astype(np.float32)).div_(scale)
    return inputs, torch.from_numpy(labels.astype(np.int64))


def _characters(inputs: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(inputs.copy()), torch.from_numpy(targets.copy())  # own memory: the two overlap
