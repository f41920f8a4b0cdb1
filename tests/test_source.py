"""What checkpoints belong to: a problem file, models of libraries by name, data by name, and their preprocessing."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from libraries import library
from torch import nn

from sharpness.data import load
from sharpness.errors import CheckpointError, DataError, ShapeError, UnsupportedModelError
from sharpness.models import build
from sharpness.objective import Objective
from sharpness.params import ParamSpace, Point
from sharpness.recipes import Preprocessing, Source
from sharpness.recipes.libraries import Views
from sharpness.recipes.shortcuts import named_problem

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of the libraries, on import
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PLAIN = Preprocessing(limit=12)


@pytest.fixture(scope="module")
def torchvision():
    return library("torchvision")


@pytest.fixture(scope="module")
def timm():
    return library("timm")


@pytest.fixture(scope="module")
def transformers():
    return library("transformers")


@pytest.fixture(scope="module")
def shakespeare(tmp_path_factory):
    lines = (f"the {a} {b} goes to the {c}\n" for a in ("ox", "cat", "dog") for b in ("big", "red") for c in "abcde")
    file = tmp_path_factory.mktemp("text") / "lines.txt"
    file.write_text("".join(lines) * 12)
    return file


# Files


def test_a_source_names_a_problem_or_a_model_with_data():
    with pytest.raises(UnsupportedModelError, match="--problem, or --model with --data; got both"):
        Source(problem="a.py:make", model="mlp", data="digits")
    with pytest.raises(UnsupportedModelError, match="together; got --model without --data"):
        Source(model="mlp")
    with pytest.raises(UnsupportedModelError, match="together; got --data without --model"):
        Source(data="digits")
    with pytest.raises(DataError, match="with --data; got them without"):
        Source(problem="a.py:make", preprocessing=Preprocessing(mean=(0.5,)))
    with pytest.raises(UnsupportedModelError, match="got neither"):
        Source().make()


def test_weights_that_nothing_says_what_they_belong_to_are_refused_with_the_ways_to_say_it(tmp_path):
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UnsupportedModelError, match=r"--problem FILE\.py:NAME.*torchvision:NAME, timm:NAME or hf:DIR"):
        Source().open(tmp_path / "weights.pth")


def test_identity_changes_with_the_file_and_with_every_choice(tmp_path):
    file = tmp_path / "p.py"
    file.write_text("a = 1")
    first = Source(problem=f"{file}:a").identity
    file.write_text("a = 2")
    assert Source(problem=f"{file}:a").identity != first
    assert Source().identity is None
    named = [
        Source(model="mlp", data="digits", preprocessing=p, weights=w, allow=a).identity
        for p in (Preprocessing(), Preprocessing(mean=(0.5,)), PLAIN)
        for w in ("auto", "ema")
        for a in ((), ("fc.*",))
    ]
    assert len({json.dumps(identity, sort_keys=True) for identity in named}) == len(named)


# Built-in models


def test_a_built_in_model_reads_its_weights(tmp_path):
    made = build("digits-mlp", (64,), 10)
    torch.save(made.state_dict(), tmp_path / "digits.pth")
    problem, point = Source(model="digits-mlp", data="digits").open(tmp_path / "digits.pth")
    assert torch.equal(point.theta, ParamSpace.of(made).flatten(dict(made.named_parameters())))
    assert len(problem.train[0]) == 1437
    assert set(point.buffers) >= {name for name, _ in made.named_buffers()}


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("nothing", "digits", "expected --model torchvision:NAME, timm:NAME, hf:DIR, .*; got 'nothing'"),
        ("mlp:3", "digits", "got 'mlp:3'"),
        ("torchvision:", "digits", "got 'torchvision:'"),
        ("mlp", "letters", "expected a data set named"),
    ],
)
def test_unknown_names_are_refused(model, data, message):
    with pytest.raises((UnsupportedModelError, DataError), match=message):
        named_problem(model, data, Preprocessing())


def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UnsupportedModelError, match=r"expected timm installed for its models; .* pip install timm"):
        named_problem("timm:resnet10t", "generated-images", PLAIN)


def test_libraries_are_imported_only_where_asked_for():
    libraries = "timm", "transformers", "torchvision"
    code = f"import sys; from sharpness.recipes import Source; print([m for m in {libraries} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# Preprocessing


def test_mean_and_deviation_are_taken_per_channel():
    inputs, _ = load("generated-images").train
    prepared = named_problem(
        "keskar-c1", "generated-images", Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), limit=7)
    ).train[0]
    by_hand = (inputs[:7] - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    assert torch.equal(prepared, by_hand)
    with pytest.raises(ShapeError, match="1 or 3 numbers; got 2"):
        named_problem("keskar-c1", "generated-images", Preprocessing(mean=(0.5, 0.4)))
    with pytest.raises(ShapeError, match="--std > 0"):
        Preprocessing(std=(0.0,))


def test_images_are_resized_and_cropped_as_torchvision_does(torchvision):
    from torchvision.transforms._presets import ImageClassification

    images = load("generated-images").train[0][:5]
    theirs = ImageClassification(crop_size=40, resize_size=48)
    ours = Views(48, 40, tuple(theirs.mean), tuple(theirs.std), theirs.interpolation.value)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


def test_data_that_would_not_fit_are_refused(monkeypatch, torchvision):
    monkeypatch.setattr("sharpness.recipes.shortcuts.free_bytes", lambda _: 2**20)
    with pytest.raises(DataError, match=r"256 of \(3, 224, 224\) take 0\.1 GiB\. Take fewer: --limit N"):
        named_problem("torchvision:squeezenet1_0", "generated-images", Preprocessing(own=True))


# Libraries


def by_hand(module, problem):
    """The mean cross-entropy of a module in eval mode on a problem's training data."""
    with torch.no_grad():
        output = module.eval()(problem.train[0])
    return nn.functional.cross_entropy(getattr(output, "logits", output), problem.train[1]).item()


