"""Weights in several files: HuggingFace folders, shards and their index; what is missing is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformer_families import transformers
from weights import network, same, same_bits, write

from sharpness import CheckpointError, load_checkpoint
from sharpness.checkpoints import Fitted, load_state

KINDS = ["model.safetensors", "pytorch_model.bin"]


def sharded(folder: Path, kind: str) -> dict[str, str]:
    """The network's tensors, each in one of two files; returns which is where, as the index has it."""
    state, (stem, suffix) = network().state_dict(), kind.split(".")
    shards = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    where = {name: shards[i % 2] for i, name in enumerate(state)}
    for shard in shards:
        write({name: state[name] for name in state if where[name] == shard}, folder / shard)
    index(folder, kind, where)
    return where


def index(folder: Path, kind: str, where: Any) -> None:
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {"total_size": 100}, "weight_map": where}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [True, False], ids=["one file", "shards"])
def test_a_folder_of_huggingface_gives_its_weights(kind, whole, tmp_path):
    if whole:
        write(network().state_dict(), tmp_path / kind)
    else:
        sharded(tmp_path, kind)
        assert same(tmp_path / f"{kind}.index.json", network().state_dict())
    (tmp_path / "config.json").write_text("{}")
    assert same(tmp_path, network().state_dict())


def test_of_several_files_the_one_comes_that_huggingface_would_load(tmp_path):
    write(network("other").state_dict(), tmp_path / "pytorch_model.bin")
    sharded(tmp_path, "model.safetensors")
    assert same(tmp_path, network().state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_missing_shards_are_named(kind, tmp_path):
    shards = sorted(set(sharded(tmp_path, kind).values()))
    (tmp_path / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"expected all 2 shards .* 1 are not there: {shards[1]}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_a_shard_lacks_are_named(kind, tmp_path):
    where = sharded(tmp_path, kind)
    index(tmp_path, kind, {**where, "4.weight": where["0.weight"]})
    with pytest.raises(CheckpointError, match=rf"{where['0.weight']} what .* says is there; it lacks 4\.weight"):
        load_checkpoint(tmp_path)


def test_a_tensor_that_the_index_does_not_name_is_loaded_too_and_may_then_not_fit(tmp_path):
    where = sharded(tmp_path, "model.safetensors")
    index(tmp_path, "model.safetensors", {name: place for name, place in where.items() if name != "3.bias"})
    assert same(tmp_path, network().state_dict())


@pytest.mark.parametrize(
    "outside", ["../secret.safetensors", "a/../../b", "/etc/passwd", "..", "", "C:\\w", "a\\b", "a\0"]
)
def test_an_index_that_points_elsewhere_is_refused(outside, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    index(folder, "model.safetensors", {"w": outside})
    with pytest.raises(CheckpointError, match=r"expected an index of files beside it .* refused") as caught:
        load_checkpoint(folder)
    assert repr(outside) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": {"w": 3}}',
        b'{"weight_map": 3}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_damaged_index_is_called_so(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"expected an index .* it is damaged"):
        load_checkpoint(tmp_path)


def test_a_damaged_shard_is_called_so(tmp_path):
    where = sharded(tmp_path, "model.safetensors")
    (tmp_path / where["0.weight"]).write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=f"{where['0.weight']}; it is damaged"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], "there is a folder that is empty"),
        (
            ["notes.txt", "w.pt"],
            r"HuggingFace folder with model\.safetensors.*there is a folder with notes\.txt, w\.pt",
        ),
        (["__0_0.distcp", ".metadata"], "torch.distributed.checkpoint.*dcp_to_torch"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapters alone.*peft"),
    ],
)
def test_a_folder_without_weights_says_what_it_has(files, told, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(tmp_path)


def tiny_gpt2(classname: str = "GPT2LMHeadModel") -> nn.Module:
    config = transformers().GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=3, n_head=2, bos_token_id=1, eos_token_id=2
    )
    return getattr(transformers(), classname)(config)


@pytest.mark.parametrize("size", ["5KB", "1GB"])
def test_what_save_pretrained_writes_loads_with_its_tied_weight(size, tmp_path):
    saved, model = tiny_gpt2(), tiny_gpt2()
    saved.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "5KB")
    state = load_checkpoint(tmp_path)
    assert "lm_head.weight" not in state  # it is that of the embedding
    assert load_state(model, state, tmp_path) == Fitted()
    assert same_bits(dict(model.state_dict()), dict(saved.state_dict()))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_the_base_model_of_a_language_model_loads_into_it_and_back(tmp_path):
    base, model = tiny_gpt2("GPT2Model"), tiny_gpt2()
    base.save_pretrained(tmp_path / "base")
    assert load_state(model, load_checkpoint(tmp_path / "base"), "base") == Fitted(added="transformer.")
    assert same_bits(dict(model.transformer.state_dict()), dict(base.state_dict()))
    model.save_pretrained(tmp_path / "whole")
    again = tiny_gpt2("GPT2Model")
    assert load_state(again, load_checkpoint(tmp_path / "whole"), "whole") == Fitted(removed="transformer.")
    assert same_bits(dict(again.state_dict()), dict(base.state_dict()))


def test_masks_that_old_files_of_gpt2_hold_do_not_matter_while_they_are_masks(tmp_path):
    saved, model = tiny_gpt2(), tiny_gpt2()
    mask = torch.ones(8, 8, dtype=torch.uint8).tril().view(1, 1, 8, 8)
    masks = {f"transformer.h.{i}.attn.bias": mask.clone() for i in range(3)}
    lowest = {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    state = {**saved.state_dict(), **masks, **lowest}
    assert load_state(model, state, "pytorch_model.bin") == Fitted()
    assert same_bits(dict(model.state_dict()), dict(saved.state_dict()))
    state["transformer.h.1.attn.bias"] = torch.ones_like(mask)
    with pytest.raises(CheckpointError, match=r"unexpected: transformer\.h\.1\.attn\.bias\n"):
        load_state(model, state, "pytorch_model.bin")
