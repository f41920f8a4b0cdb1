"""Models that a HuggingFace folder configures: nothing is downloaded, and no code of the folder is run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.data import Data, text_file
from sharpness.data import text as texts
from sharpness.errors import CheckpointError, DataError, UnsupportedModelError
from sharpness.models import initialised
from sharpness.recipes.libraries import Views, first_line, library_of

CONTEXT = 128  # tokens in a sequence for models that take more
EXACT = ("eager", "sdpa")  # ways to attention that need nothing else and are twice differentiable here
MODES = {2: "bilinear", 3: "bicubic"}  # of resizing, by Pillow's numbers
Split = tuple[Tensor, Tensor]


def image_model(spec: str, data: Data, own: bool) -> tuple[nn.Module, Views]:
    """An image classifier, and with ``own`` how its folder says that images are prepared."""
    folder = Path(spec)
    module = _model(folder, "AutoModelForImageClassification")
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
    return module, Views(side, crop, mean, std, MODES.get(config.get("resample", 2), "bilinear"))


def language_model(folder: Path, place: str, limit: int) -> tuple[nn.Module, Split, Split]:
    """A causal language model, and a text as sequences of its own tokens; the last tenth of them is the test set."""
    module = _model(folder, "AutoModelForCausalLM")
    file = text_file(place or None)
    tokens = _tokens(folder, texts.read(file))
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
    _check_causal(module, inputs[:1], folder)
    last = windows - windows // 10
    train, test = (
        (inputs[rows][: limit or None], targets[rows][: limit or None]) for rows in (slice(0, last), slice(last, None))
    )
    return module, train, test


def state_in(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights under the names of ``module``, from whichever release of the library their file is.

    What is not of this model stays under its own name, and what is missing is missing.
    """
    with _quiet():
        try:
            loaded, info = type(module).from_pretrained(  # type: ignore[attr-defined]
                None,
                config=module.config,
                state_dict=dict(weights),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"expected weights of {type(module).__name__}; {type(error).__name__}: {first_line(error)}"
            ) from error
    mismatched = {str(entry[0] if isinstance(entry, tuple) else entry) for entry in info.get("mismatched_keys", ())}
    absent = {str(name) for name in info.get("missing_keys", ())} | mismatched
    rest = {str(name) for name in info.get("unexpected_keys", ())} | mismatched
    found = {name: tensor for name, tensor in loaded.state_dict().items() if name not in absent}
    return {**found, **{name: weights[name] for name in rest if name in weights}}


def configuration(folder: Path) -> Path:
    """The file that says what model a folder holds."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"expected a HuggingFace folder, with config.json, at {folder}; there is none")
    return file


def _model(folder: Path, fallback: str) -> nn.Module:
    """The model of a folder in float32, with the same random weights at every call."""
    configuration(folder)
    transformers = library_of("transformers", "transformers")
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if getattr(config, "_attn_implementation", None) not in (None, *EXACT):
                config._attn_implementation = "eager"
            architecture = getattr(transformers, (getattr(config, "architectures", None) or [""])[0], None)
            if isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel):
                return initialised(lambda: architecture(config).float(), seed=0)
            make = getattr(transformers, fallback).from_config
            return initialised(lambda: make(config, trust_remote_code=False).float(), seed=0)
        except Exception as error:  # of any kind: validation errors are of other libraries' own classes
            raise CheckpointError(
                f"expected a model that transformers knows in {folder}; {type(error).__name__}: {first_line(error)}"
            ) from error


def _tokens(folder: Path, text: str) -> Tensor:
    transformers = library_of("transformers", "transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not len(tokens):  # what transformers makes of a folder without one
            raise ValueError("it has no vocabulary")
    except Exception as error:  # as above
        raise CheckpointError(
            f"expected the model's tokenizer in {folder}; {type(error).__name__}: {first_line(error)}. Save it there "
            "(tokenizer.save_pretrained), or make inputs of your own: --problem FILE.py:NAME"
        ) from error
    return tokens


def _check_causal(module: nn.Module, tokens: Tensor, folder: Path) -> None:
    """Refuse a model that gives no logits, or sees the tokens that it is to predict."""
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % int(tokens.max() + 1 if tokens.max() > 0 else 2)
    with torch.no_grad():
        logits: list[Any] = [getattr(module.eval()(given), "logits", None) for given in (tokens, other)]
    fits = logits[0] is not None and logits[0].shape[:2] == tokens.shape
    if not fits or not torch.equal(logits[0][:, :-1], logits[1][:, :-1]):
        raise UnsupportedModelError(
            f"expected a causal language model in {folder}, whose logits depend on earlier tokens alone; got "
            f"{type(module).__name__}. For another task say what it is: --problem FILE.py:NAME"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The library without its progress bars and reports, and then as it was."""
    logs = library_of("transformers", "transformers").utils.logging
    shown, level = logs.is_progress_bar_enabled(), logs.get_verbosity()
    logs.disable_progress_bar()
    logs.set_verbosity_error()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if shown:
            logs.enable_progress_bar()


def _side(size: Any) -> int | None:
    """The side in a HuggingFace size: a number, ``{"height": …, "width": …}`` or ``{"shortest_edge": …}``."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    return None if size is None else int(size)
