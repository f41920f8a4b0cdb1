"""The small models, losses and data of ``conditions``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING = 0  # the token that fills a sequence up
UNLABELLED = -100  # the target that PyTorch's ``ignore_index`` leaves out by default


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uniform(size: int, *, seed: int) -> Tensor:
    """Numbers in [0, 1), the same in every run."""
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module) -> nn.Module:
    """The module with random weights, the same in every run."""
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * normal(*parameter.shape, seed=seed))
    return module


def classes(examples: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Random inputs and labels of three classes."""
    labels = torch.randint(3, (examples,), generator=torch.Generator().manual_seed(101))
    return normal(examples, inputs, seed=100), labels


def classifier(inputs: int, *layers: nn.Module) -> nn.Module:
    """A small network of three classes, ``layers`` between its two linear ones."""
    return filled(nn.Sequential(nn.Linear(inputs, 5), *layers, nn.Tanh(), nn.Linear(5, 3)))


def sentences(examples: int, longest: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens and the tokens that follow them; at most ``longest`` of ``width`` are real, the rest is padding."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, Tokens.vocabulary, (examples, width + 1), generator=draw)
    lengths = torch.randint((longest + 1) // 2, longest + 1, (examples, 1), generator=draw)
    tokens = torch.where(torch.arange(width + 1) <= lengths, tokens, PADDING)
    return tokens[:, :-1], tokens[:, 1:]


class Tokens(nn.Module):
    """The next token from the mean of the embeddings so far; logits of shape (batch, vocabulary, width)."""

    vocabulary = 9

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(self.vocabulary, 4), nn.Linear(4, self.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        mean = self.embedding(tokens).cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        return self.head(torch.tanh(mean)).transpose(1, 2)


def real_tokens(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Σ losses of the tokens that are not padding, and their number."""
    real = tokens != PADDING
    return (F.cross_entropy(logits, tokens, reduction="none") * real).sum(), real.sum()


class TokenMean(nn.Module):
    """Their mean."""

    reduction = "mean"  # curvlinops asks for it

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        total, count = real_tokens(logits, tokens)
        return total / count


class OneUnused(nn.Module):
    """A linear classifier beside a layer that the forward pass never reaches."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(inputs, 3), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


class WeightNormed(nn.Module):
    """g · (v / ‖v‖) x for every row v of a weight, in elementary operations."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.length, self.direction = nn.Parameter(torch.empty(3, 1)), nn.Parameter(torch.empty(3, inputs))
        filled(self)

    def forward(self, inputs: Tensor) -> Tensor:
        norm = self.direction.square().sum(1, keepdim=True).sqrt()
        return inputs @ (self.length * self.direction / norm).T

    def by_library(self) -> nn.Module:
        """The same function by PyTorch's ``weight_norm``."""
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(*reversed(self.direction.shape), bias=False))
        weight = layer.parametrizations.weight
        with torch.no_grad():
            weight.original0.copy_(self.length)
            weight.original1.copy_(self.direction)
        return layer


class LowRank(nn.Module):
    """y = Wx + b + BAx with W frozen, A random, and b and B zero, as adapters and biases begin."""

    def __init__(self, inputs: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, 1)
        self.down, self.up = nn.Parameter(torch.empty(rank, inputs)), nn.Parameter(torch.empty(1, rank))
        filled(self)
        nn.init.zeros_(self.base.bias)
        nn.init.zeros_(self.up)
        self.base.weight.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + inputs @ self.down.T @ self.up.T


class Quadratic(nn.Module):
    """f(w) = ½ Σ dᵢ wᵢ², whose Hessian is diag(d), for every input; NaN where Σ wᵢ exceeds ``cliff``."""

    def __init__(self, curvature: Tensor, start: Tensor, cliff: float = torch.inf) -> None:
        super().__init__()
        self.register_buffer("curvature", curvature)
        self.weight, self.cliff = nn.Parameter(start), cliff

    def forward(self, inputs: Tensor) -> Tensor:
        value = 0.5 * (self.curvature * self.weight.square()).sum()
        return inputs * torch.where(self.weight.sum() > self.cliff, torch.nan, value)


def own_output(output: Tensor, _: Tensor) -> Tensor:
    """The losses of a model that returns them."""
    return output


class MeanOutput(nn.Module):
    """Their mean."""

    reduction = "mean"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002 - a loss's signature
        return output.mean()
