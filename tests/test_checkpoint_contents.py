"""What is wrapped around weights: the plain ones are found, EMA ones when asked for, and the step beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from weights import network, same_bits, write

from sharpness import CheckpointError, Minimizer, load_checkpoint
from sharpness.checkpoints import load_state, read_checkpoint, reading, training_step
from sharpness.checkpoints.contents import weights_in


def plain() -> dict[str, torch.Tensor]:
    return dict(network().state_dict())


def average() -> dict[str, torch.Tensor]:
    return dict(network("average").state_dict())


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def trained() -> tuple[torch.optim.Optimizer, Any]:
    """An optimizer with moments, and its scheduler."""
    module = network()
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)


def lightning(state: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    """What Lightning's Trainer writes, by its keys and kinds."""
    optimizer, scheduler = trained()
    score = {"best_model_score": torch.tensor(0.25), "best_k_models": {"a.ckpt": torch.tensor(0.25)}}
    return {
        "epoch": 4,
        "global_step": 1200,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 5}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": score},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 4, "lr": 0.1},
        **more,
    }


# ---- wrappings ------------------------------------------------------------------------------------------------------

WRAPPINGS = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best_prec1": 91.7},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "step": torch.tensor(7)},
    "net": lambda state: {"net": state, "acc": 93.1, "epoch": 12},
    "params": lambda state: {"params": state},
    "state_dict in model": lambda state: {"state_dict": {"model": state}},
    "a name of one's own": lambda state: {"generator": state, "epoch": 3},
    "optimizers": lambda state: {
        "model": state,
        "optimizer": trained()[0].state_dict(),
        "optim_by_name": {"state": {"0.weight": {"exp_avg": torch.ones(4, 3)}}},
        "lr_scheduler": trained()[1].state_dict(),
        "scaler": {"scale": torch.ones(1)},
        "rng_state": torch.get_rng_state(),
        "cuda_rng": {"0": torch.get_rng_state()},
    },
    "lightning": lightning,
}
PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappings_and_prefixes_are_taken_off(wrapping, prefix, tmp_path):
    path = write(WRAPPINGS[wrapping](prefixed(prefix, plain())), tmp_path / "w.pth")
    assert same_bits(load_checkpoint(path), plain())
    assert read_checkpoint(path).note == ""


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off_safetensors_too(prefix, tmp_path):
    path = write(prefixed(prefix, plain()), tmp_path / "w.safetensors")
    assert set(load_checkpoint(path)) == set(plain())


def test_a_prefix_that_only_some_names_have_is_part_of_them(tmp_path):
    state = {"module.weight": torch.ones(2), "head.weight": torch.ones(2)}
    assert set(load_checkpoint(write(state, tmp_path / "w.pth"))) == set(state)


def test_a_saved_parameter_comes_as_a_plain_tensor(tmp_path):
    loaded = load_checkpoint(write({"weight": nn.Parameter(torch.ones(2))}, tmp_path / "w.pth"))
    assert not loaded["weight"].requires_grad
    assert type(loaded["weight"]) is torch.Tensor


@pytest.mark.parametrize(
    "content",
    [{}, [torch.ones(2)], torch.ones(2), {"epoch": 3}, {"state_dict": {}}, {"optimizer": {"m": torch.ones(2)}}, 5],
)
def test_a_file_without_named_tensors_is_refused(content, tmp_path):
    with pytest.raises(CheckpointError, match="expected named tensors"):
        load_checkpoint(write(content, tmp_path / "w.pth"))


