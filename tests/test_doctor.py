"""Whether the doctor sees what is wrong with a model, names it, and has nothing to say of what is right."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import randn
from torch import Tensor, nn

from sharpness import doctor
from sharpness.doctor import Check, check_machine, check_problem, check_quickly, forecast, machine
from sharpness.doctor.check import attempt
from sharpness.doctor.forecast import check_cost
from sharpness.doctor.score import check_score, score
from sharpness.doctor.slope import check_slope
from sharpness.errors import NonFiniteError, ShapeError
from sharpness.objective import Objective, Problem, cross_entropy
from sharpness.operators import Hessian
from sharpness.params import Point

COUNT, INPUTS, CLASSES = 60, 4, 3


def numbers(*shape: int, key: str = "x") -> Tensor:
    return randn(*shape, key=key, dtype=torch.float32)


def noisy_labels() -> Tensor:
    """Classes of a linear rule, every tenth another one: they can be learnt, and not without a loss."""
    best = (numbers(COUNT, INPUTS) @ numbers(INPUTS, CLASSES, key="rule")).argmax(1)
    best[::10] = (best[::10] + 1) % CLASSES
    return best


DATA = numbers(COUNT, INPUTS), noisy_labels()


def filled(model: nn.Module) -> nn.Module:
    """The model with the same weights in every run."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.5 * numbers(*parameter.shape, key=name))
    return model


def net(*inner: nn.Module, width: int = 8) -> nn.Sequential:
    return filled(nn.Sequential(nn.Linear(INPUTS, width), *inner, nn.Linear(width, CLASSES)))


def minimum() -> nn.Module:
    """Logistic regression where its slope is zero."""
    model = filled(nn.Linear(INPUTS, CLASSES)).double()
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(model(DATA[0].double()), DATA[1])
        value.backward()
        return value

    optimiser.step(loss)
    return model.float()


def examined(model: nn.Module, loss: Any = cross_entropy, data: Any = DATA, **options: Any) -> dict[str, Check]:
    """The checks of a problem by name."""
    checks = check_problem(Problem(model, loss, data), **options)
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    for check in checks:
        assert check.outcome in ("ok", "note", "fails")
        assert check.seen
        assert bool(check.cure) == (check.outcome != "ok"), check
    return found


def wrong(checks: Mapping[str, Check]) -> dict[str, str]:
    """The outcomes other than ok."""
    return {name: check.outcome for name, check in checks.items() if check.outcome != "ok"}


GRADIENT, COLUMNS = "gradient against differences of f", "sub-Hessian against differences of g"
SYMMETRY, FLOAT64, TRAIN = "symmetry ⟨u, Hv⟩ = ⟨v, Hu⟩", "product against float64", "loss and accuracy (train)"


# ---- what is right ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_wrong_with_a_minimum(dtype: torch.dtype) -> None:
    checks = examined(minimum(), dtype=dtype)
    assert wrong(checks) == {}
    assert {SYMMETRY, FLOAT64, GRADIENT, COLUMNS, TRAIN, "minimum", "two batch splits agree"} < checks.keys()
    assert checks["parameters"].seen == "15 in 2 tensors"
    assert checks["objective"].seen.endswith("15 parameters, 60 examples")
    f, theta = Objective.from_module(minimum(), cross_entropy, DATA, dtype=dtype)
    assert check_quickly(f, theta) == []


def test_loss_and_accuracy_are_told_of_test_data_too() -> None:
    model = minimum()
    problem = Problem(model, cross_entropy, DATA, (DATA[0][:7], DATA[1][:7]))
    seen = {check.name: check.seen for check in check_problem(problem)}
    f, theta = Objective.from_module(model, cross_entropy, (DATA[0][:7], DATA[1][:7]))
    loss, accuracy, _ = f.evaluate(theta)
    assert seen["loss and accuracy (test)"].startswith(f"{loss:.6g} nat, accuracy {accuracy:.4f}; of 3 classes")


# ---- is it a minimum ----------------------------------------------------------------------------------------------


