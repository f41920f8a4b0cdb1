"""What others objected to sharpness as a measure, as recipes.

Dinh et al. 2017: one function can be made as sharp as one likes. Li et al. 2018: weight decay turns the picture around,
filter normalisation does not let it. Hoffer et al. 2017: large batches generalise as well, trained for as many steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sharpness.recipes.analysis import AnalysisPlan
from sharpness.recipes.experiment import Experiment, smoke
from sharpness.recipes.keskar import BARE, FEW, NARROW, REDUCED_F1, SWEEP
from sharpness.recipes.recipe import Recipe, Scale
from sharpness.recipes.rescaling import Rescale, rescale
from sharpness.training import TrainingPlan

# Dinh et al.

PLAIN: dict[str, Any] = {"model": "mlp", "model_options": {"batchnorm": False}}
ONE_POINT = AnalysisPlan(eigenpairs=1, epsilons=(1e-3,), subspace=0)


def _one(data: str, plan: TrainingPlan, analysis: AnalysisPlan = ONE_POINT, **settings: Any) -> Experiment:
    """One network without batch norm, trained once."""
    kept: dict[str, Any] = {"trials": 1, "lines": (), "line_points": 0, "threads": 1}
    return Experiment(data=data, regimes={"SB": plan}, analysis=analysis, **{**PLAIN, **kept, **settings})


DINH = Recipe(
    "dinh-rescaling",
    "One function, any sharpness: two layers of a ReLU network rescaled by α and 1/α (Dinh et al. 2017)",
    {
        "reduced": Scale(
            "the digits, 11 factors: half a minute",
            Rescale(_one("digits", TrainingPlan(16, 60, schedule="cosine"))),
        ),
        "paper": Scale(
            "MNIST, three layers of 512, 11 factors: about half an hour on one core (estimated)",
            Rescale(
                _one(
                    "mnist",
                    TrainingPlan(256, 60, schedule="cosine"),
                    model_options={"batchnorm": False, "widths": (512, 512, 512)},
                )
            ),
        ),
        "smoke": Scale(
            "seconds",
            Rescale(
                _one(
                    "digits",
                    TrainingPlan(16, 3),
                    replace(ONE_POINT, examples=100, iterations=3, restarts=1),
                    model_options={"batchnorm": False, "widths": (16, 16)},
                    train_examples=200,
                ),
                factors=(0.25, 1.0, 4.0),
            ),
        ),
    },
    rescale,
)

# Li et al.


def decayed(small: TrainingPlan, large: TrainingPlan, decay: float = 5e-4) -> dict[str, Any]:
    """SB and LB without and with weight decay, and a line between either pair."""
    return {
        "regimes": {
            "SB": small,
            "LB": large,
            "SB-decay": replace(small, weight_decay=decay),
            "LB-decay": replace(large, weight_decay=decay),
        },
        "lines": (("SB", "LB"), ("SB-decay", "LB-decay")),
    }


def _sgd(batch_size: int | float, epochs: int) -> TrainingPlan:
    """SGD at rate 0.1, times 0.1 after a half, three quarters and eleven twelfths of the epochs (150, 225, 275)."""
    milestones = tuple(epochs * share // 12 for share in (6, 9, 11))
    return TrainingPlan(
        batch_size, epochs, "sgd", 0.1, momentum=0.9, nesterov=True, schedule="step", milestones=milestones
    )


LI = Recipe(
    "li-weight-decay",
    "SB 128 against LB 8,192 without and with weight decay, VGG-9: raw lines, filter-normalised ones (Li et al. 2018)",
    {
        "reduced": Scale(
            "2,000 images, a quarter of the width, SB 8, LB 328, 60 epochs, 1 trial: 41 min on one core",
            Experiment(
                "cifar10",
                "vgg9",
                **decayed(_sgd(8, 60), _sgd(0.164, 60)),
                model_options={"width": 0.25},
                train_examples=2000,
                test_examples=2000,
                trials=1,
                analysis=FEW,
                line_points=31,
                profile_points=31,
            ),
        ),
        "paper": Scale(
            "50,000 images, SB 128, LB 8,192, 300 epochs, 5 trials: for a GPU (not measured)",
            Experiment(
                "cifar10",
                "vgg9",
                **decayed(_sgd(128, 300), _sgd(8192, 300)),
                trials=5,
                analysis=FEW,
                line_points=61,
                profile_points=51,
            ),
        ),
        "smoke": Scale(
            "seconds",
            smoke(
                "generated-images",
                "vgg9",
                **decayed(_sgd(10, 3), _sgd(30, 3)),
                model_options={"width": 0.1},
                profile_points=5,
            ),
        ),
    },
)

# Hoffer et al.


def adapted(small: TrainingPlan, batch_size: int | float, ratio: float, ghost: int, longer: int) -> Mapping[str, Any]:
    """LB as it is, and with each of the three adaptations and all: more epochs, rate times √ratio, ghost batch norm."""
    large = replace(small, batch_size=batch_size)
    more: dict[str, Any] = {
        "epochs": small.epochs * longer,
        "milestones": tuple(milestone * longer for milestone in small.milestones),
    }
    rate: dict[str, Any] = {"learning_rate": small.learning_rate * ratio**0.5}
    parts: dict[str, Any] = {"ghost_batch": ghost, "clip": 5.0}
    return {
        "regimes": {
            "SB": small,
            "LB": large,
            "LB-longer": replace(large, **more),
            "LB-sqrt-rate": replace(large, **rate),
            "LB-ghost": replace(large, **parts),
            "LB-all": replace(large, **more, **rate, **parts),
        },
    }


def _base(batch_size: int, epochs: int, milestones: tuple[int, ...]) -> TrainingPlan:
    """The released code's regime for F1: SGD 0.1, momentum 0.9, weight decay 1e-4, rate times 0.1 at three epochs."""
    return TrainingPlan(
        batch_size, epochs, "sgd", 0.1, momentum=0.9, weight_decay=1e-4, schedule="step", milestones=milestones
    )


HOFFER = Recipe(
    "hoffer-longer",
    "LB trained for as many steps, with rate ∝ √batch and ghost batch norm closes the gap: F1 (Hoffer et al. 2017)",
    {
        "reduced": Scale(
            "6,000 images of MNIST, SB 26, LB 416, 20 epochs (longer: 320), 2 trials: 78 min on one busy core",
            Experiment(**REDUCED_F1, **SWEEP, **adapted(_base(26, 20, (5, 10, 15)), 416, 16, 26, 16), trials=2),
        ),
        "paper": Scale(
            "60,000 images, SB 256, LB 4,096, 50 epochs (longer: 800), 5 trials: for a GPU (not measured)",
            Experiment(
                "mnist",
                "keskar-f1",
                **adapted(_base(256, 50, (10, 20, 30)), 4096, 16, 128, 16),
                trials=5,
                **SWEEP,
            ),
        ),
        "smoke": Scale(
            "seconds", smoke("digits", "keskar-f1", **adapted(_base(6, 2, (1,)), 30, 5, 10, 2), **BARE, **NARROW)
        ),
    },
)

RECIPES = (DINH, LI, HOFFER)
