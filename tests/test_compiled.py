"""Compiled replay: the graph's own products, by a traced program, or the graph itself and the reason why.

Most tests run the traced program as it is, without the compiler, which changes roundings only and takes seconds; the
last ones compile.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch._inductor
import torch.nn.functional as F
from networks import filled, labels, randn
from torch import nn
from torch.func import functional_call

from sharpness import Hessian, Minimizer, Objective, cross_entropy
from sharpness.errors import NonFiniteError, ShapeError, UnsupportedModelError
from sharpness.operators import compiled, hessian
from sharpness.operators.compiled import CompiledGraph, Compiler

# torch's own code, as it is imported for compiling, uses what torch calls deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)

# The same formulas in another order of operations: some hundred roundings along the way, mostly cancelling.
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether ‖found − expected‖ is within the roundings of their precision, and they are not 0."""
    difference = (found.double() - expected.double()).norm()
    return bool(difference <= ROUNDING[found.dtype] * expected.double().norm()) and bool(expected.any())


class Program:
    """In place of the compiler: gives traced programs back as they are, and keeps them."""

    def __init__(self) -> None:
        self.programs: list[torch.fx.GraphModule] = []

    def __call__(self, program: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        self.programs.append(program)
        return program


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Program:
    program = Program()
    monkeypatch.setattr(torch._inductor, "compile", program)
    return program


def execution(operator: Hessian) -> dict[str, Any]:
    return operator.conditions["execution"]


def replayed(operator: Hessian) -> list[bool]:
    """Which chunks have a compiled program."""
    return [isinstance(graph, CompiledGraph) for graph in operator._chunks.kept]


# ---- models -------------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    layers = nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True)
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Conv2d(2, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


class Attention(nn.Module):
    """A small transformer over tokens, with a buffer that is no input of its and a constant of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.mix, self.head = (
            nn.Embedding(7, 4),
            nn.LayerNorm(4),
            nn.Linear(4, 12),
            nn.Linear(4, 3),
        )
        self.register_buffer("place", torch.zeros(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.place
        q, k, v = self.mix(self.norm(x)).unflatten(2, (2, 6)).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(F.gelu(x + mixed))[:, [0, 2]].mean(1) * torch.tensor([1.0, 2.0, 3.0]).to(x)


class Partly(nn.Module):
    """Frozen below, unused beside, and one that the loss is linear in."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.used, self.unused, self.slope = mlp(), mlp(), nn.Linear(2, 2), nn.Linear(4, 1)
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.used(x) + self.frozen(x), self.slope(x)], dim=1)


class Tied(nn.Module):
    """One matrix used twice, the second time transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.softplus(F.linear(F.softplus(self.first(x)), self.first.weight.T)))


def tokens(count: int) -> torch.Tensor:
    return torch.randint(7, (count, 3), generator=torch.Generator().manual_seed(2))


def rescaled(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss in whose derivatives the number of its targets takes part, though not in its value."""
    count = (target >= 0).sum()
    return cross_entropy(output / count * count, target).sum(), count


def partly(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(output[:, :3], target) + output[:, 3]


MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, Any, dict[str, Any]]] = {
    "MLP": (mlp, randn(40, 4), cross_entropy, {}),
    "MLP with l2": (mlp, randn(40, 4), cross_entropy, {"l2": 0.3}),
    "mean over examples": (mlp, randn(40, 4), F.cross_entropy, {}),
    "sum and number": (mlp, randn(40, 4), lambda o, t: (cross_entropy(o, t).sum(), len(t)), {}),
    "sum and tensor": (mlp, randn(40, 4), lambda o, t: (cross_entropy(o, t).sum(), torch.ones_like(t).sum()), {}),
    "sum with its weight inside": (mlp, randn(40, 4), rescaled, {}),
    "mean and weight": (mlp, randn(40, 4), F.cross_entropy, {"weight": lambda batch: torch.ones_like(batch[1]).sum()}),
    "class weights": (mlp, randn(40, 4), lambda o, t: cross_entropy(o, t) * torch.tensor([1.0, 2.0, 3.0])[t], {}),
    "convolutions": (convolutional, randn(40, 16), cross_entropy, {}),
    "convolutions, batch statistics": (convolutional, randn(40, 16), cross_entropy, {"batchnorm": "batch"}),
    "biases of convolutions": (convolutional, randn(40, 16), cross_entropy, {"parameters": "*.bias"}),
    "attention": (Attention, tokens(40), cross_entropy, {}),
    "frozen, unused and linear": (Partly, randn(40, 4), partly, {}),
    "tied weights": (Tied, randn(40, 4), cross_entropy, {}),
}


