"""Layers by other formulas: PyTorch's own values and derivatives, and the plain function where there is none.

Forms are compared with PyTorch's own functions in float64, where both are exact but for rounding. The linear layer's
form multiplies by oneDNN, in float32 only: its algebra is tested in float64 with a plain product in place of oneDNN's,
oneDNN's numbers against float64 references.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from networks import filled, labels, randn
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness import Hessian, Objective, cross_entropy
from sharpness.errors import ShapeError
from sharpness.measures import epsilon_sharpness
from sharpness.objective import Kernels, kernels
from sharpness.objective.kernels import KERNELS, Bilinear, Convolution, OneDNNLinear, Scale, best_kernels
from sharpness.operators.linearised import RetainedGraph

# torch.func compiles some of its own formulas by what torch calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

# Two exact formulas for one number in float64: some hundred roundings of 1.1e-16 along the way.
EXACT = 1e-12
# Sums of at most some hundred products in float32, each rounded by 6e-8, a few of them one behind the other.
SINGLE = 2e-6
# What is asked of float32 products of whole networks: ten times what a layer may be off.
NETWORK = 1e-5


def close(found: torch.Tensor, expected: torch.Tensor, relative: float) -> bool:
    """Whether ‖found − expected‖ <= relative · ‖expected‖, in the expected shape."""
    if found.shape != expected.shape:
        return False
    return bool((found.double() - expected.double()).norm() <= relative * expected.double().norm())


def derivatives(run: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
    """y = run(…), the gradient of Σ c sin y with respect to inputs that require one, and its derivative along v."""
    leaves = [t for t in inputs if t.requires_grad]
    y = run(*inputs)
    c = randn(*y.shape, key="c", dtype=y.dtype)
    gradient = torch.autograd.grad((c * y.sin()).sum(), leaves, create_graph=True)
    along = sum((g * randn(*g.shape, key=f"v{i}", dtype=g.dtype)).sum() for i, g in enumerate(gradient))
    return [y.detach(), *(g.detach() for g in gradient), *torch.autograd.grad(along, leaves)]


def formed(y: torch.Tensor) -> bool:
    """Whether a form took part in computing y."""
    seen, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
    return any(type(node).__name__ == "_ApplyBackward" for node in seen)


def under(name: str, run: Callable[..., torch.Tensor], **options: Any) -> Callable[..., torch.Tensor]:
    """``run`` with these kernels in its forward pass, for layers of any size; they must be used."""

    def with_kernels(*inputs: torch.Tensor) -> torch.Tensor:
        with Kernels(name, **{"smallest": 0, **options}):
            y = run(*inputs)
        assert formed(y), "the plain function was taken"
        return y

    return with_kernels


def requiring(tensors: dict[str, torch.Tensor], names: str) -> list[torch.Tensor]:
    """The tensors, those named by their letters as leaves that require gradients."""
    return [t.clone().requires_grad_() if name in names else t for name, t in tensors.items()]


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of linear layers with a plain product in place of oneDNN's, in float64."""
    monkeypatch.setattr(kernels, "_multiply", lambda a, b, total=None: a @ b.T if total is None else total + a @ b.T)
    monkeypatch.setattr(kernels, "_strided", lambda *tensors: all(t.layout == torch.strided for t in tensors))


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """The question whether oneDNN leads is asked again, and again after the test."""
    kernels.onednn_leads.cache_clear()
    yield
    kernels.onednn_leads.cache_clear()


# ---- convolutions -------------------------------------------------------------------------------------------------

SPATIAL = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride 2": {"stride": 2},
    "padding 1": {"padding": 1},
    "dilation 2": {"dilation": 2},
    "two groups": {"groups": 2},
    "all at once": {"stride": 2, "padding": 2, "dilation": 2, "groups": 2},
    "a list of one": {"stride": [2], "padding": (1,)},
}
CONVOLUTIONS = [(dims, name) for dims in CONVOLVE for name in SETTINGS if (dims, name) != (3, "dilation 2")]


