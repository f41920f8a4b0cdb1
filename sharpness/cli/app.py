"""The command line: its groups of commands, in the order of the help."""

import typer

from sharpness.cli import checkpoints, exchange, experiments, machine, results, series

app = typer.Typer(
    help="Loss-landscape sharpness of PyTorch models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for group in (experiments, checkpoints, series, results, exchange, machine):
    app.add_typer(group.app)


def main() -> None:
    """Run the command line."""
    app()
