"""f(θ) and ∇f(θ): closed forms, every form of loss and data, invariances, and a refusal for what cannot be right."""

from __future__ import annotations

import math
import random
from collections import UserDict
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sharpness import Hessian, Minimizer, Objective, Point, Problem, cross_entropy
from sharpness.errors import DataError, NonDeterministicError, NonFiniteError, ShapeError, UnsupportedModelError
from sharpness.random import normal

# Sums of some hundred float64 terms in another order: a few hundred roundings of 1.1e-16, mostly cancelling.
ROUNDING = 1e-13
# The same numbers by another formula or another order inside a matrix product.
FORMULA = 1e-12


def randn(*shape: int, key: str = "x") -> torch.Tensor:
    return normal(*shape, key=(key,), seed=0, dtype=torch.float64)


def labels(count: int, classes: int) -> torch.Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(1))


def network(inputs: int = 5, classes: int = 3) -> nn.Sequential:
    """A small smooth network with weights that do not depend on the global generator."""
    module = nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, classes)).double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(0.5 * randn(*p.shape, key=name))
    return module


def close(a: torch.Tensor | float, b: torch.Tensor | float, relative: float) -> bool:
    """Whether ‖a − b‖ <= relative · ‖b‖."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return bool((a - b).norm() <= relative * b.norm())


def squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target).square()


# ---- closed forms -------------------------------------------------------------------------------------------------


def test_linear_regression_has_its_closed_form():
    x, y, w = randn(40, 4), randn(40, key="y"), randn(4, key="w")
    objective, _ = Objective.from_module(nn.Linear(4, 1, bias=False).double(), lambda o, t: squares(o[:, 0], t), (x, y))
    residual = x @ w - y
    assert close(objective.value(w), residual.square().mean(), FORMULA)
    assert close(objective.gradient(w), 2 * x.T @ residual / 40, FORMULA)


def test_logistic_regression_has_its_closed_form():
    x, y, w = randn(40, 4), labels(40, 2).double(), randn(4, key="w")
    loss = nn.BCEWithLogitsLoss(reduction="none")
    objective, _ = Objective.from_module(nn.Linear(4, 1, bias=False).double(), lambda o, t: loss(o[:, 0], t), (x, y))
    sign = 2 * y - 1
    assert close(objective.value(w), torch.log1p(torch.exp(-sign * (x @ w))).mean(), FORMULA)
    assert close(objective.gradient(w), x.T @ (torch.sigmoid(x @ w) - y) / 40, FORMULA)


def test_softmax_regression_has_its_closed_form():
    x, y, w = randn(40, 4), labels(40, 3), randn(3, 4, key="w")
    objective, _ = Objective.from_module(nn.Linear(4, 3, bias=False).double(), cross_entropy, (x, y))
    p = torch.softmax(x @ w.T, dim=1)
    assert close(objective.value(w.flatten()), -p[torch.arange(40), y].log().mean(), FORMULA)
    assert close(objective.gradient(w.flatten()), ((p - F.one_hot(y, 3)).T @ x / 40).flatten(), FORMULA)


def test_value_and_gradient_are_those_of_plain_torch():
    module, x, y = network(), randn(40, 5), labels(40, 3)
    objective, theta = Objective.from_module(module, cross_entropy, (x, y), chunk_size=7)
    loss = F.cross_entropy(module(x), y)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
    assert close(objective.value(theta), loss.detach(), FORMULA)
    assert close(objective.gradient(theta), expected, FORMULA)


def test_value_and_gradient_in_one_pass_are_the_same_bits_as_apart():
    objective, theta = Objective.from_module(network(), cross_entropy, (randn(40, 5), labels(40, 3)), chunk_size=16)
    value, gradient = objective.value_and_gradient(theta)
    assert value == objective.value(theta) == objective.evaluate(theta).loss
    assert torch.equal(gradient, objective.gradient(theta))


def test_the_gradient_is_the_slope_of_the_value():
    objective, theta = Objective.from_module(network(), cross_entropy, (randn(40, 5), labels(40, 3)))
    v, h = randn(objective.size, key="v"), 1e-5
    slope = (objective.value(theta + h * v) - objective.value(theta - h * v)) / (2 * h)
    # central differences: h²/6 · f''' ≈ 1e-10 and rounding 1e-16 / h = 1e-11, of slopes of order 0.1
    assert slope == pytest.approx(float(objective.gradient(theta) @ v), rel=1e-7)


def test_l2_adds_half_of_itself_times_the_squared_norm():
    data = randn(40, 5), labels(40, 3)
    plain, theta = Objective.from_module(network(), cross_entropy, data)
    decayed, _ = Objective.from_module(network(), cross_entropy, data, l2=0.3)
    assert close(decayed.value(theta), plain.value(theta) + 0.15 * float(theta @ theta), ROUNDING)
    assert close(decayed.gradient(theta), plain.gradient(theta) + 0.3 * theta, ROUNDING)


def test_without_l2_the_weights_do_not_count():
    objective, theta = Objective.from_module(nn.Linear(2, 2).double(), lambda o, t: o * 0 + 1, (randn(3, 2), randn(3)))
    assert objective.value(theta) == objective.value(100 * theta) == 1.0


# ---- forms of the loss --------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Takes keyword arguments and returns its own mean loss, as language models do."""

    def __init__(self, form: str = "object") -> None:
        super().__init__()
        self.net, self.form = network(), form

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> object:
        output = self.net(inputs)
        loss = F.cross_entropy(output, targets)
        return {"loss": loss, "logits": output} if self.form == "mapping" else SimpleNamespace(loss=loss, logits=output)


