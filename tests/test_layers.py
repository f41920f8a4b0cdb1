"""Parts of the parameters, and curvature layer by layer: dense blocks in float64, identities, refusals, resumption."""

from __future__ import annotations

import copy
import math
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matrices import random_symmetric, with_spectrum
from networks import filled, labels, randn
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness import Dense, Hessian, Objective, Point, cross_entropy, eigenpairs, layer_curvature, store, trace
from sharpness.cli.tables import LAYERS_HEAD, layer_rows
from sharpness.errors import NonFiniteError, SchemaError, ShapeError, UnsupportedModelError
from sharpness.journal import HDF5Journal
from sharpness.measures import layer_template
from sharpness.measures import layers as layers_module
from sharpness.params import ParamSpace
from sharpness.records import LayerCurvature, variables
from sharpness.render import draw, draw_figure
from sharpness.render.folder import draw_file

# Two exact formulas for one number in float64: some hundred roundings of 1.1e-16 along the way.
EXACT = 1e-11


class TiedAttention(nn.Module):
    """A causal transformer of one layer whose output matrix is its embedding; its loss is over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.norm = nn.Embedding(6, 8), nn.Linear(8, 24), nn.LayerNorm(8)
        self.head = nn.Linear(8, 6)
        self.head.weight = self.embed.weight
        filled(self)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        x = self.embed(characters)
        q, k, v = self.mix(x)[:, None].chunk(3, dim=-1)
        x = self.norm(x + F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        return self.head(x).transpose(1, 2)


class Partly(nn.Module):
    """Frozen below, unused beside (in few numbers and in many), one number that all pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.used, self.slope = nn.Linear(4, 4), nn.Linear(4, 12), nn.PReLU()
        self.unused, self.idle, self.head = nn.Linear(2, 2), nn.Linear(9, 9), nn.Linear(12, 3)
        self.head.bias.requires_grad_(False)
        self.frozen.requires_grad_(False)
        filled(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.slope(self.used(torch.tanh(self.frozen(x)))))


class Routed(nn.Module):
    """Two experts, each of which sees the batches that are meant for it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.head = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Linear(4, 3)
        filled(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.experts[int(x[0, 0] > 0)](x)))


def normed() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 6), nn.Linear(6, 3)))


def routed_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    signs = torch.tensor([1.0, -1.0, -1.0])
    return [(torch.cat([s * torch.ones(4, 1), randn(4, 3, key=str(i))], 1), labels(4)) for i, s in enumerate(signs)]


def characters(key: int) -> torch.Tensor:
    return torch.randint(6, (20, 7), generator=torch.Generator().manual_seed(key))


class Case(NamedTuple):
    """f, a place that is not the model's own, and the dense Hessian there."""

    objective: Objective
    point: Point
    matrix: torch.Tensor

    def rows(self, names: Any) -> torch.Tensor:
        """Where parameters of these names lie in θ."""
        space = self.objective.space
        spans = zip(space.names, space.offsets, space.sizes, strict=True)
        return torch.cat([torch.arange(start, start + size) for name, start, size in spans if name in names])

    def block(self, names: Any) -> torch.Tensor:
        return self.matrix[self.rows(names)][:, self.rows(names)]


def case_of(module: nn.Module, batches: list[Any], **options: Any) -> Case:
    objective, theta = Objective.from_module(module, cross_entropy, batches, **options)
    theta = theta + 0.3 * randn(len(theta), key="elsewhere")
    buffers = {n: 1.5 * b if b.is_floating_point() else b for n, b in module.named_buffers()}
    plain = copy.deepcopy(module).requires_grad_(False).train(objective.batchnorm == "batch")

    def f(theta: torch.Tensor) -> torch.Tensor:
        state = {**{n: b.clone() for n, b in buffers.items()}, **objective.space.unflatten(theta)}
        outputs = [(functional_call(plain, state, (x,)), y) for x, y in batches]
        total = sum(F.cross_entropy(output, y, reduction="sum") for output, y in outputs)
        return total / sum(y.numel() for _, y in batches) + 0.5 * objective.l2 * theta.square().sum()

    with sdpa_kernel(SDPBackend.MATH):
        return Case(objective, Point(theta, buffers), torch.autograd.functional.hessian(f, theta))


