"""Models of libraries and data by name, with the preprocessing that belongs to them, as a problem."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpness.data import Data, load
from sharpness.data import text as texts
from sharpness.errors import CheckpointError, DataError, ShapeError, UnsupportedModelError
from sharpness.models import MODELS, build, initialised
from sharpness.objective import Problem, cross_entropy, free_bytes, usual_loss

BATCH = 256  # images resized at a time
HELD = 0.5  # of the free memory that prepared data may take
CONTEXT = 128  # tokens in a sequence for models that take more


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


@dataclass(frozen=True)
class Views:
    """How a library prepares images: the shorter side, the square cut from the middle, mean and deviation."""

    side: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    mode: str = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, channels, height, width) in [0, 1], prepared."""
        parts = [self._resized(part) for part in images.split(BATCH)]
        images = torch.cat(parts) if len(parts) > 1 else parts[0]
        mean, deviation = (_per_channel(values, images) for values in (self.mean or (0.0,), self.std or (1.0,)))
        return (images - mean) / deviation if self.mean or self.std else images

    def _resized(self, images: Tensor) -> Tensor:
        if self.side is not None:
            scale = self.side / min(images.shape[-2:])
            size = [max(self.side, round(scale * length)) for length in images.shape[-2:]]
            images = F.interpolate(images, size, mode=self.mode, antialias=True, align_corners=False).clamp(0, 1)
        if self.crop is not None:
            top, left = ((length - self.crop) // 2 for length in images.shape[-2:])
            images = images[..., top : top + self.crop, left : left + self.crop]
        return images


def named_problem(model: str, data: str, preprocessing: Preprocessing) -> Problem:
    """A model and data by name, with the loss of the data: cross-entropy, or squared error where targets are numbers.

    Raises:
        UnsupportedModelError: no such model, or its library is not installed.
        DataError: no such data, or they do not fit the model.
    """
    library, _, rest = model.partition(":")
    kind, _, place = data.partition(":")
    if library == "hf" and kind == "text":
        return _language(Path(rest), place, preprocessing.limit)
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
    library = _library("torchvision", "torchvision.models")
    name, options = _options(spec)
    if name not in library.list_models():
        raise UnsupportedModelError(f"expected a model of torchvision; it has no {name!r}{_like(name, library)}")
    module = library.get_model(name, weights=None, **{"num_classes": data.classes, **options})
    if not own:
        return module, Views()
    weights = library.get_model_weights(name)
    if not len(weights):
        raise DataError(f"expected a model with a transform of its own; torchvision has none for {name}: --mean, --std")
    preset = weights.DEFAULT.transforms()
    side, crop, mode = preset.resize_size[0], preset.crop_size[0], preset.interpolation.value
    return module, Views(side, crop, tuple(preset.mean), tuple(preset.std), mode)


def _timm(spec: str, data: Data, own: bool) -> tuple[nn.Module, Views]:
    library = _library("timm", "timm")
    name, options = _options(spec)
    if not library.is_model(name):
        raise UnsupportedModelError(f"expected a model of timm; it has no {name!r}{_like(name, library)}")
    module = library.create_model(name, pretrained=False, **{"num_classes": data.classes, **options})
    if not own:
        return module, Views()
    config = library.data.resolve_model_data_config(module)
    crop = config["input_size"][-1]
    side = round(crop / config.get("crop_pct", 1.0))
    return module, Views(side, crop, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])


def _huggingface(spec: str, data: Data, own: bool) -> tuple[nn.Module, Views]:
    """An image classifier with the configuration in a folder."""
    folder = Path(spec)
    module = _from_folder(folder, "AutoModelForImageClassification")
    outputs = getattr(module.config, "num_labels", data.classes)
    if outputs != data.classes:
        raise DataError(
            f"expected data of the {outputs} classes of the model in {folder}; {data.name} has {data.classes}"
        )
    if not own:
        return module, Views()
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise DataError(
            f"expected preprocessor_config.json in {folder}, which says how images are prepared; name --mean, --std"
        )
    config = json.loads(file.read_text())
    side = _side(config.get("size")) if config.get("do_resize", True) else None
    crop = _side(config.get("crop_size")) if config.get("do_center_crop") else None
    normal = config.get("do_normalize", True)
    mean, std = (tuple(config.get(name, ())) if normal else () for name in ("image_mean", "image_std"))
    return module, Views(
        side, crop, mean, std, {2: "bilinear", 3: "bicubic"}.get(config.get("resample", 2), "bilinear")
    )