FORMS = {
    "per example": lambda o, t: F.cross_entropy(o, t, reduction="none"),
    "per example, in a column": lambda o, t: F.cross_entropy(o, t, reduction="none")[:, None],
    "pair of sum and count": lambda o, t: (F.cross_entropy(o, t, reduction="sum"), len(t)),
    "pair of sum and tensor": lambda o, t: (F.cross_entropy(o, t, reduction="sum"), torch.ones_like(t).sum()),
    "scalar mean": F.cross_entropy,
    "scalar mean of a module": nn.CrossEntropyLoss(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_loss_gives_the_same_value_and_gradient(form):
    module, x, y = network(), randn(50, 5), labels(50, 3)
    objective, theta = Objective.from_module(module, FORMS[form], (x, y), chunk_size=20)
    expected, _ = Objective.from_module(module, cross_entropy, (x, y))
    assert close(objective.value(theta), expected.value(theta), ROUNDING)
    assert close(objective.gradient(theta), expected.gradient(theta), ROUNDING)


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("form", ["object", "mapping"])
def test_a_loss_inside_the_model_gives_the_same_value_and_gradient(kind, form):
    x, y = randn(50, 5), labels(50, 3)
    batches = [kind(inputs=x[part], targets=y[part]) for part in (slice(0, 20), slice(20, 50))]
    objective, theta = Objective.from_module(Wrapped(form), "model", batches, chunk_size=13)
    expected, _ = Objective.from_module(network(), cross_entropy, (x, y))
    assert close(objective.value(theta), expected.value(theta), ROUNDING)
    assert close(objective.gradient(theta), expected.gradient(theta), ROUNDING)


def test_a_loss_of_dictionary_batches_receives_output_and_batch():
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    x, y = randn(30, 5), labels(30, 3)
    objective, theta = Objective.from_module(Keyed(), lambda o, batch: cross_entropy(o, batch["y"]), [{"x": x, "y": y}])
    expected, _ = Objective.from_module(network(), cross_entropy, (x, y))
    assert close(objective.value(theta), expected.value(theta), ROUNDING)


def test_losses_of_any_shape_are_averaged_over_all_their_entries():
    x, y, w = randn(30, 4), randn(30, 2, 3, key="y"), randn(24, key="w")
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Unflatten(1, (2, 3))).double()
    objective, _ = Objective.from_module(module, squares, (x, y), chunk_size=11)
    expected = ((x @ w.view(6, 4).T).view(30, 2, 3) - y).square().mean()
    assert close(objective.value(w), expected, FORMULA)


def test_the_model_may_take_several_inputs():
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.scale * a * b

    a, b, y = randn(9, key="a"), randn(9, key="b"), randn(9, key="y")
    objective, theta = Objective.from_module(Product(), squares, (a, b, y), chunk_size=4)
    assert close(objective.value(theta), (2 * a * b - y).square().mean(), FORMULA)
    assert close(objective.gradient(theta), (2 * (2 * a * b - y) * a * b).mean().reshape(1), FORMULA)


class Tokens(nn.Module):
    """A classifier of every token: (N, T, D) in, (N, C, T) out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).transpose(1, 2)


def masked() -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of 1 to 8 counted tokens, the others masked by −100; the last sequence is masked altogether."""
    x, y = randn(30, 8, 4), labels(240, 3).view(30, 8)
    counted = torch.arange(30)[:, None] % 8 >= torch.arange(8)
    y[~counted] = -100
    y[-1] = -100
    return x, y


def per_token(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target, reduction="sum", ignore_index=-100)


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 30])
def test_masked_tokens_are_averaged_over_the_counted_ones_by_a_pair_of_sum_and_weight(chunk_size):
    x, y = masked()
    module = Tokens()
    objective, theta = Objective.from_module(
        module, lambda o, t: (per_token(o, t), (t >= 0).sum()), (x, y), chunk_size=chunk_size
    )
    loss = F.cross_entropy(module(x), y)  # torch's own mean over counted tokens
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
    assert close(objective.value(theta), loss.detach(), FORMULA)
    assert close(objective.gradient(theta), expected, FORMULA)
    assert objective.evaluate(theta).weight == float((y >= 0).sum())


@pytest.mark.parametrize("chunk_size", [4, 7, 30])
def test_masked_tokens_are_averaged_over_the_counted_ones_by_a_scalar_and_its_weight(chunk_size):
    x, y = masked()
    mean = {"weight": lambda batch: (batch[1] >= 0).sum(), "chunk_size": chunk_size}
    objective, theta = Objective.from_module(Tokens(), F.cross_entropy, (x, y), **mean)
    assert close(objective.value(theta), F.cross_entropy(Tokens()(x), y).detach(), FORMULA)


def test_a_part_that_is_masked_altogether_has_weight_0_and_does_not_matter():
    y = labels(50, 3)
    y[:20] = -100  # torch's mean over the first third of the batch is 0 / 0
    counted = y >= 0
    objective, theta = Objective.from_module(
        network(), F.cross_entropy, (randn(50, 5), y), weight=lambda batch: (batch[1] >= 0).sum()
    )
    expected = F.cross_entropy(network()(randn(50, 5)[counted]), y[counted])
    assert close(objective.value(theta), expected.detach(), FORMULA)


@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_class_weights_are_right_by_their_weight(chunk_size):
    x, y, importance = randn(50, 5), labels(50, 3), torch.tensor([1.0, 4.0, 20.0], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=importance)
    objective, theta = Objective.from_module(
        network(), loss, (x, y), weight=lambda batch: importance[batch[1]].sum(), chunk_size=chunk_size
    )
    assert close(objective.value(theta), loss(network()(x), y).detach(), FORMULA)


def some_ignored() -> torch.Tensor:
    y = labels(50, 3)
    y[::3] = -100
    return y


UNEVEN = {
    "ignore_index": (F.cross_entropy, some_ignored()),
    "class weights": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 20.0]).double()), labels(50, 3)),
    "reduction='sum'": (nn.CrossEntropyLoss(reduction="sum"), labels(50, 3)),
    "broadcasting": (lambda o, t: squares(o[:, :1], t), randn(50, key="y")),
}