def test_among_several_sets_none_is_guessed_and_each_can_be_named(tmp_path):
    path = write({"generator": plain(), "discriminator": average(), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: expected one set of weights; it holds generator (9 tensors), discriminator (9 tensors). "
        "Name one: --weights 'generator'."
    )
    assert same_bits(load_checkpoint(path, "generator"), plain())
    assert same_bits(load_checkpoint(path, "discriminator"), average())
    with pytest.raises(CheckpointError, match="expected weights 'critic'; it holds generator"):
        load_checkpoint(path, "critic")


def test_parts_of_a_model_in_folders_of_names_are_several_sets(tmp_path):
    path = write({"model": {"encoder": plain(), "decoder": average()}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"model/encoder \(9 tensors\), model/decoder \(9 tensors\)"):
        load_checkpoint(path)
    assert same_bits(load_checkpoint(path, "model/decoder"), average())


def test_two_plain_sets_are_not_guessed_between(tmp_path):
    path = write({"net": plain(), "model": average()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"one set of weights; it holds net \(9 tensors\), model \(9 tensors\)"):
        load_checkpoint(path)


def test_names_that_begin_so_can_be_asked_for(tmp_path):
    state = {**prefixed("student.", plain()), **prefixed("teacher.", average())}
    for path in (
        write({"state_dict": state}, tmp_path / "w.pth"),
        write({n: t.clone() for n, t in state.items()}, tmp_path / "w.safetensors"),
    ):
        assert set(load_checkpoint(path)) == set(state)
        loaded = load_checkpoint(path, "teacher.")
        assert same_bits({name: loaded[name] for name in average()}, average())
        with pytest.raises(CheckpointError, match=r"expected weights 'nobody\.'"):
            load_checkpoint(path, "nobody.")


def test_a_dict_that_holds_itself_is_walked_once(tmp_path):
    knot: dict[str, Any] = {"model": plain()}
    knot["self"] = knot["again"] = knot
    assert [weights.name for weights in weights_in(knot)] == ["model"]
    levels: dict[str, Any] = {"w": torch.ones(2)}
    for _ in range(5):  # each twice in the next: 100,000 ways down, one set
        levels = {str(i): levels for i in range(10)}
    assert len(weights_in(levels)) == 1


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
LEAVES = st.sampled_from([torch.ones(2), torch.ones(()), 3, None, "text"])
CONTENTS = st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES | st.sampled_from(["model", "ema", "a.b"]), inner))


@settings(deadline=None, max_examples=50)
@given(CONTENTS)
def test_whatever_a_file_holds_every_set_is_of_tensors_and_has_a_name_of_its_own(content):
    found = weights_in(content)
    assert all(isinstance(tensor, torch.Tensor) for weights in found for tensor in weights.tensors.values())
    assert all(weights.tensors for weights in found)
    assert len({weights.place for weights in found}) == len(found)


# ---- averaged weights -----------------------------------------------------------------------------------------------


def averaged_model() -> dict[str, torch.Tensor]:
    """The state of PyTorch's own running average, which counts and prefixes."""
    model = AveragedModel(network("average"))
    model.n_averaged += 5
    return dict(model.state_dict())


EMA = {  # each with the name of its set of averaged weights
    "ema": (lambda state, ema: {"model": state, "ema": ema}, "ema"),
    "model_ema": (lambda state, ema: {"model": state, "model_ema": ema, "epoch": 3}, "model_ema"),
    "state_dict_ema": (lambda state, ema: {"state_dict": state, "state_dict_ema": ema}, "state_dict_ema"),
    "ema_state_dict": (lambda state, ema: {"ema_state_dict": ema, "model_state_dict": state}, "ema_state_dict"),
    "params_ema": (lambda state, ema: {"params": state, "params_ema": ema}, "params_ema"),
    "wrapped": (lambda state, ema: {"state_dict": state, "ema": {"model": ema, "updates": 3}}, "ema/model"),
    "shadow": (lambda state, ema: {"model": state, "ema": {"decay": 0.999, "shadow": ema}}, "ema/shadow"),
    "counted": (lambda state, ema: {"model": state, "ema": {"n": torch.tensor(3), "module": ema}}, "ema/module"),
    "parallel": (lambda state, ema: {"model": state, "model_ema": prefixed("module.", ema)}, "model_ema"),
    "averaged": (lambda state, _: {"model": state, "swa_model": averaged_model()}, "swa_model"),
    "callback": (
        lambda state, ema: lightning(state, callbacks={"EMACallback{'decay': 0.9}": {"weights": ema}}),
        "callbacks/EMACallback{'decay': 0.9}/weights",
    ),
    "averaging of Lightning": (
        lambda state, ema: lightning(ema, current_model_state=state, averaging_state={"n_averaged": torch.tensor(5)}),
        "state_dict",
    ),
}


@pytest.mark.parametrize("wrapping", EMA)
def test_plain_weights_come_unless_ema_weights_are_asked_for_and_what_there_is_is_said(wrapping, tmp_path):
    make, name = EMA[wrapping]
    path = write(make(plain(), average()), tmp_path / "w.pth")
    for choice in ("auto", "model"):
        assert same_bits(load_checkpoint(path, choice), plain())
    assert same_bits(load_checkpoint(path, "ema"), average())
    assert same_bits(load_checkpoint(path, name), average())
    assert read_checkpoint(path).sets[name] == "ema"
    assert read_checkpoint(path).note == "this file also holds EMA weights: --weights ema"
    assert read_checkpoint(path, "ema").note == f"these are EMA weights, {name}"


def test_the_averages_of_a_whole_training_are_apart_from_the_model_that_is_trained(tmp_path):
    state = {**prefixed("model.", plain()), **prefixed("ema_model.", averaged_model())}
    path = write(lightning(state), tmp_path / "w.ckpt")
    assert set(load_checkpoint(path)) == set(state)  # a model that keeps its average wants both
    assert same_bits(load_checkpoint(path, "ema"), average())
    assert read_checkpoint(path).note == "this file also holds EMA weights: --weights ema"
    kept = load_state(module := network("other"), load_checkpoint(path), path, allow=["ema_model.*"])
    assert kept.removed == "model."
    assert len(kept.unexpected) == len(averaged_model())
    assert same_bits(dict(module.state_dict()), plain())


@pytest.mark.parametrize(
    "content",
    [{"ema": average()}, averaged_model(), prefixed("ema.", average()), {"model": averaged_model(), "epoch": 3}],
    ids=["wrapped", "AveragedModel", "prefixed", "AveragedModel in a wrapping"],
)
def test_where_only_averages_are_they_are_taken_and_called_so(content, tmp_path):
    path = write(content, tmp_path / "w.pth")
    assert same_bits(load_checkpoint(path), average())
    assert read_checkpoint(path).note.startswith("these are EMA weights")
    with pytest.raises(CheckpointError, match=r"expected one set of plain weights; it holds .*EMA"):
        load_checkpoint(path, "model")


@pytest.mark.parametrize(
    ("content", "held"),
    [({"state_dict": plain()}, r"state_dict \(9 tensors\)"), (plain(), r"the file itself \(9 tensors\)")],
)
def test_averages_where_none_are_are_refused_with_what_is_there(content, held, tmp_path):
    with pytest.raises(CheckpointError, match=rf"expected one set of EMA weights; it holds {held}.*--weights 'auto'"):
        load_checkpoint(write(content, tmp_path / "w.pth"), "ema")


def test_a_word_that_only_ends_so_is_no_average(tmp_path):
    state = {"schema.weight": torch.ones(2), "cinema.weight": torch.ones(2), "ema_decay": torch.ones(2)}
    assert read_checkpoint(write({"model": state, "schema": {"w": torch.ones(2)}}, tmp_path / "w.pth")).note == ""


# ---- steps ----------------------------------------------------------------------------------------------------------

STEPS = [
    ({"state_dict": plain(), "epoch": 3}, ("epoch", 3)),
    ({"model": plain(), "epoch": 0}, ("epoch", 0)),
    ({"model": plain(), "step": torch.tensor(7)}, ("step", 7)),
    ({"model": plain(), "iteration": 40.0, "epoch": 2}, ("step", 40)),
    (lightning(plain()), ("step", 1200)),
    ({"epoch": 4, "state_dict": {"model": plain(), "step": 9}}, ("step", 9)),
    ({"model": plain(), "ema": {"step": 5, "shadow": average()}, "epoch": 3}, ("epoch", 3)),
    ({"model": plain(), "generator": average(), "epoch": 3}, ("epoch", 3)),
    ({"model": plain(), "epoch": "last"}, None),
    ({"model": plain(), "epoch": -1}, None),
    ({"model": plain(), "epoch": float("nan")}, None),
    ({"model": plain(), "epoch": True}, None),
    ({"model": plain(), "epoch": 2.5}, None),
    ({**plain(), "step": torch.tensor(7)}, None),  # a buffer of the model
    ({"model": {**plain(), "step": 7}}, None),
    (plain(), None),
    ([], None),
]


@pytest.mark.parametrize("name", ["w.pth", "legacy.pth"])
@pytest.mark.parametrize(("content", "step"), STEPS)
def test_the_step_is_what_stands_beside_the_weights(content, step, name, tmp_path):
    assert training_step(write(content, tmp_path / name)) == step


def test_a_minimizer_says_its_step_in_its_metadata(tmp_path):
    for metadata, step in (
        ({"epochs": 20, "seed": 3}, ("epoch", 20)),
        ({"step": 5, "epochs": 1}, ("step", 5)),
        ({}, None),
    ):
        assert training_step(Minimizer.of(network(), metadata).save(tmp_path / "m.safetensors")) == step


def test_the_header_of_safetensors_says_it_in_digits(tmp_path):
    save_file(plain(), tmp_path / "w.safetensors", {"format": "pt", "step": "150"})
    assert training_step(tmp_path / "w.safetensors") == ("step", 150)


def test_the_trainer_of_huggingface_says_it_beside_the_weights(tmp_path):
    save_file(plain(), tmp_path / "model.safetensors", {"format": "pt"})
    assert training_step(tmp_path) is None
    (tmp_path / "trainer_state.json").write_text(json.dumps({"epoch": 1.5, "global_step": 500}))
    assert training_step(tmp_path) == training_step(tmp_path / "model.safetensors") == ("step", 500)
    (tmp_path / "trainer_state.json").write_text("[")
    assert training_step(tmp_path) is None


def test_steps_are_read_without_the_tensors(tmp_path, monkeypatch):
    mapped, load = [], torch.load

    def spy(*args: Any, **options: Any) -> Any:
        mapped.append(options["mmap"])
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", spy)
    monkeypatch.setattr(reading, "read_safetensors", lambda path: pytest.fail(f"tensors of {path} were read"))
    assert training_step(write({"model": plain(), "epoch": 3}, tmp_path / "w.pth")) == ("epoch", 3)
    assert training_step(Minimizer.of(network(), {"epochs": 3}).save(tmp_path / "m.safetensors")) == ("epoch", 3)
    assert mapped == [True]


def test_a_file_that_is_not_there_has_no_step_and_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="there is none"):
        training_step(Path(tmp_path / "w.pth"))
