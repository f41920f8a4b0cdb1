"""Curves of low loss between two points, trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sharpness.errors import CheckpointError, NonFiniteError, ShapeError
from sharpness.files import write_atomically
from sharpness.geometry import Bezier, Curve, Polygon
from sharpness.objective import Objective
from sharpness.params import Point, as_point
from sharpness.progress import Progress, silent
from sharpness.random import generator
from sharpness.training.step import part_sizes

FORMS: Mapping[str, type[Bezier | Polygon]] = {"bezier": Bezier, "polygon": Polygon}
MOMENTUM = 0.9  # as in the code of Garipov et al.
FORMAT, STATE = "sharpness-curve-1", "sharpness-connecting-1"


class Connection(NamedTuple):
    """A trained curve, the loss in each epoch of its training, and how it was trained."""

    curve: Curve
    loss: np.ndarray
    """(epochs,): mean loss of the mini-batches, each at its own α: f on the curve, while that still moves."""
    metadata: Mapping[str, Any]


def connect(
    objective: Objective,
    a: Any,
    b: Any,
    *,
    form: str = "bezier",
    bends: int = 1,
    epochs: int = 200,
    batch_size: int = 128,
    learning_rate: float = 0.01,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = silent,
) -> Connection:
    """A curve θ(α) from a to b with low loss all along, by minimising E f(θ(α)), α uniform in [0, 1], over its bends.

    The method of Garipov et al. 2018: at each mini-batch one α is drawn, and each bend p takes a step of SGD with
    momentum 0.9 along ∂θ(α)/∂p · ∇f(θ(α)). Bends begin equally spaced on the straight line from a to b; a and b stay
    where they are. The learning rate is constant for half of the epochs, then falls linearly to a hundredth at nine
    tenths, and stays there. Defaults are those of their code, in which ``bends=1`` is called three; their README takes
    0.015 to 0.03 for the learning rate and 200 to 600 epochs.

    Batch norm uses the statistics of each mini-batch; dropout is off, and data are not augmented. Weight decay is f's
    own ``l2``. Evaluate the curve by ``evaluate_line``, which re-estimates statistics at every point.

    Args:
        objective: f on the training data, given as tensors or as batches of one shape.
        a, b: ``Point``, ``Minimizer`` or θ.
        form: ``"bezier"`` or ``"polygon"``, a chain of straight pieces.
        bends: how many; each has n parameters.
        epochs: passes over the data.
        batch_size: examples in a mini-batch; an example left over joins the one before it.
        learning_rate: at the start.
        seed: of the mini-batches and of α.
        checkpoint: file with the state of the training in progress, written after each epoch and read at the start; to
            be removed once the curve is saved. The resumed training ends with the same curve, bit for bit.
        progress: called after each epoch.

    Cost: an epoch is one forward and one backward pass over the data; memory for 4 · bends + 5 vectors of n entries.

    Raises:
        ShapeError: a and b do not fit, an unknown form, or a number out of range.
        CheckpointError: ``checkpoint`` is damaged or belongs to another training.
        NonFiniteError: the loss became NaN or infinite; ``partial`` is the connection after the last whole epoch.

    Example (f = (‖θ‖² − 1)²: the minima are a circle; half-way between these two, the straight line has a loss of ¼):
        >>> class Ring(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.place = torch.nn.Parameter(torch.ones(2))
        ...     def forward(self, x):
        ...         return x * self.place.square().sum()
        >>> ring, _ = Objective.from_module(Ring(), lambda o, t: (o - t) ** 2, (torch.ones(8, 1), torch.ones(8, 1)))
        >>> found = connect(ring, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), batch_size=1, epochs=20)
        >>> ring.value(found.curve.at(0.5)) < 0.01
        True
    """
    plan = _Plan(form, bends, epochs, batch_size, learning_rate, seed)
    if objective.has_batchnorm and objective.batchnorm != "batch":
        objective = objective.replace(batchnorm="batch")
    training = _Training.begin(objective, plan, as_point(a), as_point(b))
    if checkpoint is not None and checkpoint.exists():
        training.load(checkpoint)
    while len(training.losses) < epochs:
        training.one_epoch()
        if checkpoint is not None:
            write_atomically(checkpoint, training.state())
        progress(len(training.losses), epochs, f"loss {training.losses[-1]:.3g}")
    return training.connection()


def save_curve(curve: Curve, path: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a ``Bezier`` or ``Polygon`` as one safetensors file: its bends, and of its ends the SHA-256 of θ.

    ``metadata``, JSON-able, is kept in the header.
    """
    form = next((name for name, kind in FORMS.items() if isinstance(curve, kind)), None)
    if form is None:
        raise ShapeError(f"expected a Bezier or a Polygon, which has bends to save; got {type(curve).__name__}")
    ends = {"start": curve.a.sha256, "end": curve.b.sha256}
    header = {"format": FORMAT, "form": form, **ends, "metadata": dict(metadata or {})}
    return write_atomically(path, _file({f"bend.{i}": bend for i, bend in enumerate(curve.bends)}, header))


