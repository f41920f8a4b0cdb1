"""Models as people bring them, tiny: what a caller has in hand, one function for each family of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from networks import labels, randn
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from sharpness import cross_entropy

COUNT = 12  # examples
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """What a caller has: a model in training mode, its loss and its data.

    ``whole`` is the data set as one batch, ``data`` the same in the form in which it is handed over. ``mean`` is f by
    plain PyTorch, a function of the model and the whole batch (default: the mean of ``loss``). ``chosen`` says in plain
    Python which parameters ``parameters`` chooses. ``plain`` is the module that plain PyTorch can differentiate twice,
    with the parameters of ``model`` in the same order: without wrappers, and with layers written out where PyTorch's
    own have no second derivative or a wrong one.
    """

    model: nn.Module
    loss: Callable[..., Any] | str
    whole: Any
    data: Any = None
    weight: Callable[[Any], Any] | None = None
    mean: Callable[..., torch.Tensor] | None = None
    parameters: str | Sequence[str] | None = None
    chosen: Callable[[str], bool] = lambda name: True
    plain: nn.Module | None = None

    def value(self, model: Callable[..., Any], whole: Any) -> torch.Tensor:
        """f of a model by plain PyTorch."""
        if self.mean is not None:
            return self.mean(model, **whole) if isinstance(whole, Mapping) else self.mean(model, *whole)
        assert callable(self.loss)
        return self.loss(model(*whole[:-1]), whole[-1]).mean()


FAMILIES: dict[str, Callable[[], Case]] = {}


def family(name: str, *arguments: Any) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Enter a function, called with these arguments, under this name."""

    def enter(make: Callable[..., Case]) -> Callable[..., Case]:
        FAMILIES[name] = partial(make, *arguments)
        return make

    return enter


def made(name: str, seed: int = 0) -> Case:
    """The family's case: its weights depend on the seed, its data do not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        case = FAMILIES[name]()
        case.model.train()
    return case


def numbers(*shape: int, key: str = "x") -> torch.Tensor:
    return randn(*shape, key=key, dtype=torch.float32)


def classified(model: nn.Module, *shape: int, **options: Any) -> Case:
    """A classifier of random inputs of this shape."""
    return Case(model, cross_entropy, (numbers(COUNT, *shape), labels(COUNT)), **options)


def trained(model: nn.Module, *shape: int) -> nn.Module:
    """The model after forward passes in training mode: running statistics and power iterations have moved."""
    for step in range(3):
        model.train()(1 + 2 * numbers(COUNT, *shape, key=f"step {step}"))
    return model


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, CLASSES))


class Residual(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in range(2))
        around = (nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.around = nn.Sequential(*around) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.norms[0](self.first(x)), inplace=True)
        return F.relu(self.norms[1](self.second(hidden)) + self.around(x))


def residual() -> nn.Module:
    stem = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU(inplace=True)
    body = Residual(2, 2, 1), Residual(2, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return trained(nn.Sequential(*stem, *body, nn.Linear(3, CLASSES)), 1, 6, 6)


# ---- parameters ---------------------------------------------------------------------------------------------------


@family("ResNet with batch norm")
def resnet() -> Case:
    x, y = numbers(COUNT, 1, 6, 6), labels(COUNT)
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    return Case(residual(), nn.CrossEntropyLoss(), (x, y), data=loader)


@family("a subset of the parameters")
def norms_and_head() -> Case:
    own = resnet()
    return replace(own, parameters=["*norms*", "7.*"], chosen=lambda name: "norms" in name or name.startswith("7."))


class Parts(nn.Module):
    """A network in which some weights are frozen and some not used."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.frozen, self.used = nn.Linear(2, 2), nn.Linear(4, 6), nn.Linear(6, 4)
        self.scale, self.shift = nn.Parameter(torch.rand(())), nn.Parameter(torch.zeros(2))
        self.head = nn.Linear(4, CLASSES)
        self.frozen.requires_grad_(False)
        self.head.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.scale * torch.tanh(self.used(self.frozen(x))))


@family("frozen and unused parameters")
def frozen_and_unused() -> Case:
    return classified(Parts(), 4)


@family("bfloat16", torch.bfloat16)
@family("float16", torch.float16)
def half(dtype: torch.dtype) -> Case:
    return classified(residual().to(dtype), 1, 6, 6)


