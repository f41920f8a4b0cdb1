"""Rescaled networks: one function, and curvature as the chain rule has it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from command_line import contents, invoke, refused
from networks import filled, labels, randn
from torch import nn

import sharpness as sh
from sharpness.data import load
from sharpness.errors import SchemaError, ShapeError
from sharpness.models import mlp
from sharpness.operators import Scaled
from sharpness.params import ParamSpace
from sharpness.recipes import Place, recipe_named
from sharpness.recipes.rescaling import Rescale, _diagonal, rescale
from sharpness.records import Rescaling

pytest_plugins = "command_line"
pytestmark = pytest.mark.usefixtures("one_thread")

EPS32 = float(np.finfo(np.float32).eps)


def dense(operator: Any) -> torch.Tensor:
    """The matrix, by its products with the unit vectors."""
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


# D A D


def whole_numbers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric matrix and a diagonal of small whole numbers: their products are exact."""
    draw = torch.Generator().manual_seed(n)
    matrix = torch.randint(-8, 9, (n, n), generator=draw, dtype=torch.float64)
    return matrix + matrix.T, torch.randint(-4, 5, (n,), generator=draw).double()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_scaled_operator_is_the_product_of_three_matrices(n: int) -> None:
    matrix, diagonal = whole_numbers(n)
    scaled = Scaled(sh.Dense(matrix), diagonal)
    expected = diagonal.diag() @ matrix @ diagonal.diag()
    assert (scaled.shape, scaled.dtype, scaled.device) == ((n, n), torch.float64, matrix.device)
    assert torch.equal(dense(scaled), expected)
    block = torch.arange(3.0 * n, dtype=torch.float64).reshape(n, 3)
    assert torch.equal(scaled @ block, expected @ block)
    for column in block.T:
        assert torch.equal(scaled @ column, expected @ column)


def test_scaling_twice_is_scaling_by_the_product_and_by_one_nothing() -> None:
    matrix, diagonal = whole_numbers(5)
    other = torch.tensor([2.0, -1.0, 0.0, 4.0, 0.5], dtype=torch.float64)
    operator = sh.Dense(matrix)
    assert torch.equal(dense(Scaled(Scaled(operator, diagonal), other)), dense(Scaled(operator, diagonal * other)))
    assert torch.equal(dense(Scaled(operator, torch.ones(5))), matrix)


def test_a_scaled_operator_says_so_and_computes_in_its_operators_dtype() -> None:
    matrix, diagonal = whole_numbers(4)
    scaled = Scaled(sh.Dense(matrix.float()), diagonal)
    assert scaled.conditions == {"operator": "dense", "n": 4, "scaled": True}
    assert (scaled.dtype, (scaled @ torch.ones(4)).dtype) == (torch.float32, torch.float32)


# H(Tθ) = T⁻¹ H(θ) T⁻¹


def small_network() -> tuple[nn.Sequential, tuple[torch.Tensor, torch.Tensor]]:
    """n = 12 + 4 + 12 + 3 in float64."""
    return filled(mlp([3, 4, 3], batchnorm=False)), (randn(10, 3), labels(10))


