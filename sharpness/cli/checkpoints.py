"""The commands for saved checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from sharpness.cli.origin import Examples, Origin, Parameters, Restarts, Tolerance
from sharpness.cli.tables import (
    LAYERS_HEAD,
    SHARPNESS_HEAD,
    analysis_rows,
    layer_rows,
    loss_rows,
    shape_numbers,
    shape_rows,
    sharpness_rows,
)
from sharpness.cli.terminal import Common, Terminal, command
from sharpness.errors import ShapeError

app = typer.Typer()
CHECKPOINTS = "Your checkpoints"  # the group in the help


@command(app, group=CHECKPOINTS)
def analyze(
    common: Common,
    terminal: Terminal,
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="Minimizers, or .pt/.pth/.ckpt/.safetensors files and HuggingFace folders of any model."),
    ],
    origin: Origin,
    k: Annotated[int, typer.Option(help="Eigenpairs from the top of the spectrum.")] = 5,
    tolerance: Tolerance = 1e-3,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="ε of the box, repeatable.", show_default="1e-3 5e-4")
    ] = None,
    subspace: Annotated[int, typer.Option(help="Dimension of the random subspace; 0 leaves it out.")] = 100,
    restarts: Restarts = 2,
    density: Annotated[int, typer.Option(help="Probes of the spectral density, 80 products each; 0: none.")] = 0,
    parameters: Parameters = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also λmax, trace and norms of each layer alone.")] = False,
    examples: Examples = 0,
) -> None:
    """Eigenvalues, ε-sharpness and spectral density of saved checkpoints."""
    from sharpness.recipes import AnalysisPlan, analyse_checkpoints
    from sharpness.render import draw_folder
    from sharpness.store import load

    epsilons = tuple(epsilon) if epsilon else (1e-3, 5e-4)
    plan = AnalysisPlan(
        k,
        tolerance,
        epsilons,
        subspace,
        restarts=restarts,
        examples=examples,
        density_probes=density,
        parameters=tuple(parameters or ()),
        layers=layers,
    )
    out = common.out or _default_out("analyze", checkpoints)
    results = analyse_checkpoints(
        checkpoints,
        plan,
        out,
        source=origin.source,
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
        if layers:
            terminal.table("", LAYERS_HEAD, layer_rows(load(out / name / "layers.h5")))
        for remark in numbers["remarks"]:
            terminal.warn(f"{name}: {remark}")
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
    origin: Origin,
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
        source=origin.source,
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


def _default_out(command: str, checkpoints: list[Path]) -> Path:
    """A folder named after the files and the folders that they lie in, where runs keep one name for all minimizers."""
    names = ("-".join(path.resolve().with_suffix("").parts[-3:]) for path in checkpoints)
    return Path("runs") / "-".join([command, *names]).replace("/", "")[:200]