class Problem(NamedTuple):
    objective: Objective
    theta: torch.Tensor


def made(name: str, dtype: torch.dtype = torch.float64) -> Problem:
    """Forty examples in chunks of 16, 16 and 8."""
    make, x, loss, options = MODELS[name]
    return Problem(*Objective.from_module(filled(make()), loss, (x, labels(40)), chunk_size=16, dtype=dtype, **options))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return made("MLP")


# ---- the traced program -------------------------------------------------------------------------------------------


SINGLE = ("MLP with l2", "convolutions", "attention")


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float64) for name in MODELS), *((name, torch.float32) for name in SINGLE)]
)
def test_products_are_the_graphs_and_the_last_chunk_of_another_shape_keeps_its_graph(name, dtype, interpreted):
    objective, theta = made(name, dtype)
    operator, graph = Hessian(objective, theta, replay="compiled"), Hessian(objective, theta, replay="graph")
    v = randn(objective.size, key="v")
    assert execution(operator)["replay"] == "compiled"
    assert "compiled" in execution(operator)["why"]
    assert replayed(operator) == [True, True, False]
    assert len(interpreted.programs) == 1
    assert (operator @ v).dtype == dtype
    assert close(operator @ v, graph @ v)


def test_products_are_those_of_the_dense_hessian(problem, interpreted):
    objective, theta = problem
    module, (x, y) = filled(mlp()), (randn(40, 4), labels(40))

    def f(theta: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(module, objective.space.unflatten(theta), (x,)), y)

    operator = Hessian(objective, theta, replay="compiled")
    dense = torch.autograd.functional.hessian(f, theta)
    assert close(operator @ torch.eye(objective.size), dense)


def test_the_program_multiplies_large_matrices_by_onednn_as_the_graph_does(interpreted):
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))  # 64 · 64 · 64 multiplications are enough
    data = randn(64, 64), labels(64)
    objective, theta = Objective.from_module(filled(module).float(), cross_entropy, data)
    objective = objective.replace(kernels="onednn")
    operator, graph = Hessian(objective, theta, replay="compiled"), Hessian(objective, theta, replay="graph")
    targets = [node.target for program in interpreted.programs for node in program.graph.nodes]
    v = randn(objective.size, key="v")
    assert torch.ops.sharpness.multiply.default in targets
    assert close(operator @ v, graph @ v)


def test_products_do_not_depend_on_what_was_multiplied_before_and_blocks_are_multiplied_column_by_column(interpreted):
    objective, theta = made("convolutions")
    operator, block = Hessian(objective, theta, replay="compiled"), randn(objective.size, 3, key="v")
    first = operator @ block
    assert torch.equal(operator @ block, first)
    assert torch.equal(torch.stack([operator @ column for column in block.T], dim=1), first)
    assert not (operator @ torch.zeros(objective.size)).any()


def test_a_minimizer_brings_its_own_statistics(interpreted):
    objective, theta = made("convolutions")
    other = filled(convolutional())
    for layer in (other[2], other[6]):
        layer.running_var.mul_(3.0)
    v = randn(objective.size, key="v")
    here, there = Minimizer.of(other), Hessian(objective, theta, replay="compiled") @ v
    operator = Hessian(objective, here, replay="compiled")
    assert replayed(operator)[0]
    assert close(operator @ v, Hessian(objective, here, replay="graph") @ v)
    assert not close(operator @ v, there)
    assert close(Hessian(objective, here.point, replay="compiled") @ v, operator @ v)


