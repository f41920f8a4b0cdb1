"""Weight decay (Li et al. 2018): raw lines and filter-normalised profiles of SB and LB, without and with it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpness.errors import SchemaError
from sharpness.records import LineLosses, axis_label
from sharpness.render.cells import Cell, Reported, over_seeds
from sharpness.render.curves import draw_line
from sharpness.render.layout import set_figure_caption
from sharpness.render.paper.accuracy import DASHES
from sharpness.render.paper.drawing import Drawing
from sharpness.render.paper.orderings import Ordering, ordering, verdict
from sharpness.render.paper.runs import Run, first_record, need_runs, run_captions, run_notes
from sharpness.render.published import LI_TEST_ERRORS
from sharpness.render.style import (
    BLUE,
    COLUMN,
    VERMILLION,
    holes,
    legend_above,
    legend_entries,
    policy_text,
    pooled,
    set_caption,
    set_scale,
    style,
)
from sharpness.render.tables import Table

RECIPE = "li-weight-decay"
PAIRS = {"no weight decay": ("SB", "LB"), "weight decay": ("SB-decay", "LB-decay")}
STEP = 0.25  # of the segment between the minimizers, or of the profile's unit
HEAD = (
    "regime",
    "test error (%)",
    "published test error (%)",
    "weight norm ‖θ‖",
    "raw rise towards the other",
    "raw rise away from it",
    "profile rise at −0.25",
    "profile rise at 0.25",
)


def draw_li(runs: Path) -> Drawing:
    """Lines between SB and LB over profiles around each, and what the training loss rises by along them."""
    (run,) = need_runs([RECIPE], runs)
    return Drawing(_figure(run), _table(run))


def line_between(run: Run, seed: int, pair: tuple[str, str]) -> LineLosses | None:
    """The line of one seed that runs from the first regime to the second, whatever its file is called."""
    for path in sorted((run.folder / f"seed-{seed}").glob("line*.h5")):
        record = first_record(path)
        if tuple(record.conditions.get("ends") or ()) == pair:
            return record
    return None


def _figure(run: Run) -> Figure | None:
    lines = {pair: line_between(run, run.first_seed, pair) for pair in PAIRS.values()}
    profiles = {name: run.record(run.first_seed, f"{name}/profile.h5") for pair in PAIRS.values() for name in pair}
    drawn = [record for record in (*lines.values(), *profiles.values()) if record is not None]
    if not drawn:
        return None
    with style():
        figure = Figure(figsize=(2 * COLUMN, 5.4), layout="constrained")
        grid = figure.subplots(2, 2)
        curves = [_draw_raw(lines, pair, title, ax) for (title, pair), ax in zip(PAIRS.items(), grid[0], strict=True)]
        for pair, ax in zip(PAIRS.values(), grid[1], strict=True):
            _draw_profiles({name: profiles[name] for name in pair}, profiles, ax)
        figure.legend(*legend_entries(ax for axes in curves for ax in axes), loc="outside upper center", ncols=4)
        parts = ("above: line between the minimizers", "below: filter-normalised random direction from each")
        set_figure_caption(figure, [*parts, "first trial", *run_captions([run])])
    return figure


def _draw_raw(lines: Mapping[Any, LineLosses | None], pair: tuple[str, str], title: str, ax: Axes) -> list[Axes]:
    ax.set_title(title, pad=15)
    record, family = lines[pair], [line for line in lines.values() if line is not None]
    if record is None:
        ax.text(0.5, 0.5, "not measured", ha="center", transform=ax.transAxes)
        return []
    return draw_line(record, ax, family)


def _draw_profiles(profiles: Mapping[str, LineLosses | None], every: Mapping[str, Any], ax: Axes) -> None:
    """The loss around both minimizers in one panel."""
    policies = []
    for (name, record), color in zip(profiles.items(), (BLUE, VERMILLION), strict=True):
        if record is not None:
            policies.append(policy_text(record.batchnorm))
            for split, loss in zip(record.split, record.loss, strict=True):
                look: dict[str, Any] = {"linestyle": DASHES.get(str(split), ":"), "color": color}
                ax.plot(record.alpha, holes(loss, record.status), label=f"{name}, {split}", **look)
    family = [record for record in every.values() if record is not None]
    if family:
        losses = pooled(holes(record.loss, record.status) for record in family)
        set_scale(ax, "y", losses)
        ax.set_ylim(0.8 * losses.min() if ax.get_yscale() == "log" else 0, losses.max() * 1.1)
    ax.set(xlabel=axis_label(LineLosses, "alpha"), ylabel=axis_label(LineLosses, "loss"))
    set_caption(ax, *dict.fromkeys(policies))
    legend_above([ax])


def _table(run: Run) -> Table:
    rises = {name: _rises(run, name) for pair in PAIRS.values() for name in pair if run.has(name)}
    rows: list[list[Cell]] = []
    for name, along in rises.items():
        index = run.regime(name)
        error, norm = over_seeds(100 - run.test_accuracy()[index]), over_seeds(run.comparison.weight_norm[index])
        rows.append([name, error, Reported(LI_TEST_ERRORS[name]), norm, *(over_seeds(values) for values in along)])
    notes = [
        "Rises of the training loss in nat, mean ± sample standard deviation over trials: along the line between the "
        f"minimizers at {STEP} of its length from each, and at α = ±{STEP} along a filter-normalised random direction; "
        "interpolated linearly between the points that were evaluated.",
        "Published: VGG-9 with batch norm, CIFAR-10, SGD with batches of 128 and 8192, weight decay 0 and 5e-4.",
        *run_notes(run),
        *(
            sentence
            for title, pair in PAIRS.items()
            if run.has(*pair)
            for sentence in _sentences(run, title, pair, rises)
        ),
    ]
    return Table("Weight decay, lines and filter-normalised profiles (Li et al. 2018)", HEAD, rows, notes)


def _rises(run: Run, name: str) -> np.ndarray:
    """Rises of the training loss of shape (4, seed): raw, towards the other end and away; profile, at ∓0.25."""
    pair = next(pair for pair in PAIRS.values() if name in pair)
    end, inwards = (0.0, STEP) if name == pair[0] else (1.0, -STEP)
    columns = []
    for seed in map(int, run.comparison.seed):
        line, profile = line_between(run, seed, pair), run.record(seed, f"{name}/profile.h5")
        columns.append(
            [
                _rise(line, end, inwards),
                _rise(line, end, -inwards),
                _rise(profile, 0.0, -STEP),
                _rise(profile, 0.0, STEP),
            ]
        )
    return np.array(columns).T


def _rise(record: LineLosses | None, place: float, step: float) -> float:
    """The training loss a step from a place less that at it; NaN beyond what was evaluated."""
    if record is None:
        return np.nan
    splits = [str(split) for split in record.split]
    if "train" not in splits:
        raise SchemaError(f"expected the training loss along a line of {RECIPE}; got {', '.join(splits)}")
    loss = holes(record.loss[splits.index("train")], record.status)
    known, values = record.alpha[~np.ma.getmaskarray(loss)], loss.compressed()
    if known.size < 2:
        return np.nan
    there, here = np.interp([place + step, place], known, values, left=np.nan, right=np.nan)
    return float(there - here)


def _sentences(run: Run, title: str, pair: tuple[str, str], rises: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Which of the two is sharper, along the line and along the profiles, and which tests worse."""
    small, large = pair

    def sentence(claim: str, found: Ordering) -> str:
        found_there = f"{run.where}, {title}: {claim} in {found.tally}."
        return found_there + verdict(run, "The published ordering", found)

    raw_small, raw_large = (rises[name][:2].mean(axis=0) for name in pair)
    if small == "SB":
        yield sentence(f"along the line {large} rises more than {small}", ordering(raw_small, raw_large))
    else:  # the published reversal
        yield sentence(f"along the line {small} rises more than {large}", ordering(raw_large, raw_small))
    along_small, along_large = (rises[name][2:].mean(axis=0) for name in pair)
    claim = f"along filter-normalised directions {large} rises more than {small}"
    yield sentence(claim, ordering(along_small, along_large))
    yield sentence(f"{large} tests worse than {small}", ordering(*run.pair(run.test_accuracy(), (large, small))))