def test_a_torchvision_model(torchvision, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "weights.pth")
    source = Source(model="torchvision:resnet18", data="generated-images", preprocessing=PLAIN)
    problem, point = source.open(tmp_path / "weights.pth")
    f, theta = problem.objectives()
    assert torch.equal(theta, point.theta)
    assert f["train"].value(theta) == pytest.approx(by_hand(theirs, problem), rel=1e-5)
    with pytest.raises(UnsupportedModelError, match=r"it has no 'resnet19'\. Did you mean"):
        named_problem("torchvision:resnet19", "generated-images", PLAIN)


def test_a_timm_model_with_options_on_images_of_one_channel(timm, tmp_path):
    theirs = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    source = Source(model="timm:test_resnet,in_chans=1", data="digits", preprocessing=PLAIN)
    problem, point = source.open(tmp_path / "weights.pth")
    assert problem.train[0].shape == (12, 1, 8, 8)
    assert problem.objectives()[0]["train"].value(point) == pytest.approx(by_hand(theirs, problem), rel=1e-5)
    own = named_problem("timm:test_resnet", "generated-images", Preprocessing(own=True, limit=3))
    assert own.train[0].shape[-2:] == torch.Size(theirs.default_cfg["input_size"][1:])
    with pytest.raises(UnsupportedModelError, match="options as NAME=VALUE"):
        named_problem("timm:test_resnet,one", "digits", PLAIN)


def test_a_huggingface_image_model_prepares_images_as_its_folder_says(transformers, tmp_path):
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8,
        num_labels=10,
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config)
    theirs.save_pretrained(tmp_path)
    source = Source(model=f"hf:{tmp_path}", data="generated-images", preprocessing=Preprocessing(own=True, limit=6))
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        source.make()
    said = {"size": {"height": 16, "width": 16}, "image_mean": [0.5], "image_std": [0.25], "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        problem, point = source.open(path)
        assert problem.train[0].shape == (6, 3, 16, 16)
        f, theta = problem.objectives()
        assert torch.equal(theta, point.theta)
        assert f["train"].value(theta) == pytest.approx(by_hand(theirs, problem), rel=1e-5)
        assert 0 <= f["train"].evaluate(theta).accuracy <= 1
    with pytest.raises(DataError, match=r"10 classes of the model .*; generated-images-100 has 100"):
        Source(model=f"hf:{tmp_path}", data="generated-images-100").make()


def tokenizer(transformers, text, folder):
    import tokenizers

    words = tokenizers.models.WordLevel({word: number for number, word in enumerate(sorted(set(text)))}, unk_token=" ")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)


