"""The three batch-norm policies, each against PyTorch's own layers in train or eval mode, and dropout, which is off."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from sharpness import Hessian, Minimizer, Objective, Point, cross_entropy
from sharpness.errors import DataError, ShapeError, UnsupportedModelError
from sharpness.params import ParamSpace
from sharpness.random import normal

# The same float64 numbers in another order: some hundred roundings of 1.1e-16, through a few layers.
FORMULA = 1e-12


def randn(*shape: int, key: str = "x") -> torch.Tensor:
    return normal(*shape, key=(key,), seed=0, dtype=torch.float64)


def filled(module: nn.Module, key: str = "") -> nn.Module:
    """The module in float64 with numbers of a named stream in weights and running statistics."""
    with torch.no_grad():
        for name, tensor in [*module.double().named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                numbers = randn(*tensor.shape, key=name + key)
                tensor.copy_(0.5 + numbers.abs() if name.endswith("running_var") else 0.5 * numbers)
    return module


def dense(key: str = "") -> nn.Module:
    layers = (
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )
    return filled(nn.Sequential(*layers), key)


def convolutional(key: str = "") -> nn.Module:
    convolutions = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Tanh()
    return filled(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8, 3)), key)


def data(count: int = 50, kind: str = "dense") -> tuple[torch.Tensor, torch.Tensor]:
    x = randn(count, 4) if kind == "dense" else randn(count, 1, 6, 6)
    return x, torch.randint(3, (count,), generator=torch.Generator().manual_seed(1))


MODELS = {"dense": dense, "convolutional": convolutional}


def chunks(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def mean_loss(module: nn.Module, pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The mean over all examples of a module's cross-entropy, computed piece by piece, in the mode it is in."""
    return sum(F.cross_entropy(module(x), y, reduction="sum") for x, y in pieces) / sum(len(y) for _, y in pieces)


def gradient(module: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


def close(a: torch.Tensor | float, b: torch.Tensor | float, relative: float = FORMULA) -> bool:
    """Whether ‖a − b‖ <= relative · ‖b‖."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return bool((a - b).norm() <= relative * b.norm())


def layers_of(module: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def pooled_by_hand(module: nn.Module, pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Mean and unbiased variance of all inputs of each batch-norm layer, run in train mode piece by piece."""
    module = copy.deepcopy(module).train()
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers_of(module)}
    for name, layer in layers_of(module).items():
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(inputs[0].transpose(0, 1).flatten(1))
        )
    for x, _ in pieces:
        module(x)
    rows = {name: torch.cat(inputs, dim=1).detach() for name, inputs in seen.items()}  # (channels, numbers)
    means = {f"{name}.running_mean": r.mean(1) for name, r in rows.items()}
    return means | {f"{name}.running_var": r.var(1) for name, r in rows.items()}


# ---- eval ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("train", [False, True], ids=["given in eval mode", "given in train mode"])
def test_eval_is_the_module_in_eval_mode_whatever_mode_it_comes_in(kind, train):
    module, (x, y) = MODELS[kind]().train(train), data(kind=kind)
    objective, theta = Objective.from_module(module, cross_entropy, (x, y), chunk_size=20)
    loss = mean_loss(module.eval(), [(x, y)])
    assert close(objective.value(theta), loss.detach())
    assert close(objective.gradient(theta), gradient(module, loss))


def test_eval_is_the_default_and_recorded():
    objective, _ = Objective.from_module(dense(), cross_entropy, data())
    assert objective.batchnorm == objective.conditions["batchnorm"] == "eval"
    assert objective.has_batchnorm


@pytest.mark.parametrize("chunk_size", [1, 7, 50])
def test_under_eval_the_chunks_do_not_matter(chunk_size):
    whole, theta = Objective.from_module(dense(), cross_entropy, data())
    cut, _ = Objective.from_module(dense(), cross_entropy, data(), chunk_size=chunk_size)
    assert close(cut.value(theta), whole.value(theta))