class Keyed(nn.Module):
    """Two inputs by their names, of one shape, that are not the same to it; and a name and a number that it ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: torch.Tensor, z: torch.Tensor, scale: float = 1.0, name: object = None) -> torch.Tensor:
        return scale * self.net(x) + z.square()[:, :3]


def keyed(output: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return output.logsumexp(1)


def batch(start: int, *, order: str = "xz", transposed: bool = False, **others: Any) -> dict[str, Any]:
    parts = {"x": randn(16, 4, key=f"x{start}"), "z": randn(16, 4, key=f"z{start}")}
    parts["x"] = parts["x"].T.contiguous().T if transposed else parts["x"]
    return {**{name: parts[name] for name in order}, **others}


ARRAY = np.ones(3)
BATCHES: dict[str, tuple[list[Any], list[bool]]] = {
    "of one kind": ([batch(0), batch(1), batch(2)], [True, True, True]),
    "with names and numbers": ([batch(i, scale=2.0, name="n") for i in range(2)], [True, True]),
    "with other numbers": ([batch(0, scale=2.0), batch(1, scale=3.0), batch(2, scale=2.0)], [True, False, True]),
    "with numbers of another type": ([batch(0, scale=2.0), batch(1, scale=2)], [True, False]),
    "with one object": ([batch(0, name=ARRAY), batch(1, name=ARRAY)], [True, True]),
    "with other objects": ([batch(0, name=ARRAY), batch(1, name=ARRAY.copy())], [True, False]),
    "in another order": ([batch(0), batch(1, order="zx"), batch(2)], [True, False, True]),
    "in another layout": ([batch(0), batch(1, transposed=True), batch(2)], [True, False, True]),
    "with more in them": ([batch(0), batch(1, name="n")], [True, False]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_dictionaries_are_replayed_where_they_are_of_the_traced_kind(name, interpreted):
    batches, expected = BATCHES[name]
    objective, theta = Objective.from_module(filled(Keyed()), keyed, batches)
    operator, graph = Hessian(objective, theta, replay="compiled"), Hessian(objective, theta, replay="graph")
    v = randn(objective.size, key="v")
    assert replayed(operator) == expected
    assert close(operator @ v, graph @ v)


def test_targets_of_another_type_keep_their_graph(interpreted):
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output[:, 0] - target).square()

    batches = [(randn(16, 4), labels(16)), (randn(16, 4), labels(16).int()), (randn(16, 4), labels(16).double())]
    objective, theta = Objective.from_module(filled(mlp()), loss, batches)
    operator, v = Hessian(objective, theta, replay="compiled"), randn(objective.size, key="v")
    assert replayed(operator) == [True, False, False]
    assert close(operator @ v, Hessian(objective, theta, replay="graph") @ v)


def test_the_operator_does_not_follow_what_happens_to_theta_or_the_model(interpreted):
    module = filled(convolutional())
    objective, theta = Objective.from_module(module, cross_entropy, (randn(40, 16), labels(40)), chunk_size=20)
    operator, v = Hessian(objective, Minimizer.of(module), replay="compiled"), randn(objective.size, key="v")
    before = operator @ v
    theta.mul_(2.0)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.zero_()
    assert replayed(operator) == [True, True]
    assert torch.equal(operator @ v, before)


@pytest.mark.parametrize("memory", [0, "one chunk"])
def test_chunks_without_memory_are_rebuilt_and_their_products_agree(memory, interpreted):
    objective, theta = made("MLP")
    graph = Hessian(objective, theta, replay="graph")
    allowed = graph.retained_bytes * 16 // 40 if memory else 0
    operator, v = Hessian(objective, theta, replay="compiled", memory=allowed), randn(objective.size, key="v")
    assert execution(operator)["retained_chunks"] == bool(memory)
    assert replayed(operator) == [bool(memory), False, False]
    assert operator.retained_bytes == allowed
    assert close(operator @ v, graph @ v)
    assert torch.equal(operator @ v, operator @ v)


# ---- what cannot be traced ----------------------------------------------------------------------------------------


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self, condition: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.net, self.condition = mlp(), condition

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) if self.condition(x) else self.net(-x)


def by_numpy(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Counts its targets outside torch, where a trace of numbers would see those of the first chunk only."""
    return F.cross_entropy(output, target, reduction="sum", ignore_index=0), int((target.numpy() > 0).sum())


