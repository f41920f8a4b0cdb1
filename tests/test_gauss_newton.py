"""The Gauss–Newton matrix and the Fisher information, against dense ones in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from networks import filled, labels, randn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, hessian, jacrev

from sharpness import Fisher, GaussNewton, Hessian, Objective, cross_entropy, eigenpairs
from sharpness.errors import NonFiniteError, ShapeError, UnsupportedModelError
from sharpness.objective import Kernels, kernels
from sharpness.operators.gauss_newton import OutputGraph

EXACT = 1e-12
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


class Case(NamedTuple):
    module: nn.Module
    loss: Callable[..., Any]
    data: tuple[Tensor, Tensor]
    total: Callable[[Tensor, Tensor], Tensor]  # the mean loss of all data, as a function of outputs and targets
    options: Mapping[str, Any] = MappingProxyType({})


def weighted(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """A class-weighted mean, as a pair."""
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=z.dtype)[t]
    return (weights * cross_entropy(z, t)).sum(), weights.sum()


def mlp() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def convolutional() -> nn.Module:
    return filled(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(),
                      nn.Linear(5, 3))
    )  # fmt: skip


def cases() -> dict[str, Case]:
    x, t = randn(10, 4), labels(10)
    images = randn(10, 2, 4, 4)
    return {
        "cross-entropy": Case(mlp(), cross_entropy, (x, t), F.cross_entropy),
        "squared error": Case(mlp(), lambda z, t: (z - t) ** 2, (x, randn(10, 3, key="t")), F.mse_loss),
        "class weights": Case(mlp(), weighted, (x, t), lambda z, t: torch.div(*weighted(z, t))),
        "convolutions": Case(convolutional(), cross_entropy, (images, t), F.cross_entropy),
        "tokens": Case(
            filled(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3), nn.Flatten(2))),
            lambda z, t: F.cross_entropy(z.transpose(1, 2), t, reduction="none"),
            (randn(10, 6, 4), torch.randint(3, (10, 6), generator=torch.Generator().manual_seed(0))),
            lambda z, t: F.cross_entropy(z.transpose(1, 2), t),
        ),
        "batch statistics": Case(
            convolutional(), cross_entropy, (images, t), F.cross_entropy, {"batchnorm": "batch", "chunk_size": 10}
        ),
    }


def dense(case: Case, theta: Tensor, curve: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Jᵀ (∇²L) J with the whole Jacobian and the whole Hessian of the mean loss in all outputs."""
    module = case.module.train("batchnorm" in case.options)
    shapes = dict(module.named_parameters())

    def outputs(theta: Tensor) -> Tensor:
        parts = theta.split([part.numel() for part in shapes.values()])
        named = {name: part.view_as(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return functional_call(module, {**buffers, **named}, (case.data[0],))

    z = outputs(theta)
    jacobian = jacrev(outputs)(theta).reshape(z.numel(), -1)
    total = curve or (lambda z: case.total(z, case.data[1]))
    bent = hessian(lambda flat: total(flat.view_as(z)))(z.detach().flatten())
    module.eval()
    return jacobian.T @ bent @ jacobian


def matrix(operator: Any) -> Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


def near(found: Tensor, expected: Tensor, relative: float = EXACT) -> bool:
    return bool((found - expected).norm() <= relative * expected.norm()) and bool(expected.any())


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("kind", ["auto", "torch", "bilinear"])
def test_products_are_those_of_the_dense_matrix(name: str, kind: str) -> None:
    case = cases()[name]
    f, theta = Objective.from_module(case.module, case.loss, case.data, **case.options)
    assert near(matrix(GaussNewton(f.replace(kernels=kind), theta)), dense(case, theta))


def test_chunks_memory_and_blocks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases()["convolutions"]
    f, theta = Objective.from_module(case.module, case.loss, case.data, chunk_size=4)
    expected = dense(case, theta)
    whole, nothing = GaussNewton(f, theta), GaussNewton(f, theta, memory=0)
    assert [op.conditions["execution"]["retained_chunks"] for op in (whole, nothing)] == [3, 0]
    assert near(matrix(whole), expected)
    assert torch.equal(matrix(nothing), matrix(whole))
    monkeypatch.setattr(whole._chunks, "batched", True)
    assert near(matrix(whole), expected)
    assert whole._chunks.batched, "no operation of this model stands in the way"


def test_regularisation_adds_a_multiple_of_the_identity() -> None:
    case = cases()["cross-entropy"]
    f, theta = Objective.from_module(case.module, case.loss, case.data, l2=0.3)
    assert near(matrix(GaussNewton(f, theta)), dense(case, theta) + 0.3 * torch.eye(len(theta), dtype=torch.float64))


def test_it_is_the_hessian_of_a_linear_model_and_differs_from_that_of_another() -> None:
    for module, same in ((filled(nn.Linear(4, 3)), True), (mlp(), False)):
        f, theta = Objective.from_module(module, cross_entropy, (randn(10, 4), labels(10)))
        assert near(matrix(GaussNewton(f, theta)), matrix(Hessian(f, theta))) is same


def test_it_is_positive_semidefinite_where_the_hessian_is_not() -> None:
    case = cases()["cross-entropy"]
    f, theta = Objective.from_module(case.module, case.loss, case.data)
    bent, curved = (torch.linalg.eigvalsh(matrix(op)) for op in (GaussNewton(f, theta), Hessian(f, theta)))
    assert bent.min() > -1e-14
    assert curved.min() < -1e-3
    pairs = eigenpairs(GaussNewton(f, theta), 3, tolerance=1e-9)
    assert torch.allclose(torch.as_tensor(pairs.eigenvalues.copy()), bent.flip(0)[:3], rtol=0, atol=1e-9)
    assert pairs.conditions["operator"] == "gauss_newton"


def test_a_loss_that_is_linear_in_the_output_has_none() -> None:
    f, theta = Objective.from_module(mlp(), lambda z, t: z[:, 0], (randn(10, 4), labels(10)))
    assert not matrix(GaussNewton(f, theta)).any()


def test_outputs_that_come_of_each_other_do_not_count_twice() -> None:
    class Verbose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = filled(nn.Linear(4, 5)), filled(nn.Linear(5, 3))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            hidden = self.first(x).tanh()
            return {"hidden": hidden, "logits": self.last(hidden), "counted": torch.ones(len(x))}

    module = Verbose()
    data = (randn(10, 4), labels(10))
    f, theta = Objective.from_module(module, lambda z, t: cross_entropy(z["logits"], t), data)
    plain = nn.Sequential(module.first, nn.Tanh(), module.last)
    g, same = Objective.from_module(plain, cross_entropy, data)
    assert torch.equal(theta, same)
    assert near(matrix(GaussNewton(f, theta)), matrix(GaussNewton(g, theta)))


def test_unused_and_chosen_parameters() -> None:
    module = mlp()
    module.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    data = (randn(10, 4), labels(10))
    f, theta = Objective.from_module(nn.ModuleDict({"net": module})["net"], cross_entropy, data)
    whole = matrix(GaussNewton(f, theta))
    used = torch.tensor([name != "unused" for name, part in module.named_parameters() for _ in range(part.numel())])
    assert not whole[~used].any()
    part, theta = Objective.from_module(module, cross_entropy, data, parameters="2.*")
    last = torch.tensor([name.startswith("2.") for name, p in module.named_parameters() for _ in range(p.numel())])
    assert near(matrix(GaussNewton(part, theta)), whole[last][:, last])


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this PyTorch")
def test_float32_products_by_every_kind_of_kernels_are_those_of_float64() -> None:
    data = (randn(200, 64), labels(200))
    f, theta = Objective.from_module(
        filled(nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 3))), cross_entropy, data
    )
    v = randn(f.size, key="v")
    expected = GaussNewton(f, theta) @ v
    for kind in ("torch", "bilinear", "onednn"):
        single = f.replace(dtype=torch.float32, kernels=kind)
        assert near((GaussNewton(single, theta.float()) @ v.float()).double(), expected, 2e-6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this PyTorch")
def test_a_product_multiplies_two_thirds_as_often_as_the_hessians(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    multiply = kernels._multiply
    monkeypatch.setattr(kernels, "_multiply", lambda *args: calls.append(args) or multiply(*args))
    layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Tanh())]
    f, theta = Objective.from_module(
        nn.Sequential(*layers), lambda z, t: (z - t) ** 2, (torch.randn(99, 64), torch.randn(99, 64))
    )
    f = f.replace(kernels="onednn")
    counts = []
    for operator in (GaussNewton(f, theta), Hessian(f, theta)):
        calls.clear()
        operator @ torch.ones(f.size)
        counts.append(len(calls))
    # per layer 2 ahead and 2 back against 2 ahead and 4 back; the first has no input to move and none to go back to
    assert counts == [16 - 2, 24 - 4]


