"""Families of models of the transformers library, tiny and with random weights."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import CLASSES, COUNT, Case, classified, family
from layer_families import IGNORED, LENGTH, WORDS, sentences
from libraries import library
from networks import labels
from torch import nn

from sharpness import cross_entropy

SIZES = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6}
TEXT = {"vocab_size": WORDS, "max_position_embeddings": LENGTH, "pad_token_id": 0, **SIZES}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def transformers() -> ModuleType:
    """The library, if it is installed."""
    return library("transformers")


def handed_over(rows: dict[str, torch.Tensor]) -> list[Any]:
    """The rows in two batches, as a tokenizer and its collator hand them over."""
    halves = (slice(0, 7), slice(7, COUNT))
    return [transformers().BatchEncoding({name: t[half] for name, t in rows.items()}) for half in halves]


def language_model(model: nn.Module) -> Case:
    """A model of the next token that computes its loss itself, over the tokens that are no padding."""
    rows = sentences()
    weight: Callable[[Any], Any] = lambda batch: (batch["labels"][:, 1:] != IGNORED).sum()  # noqa: E731

    def mean(model: Callable[..., Any], **batch: torch.Tensor) -> torch.Tensor:
        targets = batch.pop("labels")
        return F.cross_entropy(model(**batch).logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    return Case(model, "model", rows, data=handed_over(rows), weight=weight, mean=mean)


def gpt2_model() -> nn.Module:
    config = transformers().GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=4, n_layer=2, n_head=2, n_inner=6, **ENDS
    )
    return transformers().GPT2LMHeadModel(config)


@family("GPT-2")
def gpt2() -> Case:
    return language_model(gpt2_model())


@family("GPT-2 with activation checkpointing")
def checkpointed_gpt2() -> Case:
    model = gpt2_model()
    model.gradient_checkpointing_enable()
    return language_model(model)


@family("LoRA on GPT-2", False)
@family("LoRA on GPT-2 with activation checkpointing", True)
def adapted_gpt2(checkpointing: bool) -> Case:
    model = gpt2_model()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    peft = pytest.importorskip("peft", reason="the adapters are those of peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.2, fan_in_fan_out=True)
    return language_model(peft.get_peft_model(model, config))


@family("Llama")
def llama() -> Case:
    own = language_model(transformers().LlamaForCausalLM(transformers().LlamaConfig(num_key_value_heads=1, **TEXT)))

    def loss(output: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        targets = batch["labels"][:, 1:]
        total = F.cross_entropy(output.logits[:, :-1].transpose(1, 2), targets, reduction="sum")
        return total, (targets != IGNORED).sum()

    return Case(own.model, loss, own.whole, data=own.data, mean=own.mean)


@family("BERT, classification")
def bert_classifier() -> Case:
    config = transformers().BertConfig(num_labels=CLASSES, **TEXT)
    rows = {**sentences(), "labels": labels(COUNT)}

    def mean(model: Callable[..., Any], **batch: torch.Tensor) -> torch.Tensor:
        targets = batch.pop("labels")
        return F.cross_entropy(model(**batch).logits, targets)

    model = transformers().BertForSequenceClassification(config)
    return Case(model, "model", rows, data=handed_over(rows), mean=mean)


@family("BERT, masked tokens")
def bert_masked() -> Case:
    rows = sentences()
    hidden = torch.arange(LENGTH) == (torch.arange(COUNT) % 2)[:, None]
    rows = {**rows, "labels": rows["labels"].masked_fill(~hidden, IGNORED)}
    rows["input_ids"] = rows["input_ids"].masked_fill(hidden, WORDS - 1)

    def mean(model: Callable[..., Any], **batch: torch.Tensor) -> torch.Tensor:
        targets = batch.pop("labels")
        return F.cross_entropy(model(**batch).logits.transpose(1, 2), targets)

    model = transformers().BertForMaskedLM(transformers().BertConfig(**TEXT))
    counted: Callable[[Any], Any] = lambda batch: (batch["labels"] != IGNORED).sum()  # noqa: E731
    return Case(model, "model", rows, data=handed_over(rows), weight=counted, mean=mean)


@family("ViT")
def vision_transformer() -> Case:
    config = transformers().ViTConfig(image_size=4, patch_size=2, num_channels=1, num_labels=CLASSES, **SIZES)
    own = classified(transformers().ViTForImageClassification(config), 1, 4, 4)
    return Case(own.model, lambda output, target: cross_entropy(output.logits, target), own.whole)