INPUTS = [(randn(30, 4), labels(30)), (randn(9, 4, key="more"), labels(9))]
CASES = {
    "batch norm, eval": lambda: case_of(normed(), INPUTS),
    "batch norm, batch": lambda: case_of(normed(), INPUTS, batchnorm="batch"),
    "l2": lambda: case_of(normed(), INPUTS, l2=0.2),
    "tied": lambda: case_of(TiedAttention(), [(characters(0), characters(1))]),
    "frozen and unused": lambda: case_of(Partly(), INPUTS),
    "routed": lambda: case_of(Routed(), routed_batches()),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.fixture(scope="module")
def small() -> Case:
    return CASES["batch norm, eval"]()


def dense(operator: Hessian) -> torch.Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, scale: float, tolerance: float = EXACT) -> bool:
    return bool((a - b).abs().max() <= tolerance * scale)


def same(one: LayerCurvature, other: LayerCurvature) -> bool:
    pairs = zip(variables(one), variables(other), strict=True)
    return all(ours.values.tobytes() == theirs.values.tobytes() for ours, theirs in pairs)


# Parts of the parameters


def test_the_hessian_of_a_part_is_the_principal_sub_matrix(case):
    f, scale = case.objective, float(case.matrix.abs().max())
    assert close(dense(Hessian(f, case.point)), case.matrix, scale)
    names = f.space.names
    for chosen in ([names[0]], names[1::2], names):
        part, point = f.restricted(chosen, case.point)
        assert part.space.names == tuple(chosen)
        assert close(dense(Hessian(part, point)), case.block(chosen), scale)
        assert close(part.gradient(point), f.gradient(case.point)[case.rows(chosen)], 1.0)


def test_the_value_of_a_part_is_that_of_the_whole(small):
    part, point = small.objective.restricted("3.*", small.point)
    assert part.value(point) == small.objective.value(small.point)
    moved = Point(small.point.theta.clone(), small.point.buffers)
    moved.theta[small.rows(part.space.names)] *= 2
    assert part.value(Point(2 * point.theta, point.buffers)) == small.objective.value(moved)


def test_a_penalty_is_on_the_part_alone():
    case = CASES["l2"]()
    part, point = case.objective.restricted("0.*", case.point)
    others = float(case.point.theta.square().sum() - point.theta.square().sum())
    assert part.value(point) == pytest.approx(case.objective.value(case.point) - 0.1 * others, rel=EXACT)


def test_a_part_of_a_part_and_of_another_precision_is_the_same_part(small):
    part, point = small.objective.restricted(["0.*", "3.weight"], small.point)
    inner, there = part.restricted("3.*", point)
    direct, here = small.objective.restricted("3.weight", small.point)
    assert torch.equal(there.theta, here.theta)
    assert inner.value(there) == direct.value(here)
    assert torch.equal(inner.gradient(there), direct.gradient(here))
    single = direct.replace(dtype=torch.float32, kernels="torch")
    assert single.value(here) == pytest.approx(direct.value(here), rel=1e-5)  # sums of float32


def test_a_part_knows_nothing_of_what_becomes_of_theta(small):
    theta = small.point.theta.clone()
    part, point = small.objective.restricted("0.*", theta)
    before = part.value(point)
    theta.zero_()
    assert part.value(point) == before


def test_a_part_has_statistics_of_its_own_place(small):
    f = small.objective.replace(batchnorm="recompute")
    part, point = f.restricted("3.*", small.point)
    assert part.value(point) == pytest.approx(f.value(small.point), rel=EXACT)
    assert part.evaluate_together([point])[0].loss == pytest.approx(f.value(small.point), rel=EXACT)