def test_a_huggingface_language_model_predicts_the_next_token(transformers, shakespeare, tmp_path):
    text = shakespeare.read_text()
    config = transformers.GPT2Config(
        vocab_size=len(set(text)), n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    theirs = transformers.GPT2LMHeadModel(config)
    theirs.save_pretrained(tmp_path)
    source = Source(model=f"hf:{tmp_path}", data=f"text:{shakespeare}", preprocessing=Preprocessing(limit=5))
    with pytest.raises(CheckpointError, match="expected the model's tokenizer"):
        source.make()
    tokenizer(transformers, text, tmp_path)
    problem, point = source.open(tmp_path)
    inputs, targets = problem.train
    assert inputs.shape == targets.shape == (5, 16)
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    assert inputs[0].tolist() == [numbers[c] for c in text[:16]]
    assert targets[0].tolist() == [numbers[c] for c in text[1:17]]
    with torch.no_grad():
        output = theirs.eval()(inputs).logits
    expected = nn.functional.cross_entropy(output.reshape(-1, output.shape[-1]), targets.reshape(-1)).item()
    found = problem.objectives()[0]["train"].evaluate(point)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.accuracy == pytest.approx((output.argmax(-1) == targets).float().mean().item())


def test_a_file_in_a_huggingface_folder_is_the_one_that_is_read(transformers, shakespeare, tmp_path):
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    theirs = transformers.GPT2LMHeadModel(config)
    theirs.save_pretrained(tmp_path)
    tokenizer(transformers, shakespeare.read_text(), tmp_path)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(2)
    torch.save(theirs.state_dict(), tmp_path / "step-2.pt")
    source = Source(model=f"hf:{tmp_path}", data=f"text:{shakespeare}", preprocessing=Preprocessing(limit=2))
    made = source.make()
    first, second = (source.point(path, made).theta for path in (tmp_path, tmp_path / "step-2.pt"))
    torch.testing.assert_close(second, 2 * first)
    part = {name: t for name, t in theirs.state_dict().items() if "ln_f" not in name}
    torch.save(part | {"extra": torch.ones(1)}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"(?s)ln_f.*--allow"):
        source.point(tmp_path / "part.pt", made)


def test_a_model_that_sees_what_it_is_to_predict_is_no_language_model(transformers, shakespeare, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer(transformers, shakespeare.read_text(), tmp_path)
    with pytest.raises(UnsupportedModelError, match="expected a causal language model"):
        Source(model=f"hf:{tmp_path}", data=f"text:{shakespeare}").make()


def test_a_folder_names_a_model_and_nothing_else_to_call(transformers, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["set_seed"], "n_embd": 8, "n_layer": 1, "n_head": 2})
    )
    before = torch.get_rng_state()
    with pytest.raises(DataError, match="nowhere"):  # after the usual class of that type has been built
        named_problem(f"hf:{tmp_path}", "text:/nowhere.txt", Preprocessing())
    assert torch.equal(torch.get_rng_state(), before)


def test_models_of_libraries_are_the_same_at_every_call_and_touch_no_generator(timm):
    before = torch.get_rng_state()
    first, second = (named_problem("timm:test_resnet", "generated-images", PLAIN).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(UnsupportedModelError, match="expected options that the model takes"):
        named_problem("timm:test_resnet,nope=1", "generated-images", PLAIN)


PROBLEM = """
from __future__ import annotations
from dataclasses import dataclass
import torch
import neighbour
@dataclass
class Sizes:
    inputs: int = 2
def make():
    return neighbour.network(Sizes().inputs), torch.nn.functional.mse_loss, (torch.ones(4, 2), torch.zeros(4, 1))
"""


def test_a_problem_file_and_its_neighbours_are_its_own(tmp_path):
    kinds = []
    for place, layer in (("a", "Tanh"), ("b", "ReLU")):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "problem.py").write_text(PROBLEM)
        code = f"from torch import nn\ndef network(n):\n    return nn.Sequential(nn.Linear(n, 1), nn.{layer}())\n"
        (folder / "neighbour.py").write_text(code)
        source = Source(problem=f"{folder}/problem.py:make")
        kinds.append(type(source.make().model[1]).__name__)
    assert kinds == ["Tanh", "ReLU"]
    assert "neighbour" not in sys.modules
    before = source.identity
    (tmp_path / "b" / "neighbour.py").write_text(code + "\n# changed")
    assert source.identity != before


def test_a_regression_takes_the_squared_error(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 3))
    file = tmp_path / "table.csv"
    np.savetxt(file, np.c_[rows, rows @ [1.0, -2.0, 0.5]], delimiter=",", header="a,b,c,y", comments="")
    problem = named_problem("mlp", f"regression:{file}", Preprocessing())
    f, theta = Objective.from_module(problem.model, problem.loss, problem.train)
    with torch.no_grad():
        output = problem.model.eval()(problem.train[0])
    assert output.shape == (40, 1)
    assert f.value(theta) == pytest.approx((output[:, 0] - problem.train[1]).square().mean().item(), rel=1e-6)
    assert problem.train[1].std(correction=0).item() == pytest.approx(1, rel=1e-5)


def test_a_point_carries_what_is_no_part_of_theta():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].requires_grad_(False)
    point = Point.of(module, ParamSpace.of(module))
    assert torch.equal(point.buffers["0.weight"], module[0].weight)
    assert point.buffers["0.weight"] is not module[0].weight
