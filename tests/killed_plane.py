"""Evaluates one plane again and again, each time in a child that is killed at a random moment.

    python killed_plane.py FOLDER SHARE SEED

writes ``undisturbed.h5`` and ``killed.h5`` into FOLDER and prints as JSON, for every child: how it ended, how many
points the file then holds, and whether they are the same as undisturbed. The last child is not killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from test_landscape import into, two_ends

from sharpness import store
from sharpness.checkpoints import Minimizer
from sharpness.geometry import plane_through
from sharpness.journal import DONE, LEFT_OUT, HDF5Journal
from sharpness.landscape import evaluate, evaluate_plane, plane_template

KILLS = 12
POINTS = 20  # a child is killed after at most so many points
LONGEST = 0.004  # seconds after the last of them: time for a few more
FLUSHES = 12  # or when the file is about to be flushed for at most the so-many-th time
GRIDS = {1.0: (17, 11), 1 / 3: (25, 23)}  # of 187 and of 191 points to evaluate


def evaluated(path: Path, share: float, progress: Callable[..., None]) -> None:
    objectives, first, second = two_ends()
    plane = plane_through({"a": Minimizer.of(first), "b": Minimizer.of(second)}, objectives["train"].space)
    grids = [np.linspace(-1, 2, size) for size in GRIDS[share]]
    with into(path, plane_template(objectives, plane, *grids, share=share)) as journal:
        evaluate_plane(objectives, plane, *grids, share=share, journal=journal, progress=progress)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_flush(number: int) -> None:
    flush, left = h5py.File.flush, [number]

    def counted(file: h5py.File) -> None:
        left[0] -= 1
        if left[0] < 0:
            die()
        flush(file)

    h5py.File.flush = counted


def killed_leaving_out() -> None:
    """With half of the points that are left out said to be."""
    leave_out = HDF5Journal.leave_out
    HDF5Journal.leave_out = lambda journal, rows: (leave_out(journal, rows[::2]), die())[0]  # type: ignore[method-assign]


def forked(path: Path, share: float, prepare: Callable[[], None], points: int | None, moment: float = 0.0) -> int:
    """How a child ends; with ``points``, it is killed a moment after so many more of them."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.close(reading)
            prepare()
            evaluated(path, share, lambda *_: os.write(writing, b"."))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as told:
        for _ in range(points or 0):
            told.read(1)
        if points is not None:
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
        while told.read(4096):
            pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def report(code: int, path: Path, whole: Path) -> dict[str, object]:
    if not path.exists():
        return {"code": code, "kept": 0, "same": True}
    found, expected = store.load(path), store.load(whole)
    kept = (found.status != 0) & (found.status != LEFT_OUT)
    same = all(
        getattr(found, name)[..., kept].tobytes() == getattr(expected, name)[..., kept].tobytes()
        for name in ("loss", "accuracy", "status")
    )
    return {"code": code, "kept": int(kept.sum()), "same": same}


if __name__ == "__main__":
    folder, share, chance = Path(sys.argv[1]), float(sys.argv[2]), random.Random(int(sys.argv[3]))
    evaluate.COMMIT_SECONDS = 0.003  # a commit of a few points: the plane takes a fraction of a second
    path, whole = folder / "killed.h5", folder / "undisturbed.h5"
    evaluated(whole, share, lambda *_: None)
    ends = []
    for kill in range(KILLS):
        if kill % 2:
            number = chance.randrange(FLUSHES)
            code = forked(path, share, lambda number=number: killed_at_flush(number), None)  # type: ignore[misc]
        else:
            code = forked(path, share, lambda: None, chance.randrange(POINTS), chance.uniform(0, LONGEST))
        ends.append(report(code, path, whole))
    if share < 1:
        ends.append(report(forked(path, share, killed_leaving_out, None), path, whole))
        assert 0 < (store.load(path).status == LEFT_OUT).sum() < (store.load(whole).status == LEFT_OUT).sum()
        assert (store.load(path).status == DONE).sum() == (store.load(whole).status == DONE).sum()
    print(json.dumps([*ends, report(forked(path, share, lambda: None, None), path, whole)]))
