"""What is said of one thing that was looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from sharpness.errors import SharpnessError

Outcome = Literal["ok", "note", "fails"]


@dataclass(frozen=True)
class Check:
    """One thing looked at: how it is, what was seen and, where all is not well, why so and what to do.

    Args:
        name: what was looked at.
        outcome: ``"ok"``; ``"note"``: the numbers are right, and may not be what was meant; ``"fails"``: they cannot
            be trusted, or not be had.
        seen: in words and numbers.
        cause, cure: of a note or a failure.

    Example:
        >>> print(Check("batch norm", "note", "1 of 1 layers has new statistics", "never trained", "load them"))
        batch norm: 1 of 1 layers has new statistics. Cause: never trained. Cure: load them.
    """

    name: str
    outcome: Outcome
    seen: str
    cause: str = ""
    cure: str = ""

    @property
    def good(self) -> bool:
        """Whether it does not fail."""
        return self.outcome != "fails"

    def __str__(self) -> str:
        rest = [f"{what}: {text}" for what, text in (("Cause", self.cause), ("Cure", self.cure)) if text]
        return f"{self.name}: " + " ".join(f"{part.rstrip('.')}." for part in (self.seen, *rest))

    def _asdict(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


def attempt(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks that ``look()`` makes, and a failure called ``name`` where the model, loss or data raise in it."""
    checks: list[Check] = []
    try:
        for check in look():
            checks.append(check)
    except SharpnessError as error:
        checks.append(Check(name, "fails", str(error), cure="see the message"))
    except torch.OutOfMemoryError as error:
        checks.append(Check(name, "fails", _message(error), "not enough memory", "a smaller chunk_size, or the CPU"))
    except Exception as error:  # of the model or the loss itself, on these data
        cause = "raised in the model or the loss on these data"
        checks.append(Check(name, "fails", _message(error), cause, "make sure that model, loss and data fit together"))
    return checks


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more.

    >>> listed(["a", "b", "c", "d", "e"])
    "'a', 'b', 'c' and 2 more"
    """
    every = list(names)
    shown = ", ".join(f"'{name}'" for name in every[:most])
    return shown + (f" and {len(every) - most} more" if len(every) > most else "")


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
