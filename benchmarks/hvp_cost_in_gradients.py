"""What one Hessian-vector product costs, in gradients over the same data, and how exact it is.

Claim to be tested: the gradient is linearised once, so that a product costs about two gradients where peers, which
build the graph again for every product, take three to four; and it stays close to what can be written by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
import workloads
from peers import FLOORS, OURS, WAYS, Exact, Way, flat
from report import Line, Result, Samples, Unavailable

from sharpness.random import normal

BLOCK = 8


def measure(part: str, args: argparse.Namespace) -> Result:
    workload = workloads.make(part, args)
    vector = normal(workload.size, key=("benchmark",), seed=0, device=args.device)
    exact = Exact(workload) @ vector
    ways, setup, refused = _set_up(workload, args.device)
    runs: dict[str, Callable[[], Any]] = {"gradient": workload.gradient}
    runs |= {name: partial(way.product, vector) for name, way in ways.items()}
    errors = {}
    for name, way in ways.items():
        try:
            errors[name] = float((flat(way.product(vector)).double() - exact).norm() / exact.norm())
        except Exception as error:  # whatever a peer raises where it cannot do a workload
            if name == OURS:
                raise
            refused[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
            del runs[name]
    if OURS in runs:
        block = vector[:, None].expand(-1, BLOCK) * torch.arange(1.0, BLOCK + 1, device=args.device)
        runs["block"] = partial(ways[OURS].product, block)
    took = report.interleaved(runs, args.repeats, args.device)
    costs = {name: took[name].per(took["gradient"]) for name in runs}
    blocked = Samples(tuple(value / BLOCK for value in costs["block"].values)) if "block" in costs else None
    lines = []
    for name in WAYS:
        cells = {
            "set-up, G": f"{setup[name] / took['gradient'].median:.2g}" if name in costs else "–",
            "relative error": f"{errors[name]:.1e}" if name in costs else "–",
            f"a vector of {BLOCK}, G": str(blocked) if name == OURS else "–",
        }
        lines.append(Line(name, costs.get(name), cells, refused.get(name, "")))
    floors = [costs[name].median for name in FLOORS if name in costs]
    return report.result(
        f"{part}: one Hessian-vector product",
        "G",
        lines,
        floor=min(floors, default=None),
        notes=[
            workload.describe(),
            f"G = {report.short(1e3 * took['gradient'].median)} ms; median and (least..most) of {args.repeats} "
            "interleaved rounds; error relative to a float64 product, for a random vector",
        ],
        raw={
            "seconds": {name: list(samples.values) for name, samples in took.items()},
            "setup_seconds": setup,
            "relative_error": errors,
            "block_per_vector": list(blocked.values) if blocked else [],
            "refused": refused,
        },
    )


def _set_up(workload: workloads.Workload, device: str) -> tuple[dict[str, Way], dict[str, float], dict[str, str]]:
    """Every way that can be had, the seconds that making it took (best of two), and why the others cannot."""
    ways, setup, refused = {}, {}, {}
    for name, make in WAYS.items():

        def build(name: str = name, make: Callable[[workloads.Workload], Way] = make) -> None:
            ways[name] = make(workload)

        try:
            setup[name] = min(report.seconds(build, device) for _ in range(2))
        except Unavailable as reason:
            refused[name] = str(reason)
    return ways, setup, refused


def overview(parts: Mapping[str, Any]) -> Result:
    """The medians of every workload measured so far, in one table."""
    medians = {name: part["raw"]["medians"] for name, part in parts.items() if name != report.OVERVIEW}
    rows = [[name, *(f"{found[way]:.2f}" if way in found else "–" for way in WAYS)] for name, found in medians.items()]
    notes = ["each line's spread, machine and date are below"]
    return Result("one Hessian-vector product in gradients, medians", ["", *WAYS], rows, notes, {"medians": medians})


def main() -> None:
    args = report.arguments(report.parser(__doc__, workloads.ALL, repeats=11))
    record = report.run(Path(__file__).stem, args, measure)
    record.put(report.OVERVIEW, overview(record.parts), args)


if __name__ == "__main__":
    main()