def _language(folder: Path, file: str, limit: int) -> Problem:
    """A causal language model on a text, cut into sequences of its own tokens; the last tenth is the test set."""
    module = _from_folder(folder, "AutoModelForCausalLM")
    transformers = _library("transformers", "transformers")
    text = texts.read(texts.find(Path(file).expanduser()))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not len(tokens):  # what transformers makes of a folder without one
            raise ValueError("it has no vocabulary")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"expected the model's tokenizer in {folder}; it cannot be read ({type(error).__name__}: {_first(error)}). "
            "Save it there (tokenizer.save_pretrained), or make inputs of your own: --problem FILE.py:NAME"
        ) from error
    known = module.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if int(tokens.max()) >= known:
        raise CheckpointError(
            f"expected a tokenizer of the model's {known} tokens in {folder}; it gives number {int(tokens.max())}"
        )
    length = min(CONTEXT, getattr(module.config, "max_position_embeddings", None) or CONTEXT)
    windows = (len(tokens) - 1) // length
    if windows < 10:
        raise DataError(f"expected a text of at least {10 * length + 1} tokens; {file} has {len(tokens)}")
    inputs, targets = (part[: windows * length].view(windows, length) for part in (tokens[:-1], tokens[1:]))
    last = windows - windows // 10
    train, test = (
        (inputs[rows][: limit or None], targets[rows][: limit or None]) for rows in (slice(0, last), slice(last, None))
    )
    return Problem(module, cross_entropy, train, test)


LIBRARIES: Mapping[str, Callable[[str, Data, bool], tuple[nn.Module, Views]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _huggingface,
}


def _library(name: str, module: str) -> Any:
    """A library that is asked for only where a model of it is."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnsupportedModelError(f"expected {name} installed for its models; {error}. pip install {name}") from error
    except (ImportError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"expected {name} to load; it fails with {type(error).__name__}: {_first(error)}. Install the version that "
            f"belongs to PyTorch {torch.__version__}"
        ) from error


def _from_folder(folder: Path, fallback: str) -> nn.Module:
    """The model that a HuggingFace folder configures, with random weights; nothing is downloaded and no code run."""
    transformers = _library("transformers", "transformers")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"expected a HuggingFace folder, with config.json, at {folder}; there is none")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        architecture = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
        made: nn.Module = (
            getattr(transformers, fallback).from_config(config) if architecture is None else architecture(config)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"expected a model that transformers knows in {folder}; {type(error).__name__}: {_first(error)}"
        ) from error
    return made.float()


def folder_of(model: str | None, path: Path) -> Path | None:
    """The HuggingFace folder that a checkpoint of an ``hf:`` model is, or lies in, if any."""
    folder = path if path.is_dir() else path.parent
    return folder if (model or "").startswith("hf:") and (folder / "config.json").is_file() else None


def state_in(folder: Path, module: nn.Module) -> dict[str, Tensor]:
    """The weights in a HuggingFace folder under the names of ``module``, which files of other releases may lack.

    Raises:
        CheckpointError: they cannot be read, or some are missing, left over or of another shape.
    """
    logs = _library("transformers", "transformers").utils.logging
    shown = logs.is_progress_bar_enabled()
    logs.disable_progress_bar()
    try:
        loaded, info = type(module).from_pretrained(folder, local_files_only=True, output_loading_info=True)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"expected weights of {type(module).__name__} in {folder}; {type(error).__name__}: {_first(error)}"
        ) from error
    finally:
        if shown:
            logs.enable_progress_bar()
    wrong = {kind: sorted(map(str, info.get(f"{kind}_keys") or ())) for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {', '.join(names[:4])}" for kind, names in wrong.items() if names)
        raise CheckpointError(f"expected {folder} to hold all weights of {type(module).__name__}; got {listed}")
    return dict(loaded.state_dict())


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


def _per_channel(values: tuple[float, ...], inputs: Tensor) -> Tensor:
    """Numbers that fit the channels of inputs (N, channels, …), or the one that fits all."""
    channels = inputs.shape[1]
    if len(values) not in (1, channels):
        raise ShapeError(f"expected --mean and --std with 1 or {channels} numbers; got {len(values)}")
    return torch.tensor(values).view(-1, *[1] * (inputs.ndim - 2))


def _side(size: Any) -> int | None:
    """The side in a HuggingFace size: a number, ``{"height": …, "width": …}`` or ``{"shortest_edge": …}``."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    return None if size is None else int(size)


def _like(name: str, library: Any) -> str:
    """Names that a library has and that look alike, as part of a message."""
    close = difflib.get_close_matches(name, library.list_models(), n=3)
    return f". Did you mean {' or '.join(close)}?" if close else ""


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0][:200]