# ---- batch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("chunk_size", [50, 25, 20])
def test_batch_is_the_module_in_train_mode_on_each_chunk(kind, chunk_size):
    module, (x, y) = MODELS[kind](), data(kind=kind)
    objective, theta = Objective.from_module(module, cross_entropy, (x, y), chunk_size=chunk_size, batchnorm="batch")
    loss = mean_loss(copy.deepcopy(module).train(), chunks(x, y, chunk_size))
    assert close(objective.value(theta), loss.detach())


@pytest.mark.parametrize("kind", MODELS)
def test_the_gradient_under_batch_goes_through_the_statistics(kind):
    module, (x, y) = MODELS[kind](), data(kind=kind)
    objective, theta = Objective.from_module(module, cross_entropy, (x, y), chunk_size=20, batchnorm="batch")
    module.train()
    assert close(objective.gradient(theta), gradient(module, mean_loss(module, chunks(x, y, 20))))


def test_the_gradient_under_batch_is_the_slope_of_the_value():
    objective, theta = Objective.from_module(dense(), cross_entropy, data(), chunk_size=20, batchnorm="batch")
    v, h = randn(objective.size, key="v"), 1e-5
    slope = (objective.value(theta + h * v) - objective.value(theta - h * v)) / (2 * h)
    # central differences: h² · f''' / 6 of order 1e-9 where f'''/f' is of order 100, and rounding 1e-16 / h = 1e-11
    assert slope == pytest.approx(float(objective.gradient(theta) @ v), rel=1e-6)


def test_under_batch_the_chunks_are_part_of_f_and_recorded():
    values = {}
    for chunk_size in (10, 25, 50):
        objective, theta = Objective.from_module(
            dense(), cross_entropy, data(), chunk_size=chunk_size, batchnorm="batch"
        )
        values[chunk_size] = objective.value(theta)
        recorded = {"chunk_size": chunk_size, "chunks": 50 // chunk_size, "batchnorm": "batch"}
        assert recorded.items() <= objective.conditions.items()
    assert len({round(value, 6) for value in values.values()}) == 3


def test_under_batch_a_loaders_batches_are_the_partition():
    module, (x, y) = dense(), data()
    loader = DataLoader(TensorDataset(x, y), batch_size=15)
    objective, theta = Objective.from_module(module, cross_entropy, loader, batchnorm="batch")
    assert objective.partition == (15, 15, 15, 5)
    assert close(objective.value(theta), mean_loss(copy.deepcopy(module).train(), chunks(x, y, 15)).detach())


def test_under_batch_tensors_are_cut_into_chunks_of_5000_as_in_the_papers_code():
    module, pairs = filled(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))), (randn(10_010, 1), randn(10_010, 1))
    objective, _ = Objective.from_module(module, nn.L1Loss(), pairs, batchnorm="batch")
    assert objective.partition == (5000, 5000, 10)


def test_under_batch_the_running_statistics_do_not_matter():
    data_, module = data(), dense()
    one, theta = Objective.from_module(module, cross_entropy, data_, batchnorm="batch")
    for layer in layers_of(module).values():
        layer.running_mean.fill_(3.0)
        layer.running_var.fill_(9.0)
    other, _ = Objective.from_module(module, cross_entropy, data_, batchnorm="batch")
    assert other.value(theta) == one.value(theta) == one.value(Minimizer.of(dense()))


def test_under_batch_f_does_not_change_with_the_scale_of_weights_below_a_batch_norm():
    module = dense()
    for layer in layers_of(module).values():
        layer.eps = 1e-30  # which alone breaks the invariance; PyTorch wants it positive
    objective, theta = Objective.from_module(module, cross_entropy, data(), batchnorm="batch")
    scaled = theta.clone()
    objective.space.unflatten(scaled)["0.weight"].mul_(7.0)
    assert close(objective.value(scaled), objective.value(theta))
    # so f is flat along those weights: the gradient is orthogonal to them, to rounding
    parts = (
        objective.space.unflatten(objective.gradient(theta))["0.weight"],
        objective.space.unflatten(theta)["0.weight"],
    )
    assert abs(float((parts[0] * parts[1]).sum())) <= FORMULA * float(parts[0].norm() * parts[1].norm())