# ---- losses, inputs and outputs -----------------------------------------------------------------------------------

CLASS_WEIGHTS = torch.tensor([0.25, 1.0, 3.0])  # whose sums are exact in float32


def weighted_mean(model: Callable[..., Any], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y, weight=CLASS_WEIGHTS.to(x))


@family("class weights, as a sum and its weight")
def class_weights() -> Case:
    def loss(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = F.cross_entropy(output, target, weight=CLASS_WEIGHTS, reduction="sum")
        return total, CLASS_WEIGHTS[target].sum()

    return replace(classified(mlp(), 4), loss=loss, mean=weighted_mean)


@family("class weights, as a mean")
def mean_by_class_weights() -> Case:
    own = replace(classified(mlp(), 4), loss=nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), mean=weighted_mean)
    return replace(own, weight=lambda batch: CLASS_WEIGHTS[batch[1]].sum())


@family("regression")
def regression() -> Case:
    return Case(mlp(), nn.MSELoss(), (numbers(COUNT, 4), numbers(COUNT, CLASSES, key="y")))


class Several(nn.Module):
    """Two inputs, and a dictionary of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)
        self.kind, self.size = nn.Linear(3, CLASSES), nn.Linear(3, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.left(a) * self.right(b))
        return {"kind": self.kind(hidden), "size": self.size(hidden)[:, 0]}


def both(output: dict[str, torch.Tensor], target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return cross_entropy(output["kind"], target[0]) + F.smooth_l1_loss(output["size"], target[1], reduction="none")


@family("several inputs and outputs")
def several() -> Case:
    whole = numbers(COUNT, 4, key="a"), numbers(COUNT, 4, key="b"), (labels(COUNT), numbers(COUNT, key="size"))
    return Case(Several(), both, whole, data=[whole])


class Keyed(nn.Module):
    """An MLP that takes its batch by names, the target too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, *, x: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@family("dictionary batches")
def dictionary() -> Case:
    whole = {"x": numbers(COUNT, 4), "kind": labels(COUNT)}

    def mean(model: Callable[..., Any], **batch: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(**batch), batch["kind"])

    return Case(Keyed(), lambda output, batch: cross_entropy(output, batch["kind"]), whole, data=[whole], mean=mean)


# ---- wrappers -----------------------------------------------------------------------------------------------------


class Steps(nn.Sequential):
    """Layers whose activations from the second on are computed again in the backward pass (None: are kept)."""

    def __init__(self, *layers: nn.Module, reentrant: bool | None) -> None:
        super().__init__(*layers)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self
        x = first(x)
        for layer in others:
            x = layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


@family("activation checkpointing, reentrant", True)
@family("activation checkpointing", False)
def checkpointed(reentrant: bool) -> Case:
    layers = mlp()
    return classified(Steps(*layers, reentrant=reentrant), 4, plain=Steps(*layers, reentrant=None))


def never(graph: Any, inputs: Any) -> Any:
    raise AssertionError("a model was compiled")


@family("compiled", lambda model: torch.compile(model, backend=never))
@family("compiled and data parallel", lambda model: nn.DataParallel(torch.compile(model, backend=never)))
@family("data parallel", nn.DataParallel)
def wrapped(wrap: Callable[[nn.Module], nn.Module]) -> Case:
    plain = residual()
    return classified(wrap(plain), 1, 6, 6, plain=plain)


@family("distributed data parallel")
def distributed() -> Case:
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return wrapped(nn.parallel.DistributedDataParallel)


@family("compiled inside", lambda part: torch.compile(part, backend=never))
@family("data parallel inside", nn.DataParallel)
def wrapped_inside(wrap: Callable[[nn.Module], nn.Module]) -> Case:
    features, head = mlp(), nn.Linear(CLASSES, CLASSES)
    return classified(nn.Sequential(wrap(features), head), 4, plain=nn.Sequential(features, head))


@family("compiled in place")
def compiled_in_place() -> Case:
    features, head = mlp(), nn.Linear(CLASSES, CLASSES)
    plain = nn.Sequential(nn.Sequential(*features), head)
    features.compile(backend=never)
    return classified(nn.Sequential(features, head), 4, plain=plain)
