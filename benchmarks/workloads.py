"""What the benchmarks measure on: a model in eval mode, its weights, its loss and its data."""

from __future__ import annotations

import argparse
import copy
import math
import runpy
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from report import HERE, Unavailable
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sharpness as sh
from sharpness.data import load
from sharpness.errors import DataError
from sharpness.models import initialised, keskar_f1, mlp
from sharpness.random import generator

SEED = 0
QUICK = 8  # the share of the examples, and of a batch, that ``--quick`` leaves
QUICK_STEPS = 100  # the share of the training steps
MEAN_LOSS = nn.CrossEntropyLoss()  # for peers and plain PyTorch; ours takes the losses of each example

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """A model with weights, and the data over which its loss is averaged."""

    name: str
    module: nn.Module
    inputs: Tensor
    targets: Tensor
    batch_size: int  # examples that everybody processes at once
    about: str  # which weights and which data

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())

    @property
    def size(self) -> int:
        """n."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def one_batch(self) -> bool:
        return self.batch_size >= len(self.inputs)

    @property
    def batches(self) -> list[Batch]:
        return list(zip(self.inputs.split(self.batch_size), self.targets.split(self.batch_size), strict=True))

    def copy(self, *, dtype: torch.dtype | None = None, batch_size: int | None = None) -> Workload:
        """The same with a model of its own, in another precision or in other batches."""
        module = copy.deepcopy(self.module).to(dtype=dtype)
        inputs = self.inputs.to(dtype) if dtype and self.inputs.is_floating_point() else self.inputs
        return replace(self, module=module, inputs=inputs, batch_size=batch_size or self.batch_size)

    def objective(self) -> tuple[sh.Objective, Tensor]:
        """f and θ as this package makes them; chunks are its own choice unless everybody works in batches."""
        chunk_size = None if self.one_batch else self.batch_size
        return sh.Objective.from_module(
            self.module, sh.cross_entropy, (self.inputs, self.targets), chunk_size=chunk_size
        )

    def average(self, of_batch: Callable[[Batch], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The mean over all examples of what ``of_batch`` gives as the mean over a batch."""
        if self.one_batch:
            return of_batch((self.inputs, self.targets))
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        for batch in self.batches:
            for sums, part in zip(total, of_batch(batch), strict=True):
                sums.add_(part.detach(), alpha=len(batch[0]) / len(self.inputs))
        return tuple(total)

    def gradient(self) -> tuple[Tensor, ...]:
        """The unit G: one gradient in plain PyTorch."""
        return self.average(lambda batch: torch.autograd.grad(self.mean_loss(batch), self.parameters))

    def mean_loss(self, batch: Batch) -> Tensor:
        return MEAN_LOSS(self.module(batch[0]), batch[1])

    def describe(self) -> str:
        """Sizes, weights and data, with how far from a minimum the weights are."""
        with torch.no_grad():
            loss = float(sum(self.mean_loss(batch) * len(batch[0]) for batch in self.batches)) / len(self.inputs)
        slope = math.sqrt(sum(float(part.square().sum()) for part in self.gradient()))
        return f"n = {self.size:,}, N = {len(self.inputs):,}; {self.about}; loss {loss:.3g}, ‖g‖ {slope:.2g}"


def make(name: str, args: argparse.Namespace) -> Workload:
    """The workload called ``name``, with its trained weights from the cache where they are there."""
    return ready(FACTORIES[name](args), args)


