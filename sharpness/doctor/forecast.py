"""How much memory and time the top of the spectrum will take."""

from __future__ import annotations

from collections.abc import Iterator

from sharpness.doctor.check import Check
from sharpness.objective import Objective, free_bytes
from sharpness.operators import Hessian
from sharpness.spectrum import default_products

PAIRS = 5
PRODUCTS = 25  # that 5 pairs took, probe and audit included: 14 to 24 for the networks of the recipes
VECTORS = 2 * PAIRS + 30  # of the basis, at most


def check_cost(f: Objective, hessian: Hessian, seconds: float) -> Iterator[Check]:
    """What products keep in memory, and how long those take of which one took ``seconds``."""
    free, basis = free_bytes(f.device), VECTORS * f.size * f.dtype.itemsize
    kept, chunks = hessian.conditions["execution"]["retained_chunks"], len(f.chunks)
    each = f.terms.saved_bytes_per_example(f.few, linearised=True)
    seen = (
        f"{shown(each)} per example: {shown(hessian.retained_bytes)} for {kept} of {chunks} chunks; basis for {PAIRS} "
        f"pairs {shown(basis)}, of {VECTORS} vectors; {shown(free)} are free"
    )
    if basis > free:
        cure = 'eigenpairs(…, basis="host"), fewer pairs, or some of the parameters'
        yield Check("memory", "note", seen, "the basis alone does not fit", cure)
    elif kept < chunks:
        cause = "graphs that do not fit are built again for every product, which then costs three gradients, not two"
        yield Check("memory", "note", seen, cause, "nothing, if time does not matter; else fewer examples")
    else:
        yield Check("memory", "ok", seen)
    usual, most = (duration(count * seconds) for count in (PRODUCTS, default_products(PAIRS)))
    seen = f"{seconds:.2g} s per product; {PAIRS} pairs usually take {PRODUCTS} ({usual}), at most {most}"
    yield Check("time", "ok", seen)


def shown(count: float) -> str:
    """Bytes for people.

    >>> shown(0), shown(2048), shown(3.5 * 2**30)
    ('0 B', '2 KiB', '3.5 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.2g} {unit}" if count < 100 else f"{count:.0f} {unit}"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(0.25), duration(200), duration(10000)
    ('0.25 s', '3.3 min', '2.8 h')
    """
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 7200 else f"{seconds / 3600:.2g} h"
