"""A language model in small and large batches: Keskar et al. 2017's comparison of SB with LB where examples are texts.

All settings are ours. Both regimes have one optimizer and one rate, which ended at the lowest training loss of either:
of 3e-3 and 1e-2 for SB, of 3e-3, 1e-2 and 2e-2 for LB (one seed each, LB for half the epochs). The rate falls to 0, so
that they end at a point of a valley and not of the noise around it. LB has six times the epochs of SB, which are still
480 steps to 2,560: it ends at a higher loss, which tables and figures show beside its sharpness.
"""

from sharpness.recipes.analysis import AnalysisPlan
from sharpness.recipes.experiment import Experiment, smoke
from sharpness.recipes.recipe import Recipe, Scale
from sharpness.training import TrainingPlan

CHAR_LM = Recipe(
    "char-lm",
    "SB 16 against LB 512 sequences of a text (tinyshakespeare or --data-dir FILE.txt), a small transformer",
    {
        "reduced": Scale(
            "2,048 sequences of 64 characters, width 32, 3 trials: 41 minutes on one core beside other work",
            Experiment(
                data="text",
                model="char-transformer",
                regimes={
                    "SB": TrainingPlan(batch_size=16, epochs=20, learning_rate=1e-2, schedule="cosine"),
                    "LB": TrainingPlan(batch_size=512, epochs=120, learning_rate=1e-2, schedule="cosine"),
                },
                model_options={"width": 32},
                train_examples=2048,
                test_examples=512,
                analysis=AnalysisPlan(restarts=1, examples=512),
                kept_epochs=(1, 2, 3, 5, 8, 12, 16, 20, 30, 45, 70, 100),
                followed=("SB", "LB"),
                threads=1,
            ),
        ),
        "smoke": Scale(
            "seconds",
            smoke(
                "generated-text",
                "char-transformer",
                {"SB": TrainingPlan(6, 2), "LB": TrainingPlan(0.5, 2)},
                model_options={"width": 8, "depth": 1, "heads": 2},
                kept_epochs=(1, 2),
                followed=("SB", "LB"),
            ),
        ),
    },
)
