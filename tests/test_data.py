"""Data sets: known facts of the real ones, round trips through small files, and a refusal for every damage."""

from __future__ import annotations

import codecs
import copyreg
import gzip
import os
import pickle
import struct
import tracemalloc
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sharpness.data import (
    DATASETS,
    Data,
    cifar,
    data_folder,
    load,
    load_cifar10,
    load_cifar100,
    load_digits,
    load_generated_images,
    load_generated_table,
    load_mnist,
    mnist,
    pickled,
)
from sharpness.errors import DataError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


# ---- digits -------------------------------------------------------------------------------------------------------


def test_digits_are_split_into_1437_and_360_of_1797():
    data = load_digits()
    assert data.train[0].shape == (1437, 64)
    assert data.test[0].shape == (360, 64)
    assert data.train[1].shape == (1437,)
    assert data.test[1].shape == (360,)


def test_digits_have_the_label_counts_of_the_source():
    data = load_digits()
    # the class distribution of the test set in the description that UCI publishes (optdigits.names)
    everything = torch.cat([data.train[1], data.test[1]])
    assert everything.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.test[1].bincount().tolist() == [35, 36, 35, 37, 37, 37, 37, 36, 33, 37]


def test_digits_lie_in_the_order_of_the_source():
    first = load_digits().train[0][0] * 16
    expected = [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]  # first two rows of the first image, a 0
    assert first[:16].tolist() == expected


def test_digits_are_multiples_of_a_sixteenth_from_0_to_1():
    data = load_digits()
    counts = torch.cat([data.train[0], data.test[0]]) * 16
    assert torch.equal(counts, counts.round())
    assert (counts.min(), counts.max()) == (0, 16)
    assert counts.sum(dtype=torch.float64) == 561_718


def test_digits_credit_their_makers_and_licence():
    data = load_digits()
    assert "Alpaydin" in data.source
    assert "Kaynak" in data.source
    assert data.licence == "CC BY 4.0"


# ---- Data ---------------------------------------------------------------------------------------------------------


def test_inputs_are_float32_and_targets_int64():
    data = load_digits()
    assert {data.train[0].dtype, data.test[0].dtype} == {torch.float32}
    assert {data.train[1].dtype, data.test[1].dtype} == {torch.int64}


def test_data_are_frozen():
    data = load_digits()
    with pytest.raises(FrozenInstanceError):
        data.name = "other"


def test_two_loads_have_one_fingerprint():
    data = load_digits()
    assert data.fingerprint == data.fingerprint == load_digits().fingerprint
    # division by 16 is exact, so these bytes are the same on every machine
    assert data.fingerprint == "60bb6b4a3c1c62e282ff63be3eab39ac9485ff357e6c5d0650ba8007f74208c3"


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("which", [0, 1])
def test_every_tensor_counts_in_the_fingerprint(part, which):
    data = load_digits()
    pair = [tensor.clone() for tensor in getattr(data, part)]
    pair[which].view(-1)[7] += 1
    assert replace(data, **{part: tuple(pair)}).fingerprint != data.fingerprint


def test_the_fingerprint_sees_values_not_memory_layout():
    data = load_digits()
    inputs, targets = data.train
    transposed = inputs.T.contiguous().T
    assert not transposed.is_contiguous()
    assert replace(data, train=(transposed, targets)).fingerprint == data.fingerprint


def test_loading_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    load_digits()
    assert torch.equal(torch.get_rng_state(), before)


# ---- by name, from a folder ---------------------------------------------------------------------------------------


def test_load_finds_digits_by_name_without_a_folder(monkeypatch):
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    assert load("digits").fingerprint == load_digits().fingerprint


def test_load_finds_mnist_and_cifar10_by_name(small_mnist, small_cifar):
    assert load("mnist", small_mnist).name == "mnist"
    assert load("cifar10", small_cifar).name == "cifar10"


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"digits, mnist, cifar10, .* or generated-text; got 'letters'") as caught:
        load("letters")
    names = ["digits", "mnist", "cifar10", "cifar100", "table", "regression", "text"]
    generated = [f"generated-{kind}" for kind in ("images", "images-100", "table", "text")]
    assert list(DATASETS) == [*names, *generated]
    assert all(name in str(caught.value) for name in DATASETS)


