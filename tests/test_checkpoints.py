"""Weights on disk: what is saved comes back bit for bit, what does not fit is named, and no code in a file is run."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from sharpness import CheckpointError, Minimizer, Objective, cross_entropy, load_checkpoint, load_minimizer
from sharpness.checkpoints import is_minimizer, load_state
from sharpness.data import load_mnist
from sharpness.files import write_atomically
from sharpness.random import normal


def filled(module: nn.Module, key: str = "") -> nn.Module:
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.copy_(5 * normal(*tensor.shape, key=(name, key), seed=0).to(tensor.dtype))
    return module


def network(key: str = "") -> nn.Module:
    return filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)), key)


class Tied(nn.Module):
    def __init__(self, key: str = "") -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        filled(self, key)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """The same names in the same order, dtypes, shapes and bytes."""
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].detach().numpy().tobytes() == b[name].detach().numpy().tobytes()
        for name in a
    )


# ---- minimizers ---------------------------------------------------------------------------------------------------

METADATA = {
    "recipe": "digits",
    "seed": 3,
    "regime": "small",
    "plan": {"epochs": 20, "sizes": [1, 2]},
    "lr": 0.1,
    "ok": None,
}


@pytest.mark.parametrize("module", [network(), network().double(), Tied()], ids=["float32", "float64", "tied"])
def test_a_minimizer_comes_back_bit_for_bit_with_its_metadata(module, tmp_path):
    minimizer = Minimizer.of(module, METADATA)
    path = minimizer.save(tmp_path / "deep" / "minimizer.safetensors")
    again = load_minimizer(path)
    assert same_bits(again.parameters, minimizer.parameters)
    assert same_bits(again.buffers, dict(sorted(minimizer.buffers.items())))
    assert again.metadata == METADATA
    assert again.point.sha256 == minimizer.point.sha256
    assert is_minimizer(path)


def test_loaded_tensors_are_aligned_and_own_their_memory(tmp_path):
    # tensors within a mapped file begin anywhere: the last bits of products could differ from those before saving
    path = Minimizer.of(network()).save(tmp_path / "m.safetensors")
    minimizer = load_minimizer(path)
    before = minimizer.point.sha256
    tensors = [*minimizer.parameters.values(), *minimizer.buffers.values()]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)  # as PyTorch's allocator begins
    path.write_bytes(bytes(path.stat().st_size))
    assert minimizer.point.sha256 == before


def test_numbers_that_are_not_finite_come_back_too(tmp_path):
    values = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    path = Minimizer({"w": values}, {}).save(tmp_path / "m.safetensors")
    assert load_minimizer(path).parameters["w"].numpy().tobytes() == values.numpy().tobytes()


def test_the_parameters_keep_the_order_of_the_module_not_of_the_alphabet(tmp_path):
    module = nn.Sequential(OrderedDict(z=nn.Linear(2, 2), a=nn.Linear(2, 2), m=nn.Linear(2, 2)))
    names = ["z.weight", "z.bias", "a.weight", "a.bias", "m.weight", "m.bias"]
    again = load_minimizer(Minimizer.of(module).save(tmp_path / "m.safetensors"))
    assert list(again.parameters) == names
    assert torch.equal(again.point.theta, torch.cat([p.detach().flatten() for p in module.parameters()]))


def test_a_minimizer_saved_twice_is_the_same_file(tmp_path):
    backwards = dict(reversed(METADATA.items()))
    first = Minimizer.of(network(), METADATA).save(tmp_path / "a").read_bytes()
    assert Minimizer.of(network(), backwards).save(tmp_path / "b").read_bytes() == first


def test_a_minimizer_is_a_copy_that_does_not_follow_its_module():
    module = network()
    minimizer = Minimizer.of(module)
    before = minimizer.point.sha256
    filled(module, "later")
    assert minimizer.point.sha256 == before


def test_a_tied_weight_is_kept_once_and_loaded_under_both_names(tmp_path):
    minimizer = load_minimizer(Minimizer.of(Tied()).save(tmp_path / "m.safetensors"))
    assert list(minimizer.parameters) == ["encoder.weight", "decoder.bias"]
    module = Tied(key="other")
    minimizer.load_into(module)
    assert same_bits(module.state_dict(), Tied().state_dict())
    assert module.decoder.weight is module.encoder.weight


def test_frozen_parameters_are_kept_beside_theta_and_come_back():
    module = network()
    module[0].requires_grad_(False)
    minimizer = Minimizer.of(module)
    assert list(minimizer.parameters) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    other = network("other")
    minimizer.load_into(other)
    assert same_bits(other.state_dict(), module.state_dict())


def test_buffers_that_are_no_part_of_the_state_are_left_out():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("mask", torch.ones(2), persistent=False)

    minimizer = Minimizer.of(Masked())
    assert not minimizer.buffers
    module = Masked()
    minimizer.load_into(module)
    assert torch.equal(module.layer.weight, minimizer.parameters["layer.weight"])


def test_parameters_that_are_views_of_one_theta_or_strided_are_saved_by_value(tmp_path):
    theta, matrix = torch.arange(10.0), torch.arange(6.0).view(2, 3)
    minimizer = Minimizer({"a": theta[:4], "b": theta[4:].view(2, 3), "c": matrix.T}, {})
    again = load_minimizer(minimizer.save(tmp_path / "m.safetensors"))
    assert all(torch.equal(again.parameters[name], value) for name, value in minimizer.parameters.items())


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["parallel", "compiled"]
)
def test_the_minimizer_of_a_wrapped_model_is_that_of_the_model(wrap):
    wrapped, plain = Minimizer.of(wrap(network())), Minimizer.of(network())
    assert same_bits(wrapped.parameters, plain.parameters)
    assert same_bits(wrapped.buffers, plain.buffers)
    module = network("other")
    plain.load_into(wrap(module))
    assert same_bits(module.state_dict(), network().state_dict())


def test_a_file_of_weights_alone_is_no_minimizer(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(network().state_dict(), path)
    assert not is_minimizer(path)
    assert not is_minimizer(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="--problem"):
        load_minimizer(path)


@pytest.mark.parametrize(
    "header",
    [
        {"format": "sharpness-minimizer-2", "parameters": ["w"], "metadata": {}},
        {"format": "sharpness-minimizer-1", "parameters": ["w", "v"], "metadata": {}},
        {"format": "sharpness-minimizer-1", "parameters": None, "metadata": {}},
        {"format": "sharpness-minimizer-1", "parameters": ["w"]},
        {"format": "sharpness-minimizer-1"},
        ["format"],
        "format",
    ],
)
def test_a_header_that_does_not_fit_is_refused(header, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.zeros(2)}, path, {"sharpness": json.dumps(header)})
    with pytest.raises(CheckpointError):
        load_minimizer(path)


def test_a_header_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.zeros(2)}, path, {"sharpness": "{"})
    for read in (load_minimizer, load_checkpoint, is_minimizer):
        with pytest.raises(CheckpointError, match="damaged"):
            read(path)


# ---- state dicts from elsewhere -----------------------------------------------------------------------------------


def write(state: Any, path: Path) -> Path:
    """A checkpoint as others write it, by the kind that its name says."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization="legacy" not in path.name)
    return path


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.th", "w.ckpt", "w.bin", "legacy.pth", "w.safetensors"])
def test_every_kind_of_file_gives_the_state_dict_bit_for_bit(name, tmp_path):
    state = dict(network().state_dict())
    loaded = load_checkpoint(str(write(state, tmp_path / name)))
    assert same_bits({n: loaded[n] for n in state}, state)
    assert len(loaded) == len(state)