def test_weights_that_are_constants_do_not_count_as_memory_of_examples():
    wide = filled(nn.Sequential(nn.Linear(4, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 3)))
    f, theta = Objective.from_module(wide, cross_entropy, (randn(20, 4), labels(20)))
    part, _ = f.restricted("0.*", theta)
    ours, whole = (o.terms.saved_bytes_per_example(o.few, linearised=True) for o in (part, f))
    assert 0 < ours < whole


@pytest.mark.parametrize("patterns", ["5.*", ["0.*", "nothing"], []])
def test_a_pattern_that_matches_nothing_is_refused_with_the_names_that_are_there(small, patterns):
    with pytest.raises(UnsupportedModelError, match=r"no trainable parameter matches \[.*the model has 0\.weight, 0"):
        small.objective.restricted(patterns, small.point)


def test_a_name_stands_for_itself_also_where_it_looks_like_a_pattern():
    module = nn.Module()
    module.weights = nn.ParameterDict({"a[0]": torch.zeros(2), "a0": torch.zeros(3)})
    space = ParamSpace.of(module)
    assert space.part("weights.a[0]").names == ("weights.a[0]",)
    assert space.part("weights.a[01]").names == ("weights.a0",)


# Layer by layer


def test_every_layer_has_the_largest_eigenvalue_and_the_trace_of_its_block(case):
    f = case.objective
    found = layer_curvature(f, case.point)
    assert found.layer.tolist() == list(f.space.layers)
    for row, names in enumerate(f.space.layers.values()):
        block = case.block(names)
        values = torch.linalg.eigvalsh(block)
        scale = float(values.abs().max())
        assert found.parameters[row] == len(block)
        assert abs(found.eigenvalue[row] - float(values[-1])) <= found.residual[row] + EXACT * scale
        assert found.residual[row] <= found.tolerance * scale
        # five standard errors: one such test in a million fails by chance, and the probes are fixed
        assert abs(found.trace[row] - float(block.trace())) <= 5 * found.standard_error[row] + EXACT * scale
        assert (found.standard_error[row] == 0) == (len(block) <= 40 or not scale)
    assert found.converged.all()
    assert (found.status == 1).all()


def test_norms_are_those_of_the_layers_parameters(case):
    f, found = case.objective, layer_curvature(case.objective, case.point)
    gradient = f.gradient(case.point)
    for row, names in enumerate(f.space.layers.values()):
        own = case.rows(names)
        assert found.weight_norm[row] == pytest.approx(float(case.point.theta[own].norm()), rel=EXACT)
        assert found.gradient_norm[row] == pytest.approx(float(gradient[own].norm()), rel=EXACT)
    assert found.origin == case.point.sha256


def test_traces_add_up_to_that_of_the_hessian_and_no_block_exceeds_it(case):
    whole, found = case.matrix, layer_curvature(case.objective, case.point, probes=case.objective.size)
    assert not found.standard_error.any()  # so many probes that entry by entry is cheaper, everywhere
    assert (found.products == found.parameters).all()
    assert found.trace.sum() == pytest.approx(float(whole.trace()), rel=EXACT)
    assert found.eigenvalue.max() <= float(torch.linalg.eigvalsh(whole)[-1]) * (1 + EXACT)
    assert found.mean_eigenvalue == pytest.approx(found.trace / found.parameters, rel=EXACT)


def test_a_tied_weight_counts_once_under_its_first_name():
    found = layer_curvature(*CASES["tied"]()[:2])
    assert found.layer.tolist() == ["embed", "mix", "norm", "head"]
    assert found.parameters.tolist() == [48, 216, 16, 6]  # the head has its bias left