def load_curve(path: str | Path, a: Any, b: Any) -> Curve:
    """The curve in a file that ``save_curve`` wrote, between the same two points.

    Raises:
        CheckpointError: the file is missing, damaged or something else, or lies between other points.
    """
    tensors, header = _read(Path(path), FORMAT, "a curve written by this package")
    try:
        ends = as_point(a), as_point(b)
        for end, name, where in zip(ends, ("start", "end"), "01", strict=True):
            if end.sha256 != header[name]:
                raise CheckpointError(
                    f"expected the point at which the curve in {path} has α = {where}, with SHA-256 "
                    f"{header[name][:12]}…; got {end.sha256[:12]}…. Give the checkpoints that it was trained between, "
                    "in their order."
                )
        return FORMS[header["form"]](*ends, [tensors[f"bend.{i}"] for i in range(len(tensors))])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"expected a complete curve in {path}; its header is damaged ({error})") from error


@dataclass(frozen=True)
class _Plan:
    """How a curve is trained."""

    form: str
    bends: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ShapeError(f"expected form to be one of {', '.join(FORMS)}; got {self.form!r}")
        if min(self.bends, self.epochs, self.batch_size) < 1 or not 0 < self.learning_rate < math.inf:
            raise ShapeError(
                "expected bends, epochs and batch_size of 1 or more and a finite learning_rate above 0; got "
                f"{self.bends}, {self.epochs}, {self.batch_size} and {self.learning_rate:g}"
            )

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0: the schedule of Garipov et al.'s code, which counts from 1."""
        past = (epoch + 1) / self.epochs
        return self.learning_rate * (1 - 0.99 * min(max((past - 0.5) / 0.4, 0), 1))


