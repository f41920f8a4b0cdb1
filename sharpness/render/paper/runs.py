"""Finished runs below a folder, by the recipe that made them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sharpness import store
from sharpness.errors import SchemaError
from sharpness.records import Comparison
from sharpness.render.notes import SMOKE, counted, scale_text
from sharpness.render.published import NETWORKS


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


def run_captions(found: Sequence[Run], names: Sequence[str] = ()) -> list[str]:
    """Data, scale and trials of each run, the warning that smoke scale needs, and which runs there are not."""
    parts = []
    for run in found:
        known = run.comparison.conditions
        said = [str(known["data"])] if "data" in known else []
        said += [scale_text(known), counted(run.comparison.seed.size, "trial")]
        parts.append(f"{run.label}: {', '.join(said)}")
    if any(run.comparison.conditions.get("scale") == "smoke" for run in found):
        parts.append(SMOKE)
    absent = [NETWORKS.get(name, name) for name in names if name not in {run.name for run in found}]
    return parts + ([f"no finished run of {', '.join(absent)}"] if absent else [])