def test_frozen_layers_are_left_out_and_unused_ones_are_flat():
    case = CASES["frozen and unused"]()
    found = layer_curvature(case.objective, case.point)
    assert found.layer.tolist() == ["used", "slope", "unused", "idle", "head"]
    assert found.parameters.tolist() == [60, 1, 6, 90, 36]
    flat = [found.layer.tolist().index(name) for name in ("unused", "idle")]
    for column in (found.eigenvalue, found.residual, found.trace, found.standard_error, found.gradient_norm):
        assert not column[flat].any()
    assert found.converged.all()
    assert found.products[1] == 1
    assert found.eigenvalue[1] == found.trace[1] == pytest.approx(float(case.block(["slope.weight"])), rel=EXACT)


def test_layers_are_the_modules_that_use_their_weights():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.LSTM(2, 2), nn.ReLU())
    assert list(ParamSpace.of(model).layers) == ["0", "1"]
    assert sum(map(len, ParamSpace.of(model).layers.values())) == len(list(model.parameters()))
    assert ParamSpace.of(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))).layers.keys() == {""}


def test_a_model_that_is_one_layer_has_an_empty_path_and_a_title():
    f, theta = Objective.from_module(filled(nn.Linear(4, 3)), cross_entropy, INPUTS)
    found = layer_curvature(f, theta)
    assert (found.layer.tolist(), found.titles) == ([""], ["(the model itself)"])


def test_parameters_without_entries_are_no_layer():
    model = nn.Sequential(nn.Linear(4, 3), nn.ParameterList([torch.zeros(0, dtype=torch.float64)]))
    model.forward = lambda x: model[0](x)
    f, theta = Objective.from_module(filled(model), cross_entropy, INPUTS)
    assert layer_curvature(f, theta).layer.tolist() == ["0"]


def test_the_same_layer_and_seed_give_the_same_probes_whatever_the_other_layers(small):
    f = small.objective
    whole, again, other = (layer_curvature(f, small.point, seed=seed) for seed in (0, 0, 1))
    assert same(whole, again)
    row = whole.layer.tolist().index("3")
    assert whole.standard_error[row] > 0
    part, point = f.restricted("3.*", small.point)
    alone = layer_curvature(part, point)
    assert alone.trace[0] == pytest.approx(whole.trace[row], rel=1e-9)  # the same samples, up to rounding
    assert other.trace[row] != pytest.approx(whole.trace[row], rel=1e-6)


def test_where_the_search_ends_early_values_hold_with_their_errors_and_are_not_called_converged(small, monkeypatch):
    monkeypatch.setattr(layers_module, "eigenpairs", partial(eigenpairs, max_products=13))
    found = layer_curvature(small.objective, small.point, tolerance=1e-8)
    large = found.parameters > 40
    assert found.converged.tolist() == (~large).tolist()
    for row in np.flatnonzero(large):
        block = small.block(list(small.objective.space.layers.values())[row])
        distance = (torch.linalg.eigvalsh(block) - found.eigenvalue[row]).abs().min()
        assert float(distance) <= found.residual[row] * (1 + EXACT)
        assert abs(found.trace[row] - float(block.trace())) <= 5 * found.standard_error[row]


