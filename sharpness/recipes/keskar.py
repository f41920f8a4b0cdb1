"""Keskar et al. 2017, On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima, as recipes.

From the paper: SB 256 and LB 10 % of the training data from one start, Adam, training until the loss ceases to improve
(Tables 2 to 4) or for 100 epochs (Figures 4 and 5), five trials, ε of 1e-3 and 5e-4, subspaces of 100 dimensions, ten
iterations of L-BFGS-B, the full training loss. From its released code for the convolutional networks: Adam's default
rate, pixels in [0, 1], uniform Glorot starts, 25 points on α in [-1, 2]. Ours, because neither says it: what counts as
an improvement (0.1 % of the loss and 1e-5 nats within 10 epochs), PyTorch's uniform starts for F1 and F2, the
distribution of the subspaces, the settings of the remedies, everything below the paper's scale. The reduced scales keep
LB at 10 %; C2 and C4 become narrower there, and sweeps are of F1 on MNIST instead of C1 on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sharpness.recipes.analysis import AnalysisPlan
from sharpness.recipes.experiment import AT, Experiment, smoke
from sharpness.recipes.recipe import Recipe, Scale
from sharpness.recipes.sketch import SKETCH
from sharpness.training import TrainingPlan

KEPT = (1, 3, 8, 18, 40, 90, 200)
UNTIL_DONE: dict[str, Any] = {"patience": 10, "resolution": 1e-5}
PAPER = AnalysisPlan(restarts=1)
"""The paper's: one start, at the minimizer."""
FEW = AnalysisPlan(eigenpairs=1, epsilons=(1e-3,), subspace=0, restarts=1)
"""For sweeps: λmax and the paper's ε-sharpness in the full space, at the larger ε."""

Settings = Mapping[str, Any]

REDUCED_F1: Settings = {"data": "mnist", "model": "keskar-f1", "train_examples": 6000, "threads": 1}
NARROW: dict[str, Any] = {"model_options": {"width": 16}}
BARE: dict[str, Any] = {"statistics": "recomputed", "lines": (), "line_points": 0}
SWEEP: dict[str, Any] = {"analysis": FEW, **BARE}


def pair(small: int, epochs: tuple[int, int], large: float = 0.1, **settings: Any) -> dict[str, TrainingPlan]:
    """SB and LB by their mini-batches and most epochs; what else is said holds for both."""
    plans = zip((small, large), epochs, strict=True)
    sb, lb = (TrainingPlan(batch_size=size, epochs=most, **settings) for size, most in plans)
    return {"SB": sb, "LB": lb}


def _both(network: str, summary: str, paper: Experiment, reduced: Scale, tiny: Experiment, cost: str) -> Recipe:
    """The comparison of SB with LB on one network: Tables 2 to 4, Figures 2, 3, 6 and 7."""
    kept: dict[str, Any] = {"kept_epochs": KEPT, "followed": ("SB", "LB"), "curve_points": 25}
    scales = {
        "reduced": Scale(reduced.cost, replace(reduced.parameters, **kept)),
        "paper": Scale(cost, replace(paper, trials=5, **kept)),
        "smoke": Scale("seconds", replace(tiny, kept_epochs=(1, 2), followed=("SB", "LB"), curve_points=4)),
    }
    return Recipe(f"keskar-{network}", f"{network.upper()}: {summary}", scales)


def _convolutional(network: str, classes: int, deep: bool) -> Recipe:
    data, model = f"cifar{classes}", f"keskar-{network}"
    generated = "generated-images" + ("-100" if classes == 100 else "")
    start: dict[str, Any] = {"initialisation": "glorot"}
    width: dict[str, Any] = {"model_options": {"width": 0.25}} if deep else {}
    narrow = ", a quarter of the width: hours (estimated)" if deep else ": about 2.5 h on one core, beside other work"
    return _both(
        network,
        f"SB 256 against LB 5,000, the {'deep' if deep else 'shallow'} convolutional network on CIFAR-{classes}",
        Experiment(data, model, pair(256, (200, 400), **UNTIL_DONE), analysis=PAPER, **start),
        Scale(
            f"1,500 images, SB 10, LB 150, 2 trials{narrow}",
            Experiment(
                data,
                model,
                pair(10, (100, 200), **UNTIL_DONE),
                train_examples=1500,
                test_examples=2000,
                trials=2,
                analysis=PAPER,
                **width,
                **start,
            ),
        ),
        smoke(generated, model, pair(6, (2, 2), 0.5), model_options={"width": 0.05}, **start),
        "50,000 images, SB 256, LB 5,000, 5 trials: for a GPU (not measured)",
    )


