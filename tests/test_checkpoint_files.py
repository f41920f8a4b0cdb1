"""Every kind of file gives the same tensors, real ones do what was measured elsewhere, damaged ones are refused."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from problems import lenet, resnet20
from torch import nn
from weights import network, one_line, same, same_bits, write

from sharpness import CheckpointError, Objective, cross_entropy, load_checkpoint, load_minimizer
from sharpness.checkpoints import Fitted, load_state, training_step
from sharpness.data import load_cifar10, load_mnist

# ---- kinds ----------------------------------------------------------------------------------------------------------

FILES = ["w.pt", "w.pth", "w.th", "w.ckpt", "w.bin", "w.pth.tar", "w", "legacy.pth", "w.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_state_dict_bit_for_bit(name, tmp_path):
    state = dict(network().state_dict())
    assert same(write(state, tmp_path / name), state)


@pytest.mark.parametrize("name", ["w.pth", "legacy.pth", "w.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool])
def test_numbers_of_every_kind_come_back(name, dtype, tmp_path):
    state = {"w": torch.tensor([[0, 1], [1, 0], [3, 4]]).to(dtype), "scalar": torch.tensor(1).to(dtype)}
    loaded = load_checkpoint(write(state, tmp_path / name))
    assert {name: t.dtype for name, t in loaded.items()} == {"w": dtype, "scalar": dtype}
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("device", [b"cuda:1", b"mps:0"])
@pytest.mark.parametrize("name", ["w.pth", "legacy.pth"])
def test_weights_saved_on_another_device_come_on_the_cpu(device, name, tmp_path):
    state = dict(network().state_dict())
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=name != "legacy.pth")
    here, there = (b"X" + len(d).to_bytes(4, "little") + d for d in (b"cpu", device))
    content = file.getvalue()
    if name == "legacy.pth":
        changed = content.replace(here, there)
    else:
        changed = repacked(content, lambda pickled: pickled.replace(here, there))
    assert changed != content
    (tmp_path / name).write_bytes(changed)
    assert same(tmp_path / name, state)
    assert {t.device.type for t in load_checkpoint(tmp_path / name).values()} == {"cpu"}


def repacked(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A zip archive of torch.save's with its pickle changed."""
    reader, changed = torch._C.PyTorchFileReader(io.BytesIO(content)), io.BytesIO()
    writer = torch._C.PyTorchFileWriter(changed)
    for record in reader.get_all_records():
        held = reader.get_record(record)
        if record == "data.pkl":
            held = change(held)
        if record not in ("version", ".data/serialization_id"):  # which the writer adds itself
            writer.write_record(record, held, len(held))
    writer.write_end_of_file()
    return changed.getvalue()


def test_a_torchscript_archive_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "w.pt"
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(CheckpointError, match=r"TorchScript archive.*torch\.jit\.load\(path\)\.state_dict\(\)"):
        load_checkpoint(path)


def test_a_newer_pickle_protocol_in_a_zip_archive_is_refused_with_what_to_do(tmp_path):
    torch.save(network().state_dict(), tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r"expected pickle protocol 2.*module\.state_dict\(\)"):
        load_checkpoint(tmp_path / "w.pt")


