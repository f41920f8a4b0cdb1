"""The options that the commands for checkpoints share: what these belong to, and how they are measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sharpness.errors import ShapeError

PANEL = "What the weights belong to"

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the original data files, or your table or text; else SHARPNESS_DATA."),
]

Tolerance = Annotated[float, typer.Option(help="Residual relative to the largest |λ|.")]
Restarts = Annotated[int, typer.Option(help="Starts of each maximiser.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option(help="Measure over the parameters of this pattern alone, the others held; repeatable."),
]
Examples = Annotated[int, typer.Option(help="Measure on the first so many training examples; 0 is all.", min=0)]


@dataclass(frozen=True)
class Origin:
    """What checkpoints belong to, as the command line says it."""

    problem: Annotated[
        str | None, typer.Option(help="FILE.py:NAME that makes (model, loss, train[, test]).", rich_help_panel=PANEL)
    ] = None
    model: Annotated[
        str | None,
        typer.Option(help="torchvision:NAME, timm:NAME, hf:DIR or one of ours; with --data.", rich_help_panel=PANEL),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(help="cifar10:DIR, cifar100:DIR, mnist:DIR, text:FILE, table:FILE, …", rich_help_panel=PANEL),
    ] = None
    mean: Annotated[str, typer.Option(help="Taken off inputs: 0.485,0.456,0.406", rich_help_panel=PANEL)] = ""
    std: Annotated[str, typer.Option(help="Inputs are divided by: 0.229,0.224,0.225", rich_help_panel=PANEL)] = ""
    own_transform: Annotated[
        bool, typer.Option("--own-transform", help="Prepare images as the model's library does.", rich_help_panel=PANEL)
    ] = False
    limit: Annotated[
        int,
        typer.Option(help="Take the first so many training and test examples of --data.", min=0, rich_help_panel=PANEL),
    ] = 0
    weights: Annotated[
        str, typer.Option(help="Which weights of a file that holds several: auto, model or ema.", rich_help_panel=PANEL)
    ] = "auto"
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of weights that may be missing, left over or of another shape; repeatable.",
            rich_help_panel=PANEL,
        ),
    ] = None
    data_dir: DataDir = None

    @property
    def source(self) -> Any:
        """The same for recipes."""
        from sharpness.recipes import Preprocessing, Source

        preparing = Preprocessing(
            _numbers("mean", self.mean), _numbers("std", self.std), self.own_transform, self.limit
        )
        return Source(
            self.problem, self.model, self.data, preparing, self.data_dir, self.weights, tuple(self.allow or ())
        )


def _numbers(name: str, given: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in given.split(",")) if given else ()
    except ValueError as error:
        raise ShapeError(f"expected --{name} as numbers separated by commas; got {given!r}") from error