# ---- recompute ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_recompute_over_one_chunk_is_what_update_bn_does(kind):
    module, (x, y) = MODELS[kind](), data(kind=kind)
    objective, theta = Objective.from_module(module, cross_entropy, (x, y), batchnorm="recompute")
    assert objective.partition == (50,)
    updated = copy.deepcopy(module)
    update_bn([(x, y)], updated)
    found = objective.with_statistics(theta).buffers
    for name, buffer in updated.named_buffers():
        if "running" in name:
            assert close(found[name], buffer), name
    assert close(objective.value(theta), mean_loss(updated.eval(), [(x, y)]).detach())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("chunk_size", [25, 20, 8])
def test_recompute_pools_the_statistics_of_several_chunks(kind, chunk_size):
    module, (x, y) = MODELS[kind](), data(kind=kind)
    objective, theta = Objective.from_module(
        module, cross_entropy, (x, y), chunk_size=chunk_size, batchnorm="recompute"
    )
    expected = pooled_by_hand(module, chunks(x, y, chunk_size))
    found = objective.with_statistics(theta).buffers
    assert all(close(found[name], value) for name, value in expected.items())
    copied = copy.deepcopy(module).eval()
    copied.load_state_dict(expected, strict=False)
    assert close(objective.value(theta), mean_loss(copied, [(x, y)]).detach())


@pytest.mark.parametrize("chunk_size", [2, 7, 25, 49])
def test_the_statistics_of_a_single_layer_do_not_depend_on_the_chunks(chunk_size):
    module = filled(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))
    count = 50 - 50 % chunk_size  # no chunk of one
    whole, theta = Objective.from_module(module, cross_entropy, data(count), batchnorm="recompute")
    cut, _ = Objective.from_module(module, cross_entropy, data(count), batchnorm="recompute", chunk_size=chunk_size)
    assert close(cut.value(theta), whole.value(theta))


def test_statistics_far_from_zero_are_pooled_without_cancellation():
    # E[x²] − E[x]² would lose all 16 digits at a mean of 1e8 standard deviations
    module, x = filled(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))), 1e8 + randn(60, 2)
    objective, theta = Objective.from_module(
        module, cross_entropy, (x, data(60)[1]), batchnorm="recompute", chunk_size=20
    )
    found = objective.with_statistics(theta).buffers["0.running_var"]
    # x itself is rounded to 1e8 · 1.1e-16 = 1e-8, which both sides share; the means of chunks are so rounded too
    assert close(found, x.var(0), 1e-6)


def test_a_layer_that_is_used_twice_pools_both_uses():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(x) + self.norm(3 * x + 1))

    module, (x, y) = filled(Twice()), data()
    objective, theta = Objective.from_module(module, cross_entropy, (x, y), batchnorm="recompute", chunk_size=20)
    inputs = torch.cat([x, 3 * x + 1])
    buffers = objective.with_statistics(theta).buffers
    assert close(buffers["norm.running_mean"], inputs.mean(0))
    assert close(buffers["norm.running_var"], inputs.var(0))


def test_a_layer_that_is_never_reached_keeps_its_statistics():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.spare, self.head = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(x))

    module = filled(Partly())
    objective, theta = Objective.from_module(module, cross_entropy, data(), batchnorm="recompute")
    assert torch.equal(objective.with_statistics(theta).buffers["spare.running_mean"], module.spare.running_mean)


def test_with_statistics_gives_an_objective_under_eval_the_value_under_recompute():
    objective, theta = Objective.from_module(dense(), cross_entropy, data(), chunk_size=20)
    recomputed = objective.replace(batchnorm="recompute")
    assert objective.value(objective.with_statistics(theta)) == recomputed.value(theta)
    assert objective.value(theta) != recomputed.value(theta)