def test_an_archive_of_files_is_called_so(tmp_path):
    with tarfile.open(tmp_path / "w.pth.tar", "w") as archive:
        archive.add(write(network().state_dict(), tmp_path / "w.pth"), "w.pth")
    with pytest.raises(CheckpointError, match=r"it is a tar archive\. Unpack it"):
        load_checkpoint(tmp_path / "w.pth.tar")


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"garbage", b"PK\x03\x04", b"\x80\x02", b"{}", b"<html>Not found</html>\n" * 50, bytes(1000)],
)
def test_garbage_is_called_damaged_in_one_line(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_checkpoint(path)
    assert one_line(caught, path)
    with pytest.raises(CheckpointError, match="damaged"):
        training_step(path)


@pytest.mark.parametrize("name", ["w.pth", "legacy.pth", "w.safetensors"])
def test_a_file_that_was_cut_short_anywhere_is_refused(name, tmp_path):
    whole = write(network().state_dict(), tmp_path / name).read_bytes()
    path = tmp_path / f"cut-{name}"
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert one_line(caught, path)


@pytest.mark.parametrize("name", ["w.pth", "legacy.pth", "w.safetensors"])
def test_a_file_with_changed_bytes_is_loaded_or_refused_and_nothing_else(name, tmp_path):
    whole = write(network().state_dict(), tmp_path / name).read_bytes()
    path, drawn, outcomes = tmp_path / f"changed-{name}", random.Random(0), set()
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(3):
            content[drawn.randrange(len(content))] = drawn.randrange(256)
        path.write_bytes(content)
        try:
            outcomes.add(all(isinstance(t, torch.Tensor) for t in load_checkpoint(path).values()))
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("read", [load_checkpoint, load_minimizer])
def test_a_file_that_is_not_there_is_called_so_and_a_folder_too(read, name, tmp_path):
    with pytest.raises(CheckpointError, match="there is none"):
        read(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match="there is a folder"):
        read(tmp_path / name)


# ---- real files -----------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, name: str) -> Path:
    path = folder / "checkpoints" / name
    if not path.exists():
        pytest.skip(f"no checkpoint {path}")
    return path


def test_the_resnet20_of_a_parallel_run_has_its_loss_and_accuracy(real_data, cifar10_folder):
    path = checkpoint(real_data, "resnet20-12fca82f.th")
    raw = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert all(name.startswith("module.") for name in raw)
    state, model = load_checkpoint(path), resnet20.ResNet20()
    assert same_bits(state, {name.removeprefix("module."): t.detach() for name, t in raw.items()})
    assert load_state(model, state, path) == Fitted()  # a file without counters of batches
    assert sum(p.numel() for p in model.parameters()) == 269_722
    images, labels = load_cifar10(cifar10_folder).test
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (resnet20.MEAN, resnet20.DEVIATION))
    objective, theta = Objective.from_module(model, cross_entropy, ((images - mean) / deviation, labels))
    score = objective.evaluate(theta)
    assert (f"{score.loss:.4f}", f"{score.accuracy:.2%}") == ("0.3733", "91.73%")  # as was measured elsewhere


def test_the_lenet_saved_on_a_gpu_loads_on_the_cpu_and_has_its_accuracy(real_data, mnist_folder):
    path = checkpoint(real_data, "lenet_mnist_saved_on_cuda.pth")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, weights_only=True) if not torch.cuda.is_available() else pytest.skip("there is a GPU")
    state, model = load_checkpoint(path), lenet.LeNet()
    assert {t.device.type for t in state.values()} == {"cpu"}
    assert load_state(model, state, path) == Fitted()
    images, labels = load_mnist(mnist_folder).test
    objective, theta = Objective.from_module(model, cross_entropy, (images.view(-1, 1, 28, 28), labels))
    assert f"{objective.evaluate(theta).accuracy:.2%}" == "97.61%"  # as was measured elsewhere


def test_the_lenet_is_refused_by_the_resnet_and_names_are_shown_by_block(real_data):
    path = checkpoint(real_data, "lenet_mnist_saved_on_cuda.pth")
    with pytest.raises(CheckpointError) as caught:
        load_state(resnet20.ResNet20(), load_checkpoint(path), path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"expected {path} to fit the model, ResNet20; 0 of its 97 tensors do."
    assert "    layer2.0–2: conv1.weight, bn1.weight, bn1.bias, … (10 each)" in lines
    assert "    fc2: weight, bias" in lines
    assert "  shapes differ: conv1.weight: model (16, 3, 3, 3), file (10, 1, 5, 5)" in lines
    assert lines[-1] == "It looks like another model: no tensor of the file has a place in this one."


def test_the_pickled_lenet_is_refused(real_data):
    path = checkpoint(real_data, "lenet_mnist_pickled_module.pth")
    with pytest.raises(CheckpointError, match=r"would execute code stored in the file \(__main__\.LeNet") as caught:
        load_checkpoint(path)
    assert one_line(caught, path)
