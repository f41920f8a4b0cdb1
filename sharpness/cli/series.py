"""The commands for many saved checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sharpness.cli.origin import Examples, Origin, Parameters, Restarts, Tolerance
from sharpness.cli.tables import grouped
from sharpness.cli.terminal import Common, Terminal, command
from sharpness.records import Comparison, Trajectory, settings, variables

app = typer.Typer()
CHECKPOINTS = "Your checkpoints"  # the group in the help
Set = "a folder, a file, or a pattern in quotes ('runs/seed-*/{}/minimizer.safetensors')"

Probes = Annotated[int, typer.Option(help="Random vectors for each trace, the same everywhere.", min=2)]


@command(app, group=CHECKPOINTS)
def trajectory(
    common: Common,
    terminal: Terminal,
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints of one run, ordered by epoch or step.")],
    origin: Origin,
    k: Annotated[int, typer.Option(help="Eigenpairs from the top of the spectrum.")] = 1,
    tolerance: Tolerance = 1e-3,
    epsilon: Annotated[float, typer.Option(help="ε of the box.")] = 1e-3,
    probes: Probes = 30,
    restarts: Restarts = 2,
    learning_rate: Annotated[
        float | None, typer.Option(help="η of gradient descent, for the edge of stability 2/η.")
    ] = None,
    parameters: Parameters = None,
    examples: Examples = 0,
) -> None:
    """λmax, trace, ε-sharpness and losses along training, against the step; interrupted, it goes on."""
    from sharpness.recipes import AnalysisPlan, follow_checkpoints
    from sharpness.render import draw_folder

    chosen = tuple(parameters or ())
    plan = AnalysisPlan(k, tolerance, (epsilon,), 0, restarts=restarts, examples=examples, parameters=chosen)
    out = common.out or Path("runs") / "-".join(["trajectory", *checkpoints[0].resolve().parent.parts[-3:]])
    record, remarks = follow_checkpoints(
        checkpoints,
        plan,
        out,
        probes=probes,
        learning_rate=learning_rate,
        source=origin.source,
        seed=common.seed or 0,
        device=common.place,
        dtype=common.precision,
        report=terminal.report,
    )
    terminal.report("figures")
    draw_folder(out)
    title = f"checkpoints by {record.counts}, {record.conditions['numbers']}"
    for head, rows in trajectory_tables(record):
        terminal.table(title, head, rows)
        title = ""
    for remark in remarks:
        terminal.warn(remark)
    terminal.say(f"Result in {out / 'trajectory.h5'}, figures in {out / 'figures'}")
    terminal.result({"out": str(out), **json_of(record), "remarks": remarks})


@command(app, group=CHECKPOINTS)
def compare(
    common: Common,
    terminal: Terminal,
    first: Annotated[str, typer.Argument(help=f"Checkpoints of one kind: {Set.format('SB')}.")],
    second: Annotated[str, typer.Argument(help=f"Those of the other: {Set.format('LB')}.")],
    origin: Origin,
    names: Annotated[
        str | None, typer.Option(help="What to call them: SB,LB", show_default="what differs between the two places")
    ] = None,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="They do not belong together one by one.")] = False,
    k: Annotated[int, typer.Option(help="Eigenpairs from the top of the spectrum.")] = 5,
    tolerance: Tolerance = 1e-3,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="ε of the box, repeatable.", show_default="1e-3 5e-4")
    ] = None,
    subspace: Annotated[int, typer.Option(help="Dimension of the random subspace; 0 leaves it out.")] = 100,
    probes: Probes = 30,
    restarts: Restarts = 2,
    parameters: Parameters = None,
    examples: Examples = 0,
) -> None:
    """Two sets of checkpoints against each other: the same measures of all, differences and statistics."""
    from sharpness.recipes import AnalysisPlan, checkpoints_in, compare_checkpoints, set_names
    from sharpness.render import differences_table, draw_folder

    called = _two_names(names) if names else set_names(first, second)
    sets = dict(zip(called, (checkpoints_in(first), checkpoints_in(second)), strict=True))
    epsilons = tuple(epsilon) if epsilon else (1e-3, 5e-4)
    chosen = tuple(parameters or ())
    plan = AnalysisPlan(k, tolerance, epsilons, subspace, restarts=restarts, examples=examples, parameters=chosen)
    out = common.out or Path("runs") / "-".join(["compare", *called])
    title, head, rows = set_rows(sets, paired=not unpaired)
    terminal.table(title, head, rows)
    record, remarks = compare_checkpoints(
        sets,
        plan,
        out,
        paired=not unpaired,
        probes=probes,
        source=origin.source,
        seed=common.seed or 0,
        device=common.place,
        dtype=common.precision,
        report=terminal.report,
    )
    terminal.report("figures")
    draw_folder(out)
    table = differences_table(record)
    for title, shown in ((table.title, (0, 1, 2, 6, 7, 8)), ("in words", (0, 3))):  # one table is too wide
        rows = [tuple(row[column] for column in shown) for row in table.texts]
        terminal.table(title, [table.head[column] for column in shown], grouped(rows))
    for note in table.notes:
        terminal.say(note)
    for remark in remarks:
        terminal.warn(remark)
    terminal.say(f"Result in {out / 'comparison.h5'}, figures and tables in {out / 'figures'}")
    terminal.result({"out": str(out), **json_of(record), "differences": differences_json(record), "remarks": remarks})


def trajectory_tables(record: Trajectory) -> Iterator[tuple[Sequence[str], list[tuple[str, ...]]]]:
    """Heads and rows, one for each checkpoint: losses and curvature, then ε-sharpness and norms."""
    numbers = [str(number) for number in record.epoch]
    losses = [
        (f"{split} loss", [f"{value:.4g}" for value in row])
        for split, row in zip(record.split, record.loss, strict=True)
    ]
    for found in filter(None, [record.curvature]):
        largest = [
            f"{value:.5g} ± {residual:.1g}" + ("" if converged else " (not converged)")
            for value, residual, converged in zip(*(part[0] for part in found[:3]), strict=True)
        ]
        traces = [f"{value:.4g} ± {error:.2g}" for value, error in zip(found.trace, found.trace_error, strict=True)]
        yield _columns((record.counts, numbers), *losses, ("λmax", largest), ("trace", traces))
    measures = {
        "ε-sharpness (%)": record.sharpness, "sign ascent": record.stronger, "first order": record.first_order,
        "‖g‖": record.gradient_norm, "‖θ‖": record.weight_norm, "‖θ − θ₀‖": record.distance,
    }  # fmt: skip
    columns = [(name, [f"{value:.3g}" for value in values]) for name, values in measures.items()]
    yield _columns((record.counts, numbers), *columns)


def _columns(*columns: tuple[str, list[str]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Head and rows from named columns."""
    return [name for name, _ in columns], list(zip(*(texts for _, texts in columns), strict=True))