def ready(workload: Workload, args: argparse.Namespace) -> Workload:
    """In eval mode, on the device, cut to an eighth where it has to be quick."""
    share = QUICK if args.quick else 1
    count, batch_size = (max(1, number // share) for number in (len(workload.inputs), workload.batch_size))
    inputs, targets = workload.inputs[:count].to(args.device), workload.targets[:count].to(args.device)
    module = workload.module.eval().to(args.device)
    return replace(workload, module=module, inputs=inputs, targets=targets, batch_size=batch_size)


def digits(args: argparse.Namespace, hidden: tuple[int, ...] = (128, 128), *, batchnorm: bool = False) -> Workload:
    """All 1,797 digits and a ReLU network, by default without batch norm."""
    data = load("digits")
    inputs, targets = (torch.cat(parts) for parts in zip(data.train, data.test, strict=True))
    module = initialised(partial(mlp, [64, *hidden, 10], batchnorm=batchnorm), seed=SEED)
    weights = _weights(
        "digits-mlp-batchnorm" if batchnorm else "digits-mlp", module, _epochs(inputs, targets, 64), 60 * 29, args
    )
    return Workload("digits-mlp", module, inputs, targets, len(inputs), f"{weights}, all digits")


def images(
    name: str, examples: int, args: argparse.Namespace, *, build: Callable[[], nn.Module] = keskar_f1, epochs: int = 5
) -> Workload:
    """The first MNIST images and a fully connected network trained on all of them."""
    module = initialised(build, seed=SEED)
    inputs, targets, about = torch.empty(0), torch.empty(0), ""
    for folder in args.data:
        with suppress(DataError):
            inputs, targets = load("mnist", folder).train
            kind = "f1" if build is keskar_f1 else name
            weights = _weights(kind, module, _epochs(inputs, targets, 256), epochs * 235, args)
            about = f"{weights} (on 60,000 images), MNIST"
            break
    else:
        draw = generator("images", seed=SEED)
        inputs, targets = torch.rand(60_000, 784, generator=draw), torch.randint(10, (60_000,), generator=draw)
        about = "untrained, random images in place of MNIST, which was not found"
    return Workload(name, module, inputs[:examples], targets[:examples], examples, about)


def resnet20(args: argparse.Namespace) -> Workload:
    """A ResNet-20 trained elsewhere, 512 images of CIFAR-10, in batches of 128."""
    problem: dict[str, Any] = runpy.run_path(str(HERE.parent / "tests" / "problems" / "resnet20.py"))
    checkpoint = _find("checkpoints/resnet20-12fca82f.th", args)
    module = initialised(problem["ResNet20"], seed=SEED)
    if not args.untrained:
        module.load_state_dict(sh.load_checkpoint(checkpoint))
    for folder in args.data:
        with suppress(DataError):
            raw, targets = load("cifar10", folder).train
            mean, deviation = (torch.tensor(problem[key]).view(3, 1, 1) for key in ("MEAN", "DEVIATION"))
            about = f"{'untrained' if args.untrained else 'akamaster/pytorch_resnet_cifar10'}, CIFAR-10"
            return Workload("resnet20", module, (raw[:512] - mean) / deviation, targets[:512], 128, about)
    raise Unavailable(f"CIFAR-10 in its binary version is in none of the folders {args.data}")


def transformer(args: argparse.Namespace) -> Workload:
    """A small GPT on Shakespeare's characters: one batch of 64 × 64 tokens."""
    text = _find("text/tinyshakespeare.txt", args).read_text()
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(character) for character in text])
    module = initialised(partial(GPT, len(characters)), seed=SEED)

    def passages(*key: str) -> Iterator[Batch]:
        draw = generator(*key, seed=SEED)
        while True:
            starts = torch.randint(len(tokens) - GPT.context, (64, 1), generator=draw) + torch.arange(GPT.context)
            yield tokens[starts], tokens[starts + 1]

    weights = _weights("transformer", module, passages("train"), 200, args)
    inputs, targets = next(passages("measure"))
    return Workload("transformer", module, inputs, targets, len(inputs), f"{weights}, tiny Shakespeare")


FACTORIES: dict[str, Callable[[argparse.Namespace], Workload]] = {
    "digits-mlp": digits,
    "f1-1000": partial(images, "f1-1000", 1_000),
    "f1-10000": partial(images, "f1-10000", 10_000),
    "resnet20": resnet20,
    "transformer": transformer,
    "wide-mlp": partial(
        images, "wide-mlp", 10_000, build=partial(mlp, [784, 2400, 2400, 1000, 10], batchnorm=True), epochs=1
    ),
}
ALL = ("digits-mlp", "f1-1000", "f1-10000", "resnet20", "transformer")


class GPT(nn.Module):
    """A pre-norm transformer; logits have the shape (batch, vocabulary, context), as cross-entropy takes them."""

    width, depth, heads, context = 128, 4, 4, 64

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, self.width), nn.Embedding(self.context, self.width)
        self.layers = nn.Sequential(*(Layer(self.width, self.heads) for _ in range(self.depth)))
        self.norm, self.head = nn.LayerNorm(self.width), nn.Linear(self.width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.layers(self.token(tokens) + self.position(places)))).transpose(1, 2)


class Layer(nn.Module):
    """Causal attention and a GELU network, each on a normalised residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*mixed.unbind(), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.network(self.between(x))


def _epochs(inputs: Tensor, targets: Tensor, size: int) -> Iterator[Batch]:
    """Shuffled batches for ever."""
    draw = generator("batches", seed=SEED)
    while True:
        for chosen in torch.randperm(len(inputs), generator=draw).split(size):
            yield inputs[chosen], targets[chosen]


def _weights(name: str, module: nn.Module, batches: Iterator[Batch], steps: int, args: argparse.Namespace) -> str:
    """Give ``module`` the weights after ``steps`` steps of Adam, trained or from the cache, and say so."""
    if args.untrained:
        return "untrained"
    if args.quick:
        steps = max(2, steps // QUICK_STEPS)
    cache = HERE / ".cache" / f"{name}-{steps}.safetensors"
    if not cache.exists():
        cache.parent.mkdir(exist_ok=True)
        _train(module, batches, steps)
        save_file(module.state_dict(), cache)
    module.load_state_dict(load_file(cache))
    return f"{steps:,} steps of Adam"


def _train(module: nn.Module, batches: Iterator[Batch], steps: int) -> None:
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    module.train()
    for _, (inputs, targets) in zip(range(steps), batches, strict=False):
        optimiser.zero_grad()
        MEAN_LOSS(module(inputs), targets).backward()
        optimiser.step()


def _find(path: str, args: argparse.Namespace) -> Path:
    found = next((Path(folder) / path for folder in args.data if (Path(folder) / path).exists()), None)
    if found is None:
        raise Unavailable(f"{path} is in none of the folders {args.data}")
    return found