@pytest.mark.parametrize("chunk_size", [None, 10, 1])
@pytest.mark.parametrize("case", UNEVEN)
def test_a_loss_whose_batches_do_not_add_up_is_refused_with_the_ways_out(case, chunk_size):
    loss, y = UNEVEN[case]
    with pytest.raises(UnsupportedModelError, match=r"reduction='none'.*pair \(sum, weight\).*weight="):
        Objective.from_module(network(), loss, (randn(50, 5), y), chunk_size=chunk_size)


def test_a_mean_over_a_part_without_any_counted_target_is_no_sum_that_adds_up():
    y = labels(50, 3)
    y[:20] = -100  # the mean over the first third is 0 / 0, which compares with nothing
    with pytest.raises(UnsupportedModelError, match="its parts nan"):
        Objective.from_module(network(), F.cross_entropy, (randn(50, 5), y))
    with pytest.raises(NonFiniteError, match="mean over no target"):
        Objective.from_module(network(), F.cross_entropy, (randn(50, 5), y), chunk_size=20)


@pytest.mark.parametrize("loss", [lambda o, t: 1.0, lambda o, t: None, lambda o, t: [o.sum(), 1]])
def test_a_loss_that_is_no_tensor_is_refused(loss):
    with pytest.raises(UnsupportedModelError, match="expected the loss to return a tensor"):
        Objective.from_module(network(), loss, (randn(5, 5), labels(5, 3)))


PAIRS = {
    "losses": lambda o, t: (cross_entropy(o, t), len(t)),
    "number": lambda o, t: (1.0, len(t)),
    "triple": lambda o, t: (o.sum(), len(t), 1),
    "single": lambda o, t: (o.sum(),),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_whose_sum_is_no_single_tensor_is_refused(pair):
    with pytest.raises(UnsupportedModelError, match=r"pair \(sum, weight\)"):
        Objective.from_module(network(), PAIRS[pair], (randn(5, 5), labels(5, 3)))


def test_a_loss_inside_the_model_needs_dictionary_batches():
    with pytest.raises(UnsupportedModelError, match="dictionary batches"):
        Objective.from_module(network(), "model", (randn(5, 5), labels(5, 3)))


def test_a_loss_by_another_name_than_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="'cross_entropy'"):
        Objective.from_module(Wrapped(), "cross_entropy", [{"inputs": randn(5, 5), "targets": labels(5, 3)}])


def test_data_whose_losses_all_have_weight_0_are_refused():
    y = torch.full((5,), -100)
    loss = lambda o, t: (per_token(o, t), (t >= 0).sum())  # noqa: E731
    objective, theta = Objective.from_module(network(), loss, (randn(5, 5), y))
    with pytest.raises(UnsupportedModelError, match="more than 0"):
        objective.value(theta)


# ---- chunks and order ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [500, 512, 100, 7, 1, 10_000])
def test_the_chunk_size_changes_value_and_gradient_by_rounding_only(chunk_size):
    x, y = randn(512, 5), labels(512, 3)
    whole, theta = Objective.from_module(network(), cross_entropy, (x, y))
    cut, _ = Objective.from_module(network(), cross_entropy, (x, y), chunk_size=chunk_size)
    assert sum(cut.partition) == cut.examples == 512
    assert max(cut.partition) == min(chunk_size, 512)
    assert close(cut.value(theta), whole.value(theta), ROUNDING)
    assert close(cut.gradient(theta), whole.gradient(theta), ROUNDING)


def test_500_and_12_examples_weigh_as_500_and_12():
    # a mean of batch means would weigh the last 12 examples 41 times too much
    x, y = randn(512, 5), labels(512, 3)
    x[500:] *= 10
    for data in ((x, y), DataLoader(TensorDataset(x, y), batch_size=500)):
        objective, theta = Objective.from_module(network(), F.cross_entropy, data, chunk_size=500)
        assert objective.partition == (500, 12)
        assert close(objective.value(theta), F.cross_entropy(network()(x), y).detach(), FORMULA)


def test_the_order_of_examples_changes_value_and_gradient_by_rounding_only():
    x, y = randn(512, 5), labels(512, 3)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    one, theta = Objective.from_module(network(), cross_entropy, (x, y), chunk_size=100)
    other, _ = Objective.from_module(network(), cross_entropy, (x[order], y[order]), chunk_size=100)
    assert close(other.value(theta), one.value(theta), ROUNDING)
    assert close(other.gradient(theta), one.gradient(theta), ROUNDING)


@pytest.mark.parametrize("batch_size", [1, 100, 500, 512])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loaders_batch_size_and_order_change_value_and_gradient_by_rounding_only(batch_size, shuffle):
    x, y = randn(512, 5), labels(512, 3)
    one, theta = Objective.from_module(network(), cross_entropy, (x, y))
    other, _ = Objective.from_module(
        network(), cross_entropy, DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)
    )
    assert close(other.value(theta), one.value(theta), ROUNDING)
    assert close(other.gradient(theta), one.gradient(theta), ROUNDING)


def test_a_shuffling_loader_is_frozen_so_that_f_is_the_same_bits_every_time():
    loader = DataLoader(TensorDataset(randn(50, 5), labels(50, 3)), batch_size=7, shuffle=True)
    objective, theta = Objective.from_module(network(), cross_entropy, loader)
    assert len({objective.value(theta) for _ in range(5)}) == 1
    assert torch.equal(objective.gradient(theta), objective.gradient(theta))


def test_the_default_chunks_are_as_equal_as_can_be_and_keep_memory_bounded(monkeypatch):
    from sharpness.objective import terms

    monkeypatch.setitem(terms.ACTIVATION_BYTES, "cpu", 0)  # not even one example fits: then one at a time
    objective, _ = Objective.from_module(network(), cross_entropy, (randn(5, 5), labels(5, 3)))
    assert objective.partition == (1, 1, 1, 1, 1)


