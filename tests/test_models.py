"""Models: the layers that were promised, weights that one seed decides, and refusals that say what would fit."""

from __future__ import annotations

import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sharpness.errors import ShapeError
from sharpness.models import (
    MODELS,
    build,
    char_transformer,
    initialised,
    keskar_deep,
    keskar_f1,
    keskar_shallow,
    mlp,
    vgg9,
    wide_mlp,
)

IMAGE, NARROW = (3, 32, 32), 0.05
CONV, DENSE = ["Conv2d", "BatchNorm2d", "ReLU"], ["Linear", "BatchNorm1d", "ReLU"]

# every model with the shapes it can take, small where that is an option
SMALL = [
    ("digits-mlp", (64,), {}),
    ("digits-mlp", (8, 8), {}),
    ("mlp", (5,), {"widths": (4, 3)}),
    ("mlp", (2, 3), {"widths": (4,), "batchnorm": False}),
    ("keskar-f1", (7,), {}),
    ("keskar-f2", (6,), {"width": 8, "depth": 2}),
    ("keskar-f2", (1, 2, 3), {"width": 8, "depth": 1}),
    *((name, IMAGE, {"width": NARROW}) for name in ("keskar-c1", "keskar-c2", "keskar-c3", "keskar-c4", "vgg9")),
    ("keskar-c2", (3, 64, 64), {"width": NARROW, "conv_dropout": False}),
    ("keskar-c1", (3, 12, 12), {"width": NARROW}),
    ("vgg9", (3, 24, 24), {"width": NARROW}),
    ("char-transformer", (6,), {"width": 8, "depth": 1, "heads": 2}),
]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def names(model):
    return [type(layer).__name__ for layer in model]


def dropouts(model):
    return {place: layer.p for place, layer in enumerate(model) if isinstance(layer, nn.Dropout)}


def assert_same_weights(model, other):
    ours, theirs = list(model.parameters()), list(other.parameters())
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in theirs]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# Layers


@pytest.mark.parametrize(
    ("make", "classes", "expected"),
    [
        (keskar_shallow, 10, 1_757_834),
        (keskar_shallow, 100, 1_775_204),
        (keskar_deep, 10, 14_991_946),
        (keskar_deep, 100, 15_038_116),
        (partial(keskar_deep, conv_dropout=False), 10, 14_991_946),
        (vgg9, 10, 2_789_706),
        (vgg9, 100, 2_812_836),
        (partial(keskar_f1, 784), 10, 1_462_794),
        (partial(wide_mlp, 360), 2000, 6_628_304),
        (char_transformer, 65, 112_577),
    ],
)
def test_parameter_counts(make, classes, expected):
    with torch.device("meta"):
        assert count(make(classes)) == expected


@pytest.mark.parametrize(("name", "n"), [("keskar-c1", 1_757_834), ("keskar-c2", 14_991_946), ("vgg9", 2_789_706)])
def test_a_name_is_its_builder(name, n):
    with torch.device("meta"):
        assert count(build(name, IMAGE, 10)) == count(MODELS[name](IMAGE, 10)) == n


def test_f1_is_the_same_network_as_ever():
    torch.manual_seed(3)
    layers = []
    for inputs in (784, 512, 512, 512, 512):
        layers += [nn.Linear(inputs, 512), nn.BatchNorm1d(512), nn.ReLU()]
    by_hand = nn.Sequential(*layers, nn.Linear(512, 10))
    torch.manual_seed(3)
    model = keskar_f1()
    assert names(model) == names(by_hand)
    assert list(model.state_dict()) == list(by_hand.state_dict())
    assert_same_weights(model, by_hand)
    assert_same_weights(initialised(keskar_f1, seed=0), initialised(lambda: build("keskar-f1", (784,), 10), seed=0))


def test_the_model_of_the_digits_is_the_same_network_as_ever():
    by_hand = initialised(lambda: mlp([64, 128, 128, 10], batchnorm=True), seed=0)
    for name in ("digits-mlp", "mlp"):
        model = initialised(lambda name=name: build(name, (64,), 10), seed=0)
        assert names(model) == [*DENSE, *DENSE, "Linear"]
        assert_same_weights(model, by_hand)


def test_layers_of_the_shallow_network():
    model = keskar_shallow(width=NARROW)
    head = ["Flatten", *DENSE, "Dropout", *DENSE, "Dropout", "Linear"]
    assert names(model) == [*CONV, "MaxPool2d", *CONV, "MaxPool2d", *head]
    assert set(dropouts(model).values()) == {0.5}
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            assert (layer.kernel_size, layer.stride, layer.padding) == ((5, 5), (1, 1), (2, 2))
        if isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride, layer.padding) == (3, 2, 1)


def test_the_shallow_network_pools_windows_that_begin_before_the_image():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert keskar_shallow(width=NARROW)[3](image).flatten().tolist() == [5, 7, 13, 15]


