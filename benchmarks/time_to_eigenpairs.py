"""How long it takes to the k eigenpairs of largest magnitude, all with a relative residual of at most 1e-3.

Claim to be tested: from module and data to certified pairs this package needs less time than any peer, its audit and
its probe for missed pairs included, also when the peer's settings have been chosen for the very problem beforehand.

A peer counts as converged when a float64 product finds ‖Hv − λv‖ ≤ 1e-3 max|λ| for every one of its k pairs, none is a
copy of another and none is missing. "As shipped" is the first that does of its defaults and of what a user would raise
step by step; only that run's time counts. "At its best" is the cheapest setting that an untimed search finds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import report
import workloads
from peers import OURS, Way, floor
from report import Line, Result, Samples, Unavailable
from solvers import SOLVERS, TOLERANCE, Attempt, Judge, Meter, OutOfTime, Settings, Solver
from workloads import Workload

from sharpness.random import normal

ONCE = 10  # a solver slower than this many times ours is timed once, in the search
SHIPPED, BEST = "as shipped", "at its best"


@dataclass(frozen=True)
class Search:
    """What was tried with a solver, and the settings that converged."""

    attempts: list[Attempt]
    shipped: Attempt | None
    best: Attempt | None
    seconds: float  # that the attempts as shipped took together

    @property
    def found(self) -> Iterator[tuple[str, Attempt]]:
        return ((label, run) for label, run in ((SHIPPED, self.shipped), (BEST, self.best)) if run)


def measure(part: str, args: argparse.Namespace, k: int) -> Result:
    workload = workloads.make(part, args)
    judge = Judge(workload, k)
    ours = judge.attempt(SOLVERS[OURS], workload, {})
    cap = args.cap or 60 * ours.seconds
    searches, refused = {}, {}
    for name, solver in SOLVERS.items():
        print(f"  {part}, k = {k}: settings for {name}", flush=True)
        try:
            searches[name] = _search(solver, judge, workload, cap)
        except Unavailable as reason:
            refused[name] = str(reason)
    way, fastest = floor(workload)
    took = _time(workload, fastest, searches, ours, args)
    needed = ours.products - ours.overhead
    least = Samples(tuple(needed * value for value in took["product"].values))
    lines = [line for name, found in searches.items() for line in _lines(name, found, took)]
    lines += [Line(name, None, note=reason) for name, reason in refused.items()]
    lines.append(Line("floor", least.per(took["gradient"]), {"s": str(least), "products": needed}))
    return report.result(
        f"{part}: k = {k}",
        "G",
        lines,
        floor=least.per(took["gradient"]).median,
        notes=[
            workload.describe(),
            f"G = {report.short(1e3 * took['gradient'].median)} ms; median and (least..most) of {args.repeats} "
            f"interleaved rounds, but one run of what takes over {ONCE} times ours; {cap:.3g} s for each search",
            f"floor: {needed} products (ours without audit and probe) by the fastest way to one ({way})",
            f"our first run in this process, before anything was warm, took {ours.seconds:.3g} s",
        ],
        raw={
            "k": k,
            "tolerance": TOLERANCE,
            "our_first_seconds": ours.seconds,
            "eigenvalues": judge.values.tolist(),
            "seconds": {name: list(samples.values) for name, samples in took.items()},
            "attempts": {name: [vars(attempt) for attempt in found.attempts] for name, found in searches.items()},
        },
    )


def _search(solver: Solver, judge: Judge, workload: Workload, cap: float) -> Search:
    """Settings that converge, as shipped and at its best, each within ``cap`` seconds of the solver's own time."""
    if solver is not SOLVERS[OURS]:
        judge.attempt(solver, workload, {}, limit=0.0)  # imports what it needs
    attempts: list[Attempt] = []
    shipped, left = None, cap

    def attempt(settings: Settings) -> Attempt:
        nonlocal left
        made = judge.attempt(solver, workload, settings, limit=left)
        attempts.append(made)
        left -= made.seconds
        if left <= 0 and not made.success:
            raise OutOfTime
        return made

    with suppress(OutOfTime):
        shipped = next((run for run in map(attempt, solver.shipped(judge.k, workload.size)) if run.success), None)
    seconds, left = cap - left, cap
    with suppress(OutOfTime):
        solver.search(attempt, judge.k, shipped or attempts[0])
    converged = [run for run in reversed(attempts) if run.success and solver is not SOLVERS[OURS]]
    return Search(attempts, shipped, min(converged, key=lambda run: run.products, default=None), seconds)


def _time(
    workload: Workload, fastest: Way, searches: dict[str, Search], ours: Attempt, args: argparse.Namespace
) -> dict[str, Samples]:
    """Seconds of a gradient, of the fastest product and of every setting found."""
    vector = normal(workload.size, key=("benchmark",), seed=0, device=args.device)
    runs = {"gradient": workload.gradient, "product": partial(fastest.product, vector)}
    slow, solves = {}, {}
    for name, search in searches.items():
        for label, found in search.found:
            if found.seconds > ONCE * ours.seconds:
                slow[f"{name}, {label}"] = Samples((found.seconds,))
            else:
                solves[f"{name}, {label}"] = partial(_solve, SOLVERS[name], workload, found)
    return report.interleaved(runs | solves, args.repeats, args.device, once=list(solves)) | slow


def _solve(solver: Solver, workload: Workload, found: Attempt) -> None:
    solver.solve(workload, found.wanted, Meter(), **found.settings)


def _lines(name: str, search: Search, took: dict[str, Samples]) -> list[Line]:
    """A solver's lines: as shipped and, where it has settings to choose, at its best."""
    defaults = search.attempts[0]
    alone = {
        "defaults converged": f"{defaults.converged}/{defaults.wanted}",
        "defaults' residual": defaults.error or f"{defaults.worst:.1e}",
    }
    ours = took.get(f"{OURS}, {SHIPPED}")
    lines = []
    for label, found in search.found:
        seconds = took[f"{name}, {label}"]
        cells = {
            "s": str(seconds),
            "× ours": f"{seconds.median / ours.median:.2f}" if ours else "–",
            "products": found.products,
            "worst residual": f"{found.worst:.1e}",
            **(alone if label == SHIPPED else {}),
            "setting": found.setting,
        }
        lines.append(Line(f"{name}, {label}", seconds.per(took["gradient"]), cells))
    if search.shipped is None:
        note = f"not converged in {search.seconds:.3g} s"
        lines.insert(0, Line(f"{name}, {SHIPPED}", None, alone, note))
    if search.best is None and name != OURS:
        lines.append(Line(f"{name}, {BEST}", None, note="none found that converges"))
    return lines


def main() -> None:
    parser = report.parser(__doc__, workloads.ALL, repeats=5)
    parser.add_argument("--k", type=int, nargs="+", default=[10], help="numbers of eigenpairs (default: 10)")
    parser.add_argument("--cap", type=float, help="seconds for each search (default: 60 times ours)")
    args = report.arguments(parser)
    for k in args.k:
        report.run(Path(__file__).stem, args, partial(measure, k=k), suffix=f" k={k}")


if __name__ == "__main__":
    main()
