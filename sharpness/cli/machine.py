"""The commands that look at this machine and at models."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sharpness.cli.origin import Origin
from sharpness.cli.tables import cost_numbers, cost_rows
from sharpness.cli.terminal import Common, Terminal, command

app = typer.Typer()
MACHINE = "This machine"  # the group in the help
SHOWN = {"ok": "ok", "note": "note", "fails": "FAILS"}


@command(app, group=MACHINE)
def bench(
    common: Common,
    terminal: Terminal,
    model: Annotated[str, typer.Option(help="A built-in model, on random inputs of its shape.")] = "keskar-f1",
    problem: Annotated[str | None, typer.Option(help="FILE.py:NAME that makes (model, loss, train[, test]).")] = None,
    examples: Annotated[
        int, typer.Option(help="Examples to measure on; 0 is all (2,000 with a built-in model).", min=0)
    ] = 0,
    repeats: Annotated[int, typer.Option(help="Timed repeats.", min=1)] = 5,
) -> None:
    """Cost of a gradient and of a Hessian-vector product: this machine, this model."""
    from sharpness import recipes
    from sharpness.bench import product_cost
    from sharpness.store import save

    if problem is None:
        made, name = recipes.random_problem(model, examples or 2000, seed=common.seed or 0), model
    else:
        made, name = recipes.measured_on(recipes.Source(problem).make(), examples), problem
    objectives, theta = replace(made, test=None).objectives(device=common.place, dtype=common.precision)
    record = product_cost(
        objectives["train"],
        theta,
        name=name,
        repeats=repeats,
        seed=common.seed or 0,
        progress=terminal.report("bench"),
    )
    if common.out is not None:
        save(record, common.out / "product_cost.h5")
    terminal.table(f"{name} on {common.place}, {common.dtype}", ("what", "value"), cost_rows(record))
    terminal.result(cost_numbers(record))


@command(app, group=MACHINE)
def doctor(
    common: Common,
    terminal: Terminal,
    origin: Origin,
    checkpoint: Annotated[Path | None, typer.Argument(help="Weights to check; default: those of the problem.")] = None,
) -> None:
    """Versions, devices and what is missing; of a model, whether its numbers can be trusted."""
    from sharpness.doctor import check_machine, check_problem

    checks, source = check_machine(), origin.source
    place: dict[str, Any] = {"device": common.place, "dtype": common.precision, "seed": common.seed or 0}
    if checkpoint is not None:
        made, point = source.open(checkpoint)
        checks += check_problem(made, point, **place)
    elif source.foreign:
        checks += check_problem(source.make(), **place)
    rows = [(SHOWN[c.outcome], c.name, c.seen) for c in checks]
    terminal.table("doctor", ("", "check", "seen"), rows)
    for check in checks:
        if check.outcome != "ok" and check.cure:
            terminal.say(f"{check.name}. {check.cause}".strip(". ") + f". → {check.cure}.")
    terminal.result([c._asdict() for c in checks])
    if not all(c.good for c in checks):
        raise typer.Exit(1)