def test_a_minimizer_is_a_state_dict_too(tmp_path):
    path = Minimizer.of(network()).save(tmp_path / "m.safetensors")
    module = network("other")
    load_state(module, load_checkpoint(path), path)
    assert same_bits(module.state_dict(), network().state_dict())


WRAPPINGS = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best_prec1": 91.7},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "step": torch.tensor(7)},
    "state_dict in model": lambda state: {"state_dict": {"model": state}},
}
PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappings_and_prefixes_are_taken_off(wrapping, prefix, tmp_path):
    state = network().state_dict()
    path = write(WRAPPINGS[wrapping]({prefix + name: t for name, t in state.items()}), tmp_path / "w.pth")
    assert same_bits(load_checkpoint(path), dict(state))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off_safetensors_too(prefix, tmp_path):
    state = network().state_dict()
    path = write({prefix + name: t for name, t in state.items()}, tmp_path / "w.safetensors")
    assert set(load_checkpoint(path)) == set(state)


def test_a_prefix_that_only_some_names_have_is_part_of_them(tmp_path):
    state = {"module.weight": torch.ones(2), "head.weight": torch.ones(2)}
    assert set(load_checkpoint(write(state, tmp_path / "w.pth"))) == set(state)


def test_a_saved_parameter_comes_as_a_plain_tensor(tmp_path):
    loaded = load_checkpoint(write({"weight": nn.Parameter(torch.ones(2))}, tmp_path / "w.pth"))
    assert not loaded["weight"].requires_grad
    assert type(loaded["weight"]) is torch.Tensor


