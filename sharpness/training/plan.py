"""How one minimizer is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sharpness.errors import ShapeError
from sharpness.training.augment import AUGMENTATIONS


@dataclass(frozen=True)
class TrainingPlan:
    """How one minimizer is trained.

    From ``augment`` on, the defaults change nothing. These are the remedies that Keskar et al. 2017 try on large
    batches (their Appendix E: augmentation, conservative and robust training; their text names none of the amounts
    that we could confirm, so amounts are the user's) and two of Hoffer et al. 2017. All combine but ``adversarial``
    with ``robust``: of two nested maximisations by one ascent step each, which comes first is not determined.

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
        augment: what is done to each mini-batch of images, in this order: ``"flip"`` (left and right, with
            probability 1/2), ``"translate"`` (up to 1/8 of the side each way), ``"rotate"`` (up to 15°), ``"shear"``
            (up to 0.1). Inputs are (N, C, H, W), or (N, d) with square d: one channel. The amounts are ours; see
            ``sharpness.training.augment``.
        proximal: λ ≥ 0 of conservative training (Li et al. 2014): each mini-batch B lessens, from the weights x_k
            before it, 1/|B| Σ f_i(x) + (λ/2) ‖x − x_k‖², in nats, by ``proximal_steps`` steps of the optimizer, whose
            moments go on from step to step. 0: off, one step on the loss alone.
        proximal_steps: at least 2, for the penalty has no gradient at x_k, where the first step begins; 3 is ours.
        adversarial: ε ≥ 0 of adversarial training by the fast gradient sign method, in units of the inputs: the loss
            of a mini-batch is half that of its inputs u and half that of u + ε sign ∂f/∂u (α = 1/2 of Goodfellow et
            al. 2014). Nothing is clipped to the range of the data, which a plan does not know. 0: off.
        robust: ε ≥ 0 of robust training in weight space, in units of the weights: one ascent step of
            min_x max_{‖Δx‖ ≤ ε} f(x + Δx), that is, the gradient at x + ε g/‖g‖ is used at x, where g is the
            mini-batch's gradient at x and the norm is over all weights; known as sharpness-aware minimisation (Foret
            et al. 2021). 0: off.
        ghost_batch: examples that batch norm normalises together (Hoffer et al. 2017; 128 in their code): a
            mini-batch passes in parts of this size, one example left over joining the part before it. The loss is
            still the mean over the mini-batch. 0: the mini-batch at once.
        clip: the largest Euclidean norm of the gradient that a step follows, over all weights; a longer one is
            shortened to it (Hoffer et al.'s code with ghost batches: 5). 0: any.
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
    augment: tuple[str, ...] = ()
    proximal: float = 0.0
    proximal_steps: int = 3
    adversarial: float = 0.0
    robust: float = 0.0
    ghost_batch: int = 0
    clip: float = 0.0

    def __post_init__(self) -> None:
        wrong = [f"{name} = {getattr(self, name)!r} ({expected})" for name, expected, good in RANGES if not good(self)]
        if wrong:
            raise ShapeError("expected a training plan within range; got " + ", ".join(wrong))

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


def _has_momentum(plan: TrainingPlan) -> bool:
    return plan.optimizer == "sgd" and plan.momentum > 0


def _names_augmentations(plan: TrainingPlan) -> bool:
    return len(set(plan.augment)) == len(plan.augment) and set(plan.augment) <= AUGMENTATIONS.keys()


def _at_least_two(number: float) -> bool:
    return number >= 2 and number % 1 == 0


# field, what is expected of it, whether it is so
RANGES: tuple[tuple[str, str, Callable[[TrainingPlan], bool]], ...] = (
    ("batch_size", "> 0", lambda p: p.batch_size > 0 and (p.batch_size < 1 or p.batch_size % 1 == 0)),
    ("epochs", "a whole number >= 1", lambda p: p.epochs >= 1 and p.epochs % 1 == 0),
    ("optimizer", "adam or sgd", lambda p: p.optimizer in ("adam", "sgd")),
    ("learning_rate", "finite, > 0", lambda p: 0 < p.learning_rate < math.inf),
    ("momentum", ">= 0, needs sgd", lambda p: _has_momentum(p) or p.momentum == 0),
    ("nesterov", "needs sgd with momentum > 0", lambda p: not p.nesterov or _has_momentum(p)),
    ("weight_decay", ">= 0", lambda p: p.weight_decay >= 0),
    ("schedule", "constant, cosine or step", lambda p: p.schedule in ("constant", "cosine", "step")),
    ("step_factor", "> 0", lambda p: p.step_factor > 0),
    ("patience", ">= 0", lambda p: p.patience >= 0),
    ("improvement", "in [0, 1)", lambda p: 0 <= p.improvement < 1),
    ("resolution", ">= 0", lambda p: p.resolution >= 0),
    ("augment", f"different ones of {', '.join(AUGMENTATIONS)}", _names_augmentations),
    ("proximal", "finite, >= 0", lambda p: 0 <= p.proximal < math.inf),
    ("proximal_steps", "a whole number >= 2", lambda p: _at_least_two(p.proximal_steps)),
    ("adversarial", "finite, >= 0", lambda p: 0 <= p.adversarial < math.inf),
    ("robust", "finite, >= 0", lambda p: 0 <= p.robust < math.inf),
    ("robust", "not together with adversarial", lambda p: not (p.robust > 0 and p.adversarial > 0)),
    ("ghost_batch", "0, or a whole number >= 2", lambda p: p.ghost_batch == 0 or _at_least_two(p.ghost_batch)),
    ("clip", "finite, >= 0", lambda p: 0 <= p.clip < math.inf),
)
