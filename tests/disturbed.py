"""Runs one command again and again, each time in a child that meets a trouble at a chosen moment.

    python disturbed.py '[["replace", "SB/minimizer.safetensors", 1, "SIGKILL"], null]' run small.toml --out DIR

prints how each child ended as JSON: [code (negative: the signal that ended it), standard output, standard error].
A trouble is null or one of the following, with each of which no figures are drawn:

- ["replace", NAME, n, SIGNAL]: the signal arrives when a file whose path ends with NAME, completely written under a
  temporary name, is about to be put in its place for the n-th time;
- ["flush", NAME, n, SIGNAL]: when such a file in progress is about to be flushed for the n-th time. A row is flushed
  twice: its values, then its status;
- ["unlink", NAME, n, SIGNAL]: when such a file is about to be removed for the n-th time;
- ["limit", BYTES]: no file can grow beyond so many bytes, as on a full disk;
- ["nothing"].
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

import sharpness.landscape
import sharpness.recipes
import sharpness.render  # imported once, before the children are forked
import sharpness.training
from sharpness.cli import main


def meet(trouble: list[Any] | None) -> None:
    if trouble is None:
        return
    sharpness.render.draw_folder = lambda *_: []
    if trouble[0] == "nothing":
        return
    if trouble[0] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble[1], resource.RLIM_INFINITY))
        return
    kind, name, number, sign = trouble
    expect = counted(name, number, lambda: os.kill(os.getpid(), signal.Signals[sign]))
    if kind == "replace":
        replace = Path.replace
        Path.replace = lambda self, target: (expect(target), replace(self, target))[1]
    elif kind == "unlink":
        unlink = Path.unlink
        Path.unlink = lambda self, missing_ok=False: (expect(self), unlink(self, missing_ok))[1]
    else:
        flush = h5py.File.flush
        h5py.File.flush = lambda self: (expect(self.filename), flush(self))[1]


def counted(name: str, number: int, act: Callable[[], None]) -> Callable[[object], None]:
    left = number

    def expect(path: object) -> None:
        nonlocal left
        left -= str(path).endswith(name)
        if not left:
            left = -1
            act()

    return expect


def child(trouble: list[Any] | None, arguments: list[str]) -> list[Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 70
            try:
                sys.argv = ["sharpness", *arguments]
                meet(trouble)
                main()
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return [code, *texts]


if __name__ == "__main__":
    sharpness.training.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    sharpness.landscape.evaluate.COMMIT_SECONDS = 0.0  # every point by itself
    print(json.dumps([child(trouble, sys.argv[2:]) for trouble in json.loads(sys.argv[1])]))
