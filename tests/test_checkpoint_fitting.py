"""Weights into models: numbers of any precision, and a refusal that shows what does not fit and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from weights import Net, filled, network, refused, renamed, state_of

from sharpness import CheckpointError
from sharpness.checkpoints import Fitted, load_state
from sharpness.checkpoints.mismatch import by_module

# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_any_precision_are_converted_and_that_is_said(file, own):
    state = state_of(network().to(file))
    model = network("other").to(own)
    told = load_state(model, state, "w.pth")
    assert told.dtype == ("" if file == own else str(file).removeprefix("torch."))
    assert str(told) == ("" if file == own else f"converted from {told.dtype}")
    assert all(torch.equal(t, state[name].to(t.dtype)) for name, t in model.state_dict().items())
    assert model[0].weight.dtype == own


def test_numbers_that_the_models_precision_cannot_hold_are_refused():
    state = state_of(network())
    state["0.weight"][0, 0] = 1e5
    assert "0.weight has values beyond torch.float16, the model's precision" in refused(network("o").half(), state)
    state["0.weight"][0, 0] = float("inf")
    assert load_state(network("o").half(), state, "w.pth").dtype == "float32"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.to(torch.int8), "int8, strided"),
        (lambda t: t.to(torch.complex64), "complex64, strided"),
        (lambda t: t.to_sparse(), "float32, sparse_coo"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "qint8, strided"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quant:UserWarning", "ignore:.*quant:DeprecationWarning")
def test_numbers_of_another_kind_are_refused(change, told):
    state = state_of(network())
    state["0.weight"] = change(state["0.weight"])
    message = refused(network("other"), state)
    assert f"shapes differ: 0.weight: model (4, 3) float32, strided, file (4, 3) {told}" in message
    assert "quantised or sparse" in message


def test_whole_numbers_come_in_any_kind_that_holds_them_exactly():
    def indexed(values: torch.Tensor) -> nn.Module:
        module = filled(nn.Sequential(nn.Linear(2, 2)))
        module[0].register_buffer("index", values)
        return module

    state = state_of(indexed(torch.tensor([0, 1, 3])))
    for kind in (torch.float16, torch.float64, torch.int8, torch.uint8):
        model = indexed(torch.zeros(3, dtype=torch.int64))
        assert load_state(model, {**state, "0.index": state["0.index"].to(kind)}, "w.pth") == Fitted()
        assert model[0].index.tolist() == [0, 1, 3]
    for wrong in (torch.tensor([0.0, 1.0, 2.5]), torch.tensor([0.0, 1.0, float("nan")]), torch.tensor([0, 1, 3 + 0j])):
        message = refused(indexed(torch.zeros(3, dtype=torch.int64)), {**state, "0.index": wrong})
        assert "shapes differ: 0.index: model (3,) int64" in message
    assert "shapes differ" in refused(indexed(torch.zeros(3, dtype=torch.bool)), state)


def test_shapes_without_values_are_refused_on_either_side():
    empty = {name: t.to("meta") for name, t in state_of(network()).items()}
    assert "expected values in w.pth; 0.weight has none" in refused(network(), empty)
    for model in (network().to("meta"), nn.Sequential(nn.LazyLinear(4))):
        with pytest.raises(CheckpointError, match=r"expected a model with values .*; 0\.weight has none"):
            load_state(model, state_of(network()), "w.pth")


# ---- what does not fit ----------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_names_are_shown_together_and_nothing_is_loaded():
    state = state_of(network())
    del state["3.bias"]
    state["4.bias"] = torch.zeros(2)
    state["0.weight"] = torch.zeros(4, 5)
    assert refused(network("other"), state) == "\n".join(
        [
            "expected w.pth to fit the model, Sequential; 7 of its 9 tensors do.",
            "  missing: 3.bias",
            "  unexpected: 4.bias",
            "  shapes differ: 0.weight: model (4, 3), file (4, 5)",
            "It looks like another variant of the network.",
            "What the model may keep as it is, and the file have in excess, is to be allowed by name: "
            "--allow '3.bias' --allow '4.*' --allow '0.weight'",
        ]
    )


def test_names_are_grouped_by_block():
    state = {name: t for name, t in state_of(Net()).items() if not name.startswith(("blocks", "stem"))}
    assert "  missing:\n    stem: weight, bias\n    blocks.0–2: 0.weight, 0.bias\n" in refused(Net("other"), state)
    names = [f"m{i}.{part}" for i in range(12) for part in ("a.x", "a.y", "a.z", "a.w")]
    assert by_module(names) == [*(f"m{i}.a: x, y, z, … (4)" for i in range(8)), "… and 4 more"]
    gaps = [f"h.{i}.w" for i in (0, 1, 2, 5, 7, 8)] + ["top", "\x1b[31m"]
    assert by_module(gaps) == ["h.0–2, 5, 7–8: w", r"top, '\x1b[31m'"]


LOOKS = {
    "the same network for 5 classes instead of 3": (state_of(Net(classes=5)), "head.*"),
    "the same network in another size": (state_of(Net(width=5)), "stem.*"),
    "the same network with another head": (renamed(state_of(Net()), lambda n: n.replace("head", "fc")), "fc.*"),
    "another variant of the network": ({**state_of(Net()), "gate": torch.ones(1), "scale.a": torch.ones(1)}, "gate"),
    "another model: no tensor of the file has a place": ({"conv.weight": torch.ones(3, 3)}, None),
    "a model with LoRA adapters": ({**state_of(Net()), "head.lora_A.weight": torch.ones(2, 4)}, "head.lora_A.*"),
}


@pytest.mark.parametrize("looks", LOOKS)
def test_a_refusal_says_what_it_looks_like_and_what_could_be_allowed(looks):
    state, pattern = LOOKS[looks]
    message = refused(Net("other"), state)
    assert f"It looks like {looks}" in message
    assert (f"--allow '{pattern}'" in message) if pattern else "--allow" not in message


def test_what_is_allowed_is_kept_as_it_was_and_told():
    model, state = Net("other"), state_of(Net(classes=5))
    del state["stem.bias"]
    state["extra.a"] = torch.ones(1)
    before = state_of(model)
    told = load_state(model, state, "w.pth", allow=["head.*", "stem.bias", "extra.?"])
    assert told == Fitted(missing=("stem.bias",), unexpected=("extra.a",), reshaped=("head.weight", "head.bias"))
    assert str(told) == "3 kept as the model had them (stem.bias; head: weight, bias); 1 not used (extra.a)"
    kept = {*told.missing, *told.reshaped}
    assert all(torch.equal(t, before[n] if n in kept else state[n]) for n, t in state_of(model).items())


@pytest.mark.parametrize("allow", [(), "fc.*", ["Head.*", "hea", "head"], ["head.weight"]])
def test_a_name_that_no_pattern_allows_is_refused(allow):
    assert "head.bias: model (3,), file (5,)" in refused(Net("other"), state_of(Net(classes=5)), allow=allow)


def test_extra_state_that_is_no_tensor_cannot_come_from_a_file_and_must_be_allowed():
    class Stateful(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: Any) -> None:
            raise AssertionError("there is none in a file of tensors")

    model = nn.Sequential(Stateful(2, 2))
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    with pytest.raises(CheckpointError, match=r"missing: 0\._extra_state"):
        load_state(model, state, "w.pth")


def test_gradients_modes_and_identity_are_left_alone():
    model = Net("other")
    model.head.requires_grad_(False)
    model(torch.ones(1, 2)).sum().backward()
    before = {name: (id(p), p.grad, p.requires_grad) for name, p in model.named_parameters()}
    load_state(model, state_of(Net()), "w.pth")
    assert before == {name: (id(p), p.grad, p.requires_grad) for name, p in model.named_parameters()}
    assert model.training
