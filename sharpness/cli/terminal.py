"""What people see: progress, tables, and one message when something goes wrong."""

import errno
import inspect
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from sharpness.errors import NonFiniteError, NotConvergedError, SharpnessError
from sharpness.progress import Progress

WIDE = 160
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
MISPLACED = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Common:
    """The options that every command takes."""

    out: Annotated[Path | None, typer.Option(help="Folder for results; an existing one resumes.")] = None
    seed: Annotated[
        int | None, typer.Option(help="Seed of every random stream.", show_default="the recipe's, or 0", min=0)
    ] = None
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")] = "auto"
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32"
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")] = False
    json: Annotated[bool, typer.Option("--json", help="Print results as JSON on standard output.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False

    @property
    def place(self) -> str:
        """The device, with ``auto`` decided."""
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise typer.BadParameter(f"expected a device that is here; {self.device!r} is not ({reason})") from error
        return self.device

    @property
    def precision(self) -> Any:
        """The dtype as PyTorch's."""
        import torch

        if self.dtype not in ("float32", "float64"):
            raise typer.BadParameter(f"expected --dtype float32 or float64; got {self.dtype!r}")
        return getattr(torch, self.dtype)


class Terminal:
    """Where a command reports: progress on standard error, results on standard output."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self._interrupted = False
        self._before: Any = None
        self._console = Console(stderr=True)
        self._shown = Console()
        if not self._shown.is_terminal and "COLUMNS" not in os.environ:
            self._shown.width = WIDE  # a file or a pipe has no edge at which to cut a table off
        show = not common.quiet and self._console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bars = Bars(*columns, console=self._console, disable=not show, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> "Terminal":
        self._bars.start()
        if threading.current_thread() is threading.main_thread():  # where alone handlers can be set
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, *_: object) -> None:
        """Raise, and remember: Python drops what is raised in the callback of a weak reference."""
        self._interrupted = True
        raise KeyboardInterrupt

    def report(self, title: str) -> Progress:
        """Begin a stage; the one before is over."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        task = self._task = self._bars.add_task(title, total=None, note="", left="")
        first: list[tuple[float, int]] = []  # when the first report came, and what had been done by then

        def progress(done: int, total: int | None, note: str = "") -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            now = time.monotonic()
            if not first:
                first.append((now, done))
            left = "" if total is None else time_left(now - first[0][0], done - first[0][1], total - done)
            self._bars.update(task, completed=done, total=total, note=note, left=left)

        return progress

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, unless told to be quiet or to print JSON."""
        if self._common.quiet or self._common.json:
            return
        self._bars.stop()
        shown = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        least = 10 if len(head) <= 5 else 6
        for index, column in enumerate(head):
            widest = max((len(row[index]) for row in rows), default=0)
            shown.add_column(column, overflow="fold", min_width=min(least if index else 20, widest))
        for row in rows:
            shown.add_row(*row)
        self._shown.print(shown)

    def say(self, text: str) -> None:
        """Print a line, unless told to be quiet or to print JSON."""
        if not (self._common.quiet or self._common.json):
            self._shown.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line that should not be missed on standard error, unless told to be quiet."""
        if not self._common.quiet:
            self._console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def result(self, values: Any) -> None:
        """Print the result as JSON where that was asked for."""
        if self._common.json:
            print(json.dumps(_jsonable(values), indent=1, allow_nan=False))


def time_left(seconds: float, done: int, left: int) -> str:
    """How long the steps that are left will take if they go on as those done so far, from the first report on.

    >>> time_left(6.0, 3, 50), time_left(0.0, 0, 50)
    ('about 0:01:40 left', '')
    """
    return f"about {timedelta(seconds=math.ceil(seconds * left / done))} left" if done > 0 and left > 0 else ""


def command(
    app: typer.Typer, *, group: str, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register ``function(common, terminal, …)`` as a command that also takes the common options.

    It is named after the function, unless ``name`` says otherwise. A parameter annotated with a dataclass stands for
    its fields, as options.

    Errors become one message and an exit code: 2 for bad input, 1 for a failed computation, 130 for an interrupt.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[2:]
        groups: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
        plain = [p for p in own if p.name not in groups]
        shared = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for group in (*groups.values(), Common)
            for f in fields(group)
        ]

        @wraps(function)
        def run(**arguments: Any) -> None:
            def made(group: Any) -> Any:
                return group(**{f.name: arguments.pop(f.name) for f in fields(group)})

            common: Common = made(Common)
            arguments |= {name: made(group) for name, group in groups.items()}
            try:
                with Terminal(common) as terminal:
                    function(common, terminal, **arguments)
            except (typer.Exit, typer.BadParameter):
                raise
            except (Exception, KeyboardInterrupt) as error:
                if common.debug:
                    raise
                _explain(error)
                raise typer.Exit(_exit_code(error)) from error

        run.__signature__ = inspect.Signature([*plain, *shared])  # type: ignore[attr-defined]
        app.command(name, rich_help_panel=group)(run)
        return run

    return register


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    bad = isinstance(error, (SharpnessError, *MISPLACED)) and not isinstance(error, (NonFiniteError, NotConvergedError))
    return BAD_INPUT if bad else FAILED


def _explain(error: BaseException) -> None:
    with suppress(BrokenPipeError):
        Console(stderr=True, highlight=False, soft_wrap=True).print(_message(error), style="red", markup=False)


def _message(error: BaseException) -> str:
    again = "What was computed is kept; the same command goes on from there."
    if isinstance(error, KeyboardInterrupt):
        return f"Interrupted. {again}"
    if isinstance(error, MemoryError):
        return f"Error: expected enough memory; there is not ({error}). Use fewer --examples. {again}"
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or "No space left" in str(error)):
        return f"Error: expected room on the disk; it is full ({error}). Free some. {again}"
    if isinstance(error, OSError):
        advice = "Name another." if isinstance(error, MISPLACED) else again
        return f"Error: expected to read or write a file; {error}. {advice}"
    if not isinstance(error, SharpnessError):
        return f"Error: {type(error).__name__}: {error}\n--debug shows where."
    return f"Error: {error}"


def _jsonable(values: Any) -> Any:
    """The values with null for what is not finite, which JSON cannot say."""
    if isinstance(values, Mapping):
        return {name: _jsonable(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_jsonable(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