# ---- forms of the data --------------------------------------------------------------------------------------------


class Pairs(Dataset):
    """A map-style data set; with ``noise`` it augments by numbers of that generator."""

    def __init__(self, noise: object = None) -> None:
        self.x, self.y, self.noise = randn(30, 5), labels(30, 3), noise

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index] + (0 if self.noise is None else self.noise()), self.y[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(x, y) for x, y in zip(randn(30, 5), labels(30, 3), strict=True)])


SOURCES = {
    "tensors": lambda: (randn(30, 5), labels(30, 3)),
    "list of tensors": lambda: [randn(30, 5), labels(30, 3)],
    "TensorDataset": lambda: TensorDataset(randn(30, 5), labels(30, 3)),
    "map-style data set": Pairs,
    "iterable data set": Stream,
    "loader": lambda: DataLoader(Pairs(), batch_size=4, shuffle=True),
    "list of batches": lambda: [(randn(30, 5)[:9], labels(30, 3)[:9]), [randn(30, 5)[9:], labels(30, 3)[9:]]],
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_form_of_data_gives_the_same_value(source):
    objective, theta = Objective.from_module(network(), cross_entropy, SOURCES[source]())
    expected, _ = Objective.from_module(network(), cross_entropy, (randn(30, 5), labels(30, 3)))
    assert objective.examples == 30
    assert close(objective.value(theta), expected.value(theta), ROUNDING)


RANDOM_NUMBERS = {
    "torch": lambda: torch.randn(()),
    "numpy": lambda: torch.tensor(np.random.randn()),
    "python": lambda: torch.tensor(random.gauss(0, 1), dtype=torch.float64),
}


@pytest.mark.parametrize("wrap", [lambda d: d, DataLoader, lambda d: DataLoader(d, batch_size=7, shuffle=True)])
@pytest.mark.parametrize("library", RANDOM_NUMBERS)
def test_random_augmentation_is_refused_whichever_generator_it_draws_from(library, wrap):
    with pytest.raises(DataError, match="augmentation"):
        Objective.from_module(network(), cross_entropy, wrap(Pairs(RANDOM_NUMBERS[library])))


def test_a_loader_that_drops_other_examples_each_time_is_refused():
    loader = DataLoader(Pairs(), batch_size=7, shuffle=True, drop_last=True)
    with pytest.raises(DataError, match="drop_last"):
        Objective.from_module(network(), cross_entropy, loader)


class Alternating:
    """Batches that differ from the second reading on, as ``change`` says."""

    def __init__(self, change) -> None:
        self.change, self.readings = change, 0

    def __iter__(self):
        x, y = randn(6, 5), labels(6, 3)
        self.readings += 1
        return iter([(x, y) if self.readings == 1 else self.change(x, y)])


def test_the_same_examples_in_another_order_are_accepted_but_not_with_exchanged_targets():
    y = labels(6, 3)
    assert len(y.unique()) > 1
    Objective.from_module(network(), cross_entropy, Alternating(lambda x, y: (x.flip(0), y.flip(0))))
    with pytest.raises(DataError, match="same examples"):
        Objective.from_module(network(), cross_entropy, Alternating(lambda x, y: (x, y.roll(1))))


BAD_DATA = {
    "generator": (lambda: (batch for batch in [(randn(5, 5), labels(5, 3))]), r"Pass list\(data\)"),
    "iterator": (lambda: iter([(randn(5, 5), labels(5, 3))]), r"Pass list\(data\)"),
    "nothing": (lambda: None, "NoneType"),
    "no batches": (list, "at least one batch"),
    "empty tensors": (lambda: (randn(0, 5), labels(0, 3)), "positive length"),
    "empty batch": (lambda: [(randn(0, 5), labels(0, 3))], "positive length"),
    "lengths": (lambda: (randn(5, 5), labels(4, 3)), r"\[5, 4\]"),
    "lengths in a batch": (lambda: [(randn(5, 5), labels(5, 3)), (randn(5, 5), labels(4, 3))], r"\[5, 4\]"),
    "lengths in a dictionary": (lambda: [{"inputs": randn(5, 5), "targets": labels(4, 3)}], r"\[5, 4\]"),
    "inputs alone": (lambda: randn(5, 5), "without targets"),
    "inputs alone in a tuple": (lambda: (randn(5, 5),), "without targets"),
    "inputs alone in a data set": (lambda: TensorDataset(randn(5, 5)), "without targets"),
    "inputs alone in batches": (lambda: DataLoader(TensorDataset(randn(5, 5))), "without targets"),
    "arrays": (lambda: (randn(5, 5).numpy(), labels(5, 3).numpy()), "batches of tensors"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_right_are_refused(case):
    make, message = BAD_DATA[case]
    with pytest.raises(DataError, match=message):
        Objective.from_module(network(), cross_entropy, make())


# ---- accuracy -----------------------------------------------------------------------------------------------------


class Output(nn.Module):
    """The inputs themselves, shifted by one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift


def accuracy(x: torch.Tensor, y: torch.Tensor, loss=lambda o, t: (o.sum() * 0 + 1, 1), **options: object) -> float:
    objective, theta = Objective.from_module(Output(), loss, (x, y), **options)
    return objective.evaluate(theta).accuracy


def test_accuracy_is_the_fraction_of_targets_that_have_the_largest_output():
    x = torch.eye(4, dtype=torch.float64)
    constant = {"loss": lambda o, t: o.sum(1) * 0}
    assert accuracy(x, torch.tensor([0, 1, 2, 3]), **constant) == 1.0
    assert accuracy(x, torch.tensor([0, 1, 3, 2]), **constant, chunk_size=3) == 0.5
    assert accuracy(x, torch.tensor([1, 2, 3, 0]), **constant) == 0.0


def test_accuracy_does_not_count_negative_targets():
    x = torch.eye(4, dtype=torch.float64)
    assert accuracy(x, torch.tensor([0, -100, 3, -1]), loss=lambda o, t: o.sum(1) * 0) == 0.5
    assert math.isnan(accuracy(x, torch.full((4,), -100), loss=lambda o, t: o.sum(1) * 0))


def test_accuracy_of_sequences_counts_every_counted_token():
    x = torch.zeros(2, 3, 4, dtype=torch.float64)  # two sequences of four tokens of three classes
    x[:, 2] = 1.0
    y = torch.tensor([[2, 2, 0, -100], [2, -100, -100, -100]])
    assert accuracy(x, y, loss=lambda o, t: o.sum((1, 2)) * 0) == 0.75


@pytest.mark.parametrize(
    ("x", "y"),
    [(randn(4, 3), randn(4, 3, key="y")), (randn(4), randn(4, key="y")), (randn(4), labels(4, 2))],
    ids=["regression", "one-dimensional regression", "one output"],
)
def test_accuracy_is_nan_where_it_has_no_meaning(x, y):
    assert math.isnan(accuracy(x, y, loss=squares))


def test_accuracy_is_nan_for_a_loss_inside_the_model():
    batches = [{"inputs": randn(5, 5), "targets": labels(5, 3)}]
    objective, theta = Objective.from_module(Wrapped(), "model", batches)
    assert math.isnan(objective.evaluate(theta).accuracy)


# ---- θ: which parameters, which precision -------------------------------------------------------------------------


def test_theta_is_a_copy_and_the_objective_does_not_follow_the_module():
    module = nn.Linear(5, 3, bias=False).double()
    objective, theta = Objective.from_module(module, cross_entropy, (randn(9, 5), labels(9, 3)), parameters="weight")
    before, weight = objective.value(theta), module.weight.detach().clone()
    copied = theta.clone()
    theta.zero_()
    assert torch.equal(module.weight, weight)
    module.weight.data.fill_(3.0)
    assert objective.value(copied) == before


def test_parameters_not_named_are_constants_and_the_gradient_is_the_part_of_the_full_one():
    data = randn(40, 5), labels(40, 3)
    full, theta = Objective.from_module(network(), cross_entropy, data)
    part, own = Objective.from_module(network(), cross_entropy, data, parameters=["2.*"])
    assert part.space.names == ("2.weight", "2.bias")
    assert torch.equal(own, theta[-part.size :])
    assert close(part.value(own), full.value(theta), ROUNDING)
    assert close(part.gradient(own), full.gradient(theta)[-part.size :], ROUNDING)


def test_frozen_parameters_are_constants():
    module, data = network(), (randn(40, 5), labels(40, 3))
    full, theta = Objective.from_module(module, cross_entropy, data)
    module[0].requires_grad_(False)
    part, own = Objective.from_module(module, cross_entropy, data)
    assert part.size == 6 * 3 + 3
    assert close(part.gradient(own), full.gradient(theta)[-part.size :], ROUNDING)


def test_unused_parameters_have_gradient_0():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = network(), nn.Linear(2, 2).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    objective, theta = Objective.from_module(Partly(), cross_entropy, (randn(9, 5), labels(9, 3)))
    gradient = objective.space.unflatten(objective.gradient(theta))
    assert {name for name, part in gradient.items() if not part.any()} == {"unused.weight", "unused.bias"}


class Tied(nn.Module):
    """One matrix as encoder and, transposed, as decoder: registered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 5, bias=False).double()
        self.decoder = nn.Linear(5, 5, bias=False).double()
        self.decoder.weight = self.encoder.weight
        self.encoder.weight.data.copy_(randn(5, 5, key="tied"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


def test_the_gradient_of_a_tied_weight_is_the_sum_over_its_uses():
    x, w = randn(20, 5), randn(5, 5, key="tied")
    objective, theta = Objective.from_module(Tied(), squares, (x, x))
    assert objective.size == 25
    uses = [w.clone().requires_grad_() for _ in range(2)]
    loss = (torch.tanh(x @ uses[0].T) @ uses[1].T - x).square().mean()
    assert close(objective.value(theta), loss.detach(), FORMULA)
    assert close(objective.gradient(theta), sum(torch.autograd.grad(loss, uses)).flatten(), FORMULA)


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.float16, None, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float32),
    ],
)
def test_the_precision_is_the_modules_half_raised_to_single_or_the_one_asked_for(own, asked, expected):
    objective, theta = Objective.from_module(network().to(own), cross_entropy, (randn(9, 5), labels(9, 3)), dtype=asked)
    assert theta.dtype == objective.dtype == objective.gradient(theta).dtype == expected
    double, _ = Objective.from_module(network(), cross_entropy, (randn(9, 5), labels(9, 3)))
    # θ in its own precision, f in another: float32 computes f of this size to some 1e-7
    assert close(objective.value(theta), double.value(theta.double()), 1e-6)


@pytest.mark.parametrize("chunk_size", [1, None])
def test_in_single_precision_losses_are_summed_in_double_within_chunks_and_over_them(chunk_size):
    # a float32 sum of 2,000 numbers near 1 is off by 1e-8 to 1e-4 of itself, a float64 one by 1e-15
    y = torch.rand(2000, generator=torch.Generator().manual_seed(0)) + 0.5
    objective, theta = Objective.from_module(
        nn.Linear(1, 1), lambda o, t: t + 0 * o[:, 0], (y[:, None], y), chunk_size=chunk_size
    )
    assert objective.value(theta) == pytest.approx(float(y.double().mean()), rel=ROUNDING)


def test_replacing_the_chunk_size_or_the_precision_keeps_the_rest():
    objective, theta = Objective.from_module(network(), cross_entropy, (randn(40, 5), labels(40, 3)), l2=0.1)
    cut = objective.replace(chunk_size=7)
    assert cut.partition == (7, 7, 7, 7, 7, 5)
    assert close(cut.value(theta), objective.value(theta), ROUNDING)
    single = objective.replace(dtype=torch.float32)
    assert single.gradient(theta).dtype == torch.float32
    assert close(single.value(theta), objective.value(theta), 1e-6)  # some roundings of 6e-8
    back = single.replace(dtype=torch.float64)
    assert close(back.value(theta), objective.value(theta), ROUNDING)


def test_the_conditions_name_every_choice_that_the_numbers_hold_under():
    objective, _ = Objective.from_module(network(), cross_entropy, (randn(40, 5), labels(40, 3)), l2=0.1, chunk_size=15)
    expected = {"parameters": 57, "examples": 40, "chunk_size": 15, "chunks": 3, "batchnorm": "none", "l2": 0.1}
    assert expected.items() <= objective.conditions.items()
    assert {"device": "cpu", "dtype": "float64"}.items() <= objective.conditions.items()


# ---- places -------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A network with frozen weights below, trainable ones above and a buffer in between."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.below = nn.Linear(5, 4).double().requires_grad_(False)
        self.above = nn.Linear(4, 3).double()
        self.register_buffer("scale", torch.ones(4, dtype=torch.float64))
        with torch.no_grad():
            for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
                tensor.copy_(randn(*tensor.shape, key=f"{name} {seed}"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.above(torch.tanh(self.below(x)) * self.scale)


@pytest.mark.parametrize("batchnorm", ["eval", "batch", "recompute"])
def test_a_minimizer_brings_its_buffers_and_frozen_weights(batchnorm):
    x, y, other = randn(20, 5), labels(20, 3), Scaled(seed=1)
    objective, theta = Objective.from_module(Scaled(), cross_entropy, (x, y), batchnorm=batchnorm)
    minimizer = Minimizer.of(other)
    assert close(objective.value(theta), F.cross_entropy(Scaled()(x), y).detach(), FORMULA)
    assert close(objective.value(minimizer), F.cross_entropy(other(x), y).detach(), FORMULA)
    assert close(objective.value(objective.with_statistics(minimizer)), objective.value(minimizer), ROUNDING)
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(F.cross_entropy(other(x), y), [*other.above.parameters()])]
    )
    assert close(objective.gradient(minimizer), expected, FORMULA)


def test_theta_alone_uses_the_buffers_that_the_model_had():
    x, y, other = randn(20, 5), labels(20, 3), Scaled(seed=1)
    objective, _ = Objective.from_module(Scaled(), cross_entropy, (x, y))
    mixed = Scaled()
    mixed.above.load_state_dict(other.above.state_dict())
    assert close(objective.value(Minimizer.of(other).point.theta), F.cross_entropy(mixed(x), y).detach(), FORMULA)


@pytest.mark.parametrize("buffers", [{"scale": torch.ones(5)}, {"scales": torch.ones(4)}], ids=["shape", "name"])
def test_buffers_that_do_not_fit_the_model_are_refused(buffers):
    objective, theta = Objective.from_module(Scaled(), cross_entropy, (randn(9, 5), labels(9, 3)))
    with pytest.raises(ShapeError, match="buffer 'scale"):
        objective.value(Point(theta, buffers))


@pytest.mark.parametrize("method", ["value", "gradient", "evaluate", "value_and_gradient", "with_statistics"])
@pytest.mark.parametrize("shape", [(56,), (58,), (57, 1), (1, 57), ()])
def test_a_place_of_another_shape_is_refused_by_every_method(method, shape):
    objective, _ = Objective.from_module(network(), cross_entropy, (randn(9, 5), labels(9, 3)))
    with pytest.raises(ShapeError, match=r"\(57,\)"):
        getattr(objective, method)(torch.zeros(shape))


def test_a_place_of_another_kind_is_refused():
    objective, theta = Objective.from_module(network(), cross_entropy, (randn(9, 5), labels(9, 3)))
    with pytest.raises(ShapeError, match="ndarray"):
        objective.value(theta.numpy())


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_a_model_that_is_random_in_eval_mode_is_refused():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.net(x), 0.5, training=True)

    with pytest.raises(NonDeterministicError, match="two evaluations gave"):
        Objective.from_module(Noisy(), cross_entropy, (randn(20, 5), labels(20, 3)))


