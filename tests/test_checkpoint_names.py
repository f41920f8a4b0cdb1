"""Names that wrappers, prefixes and norms of weights changed are found; ties and constants; nothing is guessed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from transformer_families import transformers
from weights import Net, Tied, filled, fits, network, refused, renamed, same_bits, state_of

from sharpness.checkpoints import Fitted, load_state

# ---- names ----------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[str], str]] = {
    "none": lambda name: name,
    "parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled and parallel": lambda name: f"_orig_mod.module.{name}",
    "compiled block": lambda name: name.replace("blocks.1.", "blocks.1._orig_mod."),
    "parallel block": lambda name: name.replace("blocks.", "blocks.module."),
    "sharded": lambda name: "_fsdp_wrapped_module." + name.replace("blocks.", "blocks._fsdp_wrapped_module."),
    "activation checkpointing": lambda name: name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("own", CHANGES)
def test_wrappers_of_the_file_and_of_the_model_do_not_matter(change, own):
    expected, wrapped = state_of(Net()), CHANGES[own]

    class Wrapped(nn.Module):
        """A model whose names are changed."""

        def __init__(self) -> None:
            super().__init__()
            for name, parameter in Net("other").named_parameters():
                parts, module = wrapped(name).split("."), self
                for part in parts[:-1]:
                    if part not in module._modules:
                        module.add_module(part, nn.Module())
                    module = getattr(module, part)
                module.register_parameter(parts[-1], parameter)

    model = nn.Sequential(OrderedDict(m=Wrapped()))
    target = renamed(expected, lambda name: f"m.{wrapped(name)}")
    assert fits(model, renamed(expected, CHANGES[change]), target) == Fitted(added="m.")


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
    ],
)
def test_into_a_wrapped_model_and_out_of_it(wrap):
    expected = state_of(Net())
    model = wrap(Net("other"))
    assert load_state(model, expected, "w.pth") == Fitted()
    out = state_of(model)
    assert list(out) != list(expected)
    assert fits(Net("other"), out, expected) == Fitted()


def test_a_part_of_ones_own_that_is_called_module_keeps_its_name():
    def make(key: str) -> nn.Module:
        inner = nn.Sequential(OrderedDict(module=nn.Linear(2, 2), weight=nn.Linear(2, 2)))
        return filled(nn.Sequential(OrderedDict(inner=inner, module=nn.Linear(2, 2))), key)

    class Named(nn.Module):
        def __init__(self, key: str) -> None:
            super().__init__()
            self.module, self.weight = nn.Linear(2, 2), nn.Parameter(torch.zeros(2, 2))
            filled(self, key)

    for kind in (make, Named):
        assert fits(kind("other"), state_of(kind("")), state_of(kind(""))) == Fitted()


@pytest.mark.parametrize("prefix", ["model.", "net.", "a.b.c."])
def test_a_prefix_of_the_file_is_found_and_taken_off(prefix):
    expected = state_of(Net())
    assert fits(Net("other"), renamed(expected, prefix.__add__), expected) == Fitted(removed=prefix)


def test_what_lies_beside_a_prefix_does_not_fit_unless_allowed():
    expected = state_of(Net())
    state = {**renamed(expected, "model.".__add__), "loss.weight": torch.ones(3), "metric.total": torch.ones(1)}
    message = refused(Net("other"), state)
    assert "  unexpected:\n    loss.weight\n    metric.total\n" in message
    assert "--allow 'loss.*' --allow 'metric.*'" in message
    told = fits(Net("other"), state, expected, allow=["loss.*", "metric.total"])
    assert told == Fitted(removed="model.", unexpected=("loss.weight", "metric.total"))


def test_a_prefix_of_the_model_is_found_and_put_on():
    class Wrapped(nn.Module):
        def __init__(self, key: str) -> None:
            super().__init__()
            self.backbone, self.temperature = Net(key), nn.Parameter(torch.zeros(2))

    model, state = Wrapped("other"), state_of(Net())
    assert "missing: temperature" in refused(model, state)
    told = load_state(model, state, "w.pth", allow="temperature")
    assert told == Fitted(added="backbone.", missing=("temperature",))
    assert same_bits(state_of(model.backbone), state)


def test_prefixes_that_serve_equally_well_are_not_guessed_between():
    both = {**renamed(state_of(Net()), "student.".__add__), **renamed(state_of(Net("t")), "teacher.".__add__)}
    message = refused(Net("other"), both, allow="*")
    assert "with one prefix as well as with another ('student.', 'teacher.'), and none is guessed" in message
    assert "--weights 'student.'" in message
    pair = nn.ModuleDict({"student": Net("other"), "teacher": Net("another")})
    assert "('student.', 'teacher.')" in refused(pair, state_of(Net()), allow="*")
    assert load_state(pair, both, "w.pth") == Fitted()


def test_an_average_beside_the_weights_is_not_taken_for_them():
    both = {**renamed(state_of(Net("a")), "ema_model.".__add__), **renamed(state_of(Net()), "model.".__add__)}
    told = fits(Net("other"), both, state_of(Net()), allow="ema_model.*")
    assert told.removed == "model."
    assert "--allow 'ema_model.*'" in refused(Net("other"), both)


def test_a_prefix_with_which_hardly_anything_fits_is_left():
    state = {f"x.{i}.weight": torch.ones(7) for i in range(10)} | {"x.stem.bias": torch.ones(4)}
    assert "0 of its 10 tensors do" in refused(Net(), state)


STEPS = st.lists(st.sampled_from(["module", "_orig_mod", "_checkpoint_wrapped_module"]), max_size=2)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_wrappers_anywhere_in_any_name_are_looked_through(data):
    expected, state = state_of(Net()), {}
    for name, tensor in expected.items():
        parts = name.split(".")
        inserted = [[*data.draw(STEPS), part] for part in parts]
        state[".".join(part for some in inserted for part in some)] = tensor
    assert fits(Net("other"), state, expected) == Fitted()


# ---- tied weights, norms, constants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encoder.weight", "decoder.weight"])
def test_a_tied_weight_may_come_under_either_name(name):
    state = {n: t for n, t in state_of(Tied()).items() if n in (name, "decoder.bias")}
    assert fits(Tied("other"), state, state_of(Tied())) == Fitted()


def test_a_tied_weight_that_is_two_in_the_file_is_refused():
    state = state_of(Tied())
    assert fits(Tied("other"), state, state_of(Tied())) == Fitted()
    state["decoder.weight"] = state["decoder.weight"] + 1
    message = refused(Tied("other"), state, allow="*")
    assert "one tensor in the model, two with other values in the file: encoder.weight = decoder.weight" in message


def test_counters_of_batches_may_be_missing_as_in_old_files_and_in_excess():
    state = state_of(network())
    counter = state.pop("1.num_batches_tracked")
    model = network("other")
    assert load_state(model, state, "w.pth") == Fitted()
    assert all(torch.equal(t, state_of(model)[name]) for name, t in state.items())

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.ones(4))

    frozen = nn.Sequential(nn.Linear(3, 4), Frozen(), nn.Tanh(), nn.Linear(4, 2))
    assert load_state(frozen, {**state, "1.num_batches_tracked": counter}, "w.pth") == Fitted()
    assert "unexpected: 2.num_batches_tracked" in refused(frozen, {**state, "2.num_batches_tracked": counter})


COUNTERS = [torch.tensor(3.0), torch.tensor(float("nan")), torch.tensor([3]), torch.tensor(2.5)]


@pytest.mark.parametrize("counter", COUNTERS)
def test_a_counter_of_another_kind_does_not_matter(counter):
    state = state_of(network())
    model = network("other")
    before = int(model[1].num_batches_tracked)
    assert load_state(model, {**state, "1.num_batches_tracked": counter}, "w.pth") == Fitted()
    assert int(model[1].num_batches_tracked) == (3 if counter.ndim == 0 and counter == 3 else before)


def test_running_statistics_may_not_be_missing():
    state = state_of(network())
    del state["1.running_var"]
    assert "missing: 1.running_var" in refused(network("other"), state)


def test_a_parameter_that_is_a_single_number_may_not_be_missing():
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.temperature = nn.Linear(2, 2), nn.Parameter(torch.tensor(1.0))

    state = state_of(Tempered())
    del state["temperature"]
    assert "missing: temperature" in refused(Tempered(), state)


def buffered(value: torch.Tensor, persistent: bool, name: str = "inv_freq") -> nn.Module:
    module = filled(nn.Sequential(nn.Linear(2, 2)))
    module[0].register_buffer(name, value, persistent=persistent)
    return module


def test_a_buffer_that_the_model_computes_may_be_in_the_file_if_it_is_the_same():
    frequencies = torch.tensor([1.0, 0.1, 0.01])
    model = buffered(frequencies, persistent=False)
    state = state_of(buffered(frequencies, persistent=True))
    assert load_state(model, state, "w.pth") == Fitted()
    elsewhere = {"layers.3.inv_freq" if "inv" in name else name: t for name, t in state.items()}
    assert load_state(model, elsewhere, "w.pth") == Fitted()  # as Llama's, which were once in every layer
    half = {**state, "0.inv_freq": frequencies.half()}
    assert load_state(model, half, "w.pth") == Fitted()
    assert "unexpected: 0.inv_freq" in refused(model, {**state, "0.inv_freq": 2 * frequencies})
    assert "unexpected: 0.inv_freq" in refused(model, {**state, "0.inv_freq": frequencies[:2]})


CAUSAL = torch.ones(4, 4).tril().view(1, 1, 4, 4)
CONSTANTS = {
    "position_ids": (torch.arange(5)[None], torch.tensor([[0, 1, 2, 4]])),
    "bias": (CAUSAL, 2 * CAUSAL),
    "mask": (CAUSAL.bool(), torch.ones(1, 1, 4, 4, dtype=torch.bool)),
    "masked_bias": (torch.tensor(-1e9), torch.tensor(-1.0)),
}


@pytest.mark.parametrize("constant", CONSTANTS)
def test_constants_may_be_in_excess_or_missing_and_weights_of_their_name_may_not(constant):
    right, wrong = CONSTANTS[constant]
    name, plain = f"attn.{constant}", state_of(filled(nn.Sequential(nn.Linear(2, 2))))
    assert load_state(nn.Sequential(nn.Linear(2, 2)), {**plain, name: right}, "w.pth") == Fitted()
    assert f"unexpected: {name}" in refused(nn.Sequential(nn.Linear(2, 2)), {**plain, name: wrong})

    def model(value: torch.Tensor) -> nn.Module:
        made = nn.Sequential(OrderedDict({"0": nn.Linear(2, 2), "attn": nn.Module()}))
        made.attn.register_buffer(constant, value.clone())
        return made

    assert load_state(model(right), plain, "w.pth") == Fitted()
    assert f"missing: {name}" in refused(model(wrong), plain)
    if right.is_floating_point():
        learned = model(right)
        del learned.attn._buffers[constant]
        learned.attn.register_parameter(constant, nn.Parameter(right.clone()))
        assert f"missing: {name}" in refused(learned, plain)


def old_weight_norm(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(module)


NORMS = {
    "weight norm": (old_weight_norm, parametrizations.weight_norm),
    "spectral norm": (nn.utils.spectral_norm, parametrizations.spectral_norm),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_norms_of_weights_load_from_old_names_and_new_ones_into_either(norm, order):
    def make(kind: int) -> nn.Module:
        return nn.Sequential(NORMS[norm][kind](nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).eval()

    saved, model = filled(make(order[0])), make(order[1])
    assert load_state(model, state_of(saved), "w.pth") == Fitted()
    x = torch.linspace(-1, 1, 6).view(2, 3)
    torch.testing.assert_close(model(x), saved(x), rtol=1e-5, atol=1e-6)  # the two divide in another order


def test_weights_without_a_norm_do_not_fit_a_model_with_one():
    model = parametrizations.weight_norm(nn.Linear(3, 4))
    message = refused(model, state_of(nn.Linear(3, 4)))
    assert "original0" in message
    assert "unexpected: weight" in message


def test_plain_weights_fit_the_layers_that_adapters_wrap():
    transformers()  # which peft imports
    peft = pytest.importorskip("peft", reason="the adapters are those of peft")
    expected = state_of(Net())
    model = peft.get_peft_model(Net("other"), peft.LoraConfig(r=2, target_modules=["head"]))
    assert "missing:" in refused(model, expected)
    told = load_state(model, expected, "w.pth", allow="*lora_*")
    assert told.added == "base_model.model."
    assert all("lora_" in name for name in told.missing)
    x = torch.linspace(-1, 1, 4).view(2, 2)
    assert torch.equal(model(x), Net()(x))  # adapters begin as nothing
