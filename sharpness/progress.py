"""How long computations tell what they have done; what shows it is the caller's choice."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called after each step with steps done, steps in all (None while unknown) and a short note."""

    def __call__(self, done: int, total: int | None, note: str = "") -> None: ...


def silent(done: int, total: int | None, note: str = "") -> None:
    """The default: no output."""
