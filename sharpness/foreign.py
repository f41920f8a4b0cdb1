"""Files that the code of Li et al. (2018) wrote: https://github.com/tomgoldstein/loss-landscape.

Its surfaces become records; its directions, lists of arrays, which ``sharpness.geometry.load_directions`` lays into θ.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sharpness.errors import SchemaError
from sharpness.records import LineLosses, PlaneLosses

MISSING = -1.0  # what its files hold where nothing has been computed
KINDS = {"xcoordinates": "surface", "xdirection": "direction", "proj_xcoord": "trajectory"}
ADVICE = {
    "surface": "It is a surface of loss-landscape: convert it with `sharpness import {file} --out RESULT.h5`",
    "direction": "It holds directions of loss-landscape: give it to `sharpness import SURFACE.h5` as --directions",
    "trajectory": "It holds a trajectory of loss-landscape: give it to `sharpness import SURFACE.h5` as --trajectory",
}
NAMED = re.compile(
    r"PCA(?=_)|(?<=_)(?:weights|states|same_dir|rawdata|idx=\d+|[xy]?(?:ignore|norm)=[a-z]+|datasplit=\d+_splitidx=\d+)(?=[_.])"
)
NOT_RECORDED = {
    "weights": "no weights and no hash of them: start, end, origin, first and second are empty",
    "batch norm": "its code evaluates with running statistics; for directions of type weights they stay those of the "
    "origin, for type states they move along",
    "loss": "cross-entropy or the squared error of the softmax output, a mean over examples",
    "data": "which examples, and how they were prepared",
    "seed": "of the random directions",
    "directions": "type and normalisation, except in file names; two random ones are not made orthogonal",
    "holes": "-1 stands for what was not computed; a point whose loss and accuracy really are -1 reads the same",
}


def load_loss_landscape(
    path: str | Path, *, directions: str | Path | None = None, trajectory: str | Path | None = None
) -> LineLosses | PlaneLosses:
    """A surface file of loss-landscape as a record: a line, or with ``ycoordinates`` a plane.

    Losses stay as they are, accuracies become fractions. -1 becomes NaN, with status 0 (pending) where any data set
    lacks a loss; a data set that lacks them all is left out. In such files x varies fastest, whatever the shape of the
    arrays. What they do not say is in ``conditions["not recorded"]``; batch norm is ``"unknown"``.

    Args:
        path: the surface file.
        directions: the direction file; gives the angle between the axes, their lengths (where the type is not states,
            for they would hold running statistics), and the explained variance of principal components.
        trajectory: the file of a projected training run; needs ``directions``. Its coordinates, which are lengths
            along each direction by itself, become the α and β of least squares. Iterates are numbered from 0; their
            distances from the plane are not recorded.

    Raises:
        SchemaError: missing, damaged or another kind of file; nothing computed yet; sizes that do not fit.

    Example:
        >>> load_loss_landscape("resnet56_[-1.0,1.0,51]x[-1.0,1.0,51].h5").loss.shape  # doctest: +SKIP
        (1, 51, 51)
    """
    path = Path(path)
    with _opened(path, "surface") as file:
        axes = [_coordinates(file, name, path) for name in ("xcoordinates", "ycoordinates") if name in file]
        source = _source(file, path)
        values = _values(file, [len(axis) for axis in axes], path)
    if directions is not None and len(axes) < 2:
        raise SchemaError(f"expected a surface over two directions in {path}, to go with a file of them; it has one")
    if trajectory is not None and directions is None:
        raise SchemaError("expected the direction file beside a trajectory, whose coordinates depend on it")
    common: dict[str, Any] = {
        **values,
        "batchnorm": "unknown",
        "conditions": {"imported": source, "not recorded": NOT_RECORDED},
    }
    if len(axes) == 1:
        return LineLosses(alpha=axes[0], start="", end="", path="θ + α·d", **common)
    kind = "of a loss-landscape file"
    kind += f"; by its name: {', '.join(source['named'])}" if source["named"] else ""
    seen = {} if directions is None else _axes(Path(directions), source["named"], trajectory)
    return PlaneLosses(alpha=axes[0], beta=axes[1], origin="", first="", second="", directions=kind, **seen, **common)


def read_directions(path: str | Path) -> list[list[np.ndarray]]:
    """The one or two directions of a direction file, each an array per parameter, or per entry of the state dict.

    Raises:
        SchemaError: missing, damaged or another kind of file.
    """
    with _opened(Path(path), "direction") as file:
        groups = [file[name] for name in ("xdirection", "ydirection") if name in file]
        return [[_number(group[str(i)]) for i in range(len(group))] for group in groups]


def advice(file: h5py.File) -> str:
    """What an open file of loss-landscape is and what to do with it; empty for any other file."""
    return ADVICE.get(_kind(file), "").format(file=shlex.quote(str(file.filename)))


# Reading


def _kind(file: h5py.File) -> str:
    return next((kind for name, kind in KINDS.items() if name in file), "")


@contextmanager
def _opened(path: Path, wanted: str) -> Iterator[h5py.File]:
    if not path.is_file():
        raise SchemaError(f"expected a {wanted} file of loss-landscape at {path}; there is none")
    try:
        with h5py.File(path, "r") as file:
            found = _kind(file)
            if found != wanted:
                what = f"a {found} file" if found else "of sharpness" if "format" in file.attrs else "something else"
                raise SchemaError(f"expected a {wanted} file of loss-landscape at {path}; it is {what}")
            yield file
    except SchemaError:
        raise
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise SchemaError(
            f"expected a complete {wanted} file of loss-landscape at {path}; it is damaged or something else ({error})"
        ) from error


def _number(dataset: h5py.Dataset) -> np.ndarray:
    values = dataset[()]
    return np.asarray(values, np.promote_types(np.float32, np.asarray(values).dtype).newbyteorder("="))


def _coordinates(file: h5py.File, name: str, path: Path) -> np.ndarray:
    values = _number(file[name]).astype(float)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise SchemaError(f"expected {name} of {path} to be a list of finite numbers; got shape {values.shape}")
    return values


def _values(file: h5py.File, sizes: Sequence[int], path: Path) -> dict[str, np.ndarray]:
    """Splits, losses, accuracies and status."""
    names = sorted((name.removesuffix("_loss") for name in file if name.endswith("_loss")), key=_split_order)
    losses, accuracies = np.full((2, len(names), *sizes), MISSING)
    for index, name in enumerate(names):
        for values, ending in ((losses, "loss"), (accuracies, "acc")):
            if f"{name}_{ending}" in file:
                values[index] = _placed(file[f"{name}_{ending}"], sizes, path)
    missing = (losses == MISSING) & (accuracies == MISSING)
    some = ~missing.all(tuple(range(1, missing.ndim)))
    if not some.any():
        raise SchemaError(f"expected losses in {path}; none of its points has been computed. Finish the computation.")
    status = np.where(np.isfinite(losses[some]).all(0), 1, 2)
    status[missing[some].any(0)] = 0
    losses[missing], accuracies[accuracies == MISSING] = np.nan, np.nan
    return {
        "split": np.array(names)[some],
        "loss": losses[some],
        "accuracy": accuracies[some] / 100,
        "status": status.astype(np.uint8),
    }


def _split_order(name: str) -> tuple[bool, str]:
    return name != "train", name


def _placed(dataset: h5py.Dataset, sizes: Sequence[int], path: Path) -> np.ndarray:
    """The values by (x, y). Its code runs through them as ``meshgrid(x, y)`` does, also where it shaped them (x, y)."""
    values = _number(dataset).astype(float)
    if values.size != np.prod(sizes):
        wanted = " × ".join(map(str, sizes))
        raise SchemaError(f"expected {wanted} values in {dataset.name} of {path}; got shape {values.shape}")
    return values.reshape(sizes[::-1]).T


def _source(file: h5py.File, path: Path) -> dict[str, Any]:
    """What is known of where the numbers come from."""
    given = np.asarray(file["dir_file"][()] if "dir_file" in file else file.attrs.get("dir_file", "")).ravel()
    text = given[0] if given.size else ""
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    read = {"xcoordinates", "ycoordinates", "dir_file"}
    return {
        "format": "loss-landscape",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "dir_file": text,
        "named": list(dict.fromkeys(NAMED.findall(f"{text} {path.name}"))),
        "not read": sorted(name for name in file if name not in read and not name.endswith(("_loss", "_acc"))),
    }


# Directions


def _axes(path: Path, named: Sequence[str], trajectory: str | Path | None) -> dict[str, Any]:
    """What the direction file tells about a plane, and the training run on it."""
    first, second = _flat_pair(path)
    gram = np.array([[first @ first, first @ second], [first @ second, second @ second]])
    lengths = np.sqrt(np.diag(gram))
    found: dict[str, Any] = {"cosine": float(gram[0, 1] / (np.prod(lengths) or 1.0))}
    if "states" not in named:
        found["length"] = lengths
    with _opened(path, "direction") as file:
        if "explained_variance_ratio_" in file:
            found["explained"] = _number(file["explained_variance_ratio_"]).astype(float)[:2]
    return found if trajectory is None else {**found, **_walk(Path(trajectory), gram)}


def _flat_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both directions as its projections see them, that is, without entries of no dimension (counters)."""
    both = read_directions(path)
    flat = [np.concatenate([part.ravel() for part in parts if part.ndim]).astype(float) for parts in both]
    if len(flat) != 2 or flat[0].shape != flat[1].shape:
        raise SchemaError(
            f"expected two directions of one length in {path}; got {[len(part) for part in flat]} entries"
        )
    return flat[0], flat[1]


def _walk(path: Path, gram: np.ndarray) -> dict[str, np.ndarray]:
    """α and β of iterates d from their lengths along each direction, d·v/‖v‖, or as they are where they are fitted."""
    with _opened(path, "trajectory") as file:
        lengths = np.array([_coordinates(file, name, path) for name in ("proj_xcoord", "proj_ycoord")])
    fitted = np.linalg.lstsq(gram, lengths * np.sqrt(np.diag(gram))[:, None])[0]
    places = lengths if "lstsq" in path.name else fitted
    number = np.arange(lengths.shape[1])
    return {"epoch": number, "walk_place": np.column_stack([*places, np.full(len(number), np.nan)])}