def test_recompute_forgets_the_statistics_that_a_point_brings():
    objective, theta = Objective.from_module(dense(), cross_entropy, data(), batchnorm="recompute")
    point = Minimizer.of(dense(key="other")).point
    assert objective.value(Point(theta, point.buffers)) == objective.value(theta)


@pytest.mark.parametrize("method", ["gradient", "value_and_gradient"])
def test_recompute_has_values_only(method):
    objective, theta = Objective.from_module(dense(), cross_entropy, data(), batchnorm="recompute")
    with pytest.raises(UnsupportedModelError, match='"eval" or "batch"'):
        getattr(objective, method)(theta)
    with pytest.raises(UnsupportedModelError, match='"eval" or "batch"'):
        Hessian(objective, theta)


@pytest.mark.parametrize("policy", ["batch", "recompute"])
def test_without_batch_norm_every_policy_is_the_same(policy):
    module = filled(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    plain, theta = Objective.from_module(module, cross_entropy, data())
    objective, _ = Objective.from_module(module, cross_entropy, data(), batchnorm=policy)
    assert objective.value(theta) == plain.value(theta)
    assert torch.equal(objective.gradient(theta), plain.gradient(theta))
    assert objective.conditions["batchnorm"] == "none"


# ---- points and their buffers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Minimizer.of, lambda m: Point.of(m, ParamSpace.of(m))], ids=["Minimizer", "Point"])
def test_points_bring_their_own_statistics(make):
    objective, _ = Objective.from_module(dense(), cross_entropy, data())
    other = dense(key="other")
    loss = mean_loss(other.eval(), [data()])
    assert close(objective.value(make(other)), loss.detach())
    assert close(objective.gradient(make(other)), gradient(other, loss))


@pytest.mark.parametrize("policy", ["eval", "batch", "recompute"])
def test_points_bring_frozen_weights_and_other_buffers_under_every_policy(policy):
    class Scaled(nn.Module):
        def __init__(self, key: str = "") -> None:
            super().__init__()
            self.below, self.norm, self.above = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
            self.below.requires_grad_(False)
            self.norm.bias.requires_grad_(False)
            self.register_buffer("scale", torch.ones(5))
            filled(self, key)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.above(torch.tanh(self.norm(self.below(x))) * self.scale)

    objective, _ = Objective.from_module(Scaled(), cross_entropy, data(), chunk_size=20, batchnorm=policy)
    own, theta = Objective.from_module(Scaled("other"), cross_entropy, data(), chunk_size=20, batchnorm=policy)
    assert objective.value(Minimizer.of(Scaled("other"))) == own.value(theta)
    assert objective.value(theta) != own.value(theta)


def test_theta_alone_uses_the_statistics_that_the_model_had():
    objective, _ = Objective.from_module(dense(), cross_entropy, data())
    other = dense(key="other")
    theta = Minimizer.of(other).point.theta
    other.load_state_dict(dict(dense().named_buffers()), strict=False)
    assert close(objective.value(theta), mean_loss(other.eval(), [data()]).detach())


def test_a_point_may_bring_some_of_the_statistics():
    objective, theta = Objective.from_module(dense(), cross_entropy, data())
    module = dense()
    module[1].running_mean.zero_()
    point = Point(theta, {"1.running_mean": torch.zeros(6)})
    assert close(objective.value(point), mean_loss(module.eval(), [data()]).detach())


@pytest.mark.parametrize(
    ("name", "buffer"), [("1.running_mean", torch.zeros(5)), ("8.running_mean", torch.zeros(6))], ids=["shape", "name"]
)
def test_statistics_that_do_not_fit_the_model_are_refused(name, buffer):
    objective, theta = Objective.from_module(dense(), cross_entropy, data())
    with pytest.raises(ShapeError, match=name):
        objective.value(Point(theta, {name: buffer}))


@pytest.mark.parametrize("policy", ["eval", "batch", "recompute"])
def test_no_policy_touches_the_modules_statistics_or_the_points(policy):
    module = dense().train()
    objective, _ = Objective.from_module(module, cross_entropy, data(), batchnorm=policy, chunk_size=20)
    point = Minimizer.of(dense(key="other")).point
    before = [{n: b.clone() for n, b in owner.items()} for owner in (dict(module.named_buffers()), point.buffers)]
    objective.value(point)
    if policy != "recompute":
        objective.gradient(point)
    objective.with_statistics(point)
    for old, owner in zip(before, (dict(module.named_buffers()), point.buffers), strict=True):
        assert all(torch.equal(old[name], owner[name]) for name in old)


def test_the_policies_of_one_point_do_not_leak_into_each_other():
    objective, theta = Objective.from_module(dense(), cross_entropy, data(), chunk_size=20)
    before = objective.value(theta)
    objective.with_statistics(theta)
    objective.value(Minimizer.of(dense(key="other")))
    assert objective.value(theta) == before


# ---- refusals -----------------------------------------------------------------------------------------------------


def unrecorded() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)))


