"""Minimizers of one problem, trained in several regimes from one start, over seeds: what most recipes are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from sharpness.checkpoints import Minimizer
from sharpness.data import Data
from sharpness.errors import ShapeError
from sharpness.models import MODELS, build, initialised
from sharpness.objective import Problem, cross_entropy, usual_loss
from sharpness.random import generator, normal
from sharpness.recipes.analysis import AnalysisPlan
from sharpness.training import TrainingPlan

SCHEMES, STATISTICS = ("pytorch", "glorot"), ("running", "recomputed")
AT = "@"  # between a regime and an epoch of it


@dataclass(frozen=True)
class Experiment:
    """Parameters of a comparison of training regimes.

    Args:
        data: a name in ``sharpness.data.DATASETS``.
        model: a name in ``sharpness.models.MODELS``.
        regimes: how each minimizer is trained, by a short name: ``SB`` small batch, ``LB`` large batch, …
        statistics: batch-norm statistics of the minimizers: ``"running"``, as training leaves them, or ``"recomputed"``
            over the training data. The running ones lag behind after few steps, as large batches take. Histories and
            kept iterates have the running ones.
        starts: regimes that begin at an iterate of an earlier one, as ``{"LB-from-5": "SB@5"}`` (with a new optimizer);
            all others begin at the seed's own starting point.
        model_options: of the builder, as ``{"conv_dropout": False}``.
        initialisation: ``"pytorch"`` or ``"glorot"`` (uniform, biases 0: the default of the paper's framework).
        train_examples, test_examples: the first so many of the data; 0 is all.
        trials: seeds, each with its own start, mini-batches, subspace and directions; the paper has 5.
        seed: the first of them.
        analysis: what is measured at each minimizer.
        lines: pairs of regimes between which a line is evaluated.
        line_points: points of each line from the first (α = 0) to the second (α = 1), α in [-1, 2]; each seed. 0: none.
        curve_points: the same on θ(α) = sin(απ/2)·b + cos(απ/2)·a; the paper's Figure 7.
        plane_points: points along each axis of the planes around every minimizer of the first seed, along two
            filter-normalised random directions, α and β in [-1, 1]. 0: none.
        profile_points: the same along one such direction, every seed.
        kept_epochs: epochs after which iterates are kept: of regimes at which others start, and of those followed.
        followed: regimes whose ε-sharpness is measured at every kept iterate, and at the end, of the first seed.
        threads: of the CPU; 0 leaves PyTorch's own number. The last bits of results depend on it, and small networks
            gain nothing from more than one.
    """

    data: str
    model: str
    regimes: Mapping[str, TrainingPlan]
    starts: Mapping[str, str] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    initialisation: str = "pytorch"
    statistics: str = "running"
    train_examples: int = 0
    test_examples: int = 0
    trials: int = 3
    seed: int = 0
    analysis: AnalysisPlan = field(default_factory=AnalysisPlan)
    lines: tuple[tuple[str, str], ...] = (("SB", "LB"),)
    line_points: int = 25
    curve_points: int = 0
    plane_points: int = 0
    profile_points: int = 0
    kept_epochs: tuple[int, ...] = ()
    followed: tuple[str, ...] = ()
    threads: int = 0

    def __post_init__(self) -> None:
        points = (self.line_points, self.curve_points, self.plane_points, self.profile_points)
        known, sizes = list(self.regimes), (self.train_examples, self.test_examples)
        named = [*self.followed, *(name for pair in self.lines for name in pair)]
        wrong = [
            f"{name} = {value!r} ({expected})"
            for name, value, expected, good in (
                ("model", self.model, f"one of {', '.join(MODELS)}", self.model in MODELS),
                ("regimes", known, "one or more", bool(known)),
                ("lines, followed", named, f"of the regimes {', '.join(known)}", set(named) <= set(known)),
                ("line_points, curve_points", points[:2], "0 without lines", bool(self.lines) or not any(points[:2])),
                ("followed", self.followed, "kept_epochs to follow", not self.followed or bool(self.kept_epochs)),
                ("statistics", self.statistics, "running or recomputed", self.statistics in STATISTICS),
                ("starts", dict(self.starts), f"REGIME{AT}EPOCH, earlier and kept", self._starts_fit(known)),
                ("initialisation", self.initialisation, "pytorch or glorot", self.initialisation in SCHEMES),
                ("trials", self.trials, ">= 1", self.trials >= 1),
                ("points", points, "0, or 2 and more", all(number == 0 or number >= 2 for number in points)),
                ("examples", sizes, ">= 0", min(sizes) >= 0),
                ("kept_epochs", self.kept_epochs, ">= 1", all(epoch >= 1 for epoch in self.kept_epochs)),
                ("threads", self.threads, ">= 0", self.threads >= 0),
            )
            if not good
        ]
        if wrong:
            raise ShapeError("expected an experiment within range; got " + "; ".join(wrong))

    def kept(self, regime: str, seed: int) -> set[int]:
        """The epochs of a regime whose iterates are needed later."""
        sources = (start.partition(AT) for start in self.starts.values())
        needed = {int(epoch) for before, _, epoch in sources if before == regime}
        return needed | set(self.kept_epochs if regime in self.followed and seed == self.seed else ())

    def _starts_fit(self, known: list[str]) -> bool:
        for regime, start in self.starts.items():
            before, _, epoch = start.partition(AT)
            if not (regime in known and before in known[: known.index(regime)] and epoch.isdecimal()):
                return False
            if int(epoch) not in self.kept_epochs:
                return False
        return True

    @property
    def seeds(self) -> range:
        """The seeds of the trials."""
        return range(self.seed, self.seed + self.trials)

    def problem(self, data: Data, seed: int, dtype: torch.dtype = torch.float32) -> Problem:
        """The problem at one seed's starting point, drawn in float32 whatever the ``dtype``."""
        shape = tuple(data.train[0].shape[1:])
        model = initialised(
            lambda: build(self.model, shape, data.classes, **self.model_options), seed=seed, scheme=self.initialisation
        ).to(dtype)
        sizes = (self.train_examples, self.test_examples)
        train, test = (
            (_laid_out(inputs[: size or None], dtype), targets[: size or None])
            for (inputs, targets), size in zip((data.train, data.test), sizes, strict=True)
        )
        return Problem(model, usual_loss(train[1]), train, test)

    def warm_epochs(self, regime: str) -> int:
        """Epochs of another regime that lie before this one."""
        return int(self.starts.get(regime, f"{AT}0").partition(AT)[2])


QUICK = AnalysisPlan(eigenpairs=1, tolerance=0.05, subspace=3, iterations=2, restarts=1, examples=20)


def smoke(data: str, model: str, regimes: Mapping[str, TrainingPlan], **changes: Any) -> Experiment:
    """Everything that a recipe does, on next to nothing."""
    given: dict[str, Any] = {
        "train_examples": 60,
        "test_examples": 30,
        "trials": 1,
        "analysis": QUICK,
        "line_points": 4,
        "threads": 1,
    }
    return Experiment(data=data, model=model, regimes=regimes, **{**given, **changes})


def _laid_out(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inputs in ``dtype`` (whole numbers, as of characters, as they are), images with their channels last in memory.

    In that order convolutions are faster on a CPU.
    """
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


class Trial(NamedTuple):
    """One seed: its start and where each regime ended."""

    start: Minimizer
    ends: dict[str, Minimizer]


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """PyTorch on so many CPU threads (0: as it is), and as before on leaving."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SHAPES = {"digits-mlp": (64,), "mlp": (64,), "keskar-f1": (784,), "keskar-f2": (60,), "char-transformer": (64,)}
"""Of one input, for measuring cost; images of CIFAR where not said."""
VOCABULARIES = {"char-transformer": 65}
"""Of models that read characters and predict the next one."""


def random_problem(model: str, examples: int, *, seed: int = 0) -> Problem:
    """A model of ``MODELS`` with random inputs and targets of its shape, for measuring cost."""
    if model not in MODELS:
        raise ShapeError(f"expected --model {', '.join(MODELS)}; got {model!r}")
    shape, vocabulary = SHAPES.get(model, (3, 32, 32)), VOCABULARIES.get(model)
    network = initialised(lambda: build(model, shape, vocabulary or 10), seed=seed)
    if vocabulary:
        draw = generator("random inputs", seed=seed)
        text = torch.randint(vocabulary, (examples, shape[0] + 1), generator=draw)
        return Problem(network, cross_entropy, (text[:, :-1], text[:, 1:]))
    inputs = normal(examples, *shape, key=("random inputs",), seed=seed)
    return Problem(network, cross_entropy, (inputs, torch.arange(examples) % 10))
