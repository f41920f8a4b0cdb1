"""Training to a minimizer: resumable, and bit for bit the same however often it is interrupted."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from sharpness.checkpoints import Minimizer
from sharpness.errors import CheckpointError, NonFiniteError, ShapeError
from sharpness.files import write_atomically
from sharpness.journal import PENDING, Journal, MemoryJournal
from sharpness.objective import BatchLoss, Objective, Problem, exact_arithmetic
from sharpness.params import Point
from sharpness.progress import Progress, silent
from sharpness.random import derive_seed, generator, preserved_random_state
from sharpness.records import History

SECONDS_BETWEEN_CHECKPOINTS = 5.0
COLUMNS = ("loss", "accuracy", "learning_rate")


@dataclass(frozen=True)
class TrainingPlan:
    """How one minimizer is trained.

    Args:
        batch_size: examples in a mini-batch, or below 1 a fraction of the training data.
        epochs: most passes over the data.
        optimizer: ``"adam"`` or ``"sgd"``.
        learning_rate: at the start.
        momentum, nesterov: of SGD.
        weight_decay: the optimizer's own (L2 in the gradient).
        schedule: ``"constant"``, ``"cosine"`` (to 0 over ``epochs``) or ``"step"`` (times ``step_factor`` at each of
            ``milestones``).
        patience: stop when the training loss has not improved for so many epochs; 0: only at ``epochs``.
        improvement: the least relative decrease of the best training loss that counts as one.
        resolution: the least decrease in nats that counts as one. A network that fits every example lowers a mean
            cross-entropy for ever, by ever smaller amounts.
    """

    batch_size: int | float
    epochs: int
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    step_factor: float = 0.1
    patience: int = 0
    improvement: float = 1e-3
    resolution: float = 0.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} = {getattr(self, name)!r} ({expected})"
            for name, expected, good in (
                ("batch_size", "> 0", self.batch_size > 0 and (self.batch_size < 1 or self.batch_size % 1 == 0)),
                ("epochs", "a whole number >= 1", self.epochs >= 1 and self.epochs % 1 == 0),
                ("optimizer", "adam or sgd", self.optimizer in ("adam", "sgd")),
                ("learning_rate", "finite, > 0", 0 < self.learning_rate < math.inf),
                ("momentum", ">= 0, needs sgd", self._has_momentum or self.momentum == 0),
                ("nesterov", "needs sgd with momentum > 0", not self.nesterov or self._has_momentum),
                ("weight_decay", ">= 0", self.weight_decay >= 0),
                ("schedule", "constant, cosine or step", self.schedule in ("constant", "cosine", "step")),
                ("step_factor", "> 0", self.step_factor > 0),
                ("patience", ">= 0", self.patience >= 0),
                ("improvement", "in [0, 1)", 0 <= self.improvement < 1),
                ("resolution", ">= 0", self.resolution >= 0),
            )
            if not good
        ]
        if wrong:
            raise ShapeError("expected a training plan within range; got " + ", ".join(wrong))

    @property
    def _has_momentum(self) -> bool:
        return self.optimizer == "sgd" and self.momentum > 0

    def examples_per_batch(self, examples: int) -> int:
        """``batch_size`` as a number of examples, at most all of them."""
        wanted = round(self.batch_size * examples) if self.batch_size < 1 else int(self.batch_size)
        return min(max(1, wanted), examples)

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        if self.schedule == "step":
            return self.learning_rate * self.step_factor ** sum(epoch >= m for m in self.milestones)
        return self.learning_rate


def train(
    problem: Problem,
    plan: TrainingPlan,
    *,
    seed: int = 0,
    journal: Journal | None = None,
    checkpoint: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    keep: Callable[[int, Minimizer], None] | None = None,
    progress: Progress = silent,
) -> tuple[Minimizer, History]:
    """Train ``problem.model`` from its current weights; return where it ended and the history of every epoch.

    Data are held in memory on ``device``; mini-batches are slices of a permutation drawn per epoch from the seed's
    stream, the last one smaller where the size does not divide. After each epoch loss and accuracy are measured on
    all training and test data (batch norm by running statistics). The weights returned are those of the last epoch.

    Args:
        problem: its ``train`` (and ``test``) must be ``(inputs, targets)`` tensors. The model itself is not touched.
        plan: optimizer, batch size, schedule, when to stop.
        seed: of the mini-batches and of dropout.
        journal: rows of ``history_template``, one per epoch, for a history that survives a kill.
        checkpoint: file with the state of a run in progress, written every few seconds and read at the start; to be
            removed once the minimizer is stored. The resumed run ends with the same weights, bit for bit.
        metadata: kept in the minimizer beside the plan, seed, epochs and reason for stopping.
        keep: called after each epoch with the number of epochs and the iterate, to be stored where wanted. After a
            kill it may be called again for the same epoch, with the same iterate.
        progress: called after each epoch.

    Raises:
        CheckpointError: ``checkpoint`` is damaged or belongs to another plan or seed.
        NonFiniteError: the training loss became NaN or infinite; ``partial`` holds the history so far.
    """
    data = _Data.of(problem, torch.device(device))
    objectives, _ = problem.objectives(device=device)
    run = _Run.begin(problem.model, plan, seed, torch.device(device))
    rows = journal or _memory_journal(history_template(objectives, plan))
    if checkpoint is not None and checkpoint.exists():
        _recall(rows, run.load(checkpoint))
    saved, stopped = time.monotonic(), ""
    while not (stopped := _reason_to_stop(plan, rows.column("loss")[0, : run.epoch])):
        rate = plan.rate(run.epoch)
        with preserved_random_state():
            run.one_epoch(BatchLoss(problem.loss, problem.weight), data, rate)
        row = _measure(run, objectives)
        _commit(rows, run.epoch - 1, {**row, "learning_rate": rate})
        progress(run.epoch, plan.epochs, f"loss {row['loss'][0]:.3g}")
        if not np.isfinite(row["loss"][0]):
            raise NonFiniteError(
                f"expected a finite training loss; it became {row['loss'][0]} in epoch {run.epoch}. "
                f"Lower the learning rate (now {rate:g}).",
                partial=_history(objectives, plan, rows, run.epoch, "diverged"),
            )
        if keep is not None:
            keep(run.epoch, run.minimizer(metadata))
        if checkpoint is not None and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
            run.save(checkpoint, {name: rows.column(name)[..., : run.epoch] for name in COLUMNS})
            saved = time.monotonic()
    history = _history(objectives, plan, rows, run.epoch, stopped)
    return run.minimizer({**(metadata or {}), "stopped": stopped}), history


def history_template(objectives: Mapping[str, Objective], plan: TrainingPlan) -> History:
    """The history of a run that has not begun: every epoch pending."""
    empty = np.full((len(objectives), plan.epochs), np.nan)
    return History(
        split=np.array(list(objectives)),
        epoch=np.arange(1, plan.epochs + 1),
        loss=empty,
        accuracy=empty.copy(),
        learning_rate=np.full(plan.epochs, np.nan),
        status=np.zeros(plan.epochs, np.uint8),
        batch_size=plan.examples_per_batch(next(iter(objectives.values())).examples),
        conditions={name: objective.conditions for name, objective in objectives.items()},
    )


@dataclass(frozen=True)
class _Data:
    """The training tensors where they are used."""

    inputs: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, problem: Problem, device: torch.device) -> _Data:
        given = problem.train
        if not (isinstance(given, tuple) and len(given) == 2 and all(isinstance(t, torch.Tensor) for t in given)):
            raise ShapeError(
                "expected training data as a pair (inputs, targets) of tensors; "
                f"got {type(given).__name__}. Training shuffles by index, so it holds the data in memory."
            )
        inputs, targets = given
        return cls(inputs.to(device), targets.to(device))

    def batches(self, seed: int, epoch: int, size: int) -> list[torch.Tensor]:
        """The epoch's mini-batches as index tensors."""
        order = torch.randperm(len(self.targets), generator=generator("batches", epoch, seed=seed))
        return list(order.to(self.inputs.device).split(size))