class Rooted(nn.Module):
    """Σ θ^1.5 beside Σ θ²: at θ = 0 the first has a gradient and no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.root, self.square = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        nn.init.ones_(filled(self).root.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.root.weight.pow(1.5).sum() + self.square.weight.square().sum()
        return total.expand(len(x), 1)


def test_a_layer_without_finite_curvature_is_not_a_number_and_spoils_no_other():
    data = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    f, _ = Objective.from_module(Rooted(), lambda output, _: output, data)
    found = layer_curvature(f, torch.tensor([0.0, 1.0, 0.5, 0.5], dtype=torch.float64))
    assert found.status.tolist() == [2, 1]
    assert np.isnan([found.eigenvalue[0], found.trace[0]]).all()
    assert not found.converged[0]
    assert found.eigenvalue[1] == 2.0
    assert [row[2] for row in layer_rows(found)] == ["not finite", "2 ± 0"]


def test_a_gradient_that_is_not_finite_is_refused(small):
    broken = small.point.theta.clone()
    broken[0] = math.nan
    with pytest.raises(NonFiniteError, match=r"finite gradient at the point.*did training"):
        layer_curvature(small.objective, Point(broken, small.point.buffers))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"probes": 1}, "probes >= 2"), ({"tolerance": 0.0}, "tolerance > 0"), ({"tolerance": math.nan}, "tolerance > 0")],
)
def test_choices_out_of_range_are_refused_before_anything_is_computed(small, options, message):
    with pytest.raises(ShapeError, match=message):
        layer_template(small.objective, small.point, **options)


def test_statistics_that_are_functions_of_theta_have_no_blocks(small):
    with pytest.raises(UnsupportedModelError, match='choose "eval" or "batch"'):
        layer_curvature(small.objective.replace(batchnorm="recompute"), small.point)


# Resumed


def begun(path: Path, f: Objective, place: Point) -> HDF5Journal:
    return store.begin(path, {"layer_curvature": layer_template(f, place)})["layer_curvature"]


def test_a_killed_table_goes_on_after_its_last_layer_to_the_same_bits(small, tmp_path, monkeypatch):
    f, told = small.objective, []

    def stop(done: int, total: int | None, note: str = "") -> None:
        told.append((done, total, note))
        if done == 2:
            raise KeyboardInterrupt

    path = tmp_path / "layers.h5"
    with begun(path, f, small.point) as journal, pytest.raises(KeyboardInterrupt):
        layer_curvature(f, small.point, journal=journal, progress=stop)
    assert told == [(1, 4, "0"), (2, 4, "1")]
    half = store.load(path)
    assert half.status.tolist() == [1, 1, 0, 0]
    assert np.isnan(half.trace[2:]).all()

    made = []
    monkeypatch.setattr(layers_module, "Hessian", lambda *a, **o: made.append(a[0].space.names) or Hessian(*a, **o))
    with begun(path, f, small.point) as journal:
        resumed = layer_curvature(f, small.point, journal=journal, progress=lambda *what: told.append(what))
    assert made == [("3.weight", "3.bias"), ("4.weight", "4.bias")]
    assert told[2:] == [(3, 4, "3"), (4, 4, "4")]
    assert same(resumed, layer_curvature(f, small.point))
    assert same(store.load(path), resumed)
    with begun(path, f, small.point) as journal:
        made.clear()
        assert same(layer_curvature(f, small.point, journal=journal), resumed)
    assert not made


KILLED = """
import os, signal, sys
from pathlib import Path
from test_layers import CASES, begun, layer_curvature

small = CASES["batch norm, eval"]()
with begun(Path(sys.argv[1]), *small[:2]) as journal:
    kill = lambda done, total, note: os.kill(os.getpid(), signal.SIGKILL) if done == 2 else None
    layer_curvature(*small[:2], journal=journal, progress=kill)