@pytest.mark.parametrize("content", [{}, [torch.ones(2)], torch.ones(2), {"epoch": 3}, {"state_dict": {}}, 5])
def test_a_file_without_named_tensors_is_refused(content, tmp_path):
    with pytest.raises(CheckpointError, match="expected named tensors"):
        load_checkpoint(write(content, tmp_path / "w.pth"))


# ---- fitting the model --------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_names_are_listed_together_and_nothing_is_loaded():
    module = network("other")
    before = {name: t.clone() for name, t in module.state_dict().items()}
    state = network().state_dict()
    del state["3.bias"]
    state["4.bias"] = torch.zeros(2)
    state["0.weight"] = torch.zeros(4, 5)
    with pytest.raises(CheckpointError) as caught:
        load_state(module, state, "weights.pth")
    message = str(caught.value)
    assert "expected weights.pth to fit the model" in message
    assert "missing: 3.bias" in message
    assert "unexpected: 4.bias" in message
    assert "0.weight: model (4, 3), file (4, 5)" in message
    assert same_bits(module.state_dict(), before)


def test_of_many_names_the_first_and_the_count_are_given():
    with pytest.raises(CheckpointError, match=r"missing: 0\.weight, .*, … \(8 in all\)"):
        load_state(network(), {"other": torch.zeros(1)}, "weights.pth")


@pytest.mark.parametrize("name", ["encoder.weight", "decoder.weight"])
def test_a_tied_weight_may_come_under_either_name(name):
    state = {n: t for n, t in Tied().state_dict().items() if n in (name, "decoder.bias")}
    module = Tied(key="other")
    load_state(module, state, "weights.pth")
    assert same_bits(module.state_dict(), Tied().state_dict())


def test_counters_of_batches_may_be_missing_as_in_old_files():
    module, state = network("other"), network().state_dict()
    del state["1.num_batches_tracked"]
    load_state(module, state, "weights.pth")
    assert torch.equal(module[1].running_mean, network()[1].running_mean)


def test_a_parameter_that_is_a_single_number_may_not_be_missing():
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.temperature = nn.Linear(2, 2), nn.Parameter(torch.tensor(1.0))

    state = Tempered().state_dict()
    del state["temperature"]
    with pytest.raises(CheckpointError, match="missing: temperature"):
        load_state(Tempered(), state, "weights.pth")


# ---- damaged files ------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[CheckpointError], path: Path) -> bool:
    """Whether a message names the file and has no second line, as an advice of PyTorch's would."""
    return (
        str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(path))
    )


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


# ---- files that hold code -----------------------------------------------------------------------------------------