class _Training:
    """A curve in training: its bends, the optimizer's moments and the losses so far."""

    def __init__(self, objective: Objective, plan: _Plan, ends: tuple[Point, Point], curve: Curve) -> None:
        self._objective, self._plan, self._ends, self._curve = objective, plan, ends, curve
        self._optimizer = torch.optim.SGD(curve.bends, plan.learning_rate, momentum=MOMENTUM)
        self._whole = [bend.clone() for bend in curve.bends]
        self.losses: list[float] = []

    @classmethod
    def begin(cls, objective: Objective, plan: _Plan, a: Point, b: Point) -> _Training:
        start, end = objective.point(a), objective.point(b)
        shares = [i / (plan.bends + 1) for i in range(1, plan.bends + 1)]
        # the curve holds these very tensors, so that it moves with them
        between = [torch.lerp(start.theta, end.theta, share) for share in shares]
        return cls(objective, plan, (a, b), FORMS[plan.form](start, end, between))

    def one_epoch(self) -> None:
        """One pass over the data; its random numbers depend on seed and epoch alone."""
        f, plan, epoch = self._objective, self._plan, len(self.losses)
        for group in self._optimizer.param_groups:
            group["lr"] = plan.rate(epoch)
        order = torch.randperm(f.examples, generator=generator("connect", "batches", epoch, seed=plan.seed))
        batches = order.split(part_sizes(f.examples, plan.batch_size))
        alphas = torch.rand(
            len(batches), generator=generator("connect", "alpha", epoch, seed=plan.seed), dtype=torch.float64
        )
        total = 0.0
        for batch, alpha in zip(batches, alphas.tolist(), strict=True):
            total += len(batch) * self._step(batch, alpha)
        self._check(all(bool(bend.isfinite().all()) for bend in self._curve.bends), "the bends are not")
        self.losses.append(total / f.examples)
        self._whole = [bend.clone() for bend in self._curve.bends]

    def _step(self, batch: torch.Tensor, alpha: float) -> float:
        loss, gradient = self._objective.value_and_gradient(self._curve.at(alpha), batch)
        finite = math.isfinite(loss) and bool(gradient.isfinite().all())
        self._check(finite, f"the loss is {loss} at α = {alpha:.3g}, or its gradient is not")
        for bend, weight in zip(self._curve.bends, self._curve.weights(alpha)[1:-1], strict=True):
            bend.grad = weight * gradient
        self._optimizer.step()
        return loss

    def _check(self, finite: bool, got: str) -> None:
        if not finite:
            raise NonFiniteError(
                f"expected a curve of finite losses; in epoch {len(self.losses) + 1} {got}. "
                f"Lower the learning rate (now {self._plan.learning_rate:g}).",
                partial=self.connection(),
            )

    def connection(self) -> Connection:
        """The curve after the last whole epoch, between the ends as they were given."""
        curve = FORMS[self._plan.form](*self._ends, self._whole)
        return Connection(curve, np.array(self.losses), {**self._identity, "conditions": self._objective.conditions})

    def state(self) -> bytes:
        """All that a training in progress is, as a safetensors file."""
        moments = [self._optimizer.state[bend]["momentum_buffer"] for bend in self._curve.bends]
        tensors = {f"bend.{i}": bend for i, bend in enumerate(self._curve.bends)}
        tensors |= {f"momentum.{i}": moment for i, moment in enumerate(moments)}
        return _file(tensors, {"format": STATE, "identity": self._identity, "loss": self.losses})

    def load(self, path: Path) -> None:
        """Take up the training in ``path``."""
        tensors, header = _read(path, STATE, "the state of a curve in training")
        if header.get("identity") != self._identity:
            raise CheckpointError(
                f"expected the state of this very training in {path}; it belongs to other ends, data or choices. "
                "Remove the file to begin anew."
            )
        for i, bend in enumerate(self._curve.bends):
            bend.copy_(tensors[f"bend.{i}"])
            self._optimizer.state[bend]["momentum_buffer"] = tensors[f"momentum.{i}"].to(bend)
        self._whole = [bend.clone() for bend in self._curve.bends]
        self.losses = header["loss"]

    @property
    def _identity(self) -> dict[str, Any]:
        """What a state must agree in, as JSON holds it."""
        a, b = self._ends
        f = self._objective
        data = {"data": f.fingerprint, "l2": f.l2, "dtype": str(f.dtype).removeprefix("torch.")}
        return {**vars(self._plan), "start": a.sha256, "end": b.sha256, **data}


def _file(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(tensors, {"sharpness": json.dumps(header, sort_keys=True)})


def _read(path: Path, kind: str, what: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a file of this kind."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("sharpness", "{}"))
            # clones: memory-mapped tensors begin anywhere, and a product's last bits can depend on alignment
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"expected {what} in {path}; it cannot be read ({error})") from error
    if not isinstance(header, dict) or header.get("format") != kind:
        raise CheckpointError(f"expected {what} in {path}; got a safetensors file without its header")
    return tensors, header