def bowl(theta: list[float], image: Callable[[Tensor], Tensor]) -> Check:
    """f = (θ₁² + θ₂²) / 4 at a place, with a product given."""
    model = nn.Linear(2, 1, bias=False)
    f, _ = Objective.from_module(model, lambda o, t: 0.5 * o.square(), (torch.eye(2), torch.zeros(2, 1)))
    point = f.point(torch.tensor(theta))
    value, gradient = f.value_and_gradient(point)
    corner = 1e-3 * (point.theta.abs() + 1) * gradient.sign()
    return check_slope(point, value, gradient, image(corner))


def test_slope_and_curvature_are_those_of_the_corner() -> None:
    # s = 1e-3 (2, 3), g = (½, 1), f = 1¼: gᵀs = 4e-3, ½ sᵀHs = ¼ · 13e-6
    check = bowl([1.0, 2.0], lambda s: s / 2)
    slope, curvature = 100 * 4e-3 / 2.25, 100 * 13e-6 / 4 / 2.25
    assert f"slope alone adds {slope:.3g} % and curvature {curvature:.3g} % of 1 + |f|" in check.seen
    assert "‖g‖ = 1.12 at ‖θ‖ = 2.24" in check.seen
    assert check.outcome == "note"
    assert f"would lower f by {slope**2 / (4 * curvature):.2g} %" in check.cause


def test_the_bottom_is_a_minimum_and_a_hill_is_none() -> None:
    assert bowl([0.0, 0.0], lambda s: s / 2).outcome == "ok"
    hill = bowl([1.0, 2.0], lambda s: -s)
    assert (hill.outcome, "curves down" in hill.cause) == ("note", True)


def test_new_weights_are_no_minimum() -> None:
    check = examined(net(nn.Tanh()))["minimum"]
    assert (check.outcome, "no minimum" in check.cause) == ("note", True)


def test_the_place_is_what_is_looked_at() -> None:
    model = minimum()
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    for place, outcome in ((None, "ok"), (theta, "ok"), (Point(theta + 1.0 * numbers(15)), "note")):
        assert examined(model, place=place)["minimum"].outcome == outcome
    assert examined(model, place=theta[:3])["objective"].outcome == "fails"


# ---- kinks --------------------------------------------------------------------------------------------------------


def test_kinks_between_large_steps_are_no_failure() -> None:
    model = net(nn.ReLU())
    with torch.no_grad():  # the first unit is 2e-5 above its kink for the first example
        model[0].bias[0] += 2e-5 - model[0](DATA[0][:1])[0, 0]
    checks = examined(model)
    assert {GRADIENT, COLUMNS}.isdisjoint(wrong(checks))
    assert "over kinks and bends" in checks[COLUMNS].seen
    smooth = examined(net(nn.GELU()))
    assert {GRADIENT, COLUMNS}.isdisjoint(wrong(smooth))
    assert "kinks" not in smooth[COLUMNS].seen


def on_a_kink() -> nn.Module:
    """Every unit is as near to zero for one example as float32 can tell."""
    model = net(nn.ReLU(), width=32)
    with torch.no_grad():
        model[0].bias.copy_(-(DATA[0][:1] @ model[0].weight.T)[0])
    return model


def test_what_kinks_explain_of_a_difference_to_float64_is_no_failure() -> None:
    check = examined(on_a_kink())[FLOAT64]
    assert float(check.seen.split()[2].rstrip(":")) > 1e-3
    assert check.outcome == "note"
    assert "on a kink of ReLU or its like 1 of 60 examples" in check.seen
    assert float(check.seen.split()[-1]) < 1e-5
    assert examined(on_a_kink(), dtype=torch.float64)[FLOAT64].outcome == "ok"


