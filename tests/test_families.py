"""Every family of models in every column: exact products, certified eigenpairs, checkpoints, a clean bill, no traces.

Plain PyTorch, which knows nothing of this package, gives the dense Hessian in float64 that the columns are held to.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import layer_families  # noqa: F401 - which enters its families
import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformer_families  # noqa: F401
from dense import Reference
from families import COUNT, FAMILIES, Case, made, numbers
from networks import labels, randn
from safetensors.torch import save_model
from torch import nn

from sharpness import Hessian, Minimizer, Objective, Problem, cross_entropy, eigenpairs, load_minimizer
from sharpness.checkpoints import load_checkpoint, load_state
from sharpness.doctor import check_problem
from sharpness.errors import UnsupportedModelError

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        # older names, by which also older releases know them
        ".*is_gradient_checkpointing.*:FutureWarning",
        "`gradient_checkpointing_enable`:FutureWarning",
        "`torch.nn.utils.weight_norm` is deprecated:FutureWarning",  # which the old one is
    )
]

CHUNK = 5  # of 12 examples: two whole chunks and a part of one
# Two exact formulas for one number in float64: some hundred roundings of 1.1e-16 along the way, some cancelling.
EXACT = 1e-11
# The same in float32, whose roundings are 6e-8, where normalisations of small layers raise them further.
SINGLE = 1e-4


class Family:
    """One row of the matrix: a caller's case, made anew for whoever asks, and what is known of it, computed once."""

    def __init__(self, name: str) -> None:
        self.name = name

    def case(self, seed: int = 0) -> Case:
        return made(self.name, seed)

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.case())

    @cached_property
    def analysed(self) -> tuple[Objective, torch.Tensor, Hessian]:
        """The objective in float64, θ and the Hessian."""
        objective, theta = self.objective(self.case(), torch.float64)
        return objective, theta, Hessian(objective, theta)

    @staticmethod
    def objective(case: Case, dtype: torch.dtype | None = None) -> tuple[Objective, torch.Tensor]:
        data = case.whole if case.data is None else case.data
        options = {"weight": case.weight, "parameters": case.parameters, "chunk_size": CHUNK, "dtype": dtype}
        return Objective.from_module(case.model, case.loss, data, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture(scope="module", autouse=True)
def no_process_group_stays() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


# ---- products -----------------------------------------------------------------------------------------------------


def test_the_reference_is_the_slope_of_its_gradient(family):
    reference = family.reference
    direction = randn(len(reference.theta), key="direction")
    assert off(reference.slope(direction), reference.matrix @ direction) < 1e-6  # as the differences are over


def test_value_gradient_and_products_in_float64_are_the_dense_ones(family):
    (objective, theta, hessian), reference = family.analysed, family.reference
    vectors = randn(objective.size, 2, key="v")
    assert torch.equal(theta, reference.theta)
    assert objective.value(theta) == pytest.approx(reference.value, rel=EXACT)
    assert objective.evaluate(theta).loss == pytest.approx(reference.value, rel=EXACT)
    assert off(objective.gradient(theta), reference.gradient) < EXACT
    assert off(hessian @ vectors, reference.matrix @ vectors) < EXACT


def test_products_in_float32_are_the_dense_ones_to_rounding(family):
    objective, theta = family.objective(family.case())
    vector, reference = randn(objective.size, key="v"), family.reference
    assert theta.dtype == objective.dtype == torch.float32
    assert torch.equal(theta.double(), reference.theta)
    assert objective.value(theta) == pytest.approx(reference.value, rel=SINGLE)
    assert off(Hessian(objective, theta) @ vector.float(), reference.matrix @ vector) < SINGLE


def test_the_names_in_theta_are_the_callers_without_those_of_wrappers_around_the_model(family):
    case, found = family.case(), family.analysed[0].space.names
    own = [n for n, p in case.model.named_parameters() if p.requires_grad and case.chosen(n)]
    around = own[0].removesuffix(found[0])
    assert [around + name for name in found] == own
    assert set(around.split(".")) <= {"module", "_orig_mod", ""}


# ---- eigenpairs ---------------------------------------------------------------------------------------------------


def test_the_largest_and_smallest_eigenvalues_are_those_of_the_dense_hessian(family):
    hessian, matrix = family.analysed[2], family.reference.matrix
    pairs = eigenpairs(hessian, 3, which="both", tolerance=1e-5)
    spectrum = np.linalg.eigvalsh(matrix.numpy())[::-1]
    expected = np.concatenate([spectrum[:3], spectrum[-3:]])
    rounding = EXACT * np.abs(spectrum).max()
    assert pairs.converged.all()
    assert (np.abs(pairs.eigenvalues - expected) <= pairs.residuals + rounding).all()
    errors = matrix @ pairs.vectors - pairs.vectors * torch.from_numpy(pairs.eigenvalues)
    assert (errors.norm(dim=0).numpy() <= pairs.residuals + rounding).all()


# ---- checkpoints --------------------------------------------------------------------------------------------------


def save_plainly(module: nn.Module, path: Any) -> None:
    torch.save(module.state_dict(), path)


@pytest.mark.parametrize(("save", "file"), [(save_plainly, "weights.pt"), (save_model, "weights.safetensors")])
def test_a_saved_state_loaded_into_another_model_gives_the_same_point_and_value(family, save, file, tmp_path):
    first, second = family.case(), family.case(seed=1)
    objective, theta = family.objective(first)
    assert not same(state_of(second.model), state_of(first.model))
    save(first.model, str(tmp_path / file))
    load_state(second.model, load_checkpoint(tmp_path / file), file)
    again, loaded = family.objective(second)
    assert torch.equal(loaded, theta)
    assert same(state_of(second.model), state_of(first.model))
    assert again.value(loaded) == objective.value(theta)


def test_a_minimizer_from_a_file_gives_the_same_value_in_another_model_too(family, tmp_path):
    first, second = family.case(), family.case(seed=1)
    objective, theta = family.objective(first)
    loaded = load_minimizer(Minimizer.of(first.model).save(tmp_path / "minimizer.safetensors"))
    if first.parameters is None:
        assert objective.value(loaded) == objective.value(theta)
        assert family.objective(second)[0].value(loaded) == objective.value(theta)
    loaded.load_into(second.model)
    again, theta = family.objective(second)
    assert again.value(theta) == objective.value(theta)


# ---- doctor -------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_nothing_wrong(family):
    case = family.case()
    data = case.whole if case.data is None else case.data
    checks = check_problem(Problem(case.model, case.loss, data, weight=case.weight))
    assert len(checks) > 3
    assert not [(check.name, check.seen) for check in checks if not check.good]


# ---- the caller's model and random state --------------------------------------------------------------------------


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


class Traces:
    """Everything about a model and the process that an analysis could leave changed."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = self._now()
        self._tensors = {n: (id(t), t.data_ptr(), t.detach().clone()) for n, t in state_of(model).items()}

    def check(self) -> None:
        """The model's tensors are the same objects with the same numbers, and nothing else has changed."""
        for name, tensor in state_of(self._model).items():
            identity, address, numbers = self._tensors[name]
            assert (id(tensor), tensor.data_ptr()) == (identity, address), name
            assert torch.equal(tensor, numbers), name
        for (what, now), (_, before) in zip(self._now(), self._before, strict=True):
            assert now == before, what

    def _now(self) -> list[tuple[str, Any]]:
        parts = dict(self._model.named_modules())
        parameters = dict(self._model.named_parameters())
        return [
            ("modules", {name: (id(part), type(part), part.training) for name, part in parts.items()}),
            ("attributes", {name: {key: id(v) for key, v in vars(part).items()} for name, part in parts.items()}),
            ("hooks", {name: (len(p._forward_hooks), len(p._forward_pre_hooks)) for name, p in parts.items()}),
            ("requires_grad", {name: p.requires_grad for name, p in parameters.items()}),
            ("grad", {name: None if p.grad is None else p.grad.tolist() for name, p in parameters.items()}),
            ("random state", hash((bytes(torch.get_rng_state()), str(np.random.get_state()), random.getstate()))),
            ("settings", settings()),
        ]


def settings() -> tuple[Any, ...]:
    """What is global in PyTorch and touched by those who compute exactly."""
    attention = torch.backends.cuda
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.deterministic,
        attention.flash_sdp_enabled(),
        attention.mem_efficient_sdp_enabled(),
        attention.math_sdp_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.utils.checkpoint.CheckpointFunction,
    )


