"""A training run in progress: its data, and the state that a kill must not cost."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from sharpness.checkpoints import Minimizer
from sharpness.errors import CheckpointError, ShapeError
from sharpness.objective import BatchLoss, Problem
from sharpness.random import derive_seed, generator
from sharpness.training.augment import as_images, augmented
from sharpness.training.plan import TrainingPlan
from sharpness.training.step import mini_batch_step, part_sizes


@dataclass(frozen=True)
class Data:
    """The training tensors where they are used."""

    inputs: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, problem: Problem, device: torch.device) -> Data:
        given = problem.train
        if not (isinstance(given, tuple) and len(given) == 2 and all(isinstance(t, torch.Tensor) for t in given)):
            raise ShapeError(
                "expected training data as a pair (inputs, targets) of tensors; "
                f"got {type(given).__name__}. Training shuffles by index, so it holds the data in memory."
            )
        inputs, targets = given
        return cls(inputs.to(device), targets.to(device))

    def check(self, plan: TrainingPlan) -> None:
        """Refuse inputs that the plan cannot augment or perturb."""
        if plan.augment:
            as_images(self.inputs[:1])
        if plan.adversarial and not self.inputs.is_floating_point():
            raise ShapeError(
                f"expected floating-point inputs for adversarial = {plan.adversarial!r}; got {self.inputs.dtype}, "
                "in which a loss has no gradient"
            )

    def batches(self, seed: int, epoch: int, size: int) -> list[torch.Tensor]:
        """The epoch's mini-batches as index tensors; a single example left over joins the one before it."""
        order = torch.randperm(len(self.targets), generator=generator("batches", epoch, seed=seed))
        sizes = part_sizes(len(order), size)  # as ghost parts: batch norm cannot train on an example alone
        return list(order.to(self.inputs.device).split(sizes))


@dataclass
class Run:
    """Model, optimizer and the number of epochs behind them: all that a run in progress is."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    plan: TrainingPlan
    seed: int
    epoch: int = 0

    @classmethod
    def begin(cls, model: nn.Module, plan: TrainingPlan, seed: int, device: torch.device) -> Run:
        own = copy.deepcopy(model).to(device)
        return cls(own, _optimizer(plan, [p for p in own.parameters() if p.requires_grad]), plan, seed)

    def one_epoch(self, loss: BatchLoss, data: Data, rate: float) -> None:
        """One pass over the data; its random numbers depend on seed, epoch and mini-batch alone."""
        torch.manual_seed(derive_seed("dropout", self.epoch, seed=self.seed))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        step = mini_batch_step(self.plan, self.model, self.optimizer, loss)
        size = self.plan.examples_per_batch(len(data.targets))
        for number, index in enumerate(data.batches(self.seed, self.epoch, size)):
            inputs = data.inputs[index]
            if self.plan.augment:
                draw = generator("augment", self.epoch, number, seed=self.seed)
                inputs = augmented(self.plan.augment, inputs, draw)
            step((inputs, data.targets[index]))
        self.epoch += 1

    def minimizer(self, metadata: Mapping[str, Any] | None) -> Minimizer:
        """Where the run is."""
        facts = {"plan": asdict(self.plan), "seed": self.seed, "epochs": self.epoch}
        return Minimizer.of(self.model, {**(metadata or {}), **facts})

    def state(self, history: Mapping[str, np.ndarray]) -> bytes:
        """The run and the history of its epochs as a safetensors file."""
        state = self.optimizer.state_dict()["state"]
        moments = {
            f"optimizer.{i}.{name}": t for i, entry in state.items() for name, t in entry.items() if t is not None
        }
        weights = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        past = {f"history.{name}": torch.as_tensor(values) for name, values in history.items()}
        tensors = {name: t.detach().clone().contiguous() for name, t in {**weights, **moments, **past}.items()}
        return save(tensors, {"run": json.dumps({"epoch": self.epoch, **self._identity})})

    @property
    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in, as JSON holds it."""
        return json.loads(json.dumps({"plan": asdict(self.plan), "seed": self.seed}))

    def load(self, path: Path) -> dict[str, np.ndarray]:
        """Take up the run in ``path``; return the history of its epochs."""
        try:
            return self._take_up(path.read_bytes())
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"expected the state of this very training run in {path}; {error}. Remove the file to begin anew."
            ) from error

    def _take_up(self, content: bytes) -> dict[str, np.ndarray]:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        known = json.loads(header["__metadata__"]["run"])
        if {"plan": {**_DEFAULTS, **known["plan"]}, "seed": known["seed"]} != self._identity:
            raise ValueError("it belongs to a run of another plan or seed")
        # clones: tensors in a buffer begin anywhere, and a product's last bits can depend on alignment
        tensors = {name: t.clone() for name, t in load(content).items()}
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                entries.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        self.epoch = known["epoch"]
        return {n.removeprefix("history."): t.numpy() for n, t in tensors.items() if n.startswith("history.")}


# A checkpoint of an earlier version lacks the fields that came since; their defaults change nothing.
_DEFAULTS = json.loads(json.dumps({f.name: f.default for f in fields(TrainingPlan) if f.default is not MISSING}))


def _optimizer(plan: TrainingPlan, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if plan.optimizer == "adam":
        return torch.optim.Adam(parameters, plan.learning_rate, weight_decay=plan.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters,
        plan.learning_rate,
        momentum=plan.momentum,
        nesterov=plan.nesterov,
        weight_decay=plan.weight_decay,
        fused=True,
    )