def test_what_happens_to_the_callers_theta_later_does_not_matter() -> None:
    case = cases()["cross-entropy"]
    f, theta = Objective.from_module(case.module, case.loss, case.data)
    operator, v = GaussNewton(f, theta), randn(len(theta), key="v")
    before = operator @ v
    theta.zero_()
    assert torch.equal(operator @ v, before)


def test_kernels_that_do_not_agree_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpness.operators.chunks.agree", lambda *_, **__: False)
    case = cases()["convolutions"]
    f, theta = Objective.from_module(case.module, case.loss, case.data)
    assert GaussNewton(f.replace(kernels="bilinear"), theta).conditions["execution"]["kernels"] == "torch"


class _WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_a_loss_inside_the_model_is_refused_and_one_beside_it_taken() -> None:
    x, t = randn(10, 4), labels(10)
    inside, theta = Objective.from_module(_WithLoss(), "model", [{"x": x, "labels": t}])
    with pytest.raises(UnsupportedModelError, match=r"the loss apart; loss=.model. computes it inside"):
        GaussNewton(inside, theta)
    beside, theta = Objective.from_module(
        _WithLoss(), lambda z, batch: cross_entropy(z["logits"], batch["labels"]), [{"x": x, "labels": t}]
    )
    case = cases()["cross-entropy"]
    f, same = Objective.from_module(case.module, case.loss, case.data)
    assert torch.equal(theta, same)
    assert near(matrix(GaussNewton(beside, theta)), matrix(GaussNewton(f, theta)))


