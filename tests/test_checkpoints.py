"""Minimizers on disk: what is saved comes back bit for bit, complete or not at all."""

from __future__ import annotations

import errno
import io
import json
import os
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weights import Tied, filled, network, same_bits

from sharpness import CheckpointError, Minimizer, load_checkpoint, load_minimizer
from sharpness.checkpoints import is_minimizer, load_state
from sharpness.files import write_atomically

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


def test_a_minimizer_is_a_state_dict_too(tmp_path):
    path = Minimizer.of(network()).save(tmp_path / "m.safetensors")
    module = network("other")
    load_state(module, load_checkpoint(path), path)
    assert same_bits(module.state_dict(), network().state_dict())


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