F1 = _both(
    "f1",
    "SB 256 against LB 6,000, five layers of 512 with batch norm on MNIST",
    Experiment("mnist", "keskar-f1", pair(256, (100, 200), **UNTIL_DONE), analysis=PAPER, threads=1),
    Scale(
        "6,000 images, SB 26, LB 600, 3 trials: about 20 min on one core (estimated)",
        Experiment(**REDUCED_F1, regimes=pair(26, (100, 200), **UNTIL_DONE), analysis=PAPER),
    ),
    smoke("digits", "keskar-f1", pair(6, (2, 2), 0.5), **NARROW),
    "60,000 images, SB 256, LB 6,000, 5 trials: about 4 h on one core (from 3 trials); GPU: not measured",
)
F2 = _both(
    "f2",
    "SB 256 against LB 10 %, a wide network on your table of very many classes (--data-dir FILE.csv or .npz)",
    Experiment("table", "keskar-f2", pair(256, (100, 200), **UNTIL_DONE), analysis=PAPER),
    Scale(
        "all rows, SB 64, LB 10 %, at most 20 and 40 epochs, 3 trials: by the table",
        Experiment("table", "keskar-f2", pair(64, (20, 40)), analysis=PAPER),
    ),
    smoke("generated-table", "keskar-f2", pair(6, (2, 2), 0.5), **NARROW),
    "all rows, SB 256, LB 10 %, 5 trials: by the table",
)
CONVOLUTIONAL = tuple(
    _convolutional(network, classes, deep)
    for network, classes, deep in (("c1", 10, False), ("c2", 10, True), ("c3", 100, False), ("c4", 100, True))
)


def _sweep(
    name: str, summary: str, reduced: tuple[str, Settings], paper: tuple[str, Settings], tiny: Settings, trials: int = 5
) -> Recipe:
    """A recipe of many regimes: C1 on CIFAR-10 at the paper's scale, F1 on MNIST below it; each with its cost."""
    whole: Settings = {"data": "cifar10", "model": "keskar-c1", "initialisation": "glorot", "trials": trials}
    scales = {
        "reduced": Scale(reduced[0], Experiment(**REDUCED_F1, **SWEEP, **{"trials": 2, **reduced[1]})),
        "paper": Scale(paper[0], Experiment(**whole, **SWEEP, **paper[1])),
        "smoke": Scale("seconds", smoke("digits", "keskar-f1", **BARE, **NARROW, **tiny)),
    }
    return Recipe(name, summary, scales)


# Figure 4: batch sizes


def sizes(batch_sizes: Iterable[int], epochs: int) -> dict[str, TrainingPlan]:
    """One regime for each batch size, named by it."""
    return {str(size): TrainingPlan(batch_size=size, epochs=epochs) for size in batch_sizes}


BATCH_SIZES = _sweep(
    "keskar-batch-sizes",
    "Test accuracy and sharpness against batch size, C1 on CIFAR-10 (Figure 4)",
    (
        "F1 on 6,000 images of MNIST, 8 batch sizes, 30 epochs, 2 trials: 23 min on one core",
        {"regimes": sizes((16, 32, 64, 128, 256, 600, 1500, 6000), 30)},
    ),
    (
        "C1 on 50,000 images, 10 batch sizes, 100 epochs, 5 trials: for a GPU (not measured)",
        {"regimes": sizes((64, 128, 256, 500, 1000, 2000, 5000, 10000, 25000, 50000), 100)},
    ),
    {"regimes": sizes((6, 20, 60), 2)},
)

# Figure 5: warm starts