class Steep(nn.Module):
    """Smooth, and finer than float32: sin(10⁷ x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e7 * x) / 1e7


def test_what_kinks_do_not_explain_fails() -> None:
    check = examined(net(Steep()))[FLOAT64]
    assert check.outcome == "fails"
    assert float(check.seen.split()[-1]) > 1e-3
    assert "--dtype float64" in check.cure
    assert examined(net(Steep()), dtype=torch.float64)[FLOAT64].outcome == "ok"


def test_differences_that_settle_at_nothing_prove_nothing() -> None:
    square = Apply(lambda x: (x + 1e6) ** 2 - 1e12 - 2e6 * x)  # x², of which float64 has four digits left
    checks = examined(net(square))
    assert {FLOAT64: "fails", GRADIENT: "note", COLUMNS: "note"}.items() <= wrong(checks).items()
    assert "settle at nothing" in checks[COLUMNS].cause


def test_a_point_exactly_on_kinks_is_not_taken_for_a_wrong_derivative() -> None:
    model = net(nn.Linear(8, 8), nn.ReLU())
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    checks = examined(model)
    assert {GRADIENT: "note", COLUMNS: "note"}.items() <= wrong(checks).items()
    assert "on a kink" in checks[GRADIENT].cause


# ---- wrong derivatives --------------------------------------------------------------------------------------------


class Hidden(torch.autograd.Function):
    """x², whose gradient is right and whose second derivative is not all there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * g


