"""The flat vector θ: which parameters lie in it, in which order, and that flattening and unflattening are inverse."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sharpness.errors import ShapeError, SharpnessError, UnsupportedModelError
from sharpness.params import ParamSpace, Point, as_point, sha256


class Tied(nn.Module):
    """An encoder whose transpose decodes: one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


# ---- which parameters ---------------------------------------------------------------------------------------------


def test_parameters_lie_in_theta_in_the_order_of_the_module():
    module = network()
    space = ParamSpace.of(module)
    assert space.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert space.shapes == ((4, 3), (4,), (2, 4), (2,))
    expected = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    assert torch.equal(space.flatten(dict(module.named_parameters())), expected)


def test_the_sizes_add_up_to_n_and_the_offsets_say_where_each_parameter_begins():
    module = network()
    space = ParamSpace.of(module)
    assert space.size == sum(space.sizes) == sum(p.numel() for p in module.parameters()) == 26
    theta = space.flatten(dict(module.named_parameters()))
    for (name, offset), size in zip(zip(space.names, space.offsets, strict=True), space.sizes, strict=True):
        assert torch.equal(theta[offset : offset + size], module.get_parameter(name).detach().reshape(-1))


def test_a_tied_weight_lies_in_theta_once_under_its_first_name():
    space = ParamSpace.of(Tied())
    assert space.names == ("encoder.weight", "decoder.bias")
    assert space.size == 9 + 3


def test_frozen_parameters_are_no_part_of_theta():
    module = network()
    module[0].requires_grad_(False)
    assert ParamSpace.of(module).names == ("2.weight", "2.bias")


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (None, ("0.weight", "0.bias", "2.weight", "2.bias")),
        ("*", ("0.weight", "0.bias", "2.weight", "2.bias")),
        ("2.bias", ("2.bias",)),
        ("*.weight", ("0.weight", "2.weight")),
        ("0.*", ("0.weight", "0.bias")),
        (["2.*", "0.bias"], ("0.bias", "2.weight", "2.bias")),  # the module's order, not the patterns'
        (("2.*", "2.weight"), ("2.weight", "2.bias")),  # twice named, once in θ
    ],
)
def test_patterns_choose_among_the_parameters_and_keep_their_order(patterns, names):
    assert ParamSpace.of(network(), patterns).names == names


def test_patterns_choose_no_frozen_parameter():
    module = network()
    module[0].weight.requires_grad_(False)
    assert ParamSpace.of(module, "*.weight").names == ("2.weight",)


@pytest.mark.parametrize("patterns", [["2.*", "0.bais"], [], "", "1.*"])
def test_every_pattern_must_match_so_that_no_slip_of_the_pen_leaves_a_parameter_out(patterns):
    with pytest.raises(UnsupportedModelError, match="no trainable parameter matches"):
        ParamSpace.of(network(), patterns)


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(
        UnsupportedModelError, match=r"no trainable parameter matches \['head\.\*'\].*0\.weight, 0\.bias"
    ):
        ParamSpace.of(network(), "head.*")


@pytest.mark.parametrize("module", [nn.ReLU(), network().requires_grad_(False)], ids=["without", "frozen"])
def test_a_module_without_trainable_parameters_is_refused_and_told_how_to_unfreeze(module):
    with pytest.raises(UnsupportedModelError, match=r"requires_grad_\(True\)"):
        ParamSpace.of(module)


# ---- flat and named -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_flatten_and_unflatten_are_inverse_for_any_shapes(shapes, seed):
    space = ParamSpace(tuple(f"p{i}" for i in range(len(shapes))), tuple(torch.Size(shape) for shape in shapes))
    theta = torch.randn(space.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    named = space.unflatten(theta)
    assert [tuple(tensor.shape) for tensor in named.values()] == [tuple(shape) for shape in shapes]
    assert torch.equal(space.flatten(named), theta)


def test_unflatten_gives_views_so_that_writing_to_a_name_writes_to_theta():
    space = ParamSpace.of(network())
    theta = torch.zeros(space.size)
    space.unflatten(theta)["2.bias"].fill_(1.0)
    assert theta.nonzero().flatten().tolist() == [24, 25]


@pytest.mark.parametrize("module", [network(), nn.Linear(3, 1, bias=False)], ids=["several", "one"])
def test_flatten_copies_so_that_writing_to_theta_does_not_write_to_the_module(module):
    before = [p.detach().clone() for p in module.parameters()]
    theta = ParamSpace.of(module).flatten(dict(module.named_parameters()))
    assert not theta.requires_grad
    theta.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_column_of_a_matrix_unflattens_as_its_contiguous_copy_does():
    space = ParamSpace.of(network())
    column = torch.randn(space.size, 2, generator=torch.Generator().manual_seed(0))[:, 1]
    pieces = zip(space.split(column), space.split(column.contiguous()), strict=True)
    assert all(torch.equal(strided, contiguous) for strided, contiguous in pieces)


@pytest.mark.parametrize("shape", [(25,), (27,), (0,), (), (26, 1), (1, 26)])
def test_any_shape_but_n_is_refused_naming_both(shape):
    space = ParamSpace.of(network())
    space.check(torch.zeros(26))
    with pytest.raises(ShapeError) as caught:
        space.check(torch.zeros(shape), "vector")
    assert "vector of shape (26,)" in str(caught.value)
    assert f"got {shape}" in str(caught.value)


# ---- points -------------------------------------------------------------------------------------------------------


def test_the_point_of_a_module_holds_copies_of_its_parameters_and_buffers():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    point = Point.of(module, ParamSpace.of(module))
    with torch.no_grad():
        module[0].weight.fill_(5.0)
        module[1].running_mean.fill_(5.0)
    assert point.theta.shape == (3 * 2 + 2 + 2 + 2,)
    assert set(point.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert not bool((point.theta == 5.0).any())
    assert torch.equal(point.buffers["1.running_mean"], torch.zeros(2))


def test_a_point_is_made_of_theta_of_a_point_and_of_anything_that_has_one():
    theta = torch.arange(3.0)
    point = Point(theta, {"scale": torch.ones(1)})
    assert as_point(point) is point
    assert as_point(SimpleNamespace(point=point)) is point
    assert as_point(theta).theta is theta
    assert as_point(theta).buffers is None


@pytest.mark.parametrize("place", [np.zeros(3), [0.0], None, "theta"], ids=["array", "list", "None", "string"])
def test_anything_else_is_no_point(place):
    with pytest.raises(ShapeError, match=f"got {type(place).__name__}"):
        as_point(place)


def test_the_fingerprint_is_the_sha256_of_the_bytes_of_theta():
    values = np.linspace(0, 1, 7, dtype=np.float32)
    assert Point(torch.tensor(values)).sha256 == hashlib.sha256(values.tobytes()).hexdigest()


def test_the_fingerprint_sees_the_last_bit_but_not_strides_or_graphs():
    theta = torch.linspace(0, 1, 7, dtype=torch.float64)
    changed = theta.clone()
    changed[3] = np.nextafter(float(theta[3]), 1.0)
    assert sha256(changed) != sha256(theta)
    assert sha256(torch.stack([theta, theta], dim=1)[:, 0]) == sha256(theta)
    assert sha256(theta.clone().requires_grad_()) == sha256(theta)


def test_every_error_of_the_package_is_a_sharpness_error_and_its_standard_kind():
    assert issubclass(ShapeError, SharpnessError)
    assert issubclass(ShapeError, ValueError)
    assert issubclass(UnsupportedModelError, TypeError)
    assert ShapeError("what", partial=[1]).partial == [1]
    assert ShapeError("what").partial is None
