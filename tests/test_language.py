"""Text: sequences of a file, a transformer that sees no character too early, and the recipe that trains it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import Ended, invoke, refused
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import sharpness as sh
from sharpness import store
from sharpness.data import Data, load, load_generated_text, load_text, text
from sharpness.errors import DataError, ShapeError
from sharpness.models import build, char_transformer, initialised
from sharpness.random import normal
from sharpness.recipes import Experiment, random_problem, recipe_named, recipe_problem
from sharpness.training import TrainingPlan, train

pytest_plugins = "command_line"
pytestmark = pytest.mark.usefixtures("one_thread")

VERSE = "Über allen Gipfeln\r\nIst Ruh,\tin allen Wipfeln\nSpürest du\nKaum einen Hauch.\n"  # Goethe, 1780
TINY: dict[str, Any] = {"width": 4, "depth": 1, "heads": 2}


def text_file(folder: Path, content: str | bytes = VERSE, name: str = "verse.txt") -> Path:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def characters(part: torch.Tensor, vocabulary: list[str]) -> str:
    return "".join(vocabulary[number] for number in part.flatten().tolist())


# ---- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 6])
def test_sequences_and_the_characters_after_them_are_the_text(length: int, tmp_path: Path) -> None:
    data = load_text(text_file(tmp_path), length=length)
    vocabulary, cut = sorted(set(VERSE)), len(VERSE) - len(VERSE) // 10
    assert (data.name, data.classes, data.source, data.licence) == (
        "text",
        len(vocabulary),
        "verse.txt",
        "the user's",
    )
    for (inputs, targets), part in ((data.train, VERSE[:cut]), (data.test, VERSE[cut:])):
        count = (len(part) - 1) // length
        assert inputs.shape == targets.shape == (count, length)
        assert inputs.dtype == targets.dtype == torch.int64
        assert characters(inputs, vocabulary) == part[: count * length]
        assert characters(targets, vocabulary) == part[1 : count * length + 1]


def test_a_sequence_is_64_characters_where_nothing_else_is_said(tmp_path: Path) -> None:
    data = load_text(text_file(tmp_path, 20 * VERSE))
    assert data.train[0].shape[1] == data.test[0].shape[1] == 64


def test_inputs_do_not_share_their_memory_with_targets() -> None:
    inputs, targets = load_generated_text().train
    before = targets.clone()
    inputs.zero_()
    assert torch.equal(targets, before)


def test_characters_of_the_test_part_alone_have_a_number(tmp_path: Path) -> None:
    data = load_text(text_file(tmp_path, 80 * "b" + 5 * "az"), length=3)
    assert data.classes == 3
    assert data.train[0].unique().tolist() == [1]
    assert set(data.test[1].unique().tolist()) == {0, 2}


def test_a_mark_at_the_beginning_is_no_character(tmp_path: Path) -> None:
    plain, marked = (load_text(text_file(tmp_path, mark + VERSE.encode()), length=5) for mark in (b"", b"\xef\xbb\xbf"))
    assert marked.fingerprint == plain.fingerprint


def test_the_shortest_text_has_one_sequence_to_test_on(tmp_path: Path) -> None:
    data = load_text(text_file(tmp_path, 30 * "ab"), length=5)
    assert (len(data.train[0]), len(data.test[0])) == (10, 1)
    with pytest.raises(DataError, match=r"verse.txt: expected at least 60 characters for sequences of 5; got 59"):
        load_text(text_file(tmp_path, 29 * "ab" + "a"), length=5)


# ---- which file ---------------------------------------------------------------------------------------------------


def test_a_file_or_a_folder_with_one_text_names_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = text_file(tmp_path, 20 * VERSE)
    text_file(tmp_path, "no text", "README.md")
    expected = load_text(file).fingerprint
    assert load("text", tmp_path).fingerprint == load("text", str(file)).fingerprint == expected
    for value in (file, tmp_path):
        monkeypatch.setenv("SHARPNESS_DATA", str(value))
        assert load_text().fingerprint == expected
    known = text_file(tmp_path, 30 * VERSE, str(text.PLACE))
    assert load_text(tmp_path).fingerprint == load_text(known).fingerprint != expected


def test_a_text_may_have_any_ending(tmp_path: Path) -> None:
    assert load_text(text_file(tmp_path, name="poem.md"), length=5).source == "poem.md"


def test_none_at_all_is_refused_and_both_ways_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    with pytest.raises(DataError, match=r"--data-dir .* SHARPNESS_DATA"):
        load_text()


@pytest.mark.parametrize(("count", "held"), [(0, "no file that ends in .txt"), (2, "2 files that end in .txt")])
def test_a_folder_without_a_text_or_with_several_is_refused(count: int, held: str, tmp_path: Path) -> None:
    for number in range(count):
        text_file(tmp_path, name=f"{number}.txt")
    with pytest.raises(DataError, match=rf"tinyshakespeare.txt in .*; it holds {held}. Name the file itself"):
        load_text(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is none. Name the file itself"),
        ("Übermut".encode("latin-1"), "expected a text in UTF-8; reading it failed"),
        (VERSE.encode("utf-16"), "expected a text in UTF-8; reading it failed"),
        ("", "at least 650 characters for sequences of 64; got 0"),
        (700 * "a", "at least 2 different characters; got 'a' alone"),
    ],
)
def test_what_is_no_text_is_refused(content: str | bytes | None, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "verse.txt" if content is None else text_file(tmp_path, content)
    with pytest.raises(DataError, match=r"verse\.txt") as caught:
        load_text(file)
    assert complaint in str(caught.value)


def test_sequences_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="length >= 1; got 0"):
        load_text(text_file(tmp_path), length=0)


# ---- the ones at hand ---------------------------------------------------------------------------------------------


def entropies(data: Data) -> tuple[float, float]:
    """Of a character, and of a character where the one before is known, in nats, from the counts in training."""
    pairs = torch.zeros(data.classes, data.classes, dtype=torch.float64)
    pairs.index_put_(tuple(part.flatten() for part in data.train), torch.tensor(1.0).double(), accumulate=True)
    joint, single = (-torch.special.xlogy(p, p).sum().item() for p in (pairs / pairs.sum(), pairs.sum(1) / pairs.sum()))
    return single, joint - single


def test_the_generated_text_is_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    before = torch.get_rng_state()
    data = load("generated-text")
    assert torch.equal(torch.get_rng_state(), before)
    assert (data.train[0].shape, data.test[0].shape, data.classes) == ((362, 16), (40, 16), 29)
    assert (data.source, data.licence) == ("generated by sharpness.data.generated", "MIT")
    assert data.fingerprint == "46f2b7141427d3d1136297ebd70d454840e4fff61a243b954a6712f2300902cd"


def test_the_generated_text_can_be_learned() -> None:
    single, conditional = entropies(load_generated_text())
    assert 0.2 < conditional < 0.6 * single < math.log(29)


def test_the_real_text_is_what_its_readers_know(real_data: Path) -> None:
    if not (real_data / text.PLACE).is_file():
        pytest.skip(f"no {text.PLACE} in {real_data}")
    data = load("text", real_data)
    # 1,115,394 characters, 65 different ones, as Karpathy's nanoGPT counts them; a tenth is held out here as there
    assert (data.classes, data.source) == (65, "tinyshakespeare.txt")
    assert (len(data.train[0]), len(data.test[0])) == ((1_003_855 - 1) // 64, (111_539 - 1) // 64)
    assert entropies(data)[0] == pytest.approx(3.309, abs=1e-3)


# ---- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_later_character_changes_no_earlier_output(place: int) -> None:
    model = initialised(lambda: char_transformer(5, shape=(8,), width=8), seed=0).double()
    inputs = torch.randint(5, (3, 8), generator=torch.Generator().manual_seed(0))
    changed = inputs.clone()
    changed[:, place] = (changed[:, place] + 1) % 5
    with torch.no_grad():
        before, after = model(inputs), model(changed)
        alone = model(inputs[:, : place + 1])
    assert before.shape == (3, 5, 8)
    assert torch.equal(before[..., :place], after[..., :place])
    assert (before[..., place:] != after[..., place:]).any(1).all()
    # the same numbers by products of other shapes
    assert torch.allclose(alone, before[..., : place + 1], rtol=0, atol=1e-12)


def by_hand(model: torch.nn.Module, inputs: torch.Tensor, heads: int) -> torch.Tensor:
    """The logits of a transformer of one layer, from its weights and the definition of attention."""
    w = dict(model.named_parameters())

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["token.weight"][inputs] + w["position.weight"]
    query, key, value = linear("layers.0.mix", norm("layers.0.before", x)).chunk(3, dim=-1)
    length, size, found = inputs.shape[1], x.shape[-1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].mT / size**0.5
        later = torch.ones(length, length).triu(1).bool()
        found.append(scores.masked_fill(later, -math.inf).softmax(-1) @ value[..., part])
    x = x + linear("layers.0.out", torch.cat(found, -1))
    hidden = linear("layers.0.network.0", norm("layers.0.between", x))
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    x = x + linear("layers.0.network.2", hidden)
    return linear("head", norm("norm", x)).mT


def test_the_transformer_is_its_definition() -> None:
    model = initialised(lambda: char_transformer(7, shape=(5,), **TINY), seed=1).double()
    inputs = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(inputs), by_hand(model, inputs, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("vocabulary", "length", "d", "depth"), [(65, 64, 64, 2), (5, 8, 12, 3)])
def test_its_number_of_parameters(vocabulary: int, length: int, d: int, depth: int) -> None:
    model = char_transformer(vocabulary, shape=(length,), width=d, depth=depth)
    attention, network, norms = 4 * d * (d + 1), d * 4 * d + 4 * d + 4 * d * d + d, 4 * d
    expected = vocabulary * d + length * d + depth * (attention + network + norms) + 2 * d + (d + 1) * vocabulary
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


# ---- the objective ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A transformer of 299 weights and 11 sequences of 5 characters out of 3."""
    model = initialised(lambda: build("char-transformer", (5,), 3, **TINY), seed=0).double()
    train, _, _ = text.split(8 * "abacbcab", 5, "letters")
    return model, tuple(map(torch.from_numpy, train))