FAILURES = (1, 15, 18, 22)  # calls of the model: where f is made, of a value, of a gradient, where it is linearised
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch._dynamo.OptimizedModule)


class Restless:
    """A hook that draws from every global generator and, at one of its calls, raises."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        torch.rand(3), np.random.rand(3), random.random()
        if self.calls == self.fails_at:
            raise InterruptedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Restless:
        return self  # counts the calls of copies of the model too


def analyse(family: Family, case: Case) -> None:
    """A bit of everything that runs the model."""
    objective, theta = family.objective(case)
    objective.evaluate(theta)
    objective.value_and_gradient(theta)
    Hessian(objective, theta) @ theta
    Minimizer.of(case.model)


def restless(family: Family, hook: Restless) -> tuple[Case, Traces]:
    """The case in the middle of training, with a hook on it, and its traces."""
    case = family.case()
    for parameter in case.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(iter(case.model.children())).eval()  # modes may be mixed
    next(part for part in case.model.modules() if not isinstance(part, WRAPPERS)).register_forward_hook(hook)
    return case, Traces(case.model)


def test_the_callers_model_gradients_modes_settings_and_random_state_stay(family):
    case, traces = restless(family, hook := Restless())
    analyse(family, case)
    traces.check()
    assert hook.calls >= max(FAILURES)


def test_they_stay_after_an_error_as_well(family):
    for fails_at in FAILURES:
        case, traces = restless(family, hook := Restless(fails_at))
        with pytest.raises(InterruptedError):
            analyse(family, case)
        traces.check()
        assert hook.calls == fails_at


# ---- what has no place in the matrix ------------------------------------------------------------------------------


class Clamped(nn.Linear):
    """A layer that keeps its weights within bounds whenever it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


class Complex(nn.Module):
    """A layer of complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.polar(torch.ones(4, 3), numbers(4, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(self.weight.dtype) @ self.weight).abs()


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: Clamped(4, 3), numbers(COUNT, 4), "writes into 'weight'.*no clamp_ in forward"),
        (embedding, torch.arange(2 * COUNT).reshape(COUNT, 2) % 9, "writes into '0.weight'.*max_norm=None"),
        (Complex, numbers(COUNT, 4), "real parameters.*; weight is complex.*view_as_real"),
        (lambda: torch.jit.trace(nn.Linear(4, 3), numbers(COUNT, 4)), numbers(COUNT, 4), "TorchScript.*state_dict"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 3))), numbers(COUNT, 4), "TorchScript in '0'"),
    ],
    ids=["weights clamped", "max_norm", "complex weights", "TorchScript", "TorchScript inside"],
)
def test_models_of_whose_weights_f_is_no_function_with_a_hessian_are_refused(make, x, message):
    with pytest.raises(UnsupportedModelError, match=message):
        Objective.from_module(make(), cross_entropy, (x, labels(COUNT)))
