"""Runs one search for eigenpairs again and again, each time in a child that is killed at a random moment.

    python killed.py FOLDER BLOCK SEED

prints as JSON, for every child: how it ended, the vectors whose products it computed (SHA-256 of each call), and those
whose products were in the file when it began. The last child is not killed and leaves ``result.npz`` in FOLDER.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from matrices import OUTLIERS, Diagonal

from sharpness.journal import HDF5Journal
from sharpness.operators import begin_products
from sharpness.spectrum import eigenpairs

KILLS, CALLS = 10, 5  # a child is killed after at most so many calls
LONGEST = 0.002  # seconds after the last of them: time for about three more


class Told(Diagonal):
    """A diagonal that tells on ``pipe`` of every call, before it is answered."""

    pipe = -1

    def _product(self, vectors):
        if self.pipe >= 0:
            os.write(self.pipe, hashlib.sha256(vectors.T.contiguous().numpy()).hexdigest().encode() + b"\n")
        return super()._product(vectors)


def solve(operator, block, journal):
    return eigenpairs(
        operator, 3, "both", tolerance=1e-3, block=block, max_vectors=30, max_products=400, journal=journal
    )


def operator():
    bulk = torch.linspace(-2, 1, 3000) ** 3
    return Told(torch.cat([torch.tensor(OUTLIERS), bulk]))


def child(folder: Path, block: int, pipe: int) -> None:
    told = operator()
    with begin_products(folder / "products.h5", told, 400) as journal:
        told.pipe = pipe
        os.write(pipe, b"ready\n")
        pairs = solve(told, block, journal)
    np.savez(folder / "result.npz", **{name: getattr(pairs, name) for name in ("eigenvalues", "residuals", "vectors")})


def recorded(path: Path) -> list[str]:
    if not path.exists():
        return []
    with HDF5Journal(path, "products") as journal:
        done = journal.status == 1
        return sorted({bytes(column).hex() for column in journal.column("digest").T[done]})


def run(folder: Path, block: int, calls: int | None, moment: float = 0.0) -> dict[str, object]:
    before = recorded(folder / "products.h5")
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.close(reading)
            child(folder, block, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as lines:
        assert lines.readline() == "ready\n"
        computed = [lines.readline() for _ in range(calls or 0)]
        if calls is not None:
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
        computed = "".join([*computed, *lines]).split()
    return {"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "computed": computed, "recorded": before}


if __name__ == "__main__":
    place, width, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    ends = [run(place, width, chance.randrange(CALLS), chance.uniform(0, LONGEST)) for _ in range(KILLS)]
    print(json.dumps([*ends, run(place, width, None)]))