class Neighbour(torch.autograd.Function):
    """x², with the slope of the entry beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].roll(1, 1) * g


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def rounded(x: Tensor) -> Tensor:
    """To eighths, with the slope of x."""
    return x + ((8 * x).round() / 8 - x).detach()


DERIVATIVES: dict[str, tuple[Callable[[Tensor], Tensor], set[str], str]] = {
    "half a second derivative": (Hidden.apply, {COLUMNS}, "Hidden in '1' (Apply)"),
    "a wrong gradient": (Neighbour.apply, {SYMMETRY, GRADIENT, COLUMNS}, "Neighbour in '1' (Apply)"),
    "a part that is cut off": (lambda x: x * x.detach(), {GRADIENT, COLUMNS}, "detach()"),
    "straight through": (rounded, {GRADIENT, COLUMNS}, "straight-through"),
}


@pytest.mark.parametrize("inner", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_a_wrong_derivative_fails_and_its_cause_is_named(name: str, inner: Callable[[], nn.Module]) -> None:
    function, failing, cause = DERIVATIVES[name]
    checks = examined(net(Apply(function), inner()))
    failed = {check.name for check in checks.values() if not check.good}
    assert failed == failing
    assert cause in checks[COLUMNS].cause
    assert "gradgradcheck" in checks[COLUMNS].cure


def test_a_function_in_the_loss_is_named() -> None:
    check = examined(net(nn.Tanh()), lambda z, t: cross_entropy(Hidden.apply(z), t))[COLUMNS]
    assert (check.outcome, "Hidden in the loss" in check.cause) == ("fails", True)


def test_an_operation_without_a_second_derivative_is_one_failure_with_its_module() -> None:
    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, torch.eye(x.shape[1]))

    checks = examined(net(Distances()))
    failed = [check for check in checks.values() if not check.good]
    assert [check.name for check in failed] == ["derivatives"]
    assert "in '1' (Distances)" in failed[0].seen


def test_a_second_derivative_that_is_infinite_fails() -> None:
    model = nn.Linear(INPUTS, 2, bias=False)
    nn.init.zeros_(model.weight)
    problem = Problem(model, lambda o, t: o.abs().sum(1).pow(1.5), DATA)
    failed = [check for check in check_problem(problem) if not check.good]
    assert [check.name for check in failed] == ["derivatives"]
    assert "finite products" in failed[0].seen


# ---- guessing -----------------------------------------------------------------------------------------------------


def scored(logits: Tensor, labels: Tensor, loss: Any = cross_entropy) -> Check:
    """Of a model that hands its inputs on."""
    model = nn.Linear(logits.shape[1], logits.shape[1], bias=False)
    nn.init.eye_(model.weight)
    f, theta = Objective.from_module(model, loss, (logits, labels))
    return check_score("score", score(f, f.point(theta), f.chunks))


def right(labels: Tensor, share: float, confidence: float = 2.0) -> Tensor:
    """Logits that hit this share of the labels and miss the others by one class."""
    hit = torch.arange(len(labels)) < round(share * len(labels))
    return confidence * F.one_hot(torch.where(hit, labels, (labels + 1) % 5), 5).float()


EVEN = torch.arange(200) % 5


@pytest.mark.parametrize(
    ("share", "outcome", "cause"),
    [
        (1.0, "ok", ""),
        (0.3, "ok", ""),  # three standard deviations end at 0.285
        (0.27, "note", "no better than guessing"),
        (0.13, "note", "no better than guessing"),
        (0.1, "note", "worse than guessing"),
    ],
)
def test_accuracy_is_compared_with_guessing(share: float, outcome: str, cause: str) -> None:
    check = scored(right(EVEN, share, confidence=0.3), EVEN)
    assert f"accuracy {share:.4f}; of 5 classes the commonest makes up 0.2000" in check.seen
    assert check.outcome == outcome
    assert cause in check.cause
    assert ("preprocessing" in check.cure) == (outcome == "note")


def test_always_the_commonest_class_is_a_guess() -> None:
    labels = torch.where(torch.arange(200) < 180, 0, EVEN)
    assert scored(right(torch.zeros(200, dtype=torch.int64), 1.0), labels).outcome == "note"
    assert scored(right(labels, 1.0), labels).outcome == "ok"
    assert "all targets are of class 3" in scored(right(torch.full((20,), 3), 0.0), torch.full((20,), 3)).seen


def test_a_loss_above_that_of_a_guess_is_noted_where_it_is_the_cross_entropy() -> None:
    logits = right(EVEN, 0.8, confidence=20.0)
    check = scored(logits, EVEN)
    assert check.outcome == "note"
    assert f"a guess among all costs ln 5 = {math.log(5):.4g} nat" in check.seen
    assert scored(logits, EVEN, lambda z, t: 100 * F.multi_margin_loss(z, t, reduction="none")).outcome == "ok"


def test_masked_targets_are_no_class() -> None:
    labels = torch.where(torch.arange(200) % 2 == 0, EVEN, -100)
    check = scored(right(EVEN, 1.0), labels, lambda z, t: (F.cross_entropy(z, t, reduction="sum"), (t >= 0).sum()))
    assert check.outcome == "ok"
    assert "accuracy 1.0000; of 5 classes the commonest makes up 0.2000" in check.seen


def test_where_all_targets_are_masked_nothing_is_said() -> None:
    labels = torch.where(torch.arange(200) < 100, EVEN, -100)
    model = nn.Linear(5, 5, bias=False)
    loss = lambda z, t: (F.cross_entropy(z, t, reduction="sum"), (t >= 0).sum())  # noqa: E731
    f, theta = Objective.from_module(nn.Sequential(model), loss, (right(EVEN, 1.0), labels), chunk_size=100)
    assert check_score("score", score(f, f.point(theta), f.chunks[1:])).outcome == "ok"
    assert score(f, f.point(theta), f.chunks).loss == pytest.approx(f.value(theta))


def test_numbers_cannot_be_guessed() -> None:
    check = examined(filled(nn.Linear(INPUTS, 1)), lambda o, t: (o[:, 0] - t).square(), (DATA[0], numbers(COUNT)))[
        TRAIN
    ]
    assert (check.outcome, "no classes" in check.seen) == ("ok", True)


class Language(nn.Module):
    """The next of 5 tokens is the one after; ``shift`` of them on is what is said."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.table = nn.Parameter(8.0 * torch.eye(5).roll(shift, 1))

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.table[input_ids]
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return type("Output", (dict,), {"logits": logits})(loss=loss)


