"""The default recipe: a minute on two cores, on data that come with the package."""

from sharpness.recipes.experiment import Experiment, smoke
from sharpness.recipes.recipe import Recipe, Scale
from sharpness.training import TrainingPlan

DIGITS = Recipe(
    "digits",
    "SB 16 against LB 10 % on 1,797 handwritten digits (embedded), MLP with batch norm",
    {
        "reduced": Scale(
            "about a minute on two cores",
            Experiment(
                data="digits",
                model="digits-mlp",
                regimes={
                    # to rate 0: at a constant one the last SB iterate is a point of the noise around a minimum
                    "SB": TrainingPlan(batch_size=16, epochs=60, schedule="cosine", patience=20),
                    "LB": TrainingPlan(batch_size=0.1, epochs=150, schedule="cosine", patience=20),
                },
                line_points=49,
                plane_points=21,
                kept_epochs=(1, 2, 4, 8, 16, 32, 64, 100),
                followed=("SB", "LB"),
                threads=1,
            ),
        ),
        "smoke": Scale(
            "seconds",
            smoke("digits", "digits-mlp", {"SB": TrainingPlan(6, 2), "LB": TrainingPlan(0.5, 2)}, plane_points=3),
        ),
    },
)
