"""What ``memory=`` costs and saves: the retained graphs of a part of the data, the others rebuilt at every product.

Claim to be tested: the budget trades memory for time smoothly, between about three gradients for a product and about
two, and the products are the same to rounding. Every line is measured in a process of its own, so that its peak is its
own.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
import workloads
from peers import FLOORS, floor
from report import Line, Result, Samples

import sharpness as sh
from sharpness.random import normal

PARTS = ("f1-1000", "f1-10000", "transformer")
FRACTIONS = (0.0, 0.25, 0.5, 1.0)
CHUNKS = 8  # of the data: the budget retains whole chunks


def measure(part: str, args: argparse.Namespace) -> Result:
    workload = workloads.make(part, args)
    full = _hessian(workload, 2**62).retained_bytes
    with tempfile.TemporaryDirectory() as folder:
        products = {fraction: Path(folder) / f"{fraction}.pt" for fraction in FRACTIONS}
        rows = {
            fraction: _in_own_process(part, math.ceil(fraction * full), path) for fraction, path in products.items()
        }
        vectors = {fraction: torch.load(path, weights_only=True) for fraction, path in products.items()}
    lines = []
    for fraction, row in rows.items():
        costs = Samples(tuple(row["product"])).per(Samples(tuple(row["gradient"])))
        difference = float((vectors[fraction] - vectors[1.0]).abs().max() / vectors[1.0].abs().max())
        cells = {
            "budget, MB": f"{fraction * full / 1e6:.0f}",
            "retained, MB": f"{row['retained'] / 1e6:.0f}",
            "growth at rest, MB": f"{row['rest'] / 1e6:.0f}",
            "growth at peak, MB": f"{row['peak'] / 1e6:.0f}",
            "largest difference": "bit-equal" if torch.equal(vectors[fraction], vectors[1.0]) else f"{difference:.1e}",
        }
        lines.append(Line(f"{fraction:g} of full retention", costs, cells))
    hand = _by_hand(workload, args)
    return report.result(
        f"{part}: memory against time of a product",
        "G",
        lines,
        floor=hand,
        notes=[
            workload.describe(),
            f"{CHUNKS} chunks; growth of resident memory from before the operator is made to after a product (at rest) "
            "and to the highest point between (at peak)",
            "largest difference: of an entry of the product from full retention's, over the largest entry",
        ],
        raw={"full_bytes": full, "rows": rows},
    )


def _in_own_process(part: str, budget: int, product: Path) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, "--only", part, "--budget", str(budget), "--product", str(product)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """One line: times, and how far memory grew beyond what the model, the data and a gradient had taken."""
    workload = workloads.make(part, args)
    vector = normal(workload.size, key=("benchmark",), seed=0, device=args.device)
    few = replace(workload, inputs=workload.inputs[:CHUNKS], targets=workload.targets[:CHUNKS], batch_size=CHUNKS)
    _ = _hessian(few, 0) @ vector  # libraries are loaded, and what they keep is not counted
    objective, theta = _objective(workload)
    memory = Memory(args.device)
    hessian = sh.Hessian(objective, theta, memory=args.budget)
    torch.save((hessian @ vector).cpu(), args.product)
    rest, peak = memory.growth()
    runs = {"gradient": workload.gradient, "product": partial(hessian.__matmul__, vector)}
    took = report.interleaved(runs, args.repeats, args.device)
    seconds = {name: list(samples.values) for name, samples in took.items()}
    return {"rest": rest, "peak": peak, "retained": hessian.retained_bytes, **seconds}


class Memory:
    """How far memory in use has grown since this was made."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._before = self._now()[0]

    def growth(self) -> tuple[int, int]:
        """Bytes now and at the peak, less what there was."""
        now, peak = self._now()
        return now - self._before, peak - self._before

    def _now(self) -> tuple[int, int]:
        if self._cuda:
            return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return tuple(1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))


def _objective(workload: workloads.Workload) -> tuple[sh.Objective, torch.Tensor]:
    objective, theta = workload.objective()
    return objective.replace(chunk_size=math.ceil(len(workload.inputs) / CHUNKS)), theta


def _hessian(workload: workloads.Workload, memory: int) -> sh.Hessian:
    objective, theta = _objective(workload)
    return sh.Hessian(objective, theta, memory=memory)


def _by_hand(workload: workloads.Workload, args: argparse.Namespace) -> float | None:
    """A product written by hand, in gradients, where there is one."""
    name, way = floor(workload)
    if name not in FLOORS:
        return None
    vector = normal(workload.size, key=("benchmark",), seed=0, device=args.device)
    runs = {"gradient": workload.gradient, "product": partial(way.product, vector)}
    took = report.interleaved(runs, args.repeats, args.device)
    return took["product"].per(took["gradient"]).median


def main() -> None:
    parser = report.parser(__doc__, PARTS, repeats=7)
    parser.add_argument("--budget", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--product", type=Path, help=argparse.SUPPRESS)
    args = report.arguments(parser)
    if args.budget is None:
        report.run(Path(__file__).stem, args, measure)
        return
    with report.settled(args.only[0], args):
        print(json.dumps(child(args.only[0], args)))


if __name__ == "__main__":
    main()