BLOCKS = [2, 2, 3, 3, 3]


def test_layers_of_the_deep_network():
    expected, rates = [], {}
    for number, depth in enumerate(BLOCKS):
        for place in range(depth):
            expected += CONV
            if place < depth - 1:
                rates[len(expected)] = 0.4 if number else 0.3
                expected.append("Dropout")
        expected.append("MaxPool2d")
    for rate, layers in ((0.5, ["Flatten"]), (0.5, DENSE)):
        expected += layers
        rates[len(expected)] = rate
        expected.append("Dropout")
    model = keskar_deep(width=NARROW)
    assert names(model) == [*expected, "Linear"]
    assert dropouts(model) == rates
    assert list(rates.values()) == [0.3] + 7 * [0.4] + 2 * [0.5]


def test_layers_of_the_deep_network_without_dropout_of_convolutions():
    model = keskar_deep(conv_dropout=False, width=NARROW)
    blocks = [name for depth in BLOCKS for name in [*depth * CONV, "MaxPool2d"]]
    assert names(model) == [*blocks, "Flatten", "Dropout", *DENSE, "Dropout", "Linear"]
    assert list(dropouts(model).values()) == [0.5, 0.5]


def test_layers_of_vgg9():
    model = vgg9(width=NARROW)
    blocks = [name for depth in (2, 2, 3) for name in [*depth * CONV, "MaxPool2d"]]
    assert names(model) == [*blocks, "Flatten", *DENSE, "Linear"]


@pytest.mark.parametrize("make", [keskar_deep, vgg9])
def test_vgg_convolutions_keep_the_size_and_pools_halve_it(make):
    for layer in make(width=NARROW):
        if isinstance(layer, nn.Conv2d):
            assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        if isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride, layer.padding) == (2, 2, 0)


