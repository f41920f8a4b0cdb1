"""Models of libraries and data by name, with the preprocessing that belongs to them, as a problem."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.data import Data, load
from sharpness.errors import DataError, ShapeError, UnsupportedModelError
from sharpness.models import MODELS, build, initialised
from sharpness.objective import Problem, cross_entropy, free_bytes, usual_loss
from sharpness.recipes import huggingface
from sharpness.recipes.libraries import Views, first_line, library_of

HELD = 0.5  # of the free memory that prepared data may take


@dataclass(frozen=True)
class Preprocessing:
    """What is done to the inputs of named data, which are images of pixels in [0, 1], or anything else.

    Args:
        mean, std: (x − mean) / std, one number or one per channel; default: none.
        own: as the model's library says: side, crop, mean and deviation. Given ones take precedence.
        limit: the first so many training and test examples are taken; 0 is all.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    own: bool = False
    limit: int = 0

    def __post_init__(self) -> None:
        if any(deviation <= 0 for deviation in self.std):
            raise ShapeError(f"expected --std > 0; got {', '.join(map(str, self.std))}")


def named_problem(model: str, data: str, preprocessing: Preprocessing) -> Problem:
    """A model and data by name, with the loss of the data: cross-entropy, or squared error where targets are numbers.

    Raises:
        UnsupportedModelError: no such model, or its library is not installed.
        DataError: no such data, or they do not fit the model.
    """
    library, _, rest = model.partition(":")
    kind, _, place = data.partition(":")
    if library == "hf" and kind == "text":
        if preprocessing != Preprocessing(limit=preprocessing.limit):
            raise DataError("expected --mean, --std and --own-transform with images; got them with a text")
        module, train, test = huggingface.language_model(Path(rest), place, preprocessing.limit)
        return Problem(module, cross_entropy, train, test)
    found = load(kind, place or None)
    if library in LIBRARIES and rest:
        found = _as_images(found)
        module, views = LIBRARIES[library](rest, found, preprocessing.own)
    elif library in MODELS and not rest:
        if preprocessing.own:
            raise DataError(f"expected --own-transform with a model of {', '.join(LIBRARIES)}; {model} has none")
        shape = tuple(found.train[0].shape[1:])
        module, views = initialised(lambda: build(library, shape, found.classes), seed=0), Views()
    else:
        known = ", ".join([*(f"{name}:NAME" for name in LIBRARIES if name != "hf"), "hf:DIR", *MODELS])
        raise UnsupportedModelError(f"expected --model {known}; got {model!r}")
    chosen = {name: value for name in ("mean", "std") if (value := getattr(preprocessing, name))}
    views = dataclasses.replace(views, **chosen)
    train, test = (
        (_prepared(inputs[: preprocessing.limit or None], views), targets[: preprocessing.limit or None])
        for inputs, targets in (found.train, found.test)
    )
    return Problem(module, usual_loss(found.train[1]), train, test)


def _torchvision(spec: str, data: Data, own: bool) -> tuple[nn.Module, Views]:
    library = library_of("torchvision", "torchvision.models")
    name, options = _options(spec)
    classifiers = library.list_models(module=library)  # others would fetch a backbone
    if name not in classifiers:
        raise UnsupportedModelError(
            f"expected a classifier of torchvision; it has no {name!r}{_like(name, classifiers)}"
        )
    chosen = {"num_classes": data.classes, **options, "weights": None}
    module = _made(spec, lambda: library.get_model(name, **chosen))
    if not own:
        return module, Views()
    weights = library.get_model_weights(name)
    if not len(weights):
        raise DataError(f"expected a model with a transform of its own; torchvision has none for {name}: --mean, --std")
    preset = weights.DEFAULT.transforms()
    side, crop, mode = preset.resize_size[0], preset.crop_size[0], preset.interpolation.value
    return module, Views(side, crop, tuple(preset.mean), tuple(preset.std), mode)


def _timm(spec: str, data: Data, own: bool) -> tuple[nn.Module, Views]:
    library = library_of("timm", "timm")
    name, options = _options(spec)
    if not library.is_model(name):
        known = library.list_models()
        raise UnsupportedModelError(f"expected a model of timm; it has no {name!r}{_like(name, known)}")
    chosen = {"num_classes": data.classes, **options, "pretrained": False}
    module = _made(spec, lambda: library.create_model(name, **chosen))
    if not own:
        return module, Views()
    config = library.data.resolve_model_data_config(module)
    crop = config["input_size"][-1]
    side = round(crop / config.get("crop_pct", 1.0))
    return module, Views(side, crop, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])


LIBRARIES: Mapping[str, Callable[[str, Data, bool], tuple[nn.Module, Views]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": huggingface.image_model,
}


def _made(spec: str, make: Callable[[], nn.Module]) -> nn.Module:
    """A library's model, the same at every call."""
    try:
        return initialised(make, seed=0)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UnsupportedModelError(
            f"expected options that the model takes in {spec!r}; {type(error).__name__}: {first_line(error)}"
        ) from error


def _options(spec: str) -> tuple[str, dict[str, Any]]:
    """A name and what follows it: ``resnet18,in_chans=1``.

    >>> _options("resnet18,in_chans=1,act_layer=gelu")
    ('resnet18', {'in_chans': 1, 'act_layer': 'gelu'})
    """
    name, *given = spec.split(",")
    options = {}
    for option in given:
        key, separator, value = option.partition("=")
        if not separator or not key:
            raise UnsupportedModelError(f"expected options as NAME=VALUE after the model's name; got {option!r}")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return name, options


def _as_images(data: Data) -> Data:
    """MNIST's and the digits' rows of pixels as images of one channel; other data as they are."""
    side = {784: 28, 64: 8}.get(data.train[0].shape[1]) if data.train[0].ndim == 2 else None
    if side is None or data.name not in ("mnist", "digits"):
        return data
    train, test = ((inputs.view(-1, 1, side, side), targets) for inputs, targets in (data.train, data.test))
    return dataclasses.replace(data, train=train, test=test)


def _prepared(inputs: Tensor, views: Views) -> Tensor:
    """Inputs prepared, or a refusal where they would not fit into memory."""
    if views == Views():
        return inputs
    one = views(inputs[:1])
    needed = one.nbytes * len(inputs)
    if needed > HELD * free_bytes(torch.device("cpu")):
        raise DataError(
            f"expected prepared inputs that fit into memory; {len(inputs)} of {tuple(one.shape[1:])} take "
            f"{needed / 2**30:.1f} GiB. Take fewer: --limit N"
        )
    return views(inputs)


def _like(name: str, known: Sequence[str]) -> str:
    """Names that look alike, as part of a message."""
    close = difflib.get_close_matches(name, known, n=3)
    return f". Did you mean {' or '.join(close)}?" if close else ""