def test_the_loss_is_per_character_and_so_is_the_accuracy(small: Any) -> None:
    model, (inputs, targets) = small
    objective, theta = sh.Objective.from_module(model, sh.cross_entropy, (inputs, targets))
    with torch.no_grad():
        logits = model(inputs).mT.flatten(0, 1)
    found = objective.evaluate(theta)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, targets.flatten())), rel=1e-12)
    assert found.accuracy == float((logits.argmax(1) == targets.flatten()).double().mean())
    assert found.weight == targets.numel()


@pytest.fixture(scope="module")
def dense(small: Any) -> torch.Tensor:
    """∇² of the mean cross-entropy over all characters, entry by entry."""
    model, (inputs, targets) = small
    objective, theta = sh.Objective.from_module(model, sh.cross_entropy, (inputs, targets))

    def f(theta: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, objective.space.unflatten(theta), (inputs,)), targets)

    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(f, theta)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_products_are_those_of_the_dense_hessian(small: Any, dense: torch.Tensor, chunk_size: int | None) -> None:
    objective, theta = sh.Objective.from_module(small[0], sh.cross_entropy, small[1], chunk_size=chunk_size)
    vectors = normal(len(theta), 8, key=("vectors",), seed=0, dtype=torch.float64)
    expected = dense @ vectors
    assert torch.allclose(sh.Hessian(objective, theta) @ vectors, expected, rtol=0, atol=1e-12 * float(dense.norm()))
    assert expected.abs().max() > 0.01