"""


def test_a_process_that_is_killed_leaves_what_it_has_done(small, tmp_path):
    path = tmp_path / "layers.h5"
    died = subprocess.run([sys.executable, "-c", KILLED, path], cwd=Path(__file__).parent, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert store.load(path).status.tolist() == [1, 1, 0, 0]
    with begun(path, small.objective, small.point) as journal:
        resumed = layer_curvature(small.objective, small.point, journal=journal)
    assert same(resumed, layer_curvature(small.objective, small.point))


@pytest.mark.parametrize("changed", [{"seed": 1}, {"probes": 30}, {"tolerance": 1e-3}])
def test_a_table_that_wasbegun_otherwise_is_refused(small, tmp_path, changed):
    f, path = small.objective, tmp_path / "layers.h5"
    begun(path, f, small.point).close()
    with pytest.raises(SchemaError, match=next(iter(changed))):
        store.begin(path, {"layer_curvature": layer_template(f, small.point, **changed)})


def test_a_table_of_another_place_or_of_other_layers_is_refused(small, tmp_path):
    f, path = small.objective, tmp_path / "layers.h5"
    journal, refused = begun(path, f, small.point), pytest.raises(ShapeError, match="a journal of 1 rows, one for each")
    with journal, refused:
        layer_curvature(*f.restricted("3.*", small.point), journal=journal)
    with pytest.raises(SchemaError, match="origin is"):
        store.begin(path, {"layer_curvature": layer_template(f, 2 * small.point.theta)})
    with pytest.raises(SchemaError, match="layer differs"):
        store.begin(path, {"layer_curvature": layer_template(*f.restricted("3.*", small.point))})


# The trace beside known pairs


def test_beside_all_eigenpairs_the_trace_is_exact():
    matrix = random_symmetric(8)
    pairs = eigenpairs(Dense(matrix), 8, tolerance=1e-12)
    found = trace(Dense(matrix), samples=3, pairs=pairs)
    scale = float(matrix.abs().max())
    assert found.value == pytest.approx(float(matrix.trace()), abs=EXACT * scale)
    assert found.standard_error <= EXACT * scale


def test_beside_some_pairs_converged_or_not_the_trace_has_a_smaller_error_that_holds():
    matrix = with_spectrum([30.0, 20.0, 10.0] + [1.0, -1.0] * 30)
    rough = eigenpairs(Dense(matrix), 3, tolerance=0.3)
    plain, beside = (trace(Dense(matrix), samples=400, pairs=pairs) for pairs in (None, rough))
    # the variance is 2 Σ of squared entries beside the diagonal, at most 2 Σ λ²: of 1460 less than 60 are left, or some
    # more where the pairs are rough
    assert beside.standard_error < 0.4 * plain.standard_error
    for found in (plain, beside):
        assert abs(found.value - float(matrix.trace())) < 5 * found.standard_error
    assert (plain.conditions["known_pairs"], beside.conditions["known_pairs"]) == (0, 3)


def test_pairs_without_vectors_or_of_another_matrix_are_refused(tmp_path):
    pairs = eigenpairs(Dense(random_symmetric(8)), 2)
    store.save(pairs, tmp_path / "pairs.h5")
    for given, got in ((store.load(tmp_path / "pairs.h5"), "got none"), (pairs, r"got \(8, 2\)")):
        with pytest.raises(ShapeError, match=got):
            trace(Dense(random_symmetric(9)), pairs=given)


# Shown


def record(**changes: Any) -> LayerCurvature:
    columns: dict[str, Any] = {
        "layer": np.array(["base.model.layers.10.attention.projection.lora_A", "norm", "head", "rest"]),
        "parameters": np.array([1000, 10, 100, 7]),
        "eigenvalue": np.array([5.0, 0.2, 1e-3, np.nan]),
        "residual": np.array([0.01, 1e-9, 5e-4, np.nan]),
        "converged": np.array([True, True, False, False]),
        "trace": np.array([50.0, 0.4, 2e-3, np.nan]),
        "standard_error": np.array([0.5, 0.0, 1e-4, np.nan]),
        "weight_norm": np.array([3.0, 4.0, 12.0, np.nan]),
        "gradient_norm": np.array([1e-3, 1e-4, 1e-2, np.nan]),
        "products": np.array([45, 10, 45, 0]),
        "status": np.array([1, 1, 1, 0], np.uint8),
    }
    settings = {"tolerance": 1e-2, "probes": 20, "origin": "o", "seed": 0, "conditions": {"batchnorm": "eval"}}
    return LayerCurvature(**{**columns, **settings, **changes})


def first(found: LayerCurvature, count: int) -> LayerCurvature:
    return LayerCurvature(**{**vars(found), **{v.name: v.values[:count] for v in variables(found)}})


def test_rows_hold_every_number_with_its_error_and_the_layers_together():
    assert LAYERS_HEAD == ("layer", "parameters", "λmax", "trace", "‖θ‖", "‖g‖")
    rows = layer_rows(record())
    assert rows[0][1:] == ("1,000", "5 ± 0.01", "50 ± 0.5", "3", "0.001")
    assert rows[1] == ("norm", "10", "0.2 ± 1e-09", "0.4", "4", "0.0001")
    assert rows[2][2] == "0.001 ± 0.0005 (not converged)"
    assert rows[3] == ("rest", "7", "pending", "pending", "n/a", "n/a")
    assert len(rows) == 4  # together once all are there
    assert layer_rows(first(record(), 2))[-1] == ("all layers", "1,010", "≥ 5", "50.4 ± 0.5", "5", "0.001")


def points(ax: Any, label: str) -> list[tuple[float, float]]:
    """Where the markers of a legend's entry stand, not those that are masked."""
    found = []
    for container in [*ax.containers, *(line for line in ax.lines if line.get_label() == label)]:
        if container.get_label() == label:
            line = container if hasattr(container, "get_xdata") else container.lines[0]
            xy = zip(*(np.ma.filled(np.ma.asarray(v, float), np.nan) for v in line.get_data()), strict=True)
            found += [(x, y) for x, y in xy if np.isfinite(x)]
    return found


