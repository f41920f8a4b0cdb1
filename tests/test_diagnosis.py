"""Operations that cannot be differentiated twice: each is named with the module that it sits in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import labels, randn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness.errors import UnsupportedModelError
from sharpness.objective import Objective, cross_entropy
from sharpness.operators import GaussNewton, Hessian
from sharpness.operators.diagnosis import WAYS_OUT, diagnose

COUNT, WIDTH, CLASSES = 10, 4, 3


class Once(torch.autograd.Function):
    """x², with a gradient that has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


class ByNumpy(torch.autograd.Function):
    """x², whose gradient PyTorch does not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.from_numpy(2 * ctx.saved_tensors[0].numpy() * g.numpy())


@torch.library.custom_op("sharpness_tests::cosine", mutates_args=())
def cosine(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy()).cos()


class Sine(torch.autograd.Function):
    """sin x, whose slope cos x is an operation without a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * cosine(ctx.saved_tensors[0])


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(randn(WIDTH, WIDTH, key="centres"))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.centres)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(7, WIDTH, mode="sum", dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        order = x.detach().argsort(1)
        return x + self.words(order)


class Flash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(len(x), 1, 2, 2)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


class Segments(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x) * WIDTH // 2,), 2)
        return torch.segment_reduce(x.flatten(), "sum", lengths=lengths).reshape(len(x), -1).repeat(1, 2)


class Function(nn.Module):
    """An elementwise function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    """x + inner(tanh(x W)), its inner part two levels below."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"before": nn.Linear(WIDTH, WIDTH), "inner": nn.Sequential(nn.Tanh(), inner)})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body["inner"](self.body["before"](x))


class Net(nn.Module):
    """Blocks between two layers, the parts in question in some of them."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.blocks = nn.ModuleList(map(Block, inner))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def problem(model: nn.Module, loss: Callable[..., Any] = cross_entropy) -> tuple[Objective, Tensor]:
    return Objective.from_module(model.double(), loss, (randn(COUNT, WIDTH), labels(COUNT)))


def refusal(make: Callable[..., Any], f: Objective, theta: Tensor) -> str:
    """What is said when a product is asked for."""
    with pytest.raises(UnsupportedModelError, match="can be differentiated") as caught:
        make(f, theta) @ torch.ones_like(theta)
    return str(caught.value)


OPERATIONS: dict[str, tuple[Callable[[], nn.Module], str, str, str]] = {
    "distances": (Distances, "Distances", "_cdist_backward", "vector_norm"),
    "a bag of embeddings": (Bag, "EmbeddingBag", "_embedding_bag", "torch.nn.Embedding"),
    "flash attention": (Flash, "Flash", "flash_attention", 'attn_implementation="eager"'),
    "sums of segments": (Segments, "Segments", "_segment_reduce_backward", "index_add"),
    "a marked function": (lambda: Function(Once.apply), "Function", "Once is marked once_differentiable", "the mark"),
    "NumPy": (lambda: Function(ByNumpy.apply), "Function", "Can't call numpy() on Tensor that requires grad", "torch"),
    "an operation of one's own": (lambda: Function(Sine.apply), "Function", "sharpness_tests.cosine", "register"),
}
INNER = "blocks.1.body.inner.1"


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_innermost_module_is_named_and_a_way_out(name: str) -> None:
    make, kind, operation, way = OPERATIONS[name]
    f, theta = problem(Net(nn.Tanh(), make(), nn.GELU()))
    assert bool(f.gradient(theta).isfinite().all())
    said = refusal(Hessian, f, theta)
    assert f"{operation}" in said
    assert f"in '{INNER}{'.words' if kind == 'EmbeddingBag' else ''}' ({kind})" in said
    assert way in said.split("A way out: ")[1]
    assert "likewise" not in said


def test_the_model_itself_is_named_where_its_own_forward_pass_is_at_fault() -> None:
    class Head(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(super().forward(x), torch.eye(CLASSES, dtype=x.dtype))

    f, theta = problem(Head(nn.Tanh()))
    assert "in the model itself (Head). " in refusal(Hessian, f, theta)


def test_every_module_at_fault_is_counted_once() -> None:
    shared = Distances()
    f, theta = problem(Net(shared, shared, *(Distances() for _ in range(4)), nn.Tanh()))
    said = refusal(Hessian, f, theta)
    others = ", ".join(f"'blocks.{i}.body.inner.1'" for i in (2, 3, 4))
    assert f"in 'blocks.0.body.inner.1' (Distances), and likewise in {others} and 1 more. A way out" in said


def test_a_module_with_a_weight_that_is_used_before_as_well_is_not_named() -> None:
    class Tied(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + x @ self.last.weight.T @ self.last.weight)

    said = refusal(Hessian, *problem(Tied(Distances())))
    assert "in 'blocks.0.body.inner.1' (Distances). " in said


@pytest.mark.parametrize("neighbour", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_a_neighbour_that_works_in_place_does_not_hide_it(neighbour: nn.Module) -> None:
    inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), neighbour, Distances(), nn.Linear(WIDTH, WIDTH), neighbour)
    assert "in 'blocks.0.body.inner.1.2' (Distances). " in refusal(Hessian, *problem(Net(inner)))


def test_it_is_found_under_statistics_of_the_batch() -> None:
    f, theta = problem(Net(nn.BatchNorm1d(WIDTH), Distances()))
    assert f"in '{INNER}' (Distances). " in refusal(Hessian, f.replace(batchnorm="batch"), theta)


def test_it_is_found_by_a_model_that_computes_its_loss() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(Distances())

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.net(x), y)}

    batches = [{"x": randn(COUNT, WIDTH), "y": labels(COUNT)}]
    f, theta = Objective.from_module(Whole().double(), "model", batches)
    assert "in 'net.blocks.0.body.inner.1' (Distances). " in refusal(Hessian, f, theta)


# ---- the loss ------------------------------------------------------------------------------------------------------


def ctc(output: Tensor, target: Tensor) -> Tensor:
    log_probabilities = output.log_softmax(1).expand(4, *output.shape)
    lengths = torch.full((len(output),), 4), torch.ones(len(output), dtype=torch.int64)
    return F.ctc_loss(log_probabilities, 1 + target[:, None] % 2, *lengths, reduction="none")


LOSSES: dict[str, tuple[Callable[..., Any], str, str]] = {
    "ctc": (ctc, "_ctc_loss_backward", "logsumexp"),
    "margins": (nn.MultiMarginLoss(reduction="none"), "multi_margin_loss_backward", "clamp"),
    "a marked function": (lambda z, t: Once.apply(z).sum(1), "Once is marked once_differentiable", "the mark"),
}


@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_at_fault_is_named(name: str, operator: Callable[..., Any]) -> None:
    loss, operation, way = LOSSES[name]
    said = refusal(operator, *problem(Net(nn.Tanh()), loss))
    assert operation in said
    assert ", in the loss. A way out: " in said
    assert way in said
    assert "GaussNewton" not in said


# ---- ways out ------------------------------------------------------------------------------------------------------


def pairs(x: Tensor) -> Tensor:
    i, j = torch.triu_indices(len(x), len(x), 1)
    return torch.linalg.vector_norm(x[i] - x[j], dim=-1)


def margins(x: Tensor, target: Tensor) -> Tensor:
    own = x.gather(1, target[:, None])
    others = torch.ones_like(x).scatter(1, target[:, None], 0.0)
    return (others * torch.clamp(1 - (own - x), min=0)).sum(1) / x.shape[1]


def segments(x: Tensor) -> Tensor:
    return x.new_zeros(len(x) // 2, x.shape[1]).index_add(0, torch.arange(len(x)) // 2, x)


centres, rows, words = randn(3, WIDTH, key="centres"), labels(6), torch.tensor([[0, 2], [1, 1], [5, 3]])
INSTEAD: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "cdist_backward": (
        lambda x: torch.cdist(x, centres),
        lambda x: torch.linalg.vector_norm(x[..., :, None, :] - centres[..., None, :, :], dim=-1),
    ),
    "cdist_backward ": (
        lambda x: torch.cdist(x, centres),
        lambda x: torch.cdist(x, centres, compute_mode="use_mm_for_euclid_dist"),
    ),
    "pdist_backward": (torch.pdist, pairs),
    "embedding_bag": (lambda x: F.embedding_bag(words, x, mode="mean"), lambda x: F.embedding(words, x).mean(1)),
    "margin_loss_backward": (
        lambda x: F.multi_margin_loss(x, rows, reduction="none"),
        lambda x: margins(x, rows),
    ),
    "segment_reduce": (
        lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([2, 2, 2])),
        segments,
    ),
    "sparse_softmax": (lambda x: torch.sparse.softmax(x.to_sparse(), 1).to_dense(), lambda x: x.softmax(1)),
    "sparse_log_softmax": (
        lambda x: torch.sparse.log_softmax(x.to_sparse(), 1).to_dense(),
        lambda x: x.log_softmax(1),
    ),
}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_offered_instead_is_the_same_function_and_has_a_second_derivative(name: str) -> None:
    operation, instead = INSTEAD[name]
    x = randn(6, WIDTH).requires_grad_()
    assert torch.allclose(instead(x), operation(x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(instead, (x,))
    slope = torch.autograd.grad(operation(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(slope.sum(), x)
    assert next(part for part in WAYS_OUT if part in str(caught.value)) == name.strip()


def test_gauss_newton_is_offered_where_it_can_be_had_and_is_right() -> None:
    def net(function: Callable[[Tensor], Tensor]) -> Net:
        model = Net(Function(function))
        for name, parameter in model.double().named_parameters():
            parameter.data = randn(*parameter.shape, key=name)
        return model

    f, theta = problem(net(Sine.apply))
    plain, _ = problem(net(torch.sin))
    assert "sharpness.GaussNewton" in refusal(Hessian, f, theta)
    v = randn(f.size, key="v")
    assert torch.allclose(GaussNewton(f, theta) @ v, GaussNewton(plain, theta) @ v, rtol=1e-10)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "an operation of one's own"])
def test_gauss_newton_is_neither_offered_nor_computed_where_gradients_cannot_be_differentiated(name: str) -> None:
    # of marked functions PyTorch would take J v for zero without a word
    f, theta = problem(Net(nn.Tanh(), OPERATIONS[name][0]()))
    assert "GaussNewton" not in refusal(Hessian, f, theta)
    said = refusal(GaussNewton, f, theta)
    assert OPERATIONS[name][2] in said
    assert f"in '{INNER}" in said


# ---- other errors, and the caller ---------------------------------------------------------------------------------


def test_an_operation_without_any_derivative_is_named_as_such() -> None:
    class Forward(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise NotImplementedError("This kernel does not support backward. Choose another one.")
            return x

    data = randn(COUNT, WIDTH), labels(COUNT)
    f, theta = Objective.from_module(Net(nn.Tanh(), Forward()).double(), cross_entropy, data, chunk_size=COUNT)
    said = refusal(Hessian, f, theta)
    assert "can be differentiated; PyTorch says: This kernel does not support backward, in" in said
    assert f"in '{INNER}' (Forward). Replace that operation" in said
    f, theta = Objective.from_module(Net(Function(lambda x: cosine(x))).double(), cross_entropy, data, chunk_size=COUNT)
    assert "can be differentiated; PyTorch says: Trying to backward through" in refusal(Hessian, f, theta)


@pytest.mark.parametrize(("kind", "most"), [(RuntimeError, 8), (ValueError, 0), (torch.OutOfMemoryError, 0)])
def test_errors_of_another_kind_pass_as_they_are(kind: type[Exception], most: int) -> None:
    class Failing(torch.autograd.Function):
        """x, unless too many examples come back."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            if len(g) > most:
                raise kind("no such luck")
            return g

    f, theta = problem(Net(Function(Failing.apply)))
    with pytest.raises(kind, match="no such luck"):
        Hessian(f, theta)


def test_nothing_is_found_where_nothing_is_wrong_and_no_random_number_is_used_up() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        torch.rand(())
        return cross_entropy(output, target)

    for inner, found in ((nn.Tanh(), False), (Distances(), True)):
        f, theta = problem(Net(inner), loss)
        state = torch.get_rng_state()
        assert (diagnose(f, f.chunks[0], f.space.split(theta), None) is not None) == found
        assert torch.equal(torch.get_rng_state(), state)


def test_the_callers_module_and_random_state_stay_as_they_were() -> None:
    model = Net(nn.Dropout(0.5), Distances()).double().train()
    before = copy.deepcopy(model)
    f, theta = problem(model)
    state = torch.get_rng_state()
    first, second = refusal(Hessian, f, theta), refusal(Hessian, f, theta)
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    for mine, own in zip(model.modules(), before.modules(), strict=True):
        assert mine.training == own.training
        assert not mine._forward_hooks
        assert not mine._forward_pre_hooks
    for mine, own in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, own)
        assert mine.grad is None
        assert mine.requires_grad
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in f.terms.module.modules())
    assert f.gradient(theta).isfinite().all()
