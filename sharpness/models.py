"""The models that recipes train: Keskar et al.'s networks, VGG-9, plain multilayer perceptrons and a transformer.

Every network gives logits: the softmax belongs to the loss. Batch norm is PyTorch's layer, with running statistics;
Keskar et al.'s released code normalises by the statistics of the batch at hand, also when it evaluates. That code is
https://github.com/keskarnitish/large-batch-training, ``network_zoo.py``: "released code" below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from sharpness.errors import ShapeError
from sharpness.random import derive_seed, preserved_random_state

Module = TypeVar("Module", bound=nn.Module)
CIFAR = (3, 32, 32)


def mlp(sizes: Sequence[int], *, batchnorm: bool = False) -> nn.Sequential:
    """A fully connected ReLU network; with ``batchnorm``, a batch-norm layer before every ReLU.

    >>> [type(layer).__name__ for layer in mlp([4, 3, 2], batchnorm=True)]
    ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers.append(nn.Linear(inputs, outputs))
        if batchnorm:
            layers.append(nn.BatchNorm1d(outputs))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def keskar_f1(inputs: int = 784, classes: int = 10, *, width: int = 512) -> nn.Sequential:
    """F1 of Keskar et al. 2017: 784 inputs, five batch-normalised ReLU layers of 512, 10 outputs; n = 1,462,794.

    The layers are those that accounts of the paper's appendix B.1 give; other sizes are ours.

    >>> sum(p.numel() for p in keskar_f1().parameters())
    1462794
    """
    return _mlp(inputs, classes, widths=5 * [width])


def wide_mlp(inputs: int, classes: int, *, width: int = 1024, depth: int = 5) -> nn.Sequential:
    """``depth`` batch-normalised ReLU layers of ``width`` neurons: for a table with very many classes.

    It plays the role of F2 of Keskar et al. 2017, their fully connected network for speech (TIMIT), and is not its
    copy: the layers of F2 are not known to us, these are ours. n = 6,628,304 for 360 inputs and 2,000 classes.

    >>> sum(p.numel() for p in wide_mlp(360, 2000).parameters())
    6628304
    """
    return _mlp(inputs, classes, widths=depth * [width])