def test_a_loss_that_is_random_is_refused():
    with pytest.raises(NonDeterministicError):
        Objective.from_module(
            network(), lambda o, t: cross_entropy(o, t) + torch.rand(()), (randn(20, 5), labels(20, 3))
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_and_data_that_are_not_finite_are_refused(bad):
    module = network()
    with pytest.raises(NonFiniteError, match="expected a finite loss"):
        Objective.from_module(module, squares, (randn(9, 5), bad + randn(9, 3)))
    module[2].bias.data[0] = bad
    with pytest.raises(NonFiniteError, match="diverge"):
        Objective.from_module(module, squares, (randn(9, 5), randn(9, 3)), chunk_size=4)


def test_the_value_at_weights_that_are_not_finite_is_nan_and_no_error():
    # a landscape must be able to say where it has no number
    objective, theta = Objective.from_module(network(), cross_entropy, (randn(9, 5), labels(9, 3)))
    assert math.isnan(objective.value(theta * math.nan))


@pytest.mark.parametrize(
    "detach", [lambda o, t: cross_entropy(o.detach(), t), lambda o, t: cross_entropy(o, t).detach()]
)
def test_a_detached_loss_has_a_value_but_its_gradient_is_refused(detach):
    objective, theta = Objective.from_module(network(), detach, (randn(9, 5), labels(9, 3)), l2=0.1)
    assert math.isfinite(objective.value(theta))
    with pytest.raises(UnsupportedModelError, match="detached"):
        objective.gradient(theta)
    with pytest.raises(UnsupportedModelError, match="detached"):
        Hessian(objective, theta)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk_size": 0}, ShapeError, "chunk_size >= 1; got 0"),
        ({"chunk_size": -1}, ShapeError, "chunk_size >= 1; got -1"),
        ({"dtype": torch.float16}, ShapeError, "float16"),
        ({"dtype": torch.int64}, ShapeError, "int64"),
        ({"device": "mps"}, UnsupportedModelError, "float64"),
        ({"parameters": "head.*"}, UnsupportedModelError, "head"),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Objective.from_module(network(), cross_entropy, (randn(9, 5), labels(9, 3)), **options)


def test_a_function_is_no_model():
    with pytest.raises(UnsupportedModelError, match=r"expected a torch\.nn\.Module; got function"):
        Objective.from_module(lambda x: x, cross_entropy, (randn(9, 5), labels(9, 3)))


def test_a_sharded_model_is_refused():
    class FullyShardedDataParallel(nn.Sequential):
        """Stands for PyTorch's own, which cannot be made without a process group."""

    with pytest.raises(UnsupportedModelError, match="FSDP"):
        Objective.from_module(FullyShardedDataParallel(network()), cross_entropy, (randn(9, 5), labels(9, 3)))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    ],
    ids=["parallel", "compiled", "both"],
)
def test_wrapped_models_are_unwrapped_names_included(wrap):
    data = randn(9, 5), labels(9, 3)
    plain, theta = Objective.from_module(network(), cross_entropy, data)
    wrapped, own = Objective.from_module(wrap(network()), cross_entropy, data)
    assert wrapped.space == plain.space
    assert torch.equal(own, theta)
    assert torch.equal(wrapped.gradient(own), plain.gradient(theta))