class Malicious:
    """Unpickled, it would create the file that it names."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return builtins.open, (str(self.victim), "w")


def pickled(make: Any, tmp_path: Path, kind: str) -> Path:
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind.startswith("protocol"):
        path.write_bytes(pickle.dumps(make, protocol=int(kind[-1])))
    elif kind == "safetensors":
        path.write_bytes(pickle.dumps(make))
    else:
        torch.save(make, path, _use_new_zipfile_serialization=kind == "zip")
    return path


KINDS = ["zip", "legacy", *(f"protocol {number}" for number in range(pickle.HIGHEST_PROTOCOL + 1)), "safetensors"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["alone", "among weights", "as a wrapping"])
def test_a_malicious_pickle_is_refused_and_not_executed(kind, place, tmp_path):
    victim = tmp_path / "victim"
    evil = Malicious(victim)
    content = {
        "alone": evil,
        "among weights": {"weight": torch.ones(2), "evil": evil},
        "as a wrapping": {"state_dict": evil},
    }
    path = pickled(content[place], tmp_path, kind)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert one_line(caught, path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(evil)).close()  # it would have worked
    assert victim.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "protocol 2", "protocol 5"])
def test_a_file_that_holds_code_is_called_so_with_a_way_out(kind, tmp_path):
    with pytest.raises(CheckpointError, match=r"would execute code.*module\.state_dict\(\)"):
        load_checkpoint(pickled(Malicious(tmp_path / "victim"), tmp_path, kind))


def test_a_pickled_module_is_refused_even_of_pytorchs_own_classes(tmp_path):
    with pytest.raises(CheckpointError, match="would execute code"):
        load_checkpoint(write(nn.Linear(2, 2), tmp_path / "w.pth"))


def test_the_environment_cannot_turn_the_refusal_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="would execute code"):
        load_checkpoint(write({"evil": Malicious(tmp_path / "victim")}, tmp_path / "w.pth"))
    assert not (tmp_path / "victim").exists()


# ---- real files ---------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, name: str) -> Path:
    path = folder / "checkpoints" / name
    if not path.exists():
        pytest.skip(f"no checkpoint {path}")
    return path


class Block(nn.Module):
    """A residual block of ResNet-20 for CIFAR-10 with padded shortcuts."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)


def resnet20() -> nn.Module:
    def group(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(2)))

    stem = OrderedDict(conv1=nn.Conv2d(3, 16, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(16))
    groups = OrderedDict(layer1=group(16, 16, 1), layer2=group(16, 32, 2), layer3=group(32, 64, 2))
    return nn.Sequential(OrderedDict(**stem, **groups, linear=nn.Linear(64, 10)))


def test_the_resnet20_of_a_parallel_run_loads_into_a_plain_one(real_data):
    path = checkpoint(real_data, "resnet20-12fca82f.th")
    raw = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert all(name.startswith("module.") for name in raw)
    state = load_checkpoint(path)
    assert same_bits(state, {name.removeprefix("module."): t.detach() for name, t in raw.items()})
    module = resnet20()
    load_state(module, state, path)  # a file without counters of batches
    assert sum(p.numel() for p in module.parameters()) == 269_722
    assert torch.equal(module.layer3[2].bn2.running_var, state["layer3.2.bn2.running_var"])


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x.view(-1, 1, 28, 28)), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2)).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


def test_the_lenet_saved_on_a_gpu_loads_on_the_cpu_and_has_its_accuracy(real_data, mnist_folder):
    path = checkpoint(real_data, "lenet_mnist_saved_on_cuda.pth")
    state = load_checkpoint(path)
    assert {t.device.type for t in state.values()} == {"cpu"}
    module = LeNet()
    load_state(module, state, path)
    objective, theta = Objective.from_module(module, cross_entropy, load_mnist(mnist_folder).test)
    assert objective.evaluate(theta).accuracy == pytest.approx(0.9761, abs=1e-9)  # as was measured elsewhere


def test_the_lenet_of_another_architecture_is_refused_by_the_resnet(real_data):
    path = checkpoint(real_data, "lenet_mnist_saved_on_cuda.pth")
    with pytest.raises(CheckpointError, match=r"missing: .*unexpected: .*shapes differ: conv1\.weight"):
        load_state(resnet20(), load_checkpoint(path), path)


def test_the_pickled_lenet_is_refused(real_data):
    path = checkpoint(real_data, "lenet_mnist_pickled_module.pth")
    with pytest.raises(CheckpointError, match="would execute code") as caught:
        load_checkpoint(path)
    assert one_line(caught, path)


# ---- writing ------------------------------------------------------------------------------------------------------


def test_writing_replaces_the_content_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file"
    for content in (b"old", b"new", b""):
        assert write_atomically(path, content) == path
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_writing_that_fails_leaves_what_was_there_and_no_temporary_file(existing, failure, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    old = Minimizer.of(network())
    if existing:
        old.save(path)

    def fail(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(failure)):
        Minimizer.of(network("new")).save(path)
    assert [p.name for p in tmp_path.iterdir()] == (["m.safetensors"] if existing else [])
    if existing:
        assert load_minimizer(path).point.sha256 == old.point.sha256


def test_metadata_that_is_no_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError):
        Minimizer.of(network(), {"when": io.BytesIO()}).save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