def test_the_figure_shows_every_number_in_its_line():
    left, right = draw_figure({"": record()}).axes
    assert points(left, "λmax") == [(5.0, 0), (0.2, 1)]
    assert points(left, "λmax, not converged") == [(1e-3, 2)]
    assert points(left, "trace / n") == [(0.05, 0), (0.04, 1), (2e-5, 2)]
    assert points(right, "weight norm ‖θ‖") == [(3.0, 0), (4.0, 1), (12.0, 2)]
    assert points(right, "gradient norm ‖g‖") == [(1e-3, 0), (1e-4, 1), (1e-2, 2)]
    assert [ax.get_xscale() for ax in (left, right)] == ["log", "log"]
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["base.model.la…ttention.projection.lora_A", "norm", "head", "rest"]
    said = " ".join(text.get_text().replace("\n", " ") for text in left.texts)
    assert "1 of 3 layers not converged to 0.01" in said
    assert "1 of 4 layers pending" in said


def test_flat_and_negative_layers_are_drawn_with_their_sign():
    left, _ = draw_figure({"": record(eigenvalue=np.array([5.0, 0.0, -1e-3, 1.0]), status=np.ones(4, np.uint8))}).axes
    assert left.get_xscale() == "symlog"
    assert points(left, "λmax, not converged") == [(-1e-3, 2), (1.0, 3)]


def test_a_figure_of_a_hundred_layers_leaves_each_a_line_and_names_room():
    many = [f"base_model.model.transformer.h.{i}.attention.c_attn.lora_A.default" for i in range(100)]
    size = {v.name: np.resize(v.values[:2], 100) for v in variables(record())}
    figure = draw_figure({"": record(**{**size, "layer": np.array(many)})})
    figure.draw_without_rendering()
    extents = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert min(extent.x0 for extent in extents) >= 0
    gaps = np.diff(sorted(extent.y0 for extent in extents))
    assert gaps.min() > 0.8 * max(extent.height for extent in extents)  # height with room for letters that it has not


def test_several_records_stand_one_below_the_other_with_the_same_scale():
    figure = draw_figure({"SB": record(), "LB": first(record(), 2)})
    left = figure.axes[:2]
    assert left[0].get_xbound() == left[1].get_xbound()
    assert [len(ax.get_yticklabels()) for ax in left] == [4, 2]
    assert [ax.get_title() for ax in left] == ["SB", "LB"]


def test_a_file_is_drawn(small, tmp_path):
    path = store.save(layer_curvature(small.objective, small.point), tmp_path / "layers.h5")
    written = draw_file(path, ["svg", "png"])
    assert [file.name for file in written] == ["layers.svg", "layers.png"]
    assert all(file.stat().st_size > 1000 for file in written)
    assert draw(store.load(path)).get_xlabel() == "eigenvalues of the layer's block"