# ---- the caller's state -------------------------------------------------------------------------------------------


class Busy(nn.Module):
    """Batch norm, dropout, a frozen layer, a limit of its inputs; meant to be in train mode."""

    limit = 1e6

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)
        ).double()
        self.net[0].bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x.abs() > self.limit).any()):
            raise ZeroDivisionError("a model that fails at some examples")
        return self.net(x)


def busy() -> Busy:
    module = Busy().train()
    module.net[4].eval()  # a mixed mode, as after fine-tuning code
    F.cross_entropy(module(randn(20, 5)), labels(20, 3)).backward()
    return module


def state_of(module: nn.Module, loader: DataLoader) -> list[object]:
    """All that a caller may see: weights, buffers, gradients, flags, modes, hooks, random states, global settings."""
    name, key, *place = np.random.get_state()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return [
        {n: (id(t), t._version, t.detach().numpy().tobytes(), t.requires_grad, t.dtype) for n, t in tensors.items()},
        {n: None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for n, p in module.named_parameters()},
        {n: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in module.named_modules()},
        (torch.get_rng_state().numpy().tobytes(), loader.generator.get_state().numpy().tobytes()),
        (name, key.tobytes(), tuple(place), random.getstate()),
        (torch.is_grad_enabled(), torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()),
    ]


