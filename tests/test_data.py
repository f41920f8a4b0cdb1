"""Data sets: known facts of the real ones, round trips through small files, and a refusal for every damage."""

from __future__ import annotations

import gzip
import struct
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

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
    load_digits,
    load_mnist,
    mnist,
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
    with pytest.raises(DataError, match=r"digits, mnist or cifar10; got 'letters'"):
        load("letters")
    assert list(DATASETS) == ["digits", "mnist", "cifar10"]


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
    with pytest.raises(DataError, match="argument or name it in the environment variable SHARPNESS_DATA"):
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
    monkeypatch.setattr(cifar, "RECORDS", 4)
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


def test_the_pickled_version_of_cifar10_is_named_and_not_read(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz there \(the Python version is pickled and not read\)"):
        load_cifar10(tmp_path)


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
