"""The commands that exchange results with other programs and people."""

from pathlib import Path
from typing import Annotated

import typer

from sharpness.cli.tables import flat_rows, loss_rows
from sharpness.cli.terminal import Common, Terminal, command
from sharpness.errors import SchemaError

app = typer.Typer()
FILES = "Results"  # the group in the help


@command(app, group=FILES)
def export(
    common: Common,
    terminal: Terminal,
    path: Annotated[Path, typer.Argument(help="A results file (.h5).")],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="csv (the default); of planes also vti and vtp, for ParaView; repeatable."),
    ] = None,
) -> None:
    """Tables for pandas, grids and surfaces for ParaView; beside the file, or in --out."""
    from sharpness.export import export_file

    written = [str(file) for file in export_file(path, formats or ["csv"], common.out)]
    for file in written:
        terminal.say(file)
    terminal.result(written)


@command(app, group=FILES, name="import")
def import_(
    common: Common,
    terminal: Terminal,
    path: Annotated[Path, typer.Argument(help="A surface (.h5) that loss-landscape wrote.")],
    directions: Annotated[Path | None, typer.Option(help="Its direction file: lengths and angle of the axes.")] = None,
    trajectory: Annotated[Path | None, typer.Option(help="Its file of a projected training run.")] = None,
) -> None:
    """A loss surface of tomgoldstein/loss-landscape as a results file: --out FILE.h5, or a folder."""
    from sharpness.foreign import load_loss_landscape
    from sharpness.store import save

    record = load_loss_landscape(path, directions=directions, trajectory=trajectory)
    out = common.out or Path()
    out = out if out.suffix == ".h5" else out / f"{record.kind}.h5"
    if out.exists():
        raise SchemaError(f"expected a new file for the result; {out} exists. Choose another --out, or remove it.")
    save(record, out)
    pending, points = int((record.status == 0).sum()), record.status.size
    title = f"{record.kind}, {points} points" + (f", {pending} of them pending" if pending else "")
    terminal.table(title, ("data set", "least loss", "largest loss"), loss_rows(record))
    terminal.table("not recorded in such files", ("what", ""), flat_rows(record.conditions["not recorded"]))
    terminal.say(f"Result in {out}")
    terminal.result({"out": str(out), "split": record.split.tolist(), "loss": record.loss.tolist()})


@command(app, group=FILES)
def report(
    common: Common,
    terminal: Terminal,
    run_dir: Annotated[Path, typer.Argument(help="A run's folder, or any with .h5 files.")],
) -> None:
    """One HTML file to read and to mail: every figure, table and setting, surfaces that turn.

    --out names the file; by default it is report.html in the folder.
    """
    from sharpness.report import write_report

    written = write_report(run_dir, common.out, progress=terminal.report("report"))
    size = written.stat().st_size
    terminal.say(f"Report in {written}, {size / 1e6:.1f} MB: it needs no other file, and no network")
    terminal.result({"out": str(written), "bytes": size})
