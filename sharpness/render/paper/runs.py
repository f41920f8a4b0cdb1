"""Finished runs below a folder, by the recipe that made them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sharpness import store
from sharpness.errors import SchemaError
from sharpness.records import Comparison
from sharpness.render.notes import (
    SMOKE,
    condition_notes,
    counted,
    model_text,
    scale_text,
    smoke_text,
    training_facts,
)
from sharpness.render.published import DATA, NETWORKS, TRAIN_EXAMPLES
from sharpness.render.summary import REGIMES


class Run(NamedTuple):
    """A run with what it compared."""

    name: str
    folder: Path
    comparison: Comparison

    @property
    def label(self) -> str:
        """The paper's name of the network where it has one, else the recipe's."""
        return NETWORKS.get(self.name, self.name)

    @property
    def where(self) -> str:
        """The beginning of a sentence about the run."""
        known = self.comparison.conditions
        return f"{self.label} at {scale_text(known)}" if known.get("scale") else f"{self.label} ({scale_text(known)})"

    @property
    def first_seed(self) -> int:
        """The seed whose single results are drawn."""
        return int(self.comparison.seed[0])

    def regime(self, name: str) -> int:
        """The place of a regime along the first dimension of the comparison.

        Raises:
            SchemaError: the run has no such regime.
        """
        names = [str(regime) for regime in self.comparison.regime]
        if name not in names:
            raise SchemaError(f"expected a regime {name} in {self.folder / 'comparison.h5'}; got {', '.join(names)}")
        return names.index(name)

    def has(self, *regimes: str) -> bool:
        """Whether the run has these regimes."""
        return set(regimes) <= {str(regime) for regime in self.comparison.regime}

    def pair(self, values: np.ndarray, names: Sequence[str] = REGIMES) -> list[np.ndarray]:
        """What two regimes have of values of shape (regime, …)."""
        return [values[self.regime(name)] for name in names]

    def test_accuracy(self) -> np.ndarray:
        """In percent, of shape (regime, seed)."""
        return 100 * self.split("test")

    def split(self, name: str) -> np.ndarray:
        """The accuracy on one data set, of shape (regime, seed); NaN where it was not measured."""
        names = [str(split) for split in self.comparison.split]
        accuracy = self.comparison.accuracy
        return accuracy[:, :, names.index(name)] if name in names else np.full(accuracy.shape[:2], np.nan)

    def record(self, seed: int, file: str) -> Any:
        """The record in a file of one seed, as ``"SB/history.h5"``; ``None`` where there is no such file."""
        return first_record(self.folder / f"seed-{seed}" / file)

    def records(self, file: str) -> list[Any]:
        """The records in the files of that name of all seeds that have one."""
        found = (self.record(int(seed), file) for seed in self.comparison.seed)
        return [record for record in found if record is not None]


def first_record(path: Path) -> Any:
    """The record in a file, ``None`` where there is no such file."""
    return next(iter(store.load_all(path).values())) if path.exists() else None


def find_runs(names: Iterable[str], runs: Path) -> list[Run]:
    """The finished runs of these recipes in ``runs``; errors as ``store.load``."""
    places = ((name, runs / name) for name in names)
    return [
        Run(name, folder, store.load(folder / "comparison.h5"))
        for name, folder in places
        if (folder / "comparison.h5").exists()
    ]


def need_runs(names: Sequence[str], runs: Path) -> list[Run]:
    """As ``find_runs``, or ``SchemaError`` where there is none."""
    found = find_runs(names, runs)
    if not found:
        raise no_run(names, runs)
    return found


def no_run(names: Sequence[str], runs: Path, *, what: str = "") -> SchemaError:
    """The error that says which run is missing and how it is made."""
    lacking = f"; there is none with {what}" if what else "; there is none"
    return SchemaError(
        f"expected a finished run of {', '.join(names)} in {runs}{lacking}. Make one: sharpness run {names[0]}"
    )


def run_notes(run: Run) -> list[str]:
    """The conditions of a run, and what keeps its numbers from comparing with the published ones, where anything."""
    known, theirs = run.comparison.conditions, DATA[run.name]
    ours, whole = str(known.get("data", theirs)), TRAIN_EXAMPLES.get(theirs, 0)
    used = known.get("train_examples", whole)
    reasons = []
    if _bare(ours) != _bare(theirs):
        reasons.append(f"published on {theirs}, measured on {ours}")
    elif used < whole:
        reasons.append(f"{used:,} of {whole:,} training images")
    if known.get("model_options"):
        reasons.append(model_text(known))
    if not reasons and known.get("scale") != "paper":
        reasons.append(scale_text(known))
    orderings = "" if smoke_text(known) else ", the orderings may"
    said = [f"{run.label}: {', '.join(reasons)}: the numbers do not compare{orderings}."] if reasons else []
    return [*condition_notes(run.comparison), *said]


def _bare(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def run_captions(found: Sequence[Run], names: Sequence[str] = ()) -> list[str]:
    """What each run trained, scale and trials, the warning that smoke scale needs, and which runs there are not."""
    parts = []
    for run in found:
        known, trials = run.comparison.conditions, counted(run.comparison.seed.size, "trial")
        parts.append(f"{run.label}: {', '.join([*training_facts(known), scale_text(known), trials])}")
    if any(smoke_text(run.comparison.conditions) for run in found):
        parts.append(SMOKE)
    absent = [NETWORKS.get(name, name) for name in names if name not in {run.name for run in found}]
    return parts + ([f"no finished run of {', '.join(absent)}"] if absent else [])
