"""The commands for results on disk."""

from pathlib import Path
from typing import Annotated

import typer

from sharpness.cli.tables import flat_rows
from sharpness.cli.terminal import Common, Terminal, command
from sharpness.errors import ShapeError

app = typer.Typer()
FILES = "Results"  # the group in the help


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
    if common.out is not None and not named:
        raise ShapeError("expected --out with a figure by name; those of a run go beside its results, in figures/")
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
