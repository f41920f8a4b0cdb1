"""Families of layers: normalised, with weights made of others, recurrent, attending."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from families import CLASSES, COUNT, Case, classified, family, numbers, trained
from networks import labels
from torch import nn
from torch.nn.utils import parametrizations, prune, rnn

from sharpness import cross_entropy

WORDS, LENGTH = 11, 5  # of a language of tokens 0 (padding), 1, …, and of its sentences
IGNORED = -100

NORMS: dict[str, Callable[[], nn.Module]] = {
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm": lambda: nn.LayerNorm([4, 4, 4]),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance norm with running statistics": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "RMS norm": lambda: nn.RMSNorm([4, 4, 4]),
    "local response norm": lambda: nn.LocalResponseNorm(3, alpha=0.5),
}


def normalised(norm: str) -> Case:
    features = nn.Conv2d(1, 4, 3, padding=1), NORMS[norm](), nn.GELU(), nn.AvgPool2d(2), nn.Flatten()
    return classified(trained(nn.Sequential(*features, nn.Linear(16, CLASSES)), 1, 4, 4), 1, 4, 4)


for _norm in NORMS:
    family(_norm, _norm)(normalised)


@family("dropout")
def dropout() -> Case:
    features = nn.Conv2d(1, 3, 3), nn.Dropout2d(0.3), nn.SELU(), nn.FeatureAlphaDropout(0.3), nn.Flatten()
    head = nn.Dropout(0.5), nn.Linear(12, 4), nn.Tanh(), nn.AlphaDropout(0.3), nn.Linear(4, CLASSES)
    return classified(nn.Sequential(*features, *head), 1, 4, 4)


# ---- weights made of others ---------------------------------------------------------------------------------------


class WeightNormed(nn.Module):
    """A layer's function at the weight g·v/‖v‖, with the layer's own bias, g and v."""

    def __init__(self, layer: nn.Module, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.bias, self.g, self.v = layer.parameters()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norms = self.v.flatten(1).norm(dim=1).reshape(self.g.shape)
        return self.function(x, self.g * self.v / norms, self.bias)


def reparametrised(norm: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    conv, head = norm(nn.Conv1d(2, 3, 3)), norm(nn.Linear(6, CLASSES))
    return trained(nn.Sequential(conv, nn.Tanh(), nn.Flatten(), head), 2, 4)


@family("weight norm, old", nn.utils.weight_norm)
@family("weight norm, new", parametrizations.weight_norm)
def weight_norm(norm: Callable[[nn.Module], nn.Module]) -> Case:
    conv, *between, head = model = reparametrised(norm)
    plain = nn.Sequential(WeightNormed(conv, F.conv1d), *between, WeightNormed(head, F.linear))
    return classified(model, 2, 4, plain=plain)


@family("spectral norm, old", nn.utils.spectral_norm)
@family("spectral norm, new", parametrizations.spectral_norm)
@family("orthogonal weights", lambda layer: parametrizations.orthogonal(layer, orthogonal_map="matrix_exp"))
@family("pruned", lambda layer: prune.l1_unstructured(layer, "weight", 0.5))
def reparametrised_by(norm: Callable[[nn.Module], nn.Module]) -> Case:
    return classified(reparametrised(norm), 2, 4)


# ---- sequences ----------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A classifier of sequences by the states of a recurrent network at their ends."""

    def __init__(self, kind: type[nn.RNNBase], layers: int, **options: Any) -> None:
        super().__init__()
        self.states = kind(2, 3, layers, batch_first=True, **options)
        self.head = nn.Linear(6 if options.get("bidirectional") else 3, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.states(x)[0][:, -1])


class Packed(Recurrent):
    """The same for sequences of several lengths."""

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.states(packed)[1][-1])


@family("LSTM", nn.LSTM, 2, {"dropout": 0.5, "bidirectional": True})
@family("GRU", nn.GRU, 1, {})
def recurrent(kind: type[nn.RNNBase], layers: int, options: dict[str, Any]) -> Case:
    return classified(Recurrent(kind, layers, **options), LENGTH, 2)


@family("GRU of packed sequences")
def packed() -> Case:
    return Case(
        Packed(nn.GRU, 1), cross_entropy, (numbers(COUNT, LENGTH, 2), 1 + torch.arange(COUNT) % 5, labels(COUNT))
    )


def sentences() -> dict[str, torch.Tensor]:
    """Tokens, which of them are no padding, and the same tokens as targets."""
    tokens = torch.randint(1, WORDS, (COUNT, LENGTH), generator=torch.Generator().manual_seed(2))
    lengths = 2 + torch.arange(COUNT) % (LENGTH - 1)
    mask = torch.arange(LENGTH) < lengths[:, None]
    targets = tokens.masked_fill(~mask, IGNORED)
    return {"input_ids": tokens * mask, "attention_mask": mask.long(), "labels": targets}


class TiedLanguageModel(nn.Module):
    """The next token from the mean of those so far, by one matrix at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(WORDS, 4, padding_idx=0), nn.Linear(4, 4)
        self.head = nn.Linear(4, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.embed(tokens)
        so_far = embedded.cumsum(1) / torch.arange(1, LENGTH, device=tokens.device)[:, None]
        return self.head(embedded + torch.tanh(self.mix(so_far))).transpose(1, 2)


@family("tied weights, ignored targets")
def tied() -> Case:
    rows = sentences()
    whole = rows["input_ids"][:, :-1], rows["labels"][:, 1:]
    return Case(TiedLanguageModel(), nn.CrossEntropyLoss(), whole, weight=lambda batch: (batch[1] != IGNORED).sum())


class Attending(nn.Module):
    """A classifier of padded sequences by attention, whose mean over the positions has the padded ones in it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part, nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
        if isinstance(self.part, nn.MultiheadAttention):
            mixed, _ = self.part(x, x, x, key_padding_mask=padded, need_weights=False)
        else:
            mixed = self.part(x, src_key_padding_mask=padded)
        return self.head(mixed.mean(1))


@family("multi-head attention with padding", lambda: nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True))
@family(
    "transformer encoder with padding",
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 2),
)
def attending(part: Callable[[], nn.Module]) -> Case:
    padded = sentences()["attention_mask"] == 0
    return Case(Attending(part()), cross_entropy, (numbers(COUNT, LENGTH, 4), padded, labels(COUNT)))


TURNS = torch.polar(torch.ones(2), torch.tensor([0.5, 2.0]))


class Rotating(nn.Module):
    """Pairs of features turned by constant angles: as products with complex numbers, or written out."""

    def __init__(self, layers: nn.ModuleList, *, written_out: bool) -> None:
        super().__init__()
        self.layers, self.written_out = layers, written_out
        self.register_buffer("turns", None if written_out else TURNS.clone(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.layers
        pairs = first(x).unflatten(1, (2, 2))
        if self.written_out:
            a, b = pairs.unbind(2)
            turned = torch.stack([a * TURNS.real - b * TURNS.imag, a * TURNS.imag + b * TURNS.real], 2)
        else:
            turned = torch.view_as_real(torch.view_as_complex(pairs) * self.turns)
        return second(torch.tanh(turned.flatten(1)))


@family("complex constants")
def rotating() -> Case:
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, CLASSES)])
    return classified(Rotating(layers, written_out=False), 4, plain=Rotating(layers, written_out=True))
