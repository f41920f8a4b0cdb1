"""Which tensor of a file is which of a model, where wrappers and prefixes have changed its name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from sharpness.checkpoints.contents import is_average
from sharpness.errors import CheckpointError

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "base_layer"}
PARALLEL = {"module"}  # of DataParallel; a model may also call a part of its own so
PARAMETRIZED = {  # new names of weight norm and spectral norm, and the old ones; (?<![^.]) is the start of a part
    r"(?<![^.])parametrizations\.(\w+)\.original0$": r"\1_g",
    r"(?<![^.])parametrizations\.(\w+)\.original1$": r"\1_v",
    r"(?<![^.])parametrizations\.(\w+)\.original$": r"\1_orig",
    r"(?<![^.])parametrizations\.(\w+)\.0\._(u|v)$": r"\1_\2",
}


@dataclass(frozen=True)
class Shift:
    """A prefix to take off names, or to put in front of them; with neither they stay as they are."""

    removed: str = ""
    added: str = ""

    def __call__(self, name: str) -> str | None:
        """The name changed, None where it does not begin so."""
        return self.added + name.removeprefix(self.removed) if name.startswith(self.removed) else None


def assign(
    file: Collection[str], model: Collection[str], fits: Callable[[str, str], bool]
) -> tuple[dict[str, str], Shift]:
    """The file's name for each of the model's that it has, and the prefix that was changed for that.

    Names of wrappers (``_orig_mod`` and the like, LoRA's ``base_layer``, ``module``) are no part of a name, wherever
    they stand in it, and new names of weight norm are old ones. A prefix is changed if then more tensors, and at least
    half of the file's or of the model's, have a place that ``fits(name in the file, name in the model)``.

    >>> assign(["model.a.w", "model.b.w", "loss.w"], ["a.w", "b.w"], lambda *_: True)
    ({'a.w': 'model.a.w', 'b.w': 'model.b.w'}, Shift(removed='model.', added=''))

    Raises:
        CheckpointError: two prefixes serve equally well.
    """
    given, own = _bare(file, model)
    longer: dict[str, list[str]] = defaultdict(list)
    for name in own:
        for prefix, rest in _splits(name):
            longer[rest].append(prefix)
    counts: Counter[Shift] = Counter()
    for name in given:
        shifts = [Shift(), *(Shift(removed=p) for p, _ in _splits(name)), *(Shift(added=p) for p in longer[name])]
        places = ((shift, shift(name)) for shift in shifts)
        counts.update(s for s, place in places if place is not None and place in own and fits(given[name], own[place]))
    shift = _best(counts, min(len(given), len(own)) / 2)
    moved = {place: name for name in given if (place := shift(name)) is not None and place in own}
    used = set(moved.values())
    stayed = {name: name for name in given if name in own and name not in moved and name not in used}
    return {own[place]: given[name] for place, name in {**stayed, **moved}.items()}, shift


def _bare(*sides: Collection[str]) -> list[dict[str, str]]:
    """The names of each side by what they are without wrappers, ignoring as much as keeps them apart."""
    for ignored in (WRAPPERS | PARALLEL, WRAPPERS):
        bare = [{_without(name, ignored): name for name in names} for names in sides]
        if all(len(found) == len(names) for found, names in zip(bare, sides, strict=True)):
            return bare
    return [{name: name for name in names} for names in sides]


def _without(name: str, ignored: Collection[str]) -> str:
    name = ".".join(part for part in name.split(".") if part not in ignored)
    for new, old in PARAMETRIZED.items():
        name = re.sub(new, old, name)
    return name


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """The prefixes of a name, each with the rest: ``("a.", "b.c")`` and ``("a.b.", "c")`` of ``a.b.c``."""
    return ((name[: dot.end()], name[dot.end() :]) for dot in re.finditer(r"\.", name))


def _best(counts: Counter[Shift], least: float) -> Shift:
    """The shift that most tensors speak for; none where that gains nothing, or where few do.

    Averages that lie beside the weights under names of their own serve as well as these, and are not what is meant.
    """
    most = max(counts.values(), default=0)
    leading = [shift for shift, count in counts.items() if count == most]
    if Shift() in leading or most < least or not leading:
        return Shift()
    leading = [shift for shift in leading if not is_average(shift.removed)] or leading
    if len(leading) > 1:
        names = ", ".join(repr(shift.removed or shift.added) for shift in leading[:4])
        cure = f"Choose one: --weights '{leading[0].removed}'" if leading[0].removed else "Rename its tensors"
        raise CheckpointError(
            f"the names fit with one prefix as well as with another ({names}), and none is guessed. {cure}."
        )
    return leading[0]