@pytest.mark.parametrize(("shift", "outcome"), [(1, "ok"), (2, "note"), (0, "note")])
def test_the_loss_of_a_language_model_is_compared_with_guessing(shift: int, outcome: str) -> None:
    tokens = (torch.arange(8) + torch.arange(6)[:, None]) % 5
    batches = [{"input_ids": tokens, "labels": tokens}]
    f, theta = Objective.from_module(Language(shift), "model", batches, weight=lambda b: b["labels"][:, 1:].numel())
    check = check_score("score", score(f, f.point(theta), f.chunks))
    assert check.outcome == outcome
    assert ("ln 5" in check.seen) == (outcome == "note")
    assert "accuracy" not in check.seen


# ---- what the model is made of --------------------------------------------------------------------------------------


def normed() -> nn.Sequential:
    return net(nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))


def test_batch_norm_that_was_never_trained_is_noted() -> None:
    model = normed()
    check = examined(model)["batch norm"]
    assert check.outcome == "note"
    assert "as new, with running mean 0 and variance 1: 1, '1'" in check.seen
    assert "the model came in train mode" in check.seen
    assert "by the statistics of each chunk" in (own := examined(model, batchnorm="batch"))["batch norm"].seen
    assert {"batch norm", SYMMETRY, FLOAT64, GRADIENT, COLUMNS}.isdisjoint(wrong(own))
    assert "chunks are a part of f" in own["two batch splits agree"].seen
    model(DATA[0])
    model.eval()
    check = examined(model)["batch norm"]
    assert (check.outcome, check.seen) == ("ok", "layers: 1, by the running statistics of the point")


def test_statistics_of_the_point_count_and_not_those_of_the_model() -> None:
    model = normed()
    f, theta = Objective.from_module(model, cross_entropy, DATA)
    own = f.with_statistics(theta)
    assert "batch norm" in {check.name for check in check_quickly(f, theta)}
    assert "batch norm" not in {check.name for check in check_quickly(f, own)}
    assert "batch norm" not in wrong(examined(model, place=own))


def test_momentum_and_other_norms_are_told() -> None:
    model = net(nn.BatchNorm1d(8, momentum=None), nn.LayerNorm(8))
    assert "averaging over all of training (momentum None): 1" in examined(model)["batch norm"].seen
    assert examined(net(nn.LayerNorm(8)))["batch norm"].seen == "none"


def test_dropout_is_told_where_there_is_any() -> None:
    assert examined(normed())["dropout"].seen == "switched off: 1 (Dropout), '3'"
    assert examined(net(nn.Dropout(0.0), nn.Tanh()))["dropout"].seen == "none"
    recurrent = nn.LSTM(INPUTS, 3, num_layers=2, dropout=0.2, batch_first=True)
    model = filled(nn.Sequential(recurrent, Apply(lambda states: states[0][:, -1])))
    assert "LSTM" in examined(model, data=(numbers(COUNT, 5, INPUTS), DATA[1]))["dropout"].seen


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_told(half: torch.dtype) -> None:
    check = examined(net(nn.Tanh()).to(half))["precision"]
    assert check.outcome == "note"
    assert check.seen == f"{str(half)[6:]} weights, analysed in float32"
    assert examined(net(nn.Tanh()))["precision"].seen == "float32"
    assert examined(net(nn.Tanh()).double())["precision"].seen == "float64"


def test_zeros_are_counted() -> None:
    model = net(nn.Tanh())
    with torch.no_grad():
        model[0].weight[:4] = 0
    check = examined(model)["exact zeros"]
    assert (check.outcome, check.seen) == ("note", f"{16 / 67:.1%} of the parameters")


def test_frozen_and_unused_parameters_are_named() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare, self.fixed = (nn.Linear(INPUTS, CLASSES) for _ in range(3))
            self.fixed.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + self.fixed(x)

    model = filled(Partly())
    checks = examined(model)
    assert checks["parameters"].seen == "30 in 4 tensors; constants: 15 in 2, 'fixed.weight', 'fixed.bias'"
    assert checks["unused parameters"].outcome == "note"
    assert "2 of 4" in checks["unused parameters"].seen
    assert checks["unused parameters"].seen.endswith("'spare.weight', 'spare.bias'")
    f, theta = Objective.from_module(model, cross_entropy, DATA)
    assert "unused parameters" in {check.name for check in check_quickly(f, theta)}