def test_sharpness_lines_and_planes_take_whole_numbers(small: Any) -> None:
    model, data = small
    objective, theta = sh.Objective.from_module(model, sh.cross_entropy, data)
    found = sh.epsilon_sharpness(objective, theta, 1e-3, restarts=1)
    assert 0 < found.sharpness <= found.stronger
    assert found.first_order == pytest.approx(found.stronger, rel=0.1)  # the box is small
    other = 0.9 * theta
    line = sh.evaluate_line({"train": objective}, sh.Line(theta, other), [0.0, 1.0])
    assert line.loss[0].tolist() == pytest.approx([objective.value(theta), objective.value(other)], rel=1e-12)
    plane = sh.evaluate_plane(
        {"train": objective}, sh.Plane(theta, other - theta, torch.ones_like(theta)), [1.0], [0.0]
    )
    assert plane.loss[0, 0, 0] == pytest.approx(objective.value(other), rel=1e-12)


# ---- training -----------------------------------------------------------------------------------------------------


def experiment(**plan: Any) -> Experiment:
    regimes = {"SB": TrainingPlan(8, 2, learning_rate=1e-2, **plan)}
    options = {"model_options": TINY, "lines": (), "line_points": 0}
    return Experiment("generated-text", "char-transformer", regimes, train_examples=40, test_examples=10, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_characters_stay_whole_whatever_the_weights_are_in(dtype: torch.dtype) -> None:
    problem = experiment().problem(load_generated_text(), 0, dtype)
    assert {part.dtype for pair in (problem.train, problem.test) for part in pair} == {torch.int64}
    assert {parameter.dtype for parameter in problem.model.parameters()} == {dtype}
    assert (problem.train[0].shape, problem.test[1].shape) == ((40, 16), (10, 16))


def test_training_lowers_the_loss_below_the_entropy_of_a_character() -> None:
    parameters = experiment()
    data, plan = load_generated_text(), TrainingPlan(8, 12, learning_rate=2e-2)
    _, history = train(parameters.problem(data, 0), plan)
    assert history.loss[:, -1].max() < entropies(data)[0] < history.loss[0, 0]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"augment": ("flip",)}, r"images to augment: floating point .* got torch.int64 .* leave augment empty"),
        ({"adversarial": 0.1}, "floating-point inputs for adversarial = 0.1; got torch.int64"),
    ],
)
def test_characters_are_neither_augmented_nor_perturbed(plan: dict[str, Any], message: str) -> None:
    parameters = experiment(**plan)
    with pytest.raises(ShapeError, match=message):
        train(parameters.problem(load_generated_text(), 0), parameters.regimes["SB"])


