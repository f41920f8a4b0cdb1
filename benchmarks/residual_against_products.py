"""How good ten eigenpairs are after how many Hessian-vector products, counted and judged alike for everybody.

Claim to be tested: of the ways compared this package comes closest to the fewest products that Lanczos needs, with no
setting to be guessed; its products for the audit and for the search for missed pairs are counted.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import report
import workloads
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from peers import OURS
from report import Line, Result, Samples, Unavailable
from solvers import SOLVERS, TOLERANCE, Attempt, Judge, Settings

from sharpness.render.style import COLUMN, style

K = 10
PARTS = ("digits-mlp", "f1-1000")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # by Okabe and Ito
MARKERS = "osD^"
SETTINGS: dict[str, Sequence[Settings]] = {
    OURS: [{"tolerance": tolerance} for tolerance in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)],
    "PyHessian": [{"maxIter": count, "tol": 0.0} for count in (2, 4, 8, 16, 32, 64)] + [{}],
    "hessian-eigenthings": [{"max_iter": count} for count in (12, 16, 20, 24, 28, 32, 36, 40, 44, 50, 51, 60, 80)],
    "curvlinops + eigsh": [{"tol": tol, "ncv": ncv} for ncv in (21, 40, 60) for tol in (1e-1, 1e-2, 1e-3, 1e-4, 0.0)],
}


def measure(part: str, args: argparse.Namespace) -> Result:
    workload = workloads.make(part, args)
    judge = Judge(workload, K)
    attempts: dict[str, list[Attempt]] = {}
    refused: dict[str, str] = {}
    for name, solver in SOLVERS.items():
        try:
            found = [judge.attempt(solver, workload, settings) for settings in SETTINGS[name]]
        except Unavailable as reason:
            refused[name] = str(reason)
            continue
        attempts[name] = sorted(found, key=lambda attempt: attempt.products)
    ours = [attempt for attempt in attempts[OURS] if attempt.success]
    floor = min((attempt.products - attempt.overhead for attempt in ours), default=None)
    lines = [_line(name, attempt, floor) for name, found in attempts.items() for attempt in found]
    return report.result(
        f"{part}: worst residual of {K} pairs against products",
        "products",
        lines + [Line(name, None, note=reason) for name, reason in refused.items()],
        notes=[
            workload.describe(),
            f"floor: our products without audit and probe in the cheapest run with all residuals within {TOLERANCE:g}",
            "residual: the largest ‖Hv − λv‖ / max|λ| by a float64 product; converged: as in time_to_eigenpairs",
        ],
        raw={
            "least": floor,
            "attempts": {name: [vars(attempt) for attempt in found] for name, found in attempts.items()},
        },
    )


def _line(name: str, attempt: Attempt, floor: int | None) -> Line:
    cells = {
        "worst residual": f"{attempt.worst:.1e}",
        "converged": f"{attempt.converged}/{attempt.wanted}",
        "setting": attempt.error or attempt.setting,
    }
    return Line(name, Samples((float(attempt.products),)), cells, floor=floor if attempt.success else None)


def draw(parts: dict[str, Any], path: Path) -> None:
    """One panel for each workload; filled marks have all pairs converged, lines join what no cheaper run betters."""
    with style():
        size = (COLUMN * len(parts), 3.0)
        figure, panels = plt.subplots(1, len(parts), figsize=size, layout="constrained", squeeze=False)
        for ax, (part, stored) in zip(panels[0], parts.items(), strict=True):
            _panel(ax, part, stored["raw"]["attempts"])
        panels[0, 0].set_ylabel("worst relative residual of ten pairs")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _panel(ax: Axes, part: str, attempts: dict[str, list[dict[str, Any]]]) -> None:
    ax.axhline(TOLERANCE, color="0.6", linewidth=0.6, linestyle=":")
    for (name, found), colour, marker in zip(attempts.items(), COLOURS, MARKERS, strict=False):
        points = [(a["products"], max(a["residuals"])) for a in found if len(a["residuals"]) == a["wanted"]]
        good = [a["converged"] == a["wanted"] for a in found if len(a["residuals"]) == a["wanted"]]
        if not points:
            continue
        best = list(_lowest(points))
        ax.plot(*zip(*best, strict=True), color=colour, linewidth=1)
        for point, full in zip(points, good, strict=True):
            ax.plot(*point, marker, color=colour, markerfacecolor=colour if full else "white", markersize=3.5)
        side, shift = ("right", (0, -11)) if name == "hessian-eigenthings" else ("left", (5, -2))
        ax.annotate(name, best[-1], shift, textcoords="offset points", color=colour, ha=side)
    ax.set(xscale="log", yscale="log", xlabel="Hessian-vector products", title=part, xlim=(2, 5000))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.spines[["top", "right"]].set_visible(False)


def _lowest(points: Iterable[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """The points that are better than all cheaper ones."""
    least = math.inf
    for products, residual in sorted(points):
        if residual < least:
            least = residual
            yield products, residual


def main() -> None:
    args = report.arguments(report.parser(__doc__, PARTS, repeats=1))
    record = report.run(Path(__file__).stem, args, measure)
    draw(record.parts, record.folder / f"{Path(__file__).stem}.svg")


if __name__ == "__main__":
    main()