def convolution_inputs(dims: int, groups: int = 1) -> dict[str, torch.Tensor]:
    x, w = randn(3, 4, *SPATIAL[dims]), randn(6, 4 // groups, *[2] * dims, key="w")
    return {"x": x, "w": w, "b": randn(6, key="b")}


@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize(("dims", "name"), CONVOLUTIONS)
def test_convolutions_have_pytorchs_value_gradient_and_second_derivative(dims, name, retained):
    how = SETTINGS[name]
    inputs = requiring(convolution_inputs(dims, how.get("groups", 1)), "xwb")

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return CONVOLVE[dims](x, w, b, **how)

    found = derivatives(under("bilinear", run, retained=retained), *inputs)
    assert all(close(f, e, EXACT) for f, e in zip(found, derivatives(run, *inputs), strict=True))


@pytest.mark.parametrize("needed", ["xw", "x", "w"])
@pytest.mark.parametrize("dims", CONVOLVE)
def test_convolutions_without_bias_of_constants_and_by_constants_are_pytorchs(dims, needed):
    tensors = convolution_inputs(dims)
    inputs = requiring({"x": tensors["x"], "w": tensors["w"]}, needed)
    found = derivatives(under("bilinear", CONVOLVE[dims]), *inputs)
    assert all(close(f, e, EXACT) for f, e in zip(found, derivatives(CONVOLVE[dims], *inputs), strict=True))


def test_a_convolution_takes_arguments_by_name_and_numpys_integers():
    numpy = pytest.importorskip("numpy")
    x, w, b = requiring(convolution_inputs(2), "xwb")

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv2d(weight=w, input=x, stride=(numpy.int64(2), 1), bias=b, padding=numpy.int64(1))

    found = derivatives(under("bilinear", run), x, w, b)
    assert all(close(f, e, EXACT) for f, e in zip(found, derivatives(run, x, w, b), strict=True))


@pytest.mark.parametrize("layout", ["transposed", "channels last", "expanded"])
def test_convolutions_of_strided_tensors_are_pytorchs(layout):
    x, w = randn(3, 4, 7, 6), randn(6, 4, 2, 2, key="w")
    x = {
        "transposed": lambda: randn(3, 4, 6, 7).transpose(2, 3),
        "channels last": lambda: x.to(memory_format=torch.channels_last),
        "expanded": lambda: randn(1, 4, 7, 6).expand(3, -1, -1, -1),
    }[layout]()
    w = w.transpose(2, 3) if layout == "transposed" else w
    inputs = x.detach().requires_grad_(), w.detach().requires_grad_()
    found = derivatives(under("bilinear", F.conv2d), *inputs)
    assert all(close(f, e, EXACT) for f, e in zip(found, derivatives(F.conv2d, *inputs), strict=True))


def test_padding_by_other_numbers_than_zero_comes_before_the_form():
    layer = filled(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"))
    x = randn(4, 2, 5, 5).requires_grad_()
    found = derivatives(under("bilinear", layer), x)
    assert all(close(f, e, EXACT) for f, e in zip(found, derivatives(layer, x), strict=True))


LEFT: dict[str, Callable[[], tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]]] = {
    "padding 'same'": lambda: (lambda x, w: F.conv2d(x, w, padding="same"), (randn(3, 4, 7, 6), randn(6, 4, 3, 3))),
    "padding 'valid'": lambda: (lambda x, w: F.conv1d(x, w, padding="valid"), (randn(3, 4, 7), randn(6, 4, 3))),
    "one example": lambda: (F.conv2d, (randn(4, 7, 6), randn(6, 4, 3, 3))),
    "complex": lambda: (
        lambda x, w: F.conv2d(torch.complex(x, 2 * x), torch.complex(w, -w)).abs(),
        (randn(3, 4, 7, 6), randn(6, 4, 3, 3)),
    ),
    "transposed convolution": lambda: (F.conv_transpose2d, (randn(3, 4, 5, 5), randn(4, 2, 3, 3))),
    "bilinear": lambda: (lambda x, w: F.bilinear(x, x, w), (randn(3, 4), randn(2, 4, 4))),
    "batch norm, training": lambda: (
        lambda x, w: F.batch_norm(x, torch.zeros(4).double(), torch.ones(4).double(), w, training=True),
        (randn(3, 4, 5), randn(4)),
    ),
    "batch norm, own statistics": lambda: (
        lambda x, w: F.batch_norm(x, None, None, w, training=True),
        (randn(3, 4, 5), randn(4)),
    ),
    "batch norm, no weight": lambda: (
        lambda x, w: F.batch_norm(x * w[:, None], randn(4), 0.5 + randn(4).square()),
        (randn(3, 4, 5), randn(4)),
    ),
    "linear in float64": lambda: (F.linear, (randn(3, 4), randn(5, 4))),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_has_no_form_is_left_to_pytorch_to_the_bit(case):
    run, tensors = LEFT[case]()
    inputs = [t.clone().requires_grad_() for t in tensors]

    def with_kernels(*inputs: torch.Tensor) -> torch.Tensor:
        with Kernels("onednn", smallest=0):
            y = run(*inputs)
        assert not formed(y)
        return y

    pairs = zip(derivatives(with_kernels, *inputs), derivatives(run, *inputs), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)


# ---- batch norm ---------------------------------------------------------------------------------------------------

NORMALISED = {
    "(N, C)": (5, 4),
    "(N, C, L)": (5, 4, 3),
    "(N, C, H, W)": (5, 4, 3, 2),
    "(N, C, D, H, W)": (3, 4, 2, 3, 2),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needed", ["xwb", "x", "wb", "w"])
@pytest.mark.parametrize("shape", NORMALISED)
def test_batch_norm_has_pytorchs_value_gradient_and_second_derivative(shape, needed, bias):
    tensors = {"x": randn(*NORMALISED[shape]), "w": randn(4, key="w"), "b": randn(4, key="b")}
    mean, variance = randn(4, key="mean"), 0.5 + randn(4, key="variance").square()

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, mean, variance, w, b if bias else None, eps=1e-3) + (0 if bias else b.sum())

    inputs = requiring(tensors, needed)
    found = derivatives(under("bilinear", run), *inputs)
    assert all(close(f, e, EXACT) for f, e in zip(found, derivatives(run, *inputs), strict=True))


@pytest.mark.parametrize(("layer", "shape"), [(nn.BatchNorm1d, 0), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_layers_of_batch_norm_are_pytorchs_and_without_weights_to_the_bit(layer, shape, affine):
    module, x = filled(layer(4, affine=affine)).eval(), randn(5, 4, *[3] * shape).requires_grad_()
    inputs = [x, *module.parameters()]
    with Kernels("bilinear"):
        y = module(x)
    assert formed(y) == affine
    found = derivatives(lambda *_: y, *inputs)
    expected = derivatives(lambda *_: module(x), *inputs)
    assert all(close(f, e, EXACT if affine else 0.0) for f, e in zip(found, expected, strict=True))


def test_large_running_means_cost_no_digits_that_pytorch_keeps():
    # (x − μ) is exact to the rounding of x, 1e-16 · 1e6, whatever comes behind; x · s − μ · s would not be better
    mean, variance = 1e6 + randn(4, key="mean"), torch.full((4,), 1e-2).double()
    x, w, b = 1e6 + randn(50, 4), randn(4, key="w"), randn(4, key="b")
    rounding = torch.finfo(torch.float64).eps * 1e6 / 1e-1  # of x, in units of the standard deviation
    inputs = requiring({"x": x, "w": w, "b": b}, "xwb")

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, mean, variance, w, b)

    found, expected = derivatives(under("bilinear", run), *inputs), derivatives(run, *inputs)
    exact = (x - mean) * w / (variance + 1e-5).sqrt() + b
    assert (found[0] - exact).abs().max() <= EXACT * exact.abs().max()
    # sin y of PyTorch's values, which are off by that rounding, and its derivatives: a few times that
    assert all(close(f, e, 10 * rounding) for f, e in zip(found, expected, strict=True))


# ---- linear layers ------------------------------------------------------------------------------------------------

ROWS = {"vector": (5,), "matrix": (7, 5), "sequences": (3, 4, 5), "four axes": (2, 3, 2, 5)}


@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", ROWS)
def test_linear_layers_have_pytorchs_value_gradient_and_second_derivative(rows, bias, retained, in_float64):
    inputs = requiring({"x": randn(*ROWS[rows]), "w": randn(3, 5, key="w"), "b": randn(3, key="b")}, "xwb")

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w, b) if bias else F.linear(x, w) + b.sum()

    found = derivatives(under("onednn", run, retained=retained), *inputs)
    assert all(close(f, e, EXACT) for f, e in zip(found, derivatives(run, *inputs), strict=True))


LAYOUTS: dict[str, Callable[[Callable[..., torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]] = {
    "contiguous": lambda randn: (randn(7, 5), randn(3, 5)),
    "input transposed": lambda randn: (randn(5, 7).T, randn(3, 5)),
    "input strided": lambda randn: (randn(14, 10)[::2, 1::2], randn(3, 5)),
    "input expanded": lambda randn: (randn(1, 5).expand(7, 5), randn(3, 5)),
    "input permuted": lambda randn: (randn(5, 2, 3).permute(2, 1, 0), randn(3, 5)),
    "weight transposed": lambda randn: (randn(7, 5), randn(5, 3).T),
    "weight strided": lambda randn: (randn(7, 5), randn(6, 10)[::2, 1::2]),
    "weight expanded": lambda randn: (randn(7, 5), randn(3, 1).expand(3, 5)),
    "both transposed": lambda randn: (randn(5, 7).T, randn(5, 3).T),
    "weight 0": lambda randn: (randn(7, 5), 0 * randn(3, 5)),
    "one row, one output": lambda randn: (randn(1, 5), randn(1, 5)),
    "one input": lambda randn: (randn(7, 1), randn(3, 1)),
    "sequences without bias": lambda randn: (randn(3, 4, 5), randn(3, 5)),
    "a vector": lambda randn: (randn(5), randn(3, 5)),
}


@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize("needed", ["xw", "x", "w"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_onednn_multiplies_tensors_of_every_layout_as_float64_does(layout, needed, retained):
    double, single = (
        [t.requires_grad_(n in needed) for n, t in zip("xw", LAYOUTS[layout](partial(randn, dtype=dtype)), strict=True)]
        for dtype in (torch.float64, torch.float32)
    )
    found = derivatives(under("onednn", F.linear, retained=retained), *single)
    assert all(f.dtype == torch.float32 for f in found)
    assert all(close(f, e, SINGLE) for f, e in zip(found, derivatives(F.linear, *double), strict=True))


def test_a_weight_used_twice_has_the_derivatives_of_both_uses(in_float64):
    inputs = requiring({"x": randn(7, 4), "w": randn(4, 4, key="w")}, "xw")

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, w).tanh(), w.T) + F.linear(x.square(), w)

    found = derivatives(under("onednn", run), *inputs)
    assert all(close(f, e, EXACT) for f, e in zip(found, derivatives(run, *inputs), strict=True))


def test_what_a_layer_returns_may_be_changed_in_place():
    layers = nn.Linear(4, 3, bias=False), nn.Conv1d(1, 2, 2, bias=False), nn.Linear(3, 2)
    for layer, x in zip(layers, (randn(5, 2, 4), randn(5, 1, 4), randn(5, 3)), strict=True):
        layer, x = filled(layer).float(), x.float()
        inputs = list(layer.parameters())
        found = derivatives(under("onednn", lambda *_, layer=layer, x=x: F.softplus(layer(x).relu_())), *inputs)
        expected = derivatives(lambda *_, layer=layer, x=x: F.softplus(layer(x).relu()), *inputs)
        assert all(close(f, e, SINGLE) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("x", "w"),
    [
        (randn(0, 4).float(), randn(3, 4).float()),
        (randn(2, 0, 4).float(), randn(3, 4).float()),
        (randn(5, 4).float(), randn(4).float()),
        (randn(5, 4).float(), torch.eye(4).to_sparse()),
    ],
    ids=["no rows", "no rows in a batch", "one output as a vector", "sparse weight"],
)
def test_linear_functions_of_another_kind_are_left_to_pytorch(x, w):
    x = x.clone().requires_grad_()
    with Kernels("onednn", smallest=0):
        y = F.linear(x, w)
    assert not formed(y)
    assert torch.equal(y, F.linear(x, w))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_a_weight_in_compressed_rows_is_left_to_pytorch():
    x, w = randn(5, 4).float(), torch.eye(4).to_sparse_csr()
    with Kernels("onednn", smallest=0):
        assert torch.equal(F.linear(x, w), x)


@pytest.mark.parametrize("shapes", [((5, 4), (3, 5)), ((5, 5), (3, 4)), ((0, 4), (3, 5))])
def test_shapes_that_do_not_fit_are_an_error_as_ever(shapes):
    x, w = (randn(*shape).float() for shape in shapes)
    with pytest.raises(RuntimeError), Kernels("onednn", smallest=0):
        F.linear(x, w)


def test_small_layers_take_the_plain_function_to_the_bit_and_large_ones_the_form():
    x, w, b = requiring({"x": randn(8, 16).float(), "w": randn(4, 16).float(), "b": randn(4).float()}, "xwb")

    def outputs(smallest: int) -> torch.Tensor:
        with Kernels("onednn", smallest=smallest):
            return F.linear(x, w, b)

    multiplications = 8 * 16 * 4
    assert formed(outputs(multiplications))
    assert not formed(outputs(multiplications + 1))
    assert torch.equal(outputs(multiplications + 1), F.linear(x, w, b))


def test_kernels_by_their_names_take_the_forms_that_they_say():
    x, image = randn(8, 16).float(), randn(8, 1, 4, 4).float()
    layers = filled(nn.Linear(16, 4)).float(), filled(nn.Conv2d(1, 2, 2)).float()
    expected = {"torch": (False, False), "bilinear": (False, True), "onednn": (True, True)}
    for name in KERNELS:
        with Kernels(name, smallest=0):
            taken = tuple(formed(layer(i)) for layer, i in zip(layers, (x, image), strict=True))
        assert taken == expected[name]


# ---- derivatives by differences -----------------------------------------------------------------------------------

FORMS: dict[str, tuple[Bilinear, tuple[int, ...], tuple[int, ...]]] = {
    "convolution": (Convolution([2], [1], [2], 2), (2, 4, 7), (2, 2, 2)),
    "convolution, 2-d": (Convolution([1, 2], [1, 0], [1, 1], 1), (2, 2, 3, 4), (3, 2, 2, 3)),
    "scale": (Scale(), (3, 2, 4), (2,)),
    "scale of vectors": (Scale(), (3, 2), (2,)),
    "linear": (OneDNNLinear(), (4, 3), (2, 3)),
}


@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize("needed", ["xw", "x", "w"])
@pytest.mark.parametrize("name", FORMS)
def test_derivatives_of_forms_up_to_the_third_are_their_slopes(name, needed, retained, in_float64):
    form, *shapes = FORMS[name]
    x, w = requiring(dict(zip("xw", (randn(*shape, key=str(shape)) for shape in shapes), strict=True)), needed)

    def value(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return kernels._Apply.apply(form, x, w, retained, True)

    def gradients(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = [t for t in (x, w) if t.requires_grad]
        return torch.autograd.grad(value(x, w).sin().sum(), leaves, create_graph=True)

    # torch's own tolerances: differences of 1e-6 in float64 are right to 1e-5 relative to numbers of order 1
    assert torch.autograd.gradcheck(value, (x, w))
    assert torch.autograd.gradgradcheck(value, (x, w))
    assert torch.autograd.gradgradcheck(gradients, (x, w))


@pytest.mark.parametrize("name", FORMS)
def test_adjoints_are_adjoint(name, in_float64):
    form, *shapes = FORMS[name]
    x, w = (randn(*shape, key=str(shape)) for shape in shapes)
    g = randn(*form.apply(x, w).shape, key="g")
    for held_g, held_x in ((None, None), (form.hold(g), None), (None, form.hold(x))):
        to_x, to_w = form.adjoints(g, x, w, (True, True), held_g=held_g, held_x=held_x)
        inner = (g * form.apply(x, w)).sum()
        # ⟨g, B(x, w)⟩ = ⟨∂x, x⟩ = ⟨∂w, w⟩, since B is linear in each
        assert torch.allclose(torch.stack([(to_x * x).sum(), (to_w * w).sum()]), inner, rtol=EXACT, atol=EXACT)
        assert (to_x.shape, to_w.shape) == (x.shape, w.shape)
    assert form.adjoints(g, x, w, (False, True), held_g=None, held_x=None)[0] is None
    assert form.adjoints(g, x, w, (True, False), held_g=None, held_x=None)[1] is None


# ---- whole networks -----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One matrix used twice, under two names, the second time transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        return self.head(torch.tanh(F.linear(hidden, self.second.weight.T, self.second.bias)))


class Partly(nn.Module):
    """Frozen below, unused beside, one that the loss is linear in, and a frozen head."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(2, 2)
        self.head = nn.Linear(3, 3)
        self.slope = nn.Linear(4, 1)
        self.frozen.requires_grad_(False)
        self.head.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self.head(torch.tanh(self.used(self.frozen(x)))), self.slope(x)], dim=1)


def partly(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(output[:, :3], target) + output[:, 3]


class Attention(nn.Module):
    """A small transformer: an embedding, attention and GELU between layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(2, 4), nn.LayerNorm(4), nn.LayerNorm(4)
        self.mix, self.out, self.up, self.down = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.unflatten(1, (-1, 2)))
        q, k, v = self.mix(self.first(x)).unflatten(2, (2, 6)).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return self.head((x + self.down(F.gelu(self.up(self.second(x))))).mean(1))


class Experts(nn.Module):
    """Rows go to one of three layers by a number in them; to the third goes none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = [torch.nonzero(m)[:, 0] for m in (x[:, 0] < 0, (x[:, 0] >= 0) & (x[:, 0] < 99), x[:, 0] >= 99)]
        parts = [torch.tanh(expert(x[place])) for expert, place in zip(self.experts, places, strict=True)]
        return torch.cat(parts)[torch.cat(places).argsort()]


class Physics(nn.Module):
    """A loss that contains first and second derivatives of the network, as those of differential equations do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            u = self.net(x)
            (slope,) = torch.autograd.grad(u.square().sum(), x, create_graph=True)
            (curvature,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
        return u + slope[:, 1:] + curvature[:, 1:]


class Transforming(nn.Module):
    """Functional transformations in the forward pass, inside which forms must stand back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.func.vmap(self.first)(x)
        _, x = torch.func.jvp(lambda x: torch.tanh(self.second(x)), (x,), (torch.ones_like(x),))
        return self.third(x)


class Separable(nn.Module):
    """Convolutions in one and three dimensions, the second grouped, with batch norm behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv1d(1, 2, 3, padding=2, dilation=2), nn.BatchNorm1d(2), nn.Tanh())
        self.three = nn.Sequential(nn.Conv3d(2, 4, 2, groups=2, bias=False), nn.BatchNorm3d(4), nn.Softplus())
        self.head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.three(self.one(x[:, None]).unflatten(2, (2, 2, 2))))


def mlp(*activations: type[nn.Module]) -> nn.Module:
    layers = [layer for activation in activations for layer in (nn.Linear(4, 4), activation())]
    return nn.Sequential(*layers, nn.Linear(4, 3))


def convolutional() -> nn.Module:
    layers = nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Softplus()
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Conv2d(2, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


SMOOTH: dict[str, tuple[Callable[[], nn.Module], int, dict[str, Any]]] = {
    "tanh": (lambda: mlp(nn.Tanh, nn.Tanh), 4, {}),
    "GELU": (lambda: mlp(nn.GELU, nn.SiLU), 4, {}),
    "convolutions": (convolutional, 16, {}),
    "convolutions, batch statistics": (convolutional, 16, {"batchnorm": "batch"}),
    "convolutions in 1 and 3 dimensions": (Separable, 8, {}),
    "attention": (Attention, 6, {}),
    "tied weights": (Tied, 4, {}),
    "frozen, unused and linear": (Partly, 4, {"loss": partly}),
    "first layer": (lambda: mlp(nn.Tanh, nn.Tanh), 4, {"parameters": "0.*"}),
    "last layer": (lambda: mlp(nn.Tanh, nn.Tanh), 4, {"parameters": "4.*"}),
    "biases": (lambda: mlp(nn.Tanh, nn.Tanh), 4, {"parameters": "*.bias"}),
    "biases of convolutions": (convolutional, 16, {"parameters": "*.bias"}),
    "weights of convolutions": (convolutional, 16, {"parameters": ["1.weight", "5.weight"]}),
    "experts": (Experts, 4, {}),
    "derivatives in the loss": (Physics, 4, {}),
    "transformations in the model": (Transforming, 4, {}),
}
COUNT = 24
WAYS = [("torch", False), ("bilinear", True), ("onednn", True), ("onednn", False)]


class Problem(NamedTuple):
    objective: Objective
    theta: torch.Tensor
    matrix: torch.Tensor


@pytest.fixture(scope="module", params=SMOOTH)
def problem(request: pytest.FixtureRequest) -> Problem:
    """The objective in float64, θ, and the dense Hessian entry by entry."""
    make, features, options = SMOOTH[request.param]
    options = dict(options)
    loss, module, (x, y) = options.pop("loss", cross_entropy), filled(make()), (randn(COUNT, features), labels(COUNT))
    objective, theta = Objective.from_module(module, loss, (x, y), chunk_size=COUNT, **options)
    module = copy.deepcopy(module).requires_grad_(False).train(objective.batchnorm == "batch")

    def f(theta: torch.Tensor) -> torch.Tensor:
        return loss(functional_call(module, objective.space.unflatten(theta), (x,)), y).mean()

    with sdpa_kernel(SDPBackend.MATH):
        return Problem(objective, theta, torch.autograd.functional.hessian(f, theta))


def graph(objective: Objective, theta: torch.Tensor, name: str, *, retained: bool = True) -> RetainedGraph:
    """The linearised gradient of the first chunk with these kernels, for layers of any size."""
    leaves = [part.clone().requires_grad_() for part in objective.space.split(theta)]
    return RetainedGraph(objective, objective.chunks[0], leaves, None, Kernels(name, retained=retained, smallest=0))


def matrix(objective: Objective, theta: torch.Tensor, name: str, *, retained: bool = True) -> torch.Tensor:
    linearised = graph(objective, theta, name, retained=retained)
    identity = torch.eye(objective.size, dtype=objective.dtype)
    columns = [linearised.product(objective.space.split(column)) for column in identity]
    return torch.stack(columns, dim=1) / linearised.weight


@pytest.mark.parametrize(("name", "retained"), WAYS)
def test_the_hessian_in_float64_is_the_dense_one_with_every_kernels(problem, name, retained, in_float64):
    objective, theta, expected = problem
    assert close(matrix(objective, theta, name, retained=retained), expected, EXACT)


@pytest.mark.parametrize(("name", "retained"), WAYS)
def test_products_in_float32_are_the_dense_ones_to_rounding_with_every_kernels(problem, name, retained):
    single, theta = problem.objective.replace(dtype=torch.float32), problem.theta.float()
    linearised = graph(single, theta, name, retained=retained)
    for key in ("u", "v"):
        vector = randn(single.size, key=key)
        found = linearised.product(single.space.split(vector.float())) / linearised.weight
        assert found.dtype == torch.float32
        assert close(found, problem.matrix @ vector, NETWORK)


def test_products_again_are_the_same_bits_and_retaining_changes_them_by_rounding(problem):
    objective, theta, _ = problem
    single = objective.replace(dtype=torch.float32)
    directions = single.space.split(randn(single.size, key="v").float())
    kept, rebuilt = (graph(single, theta.float(), "onednn", retained=retained) for retained in (True, False))
    first = kept.product(directions)
    assert all(torch.equal(kept.product(directions), first) for _ in range(3))
    assert close(rebuilt.product(directions), first, NETWORK)


@pytest.mark.parametrize("name", ["bilinear", "onednn"])
def test_vectors_are_multiplied_at_once_as_one_by_one_with_every_kernels(problem, name):
    single, theta, expected = problem.objective.replace(dtype=torch.float32), problem.theta.float(), problem.matrix
    linearised, rows = graph(single, theta, name), randn(3, single.size, key="v").float()
    found = linearised.products(single.space.split_rows(rows)) / linearised.weight
    assert close(found, rows.double() @ expected, NETWORK)


@pytest.mark.parametrize("name", KERNELS)
def test_values_and_gradients_are_pytorchs_with_every_kernels(problem, name, monkeypatch):
    objective, theta, _ = problem
    monkeypatch.setitem(Kernels.__init__.__kwdefaults__, "smallest", 0)
    value, gradient = objective.replace(kernels="torch").value_and_gradient(theta)
    single = objective.replace(dtype=torch.float32, kernels=name)
    found = single.value_and_gradient(theta.float())
    assert close(torch.tensor(found[0]), torch.tensor(value), SINGLE)
    assert close(torch.tensor(single.value(theta.float())), torch.tensor(value), SINGLE)
    assert close(found[1], gradient, NETWORK)


@pytest.mark.parametrize("name", ["bilinear", "onednn"])
def test_a_place_where_all_weights_are_0_has_the_hessian_of_pytorch(name, in_float64):
    # many products are 0 there, and second-order terms alone are left
    objective, theta = Objective.from_module(filled(mlp(nn.Softplus)), cross_entropy, (randn(COUNT, 4), labels(COUNT)))
    nowhere = torch.zeros_like(theta)
    assert close(matrix(objective, nowhere, name), matrix(objective, nowhere, "torch"), EXACT)


# ---- inside transformations and other modes -----------------------------------------------------------------------


def linear_and_convolution(x: torch.Tensor, w: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return F.conv1d(F.linear(x, w).unflatten(-1, (1, 3)), c).tanh()


def transformed_inputs() -> tuple[torch.Tensor, ...]:
    return randn(5, 4).float(), randn(3, 4, key="w").float(), randn(2, 1, 2, key="c").float()


TRANSFORMATIONS: dict[str, Callable[..., Any]] = {
    "vmap": lambda x, w, c: torch.func.vmap(linear_and_convolution, (0, None, None))(x[:, None], w, c),
    "jvp": lambda x, w, c: torch.func.jvp(lambda w: linear_and_convolution(x, w, c), (w,), (w.cos(),))[1],
    "grad": lambda x, w, c: torch.func.grad(lambda w: linear_and_convolution(x, w, c).sum())(w),
    "vjp": lambda x, w, c: torch.func.vjp(lambda c: linear_and_convolution(x, w, c).sum(), c)[1](torch.ones(()))[0],
    "hessian": lambda x, w, c: torch.func.hessian(lambda w: linear_and_convolution(x, w, c).sum())(w),
    "jacfwd of jacrev": lambda x, w, c: torch.func.jacfwd(
        torch.func.jacrev(lambda c: linear_and_convolution(x, w, c).sum())
    )(c),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_inside_functional_transformations_the_plain_function_stands(name):
    inputs = transformed_inputs()
    with Kernels("onednn", smallest=0):
        found = TRANSFORMATIONS[name](*inputs)
    assert torch.equal(found, TRANSFORMATIONS[name](*inputs))


def test_inside_forward_differentiation_the_plain_function_stands():
    x, w, c = transformed_inputs()

    def tangent() -> torch.Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(linear_and_convolution(forward_ad.make_dual(x, x.cos()), w, c)).tangent

    with Kernels("onednn", smallest=0):
        found = tangent()
    assert torch.equal(found, tangent())


def test_inside_an_autocast_of_the_models_own_the_plain_function_stands():
    inputs = [t.requires_grad_() for t in transformed_inputs()]

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear_and_convolution(*inputs)

    with Kernels("onednn", smallest=0):
        found = run(*inputs)
    assert found.dtype == torch.bfloat16
    assert not formed(found)
    assert torch.equal(found, run(*inputs))


def state() -> tuple[Any, ...]:
    """The global settings that forms and objectives might touch."""
    return (
        torch._C._len_torch_function_stack(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.get_default_dtype(),
        torch.get_rng_state().numpy().tobytes(),
    )


def failing(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled():
        raise ZeroDivisionError("a loss that fails where it is differentiated")
    return cross_entropy(output, target)


def test_nothing_global_changes_also_after_an_exception():
    module, data = filled(mlp(nn.Tanh)).float(), (randn(COUNT, 4).float(), labels(COUNT))
    before = state()
    objective, theta = Objective.from_module(module, cross_entropy, data)
    objective.replace(kernels="onednn").gradient(theta)
    Hessian(objective.replace(kernels="onednn"), theta) @ theta
    assert state() == before
    with pytest.raises(ZeroDivisionError), Kernels("onednn", smallest=0):
        raise ZeroDivisionError
    assert state() == before
    broken, _ = Objective.from_module(module, failing, data, chunk_size=COUNT)
    for action in (broken.gradient, lambda theta: Hessian(broken, theta)):
        with pytest.raises(ZeroDivisionError):
            action(theta)
        assert state() == before


@pytest.fixture(scope="module")
def wide() -> tuple[Objective, torch.Tensor, nn.Module]:
    """An objective in float32, θ and the module, with layers large enough for oneDNN."""
    module = filled(nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 3)))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.div_(8)
    return *Objective.from_module(module.float(), cross_entropy, (randn(64, 64).float(), labels(64))), module


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_callers_matmul_precision_changes_no_number_and_stays(wide, precision, name):
    objective, theta = wide[0].replace(kernels=name), wide[1]
    v = randn(objective.size, key="v").float()
    expected = objective.value(theta), objective.gradient(theta), Hessian(objective, theta) @ v
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = objective.value(theta), objective.gradient(theta), Hessian(objective, theta) @ v
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert found[0] == expected[0]
    assert all(torch.equal(f, e) for f, e in zip(found[1:], expected[1:], strict=True))


def test_products_of_large_layers_by_onednn_are_those_of_float64(wide):
    objective, theta, _ = wide
    v = randn(objective.size, key="v")
    expected = Hessian(objective.replace(dtype=torch.float64), theta.double()) @ v
    operator = Hessian(objective.replace(kernels="onednn"), theta)
    assert operator.conditions["execution"]["kernels"] == "onednn"
    assert close(operator @ v.float(), expected, NETWORK)


# ---- which kernels, and whether they agree ------------------------------------------------------------------------


def test_pytorchs_kernels_give_the_bits_of_plain_automatic_differentiation(wide):
    objective, theta, module = wide[0].replace(kernels="torch"), *wide[1:]
    v, leaves = randn(objective.size, key="v").float(), list(module.parameters())
    total = cross_entropy(module(randn(64, 64).float()), labels(64)).sum(dtype=torch.float64)
    parts = torch.autograd.grad(total, leaves, create_graph=True)
    gradient = torch.cat([part.detach().reshape(-1) for part in parts])
    columns = torch.autograd.grad(parts, leaves, objective.space.split(v))
    product = torch.cat([column.reshape(-1) for column in columns])
    assert objective.value(theta) == float(total.detach()) / 64
    assert torch.equal(objective.gradient(theta), (gradient.double() / 64).float())
    assert torch.equal(Hessian(objective, theta) @ v, (product.double() / 64).float())


WRONG: dict[str, tuple[type[Bilinear], str, Callable[..., Any]]] = {
    "adjoint of convolutions": (Convolution, "adjoints", lambda x, w: (x, None if w is None else 1.1 * w)),
    "adjoint of scales": (Scale, "adjoints", lambda x, w: (x, None if w is None else 1.1 * w)),
    "adjoint of linear layers": (OneDNNLinear, "adjoints", lambda x, w: (None if x is None else 1.1 * x, w)),
    "value of convolutions": (Convolution, "apply", lambda y: 1.1 * y),
    "value of linear layers": (OneDNNLinear, "apply", lambda y: 1.1 * y),
    "what linear layers hold": (OneDNNLinear, "hold", lambda held: 1.1 * held),
    "an adjoint that is no number": (Scale, "adjoints", lambda x, w: (x, None if w is None else w / 0)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_form_that_is_wrong_is_noticed_and_pytorchs_kernels_are_taken(case, monkeypatch):
    cls, method, spoil = WRONG[case]
    data = randn(COUNT, 16).float(), labels(COUNT)
    module = nn.Sequential(convolutional(), nn.Tanh(), nn.Linear(3, 3))
    objective, theta = Objective.from_module(filled(module).float(), cross_entropy, data)
    objective, v = objective.replace(kernels="onednn"), randn(objective.size, key="v").float()
    assert Hessian(objective, theta).conditions["execution"]["kernels"] == "onednn"
    right = getattr(cls, method)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = right(*args, **kwargs)
        return spoil(*result) if isinstance(result, tuple) else spoil(result)

    monkeypatch.setattr(cls, method, wrong)
    operator = Hessian(objective, theta)
    assert operator.conditions["execution"]["kernels"] == "torch"
    assert objective.conditions["execution"]["kernels"] == "onednn"  # the caller's objective stays as it is
    assert torch.equal(operator @ v, Hessian(objective.replace(kernels="torch"), theta) @ v)


@pytest.mark.parametrize("name", ["bilinear", "onednn"])
def test_where_the_hessian_is_0_kernels_agree(name):
    data = randn(9, 4).float(), randn(9).float()
    objective, theta = Objective.from_module(nn.Linear(4, 1), lambda o, t: o[:, 0] * t, data)
    operator = Hessian(objective.replace(kernels=name), theta)
    assert operator.conditions["execution"]["kernels"] == name
    assert not (operator @ torch.ones(5)).any()


@pytest.mark.parametrize("name", ["mkl", "TORCH", " "])
def test_unknown_kernels_are_refused_by_name(wide, name):
    with pytest.raises(ShapeError, match=rf"auto or one of torch, bilinear, onednn; got '{name}'"):
        wide[0].replace(kernels=name)


def test_kernels_that_were_asked_for_stay_when_the_rest_is_replaced(wide):
    objective = wide[0].replace(kernels="bilinear")
    assert objective.replace(chunk_size=7).kernels == "bilinear"
    assert objective.replace(kernels="auto").kernels == wide[0].kernels
    assert objective.replace(dtype=torch.float64).conditions["execution"] == {"kernels": "bilinear"}


def test_the_best_kernels_of_float64_and_of_gpus_are_bilinear():
    assert best_kernels(torch.device("cpu"), torch.float64) == "bilinear"
    assert best_kernels(torch.device("cuda"), torch.float32) == "bilinear"
    assert best_kernels(torch.device("cuda"), torch.float64) == "bilinear"


def test_without_onednn_the_best_kernels_are_bilinear(asked_anew, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(kernels, "_multiply", None)  # is not even tried
    assert best_kernels(torch.device("cpu"), torch.float32) == "bilinear"


@pytest.mark.parametrize(("ours", "theirs", "best"), [(1.0, 1.3, "onednn"), (1.0, 1.2, "bilinear")])
def test_onednn_must_lead_clearly(ours, theirs, best, asked_anew, monkeypatch):
    times = iter([ours, theirs])
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "_fastest", lambda run: next(times))
    assert best_kernels(torch.device("cpu"), torch.float32) == best
    assert best_kernels(torch.device("cpu"), torch.float32) == best  # is measured once


def test_the_question_which_kernels_are_best_does_not_depend_on_what_the_caller_has_set(asked_anew, monkeypatch):
    seen = []

    def watched(run: Callable[[], torch.Tensor]) -> float:
        result = run()
        seen.append((result.dtype, torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return 1.0

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "_fastest", watched)
    before = torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert best_kernels(torch.device("cpu"), torch.float32) == "bilinear"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before)
    assert seen == [(torch.float32, "highest", False)] * 2


# ---- measures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bilinear", "onednn"])
def test_values_and_accuracies_are_the_same_with_every_kernels(name, monkeypatch):
    monkeypatch.setitem(Kernels.__init__.__kwdefaults__, "smallest", 0)
    data = randn(200, 16).float(), labels(200)
    objective, theta = Objective.from_module(filled(convolutional()).float(), cross_entropy, data, chunk_size=30)
    expected = objective.replace(kernels="torch").evaluate(theta)
    found = objective.replace(kernels=name).evaluate(theta)
    assert found.loss == pytest.approx(expected.loss, rel=SINGLE)
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("subspace", [None, 5])
def test_epsilon_sharpness_is_the_same_with_every_kernels(subspace):
    data = randn(100, 16), labels(100)
    objective, theta = Objective.from_module(filled(convolutional()), cross_entropy, data)
    found, expected = (
        epsilon_sharpness(objective.replace(kernels=name), theta, epsilon=1e-3, subspace=subspace)
        for name in ("bilinear", "torch")
    )
    for field in ("sharpness", "stronger", "first_order"):
        # a maximum where the slope is 0 or at the edge of a box: roundings of the way there hardly count
        assert getattr(found, field) == pytest.approx(getattr(expected, field), rel=1e-9)


def test_epsilon_sharpness_in_float32_is_the_same_with_every_kernels_to_the_rounding_of_values(monkeypatch):
    monkeypatch.setitem(Kernels.__init__.__kwdefaults__, "smallest", 0)
    data = randn(100, 16).float(), labels(100)
    objective, theta = Objective.from_module(filled(convolutional()).float(), cross_entropy, data)
    found = [epsilon_sharpness(objective.replace(kernels=name), theta, epsilon=1e-3) for name in KERNELS]
    for field in ("sharpness", "stronger", "first_order"):
        # 100 · (f' − f) / (1 + f), in percent: two values that are each off by a rounding or two of 6e-8
        numbers = [getattr(measured, field) for measured in found]
        assert numbers == pytest.approx([numbers[0]] * 3, abs=2e-5)
        assert min(numbers) > 0.1


def squares(x: torch.Tensor, form: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A function of x through ``form`` with a second derivative of its own."""
    return form(x * x - 1).pow(3).sum()


@pytest.mark.parametrize("relu", [F.relu, torch.relu, torch.Tensor.relu, nn.ReLU()])
def test_relu_has_pytorchs_value_and_derivatives_of_every_order(relu):
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_()  # at 1 and -1 the corner itself
    with Kernels("bilinear"):
        ours = squares(x, relu)
    theirs = squares(x, torch.relu)
    assert torch.equal(ours, theirs)
    for _ in range(3):
        ours, theirs = (torch.autograd.grad(y.sum(), x, create_graph=True)[0] for y in (ours, theirs))
        assert torch.allclose(ours, theirs, rtol=1e-14, atol=0)


def test_relu_in_place_stays_in_place():
    x = torch.tensor([-1.0, 2.0]).requires_grad_()
    with Kernels("bilinear"):
        y = x * 1
        assert F.relu(y, inplace=True) is y
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0.0, 1.0]