def made(module: nn.Module, loader: DataLoader, **options: object) -> tuple[Objective, torch.Tensor]:
    return Objective.from_module(module, cross_entropy, loader, chunk_size=15, **options)


def product(module: nn.Module, loader: DataLoader, **options: object) -> torch.Tensor:
    objective, theta = made(module, loader)
    return Hessian(objective, theta, **options) @ torch.ones(objective.size)


ACTIONS = {
    "from_module": made,
    "value": lambda m, d: (lambda f, theta: f.value(2 * theta))(*made(m, d)),
    "value, batch statistics": lambda m, d: (lambda f, theta: f.value(2 * theta))(*made(m, d, batchnorm="batch")),
    "value, recomputed": lambda m, d: (lambda f, theta: f.value(2 * theta))(*made(m, d, batchnorm="recompute")),
    "evaluate": lambda m, d: (lambda f, theta: f.evaluate(theta))(*made(m, d)),
    "gradient": lambda m, d: (lambda f, theta: f.gradient(theta))(*made(m, d)),
    "gradient, batch statistics": lambda m, d: (lambda f, theta: f.gradient(theta))(*made(m, d, batchnorm="batch")),
    "Hessian and product": product,
    "product without memory": lambda m, d: product(m, d, memory=0),
    "minimizer": lambda m, d: (lambda f, _: f.value(Minimizer.of(m)))(*made(m, d)),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_the_callers_model_loader_and_random_state_stay_as_they_are(action):
    data = TensorDataset(randn(40, 5), labels(40, 3))
    module, loader = busy(), DataLoader(data, batch_size=20, shuffle=True, generator=torch.Generator())
    before = state_of(module, loader)
    ACTIONS[action](module, loader)
    assert state_of(module, loader) == before


class Breaking(Dataset):
    """A data set with random numbers in it that breaks in the middle."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == 30:
            raise ZeroDivisionError("a data set that fails")
        return torch.randn(5) + np.random.rand() + random.random(), torch.tensor(0)


def with_outlier(place: int) -> torch.Tensor:
    x = randn(40, 5)
    x[place] = 1e7  # the model raises there
    return x


def loader_over(data: Dataset, *, shuffle: bool = False) -> DataLoader:
    return DataLoader(data, batch_size=20, shuffle=shuffle, generator=torch.Generator())


FAILURES = {
    "the model": (loader_over(TensorDataset(with_outlier(0), labels(40, 3))), ZeroDivisionError),
    "the data set": (loader_over(Breaking(), shuffle=True), ZeroDivisionError),
    "augmentation": (loader_over(Pairs(lambda: torch.randn(())), shuffle=True), DataError),
    "lengths": (loader_over(TensorDataset(randn(40, 5)), shuffle=True), DataError),
    "an option": (loader_over(TensorDataset(randn(40, 5), labels(40, 3))), ShapeError),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_callers_state_stays_as_it_is_when_making_the_objective_fails(failure):
    loader, error = FAILURES[failure]
    module = busy()
    before = state_of(module, loader)
    options = {"batchnorm": "train"} if failure == "an option" else {}
    with pytest.raises(error):
        made(module, loader, **options)
    assert state_of(module, loader) == before


@pytest.mark.parametrize("method", ["value", "gradient", "evaluate", "value_and_gradient", "with_statistics"])
@pytest.mark.parametrize("batchnorm", ["eval", "batch"])
def test_the_callers_state_stays_as_it_is_when_the_model_fails_in_a_later_chunk(method, batchnorm, monkeypatch):
    module, loader = busy(), loader_over(TensorDataset(with_outlier(39), labels(40, 3)))
    before = state_of(module, loader)
    with monkeypatch.context() as patch:
        patch.setattr(Busy, "limit", 1e9)  # so that making the objective, which looks at many batches, succeeds
        objective, theta = made(module, loader, batchnorm=batchnorm)
    with pytest.raises(ZeroDivisionError):
        getattr(objective, method)(theta)
    with pytest.raises(ZeroDivisionError):
        Hessian(objective, theta)
    assert state_of(module, loader) == before


# ---- problems -----------------------------------------------------------------------------------------------------


def test_a_problem_is_made_of_a_tuple_with_or_without_test_data():
    train, test = (randn(9, 5), labels(9, 3)), (randn(4, 5), labels(4, 3))
    module = network()
    problem = Problem.of((module, cross_entropy, train, test))
    assert Problem.of(problem) is problem
    objectives, theta = problem.objectives(dtype=torch.float32, batchnorm="batch")
    assert {name: objective.examples for name, objective in objectives.items()} == {"train": 9, "test": 4}
    assert theta.dtype == torch.float32
    assert all(objective.batchnorm == "batch" for objective in objectives.values())
    assert list(Problem.of((module, cross_entropy, train)).objectives()[0]) == ["train"]


@pytest.mark.parametrize("made", [None, (1, 2, 3), (network(), cross_entropy), [network(), cross_entropy, ()]])
def test_anything_else_is_no_problem(made):
    with pytest.raises(UnsupportedModelError, match=r"tuple \(model, loss, train\[, test\]\)"):
        Problem.of(made)


def test_a_mean_over_unmasked_targets_is_refused_wherever_the_masks_are():
    inputs, targets = randn(64, 5), labels(64, 3)
    targets[40:44] = -100  # in the third of four batches
    batches = [(inputs[i : i + 16], targets[i : i + 16]) for i in range(0, 64, 16)]
    module = nn.Linear(5, 3).double()
    for data in (batches, DataLoader(TensorDataset(inputs[36:48], targets[36:48]), batch_size=1)):
        with pytest.raises(UnsupportedModelError, match="add up"):
            Objective.from_module(module, nn.CrossEntropyLoss(), data)


class Logits(NamedTuple):
    logits: torch.Tensor


def test_classes_come_last_in_the_logits_of_an_output_also_where_shapes_fit_both_ways():
    logits, target = torch.linspace(-3, 3, 4 * 6 * 6).sin().reshape(4, 6, 6), torch.arange(24).reshape(4, 6) % 6
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(4, 6)
    torch.testing.assert_close(cross_entropy(Logits(logits), target), by_hand)
    one_less, classes = logits[..., :5], target.clamp(max=4)
    torch.testing.assert_close(cross_entropy(one_less, classes), cross_entropy(Logits(one_less), classes))
    usual = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert torch.equal(cross_entropy(logits, target), usual)


def test_masked_targets_do_not_count():
    x, y = torch.linspace(-1, 1, 20).reshape(10, 2), torch.arange(10) % 3
    y[::2] = -100
    torch.manual_seed(0)
    module = nn.Linear(2, 3)
    f, theta = Objective.from_module(module, cross_entropy, (x, y))
    assert f.value(theta) == pytest.approx(torch.nn.functional.cross_entropy(module(x), y).item(), rel=1e-6)


def test_a_mean_over_batches_of_other_lengths_is_refused_where_their_targets_are_not_as_many():
    x = torch.linspace(-1, 1, 12).reshape(6, 2)
    batches = [(x, torch.zeros(6, 2)), (x, torch.zeros(6, 5))]

    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, inputs):
            return (inputs @ self.weight)[:, None]

    def mean(output, target):
        return (output - target).square().mean()

    with pytest.raises(
        UnsupportedModelError, match="as many targets for each example in every batch; there are 2 to 5"
    ):
        Objective.from_module(Repeated(), mean, batches)
    f, theta = Objective.from_module(Repeated(), lambda o, t: (o - t).square(), batches)
    assert f.value(theta) == pytest.approx((x.sum(1) ** 2).mean().item())
    masked = [(x, torch.tensor([0, 1, 0, 1, 0, 1])), (x, torch.tensor([0, 1, -100, -100, -100, -100]))]
    with pytest.raises(UnsupportedModelError):
        Objective.from_module(nn.Linear(2, 2), nn.CrossEntropyLoss(), masked)


def test_the_accuracy_of_a_loss_of_ones_own_over_sequences_is_not_guessed():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 5)

        def forward(self, tokens):
            return Logits(self.table(tokens))

    tokens = torch.arange(24).reshape(4, 6) % 5

    def shifted(output, target):
        return F.cross_entropy(output.logits[:, :-1].transpose(1, 2), target[:, 1:], reduction="none")

    f, theta = Objective.from_module(Model(), shifted, (tokens, tokens))
    assert math.isnan(f.evaluate(theta).accuracy)
    g, theta = Objective.from_module(Model(), cross_entropy, (tokens, tokens))
    assert 0 <= g.evaluate(theta).accuracy <= 1
