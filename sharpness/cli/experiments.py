"""The commands for experiments."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sharpness.cli.origin import DataDir
from sharpness.cli.tables import grouped, result_table
from sharpness.cli.terminal import Common, Terminal, command
from sharpness.errors import NonFiniteError

app = typer.Typer()
EXPERIMENTS = "Experiments"  # the group in the help

Trials = Annotated[int | None, typer.Option(help="Seeds; default: the recipe's.")]
ScaleName = Annotated[
    str | None, typer.Option("--scale", help="smoke (seconds), reduced or paper.", show_default="the recipe's first")
]
RecipeName = Annotated[str, typer.Argument(help="A recipe's name, or a .toml file that overrides one.")]


@command(app, group=EXPERIMENTS)
def run(
    common: Common,
    terminal: Terminal,
    recipe: RecipeName = "digits",
    data_dir: DataDir = None,
    trials: Trials = None,
    scale: ScaleName = None,
) -> None:
    """Train, analyse and draw: minimizers of one problem in several regimes."""
    from sharpness.render import draw_folder

    chosen = _recipe(recipe, common, trials, scale)
    place = _place(common, terminal, chosen.name, data_dir)
    record = chosen.run(chosen.name, chosen.chosen, chosen.parameters, place)
    terminal.report("figures")
    figures = draw_folder(place.out)
    title, head, rows = result_table(record)
    terminal.table(f"{chosen.name}, {chosen.chosen}: {title}", head, grouped(rows))
    terminal.say(f"Results in {place.out}, {len(figures)} figure files in {place.out / 'figures'}")
    terminal.result({"out": str(place.out), "table": [list(row) for row in rows]})


@command(app, group=EXPERIMENTS)
def recipes(common: Common, terminal: Terminal) -> None:  # noqa: ARG001
    """List the recipes, with their scales and usual costs."""
    from sharpness.recipes import RECIPES

    rows = [
        ("" if number else recipe.name, "" if number else recipe.summary, name, scale.cost)
        for recipe in RECIPES.values()
        for number, (name, scale) in enumerate(recipe.scales.items())
    ]
    terminal.table("recipes, each with its usual scale first", ("name", "what", "scale", "cost"), rows)
    terminal.result(
        {
            recipe.name: {
                "summary": recipe.summary,
                "cost": recipe.cost,
                "scales": {name: scale.cost for name, scale in recipe.scales.items()},
            }
            for recipe in RECIPES.values()
        }
    )


@command(app, group=EXPERIMENTS)
def train(
    common: Common,
    terminal: Terminal,
    recipe: RecipeName,
    data_dir: DataDir = None,
    trials: Trials = None,
    scale: ScaleName = None,
) -> None:
    """Run the training stage of a recipe alone."""
    from sharpness.recipes import train_regimes

    chosen = _recipe(recipe, common, trials, scale)
    place = _place(common, terminal, chosen.name, data_dir)
    _, done = train_regimes(chosen.name, chosen.chosen, chosen.experiment, place)
    rows = [
        (str(seed), regime, str(end.metadata["epochs"]), end.metadata["stopped"])
        for seed, trial in done.items()
        for regime, end in trial.ends.items()
    ]
    diverged = [
        f"{r} (seed {s})" for s, trial in done.items() for r in chosen.experiment.regimes if r not in trial.ends
    ]
    if diverged:
        raise NonFiniteError(
            f"expected a finite training loss; it became NaN or infinite in {', '.join(diverged)}. Lower the learning "
            f"rate there. The other minimizers are in {place.out}."
        )
    terminal.table(f"{chosen.name}: minimizers", ("seed", "regime", "epochs", "stopped"), rows)
    terminal.say(f"Minimizers in {place.out}")
    terminal.result({"out": str(place.out), "minimizers": rows})


def _recipe(name: str, common: Common, trials: int | None, scale: str | None) -> Any:
    """The recipe, at the scale and with the seed and number of trials that the command line gives."""
    from sharpness.recipes import from_toml, recipe_named

    recipe = from_toml(Path(name), scale) if name.endswith(".toml") else recipe_named(name, scale)
    return recipe.with_trials(trials, common.seed)


def _place(common: Common, terminal: Terminal, name: str, data_dir: Path | None) -> Any:
    """Where a recipe runs: in ``--out``, or in a folder of ``runs`` named after it."""
    from sharpness.recipes import Place

    return Place(common.out or Path("runs") / name, common.place, common.precision, data_dir, terminal.report)