def test_parameters_with_a_slope_and_no_curvature_are_used() -> None:
    checks = examined(filled(nn.Linear(INPUTS, 2)), lambda o, t: o.sum(1))
    assert checks["unused parameters"].outcome == "ok"


# ---- one function, and what goes wrong ----------------------------------------------------------------------------


def test_a_loss_of_large_batches_fails() -> None:
    data = numbers(600, INPUTS), torch.zeros(600, dtype=torch.int64)
    loss = lambda z, t: cross_entropy(z, t) * (1 + 1e-3 * (len(t) >= 500))  # noqa: E731
    check = examined(net(nn.Tanh()), loss, data)["two batch splits agree"]
    assert check.outcome == "fails"
    assert float(check.seen.split()[-1]) == pytest.approx(1e-3, rel=0.1)


def test_a_loss_with_a_memory_fails() -> None:
    calls = 0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return cross_entropy(output, target) * (1 + 1e-3 * max(0, calls - 8))

    assert examined(net(nn.Tanh()), loss)["two evaluations agree"].outcome == "fails"


class Failing(nn.Module):
    """Raises when its slope is asked for."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise self.error
        return x


@pytest.mark.parametrize("error", [ValueError("no such luck"), RuntimeError("no such luck"), KeyError("no such luck")])
def test_what_a_model_raises_is_a_failed_check(error: Exception) -> None:
    checks = check_problem(Problem(net(Failing(error)), cross_entropy, DATA))
    failed = [check for check in checks if not check.good]
    assert len(failed) == 1
    assert "no such luck" in failed[0].seen
    assert failed[0].cure
    f, theta = Objective.from_module(net(Failing(error)), cross_entropy, DATA, chunk_size=COUNT)
    failed = [check for check in check_quickly(f, theta) if not check.good]
    assert [check.name for check in failed] == ["derivatives"]
    assert "no such luck" in failed[0].seen


def test_what_is_raised_keeps_what_was_found_before() -> None:
    def look() -> Any:
        yield Check("first", "ok", "well")
        raise torch.OutOfMemoryError("too much")

    first, second = attempt("second", look)
    assert (first.name, second.name, second.outcome) == ("first", "second", "fails")
    assert "chunk_size" in second.cure


def test_weights_that_are_not_finite_fail() -> None:
    model = net(nn.Tanh())
    place = torch.full((67,), math.nan)
    checks = examined(model, place=place)
    assert checks[TRAIN].outcome == "fails"
    assert "finite" in checks[TRAIN].cause
    assert checks["derivatives"].outcome == "fails"
    with pytest.raises(NonFiniteError):
        Hessian(*Objective.from_module(model, cross_entropy, DATA)[:1], place)


def test_model_data_and_random_state_stay_as_they_were() -> None:
    model = normed().train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, data = copy.deepcopy(model), tuple(part.clone() for part in DATA)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        torch.rand(())
        return cross_entropy(output, target)

    f, theta = Objective.from_module(model, loss, DATA)
    kept, state = theta.clone(), torch.get_rng_state()
    examined(model, loss)
    assert torch.equal(torch.get_rng_state(), state)
    check_quickly(f, theta)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(theta, kept)
    assert all(torch.equal(a, b) for a, b in zip(DATA, data, strict=True))
    own, theirs = model.state_dict(), before.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    assert all(part.training for part in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones(8, INPUTS))
    assert model[4].weight.grad is None


# ---- memory, time, machine ----------------------------------------------------------------------------------------


def cost(monkeypatch: pytest.MonkeyPatch, memory: int, free: int) -> tuple[Check, Check]:
    f, theta = Objective.from_module(net(nn.Tanh()), cross_entropy, DATA, chunk_size=20)
    hessian = Hessian(f, theta, memory=memory)
    monkeypatch.setattr(forecast, "free_bytes", lambda device: free)
    return tuple(check_cost(f, hessian, 2.0))  # type: ignore[return-value]


def test_memory_and_time_are_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, time = cost(monkeypatch, 2**30, 2**30)
    assert memory.outcome == "ok"
    assert "for 3 of 3 chunks; basis for 5 pairs 10 KiB, of 40 vectors; 1 GiB are free" in memory.seen
    assert time.seen == "2 s per product; 5 pairs usually take 25 (50 s), at most 13 min"
    memory, _ = cost(monkeypatch, 0, 2**30)
    assert (memory.outcome, "0 B for 0 of 3 chunks" in memory.seen) == ("note", True)
    memory, _ = cost(monkeypatch, 0, 100)
    assert (memory.outcome, "basis" in memory.cause) == ("note", True)


def test_a_library_that_is_missing_fails_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.outcome == "ok" for check in check_machine())
    monkeypatch.setattr(machine, "package_version", lambda name: "not installed" if name == "h5py" else "1.0")
    assert [str(check) for check in check_machine() if not check.good] == [
        "h5py: not installed. Cure: pip install h5py."
    ]


# ---- quickly ------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Hands on, and counts examples with and without a slope."""

    seen: dict[bool, int]

    def forward(self, x: Tensor) -> Tensor:
        self.seen[torch.is_grad_enabled()] += len(x)
        return x