def set_rows(sets: Mapping[str, list[Path]], *, paired: bool) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """Title, head and rows of the files of two sets, side by side, so that a wrong pair is seen."""
    longest = max(map(len, sets.values()))
    columns = [[*map(str, paths), *[""] * (longest - len(paths))] for paths in sets.values()]
    rows = [(str(number), *row) for number, row in enumerate(zip(*columns, strict=True), 1)]
    return "pairs" if paired else "sets", ("pair" if paired else "", *sets), rows


def json_of(record: Any) -> dict[str, Any]:
    """Every variable and choice of a record."""
    values = {variable.name: variable.values.tolist() for variable in variables(record)}
    return {**values, **settings(record)}


def differences_json(record: Comparison) -> dict[str, dict[str, Any]]:
    """The statistics of every measure by its name, in full precision."""
    from sharpness.render.differences import contrasts

    return {
        one.measure.name: {"in words": one.words, **one.contrast._asdict(), "p (Holm)": one.adjusted}
        for one in contrasts(record)
    }


def _two_names(names: str) -> tuple[str, str]:
    first, separator, second = (part.strip() for part in names.partition(","))
    if not (separator and first and second and first != second):
        raise typer.BadParameter(f"expected --names as two different ones, SB,LB; got {names!r}")
    return first, second
