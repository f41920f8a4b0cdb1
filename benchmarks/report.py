"""What every benchmark shares: command line, interleaved timing, tables with a floor, and records."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness.provenance import package_version, provenance

HERE = Path(__file__).resolve().parent
PEERS = ("PyHessian", "hessian-eigenthings", "curvlinops-for-pytorch", "loss-landscapes")
ONE_THREAD = ("digits-mlp", "resnet20")  # small enough that a second thread mostly waits
OVERVIEW = "overview"  # the part that comes first
SHORTEST = 0.02  # seconds one sample should last: shorter runs are called several times for each


class Unavailable(Exception):
    """What was asked for cannot be had here; the message says why."""


@dataclass(frozen=True)
class Samples:
    """Repeats of one measurement."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def per(self, unit: Samples) -> Samples:
        """Each repeat over the unit's of the same round."""
        return Samples(tuple(value / one for value, one in zip(self.values, unit.values, strict=False)))

    def __str__(self) -> str:
        spread = f" ({short(min(self.values))}..{short(max(self.values))})" if len(self.values) > 1 else ""
        return f"{short(self.median)}{spread}"


def short(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


@dataclass(frozen=True)
class Line:
    """One line of a table: what was measured, in the table's unit, and further cells."""

    label: str
    measured: Samples | None
    cells: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""  # in place of the measurement
    floor: float | None = None  # its own, where the lines of a table have different ones


@dataclass(frozen=True)
class Result:
    """What one part of a benchmark found: a table, what to know about it, and everything measured."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    raw: Mapping[str, Any]


def result(
    title: str,
    unit: str,
    lines: Sequence[Line],
    *,
    notes: Sequence[str],
    raw: Mapping[str, Any],
    floor: float | None = None,
) -> Result:
    """A table whose second column holds the measurements and whose third their ratio to the floor."""
    others = list(dict.fromkeys(name for line in lines for name in line.cells))
    rows = []
    for line in lines:
        least = line.floor or floor
        ratio = f"{line.measured.median / least:.2f}" if line.measured and least else "–"
        measured = str(line.measured) if line.measured else line.note or "–"
        rows.append([line.label, measured, ratio, *(str(line.cells.get(name, "–")) for name in others)])
    samples = {line.label: list(line.measured.values) for line in lines if line.measured}
    medians = {label: statistics.median(values) for label, values in samples.items()}
    spreads = {label: [min(values), max(values)] for label, values in samples.items()}
    measured = {"unit": unit, "samples": samples, "medians": medians, "spreads": spreads, "floor": floor}
    return Result(title, ["", unit, "× floor", *others], rows, notes, measured | dict(raw))


# Timing


def seconds(run: Callable[[], Any], device: str, calls: int = 1) -> float:
    """Wall-clock seconds of one call, over ``calls`` calls in a row, with the device idle before and after."""
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    synchronise(device)
    return (time.perf_counter() - begin) / calls


def interleaved(
    runs: Mapping[str, Callable[[], Any]], repeats: int, device: str, *, once: Sequence[str] = ()
) -> dict[str, Samples]:
    """Seconds of every run, in rounds: each calls all of them in turn, and each round begins with another.

    All are called once untimed, which also says how many calls make a sample; but not those in ``once``, which have
    run before and take long.
    """
    calls = dict.fromkeys(once, 1)
    for name, run in runs.items():
        if name not in calls:
            run()
            calls[name] = max(1, math.ceil(SHORTEST / max(seconds(run, device), 1e-7)))
    names, found = list(runs), {name: [] for name in runs}
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()  # graphs that refer to themselves would else be freed in somebody's turn
            found[name].append(seconds(runs[name], device, calls[name]))
    return {name: Samples(tuple(values)) for name, values in found.items()}


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def free_bytes(device: str) -> int:
    """Memory that is free for the taking now."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


# Records


class Record:
    """The parts of one benchmark, each with where it was measured; a part measured again replaces the old one."""

    def __init__(self, name: str, *, quick: bool) -> None:
        self.folder = HERE / "records" / "quick" if quick else HERE / "records"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._name, self._json, self._markdown = name, self.folder / f"{name}.json", self.folder / f"{name}.md"
        self.parts: dict[str, Any] = json.loads(self._json.read_text())["parts"] if self._json.exists() else {}

    def put(self, part: str, found: Result, args: argparse.Namespace) -> None:
        """Store and print a part."""
        where = {
            **provenance(),
            "peers": {name: package_version(name) for name in PEERS},
            "device": device_name(args.device),
            "threads": torch.get_num_threads(),
            "arguments": {name: value for name, value in vars(args).items() if value is not None},
        }
        self.parts[part] = {"where": where, **vars(found)}
        self.parts = {name: self.parts[name] for name in sorted(self.parts, key=lambda name: name != OVERVIEW)}
        self._json.write_text(json.dumps({"benchmark": self._name, "parts": self.parts}, indent=1, default=str) + "\n")
        texts = [_text(stored) for stored in self.parts.values()]
        self._markdown.write_text("\n\n".join([f"# {self._name.replace('_', ' ')}", *texts]) + "\n")
        print(_text(self.parts[part]), end="\n\n", flush=True)


def _text(part: Mapping[str, Any]) -> str:
    where = part["where"]
    peers = ", ".join(f"{name} {number}" for name, number in where["peers"].items())
    measured = (
        f"{where['machine']}; {where['device']}, {where['threads']} thread(s); torch {where['libraries']['torch']}, "
        f"numpy {where['libraries']['numpy']}, sharpness {where['sharpness']} ({where['git_commit'][:12]}), {peers}; "
        f"{where['written']}; `python benchmarks/{where['command']}`"
    )
    notes = [f"- {note}" for note in [*part["notes"], measured]]
    return "\n".join([f"## {part['title']}", "", markdown(part["columns"], part["rows"]), "", *notes])


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-:"[index > 0]) for index, width in enumerate(widths)) + "|"
    return "\n".join([line(columns), rule, *map(line, rows)])


def device_name(device: str) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


# The command line


def parser(description: str, parts: Sequence[str], repeats: int) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, help=f"default: 1 for {' and '.join(ONE_THREAD)}, else every core")
    made.add_argument("--repeats", type=int, default=repeats, help="timed rounds (default: %(default)s)")
    made.add_argument("--quick", action="store_true", help="an eighth of the examples, hardly trained, two rounds")
    made.add_argument("--untrained", action="store_true", help="measure at initialisation")
    folder = os.environ.get("SHARPNESS_DATA")
    made.add_argument("--data", nargs="+", default=[folder] if folder else [], metavar="DIR", help="folders with data")
    made.add_argument("--only", nargs="+", choices=parts, default=list(parts), metavar="PART", help=", ".join(parts))
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    return made


def arguments(made: argparse.ArgumentParser) -> argparse.Namespace:
    args = made.parse_args()
    args.repeats = min(args.repeats, 2) if args.quick else args.repeats
    return args


def run(
    name: str, args: argparse.Namespace, measure: Callable[[str, argparse.Namespace], Result], *, suffix: str = ""
) -> Record:
    """Measure every part asked for, record and print it; what is not available is skipped and says so."""
    record = Record(name, quick=args.quick)
    for part in args.only:
        try:
            with settled(part, args):
                found = measure(part, args)
        except Unavailable as reason:
            print(f"{part}: skipped, {reason}\n", flush=True)
            continue
        gpu = f" on {torch.cuda.get_device_name(args.device)}" if args.device.startswith("cuda") else ""
        record.put(f"{part}{suffix}{' untrained' if args.untrained else ''}{gpu}", found, args)
    return record


@contextmanager
def settled(part: str, args: argparse.Namespace) -> Iterator[None]:
    """As many threads as the part gets, and the only attention that can be differentiated twice."""
    torch.set_num_threads(args.threads or (1 if part in ONE_THREAD else os.cpu_count() or 1))
    with sdpa_kernel(SDPBackend.MATH):
        yield