def test_a_quick_look_costs_little_of_large_data() -> None:
    Counting.seen = {True: 0, False: 0}
    data = numbers(20_000, INPUTS), torch.zeros(20_000, dtype=torch.int64)
    f, theta = Objective.from_module(net(Counting()), cross_entropy, data, chunk_size=100)
    Counting.seen = {True: 0, False: 0}
    check_quickly(f, theta)
    assert 0 < Counting.seen[False] <= 512
    assert 0 < Counting.seen[True] <= 32


def test_a_quick_look_says_only_what_is_worth_saying() -> None:
    f, theta = Objective.from_module(normed().bfloat16(), cross_entropy, DATA)
    found = {check.name: check.outcome for check in check_quickly(f, theta)}
    assert found.keys() == {"precision", "batch norm", "loss and accuracy of 60 examples"}
    assert set(found.values()) == {"note"}


def test_a_quick_look_tests_functions_of_the_models_own() -> None:
    f, theta = Objective.from_module(net(Apply(Hidden.apply)), cross_entropy, DATA)
    failed = [check for check in check_quickly(f, theta) if not check.good]
    assert [check.name for check in failed] == [COLUMNS]


def test_a_quick_look_at_values_alone_takes_no_derivative() -> None:
    model = normed()
    model(DATA[0])
    f, theta = Objective.from_module(model, cross_entropy, DATA, batchnorm="recompute")
    assert check_quickly(f, theta) == []


def test_a_quick_look_leaves_no_example_alone_in_its_batch() -> None:
    data = numbers(1002, INPUTS), torch.arange(1002) % CLASSES
    f, theta = Objective.from_module(normed(), cross_entropy, data, batchnorm="batch", chunk_size=1000)
    assert all(check.good for check in check_quickly(f, theta))


def test_a_place_that_does_not_fit_is_refused() -> None:
    f, theta = Objective.from_module(minimum(), cross_entropy, DATA)
    with pytest.raises(ShapeError):
        check_quickly(f, theta[:-1])


# ---- what a check says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("outcome", "good"), [("ok", True), ("note", True), ("fails", False)])
def test_a_check_is_good_unless_it_fails(outcome: Any, good: bool) -> None:
    check = Check("name", outcome, "seen", "cause", "cure")
    assert check.good == good
    assert check._asdict() == {
        "name": "name", "outcome": outcome, "seen": "seen", "cause": "cause", "cure": "cure", "good": good,
    }  # fmt: skip


def test_the_names_are_importable_from_one_place() -> None:
    assert set(doctor.__all__) == {"Check", "check_machine", "check_problem", "check_quickly"}