@pytest.mark.parametrize("factor", [0.01, 0.3, 1.0, 3.0, 100.0])
def test_the_hessian_of_a_rescaled_network_is_the_scaled_hessian(factor: float) -> None:
    model, (inputs, targets) = small_network()
    objective, theta = sh.Objective.from_module(model, sh.cross_entropy, (inputs, targets))
    space = ParamSpace.of(model)
    t = _diagonal(space, ("0", "2"), factor)

    def loss(vector: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(model, space.unflatten(vector), (inputs,))
        return nn.functional.cross_entropy(output, targets)

    at_origin, rescaled = (torch.autograd.functional.hessian(loss, place) for place in (theta, t * theta))
    predicted = at_origin / t[:, None] / t[None, :]
    # entries are sums of ten examples' terms in float64: their errors scale as they do, from block to block
    assert ((rescaled - predicted).abs() <= 1e-13 * at_origin.abs().max() / torch.outer(t, t)).all()
    for found, expected in (
        (sh.Hessian(objective, t * theta), rescaled),
        (Scaled(sh.Hessian(objective, theta), 1 / t), predicted),
    ):
        assert (dense(found) - expected).abs().max() <= 1e-13 * expected.abs().max()
    assert objective.value(t * theta) == pytest.approx(objective.value(theta), rel=1e-14)  # float64


def test_the_diagonal_scales_two_weights_and_one_bias() -> None:
    space = ParamSpace.of(mlp([3, 4, 5, 2], batchnorm=False))
    for layers, scaled in (
        (("0", "2"), {"0.weight": 4.0, "0.bias": 4.0, "2.weight": 0.25}),
        (("2", "4"), {"2.weight": 4.0, "2.bias": 4.0, "4.weight": 0.25}),
    ):
        t = space.unflatten(_diagonal(space, layers, 4.0))
        for name in space.names:
            assert (t[name] == scaled.get(name, 1.0)).all(), name
    assert torch.equal(_diagonal(space, ("0", "2"), 1.0), torch.ones(space.size, dtype=torch.float64))
    inverse = _diagonal(space, ("0", "2"), 8.0) * _diagonal(space, ("0", "2"), 0.125)
    assert torch.equal(inverse, torch.ones(space.size, dtype=torch.float64))


# One neuron by hand


@pytest.mark.parametrize("factor", [1e-3, 0.1, 1.0, 7.0, 1e3])
def test_one_neuron_by_hand_is_as_sharp_as_one_likes(factor: float) -> None:
    """y = w₂·relu(w₁x + b), f = (y − t)² where it is 0: H = 2 J Jᵀ for J = (w₂x, w₂, w₁x + b).

    So λmax = 2 ((1 + x²) w₂²/α² + α² (w₁x + b)²), without bound in either direction of α, at one function.
    """
    w1, b, w2, x = 1.5, 0.25, -2.0, 0.5
    inside = w1 * x + b
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    data = (torch.full((1, 1), x, dtype=torch.float64), torch.full((1, 1), w2 * inside, dtype=torch.float64))
    objective, _ = sh.Objective.from_module(model, lambda output, target: (output - target) ** 2, data)
    theta = torch.tensor([w1, b, w2], dtype=torch.float64)
    t = _diagonal(ParamSpace.of(model), ("0", "2"), factor)
    expected = 2 * ((1 + x**2) * w2**2 / factor**2 + factor**2 * inside**2)
    jacobian = torch.tensor([w2 * x, w2, inside], dtype=torch.float64) / t
    for hessian in (sh.Hessian(objective, t * theta), Scaled(sh.Hessian(objective, theta), 1 / t)):
        assert torch.allclose(dense(hessian), 2 * torch.outer(jacobian, jacobian), rtol=1e-14, atol=1e-14 * expected)
        pairs = sh.eigenpairs(hessian, 1)
        # rank one: the residual is rounding, and so is the distance of λ from its closed form
        assert pairs.eigenvalues[0] == pytest.approx(expected, rel=1e-13)
    assert objective.value(t * theta) <= (1e-15 * w2 * inside) ** 2


# The recipe

FACTORS = (0.01, 0.25, 0.3, 1.0, 3.0, 4.0)
PLAIN = FACTORS.index(1.0)
EXACT = [row for row, factor in enumerate(FACTORS) if np.log2(factor) % 1 == 0]  # where nothing is rounded


def smoke(**changes: Any) -> Rescale:
    return dataclasses.replace(recipe_named("dinh-rescaling", "smoke").parameters, **changes)


class Rescaled(NamedTuple):
    """The recipe's record, and what it was measured on: the trained θ, the model and the first 100 digits."""

    record: Rescaling
    theta: torch.Tensor
    model: nn.Module
    data: tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def rescaled(tmp_path_factory: pytest.TempPathFactory) -> Rescaled:
    """The recipe at smoke scale, with factors that are powers of two and others."""
    out, parameters = tmp_path_factory.mktemp("rescaling") / "out", smoke(factors=FACTORS)
    record = rescale("dinh-rescaling", "smoke", parameters, Place(out))
    end, digits = sh.load_minimizer(out / "seed-0" / "SB" / "minimizer.safetensors"), load("digits")
    model = parameters.experiment.problem(digits, 0).model
    end.load_into(model)
    inputs, targets = digits.train
    return Rescaled(record, end.point.theta, model, (inputs[:100], targets[:100]))


@pytest.fixture
def record(rescaled: Rescaled) -> Rescaling:
    return rescaled.record


def test_every_factor_is_recorded(record: Rescaling) -> None:
    assert record.factor.tolist() == list(FACTORS)
    assert record.status.tolist() == [1] * len(FACTORS)
    assert (record.layers, record.recipe, record.epsilon) == ("0 and 2", "dinh-rescaling", 1e-3)
    assert (record.conditions["scale"], record.conditions["examples"]) == ("smoke", 100)


def test_a_row_is_what_the_rescaled_network_gives_directly(rescaled: Rescaled) -> None:
    record, theta, model, data = rescaled
    plan = smoke().experiment.analysis
    objective, _ = sh.Objective.from_module(model, sh.cross_entropy, data)
    for row, factor in enumerate(FACTORS):
        there = _diagonal(ParamSpace.of(model), ("0", "2"), factor).float() * theta
        found = sh.epsilon_sharpness(objective, there, 1e-3, iterations=plan.iterations, restarts=plan.restarts, seed=0)
        for name in ("sharpness", "stronger", "first_order", "gradient_norm"):
            assert getattr(record, name)[row] == getattr(found, name), name
        score = objective.evaluate(there)
        assert (record.loss[row], record.accuracy[row]) == (score.loss, score.accuracy)
        pairs = sh.eigenpairs(sh.Hessian(objective, there), 1, tolerance=plan.tolerance)
        assert (record.eigenvalue[row], record.residual[row]) == (pairs.eigenvalues[0], pairs.residuals[0])
        assert record.weight_norm[row] == float(there.double().norm())


def test_measured_and_predicted_curvature_agree_within_their_residuals(record: Rescaling) -> None:
    difference = np.abs(record.eigenvalue - record.predicted_eigenvalue)
    assert (difference <= record.residual + record.predicted_residual).all()
    tolerance = smoke().experiment.analysis.tolerance  # kept, so that the agreement says something
    assert (record.residual <= tolerance * record.eigenvalue).all()
    assert (record.predicted_residual <= tolerance * record.predicted_eigenvalue).all()


def test_a_factor_makes_a_network_sharper_by_any_factor(rescaled: Rescaled) -> None:
    """H(Tθ) holds the blocks H₁/α² of the first layer and α²H₂ of the second, and λmax is no less than theirs."""
    record, _, model, data = rescaled
    assert record.eigenvalue.max() > 10 * record.eigenvalue.min()
    assert record.sharpness.max() > 10 * record.sharpness.min()
    for parameters, power in (("0.*", -2), ("2.weight", 2)):
        block = sh.Hessian(*sh.Objective.from_module(model, sh.cross_entropy, data, parameters=parameters))
        least = sh.eigenpairs(block, 1).eigenvalues[0] * record.factor**power  # a Ritz value: from below
        assert least[0 if power < 0 else -1] > record.eigenvalue[PLAIN]
        assert (record.eigenvalue + record.residual >= least).all()


def test_first_order_sharpness_follows_from_the_gradient_at_the_origin(record: Rescaling) -> None:
    # gradients in float32, through three layers and 100 examples; with powers of two nothing but the sum in float64
    assert record.first_order == pytest.approx(record.predicted_first_order, rel=1e-6)
    assert record.first_order[EXACT] == pytest.approx(record.predicted_first_order[EXACT], rel=1e-13)


def test_curvature_along_filter_normalised_directions_stays(record: Rescaling) -> None:
    """T⁻¹HT⁻¹ between directions that T rescales."""
    # a product in float32, whose rounding is relative to its largest entries
    assert record.filter_curvature == pytest.approx(record.filter_curvature[PLAIN], rel=1e-5)
    assert len(set(record.filter_curvature[EXACT])) == 1


def test_the_function_stays(record: Rescaling) -> None:
    assert (record.output_change <= 8 * EPS32).all()  # three layers, in each a scaled number rounded and a sum
    assert record.output_change[EXACT].tolist() == [0.0] * len(EXACT)
    assert record.output_change.max() > 0
    assert len(set(record.accuracy)) == 1
    assert record.loss == pytest.approx(record.loss[PLAIN], rel=8 * EPS32)
    assert len(set(record.loss[EXACT])) == 1


def test_layers_that_do_not_follow_each_other_are_refused(tmp_path: Path) -> None:
    """Rescaled there the network computes another function, of which nothing that is predicted holds."""
    with pytest.raises(ShapeError, match="only ReLU between them; rescaled, outputs change by"):
        rescale("dinh-rescaling", "smoke", smoke(factors=(2.0,), layers=("0", "4")), Place(tmp_path / "out"))


# Refusals


@pytest.mark.parametrize("factors", [(), (0.0,), (1.0, -2.0), (1.0, 0.0, 2.0)])
def test_factors_that_are_not_positive_are_refused(factors: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"expected factors > 0; got {factors}")):
        smoke(factors=factors)
    (tmp_path / "recipe.toml").write_text(f'recipe = "dinh-rescaling"\nscale = "smoke"\nfactors = {list(factors)}')
    assert refused(invoke("run", tmp_path / "recipe.toml", "--out", tmp_path / "out"), 2, "expected factors > 0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_refused(factor: float) -> None:
    with pytest.raises(ShapeError, match="factors"):
        smoke(factors=(1.0, factor))


@pytest.mark.parametrize(
    ("layers", "missing"),
    [(["9", "2"], "9.weight"), (["0", "1"], "1.weight"), (["0", "net"], "net.weight"), (["", "2"], ".weight")],
)
def test_layers_that_do_not_exist_are_refused(layers: list[str], missing: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f'recipe = "dinh-rescaling"\nscale = "smoke"\nlayers = {layers}')
    ended = invoke("run", tmp_path / "recipe.toml", "--out", tmp_path / "out")
    assert refused(ended, 2, f"expected layers with the parameters {layers[0]}.weight", f"the model lacks {missing}")


def test_one_layer_or_one_without_a_bias_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('recipe = "dinh-rescaling"\nlayers = ["0"]')
    assert refused(invoke("run", tmp_path / "recipe.toml", "--out", tmp_path / "out"), 2, "layers as tuple")
    space = ParamSpace.of(nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)))
    with pytest.raises(ShapeError, match=r"lacks 0\.bias"):
        _diagonal(space, ("0", "2"), 2.0)


def test_more_than_one_network_is_refused(tmp_path: Path) -> None:
    ended = invoke("run", "dinh-rescaling", "--scale", "smoke", "--trials", 2, "--out", tmp_path / "out")
    assert refused(ended, 2, "expected one trial of one regime", "got 2 trials of SB")
    experiment = smoke().experiment
    regimes = {**experiment.regimes, "LB": experiment.regimes["SB"]}
    with pytest.raises(ShapeError, match="got 1 trials of SB, LB"):
        smoke(experiment=dataclasses.replace(experiment, regimes=regimes))


def test_other_factors_or_layers_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    place = Place(tmp_path / "out")
    rescale("dinh-rescaling", "smoke", smoke(factors=(1.0,)), place)
    before = contents(tmp_path)
    for changes, said in (({"factors": (2.0,)}, "factor α differs"), ({"layers": ("2", "4")}, "layers is '0 and 2'")):
        with pytest.raises(SchemaError, match=said):
            rescale("dinh-rescaling", "smoke", smoke(**{"factors": (1.0,), **changes}), place)
    assert contents(tmp_path) == before