def test_values_alone_and_diverged_weights_are_refused() -> None:
    case = cases()["convolutions"]
    f, theta = Objective.from_module(case.module, case.loss, case.data)
    with pytest.raises(UnsupportedModelError, match="values only"):
        GaussNewton(f.replace(batchnorm="recompute"), theta)
    with pytest.raises(NonFiniteError, match="finite"):
        GaussNewton(f, torch.full_like(theta, float("nan")))


class Physics(nn.Module):
    """A network of which the output contains a derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.net = filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            u = self.net(x)
            (slope,) = torch.autograd.grad(u.square().sum(), x, create_graph=True)
        return u + slope[:, 1:]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this PyTorch")
def test_derivatives_inside_the_model_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    f, theta = Objective.from_module(Physics(), cross_entropy, (randn(10, 4), labels(10)))
    expected = matrix(GaussNewton(f.replace(kernels="torch"), theta))
    single = f.replace(dtype=torch.float32, kernels="onednn")
    operator = GaussNewton(single, theta.float())
    assert operator.conditions["execution"]["kernels"] == "torch"  # the others leave a part out, which was seen
    assert near(matrix(operator).double(), expected, 1e-5)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


def test_a_loss_without_a_second_derivative_is_refused() -> None:
    f, theta = Objective.from_module(mlp(), lambda z, t: Once.apply(z).sum(1), (randn(10, 4), labels(10)))
    with pytest.raises(UnsupportedModelError, match="Once is marked once_differentiable"):
        GaussNewton(f, theta)


def test_a_loss_of_more_than_the_output_tensors_is_refused() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> dict[str, Any]:
            z = self.net(x)
            return {"logits": z, "distribution": torch.distributions.Categorical(logits=z)}

    f, theta = Objective.from_module(
        Wrapped(), lambda z, t: -z["distribution"].log_prob(t) + z["logits"].square().sum(1), (randn(10, 4), labels(10))
    )
    with pytest.raises(UnsupportedModelError, match="by another way"):
        GaussNewton(f, theta)


def test_a_loss_may_change_its_output_in_place() -> None:
    case = cases()["cross-entropy"]
    f, theta = Objective.from_module(case.module, case.loss, case.data)
    scaled = f.replace(loss=lambda z, t: cross_entropy(z.mul_(1.0), t))
    assert near(matrix(GaussNewton(scaled, theta)), matrix(GaussNewton(f, theta)))


# Fisher


def expected_fisher(case: Case, theta: Tensor) -> Tensor:
    """Σ over examples and classes of p(y) ∇log p(y) ∇log p(y)ᵀ, over the number of examples."""
    f = Objective.from_module(case.module, case.loss, case.data)[0]
    total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    x = case.data[0]
    with torch.no_grad():
        p = case.module(x).softmax(1)
    for index in range(len(x)):
        for y in range(p.shape[1]):
            one = f.replace(loss=lambda z, t, y=y: cross_entropy(z, torch.full_like(t, y)))
            one = one.replace(examples=torch.arange(len(x)) == index)
            g = one.gradient(theta)
            total += p[index, y] * torch.outer(g, g)
    return total / len(x)


def test_the_fisher_information_of_a_classifier_is_its_definition() -> None:
    case = cases()["cross-entropy"]
    f, theta = Objective.from_module(case.module, case.loss, case.data)
    found = matrix(Fisher(f, theta))
    assert near(found, expected_fisher(case, theta))
    assert near(found, matrix(GaussNewton(f, theta)))  # the loss is the negative logarithm of p


def test_the_fisher_information_does_not_depend_on_targets_or_loss() -> None:
    case = cases()["cross-entropy"]
    f, theta = Objective.from_module(case.module, weighted, case.data)
    others = (case.data[0], (case.data[1] + 1) % 3)
    g = Objective.from_module(case.module, cross_entropy, others)[0]
    assert near(matrix(Fisher(f, theta)), matrix(Fisher(g, theta)))
    assert not near(matrix(GaussNewton(f, theta)), matrix(Fisher(f, theta)), 1e-3)


@pytest.mark.parametrize(
    ("distribution", "log_partition"), [("gaussian", lambda z: 0.5 * z**2), ("bernoulli", F.softplus)]
)
def test_the_fisher_information_of_other_distributions(distribution: str, log_partition: Any) -> None:
    case = cases()["squared error"]
    f, theta = Objective.from_module(case.module, case.loss, case.data)
    found = matrix(Fisher(f, theta, distribution=distribution))
    assert near(found, dense(case, theta, lambda z: log_partition(z).mean()))
    if distribution == "gaussian":
        assert near(2 * found, matrix(GaussNewton(f, theta)))


def test_masked_predictions_do_not_count() -> None:
    module = filled(nn.Sequential(nn.Linear(4, 3)))
    x, t = randn(10, 4), labels(10)
    t[3:] = -100
    f, theta = Objective.from_module(module, cross_entropy, (x[:3], t[:3]))
    masked = Objective.from_module(
        module, lambda z, t: (F.cross_entropy(z, t, reduction="sum"), (t >= 0).sum()), (x, t)
    )[0]
    assert near(matrix(Fisher(masked, theta)), matrix(Fisher(f, theta)))


def test_fisher_refuses_what_it_cannot_tell_the_classes_of() -> None:
    tokens = cases()["tokens"]
    f, theta = Objective.from_module(tokens.module, tokens.loss, tokens.data)
    with pytest.raises(ShapeError, match=r"classes in dimension 1 .* of shape \(8, 3\); got \(8, 6\)"):
        Fisher(f, theta)
    x, t = randn(10, 4), labels(10)
    beside, theta = Objective.from_module(
        _WithLoss(), lambda z, batch: cross_entropy(z["logits"], batch["labels"]), [{"x": x, "labels": t}]
    )
    with pytest.raises(UnsupportedModelError, match="returns one tensor"):
        Fisher(beside, theta)


def test_normalised_outputs_have_the_same_fisher_information() -> None:
    data = (randn(300, 4).float(), labels(300))
    plain = filled(nn.Linear(4, 3)).float()
    f, theta = Objective.from_module(plain, cross_entropy, data)
    g, same = Objective.from_module(nn.Sequential(plain, nn.LogSoftmax(1)), cross_entropy, data)
    assert torch.equal(theta, same)
    assert near(matrix(Fisher(g, theta)), matrix(Fisher(f, theta)), 1e-5)


def test_fisher_says_what_it_is_and_refuses_other_distributions() -> None:
    case = cases()["cross-entropy"]
    f, theta = Objective.from_module(case.module, case.loss, case.data)
    operator = Fisher(f, theta)
    assert operator.conditions["operator"] == operator.identity["operator"] == "fisher"
    assert operator.conditions["distribution"] == "softmax"
    assert operator.shape == (f.size, f.size)
    with pytest.raises(ShapeError, match="softmax, bernoulli, gaussian"):
        Fisher(f, theta, distribution="poisson")


def test_a_graph_without_curvature_gives_the_same_products_as_one_with() -> None:
    case = cases()["convolutions"]
    f, theta = Objective.from_module(case.module, case.loss, case.data)
    leaves = [part.clone().requires_grad_() for part in f.space.split(theta)]
    direction = f.space.split(randn(f.size, key="v"))
    first, second = (
        OutputGraph(f, f.chunks[0], leaves, None, Kernels("bilinear", retained=True, curved=curved)).product(direction)
        for curved in (True, False)
    )
    assert near(first, second)
