"""The commands."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sharpness.cli import exchange
from sharpness.cli.tables import (
    SHARPNESS_HEAD,
    analysis_rows,
    cost_numbers,
    cost_rows,
    flat_rows,
    grouped,
    loss_rows,
    result_table,
    shape_numbers,
    shape_rows,
    sharpness_rows,
)
from sharpness.cli.terminal import Common, Terminal, command
from sharpness.errors import NonFiniteError, ShapeError

app = typer.Typer(
    help="Loss-landscape sharpness of PyTorch models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(exchange.app)
EXPERIMENTS, CHECKPOINTS, FILES, MACHINE = "Experiments", "Your checkpoints", "Results", "This machine"

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the original data files, or your table; else SHARPNESS_DATA.")
]
Foreign = Annotated[str | None, typer.Option("--problem", help="FILE.py:NAME that makes (model, loss, train[, test]).")]
Trials = Annotated[int | None, typer.Option(help="Seeds; default: the recipe's.")]
ScaleName = Annotated[
    str | None, typer.Option("--scale", help="smoke (seconds), reduced or paper.", show_default="the recipe's first")
]
RecipeName = Annotated[str, typer.Argument(help="A recipe's name, or a .toml file that overrides one.")]
Examples = Annotated[int, typer.Option(help="Measure on the first so many training examples; 0 is all.", min=0)]


def main() -> None:
    """Run the command line."""
    app()


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


@command(app, group=CHECKPOINTS)
def analyze(
    common: Common,
    terminal: Terminal,
    checkpoints: Annotated[list[Path], typer.Argument(help="Minimizers, or .pt/.pth/.safetensors with --problem.")],
    problem: Foreign = None,
    data_dir: DataDir = None,
    k: Annotated[int, typer.Option(help="Eigenpairs from the top of the spectrum.")] = 5,
    tolerance: Annotated[float, typer.Option(help="Residual relative to the largest |λ|.")] = 1e-3,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="ε of the box, repeatable.", show_default="1e-3 5e-4")
    ] = None,
    subspace: Annotated[int, typer.Option(help="Dimension of the random subspace; 0 leaves it out.")] = 100,
    restarts: Annotated[int, typer.Option(help="Starts of each maximiser.")] = 2,
    density: Annotated[int, typer.Option(help="Probes of the spectral density, 80 products each; 0: none.")] = 0,
    examples: Examples = 0,
) -> None:
    """Eigenvalues, ε-sharpness and spectral density of saved checkpoints."""
    from sharpness.recipes import AnalysisPlan, analyse_checkpoints
    from sharpness.render import draw_folder

    epsilons = tuple(epsilon) if epsilon else (1e-3, 5e-4)
    plan = AnalysisPlan(k, tolerance, epsilons, subspace, restarts=restarts, examples=examples, density_probes=density)
    out = common.out or _default_out("analyze", checkpoints)
    results = analyse_checkpoints(
        checkpoints,
        plan,
        out,
        problem=problem,
        data_dir=data_dir,
        seed=common.seed or 0,
        device=common.place,
        dtype=common.precision,
        report=terminal.report,
    )
    terminal.report("figures")
    draw_folder(out)
    for name, numbers in results.items():
        terminal.table(name, ("quantity", "value"), analysis_rows(numbers))
        terminal.table("", SHARPNESS_HEAD, sharpness_rows(numbers))
    terminal.say(f"Results in {out}, figures in {out / 'figures'}")
    terminal.result({"out": str(out), "checkpoints": results})


@command(app, group=CHECKPOINTS)
def landscape(
    common: Common,
    terminal: Terminal,
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="By default one: random plane. Two: line. Three: plane through them. More: trajectory."),
    ],
    problem: Foreign = None,
    data_dir: DataDir = None,
    kind: Annotated[
        str,
        typer.Option(
            help="Of two: line, arc, bezier, polygon (trained). Of each: profiles, random, eigenvectors. Of two or "
            "three: through. Of three or more: trajectory."
        ),
    ] = "",
    points: Annotated[int, typer.Option(help="Points along each axis.", min=2)] = 25,
    low: Annotated[float | None, typer.Option(help="First coordinate.", show_default="by the kind")] = None,
    high: Annotated[float | None, typer.Option(help="Last coordinate.", show_default="by the kind")] = None,
    normalise: Annotated[
        str, typer.Option(help="Random directions by filter, layer, model, weight or none.")
    ] = "filter",
    hold: Annotated[bool, typer.Option(help="Biases and norm layers stay along random directions.")] = True,
    directions: Annotated[int, typer.Option(help="Random lines from each point, of profiles.", min=1)] = 20,
    share: Annotated[float, typer.Option(help="Of a plane's points to evaluate at most, coarse to fine.")] = 1.0,
    batchnorm: Annotated[str | None, typer.Option(help="recompute, eval or batch.", show_default="recompute")] = None,
    bends: Annotated[int, typer.Option(help="Of a trained curve.", min=1)] = 1,
    epochs: Annotated[int, typer.Option(help="Of training a curve.", min=1)] = 200,
    convexity: Annotated[bool, typer.Option(help="Smallest and largest eigenvalue at every point: dear.")] = False,
    examples: Examples = 0,
) -> None:
    """Loss and accuracy on a line, curve or plane; interrupted, it goes on where it was."""
    from sharpness import recipes
    from sharpness.render import draw_folder

    if (low is None) != (high is None):
        raise ShapeError("expected --low and --high together; got one of them")
    plan = recipes.LandscapePlan(
        kind=kind,
        points=points,
        extent=None if low is None or high is None else (low, high),
        by=normalise,
        hold=hold,
        directions=directions,
        share=share,
        batchnorm=batchnorm,
        bends=bends,
        epochs=epochs,
        examples=examples,
        seed=common.seed or 0,
    )
    out = common.out or _default_out("landscape", checkpoints)
    found = recipes.landscape(
        checkpoints,
        out,
        plan,
        convexity=convexity,
        problem=problem,
        data_dir=data_dir,
        device=common.place,
        dtype=common.precision,
        report=terminal.report,
    )
    terminal.report("figures")
    draw_folder(out)
    shapes = {name: shape_numbers(record, found.curvature.get(name)) for name, record in found.losses.items()}
    for name, record in found.losses.items():
        title = f"{name or record.kind}, batch norm: {record.batchnorm}"
        terminal.table(title, ("data set", "least loss", "largest loss"), loss_rows(record))
        if shapes[name]:
            terminal.table("", ("what", "value"), shape_rows(shapes[name]))
    terminal.say(f"Results in {out}, figures in {out / 'figures'}")
    terminal.result(
        {
            "out": str(out),
            "landscapes": {
                name: {"split": record.split.tolist(), "loss": record.loss.tolist(), **shapes[name]}
                for name, record in found.losses.items()
            },
        }
    )


@command(app, group=FILES)
def figures(
    common: Common,
    terminal: Terminal,
    path: Annotated[
        str, typer.Argument(help="A run's folder, one .h5 file, or a figure by name: keskar-1 to keskar-7, a recipe.")
    ],
    runs: Annotated[Path, typer.Option(help="Where the runs lie from which a named figure is drawn.")] = Path("runs"),
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="svg, pdf, png; gif or mp4 of runs.", show_default="the first three"),
    ] = None,
) -> None:
    """Draw again, from HDF5 alone; a named figure with its table beside published values."""
    from sharpness.render import FORMATS, MOVING, PAPER, draw_file, draw_folder, draw_paper

    named, wanted = path in PAPER and not Path(path).exists(), tuple(formats or FORMATS)
    known = FORMATS if named else (*FORMATS, *MOVING)
    if not set(wanted) <= set(known):
        raise ShapeError(f"expected --format {', '.join(known)}; got {', '.join(wanted)}")
    terminal.report("figures")
    if named:
        written = draw_paper(path, runs, common.out or runs / "figures", wanted)
    else:
        written = draw_folder(Path(path), wanted) if Path(path).is_dir() else draw_file(Path(path), wanted)
    for file in written:
        terminal.say(str(file))
    terminal.result([str(file) for file in written])


@command(app, group=FILES)
def info(
    common: Common,  # noqa: ARG001 - every command takes the common options
    terminal: Terminal,
    path: Annotated[Path, typer.Argument(help="A results file (.h5) or a minimizer (.safetensors).")],
) -> None:
    """What a file holds, and where it comes from."""
    if path.suffix == ".safetensors":
        from sharpness.checkpoints import load_minimizer

        minimizer = load_minimizer(path)
        facts = {"parameters": minimizer.point.theta.numel(), "theta_sha256": minimizer.point.sha256}
        terminal.table(str(path), ("what", "value"), flat_rows({**facts, **minimizer.metadata}))
        terminal.result({**facts, **minimizer.metadata})
        return
    from sharpness.records import settings, variables
    from sharpness.store import load_all, load_provenance

    origin, found = load_provenance(path), load_all(path)
    for name, record in found.items():
        rows = [
            (v.name, " × ".join(v.dims) or "scalar", str(v.values.shape), v.unit, v.label) for v in variables(record)
        ]
        terminal.table(f"{path}: {name} ({record.kind})", ("variable", "dimensions", "shape", "unit", "what"), rows)
        choices = {**settings(record), **record.conditions}
        if doubted := getattr(record, "doubted", []):
            choices["pairs where the audit disagrees"] = doubted
        terminal.table("choices", ("name", "value"), flat_rows(choices))
    terminal.table("provenance", ("what", "value"), flat_rows(origin))
    terminal.result({"records": {name: record.kind for name, record in found.items()}, "provenance": origin})


@command(app, group=MACHINE)
def bench(
    common: Common,
    terminal: Terminal,
    model: Annotated[str, typer.Option(help="A built-in model, on random inputs of its shape.")] = "keskar-f1",
    problem: Foreign = None,
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
        made, name = recipes.measured_on(recipes.load_problem(problem), examples), problem
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
def doctor(common: Common, terminal: Terminal, problem: Foreign = None) -> None:
    """Versions, devices and what is missing; with --problem, checks of that model."""
    from sharpness.doctor import check_machine, check_problem
    from sharpness.recipes import load_problem

    checks = check_machine()
    if problem is not None:
        made = load_problem(problem)
        checks += check_problem(made, device=common.place, dtype=common.precision, seed=common.seed or 0)
    rows = [("ok" if c.good else "FAILS", c.name, c.seen + ("" if c.good else f" → {c.cure}")) for c in checks]
    terminal.table("doctor", ("", "check", "seen"), rows)
    terminal.result([c._asdict() for c in checks])
    if not all(c.good for c in checks):
        raise typer.Exit(1)


def _default_out(command: str, checkpoints: list[Path]) -> Path:
    """A folder named after the files and the folders that they lie in, where runs keep one name for all minimizers."""
    names = ("-".join(path.resolve().with_suffix("").parts[-3:]) for path in checkpoints)
    return Path("runs") / "-".join([command, *names]).replace("/", "")[:200]


def _recipe(name: str, common: Common, trials: int | None, scale: str | None) -> Any:
    """The recipe, at the scale and with the seed and number of trials that the command line gives."""
    from sharpness.recipes import from_toml, recipe_named

    recipe = from_toml(Path(name), scale) if name.endswith(".toml") else recipe_named(name, scale)
    return recipe.with_trials(trials, common.seed)


def _place(common: Common, terminal: Terminal, name: str, data_dir: Path | None) -> Any:
    """Where a recipe runs: in ``--out``, or in a folder of ``runs`` named after it."""
    from sharpness.recipes import Place

    return Place(common.out or Path("runs") / name, common.place, common.precision, data_dir, terminal.report)