def test_the_argument_goes_before_the_environment(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("SHARPNESS_DATA", str(tmp_path / "b"))
    assert data_folder(tmp_path / "a") == tmp_path / "a"
    assert data_folder(str(tmp_path / "a")) == tmp_path / "a"
    assert data_folder(None) == tmp_path / "b"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert data_folder("~") == tmp_path


@pytest.mark.parametrize("value", [None, ""])
def test_no_folder_at_all_is_refused_and_both_ways_told(monkeypatch, value):
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("SHARPNESS_DATA", value)
    with pytest.raises(DataError, match=r"--data-dir \(in Python folder=\) or in the .* SHARPNESS_DATA"):
        data_folder(None)


@pytest.mark.parametrize("loader", [load_mnist, load_cifar10])
def test_a_folder_that_does_not_exist_is_refused_by_name(loader, tmp_path):
    with pytest.raises(DataError, match="nowhere, named by the argument; there is no such folder"):
        loader(tmp_path / "nowhere")


def test_a_wrong_environment_variable_is_blamed_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNESS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere, named by the environment variable SHARPNESS_DATA"):
        load_mnist()


# ---- MNIST, small files -------------------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    """An IDX file of bytes, written independently of the reader."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def small_images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def small_labels(count: int) -> np.ndarray:
    return (np.arange(count) % 10).astype(np.uint8)


@pytest.fixture
def small_mnist(tmp_path, monkeypatch) -> Path:
    """Four IDX files of 12 and 5 images."""
    monkeypatch.setattr(mnist, "COUNTS", {"train": 12, "t10k": 5})
    folder = tmp_path / "small mnist"
    folder.mkdir()
    for part, count in mnist.COUNTS.items():
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(small_images(count)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(small_labels(count)))
    return folder


def move_to(folder: Path, place: str) -> None:
    """Move the files of ``folder`` to ``folder/place``."""
    files = list(folder.iterdir())
    (folder / place).mkdir(parents=True, exist_ok=True)
    for file in files:
        file.rename(folder / place / file.name)


def compress(folder: Path) -> None:
    """Replace every file of ``folder`` by its compressed form."""
    for file in list(folder.iterdir()):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def assert_small_mnist(data: Data) -> None:
    for (inputs, targets), count in ((data.train, 12), (data.test, 5)):
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
        assert torch.equal(inputs, torch.from_numpy(small_images(count)).reshape(count, 784) / 255)
        assert targets.tolist() == small_labels(count).tolist()


@pytest.mark.parametrize("place", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_round_trip_from_every_place(small_mnist, place, compressed):
    if compressed:
        compress(small_mnist)
    if place:
        move_to(small_mnist, place)
    assert_small_mnist(load_mnist(small_mnist))


def test_mnist_is_found_through_the_environment(small_mnist, monkeypatch):
    monkeypatch.setenv("SHARPNESS_DATA", str(small_mnist))
    assert_small_mnist(load_mnist())


def test_a_file_named_gz_that_is_not_compressed_is_read(small_mnist):
    file = small_mnist / TRAIN_IMAGES
    file.rename(file.with_name(TRAIN_IMAGES + ".gz"))
    assert_small_mnist(load_mnist(small_mnist))


def test_a_stray_file_does_not_hide_the_complete_set_below(small_mnist):
    move_to(small_mnist, "mnist")
    (small_mnist / TRAIN_LABELS).write_bytes(b"stray")
    assert_small_mnist(load_mnist(small_mnist))


def test_the_idx_reader_keeps_shape_and_values(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "x").write_bytes(idx(values))
    assert np.array_equal(mnist.read_idx(tmp_path / "x", mnist.IMAGES), values)


def altered(name: str, change):
    """A damage that rewrites the bytes of one file."""
    return name, lambda file: file.write_bytes(change(file.read_bytes()))


MNIST_DAMAGES = {
    "missing": (TRAIN_LABELS, Path.unlink, "there is none"),
    "a folder": (TRAIN_LABELS, lambda file: (file.unlink(), file.mkdir()), "reading it failed"),
    "empty": (*altered(TRAIN_IMAGES, lambda _: b""), "expected an IDX header of 16 bytes; got 0 bytes"),
    "empty labels": (*altered(TRAIN_LABELS, lambda _: b""), "expected an IDX header of 8 bytes; got 0 bytes"),
    "cut in the header": (*altered(TRAIN_IMAGES, lambda b: b[:15]), "header of 16 bytes; got 15 bytes"),
    "truncated": (*altered(TRAIN_IMAGES, lambda b: b[:-1]), "promises 9,408 bytes of values; got 9,407"),
    "too long": (*altered(TRAIN_LABELS, lambda b: b + b"\0"), "promises 12 bytes of values; got 13"),
    "wrong magic": (*altered(TRAIN_IMAGES, lambda b: b"\0\0\x0d\x03" + b[4:]), "magic number 2051; got 3331"),
    "labels for images": (*altered(TRAIN_IMAGES, lambda _: idx(small_labels(12))), "magic number 2051; got 2049"),
    "images for labels": (*altered(TRAIN_LABELS, lambda _: idx(small_images(12))), "magic number 2049; got 2051"),
    "a web page": (*altered(TRAIN_LABELS, lambda _: b"<!DOCTYPE html>"), "magic number 2049"),
    "huge sizes": (
        *altered(TRAIN_IMAGES, lambda b: b[:4] + b"\xff" * 12 + b[16:]),
        "promises 79,228,162,458,924,105,385,300,197,375 bytes of values; got 9,408",
    ),
    "a label 10": (*altered(TRAIN_LABELS, lambda b: b[:-1] + b"\n"), "labels from 0 to 9; got 10"),
    "more labels": (
        *altered(TRAIN_LABELS, lambda _: idx(small_labels(13))),
        "expected the 12 entries of MNIST; got 13",
    ),
    "fewer images": (*altered(TRAIN_IMAGES, lambda _: idx(small_images(11))), "the 12 entries of MNIST; got 11"),
    "no images": (*altered(TRAIN_IMAGES, lambda _: idx(small_images(0))), "the 12 entries of MNIST; got 0"),
    "other pixels": (
        *altered(TRAIN_IMAGES, lambda _: idx(np.zeros((12, 8, 8), np.uint8))),
        "images of 28×28 pixels; got 8×8",
    ),
    "truncated gzip": (*altered(TRAIN_IMAGES, lambda b: gzip.compress(b)[:-20]), "reading it failed"),
    "gzip header only": (*altered(TRAIN_IMAGES, lambda b: gzip.compress(b)[:5]), "reading it failed"),
    "gzip with a wrong checksum": (
        *altered(TRAIN_IMAGES, lambda b: gzip.compress(b)[:-8] + b"\1" * 8),
        "reading it failed",
    ),
    "gzip with broken blocks": (
        *altered(TRAIN_IMAGES, lambda b: gzip.compress(b)[:10] + b"\xff" * 400),
        "reading it failed",
    ),
    "gzip with bytes behind": (*altered(TRAIN_LABELS, lambda b: gzip.compress(b) + b"more"), "reading it failed"),
}


@pytest.mark.parametrize("damage", MNIST_DAMAGES)
def test_a_damaged_mnist_file_is_refused_by_name(small_mnist, damage):
    name, inflict, complaint = MNIST_DAMAGES[damage]
    inflict(small_mnist / name)
    with pytest.raises(DataError, match=name) as caught:
        load_mnist(small_mnist)
    assert complaint in str(caught.value)


def test_a_damaged_test_set_is_refused_as_well(small_mnist):
    (small_mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz in"):
        load_mnist(small_mnist)


def test_well_formed_files_of_other_counts_are_refused(small_mnist, monkeypatch):
    monkeypatch.undo()  # back to the counts of the real MNIST
    with pytest.raises(DataError, match="train-images-idx3-ubyte: expected the 60,000 entries of MNIST; got 12"):
        load_mnist(small_mnist)


def test_an_empty_folder_is_told_which_mnist_files_to_put_where(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*there is none.*mnist or MNIST/raw"):
        load_mnist(tmp_path)


# ---- CIFAR-10, small files ----------------------------------------------------------------------------------------


def small_records(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (4, 3, 32, 32) and labels (4,) of file ``number``."""
    images = np.random.default_rng(number).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    return images, ((np.arange(4) + number) % 10).astype(np.uint8)


@pytest.fixture
def small_cifar(tmp_path, monkeypatch) -> Path:
    """Six files of four records, written pixel plane by pixel plane."""
    monkeypatch.setattr(cifar, "CIFAR10", replace(cifar.CIFAR10, train_records=4, test_records=4))
    folder = tmp_path / "small cifar"
    folder.mkdir()
    names = [f"data_batch_{number}.bin" for number in (1, 2, 3, 4, 5)] + ["test_batch.bin"]
    for number, name in enumerate(names):
        content = b""
        for image, label in zip(*small_records(number), strict=True):
            red, green, blue = image
            content += bytes([label]) + red.tobytes() + green.tobytes() + blue.tobytes()
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin"])
def test_cifar10_round_trip_from_every_place(small_cifar, place):
    if place:
        move_to(small_cifar, place)
    data = load_cifar10(small_cifar)
    batches = [small_records(number) for number in range(6)]
    images = torch.from_numpy(np.concatenate([images for images, _ in batches])) / 255
    labels = torch.from_numpy(np.concatenate([labels for _, labels in batches])).long()
    assert data.train[0].shape == (20, 3, 32, 32)
    assert torch.equal(torch.cat([data.train[0], data.test[0]]), images)
    assert torch.equal(torch.cat([data.train[1], data.test[1]]), labels)


def test_cifar10_inputs_are_float32_and_targets_int64(small_cifar):
    data = load_cifar10(small_cifar)
    assert {data.train[0].dtype, data.test[0].dtype} == {torch.float32}
    assert {data.train[1].dtype, data.test[1].dtype} == {torch.int64}


CIFAR_DAMAGES = {
    "missing": (Path.unlink, "there is none"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "reading it failed"),
    "empty": (lambda file: file.write_bytes(b""), "expected 12,292 bytes (4 records of 3,073); got 0"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "got 12,291"),
    "one record more": (lambda file: file.write_bytes(file.read_bytes() + bytes(3073)), "got 15,365"),
    "a label 10": (lambda file: file.write_bytes(b"\n" + file.read_bytes()[1:]), "labels from 0 to 9; got 10"),
}


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
@pytest.mark.parametrize("damage", CIFAR_DAMAGES)
def test_a_damaged_cifar10_file_is_refused_by_name(small_cifar, damage, name):
    inflict, complaint = CIFAR_DAMAGES[damage]
    inflict(small_cifar / name)
    with pytest.raises(DataError, match=name) as caught:
        load_cifar10(small_cifar)
    assert complaint in str(caught.value)


def test_cifar10_files_of_another_count_are_refused(small_cifar, monkeypatch):
    monkeypatch.undo()  # back to the size of the real files
    with pytest.raises(DataError, match=r"data_batch_1.bin: expected 30,730,000 bytes .*; got 12,292"):
        load_cifar10(small_cifar)


def test_an_empty_folder_is_told_which_cifar_archives_to_unpack_where(tmp_path):
    with pytest.raises(DataError, match=r"data_batch_1.bin.*10-binary.tar.gz or cifar-10-python.tar.gz.*batches-py"):
        load_cifar10(tmp_path)
    with pytest.raises(DataError, match=r"train.bin.*100-binary.tar.gz or cifar-100-python.tar.gz.*cifar100"):
        load_cifar100(tmp_path)


# ---- CIFAR-100, small files ---------------------------------------------------------------------------------------


def small_hundred(part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, coarse and fine labels of a part: 6 records to train on, 4 to test on."""
    count = {"train": 6, "test": 4}[part]
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return images, (np.arange(count) % 3).astype(np.uint8), (99 - 7 * np.arange(count)).astype(np.uint8)


@pytest.fixture
def small_cifar100(tmp_path, monkeypatch) -> Path:
    """Two files of six and four records."""
    monkeypatch.setattr(cifar, "CIFAR100", replace(cifar.CIFAR100, train_records=6, test_records=4))
    folder = tmp_path / "small cifar100"
    folder.mkdir()
    for part in ("train", "test"):
        records = zip(*small_hundred(part), strict=True)
        content = b"".join(bytes([coarse, fine]) + image.tobytes() for image, coarse, fine in records)
        (folder / f"{part}.bin").write_bytes(content)
    return folder


def assert_small_cifar100(data: Data) -> None:
    assert (data.name, data.classes) == ("cifar100", 100)
    for part in ("train", "test"):
        (inputs, targets), (images, _, fine) = getattr(data, part), small_hundred(part)
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
        assert torch.equal(inputs, torch.from_numpy(images) / 255)
        assert targets.tolist() == fine.tolist()


@pytest.mark.parametrize("place", ["", "cifar-100-binary", "cifar100", "cifar100/cifar-100-binary"])
def test_cifar100_round_trip_with_fine_labels_from_every_place(small_cifar100, place):
    if place:
        move_to(small_cifar100, place)
    assert_small_cifar100(load("cifar100", small_cifar100))


CIFAR100_DAMAGES = {
    "missing": (Path.unlink, "there is none"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "4 records of 3,074); got 12,295"),
    "a fine label 100": (lambda file: file.write_bytes(b"\0\x64" + file.read_bytes()[2:]), "from 0 to 99; got 100"),
}


@pytest.mark.parametrize("damage", CIFAR100_DAMAGES)
def test_a_damaged_cifar100_file_is_refused_by_name(small_cifar100, damage):
    inflict, complaint = CIFAR100_DAMAGES[damage]
    inflict(small_cifar100 / "test.bin")
    with pytest.raises(DataError, match=r"test\.bin") as caught:
        load_cifar100(small_cifar100)
    assert complaint in str(caught.value)


def test_folders_called_train_and_test_do_not_hide_cifar100_below(small_cifar100):
    move_to(small_cifar100, "cifar-100-python")
    write_hundred(small_cifar100 / "cifar-100-python", python2)
    for part in ("train", "test"):
        (small_cifar100 / "cifar-100-python" / f"{part}.bin").unlink()
        (small_cifar100 / part).mkdir()
    assert_small_cifar100(load_cifar100(small_cifar100))


# ---- CIFAR in the Python version ----------------------------------------------------------------------------------


def python2(value: Any) -> bytes:
    """A pickle in protocol 2 as Python 2 and NumPy 1 wrote the originals, opcode by opcode."""
    return b"\x80\x02" + python2_part(value) + b"."


def python2_part(value: Any) -> bytes:
    if isinstance(value, bytes):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_part, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2_part(part) for item in value.items() for part in item) + b"u"
    rows, columns = value.shape
    code = {"uint8": b"u1", "int64": b"i8", "float32": b"f4"}[value.dtype.name]
    by_columns = not value.flags.c_contiguous
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"
        + python2_part(rows) + python2_part(columns) + b"\x86cnumpy\ndtype\n" + python2_part(code)
        + b"K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb" + (b"\x88" if by_columns else b"\x89")
        + python2_part(value.tobytes(order="A")) + b"tb"
    )  # fmt: skip


def python3(value: Any, numpy: str = "numpy.core", protocol: int = 2) -> bytes:
    """A pickle as Python 3 writes it, with the NumPy module path of an age."""
    content = pickle.dumps(value, protocol=protocol)
    for own in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        content = content.replace(b"c" + own + b"\n", f"c{numpy}.multiarray\n".encode())
    return content


WRITERS = {
    "Python 2": python2,
    "Python 3 with NumPy 1": python3,
    "Python 3 with NumPy 2": lambda value: python3(value, "numpy._core"),
    "protocol 3": lambda value: python3(value, protocol=3),
    "protocol 4": lambda value: pickle.dumps(value, protocol=4),
}


def batch(number: int) -> dict[bytes, Any]:
    """The dict of a file of CIFAR-10, with all keys of the originals."""
    images, labels = small_records(number)
    names = [b"image_%d.png" % image for image in range(4)]
    return {
        b"batch_label": b"training batch 1 of 5",
        b"labels": labels.tolist(),
        b"data": images.reshape(4, 3072),
        b"filenames": names,
    }


def write_ten(folder: Path, writer: Any) -> None:
    for number in range(6):
        name = "test_batch" if number == 5 else f"data_batch_{number + 1}"
        (folder / name).write_bytes(writer(batch(number)))


def write_hundred(folder: Path, writer: Any) -> None:
    for part in ("train", "test"):
        images, coarse, fine = small_hundred(part)
        content = {
            b"filenames": [b"image.png"] * len(images),
            b"batch_label": b"training batch 1 of 1",
            b"fine_labels": fine.tolist(),
            b"coarse_labels": coarse.tolist(),
            b"data": images.reshape(len(images), 3072),
        }
        (folder / part).write_bytes(writer(content))


@pytest.fixture
def python_cifar(small_cifar, tmp_path) -> Path:
    """Six small files of the Python version, in a data folder of their own."""
    folder = tmp_path / "python" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    write_ten(folder, python2)
    return folder


def test_the_files_that_these_tests_write_are_pickles_of_such_dicts():
    for writer in WRITERS.values():
        stored = pickle.loads(writer(batch(1)), encoding="bytes")  # by the real unpickler: written four lines above
        assert stored.keys() == batch(1).keys()
        assert np.array_equal(stored[b"data"], batch(1)[b"data"])
        assert stored[b"labels"] == batch(1)[b"labels"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", ["", "cifar-10-batches-py", "cifar10", "cifar10/cifar-10-batches-py"])
def test_both_versions_of_cifar10_are_the_same_bit_for_bit(small_cifar, tmp_path, place, writer):
    folder = tmp_path / "python" / place
    folder.mkdir(parents=True)
    write_ten(folder, WRITERS[writer])
    assert load_cifar10(tmp_path / "python").fingerprint == load_cifar10(small_cifar).fingerprint


@pytest.mark.parametrize("writer", WRITERS)
def test_both_versions_of_cifar100_are_the_same_bit_for_bit(small_cifar100, tmp_path, writer):
    folder = tmp_path / "python" / "cifar-100-python"
    folder.mkdir(parents=True)
    write_hundred(folder, WRITERS[writer])
    data = load_cifar100(tmp_path / "python")
    assert_small_cifar100(data)
    assert data.fingerprint == load_cifar100(small_cifar100).fingerprint


def test_an_array_stored_by_columns_is_read_as_its_maker_saw_it(python_cifar):
    before = load_cifar10(python_cifar).fingerprint
    content = batch(0)
    content[b"data"] = np.asfortranarray(content[b"data"])
    (python_cifar / "data_batch_1").write_bytes(python2(content))
    assert load_cifar10(python_cifar).fingerprint == before


def test_where_both_versions_are_the_binary_one_is_taken(small_cifar):
    write_ten(small_cifar, lambda content: b"never read")
    assert load_cifar10(small_cifar).train[0].shape == (20, 3, 32, 32)


def test_a_stray_binary_file_does_not_hide_a_complete_python_version(python_cifar):
    (python_cifar.parent / "data_batch_1.bin").write_bytes(b"stray")
    assert load_cifar10(python_cifar.parent).train[0].shape == (20, 3, 32, 32)


class Reduced:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def hostile(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would leave ``marker`` behind, change something or fill the memory, and what each wants."""
    shell = f"touch '{marker}'"
    argument = b"X" + struct.pack("<i", len(shell)) + shell.encode()
    system = f"{os.system.__module__}\nsystem\n".encode()
    wanted = f"wants to call '{os.system.__module__}.system'"
    write = f"open({str(marker)!r}, 'w').close()"
    text, latin = b"X" + struct.pack("<i", 20_000) + b"a" * 20_000 + b"q\0", b"X\6\0\0\0latin1q\1"
    bomb = b"\x80\x02" + text + latin + b"c_codecs\nencode\nq\2"
    beyond = "wants to encode more bytes than it has"
    return {
        "os.system": (python3(Reduced(os.system, shell)), wanted),
        "os.system in protocol 4": (pickle.dumps(Reduced(os.system, shell), 4), wanted),
        "os.system by INST": (b"(" + argument + b"i" + system + b".", wanted),
        "os.system by OBJ": (b"\x80\x02(c" + system + argument + b"o.", wanted),
        "os.system as an image": (python3(batch(0) | {b"data": Reduced(os.system, shell)}), wanted),
        "eval": (python3(Reduced(eval, write)), "wants to call '__builtin__.eval'"),
        "exec": (python3(Reduced(exec, write)), "wants to call '__builtin__.exec'"),
        "getattr": (python3(Reduced(getattr, "a", "upper")), "wants to call '__builtin__.getattr'"),
        "numpy.load": (python3(Reduced(np.load, str(marker))), ".load'"),
        "a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x09dtype.mro\x93.", "wants to call 'numpy.dtype.mro'"),
        "another codec": (python3(Reduced(codecs.encode, "a", "rot13")), "wants to encode as 'rot13'"),
        "decode": (python3(Reduced(codecs.decode, "a", "rot13")), "wants to call '_codecs.decode'"),
        "an attribute of a function": (b"c_codecs\nencode\n}X\1\0\0\0aK\1sb.", "wants to change a function"),
        "an attribute of a class": (b"cnumpy\nndarray\n}X\1\0\0\0aK\1sb.", "damaged or of another kind (TypeError)"),
        "a persistent id": (b"\x80\x02U\x04hereQ.", "persistent id b'here'"),
        "a persistent id in text": (b"Phere\n.", "persistent id 'here'"),
        "an enormous buffer": (
            b"\x80\x05\x96" + struct.pack("<Q", 2**26) + b".",
            "damaged or of another kind (KeyError)",
        ),
        "an enormous array": (b"cnumpy\nndarray\nJ\0\0\0\x40\x85\x85R.", "a StoredArray instead of a dict"),
        "a key of nested tuples": (b"\x80\x02}N" + b"\x85" * 35_000 + b"Ns.", "has a tuple as the key of a dict"),
        "keys of nested tuples": (b"\x80\x02}(N" + b"\x85" * 35_000 + b"Nu.", "has a tuple as the key of a dict"),
        "a set": (b"\x80\x04\x8f(N" + b"\x85" * 35_000 + b"\x90.", "damaged or of another kind (KeyError)"),
        "one text encoded 400 times": (bomb + b"h\2h\0h\1\x86R" * 400 + b".", beyond),
        "one text encoded twice": (bomb + b"h\2h\0h\1\x86R" * 2 + b".", beyond),
        "one text encoded by OBJ": (bomb + b"(h\2h\0h\1o" * 400 + b".", beyond),
        "one pair of arguments for all calls": (bomb + b"h\0h\1\x86q\3" + b"h\2h\3R" * 400 + b".", beyond),
        "what is encoded and thrown away": (bomb + b"h\2h\0h\1\x86R0" * 400 + b".", beyond),
        "one name called by two routes": (
            bomb + b"c_codecs\nencode\nh\0h\1\x86R0(h\0h\1i_codecs\nencode\n.",
            beyond,
        ),
        "a text of arguments": (bomb + b"cnumpy\nndarray\nh\0R.", "other arguments than up to 3 in a tuple"),
        "a list of arguments": (bomb + b"h\2](h\0h\1eR.", "other arguments than up to 3 in a tuple"),
        "many arguments": (bomb + b"cnumpy\nndarray\n(" + b"N" * 4 + b"tR.", "other arguments than up to 3"),
        "a text of arguments for a class": (
            bomb + b"cnumpy\nndarray\nh\0\x81.",
            "damaged or of another kind (KeyError)",
        ),
        "an enormous memo": (b"\x80\x02Nr" + struct.pack("<I", 2**23) + b".", "None instead of a dict"),
    }


@pytest.mark.parametrize("attack", hostile(Path("marker")))
def test_a_hostile_pickle_is_refused_and_nothing_executed(python_cifar, tmp_path, attack):
    marker = tmp_path / "marker"
    content, complaint = hostile(marker)[attack]
    (python_cifar / "data_batch_1").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match="data_batch_1: expected a pickled dict") as caught:
        load_cifar10(python_cifar)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert complaint in str(caught.value)
    assert not marker.exists()
    assert peak < 2**22
    assert not hasattr(pickled.StoredArray, "a")


@pytest.mark.parametrize("protocol", range(pickled.PROTOCOL + 1))
@pytest.mark.parametrize("value", [b"a" * 1000, b"\xff" * 1000, bytes(range(256)) * 4])
def test_all_bytes_that_a_file_holds_are_read(value, protocol):
    for stored in (value, [value, value, bytes(list(value)), *(bytes([number]) for number in value)]):
        content = pickle.dumps(stored, protocol)
        for _ in range(2):  # what one reading has encoded does not count for the next
            assert pickled.load(content) == stored


@pytest.mark.parametrize("attack", [name for name in hostile(Path("marker")) if "system" in name or name == "eval"])
def test_the_attacks_work_where_nobody_refuses_them(tmp_path, attack):
    marker = tmp_path / "marker"
    pickle.loads(hostile(marker)[attack][0], encoding="bytes")  # written by this test, so that the last one means much
    assert marker.exists()


def test_an_extension_that_every_unpickler_knows_is_refused(python_cifar, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    monkeypatch.setitem(copyreg._extension_cache, 240, lambda: marker.touch())
    (python_cifar / "data_batch_1").write_bytes(b"\x80\x02\x82\xf0)R.")
    with pytest.raises(DataError, match=r"data_batch_1.*wants to call the registered extension 240"):
        load_cifar10(python_cifar)
    assert not marker.exists()
    pickle.loads(b"\x80\x02\x82\xf0)R.")  # as it would have been
    assert marker.exists()


def changed(**changes: Any) -> bytes:
    """The first file with entries replaced or, where None, left out."""
    content = batch(0) | {name.encode(): value for name, value in changes.items()}
    return python2({name: value for name, value in content.items() if value is not None})


DATA = batch(0)[b"data"]
PICKLE_DAMAGES = {
    "empty": (b"", "damaged or of another kind (EOFError)"),
    "truncated": (python2(batch(0))[:-200], "damaged"),
    "without an end": (python2(batch(0))[:-1], "damaged"),
    "a web page": (b"<!DOCTYPE html>", "damaged"),
    "an unknown opcode": (b"\x80\x02\xff.", "damaged or of another kind (KeyError)"),
    "too large": (bytes(36_000), "at most 35,600 bytes; got 36,000"),
    "a list": (python2([1, 2]), "a list instead of a dict"),
    "text keys": (pickle.dumps({"data": DATA, "labels": [1, 2, 3, 4]}, 2), "None instead of an array"),
    "no images": (changed(data=None), "None instead of an array"),
    "a list of images": (changed(data=[[1, 2]]), "a list instead of an array"),
    "an array of objects": (python3(batch(0) | {b"data": DATA[:, :1].astype(object)}), "dtype 'O8' instead of bytes"),
    "other numbers": (changed(data=DATA[:, :9].astype(np.int64)), "dtype b'i8' instead of bytes"),
    "other pixels": (changed(data=DATA[:, :-1].copy()), "shape 4×3071 instead of 4×3072"),
    "fewer images": (changed(data=DATA[:3]), "shape 3×3072 instead of 4×3072"),
    "no shape": (python2(batch(0)).replace(b"K\x04J\0\x0c\0\0\x86", b"K\x04"), "of shape 4 instead of 4×3072"),
    "missing bytes": (
        python2(batch(0)).replace(python2_part(DATA.tobytes()), python2_part(DATA.tobytes()[1:])),
        "12,288 bytes, of which it gives 12,287",
    ),
    "numbers for bytes": (
        python2(batch(0)).replace(python2_part(DATA.tobytes()), b"K\x07"),
        "12,288 bytes, of which it gives 7",
    ),
    "an array without values": (
        python2(batch(0)).replace(python2_part(DATA), b"cnumpy\nndarray\nK\0\x85R"),
        "a StoredArray instead of an array",
    ),
    "no labels": (changed(labels=None), "4 labels under b'labels'; got none"),
    "fewer labels": (changed(labels=[1, 2, 3]), "4 labels under b'labels'; got 3"),
    "the number of labels": (changed(labels=4), "4 labels under b'labels'; got none"),
    "a label 10": (changed(labels=[1, 2, 10, 3]), "labels from 0 to 9; got 10"),
    "a label -1": (changed(labels=[1, 2, -1, 3]), "labels from 0 to 9; got -1"),
    "a text as label": (changed(labels=[1, b"cat", 2, 3]), "labels from 0 to 9; got b'cat'"),
    "a fraction as label": (python3(batch(0) | {b"labels": [1, 2, 3, 1.5]}), "labels from 0 to 9; got 1.5"),
    "an endless label": (python3(batch(0) | {b"labels": [1, 2, 3, 10**5000]}), "labels from 0 to 9; got a int"),
}


@pytest.mark.parametrize("damage", PICKLE_DAMAGES)
def test_a_damaged_pickle_is_refused_by_name(python_cifar, damage):
    content, complaint = PICKLE_DAMAGES[damage]
    (python_cifar / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1: expected") as caught:
        load_cifar10(python_cifar)
    assert complaint in str(caught.value)
    assert "original cifar-10-python.tar.gz" in str(caught.value)


@pytest.mark.parametrize("inflict", [Path.unlink, lambda file: (file.unlink(), file.mkdir())])
def test_a_missing_or_unreadable_pickle_is_refused_by_name(python_cifar, inflict):
    inflict(python_cifar / "data_batch_3")
    with pytest.raises(DataError, match=r"data_batch_3.*(there is none|reading it failed)"):
        load_cifar10(python_cifar.parent)


# ---- generated ones -----------------------------------------------------------------------------------------------

GENERATED = {
    "generated-images": (
        "ffa7a43b2682da9812155c525e0cdc22318912a442bd3dc26166e08cbdd41588",
        [(256, 3, 32, 32), (64, 3, 32, 32)],
        10,
    ),
    "generated-images-100": (
        "673d6d339fc9fde90961f54d1b1336933ff1d6c7a49cb7005cfb427de9668dcf",
        [(512, 3, 32, 32), (128, 3, 32, 32)],
        100,
    ),
    "generated-table": (
        "ddad2cf6e179352ade93344dbe3622ad626805727d7c1b1195530836f61edb82",
        [(3000, 60), (600, 60)],
        300,
    ),
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_sets_are_the_same_on_every_machine(name, monkeypatch):
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    data = load(name)
    assert torch.equal(torch.get_rng_state(), before)
    fingerprint, shapes, classes = GENERATED[name]
    assert [tuple(inputs.shape) for inputs, _ in (data.train, data.test)] == shapes
    assert data.name == name
    assert (
        data.classes == classes == len(data.train[1].unique()) == len(torch.cat([data.train[1], data.test[1]]).unique())
    )
    assert (data.source, data.licence) == ("generated by sharpness.data.generated", "MIT")
    assert data.fingerprint == fingerprint  # values are whole steps, so these bytes do not depend on the processor


def test_generated_images_are_pixels_and_the_table_is_centred():
    for data in (load_generated_images(), load_generated_images(100)):
        pixels = torch.cat([data.train[0], data.test[0]]) * 255
        assert torch.allclose(pixels, pixels.round(), atol=1e-4)
        assert (pixels.min(), pixels.max()) == (0, 255)
        assert ((pixels == 0) | (pixels == 255)).double().mean() < 0.02
    rows = load_generated_table().train[0]
    assert rows.mean().item() == pytest.approx(0, abs=0.05)
    assert rows.std().item() == pytest.approx((1 + 1.6**2) ** 0.5, abs=0.05)


def test_generated_images_come_in_10_or_100_classes():
    with pytest.raises(DataError, match="10 or 100; got 7"):
        load_generated_images(7)


def linear_accuracy(data: Data) -> tuple[float, float]:
    """Of a ridge regression onto one-hot targets, on the training and on the test set."""
    (inputs, targets), (others, expected) = ((x.flatten(1).double(), y) for x, y in (data.train, data.test))
    mean = inputs.mean(0)
    inputs, others = inputs - mean, others - mean
    kernel = inputs @ inputs.T
    ridge = 0.01 * kernel.trace() / len(kernel) * torch.eye(len(kernel))
    weights = torch.linalg.solve(kernel + ridge, torch.nn.functional.one_hot(targets, data.classes).double())
    predicted = [(x @ inputs.T @ weights).argmax(1) for x in (inputs, others)]
    return tuple((p == y).double().mean().item() for p, y in zip(predicted, (targets, expected), strict=True))


@pytest.mark.parametrize("name", GENERATED)
def test_generated_sets_can_be_learned_but_not_by_a_line_alone(name):
    data = load(name)
    _, test = linear_accuracy(data)
    assert 5 / data.classes < test < 0.97


# ---- the real ones ------------------------------------------------------------------------------------------------


def test_real_mnist_is_what_its_makers_describe(mnist_folder):
    data = load_mnist(mnist_folder)
    assert (data.train[0].shape, data.test[0].shape) == ((60_000, 784), (10_000, 784))
    assert data.train[1][:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test[1][:5].tolist() == [7, 2, 1, 0, 4]
    assert data.train[1].bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (data.train[0].min(), data.train[0].max()) == (0, 1)
    # the mean and standard deviation that everybody normalises with, known to four digits
    assert data.train[0].mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert data.train[0].std().item() == pytest.approx(0.3081, abs=5e-5)


def test_real_cifar10_is_what_its_makers_describe(cifar10_folder):
    data = load_cifar10(cifar10_folder)
    assert (data.train[0].shape, data.test[0].shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert data.train[1][:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    assert data.test[1][:5].tolist() == [3, 8, 8, 0, 6]  # cat, ship, ship, airplane, frog
    assert data.train[1].bincount().tolist() == [5000] * 10
    assert data.test[1].bincount().tolist() == [1000] * 10
    assert (data.train[0].min(), data.train[0].max()) == (0, 1)
    # the channel means that everybody normalises with, known to four digits; red, green, blue in this order
    assert data.train[0].mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


def test_real_cifar100_is_what_its_makers_describe(cifar100_folder):
    data = load_cifar100(cifar100_folder)
    assert (data.train[0].shape, data.test[0].shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert data.train[1][:5].tolist() == [19, 29, 0, 11, 1]  # cattle, dinosaur, apple, boy, aquarium fish
    assert data.train[1].bincount().tolist() == [500] * 100
    assert data.test[1].bincount().tolist() == [100] * 100
    for channel, (mean, deviation) in enumerate(
        [(0.50707516, 0.26733429), (0.48654887, 0.25643846), (0.44091784, 0.27615047)]
    ):
        values = data.train[0][:, channel].double()
        assert values.mean().item() == pytest.approx(mean, abs=2e-8)
        assert values.std().item() == pytest.approx(deviation, abs=2e-8)