def warm(small: TrainingPlan, large: TrainingPlan, epochs: Iterable[int]) -> dict[str, Any]:
    """SB, then LB from SB's iterate after each of ``epochs`` (0: from the start)."""
    names = {epoch: f"LB-from-{epoch}" for epoch in epochs}
    return {
        "regimes": {"SB": small, **dict.fromkeys(names.values(), large)},
        "starts": {name: f"SB{AT}{epoch}" for epoch, name in names.items() if epoch},
        "kept_epochs": tuple(epoch for epoch in names if epoch),
    }


WARM_START = _sweep(
    "keskar-warm-start",
    "LB from the iterates of SB: accuracy and sharpness against SB epochs, C1 on CIFAR-10 (Figure 5)",
    (
        "F1 on 6,000 images of MNIST, 7 starts, 30 epochs each, 2 trials: about 20 min of one core",
        warm(TrainingPlan(26, 30), TrainingPlan(0.1, 30), (0, 1, 2, 5, 10, 20, 30)),
    ),
    (
        "C1 on 50,000 images, from each of 100 epochs, 100 epochs each: for a GPU (not measured)",
        warm(TrainingPlan(256, 100), TrainingPlan(0.1, 100), range(101)),
    ),
    warm(TrainingPlan(6, 3), TrainingPlan(0.5, 2), (0, 1, 3)),
    trials=1,
)

# Figure 7: the curved path


def _curves(small: int, images: int) -> Experiment:
    """F1 on so many images of MNIST, and both paths at twice the usual resolution."""
    return Experiment(
        **{**REDUCED_F1, "train_examples": images},
        regimes=pair(small, (100, 200), **UNTIL_DONE),
        trials=1,
        analysis=FEW,
        line_points=49,
        curve_points=49,
    )


CURVES = Recipe(
    "keskar-curves",
    "Loss along the curved path from SB to LB beside the straight one, F1 on MNIST (Figure 7)",
    {
        "reduced": Scale(
            "6,000 images, SB 26, LB 600, 1 trial: about 3 min on one core (estimated)", _curves(26, 6000)
        ),
        "paper": Scale(
            "60,000 images, SB 256, LB 6,000, 1 trial: about half an hour on one core (estimated)", _curves(256, 0)
        ),
        "smoke": Scale("seconds", smoke("digits", "keskar-f1", pair(6, (2, 2), 0.5), curve_points=4, **NARROW)),
    },
)

# Section 5 and Appendix E: remedies


def remedies(plans: Mapping[str, TrainingPlan], augment: tuple[str, ...], strength: float) -> dict[str, TrainingPlan]:
    """SB and LB, both with augmented data, and LB by conservative, adversarial and robust training.

    ``strength`` scales ε of adversarial training, in pixel values; all settings are ours.
    """
    small, large = plans["SB"], plans["LB"]
    return {
        "SB": small,
        "SB-augmented": replace(small, augment=augment),
        "LB": large,
        "LB-augmented": replace(large, augment=augment),
        "LB-conservative": replace(large, proximal=0.1),
        "LB-adversarial": replace(large, adversarial=strength),
        "LB-robust": replace(large, robust=0.05),
    }


MOVED = ("translate", "rotate", "shear")
REMEDIES = _sweep(
    "keskar-remedies",
    "LB with data augmentation, conservative, adversarial and robust training: accuracy and sharpness (Section 5)",
    (
        "F1 on 6,000 images of MNIST, SB 26, LB 600, at most 60 and 120 epochs, 2 trials: half an hour (estimated)",
        {"regimes": remedies(pair(26, (60, 120), **UNTIL_DONE), MOVED, 0.05)},
    ),
    (
        "C1 on 50,000 images, SB 256, LB 5,000, at most 200 and 400 epochs, 5 trials: for a GPU (not measured)",
        {"regimes": remedies(pair(256, (200, 400), **UNTIL_DONE), ("flip", *MOVED), 4 / 255)},
    ),
    {"regimes": remedies(pair(6, (2, 2), 0.5), MOVED, 0.05)},
)

RECIPES = (F1, F2, *CONVOLUTIONAL, BATCH_SIZES, WARM_START, CURVES, REMEDIES, SKETCH)