def weighted_by_numpy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(output, target) * torch.from_numpy(1.0 + target.numpy())


def selecting(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Its shapes depend on the data."""
    mask = target > 0
    return cross_entropy(output[mask], target[mask]).sum(), mask.sum()


UNTRACEABLE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "control flow": (lambda: Branching(lambda x: x.abs().max() > 0), cross_entropy),
    "control flow by a number": (lambda: Branching(lambda x: x.abs().max().item() > 0), cross_entropy),
    "a list": (lambda: Branching(lambda x: max(x.abs().max(0).values.tolist()) > 0), cross_entropy),
    "a weight by NumPy": (mlp, by_numpy),
    "losses by NumPy": (mlp, weighted_by_numpy),
    "a weight as a number": (mlp, lambda o, t: (cross_entropy(o, t).sum(), (t >= 0).sum().item())),
    "selected targets": (mlp, selecting),
}


@pytest.mark.parametrize("case", UNTRACEABLE)
def test_what_depends_on_the_numbers_in_a_chunk_keeps_its_graph_and_says_why(case, interpreted):
    make, loss = UNTRACEABLE[case]
    y = labels(40)
    y[20:30] = 0  # another number of counted targets in each chunk
    objective, theta = Objective.from_module(filled(make()), loss, (randn(40, 4), y), chunk_size=10)
    operator, graph = Hessian(objective, theta, replay="compiled"), Hessian(objective, theta, replay="graph")
    v = randn(objective.size, key="v")
    assert (execution(operator)["replay"], execution(graph)["replay"]) == ("graph", "graph")
    assert execution(operator)["why"].startswith("compiling failed: ")
    assert not interpreted.programs
    assert torch.equal(operator @ v, graph @ v)


def failing(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("no luck\nthis time")


@pytest.mark.parametrize("place", [(compiled, "make_fx"), (torch._inductor, "compile")], ids=["trace", "compile"])
def test_where_compiling_fails_the_graph_is_kept_with_the_first_line_of_the_reason(place, problem, monkeypatch):
    monkeypatch.setattr(*place, failing)
    objective, theta = problem
    operator, graph = Hessian(objective, theta, replay="compiled"), Hessian(objective, theta, replay="graph")
    v = randn(objective.size, key="v")
    assert execution(operator)["replay"] == "graph"
    assert execution(operator)["why"] == "compiling failed: ZeroDivisionError: no luck"
    assert execution(operator)["retained_chunks"] == 3
    assert torch.equal(operator @ v, graph @ v)


def test_a_program_that_fails_when_it_runs_is_dropped(problem, monkeypatch):
    monkeypatch.setattr(torch._inductor, "compile", lambda program, inputs: failing)
    operator = Hessian(*problem, replay="compiled")
    assert execution(operator)["why"] == "compiling failed: ZeroDivisionError: no luck"
    assert replayed(operator) == [False, False, False]


def test_a_loss_linear_in_theta_has_hessian_0_also_when_a_program_is_asked_for(interpreted):
    data = randn(9, 4), randn(9)
    objective, theta = Objective.from_module(nn.Linear(4, 1).double(), lambda o, t: o[:, 0] * t, data)
    assert not (Hessian(objective, theta, replay="compiled") @ randn(5, 2)).any()


def spoiled(program: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    return lambda *inputs: [1.01 * column for column in program(*inputs)]


def forgetful(program: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    """Right the first time only, as a program is that overwrites what is kept for it."""
    factors = iter([1.0])

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        factor = next(factors, 1.01)
        return [factor * column for column in program(*inputs)]

    return run


def nowhere(program: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    return lambda *inputs: [column / 0 for column in program(*inputs)]


@pytest.mark.parametrize("wrong", [spoiled, forgetful, nowhere])
def test_a_program_that_disagrees_is_dropped_which_is_said(wrong, monkeypatch):
    objective, theta = made("MLP")
    expected, v = Hessian(objective, theta, replay="graph"), randn(objective.size, key="v")
    product = expected @ v
    monkeypatch.setattr(torch._inductor, "compile", wrong)
    operator = Hessian(objective, theta, replay="compiled")
    assert execution(operator)["replay"] == "graph"
    assert execution(operator)["why"] == "compiled products differ from the graph's"
    assert replayed(operator) == [False, False, False]
    assert torch.equal(operator @ v, product)


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", ["eager", "", "Compiled", "compile"])
def test_an_unknown_replay_is_refused_with_those_there_are(problem, replay):
    with pytest.raises(ShapeError, match=f"replay to be one of auto, graph, compiled; got '{replay}'"):
        Hessian(*problem, replay=replay)


def root(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output[:, 0].abs().sqrt()  # finite at 0, its slope is not


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_gradient_that_is_not_finite_is_refused_in_whichever_chunk_it_is(chunk, interpreted):
    x = randn(9, 4)
    x[3 * chunk + 1] = 0
    objective, theta = Objective.from_module(nn.Linear(4, 1, bias=False).double(), root, (x, randn(9)), chunk_size=3)
    for replay in ("graph", "compiled"):
        with pytest.raises(NonFiniteError, match="finite gradient to linearise"):
            Hessian(objective, theta, replay=replay)


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


def test_what_cannot_be_differentiated_twice_is_refused(interpreted):
    data = randn(9, 4), labels(9)
    objective, theta = Objective.from_module(filled(mlp()), lambda o, t: Once.apply(o).sum(1), data)
    with pytest.raises(UnsupportedModelError, match="once_differentiable"):
        Hessian(objective, theta, replay="compiled")


# ---- which of them ------------------------------------------------------------------------------------------------


def test_a_small_problem_keeps_the_graph_which_is_the_default(problem, interpreted):
    for options in ({"replay": "auto"}, {}):
        operator = Hessian(*problem, **options)
        assert execution(operator)["replay"] == "graph"
        assert execution(operator)["why"] == "products too cheap for compiling to pay"
    assert execution(Hessian(*problem, replay="graph"))["why"] == "asked for"
    assert not interpreted.programs


@pytest.mark.parametrize(
    ("replay", "seconds", "taken"),
    [("auto", (1.0, 2.0), True), ("auto", (2.0, 1.0), False), ("compiled", (2.0, 1.0), True)],
)
def test_the_faster_one_is_taken_unless_the_program_is_asked_for(replay, seconds, taken, interpreted, monkeypatch):
    program, graph = seconds
    monkeypatch.setattr(hessian, "COMPILE_SECONDS", 0.0)  # so that compiling pays for the smallest problem
    monkeypatch.setattr(Hessian, "_seconds", lambda self, g: program if isinstance(g, CompiledGraph) else graph)
    operator = Hessian(*made("MLP"), replay=replay)
    assert execution(operator)["replay"] == ("compiled" if taken else "graph")
    assert execution(operator)["why"] == f"a chunk takes {program:.3g} s compiled, {graph:.3g} s by its graph"
    assert replayed(operator) == [taken, taken, False]


def test_a_compiler_knows_the_chunks_that_it_fits(problem, interpreted):
    objective, theta = problem
    first, second, last = objective.chunks
    leaves = [part.clone().requires_grad_() for part in objective.space.split(theta)]
    compiler = Compiler(objective, first, leaves, None)
    assert compiler.fits(first)
    assert compiler.fits(second)
    assert not compiler.fits(last)
    assert not compiler.fits(list(first))
    assert not compiler.fits(first[:1])
    assert compiler.linearise(second).weight == 16.0


# ---- the caller's state, and the compiler itself ------------------------------------------------------------------


class Busy(nn.Module):
    """Batch norm, dropout, a frozen layer; counts its calls and keeps what it saw last; meant to be in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
        self.net[0].bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        output = self.net(x)
        self.last = output.detach()
        return output


def state_of(module: nn.Module) -> list[object]:
    """All that a caller may see: weights, buffers, gradients, flags, modes, random states, global settings."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    name, key, *place = np.random.get_state()
    return [
        {n: (id(t), t._version, t.detach().numpy().tobytes(), t.requires_grad, t.dtype) for n, t in tensors.items()},
        {n: None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for n, p in module.named_parameters()},
        {n: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in module.named_modules()},
        (torch.get_rng_state().numpy().tobytes(), name, key.tobytes(), tuple(place), random.getstate()),
        (torch.is_grad_enabled(), torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()),
        (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack(), torch.get_num_threads()),
        (torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.backends.mkldnn.enabled),
    ]


def busy(dtype: torch.dtype = torch.float64) -> Busy:
    module = filled(Busy()).to(dtype).train()
    F.cross_entropy(module(randn(20, 4).to(dtype)), labels(20)).backward()
    return module


@pytest.mark.parametrize("broken", [False, True])
def test_the_callers_model_and_state_stay_as_they_are(broken, interpreted, monkeypatch):
    module = busy()
    if broken:
        monkeypatch.setattr(torch._inductor, "compile", failing)
    before = state_of(module)
    objective, _ = Objective.from_module(module, cross_entropy, (randn(40, 4), labels(40)), chunk_size=16)
    here, v = Minimizer.of(module), randn(objective.size, key="v")
    operator = Hessian(objective, here, replay="compiled")
    assert execution(operator)["replay"] == ("graph" if broken else "compiled")
    product = operator @ v
    assert state_of(module) == before
    assert objective.value(here) == objective.value(here)  # nothing of the trace is left in the objective's own copy
    assert close(product, Hessian(objective, here, replay="graph") @ v)


@pytest.mark.parametrize("shapes", [((3, 4), (5, 4)), ((0, 4), (5, 4)), ((1, 1), (1, 1))])
def test_the_compiler_is_told_the_truth_about_products_by_onednn(shapes):
    multiply, (a, b) = torch.ops.sharpness.multiply.default, (randn(*shape).float() for shape in shapes)
    turned = a.T.contiguous().T, b.T.contiguous().T
    for factors in ((a, b), turned):
        checks = torch.library.opcheck(multiply, factors, test_utils=("test_schema", "test_faketensor"))
        assert set(checks.values()) == {"SUCCESS"}


@pytest.fixture
def without_workers() -> Iterator[None]:
    """Compiling in this process alone."""
    with torch._inductor.config.patch(compile_threads=1):
        yield


def test_a_compiled_program_in_float32_is_the_graph_and_leaves_the_callers_state(without_workers):
    # batch norm, l2, a large layer, and a last chunk of another shape: all of them in one program, for its seconds
    module = nn.Sequential(busy(torch.float32), nn.Softplus(), nn.Linear(3, 4096), nn.Tanh(), nn.Linear(4096, 3))
    for layer in (module[2], module[4]):
        layer.load_state_dict(filled(nn.Linear(layer.in_features, layer.out_features)).state_dict())
    data = randn(50, 4).float(), labels(50)
    before = state_of(module)
    objective, theta = Objective.from_module(module, cross_entropy, data, chunk_size=24, l2=0.1)
    operator, graph = Hessian(objective, theta, replay="compiled"), Hessian(objective, theta, replay="graph")
    v = randn(objective.size, key="v").float()
    assert replayed(operator) == [True, True, False]
    assert close(operator @ v, graph @ v)
    assert torch.equal(operator @ v, operator @ v)
    assert state_of(module) == before


def test_a_compiled_program_in_float64_is_the_graph_with_other_buffers_and_masked_targets(without_workers):
    y = labels(36)
    y[30:] = -100

    def loss(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.cross_entropy(output, target, reduction="sum", ignore_index=-100), (target >= 0).sum()

    module = filled(nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.Flatten()))
    module.append(filled(nn.Linear(6, 3)))
    objective, _ = Objective.from_module(module, loss, (randn(36, 4), y), chunk_size=12)
    module[2].running_var.mul_(3.0)
    here, v = Minimizer.of(module), randn(objective.size, key="v")
    operator, graph = Hessian(objective, here, replay="compiled"), Hessian(objective, here, replay="graph")
    assert replayed(operator) == [True, True, True]
    assert close(operator @ v, graph @ v)
    assert operator._chunks.weight == graph._chunks.weight == 30.0