def test_the_problem_to_measure_cost_on_reads_characters() -> None:
    problem = random_problem("char-transformer", 3, seed=1)
    inputs, targets = problem.train
    assert inputs.shape == targets.shape == (3, 64)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert problem.model(inputs).shape == (3, 65, 64)
    assert torch.equal(random_problem("char-transformer", 3, seed=1).train[0], inputs)
    assert not torch.equal(random_problem("char-transformer", 3).train[0], inputs)


def test_bench_measures_it(tmp_path: Path) -> None:
    ended = invoke("bench", "--model", "char-transformer", "--examples", 2, "--repeats", 1, "--out", tmp_path, "--json")
    assert ended.code == 0
    printed = json.loads(ended.stdout)
    assert (printed["parameters"], printed["examples"]) == (112_577, 2)
    assert printed["relative_error"] < 1e-4


# ---- the recipe ---------------------------------------------------------------------------------------------------


class Run:
    """The smoke run of the recipe, with its figures."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.ended: Ended = invoke("run", "char-lm", "--scale", "smoke", "--out", out, "--json")


@pytest.fixture(scope="module")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SHARPNESS_DATA", raising=False)
        return Run(tmp_path_factory.mktemp("language") / "run")


def test_a_run_gives_figures_and_a_table(language_run: Run) -> None:
    assert (language_run.ended.code, language_run.ended.stderr) == (0, "")
    figures = {path.name for path in (language_run.out / "figures").glob("*.svg")}
    drawn = ("comparison", "table", "line", "seed-0-history", "seed-0-trajectory")
    assert {f"{stem}.svg" for stem in drawn} <= figures
    rows = {row[0]: row[1:] for row in json.loads(language_run.ended.stdout)["table"]}
    parameters = recipe_named("char-lm", "smoke").experiment
    data = load("generated-text")
    for column, regime in enumerate(("SB", "LB")):
        minimizer = sh.load_minimizer(language_run.out / "seed-0" / regime / "minimizer.safetensors")
        model = parameters.problem(data, 0).model
        minimizer.load_into(model)
        inputs, targets = (part[:60] for part in data.train)
        with torch.no_grad():
            loss = F.cross_entropy(model(inputs), targets)
        assert float(rows["train loss (nat)"][column]) == pytest.approx(float(loss), rel=1e-3)


@pytest.mark.parametrize("regime", ["SB", "LB"])
def test_a_run_follows_sharpness_along_training(language_run: Run, regime: str) -> None:
    trajectory = store.load(language_run.out / "seed-0" / regime / "trajectory.h5")
    assert trajectory.epoch.tolist() == [1, 2]
    assert np.isfinite(trajectory.sharpness).all()
    assert (trajectory.first_order > 0).all()


def test_a_minimizer_of_the_recipe_makes_its_problem_again(language_run: Run) -> None:
    minimizer = sh.load_minimizer(language_run.out / "seed-0" / "LB" / "minimizer.safetensors")
    problem = recipe_problem(minimizer)
    expected = recipe_named("char-lm", "smoke").experiment.problem(load_generated_text(), 0)
    for ours, theirs in ((problem.train, expected.train), (problem.test, expected.test)):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_recipe_without_its_text_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)
    command = ("run", "char-lm", "--scale", "reduced", "--out", tmp_path / "out")
    assert refused(invoke(*command), 2, "SHARPNESS_DATA")
    (tmp_path / "data").mkdir()
    assert refused(invoke(*command, "--data-dir", tmp_path / "data"), 2, "tinyshakespeare.txt", "Name the file itself")
    assert refused(invoke(*command, "--data-dir", tmp_path / "none.txt"), 2, "none.txt")
    assert not (tmp_path / "out").exists()
