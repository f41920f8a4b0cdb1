"""Hessian-vector products against dense float64 Hessians and closed forms, and the algebra of symmetric operators."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import filled, labels, randn
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness import Dense, Hessian, Minimizer, Objective, cross_entropy
from sharpness.errors import NonFiniteError, ShapeError, UnsupportedModelError
from sharpness.objective import execution, free_bytes
from sharpness.operators.linearised import RetainedGraph
from sharpness.random import normal

# Two exact formulas for one product in float64: some hundred roundings of 1.1e-16 along the way.
EXACT = 1e-12


def mlp(activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    return filled(nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)))


def convolutional() -> nn.Module:
    layers = (
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.Softplus(),
        nn.AvgPool2d(2),
    )
    return filled(
        nn.Sequential(*layers, nn.Conv2d(2, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(2, 3))
    )


class Tied(nn.Module):
    """One matrix used twice, under two names, the second time transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)
        filled(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        return self.head(torch.tanh(F.linear(hidden, self.second.weight.T, self.second.bias)))


class Partly(nn.Module):
    """Frozen below, unused beside, linear above: curvature in some blocks only."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.used, self.unused = nn.Linear(4, 4), mlp(), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        filled(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(self.frozen(x))


class Attention(nn.Module):
    """A block of causal self-attention by PyTorch's fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.head = nn.Linear(4, 12), nn.LayerNorm(4), nn.Linear(4, 3)
        filled(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mix(x.view(len(x), 4, 4)).view(len(x), 4, 2, 6).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(self.norm(mixed.transpose(1, 2).flatten(2)).mean(1))


def reference(
    module: nn.Module, objective: Objective, theta: torch.Tensor, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """∇² of the mean cross-entropy over all examples, entry by entry, by PyTorch's dense Hessian."""
    module = copy.deepcopy(module).requires_grad_(False).train(objective.batchnorm == "batch")

    def f(theta: torch.Tensor) -> torch.Tensor:
        total = theta.new_zeros(())
        for x, y in batches:
            output = functional_call(module, objective.space.unflatten(theta), (x,))
            total = total + F.cross_entropy(output, y, reduction="sum")
        return total / sum(len(y) for _, y in batches)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(f, theta)


def inputs(count: int, features: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return randn(count, features), labels(count)


def cut(pair: tuple[torch.Tensor, torch.Tensor], *sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(pair[0].split(sizes), pair[1].split(sizes), strict=True))


CASES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "MLP": (mlp, cut(inputs(512), 500, 12), {}),
    "ReLU": (lambda: mlp(nn.ReLU), cut(inputs(512), 500, 12), {}),
    "batches of 1, 30 and 9": (mlp, cut(inputs(40), 1, 30, 9), {}),
    "convolutions, eval": (convolutional, cut(inputs(512, 16), 500, 12), {}),
    "convolutions, batch": (convolutional, cut(inputs(512, 16), 500, 12), {"batchnorm": "batch"}),
    "tied weights": (Tied, cut(inputs(512), 500, 12), {}),
    "frozen and unused weights": (Partly, cut(inputs(512), 500, 12), {}),
    "one layer": (mlp, cut(inputs(512), 500, 12), {"parameters": "0.*"}),
    "biases": (mlp, cut(inputs(512), 500, 12), {"parameters": ["*.bias"]}),
    "attention": (Attention, cut(inputs(30, 16), 20, 10), {}),
}


class Case(NamedTuple):
    """An operator by products, the dense matrix it stands for, and what it was made of."""

    operator: Hessian
    matrix: torch.Tensor
    objective: Objective
    theta: torch.Tensor


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    make, batches, options = CASES[request.param]
    objective, theta = Objective.from_module(make(), cross_entropy, batches, **options)
    return Case(Hessian(objective, theta), reference(make(), objective, theta, batches), objective, theta)


@pytest.fixture(scope="module")
def objective() -> Objective:
    """Of the MLP over chunks of 16, 16 and 8."""
    return Objective.from_module(mlp(), cross_entropy, inputs(40), chunk_size=16)[0]


@pytest.fixture(scope="module")
def theta() -> torch.Tensor:
    return Minimizer.of(mlp()).point.theta


@pytest.fixture(scope="module")
def hessian(objective: Objective, theta: torch.Tensor) -> Hessian:
    return Hessian(objective, theta)


# ---- against dense Hessians ---------------------------------------------------------------------------------------


def test_products_are_those_of_the_dense_hessian(case):
    operator, matrix, *_ = case
    v = randn(len(matrix), key="v")
    assert operator.shape == matrix.shape
    assert (operator @ v - matrix @ v).norm() <= EXACT * (matrix @ v).norm()


def test_the_product_with_the_identity_has_the_spectrum_of_the_dense_hessian(case):
    operator, matrix, *_ = case
    found = torch.linalg.eigvalsh(operator @ torch.eye(len(matrix), dtype=torch.float64))
    # 1e-12 of the product gives that of ‖H‖ in eigenvalues (Weyl); 1e-8 is asked
    assert (found - torch.linalg.eigvalsh(matrix)).abs().max() <= 1e-8 * matrix.abs().max()


def test_products_are_symmetric(case):
    operator, matrix, *_ = case
    u, v = randn(len(matrix), key="u"), randn(len(matrix), key="v")
    assert abs(float(u @ (operator @ v) - v @ (operator @ u))) <= EXACT * float((matrix @ v).norm() * u.norm())


def test_products_without_memory_are_the_same_bits(case):
    operator, matrix, objective, theta = case
    rebuilt = Hessian(objective, theta, memory=0)
    vectors = randn(len(matrix), 3, key="v")
    assert rebuilt.conditions["execution"]["retained_chunks"] == rebuilt.retained_bytes == 0
    assert operator.conditions["execution"]["retained_chunks"] == operator.conditions["chunks"]
    assert torch.equal(rebuilt @ vectors, operator @ vectors)


def test_a_block_is_multiplied_column_by_column_to_the_bit(case):
    operator, matrix, *_ = case
    block = randn(len(matrix), 3, key="v")
    assert torch.equal(operator @ block, torch.stack([operator @ column for column in block.T], dim=1))


def test_a_block_multiplied_at_once_is_that_multiplied_column_by_column(case, monkeypatch):
    columns = randn(case.operator.shape[0], 3, key="block")
    expected = case.operator @ columns
    monkeypatch.setattr(case.operator._chunks, "batched", True)
    blocked = case.operator @ columns
    assert case.operator._chunks.batched, "no operation of these models stands in the way"
    assert (blocked - expected).norm() <= EXACT * expected.norm()


def test_a_block_that_cannot_be_multiplied_at_once_is_multiplied_column_by_column(hessian, monkeypatch):
    columns = randn(hessian.shape[0], 3, key="block")
    expected = hessian @ columns

    def refuse(*_: object) -> None:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(hessian._chunks, "batched", True)
    monkeypatch.setattr(RetainedGraph, "products", refuse)
    assert torch.equal(hessian @ columns, expected)


def test_products_are_those_of_forward_over_reverse_differentiation():
    module, (x, y) = mlp(), inputs(40)
    objective, theta = Objective.from_module(module, cross_entropy, (x, y), chunk_size=16)

    def f(theta: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(module, objective.space.unflatten(theta), (x,)), y)

    v = randn(objective.size, key="v")
    _, expected = torch.func.jvp(torch.func.grad(f), (theta,), (v,))
    assert (Hessian(objective, theta) @ v - expected).norm() <= EXACT * expected.norm()


@pytest.mark.parametrize("batchnorm", ["eval", "batch"])
def test_products_are_the_slope_of_the_gradient(batchnorm):
    objective, theta = Objective.from_module(convolutional(), cross_entropy, inputs(40, 16), batchnorm=batchnorm)
    v, h = randn(objective.size, key="v"), 1e-5
    slope = (objective.gradient(theta + h * v) - objective.gradient(theta - h * v)) / (2 * h)
    # central differences: h² times a fourth derivative of order 10² to 10³, and rounding 1e-16 / h = 1e-11
    assert (Hessian(objective, theta) @ v - slope).norm() <= 1e-6 * slope.norm()


# ---- closed forms -------------------------------------------------------------------------------------------------


def test_softmax_regression_has_its_closed_form():
    x, y, w = randn(50, 4), labels(50), randn(3, 4, key="w")
    objective, _ = Objective.from_module(nn.Linear(4, 3, bias=False).double(), cross_entropy, (x, y), chunk_size=20)
    p = torch.softmax(x @ w.T, dim=1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nab,ni,nj->aibj", middle, x, x).reshape(12, 12) / 50
    found = Hessian(objective, w.flatten()) @ torch.eye(12, dtype=torch.float64)
    assert (found - expected).norm() <= EXACT * expected.norm()


def test_logistic_regression_has_its_closed_form():
    x, y, w = randn(50, 4), (labels(50) > 0).double(), randn(4, key="w")
    loss = nn.BCEWithLogitsLoss(reduction="none")
    objective, _ = Objective.from_module(nn.Linear(4, 1, bias=False).double(), lambda o, t: loss(o[:, 0], t), (x, y))
    p = torch.sigmoid(x @ w)
    expected = x.T @ ((p * (1 - p))[:, None] * x) / 50
    found = Hessian(objective, w) @ torch.eye(4, dtype=torch.float64)
    assert (found - expected).norm() <= EXACT * expected.norm()


def test_linear_regression_has_the_same_hessian_everywhere():
    x, y = randn(50, 4), randn(50, key="y")
    objective, theta = Objective.from_module(
        nn.Linear(4, 1, bias=False).double(), lambda o, t: 0.5 * (o[:, 0] - t).square(), (x, y)
    )
    expected = x.T @ x / 50
    for place in (theta, 100 * theta, torch.zeros_like(theta)):
        found = Hessian(objective, place) @ torch.eye(4, dtype=torch.float64)
        assert (found - expected).norm() <= EXACT * expected.norm()


def test_a_loss_linear_in_theta_has_hessian_0():
    objective, theta = Objective.from_module(
        nn.Linear(4, 1).double(), lambda o, t: o[:, 0] * t, (randn(9, 4), randn(9))
    )
    assert not (Hessian(objective, theta) @ randn(5, 2)).any()
    assert not (Hessian(objective, theta, memory=0) @ randn(5, 2)).any()


def test_unused_and_linear_parameters_have_no_curvature_and_the_others_theirs():
    objective, theta = Objective.from_module(Partly(), cross_entropy, inputs(20))
    product = objective.space.unflatten(Hessian(objective, theta) @ randn(objective.size, key="v"))
    assert {name for name, part in product.items() if not part.any()} == {"unused.weight", "unused.bias"}


@pytest.mark.parametrize("memory", [None, 0])
def test_l2_adds_itself_times_the_identity(memory):
    plain, theta = Objective.from_module(mlp(), cross_entropy, inputs(40), chunk_size=16)
    decayed, _ = Objective.from_module(mlp(), cross_entropy, inputs(40), chunk_size=16, l2=0.3)
    v = randn(plain.size, 2, key="v")
    expected = Hessian(plain, theta) @ v + 0.3 * v
    assert (Hessian(decayed, theta, memory=memory) @ v - expected).norm() <= EXACT * expected.norm()


def test_the_hessian_of_all_data_is_the_weighted_mean_of_those_of_its_parts():
    x, y = inputs(40)
    v, products = randn(43, key="v"), {}
    for name, part in {"all": slice(0, 40), "first": slice(0, 33), "rest": slice(33, 40)}.items():
        objective, theta = Objective.from_module(mlp(), cross_entropy, (x[part], y[part]))
        products[name] = Hessian(objective, theta) @ v
    mixed = (33 * products["first"] + 7 * products["rest"]) / 40
    assert (products["all"] - mixed).norm() <= EXACT * mixed.norm()


def test_masked_tokens_weigh_by_a_pair_of_sum_and_weight():
    x, y = inputs(40)
    y[::3] = -100
    counted = y >= 0

    def loss(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.cross_entropy(output, target, reduction="sum", ignore_index=-100), (target >= 0).sum()

    objective, theta = Objective.from_module(mlp(), loss, (x, y), chunk_size=7)
    without, _ = Objective.from_module(mlp(), cross_entropy, (x[counted], y[counted]))
    v = randn(objective.size, key="v")
    expected = Hessian(without, theta) @ v
    assert (Hessian(objective, theta) @ v - expected).norm() <= EXACT * expected.norm()


# ---- algebra ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.integers(0, 2**32 - 1))
def test_products_are_linear(hessian, a, b, seed):
    u, v = (normal(hessian.shape[0], key=(key,), seed=seed, dtype=torch.float64) for key in "uv")
    separate = a * (hessian @ u), b * (hessian @ v)
    allowed = EXACT * (separate[0].norm() + separate[1].norm())
    assert (hessian @ (a * u + b * v) - sum(separate)).norm() <= allowed


def test_the_product_with_0_is_0_and_that_with_a_block_of_no_columns_has_none(hessian):
    n = hessian.shape[0]
    assert not (hessian @ torch.zeros(n)).any()
    assert (hessian @ torch.zeros(n, 0)).shape == (n, 0)
    assert (hessian @ torch.zeros(n, 1)).shape == (n, 1)


def test_a_strided_vector_is_multiplied_as_its_copy(hessian):
    block = randn(hessian.shape[0], 3, key="v")
    assert torch.equal(hessian @ block[:, 1], hessian @ block[:, 1].contiguous())
    assert torch.equal(hessian @ block.T.contiguous().T, hessian @ block)


def test_the_vector_is_left_as_it_is_and_cast_to_the_operators_precision(hessian):
    v = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(0))
    before = v.clone()
    assert (hessian @ v).dtype == hessian.dtype == torch.float64
    assert torch.equal(hessian @ v, hessian @ v.double())
    assert torch.equal(v, before)


def test_products_do_not_depend_on_what_was_multiplied_before(hessian):
    u, v = randn(hessian.shape[0], key="u"), randn(hessian.shape[0], key="v")
    first = hessian @ v
    hessian @ u
    assert torch.equal(hessian @ v, first)


def test_single_precision_products_are_right_to_its_rounding():
    objective, theta = Objective.from_module(mlp(), cross_entropy, inputs(512), chunk_size=100)
    single = objective.replace(dtype=torch.float32)
    v = randn(objective.size, key="v")
    found, expected = Hessian(single, theta) @ v, Hessian(objective, theta) @ v
    assert found.dtype == torch.float32
    # some ten roundings of 6e-8 per entry, averaged over the examples
    assert (found.double() - expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize("shape", [(42,), (44,), (1, 43), (43, 2, 1), ()])
def test_vectors_of_another_shape_are_refused_naming_both(hessian, shape):
    with pytest.raises(ShapeError, match=r"shape \(43,\) or block of shape \(43, b\)"):
        hessian @ torch.zeros(shape)


@pytest.mark.parametrize("vector", [np.zeros(43), [0.0] * 43, 1.0], ids=["array", "list", "number"])
def test_what_is_no_tensor_is_refused(hessian, vector):
    with pytest.raises(ShapeError, match="expected a torch vector"):
        hessian.__matmul__(vector)


# ---- the place and its memory -------------------------------------------------------------------------------------


def test_retained_memory_stops_where_it_is_told_and_the_bits_stay(hessian, objective, theta):
    one_chunk = hessian.retained_bytes * 16 // 40
    partly = Hessian(objective, theta, memory=one_chunk)
    assert partly.conditions["execution"]["retained_chunks"] == 1
    assert partly.retained_bytes == one_chunk
    v = randn(hessian.shape[0], key="v")
    assert torch.equal(partly @ v, hessian @ v)


def test_free_memory_is_a_positive_number_of_bytes_also_without_proc(monkeypatch):
    assert free_bytes(torch.device("cpu")) > 0
    monkeypatch.setattr(execution.Path, "read_text", lambda self: "")
    assert free_bytes(torch.device("cpu")) == 2**31


def test_free_memory_is_what_a_container_leaves(monkeypatch):
    files = {"/proc/meminfo": "MemAvailable: 1000 kB", "memory.max": "500000", "memory.current": "200000"}
    monkeypatch.setattr(execution.Path, "read_text", lambda self: files.get(str(self), files.get(self.name)))
    assert free_bytes(torch.device("cpu")) == 300_000
    files["memory.max"] = "max"
    assert free_bytes(torch.device("cpu")) == 1_024_000


@pytest.mark.parametrize("memory", [None, 0])
def test_the_operator_does_not_follow_what_happens_to_theta_or_the_model(memory):
    module = mlp()
    objective, theta = Objective.from_module(module, cross_entropy, inputs(40), chunk_size=16)
    operator = Hessian(objective, theta, memory=memory)
    v = randn(objective.size, key="v")
    before = operator @ v, operator.conditions
    theta.mul_(2.0)
    nn.init.zeros_(module[0].weight)
    assert torch.equal(operator @ v, before[0])
    assert operator.conditions == before[1]


def test_the_conditions_name_the_objective_and_the_place(hessian, objective, theta):
    own, of_objective = dict(hessian.conditions), dict(objective.conditions)
    execution, kernels = own.pop("execution"), of_objective.pop("execution")
    assert of_objective.items() <= own.items()
    assert kernels.items() <= execution.items()
    assert hessian.conditions["operator"] == "hessian"
    assert hessian.conditions["theta_sha256"] == Minimizer.of(mlp()).point.sha256
    assert Hessian(objective, 2 * theta).conditions["theta_sha256"] != Minimizer.of(mlp()).point.sha256


def test_a_minimizer_brings_its_own_statistics():
    objective, theta = Objective.from_module(convolutional(), cross_entropy, inputs(40, 16))
    other = convolutional()
    for layer in (other[2], other[6]):
        layer.running_var.mul_(3.0)
    own, _ = Objective.from_module(other, cross_entropy, inputs(40, 16))
    v = randn(objective.size, key="v")
    assert torch.equal(Hessian(objective, Minimizer.of(other)) @ v, Hessian(own, theta) @ v)
    assert not torch.equal(Hessian(objective, theta) @ v, Hessian(own, theta) @ v)


@pytest.mark.parametrize("count", [42, 44, 0])
def test_a_place_of_another_size_is_refused(objective, count):
    with pytest.raises(ShapeError, match=r"theta of shape \(43,\)"):
        Hessian(objective, torch.zeros(count))


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_is_refused():
    def root(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output[:, 0].abs().sqrt()  # finite at 0, its slope is not

    objective, theta = Objective.from_module(nn.Linear(4, 1, bias=False).double(), root, (randn(9, 4), randn(9)))
    with pytest.raises(NonFiniteError, match="finite gradient"):
        Hessian(objective, torch.zeros_like(theta))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_place_that_is_not_finite_is_refused(objective, theta, bad):
    spoiled = theta.clone()
    spoiled[-1] = bad  # a bias of the output, so that the loss is no number
    with pytest.raises(NonFiniteError, match="finite gradient"):
        Hessian(objective, spoiled)


class Once(torch.autograd.Function):
    """x², with a gradient that has none."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Once.apply(x)


ONCE = {
    "in the model": lambda: (mlp(Square), cross_entropy),
    "in the loss": lambda: (mlp(), lambda o, t: Once.apply(o).sum(1)),
}


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("where", ONCE)
def test_what_cannot_be_differentiated_twice_is_refused(where, memory):
    # PyTorch drops the second derivative of such functions without a word
    objective, theta = Objective.from_module(*ONCE[where](), inputs(9))
    assert bool(objective.gradient(theta).any())
    with pytest.raises(UnsupportedModelError, match="twice; Once is marked once_differentiable"):
        Hessian(objective, theta, memory=memory)


def test_a_function_without_a_second_derivative_in_pytorch_is_refused():
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_probabilities = output.log_softmax(1).expand(4, *output.shape)
        lengths = torch.full((len(output),), 4), torch.ones(len(output), dtype=torch.int64)
        return F.ctc_loss(log_probabilities, 1 + target[:, None] % 2, *lengths, reduction="none")

    objective, theta = Objective.from_module(mlp(), loss, inputs(9))
    assert bool(objective.gradient(theta).any())
    with pytest.raises(UnsupportedModelError, match="_ctc_loss_backward"):
        Hessian(objective, theta) @ randn(objective.size)


# ---- other libraries ----------------------------------------------------------------------------------------------


def test_scipys_eigensolver_finds_the_ends_of_the_dense_spectrum(case):
    operator, matrix, *_ = case
    exact = torch.linalg.eigvalsh(matrix).numpy()
    start = randn(len(matrix), key="start").numpy()
    found = np.sort(eigsh(operator.to_scipy(), k=2, which="LA", v0=start, return_eigenvectors=False))
    # ARPACK stops at machine precision relative to the eigenvalue; products carry 1e-12
    np.testing.assert_allclose(found, exact[-2:], rtol=1e-9, atol=1e-9 * abs(exact).max())


def test_the_scipy_operator_multiplies_vectors_columns_and_blocks_as_the_operator_does(hessian):
    scipy = hessian.to_scipy()
    block = randn(hessian.shape[0], 3, key="v")
    expected = (hessian @ block).numpy()
    assert scipy.shape == hessian.shape
    assert scipy.dtype == np.float64
    np.testing.assert_array_equal(scipy @ block.numpy(), expected)
    np.testing.assert_array_equal(scipy @ block[:, 0].numpy(), expected[:, 0])
    np.testing.assert_array_equal(scipy @ block[:, :1].numpy(), expected[:, :1])
    np.testing.assert_array_equal(scipy.rmatvec(block[:, 0].numpy()), expected[:, 0])
    np.testing.assert_array_equal(scipy @ np.asfortranarray(block.numpy())[:, ::-1], expected[:, ::-1])


def test_the_scipy_operator_takes_arrays_that_must_not_be_written(hessian):
    vector = np.ones(hessian.shape[0])
    vector.flags.writeable = False
    np.testing.assert_array_equal(hessian.to_scipy() @ vector, (hessian @ torch.tensor(vector)).numpy())


def test_the_scipy_operator_of_single_precision_says_so():
    assert Dense(torch.eye(2)).to_scipy().dtype == np.float32


# ---- dense matrices -----------------------------------------------------------------------------------------------


def symmetric(n: int) -> torch.Tensor:
    matrix = randn(n, n, key="matrix")
    return matrix + matrix.T


def test_a_dense_operator_multiplies_as_its_matrix_does():
    matrix = symmetric(6)
    operator, block = Dense(matrix), randn(6, 2, key="v")
    assert (operator.shape, operator.dtype) == ((6, 6), torch.float64)
    assert torch.equal(operator @ block, matrix @ block)
    assert (operator @ block[:, 0] - matrix @ block[:, 0]).norm() <= 1e-15 * matrix.norm() * block.norm()


@pytest.mark.parametrize(
    ("matrix", "dtype"),
    [
        (np.eye(3), torch.float64),
        (np.eye(3, dtype=np.float32), torch.float32),
        (torch.eye(3, dtype=torch.int64), torch.float64),
        (np.eye(3, dtype=bool), torch.float64),
    ],
)
def test_a_dense_operator_is_made_of_arrays_and_of_whole_numbers(matrix, dtype):
    v = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(Dense(matrix) @ v, v.to(dtype))


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (4,), (), (2, 2, 2)])
def test_a_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ShapeError, match="square"):
        Dense(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_that_is_symmetric_but_for_rounding_is_taken_and_any_other_refused(dtype):
    matrix = symmetric(6).to(dtype)
    rounding = torch.finfo(dtype).eps * float(matrix.abs().max())
    matrix[0, 1] += 10 * rounding  # as a product of matrices may be off
    assert Dense(matrix).shape == (6, 6)
    matrix[0, 1] += 1e4 * rounding
    with pytest.raises(ShapeError, match="symmetric"):
        Dense(matrix)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_matrix_that_is_not_finite_is_refused(bad):
    matrix = torch.eye(3)
    matrix[1, 1] = bad
    with pytest.raises(NonFiniteError, match="finite matrix"):
        Dense(matrix)


def test_the_matrix_of_no_parameters_is_a_matrix():
    assert (Dense(torch.zeros(0, 0)) @ torch.zeros(0)).shape == (0,)


def test_scipy_finds_the_eigenvalues_of_a_dense_operator():
    matrix = symmetric(30)
    found = eigsh(Dense(matrix).to_scipy(), k=3, which="LM", v0=np.ones(30), return_eigenvectors=False)
    exact = sorted(torch.linalg.eigvalsh(matrix).tolist(), key=abs)[-3:]
    np.testing.assert_allclose(np.sort(found), np.sort(exact), rtol=1e-12)