@pytest.mark.parametrize("policy", ["eval", "recompute"])
def test_batch_norm_without_running_statistics_is_refused_where_they_are_needed(policy):
    with pytest.raises(UnsupportedModelError, match=r"'1' keeps none.*batchnorm=\"batch\""):
        Objective.from_module(unrecorded(), cross_entropy, data(), batchnorm=policy)


@pytest.mark.parametrize("chunk_size", [7, 25, 50])
def test_batch_norm_without_running_statistics_is_right_under_batch(chunk_size):
    module, (x, y) = unrecorded(), data(49 if chunk_size == 7 else 50)
    objective, theta = Objective.from_module(module, cross_entropy, (x, y), batchnorm="batch", chunk_size=chunk_size)
    loss = mean_loss(module, chunks(x, y, chunk_size))
    assert close(objective.value(theta), loss.detach())
    assert close(objective.gradient(theta), gradient(module, loss))


@pytest.mark.parametrize("policy", ["train", "", None, "EVAL"])
def test_an_unknown_policy_is_refused_with_the_known_ones(policy):
    with pytest.raises(ShapeError, match="eval, batch, recompute"):
        Objective.from_module(dense(), cross_entropy, data(), batchnorm=policy)


METHODS: dict[str, Callable[[Objective, torch.Tensor], object]] = {
    "value": lambda f, theta: f.replace(batchnorm="batch").value(theta),
    "gradient": lambda f, theta: f.replace(batchnorm="batch").gradient(theta),
    "value, recomputed": lambda f, theta: f.replace(batchnorm="recompute").value(theta),
    "with_statistics": lambda f, theta: f.with_statistics(theta),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_chunk_of_one_example_has_no_statistics_and_is_refused_with_a_remedy(method):
    loader = DataLoader(TensorDataset(*data(41)), batch_size=20)
    objective, theta = Objective.from_module(dense(), cross_entropy, loader)
    assert objective.partition == (20, 20, 1)
    with pytest.raises(DataError, match="no batch of one"):
        METHODS[method](objective, theta)


def test_a_chunk_of_one_image_has_the_statistics_of_its_pixels():
    x, y = data(5, kind="convolutional")
    module = convolutional()
    objective, theta = Objective.from_module(module, cross_entropy, (x, y), chunk_size=1, batchnorm="batch")
    assert close(objective.value(theta), mean_loss(copy.deepcopy(module).train(), chunks(x, y, 1)).detach())


# ---- dropout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["eval", "batch", "recompute"])
def test_dropout_is_off_under_every_policy(policy):
    layers = list(dense())
    dropping = nn.Sequential(*layers[:3], nn.Dropout(0.9), *layers[3:6], nn.Dropout(0.9), layers[6]).train()
    objective, theta = Objective.from_module(dropping, cross_entropy, data(), batchnorm=policy)
    plain, _ = Objective.from_module(dense(), cross_entropy, data(), batchnorm=policy)
    assert objective.value(theta) == plain.value(theta) == objective.value(theta)