@dataclass
class _Run:
    """Model, optimizer and the number of epochs behind them: all that a run in progress is."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    plan: TrainingPlan
    seed: int
    epoch: int = 0

    @classmethod
    def begin(cls, model: nn.Module, plan: TrainingPlan, seed: int, device: torch.device) -> _Run:
        own = copy.deepcopy(model).to(device)
        return cls(own, _optimizer(plan, [p for p in own.parameters() if p.requires_grad]), plan, seed)

    def one_epoch(self, loss: BatchLoss, data: _Data, rate: float) -> None:
        torch.manual_seed(derive_seed("dropout", self.epoch, seed=self.seed))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        size = self.plan.examples_per_batch(len(data.targets))
        for index in data.batches(self.seed, self.epoch, size):
            self.optimizer.zero_grad(set_to_none=True)
            with exact_arithmetic(data.inputs.device):
                term = loss(self.model, (data.inputs[index], data.targets[index]))
                (term.total / term.weight).backward()
            self.optimizer.step()
        self.epoch += 1

    def minimizer(self, metadata: Mapping[str, Any] | None) -> Minimizer:
        """Where the run is."""
        facts = {"plan": asdict(self.plan), "seed": self.seed, "epochs": self.epoch}
        return Minimizer.of(self.model, {**(metadata or {}), **facts})

    def save(self, path: Path, history: Mapping[str, np.ndarray]) -> None:
        state = self.optimizer.state_dict()["state"]
        moments = {
            f"optimizer.{i}.{name}": t for i, entry in state.items() for name, t in entry.items() if t is not None
        }
        weights = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        past = {f"history.{name}": torch.as_tensor(values) for name, values in history.items()}
        tensors = {name: t.detach().clone().contiguous() for name, t in {**weights, **moments, **past}.items()}
        write_atomically(path, save(tensors, {"run": json.dumps({"epoch": self.epoch, **self._identity})}))

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
        if {name: known[name] for name in self._identity} != self._identity:
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


def _measure(run: _Run, objectives: Mapping[str, Objective]) -> dict[str, np.ndarray]:
    point = Point.of(run.model, next(iter(objectives.values())).space)
    values = [objective.evaluate(point) for objective in objectives.values()]
    return {"loss": np.array([v.loss for v in values]), "accuracy": np.array([v.accuracy for v in values])}


def _commit(rows: Journal, row: int, values: Mapping[str, Any]) -> None:
    # accuracy is NaN where it has no meaning: only the loss says whether an epoch is finite
    rows.commit(row, values, finite=bool(np.isfinite(values["loss"]).all()))


def _recall(rows: Journal, history: Mapping[str, np.ndarray]) -> None:
    """Commit the epochs that a checkpoint knows and the journal does not."""
    epochs = history["loss"].shape[-1]
    for row in np.flatnonzero(rows.status[:epochs] == PENDING):
        _commit(rows, int(row), {name: values[..., row] for name, values in history.items()})


def _reason_to_stop(plan: TrainingPlan, losses: np.ndarray) -> str:
    """Why training ends after these epochs, or nothing."""
    if len(losses) and plan.patience:
        best, since = math.inf, 0
        for loss in losses:
            least = max(plan.improvement * abs(best), plan.resolution) if best < math.inf else 0.0
            best, since = (loss, 0) if loss < best - least else (best, since + 1)
        if since >= plan.patience:
            return f"loss ceased to improve for {plan.patience} epochs"
    return "epoch limit" if len(losses) >= plan.epochs else ""


def _history(
    objectives: Mapping[str, Objective], plan: TrainingPlan, rows: Journal, epochs: int, stopped: str
) -> History:
    template = history_template(objectives, plan)
    done = {name: rows.column(name)[..., :epochs] for name in COLUMNS}
    trimmed = {**done, "epoch": template.epoch[:epochs], "status": rows.status[:epochs], "stopped": stopped}
    return History(**{**vars(template), **trimmed})


def _memory_journal(template: History) -> MemoryJournal:
    columns = {name: getattr(template, name) for name in COLUMNS}
    return MemoryJournal(columns, len(template.epoch))