def keskar_shallow(classes: int = 10, *, shape: Sequence[int] = CIFAR, width: float = 1.0) -> nn.Sequential:
    """C1 (10 classes) and C3 (100) of Keskar et al. 2017; n = 1,757,834 and 1,775,204.

    Twice: convolution 5×5 to 64 channels, batch norm, ReLU, max-pooling 3×3 with stride 2. Then flattened; fully
    connected layers of 384 and 192, each with batch norm, ReLU and dropout 0.5; ``classes`` outputs. All as in the
    released code. ``shape`` (sides: multiples of 4) and ``width``, a factor on all hidden widths, are ours.

    >>> sum(p.numel() for p in keskar_shallow().parameters())
    1757834
    """
    side = _side(shape, 4)
    channels, first, second = (_scaled(size, width) for size in (64, 384, 192))
    # "Same" pooling from 32 to 16 needs one row and column of padding. Ours comes before the image (PyTorch's
    # padding=1), as with Keras 1 on Theano, which the released code's README names; TensorFlow's comes after it.
    return nn.Sequential(
        *_convolution(3, channels, 5),
        nn.MaxPool2d(3, stride=2, padding=1),
        *_convolution(channels, channels, 5),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        *_dense(channels * (side // 4) ** 2, first, dropout=0.5),
        *_dense(first, second, dropout=0.5),
        nn.Linear(second, classes),
    )


def keskar_deep(
    classes: int = 10, *, shape: Sequence[int] = CIFAR, conv_dropout: bool = True, width: float = 1.0
) -> nn.Sequential:
    """C2 (10 classes) and C4 (100) of Keskar et al. 2017; n = 14,991,946 and 15,038,116.

    Five blocks of 3×3 convolutions, each with batch norm and ReLU: 2 to 64 channels, 2 to 128, 3 to 256, 3 to 512,
    3 to 512; max-pooling 2×2 after every block. Dropout 0.3 after the first convolution of the first block, 0.4 after
    every convolution of the others but the last of each. Then flattened, dropout 0.5; a fully connected layer of 512
    with batch norm, ReLU and dropout 0.5; ``classes`` outputs. All as in the released code. ``conv_dropout=False``,
    which leaves out the dropouts of 0.3 and 0.4 and no parameter, ``shape`` (sides: multiples of 32) and ``width``, a
    factor on all hidden widths, are ours.

    >>> sum(p.numel() for p in keskar_deep().parameters())
    14991946
    """
    side = _side(shape, 32)
    *blocks, hidden = (_scaled(size, width) for size in (64, 128, 256, 512, 512, 512))
    return nn.Sequential(
        *_blocks(blocks, (2, 2, 3, 3, 3), (0.3, 0.4, 0.4, 0.4, 0.4) if conv_dropout else 5 * (0.0,)),
        nn.Flatten(),
        nn.Dropout(0.5),
        *_dense(blocks[-1] * (side // 32) ** 2, hidden, dropout=0.5),
        nn.Linear(hidden, classes),
    )


def vgg9(classes: int = 10, *, shape: Sequence[int] = CIFAR, width: float = 1.0) -> nn.Sequential:
    """VGG-9 with batch norm, the network of Li et al. 2018 for small and large batches; n = 2,789,706 for 10 classes.

    Three blocks of 3×3 convolutions, each with batch norm and ReLU: 2 to 64 channels, 2 to 128, 3 to 256; max-pooling
    2×2 after every block. Then flattened; a fully connected layer of 256 with batch norm and ReLU; ``classes``
    outputs. All as in https://github.com/tomgoldstein/loss-landscape, ``cifar10/models/vgg.py``. ``shape`` (sides:
    multiples of 8), ``width``, a factor on all hidden widths, and other numbers of classes are ours.

    >>> sum(p.numel() for p in vgg9().parameters())
    2789706
    """
    side = _side(shape, 8)
    *blocks, hidden = (_scaled(size, width) for size in (64, 128, 256, 256))
    convolutions, dense = _blocks(blocks, (2, 2, 3), 3 * (0.0,)), _dense(blocks[-1] * (side // 8) ** 2, hidden)
    return nn.Sequential(*convolutions, nn.Flatten(), *dense, nn.Linear(hidden, classes))


def char_transformer(
    classes: int = 65, *, shape: Sequence[int] = (64,), width: int = 64, depth: int = 2, heads: int = 4
) -> CharTransformer:
    """A small language model: each of T characters is predicted from itself and those before it; n = 112,577.

    ``classes`` is the size of the vocabulary, ``shape`` is (T,): inputs (N, T) of whole numbers give logits
    (N, ``classes``, T), as cross-entropy takes them. The layers, which are GPT-2's (Radford et al. 2019) without
    dropout: embeddings of characters and of places, both learned; ``depth`` times, each on the layer-normalised sum of
    all before it and added to it, causal attention of ``heads`` heads and a GELU network of width 4·``width``; layer
    norm; a linear layer, whose weights are its own (GPT-2's are those of the embedding). Twice differentiable
    everywhere: no ReLU. Embeddings begin with a standard deviation of 0.1, all else as PyTorch draws it. This and the
    sizes are ours: with PyTorch's 1 and GPT-2's 0.02 a few hundred steps on a text came less far.

    >>> sum(p.numel() for p in char_transformer().parameters())
    112577
    """
    if len(shape) != 1:
        raise ShapeError(f"expected sequences of characters, of shape (T,), for char-transformer; got {tuple(shape)}")
    if min(width, depth, heads) < 1 or width % heads:
        raise ShapeError(
            f"expected width, depth and heads >= 1, width a multiple of heads; got {width}, {depth} and {heads}"
        )
    return CharTransformer(classes, shape[0], width, depth, heads)


class CharTransformer(nn.Module):
    """``char_transformer``, which describes it: characters (N, T), from 0, to logits (N, vocabulary, T)."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.1)
        self.layers = nn.Sequential(*(_DecoderLayer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        placed = self.token(characters) + self.position.weight[: characters.shape[1]]
        return self.head(self.norm(self.layers(placed))).transpose(1, 2)


class _DecoderLayer(nn.Module):
    """x + A(norm x) for causal attention A, then x + M(norm x) for a network M of one hidden layer; x is (N, T, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # each (N, heads, T, d / heads)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.network(self.between(x))


def initialised(build: Callable[[], Module], *, seed: int, scheme: str = "pytorch") -> Module:
    """A model built from the seed's own stream; the global generator is left as it was.

    ``scheme="pytorch"`` keeps what the layers draw. ``"glorot"`` draws weights of linear and convolutional layers anew
    from the same stream, uniform on ±√(6 / (fan in + fan out)), with zero biases: Keras' defaults, which Keskar et
    al.'s released code keeps (but some versions of Keras 1 leave the kernel out of a convolution's fan out).

    >>> a, b = (initialised(lambda: nn.Linear(2, 2), seed=1) for _ in range(2))
    >>> bool((a.weight == b.weight).all())
    True
    """
    if scheme not in ("pytorch", "glorot"):
        raise ShapeError(f"expected scheme to be 'pytorch' or 'glorot'; got {scheme!r}")
    with preserved_random_state():
        torch.manual_seed(derive_seed("initialise", seed=seed))
        model = build()
        for layer in model.modules() if scheme == "glorot" else ():
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return model


def build(name: str, shape: Sequence[int], classes: int, **options: object) -> nn.Module:
    """The model called ``name`` in ``MODELS`` for inputs of ``shape`` (of one, without batch) and so many classes.

    The options are the keywords of its builder; ``"mlp"`` has ``widths``, by default ``(128, 128)``, and
    ``batchnorm``, by default true. Fully connected networks take any shape and flatten images first. C1 and C3, like
    C2 and C4, differ only in the classes of their data. ``ShapeError`` if something does not fit.

    >>> [type(layer).__name__ for layer in build("mlp", (1, 2, 2), 3, widths=[5], batchnorm=False)]
    ['Flatten', 'Linear', 'ReLU', 'Linear']
    """
    if name not in MODELS:
        raise ShapeError(f"expected a model among {', '.join(MODELS)}; got {name!r}")
    parameters = signature(MODELS[name]).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "shape"]
    if unknown := [option for option in options if option not in allowed]:
        raise ShapeError(f"expected options of {name} among: {', '.join(allowed) or 'none'}; got {', '.join(unknown)}")
    if min(shape, default=0) < 1 or classes < 1:
        raise ShapeError(f"expected a shape of sizes >= 1 and classes >= 1; got {tuple(shape)} and {classes}")
    try:
        return MODELS[name](tuple(shape), classes, **options)
    except TypeError as error:
        raise ShapeError(f"expected options of {name} of the right kinds; got {options} ({error})") from error


def _mlp(inputs: int, classes: int, *, widths: Sequence[int] = (128, 128), batchnorm: bool = True) -> nn.Sequential:
    if min(widths, default=0) < 1:
        raise ShapeError(f"expected hidden layers (depth >= 1), each of a width >= 1; got widths {tuple(widths)}")
    return mlp([inputs, *widths, classes], batchnorm=batchnorm)


def _digits_mlp(inputs: int, classes: int) -> nn.Sequential:
    if inputs != 64:
        raise ShapeError(f"expected the 64 inputs of a digit for digits-mlp; got {inputs}. Choose mlp.")
    return _mlp(inputs, classes)


def _convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU()]


def _dense(inputs: int, outputs: int, *, dropout: float = 0.0) -> list[nn.Module]:
    layers = [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return [*layers, nn.Dropout(dropout)] if dropout else layers


def _blocks(widths: Sequence[int], depths: Sequence[int], rates: Sequence[float]) -> list[nn.Module]:
    """VGG's blocks: so many convolutions of a width, dropout between them where its rate is not 0, pooling."""
    layers: list[nn.Module] = []
    for channels, width, depth, rate in zip((3, *widths[:-1]), widths, depths, rates, strict=True):
        for place in range(depth):
            layers += _convolution(width if place else channels, width, 3)
            if rate and place < depth - 1:
                layers.append(nn.Dropout(rate))
        layers.append(nn.MaxPool2d(2))  # sides are even: no padding (Keras 1 on Theano shifts "same" windows by one)
    return layers


def _scaled(size: int, width: float) -> int:
    if not 0 < width < math.inf:
        raise ShapeError(f"expected width, a factor on all hidden widths, to be positive; got {width}")
    return max(1, round(size * width))


def _side(shape: Sequence[int], multiple: int) -> int:
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2] or shape[1] % multiple:
        raise ShapeError(f"expected inputs of shape (3, s, s), s a multiple of {multiple}; got {tuple(shape)}")
    return shape[1]


def _called(builder: Callable[..., Any]) -> Callable[..., nn.Module]:
    """The builder, called with a shape and classes."""

    @wraps(builder)  # keeps the signature, in which ``build`` finds the options
    def called(shape: Sequence[int], classes: int, **options: object) -> nn.Module:
        if "shape" in signature(builder).parameters:
            return builder(classes, shape=shape, **options)
        network = builder(math.prod(shape), classes, **options)
        return network if len(shape) == 1 else nn.Sequential(nn.Flatten(), *network)

    return called


# Each is called with the shape of one input, the number of classes and its options; ``build`` checks them first.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits-mlp": _called(_digits_mlp),
    "mlp": _called(_mlp),
    "keskar-f1": _called(keskar_f1),
    "keskar-f2": _called(wide_mlp),
    "keskar-c1": _called(keskar_shallow),
    "keskar-c2": _called(keskar_deep),
    "keskar-c3": _called(keskar_shallow),
    "keskar-c4": _called(keskar_deep),
    "vgg9": _called(vgg9),
    "char-transformer": _called(char_transformer),
}
