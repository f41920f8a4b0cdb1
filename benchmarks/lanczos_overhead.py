"""What Lanczos costs besides the products: orthogonalisation.

Claim to be tested: a step takes little more than reading the basis twice, and less than one pass vector by vector with
a number read back after each, as peers do it; next to the products of a real solve it is small.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import report
import torch
import workloads
from peers import OURS, peer
from report import Line, Result, Samples, Unavailable

import sharpness as sh
from sharpness.random import generator
from sharpness.spectrum.lanczos import KrylovBasis

STEPS = {"n=1M": 1_000_000, "n=10M": 10_000_000, "n=50M": 50_000_000}
QUICK_SHARE = 100  # of n, with --quick
SOLVE = "solve"
SIZES = (10, 25, 50)  # basis vectors at which a step is timed
PASSES = 2  # over the basis: coefficients and subtraction


class Diagonal(sh.SymmetricOperator):
    """A diagonal matrix that keeps the time at which every product begins and ends."""

    def __init__(self, entries: torch.Tensor) -> None:
        self._entries, self.begun, self.ended = entries, [], []

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self._entries), len(self._entries))

    @property
    def dtype(self) -> torch.dtype:
        return self._entries.dtype

    @property
    def device(self) -> torch.device:
        return self._entries.device

    @property
    def conditions(self) -> dict[str, Any]:
        return {"operator": "diagonal"}

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        report.synchronise(str(self.device))
        self.begun.append(time.perf_counter())
        image = self._entries[:, None] * vectors
        report.synchronise(str(self.device))
        self.ended.append(time.perf_counter())
        return image

    def between(self, size: int) -> float:
        """Seconds from the product that made ``size`` basis vectors to the next one."""
        return self.begun[size] - self.ended[size - 1]


class Stopwatch(sh.SymmetricOperator):
    """An operator and the seconds spent in its products."""

    def __init__(self, operator: sh.SymmetricOperator) -> None:
        self._operator, self.seconds = operator, 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return self._operator.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._operator.dtype

    @property
    def device(self) -> torch.device:
        return self._operator.device

    @property
    def conditions(self) -> dict[str, Any]:
        return self._operator.conditions

    def _product(self, vectors: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []
        self.seconds += report.seconds(lambda: found.append(self._operator @ vectors), str(self.device))
        return found[0]


def measure(part: str, args: argparse.Namespace) -> Result:
    return _solve(args) if part == SOLVE else _steps(part, args)


def _steps(part: str, args: argparse.Namespace) -> Result:
    """One step at j basis vectors, ours and hessian-eigenthings', without the product."""
    n = STEPS[part] // (QUICK_SHARE if args.quick else 1)
    needed = 4 * n * (max(SIZES) + 8)
    if report.free_bytes(args.device) < needed:
        raise Unavailable(f"a basis of {max(SIZES)} vectors of {n:,} numbers needs {needed / 1e9:.1f} GB")
    entries = torch.rand(n, generator=generator("diagonal", seed=0)).to(args.device)
    growths = {OURS: _ours, "hessian-eigenthings": _theirs}
    refused = {}
    found: dict[str, list[list[float]]] = {name: [] for name in growths}
    for _ in range(args.repeats):
        for name, grow in growths.items():
            if name in refused:
                continue
            try:
                diagonal = Diagonal(entries)
                grow(diagonal)
                found[name].append([diagonal.between(size) for size in SIZES])
            except Unavailable as reason:
                refused[name] = str(reason)
    lines = [Line(name, None, note=reason) for name, reason in refused.items()]
    rates = {}
    for place, size in enumerate(SIZES):
        rates[size] = _read_rate(size * n, args.device)
        floor = 1e3 * PASSES * 4 * size * n / rates[size]
        for name in found.keys() - refused.keys():
            milliseconds = Samples(tuple(1e3 * repeat[place] for repeat in found[name]))
            cells = {"floor, ms": f"{floor:.3g}", "read rate, GB/s": f"{rates[size] / 1e9:.1f}"}
            lines.append(Line(f"j = {size}, {name}", milliseconds, cells, floor=floor))
    return report.result(
        f"one Lanczos step without its product, n = {n:,}",
        "ms",
        sorted(lines, key=lambda line: line.label),
        notes=[
            f"j basis vectors; median and (least..most) of {args.repeats} growths of a basis, in turn",
            f"floor: {PASSES} passes over j·n float32 at the rate at which as much memory is read to add it up",
        ],
        raw={"n": n, "sizes": SIZES, "seconds": found, "read_bytes_per_second": rates},
    )


def _ours(diagonal: Diagonal) -> None:
    basis = KrylovBasis(diagonal, max(SIZES) + 2, 0)
    for _ in range(max(SIZES) + 1):
        basis.expand(basis.pending)


def _theirs(diagonal: Diagonal) -> None:
    package = peer("hessian_eigenthings")
    n = diagonal.shape[0]
    operator = package.LambdaOperator(diagonal.__matmul__, n, diagonal.device, diagonal.dtype)
    start = torch.randn(n, generator=generator("start", seed=0)).to(diagonal.device)
    package.lanczos_tridiagonal(operator, start, max(SIZES) + 1)


def _read_rate(numbers: int, device: str) -> float:
    """Bytes per second at which float32 numbers are read, the faster of two ways."""
    buffer = torch.ones(min(numbers, 2**28), device=device)
    half = len(buffer) // 2
    runs = {"sum": buffer.sum, "dot": lambda: torch.dot(buffer[:half], buffer[half : 2 * half])}
    return 4 * len(buffer) / min(min(samples.values) for samples in report.interleaved(runs, 5, device).values())


def _solve(args: argparse.Namespace) -> Result:
    """Ten eigenpairs of a network with ten million parameters."""
    if args.quick:
        raise Unavailable("left out with --quick")
    workload = workloads.make("wide-mlp", args)
    hessian = Stopwatch(sh.Hessian(*workload.objective()))
    whole, found = [], []
    inside = []
    for _ in range(args.repeats):
        hessian.seconds = 0.0
        whole.append(report.seconds(lambda: found.append(sh.eigenpairs(hessian, 10)), args.device))
        inside.append(hessian.seconds)
    pairs = found[-1]
    steps = pairs.products - pairs.probe_products - 1
    rate = _read_rate(2**28, args.device)
    floor = PASSES * 4 * workload.size * steps * (steps + 1) / 2 / rate
    besides = Samples(tuple(total - products for total, products in zip(whole, inside, strict=True)))
    share = besides.median / statistics.median(whole)
    return report.result(
        "ten eigenpairs of a network with ten million parameters",
        "s",
        [
            Line("whole solve", Samples(tuple(whole))),
            Line("in products", Samples(tuple(inside))),
            Line("besides products", besides, {"share of the whole": f"{100 * share:.1f} %"}, floor=floor),
        ],
        notes=[
            workload.describe(),
            f"{pairs.products} products, audit and probe included",
            f"floor of what is besides products: {PASSES} passes over the basis in each of {steps} steps, read at "
            f"{rate / 1e9:.1f} GB/s",
        ],
        raw={"products": pairs.products, "steps": steps, "read_bytes_per_second": rate},
    )


if __name__ == "__main__":
    parser = report.parser(__doc__, (*STEPS, SOLVE), repeats=3)
    report.run(Path(__file__).stem, report.arguments(parser), measure)
