"""How the cost of a product grows with the data and the network, and that of a solve with the number of pairs.

Claim to be tested: the time of a product grows in proportion to N and, once matrices fill the machine, to n; the
products of a solve grow more slowly than k.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import report
import workloads
from peers import Ours, floor
from report import Line, Result, Samples
from workloads import Workload

import sharpness as sh
from sharpness.random import normal

PARTS = ("N", "n", "k")
EXAMPLES = (500, 1000, 2000, 4000, 8000, 16_000)  # of MNIST, for F1
WIDTHS = (64, 128, 256, 512, 1024, 2048)  # of both hidden layers of a network for digits
PAIRS = (1, 2, 4, 8, 16, 32, 64)
FEW = 3  # doublings that ``--quick`` leaves


def measure(part: str, args: argparse.Namespace) -> Result:
    if part == "k":
        return _pairs(args)
    if part == "N":
        return _products(part, [partial(_examples, count, args) for count in _some(EXAMPLES, args)], args)
    return _products(part, [partial(_width, width, args) for width in _some(WIDTHS, args)], args)


def _examples(count: int, args: argparse.Namespace) -> Workload:
    return workloads.ready(workloads.images("f1", count, args), args)


def _width(width: int, args: argparse.Namespace) -> Workload:
    untrained = argparse.Namespace(**vars(args) | {"untrained": True})
    return workloads.ready(workloads.digits(untrained, hidden=(width, width)), args)


def _some(sizes: Sequence[int], args: argparse.Namespace) -> Sequence[int]:
    return sizes[:FEW] if args.quick else sizes


def _products(part: str, builds: Sequence[Callable[[], Workload]], args: argparse.Namespace) -> Result:
    """The time of a product against that of a gradient and of the floor, one size after the other."""
    lines, sizes, raw = [], [], {}
    for build in builds:
        workload = build()
        vector = normal(workload.size, key=("benchmark",), seed=0, device=args.device)
        runs = {
            "gradient": workload.gradient,
            "product": partial(Ours(workload).product, vector),
            "floor": partial(floor(workload)[1].product, vector),
        }
        took = report.interleaved(runs, args.repeats, args.device)
        sizes.append(len(workload.inputs) if part == "N" else workload.size)
        raw[sizes[-1]] = {name: list(samples.values) for name, samples in took.items()}
        cells = {
            "n": f"{workload.size:,}",
            "N": f"{len(workload.inputs):,}",
            "G": str(took["product"].per(took["gradient"])),
        }
        milliseconds = Samples(tuple(1e3 * value for value in took["product"].values))
        lines.append(Line(f"{part} = {sizes[-1]:,}", milliseconds, cells, floor=1e3 * took["floor"].median))
    exponents = {name: exponent(sizes, [Samples(tuple(raw[s][name])).median for s in sizes]) for name in raw[sizes[0]]}
    fitted = ", ".join(f"{name} {value:.2f}" for name, value in exponents.items())
    return report.result(
        f"time of a product against {part}",
        "ms",
        lines,
        notes=[workload.describe(), f"exponents of {part} fitted by least squares in both logarithms: {fitted}"],
        raw={"sizes": sizes, "seconds": raw, "exponents": exponents},
    )


def _pairs(args: argparse.Namespace) -> Result:
    """Products and time of whole solves for more and more pairs of the digits network."""
    workload = workloads.make("digits-mlp", args)
    objective, theta = workload.objective()
    hessian = sh.Hessian(objective, theta)
    vector = normal(workload.size, key=("benchmark",), seed=0, device=args.device)
    counts = _some(PAIRS, args)
    solved = {k: sh.eigenpairs(hessian, k) for k in counts}
    runs = {"product": partial(floor(workload)[1].product, vector)}
    runs |= {f"k = {k}": partial(sh.eigenpairs, hessian, k) for k in counts}
    took = report.interleaved(runs, args.repeats, args.device)
    lines = []
    for k, pairs in solved.items():
        needed = pairs.products - pairs.probe_products - 1
        cells = {"products": pairs.products, "without probe and audit": needed, "restarts": pairs.restarts}
        lines.append(Line(f"k = {k}", took[f"k = {k}"], cells, floor=needed * took["product"].median))
    exponents = {
        "products": exponent(counts, [solved[k].products for k in counts]),
        "seconds": exponent(counts, [took[f"k = {k}"].median for k in counts]),
    }
    fitted = ", ".join(f"{name} {value:.2f}" for name, value in exponents.items())
    return report.result(
        "products and time of a solve against k",
        "s",
        lines,
        notes=[workload.describe(), f"exponents of k fitted by least squares in both logarithms: {fitted}"],
        raw={
            "k": counts,
            "products": [solved[k].products for k in counts],
            "seconds": {name: list(samples.values) for name, samples in took.items()},
            "exponents": exponents,
        },
    )


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of the law cost ∝ sizeᵖ that fits best in both logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


if __name__ == "__main__":
    report.run(Path(__file__).stem, report.arguments(report.parser(__doc__, PARTS, repeats=7)), measure)