def widths(model):
    return [layer.weight.shape[0] for layer in model if isinstance(layer, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (keskar_shallow, [64, 64, 384, 192]),
        (keskar_deep, 2 * [64] + 2 * [128] + 3 * [256] + 6 * [512] + [512]),
        (vgg9, 2 * [64] + 2 * [128] + 3 * [256] + [256]),
    ],
)
def test_width_scales_every_hidden_width(make, expected):
    with torch.device("meta"):
        assert widths(make(7)) == [*expected, 7]
        assert widths(make(7, width=0.5)) == [*(size // 2 for size in expected), 7]
        assert widths(make(7, width=2)) == [*(size * 2 for size in expected), 7]
        assert widths(make(7, width=1e-9)) == [*(1 for _ in expected), 7]


def test_the_wide_network_has_so_many_layers_of_so_many_neurons():
    model = wide_mlp(6, 40, width=8, depth=3)
    assert names(model) == [*3 * DENSE, "Linear"]
    assert widths(model) == [8, 8, 8, 40]


def test_only_images_are_flattened():
    assert names(build("mlp", (6,), 2))[0] == "Linear"
    assert names(build("mlp", (2, 3), 2))[:2] == ["Flatten", "Linear"]
    flat, image = (initialised(partial(build, "mlp", shape, 2), seed=0).eval() for shape in ((6,), (2, 3)))
    inputs = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flat(inputs.flatten(1)), image(inputs))


@pytest.mark.parametrize(("name", "shape", "options"), SMALL)
def test_outputs(name, shape, options):
    model = initialised(lambda: build(name, shape, 11, **options), seed=0)
    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(3, *shape, generator=draw), torch.tensor([0, 5, 10])
    if name == "char-transformer":
        inputs = torch.randint(11, (3, *shape), generator=draw)
        targets = targets[:, None].expand(inputs.shape)  # one for every character
    logits = model.eval()(inputs)
    assert logits.shape == (3, 11, *targets.shape[1:])
    assert logits.isfinite().all()
    assert torch.equal(logits, model(inputs))
    nn.functional.cross_entropy(model.train()(inputs), targets).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_every_model_is_tried():
    assert {name for name, _, _ in SMALL} == set(MODELS)


# Initialisation


@pytest.mark.parametrize("scheme", ["pytorch", "glorot"])
def test_one_seed_one_start(scheme):
    first, again, other = (
        initialised(partial(keskar_deep, width=NARROW), seed=seed, scheme=scheme) for seed in (1, 1, 2)
    )
    assert_same_weights(first, again)
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize("scheme", ["pytorch", "glorot"])
def test_dropout_of_convolutions_changes_no_weight(scheme):
    starts = (
        initialised(lambda given=given: build("keskar-c2", IMAGE, 10, width=NARROW, **given), seed=4, scheme=scheme)
        for given in ({}, {"conv_dropout": False})
    )
    assert_same_weights(*starts)


def test_pytorchs_scheme_is_the_default_and_leaves_the_layers_as_they_were_drawn():
    make = partial(keskar_shallow, width=NARROW)
    assert_same_weights(initialised(make, seed=1), initialised(make, seed=1, scheme="pytorch"))


@pytest.mark.parametrize("name", ["keskar-c1", "keskar-f2"])
def test_glorots_scheme(name):
    shape, width = {"keskar-c1": (IMAGE, 0.25), "keskar-f2": ((40,), 64)}[name]
    model = initialised(partial(build, name, shape, 10, width=width), seed=0, scheme="glorot")
    plain = initialised(partial(build, name, shape, 10, width=width), seed=0)
    for layer, before in zip(model, plain, strict=True):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            field = math.prod(layer.weight.shape[2:])
            bound = math.sqrt(6 / (field * sum(layer.weight.shape[:2])))
            assert 0.95 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            assert not layer.bias.any()
            assert before.bias.any()
            assert not torch.equal(layer.weight, before.weight)
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()


def test_glorots_scheme_without_biases():
    assert initialised(lambda: nn.Linear(2, 2, bias=False), seed=0, scheme="glorot").bias is None


@pytest.mark.parametrize("scheme", ["pytorch", "glorot"])
def test_the_global_generators_are_left_as_they_were(scheme):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    initialised(partial(vgg9, width=NARROW), seed=0, scheme=scheme)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


# Refusals


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("vgg16", IMAGE, {}, r"model among digits-mlp, mlp, .*, char-transformer; got 'vgg16'"),
        ("keskar-c2", (3, 48, 48), {}, r"\(3, s, s\), s a multiple of 32; got \(3, 48, 48\)"),
        ("keskar-c4", (3, 28, 28), {}, r"multiple of 32; got \(3, 28, 28\)"),
        ("keskar-c1", (3, 30, 30), {}, r"multiple of 4; got \(3, 30, 30\)"),
        ("keskar-c3", (1, 32, 32), {}, r"\(3, s, s\).*got \(1, 32, 32\)"),
        ("vgg9", (3, 28, 28), {}, r"multiple of 8; got \(3, 28, 28\)"),
        ("vgg9", (3, 32, 64), {}, r"got \(3, 32, 64\)"),
        ("vgg9", (3072,), {}, r"got \(3072,\)"),
        ("digits-mlp", (784,), {}, "64 inputs of a digit for digits-mlp; got 784"),
        ("mlp", (), {}, r"sizes >= 1 and classes >= 1; got \(\) and 10"),
        ("mlp", (3, 0), {}, r"got \(3, 0\)"),
        ("mlp", (3,), {"widths": (4, 0)}, r"width >= 1; got widths \(4, 0\)"),
        ("keskar-f2", (3,), {"depth": 0}, r"depth >= 1.*got widths \(\)"),
        ("keskar-f2", (3,), {"width": 0}, r"width >= 1; got widths \(0, 0, 0, 0, 0\)"),
        ("keskar-c1", IMAGE, {"width": 0}, "width, a factor on all hidden widths, to be positive; got 0"),
        ("keskar-c2", IMAGE, {"width": math.inf}, "got inf"),
        ("vgg9", IMAGE, {"width": math.nan}, "got nan"),
        ("vgg9", IMAGE, {"conv_dropout": False}, "options of vgg9 among: width; got conv_dropout"),
        ("keskar-c2", IMAGE, {"depth": 3, "widths": 1}, "among: conv_dropout, width; got depth, widths"),
        ("keskar-c1", IMAGE, {"colour": 1}, "options of keskar-c1 among: width; got colour"),
        ("keskar-f1", (784,), {"depth": 1}, "options of keskar-f1 among: width; got depth"),
        ("digits-mlp", (64,), {"width": 1}, "options of digits-mlp among: none; got width"),
        ("mlp", (3,), {"widths": "wide"}, "options of mlp of the right kinds"),
        ("mlp", (3,), {"width": 1}, "options of mlp among: widths, batchnorm; got width"),
        ("char-transformer", (8, 8), {}, r"of shape \(T,\), for char-transformer; got \(8, 8\)"),
        ("char-transformer", (8,), {"width": 6}, "width a multiple of heads; got 6, 2 and 4"),
        ("char-transformer", (8,), {"depth": 0}, "width, depth and heads >= 1, .*; got 64, 0 and 4"),
        ("char-transformer", (8,), {"length": 8}, "options of char-transformer among: width, depth, heads; got length"),
    ],
)
def test_refusals(name, shape, options, message):
    with pytest.raises(ShapeError, match=message):
        build(name, shape, 10, **options)


def test_no_classes_and_no_scheme():
    with pytest.raises(ShapeError, match=r"classes >= 1; got .* and 0"):
        build("mlp", (3,), 0)
    with pytest.raises(ShapeError, match="'pytorch' or 'glorot'; got 'he'"):
        initialised(lambda: nn.Linear(2, 2), seed=0, scheme="he")
