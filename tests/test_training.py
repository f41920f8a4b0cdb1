"""Training: plain PyTorch to the bit, interrupted or not, and the caller's model as it was."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import nn

from sharpness import store, training
from sharpness.checkpoints import load_minimizer
from sharpness.errors import CheckpointError, DataError, NonFiniteError, ShapeError
from sharpness.models import mlp
from sharpness.objective import Problem, cross_entropy
from sharpness.params import ParamSpace, Point
from sharpness.random import derive_seed, generator
from sharpness.training import TrainingPlan, _reason_to_stop, history_template, train

EXAMPLES = 27  # 8 + 8 + 8 + 3: the last mini-batch is smaller


def data(examples=EXAMPLES, test=10, classes=3, dtype=torch.float32):
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(examples + test, 4, generator=draw, dtype=torch.float64).to(dtype)
    targets = (inputs.sum(1).abs() * 2).long().clamp(max=classes - 1)
    return (inputs[:examples], targets[:examples]), (inputs[examples:], targets[examples:])


def plain(dtype=torch.float32):
    torch.manual_seed(1)
    return mlp([4, 6, 3]).to(dtype)


def noisy():
    """A network with dropout and batch norm: everything that a resumed run could get wrong."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))


def problem(model=None, **options):
    model = plain() if model is None else model
    return Problem(model, cross_entropy, *data(**options))


def by_hand(model, optimizer, *, batch, epochs, seed, rate=None, examples=EXAMPLES):
    """The loop that everyone writes, with mini-batches of one size or of a list of sizes."""
    inputs, targets = data(examples, dtype=next(model.parameters()).dtype)[0]
    for epoch in range(epochs):
        torch.manual_seed(derive_seed("dropout", epoch, seed=seed))
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] if rate is None else rate(epoch)
        model.train()
        for index in torch.randperm(len(targets), generator=generator("batches", epoch, seed=seed)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[index]), targets[index]).backward()
            optimizer.step()
    return model


def assert_same_minimizer(found, expected):
    assert found.parameters.keys() == expected.parameters.keys()
    assert found.buffers.keys() == expected.buffers.keys()
    for ours, theirs in ((found.parameters, expected.parameters), (found.buffers, expected.buffers)):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert found.metadata == expected.metadata


def assert_same_history(found, expected):
    for item in dataclasses.fields(expected):
        ours, theirs = getattr(found, item.name), getattr(expected, item.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, item.name
            assert ours.tobytes() == theirs.tobytes(), item.name
        else:
            assert ours == theirs, item.name


class Interrupt:
    """A progress callback that interrupts after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def __call__(self, done, total, note=""):
        if done == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture
def every_epoch(monkeypatch):
    """Checkpoints after every epoch instead of every five seconds."""
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0)


# Trajectories

OPTIMIZERS = {
    "sgd": ({"optimizer": "sgd"}, lambda p, o: torch.optim.SGD(p, 0.1, **o)),
    "momentum": (
        {"optimizer": "sgd", "momentum": 0.9},
        lambda p, o: torch.optim.SGD(p, 0.1, momentum=0.9, **o),
    ),
    "nesterov": (
        {"optimizer": "sgd", "momentum": 0.8, "nesterov": True},
        lambda p, o: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True, **o),
    ),
    "decay": (
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.05},
        lambda p, o: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05, **o),
    ),
    "adam": ({"optimizer": "adam"}, lambda p, o: torch.optim.Adam(p, 0.1, **o)),
    "adam decay": (
        {"optimizer": "adam", "weight_decay": 0.05},
        lambda p, o: torch.optim.Adam(p, 0.1, weight_decay=0.05, **o),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("build", [plain, noisy])
def test_a_trajectory_is_that_of_the_plain_loop_to_the_bit(name, build):
    options, make = OPTIMIZERS[name]
    found, _ = train(problem(build()), TrainingPlan(8, 4, learning_rate=0.1, **options), seed=3)
    model = build()
    by_hand(model, make(model.parameters(), {"fused": True}), batch=8, epochs=4, seed=3)
    assert all(torch.equal(value, found.parameters[name]) for name, value in model.named_parameters())
    assert all(torch.equal(value, found.buffers[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pytorchs_default_kernels_give_the_same_trajectory_to_rounding(name):
    options, make = OPTIMIZERS[name]
    found, _ = train(
        problem(plain(torch.float64), dtype=torch.float64), TrainingPlan(8, 4, learning_rate=0.1, **options)
    )
    model = plain(torch.float64)
    by_hand(model, make(model.parameters(), {}), batch=8, epochs=4, seed=0)
    for name, value in model.named_parameters():
        # 16 steps of a few roundings of 1e-16 each, amplified by Adam's division by a small √v
        assert torch.allclose(found.parameters[name], value.detach(), rtol=1e-9, atol=1e-12)


def test_one_step_of_the_whole_data_is_gradient_descent():
    given = problem(plain(torch.float64), dtype=torch.float64)
    objectives, theta = given.objectives()
    found, _ = train(given, TrainingPlan(EXAMPLES, 1, "sgd", learning_rate=0.5))
    stepped = theta - 0.5 * objectives["train"].gradient(theta)
    assert torch.allclose(found.point.theta, stepped, rtol=0, atol=1e-14)  # sums of 27 float64 terms in another order


def test_frozen_weights_stay_and_are_kept_with_the_buffers():
    model = plain()
    model[0].weight.requires_grad_(False)
    found, _ = train(problem(model), TrainingPlan(8, 2, learning_rate=0.1))
    assert "0.weight" not in found.parameters
    assert torch.equal(found.buffers["0.weight"], model[0].weight)
    assert not torch.equal(found.parameters["2.weight"], model[2].weight)


def test_every_example_is_used_once_per_epoch_in_an_order_of_its_own():
    prepared = training._Data.of(problem(), torch.device("cpu"))
    epochs = [torch.cat(prepared.batches(3, epoch, 8)) for epoch in range(3)]
    assert [len(batch) for batch in prepared.batches(3, 0, 8)] == [8, 8, 8, 3]
    assert all(epoch.sort().values.tolist() == list(range(EXAMPLES)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], torch.cat(prepared.batches(3, 0, EXAMPLES)))  # one order whatever the batch size
    assert not torch.equal(epochs[0], torch.cat(prepared.batches(4, 0, 8)))


@pytest.mark.parametrize("examples", [1, 2, 3, 17, 25, 27])
def test_a_single_example_left_over_joins_the_mini_batch_before_it_and_nothing_else_changes(examples):
    prepared = training._Data.of(problem(examples=examples), torch.device("cpu"))
    for size in range(1, examples + 2):
        order = torch.randperm(examples, generator=generator("batches", 2, seed=3))
        found, plainly = prepared.batches(3, 2, size), order.split(size)
        if size > 1 and len(plainly) > 1 and len(plainly[-1]) == 1:
            assert [len(batch) for batch in found] == [size] * (len(plainly) - 2) + [size + 1]
        else:
            assert [batch.tolist() for batch in found] == [batch.tolist() for batch in plainly]
        assert torch.equal(torch.cat(found), order)


def test_mini_batches_of_one_stay_so_and_one_example_is_one_mini_batch():
    prepared = training._Data.of(problem(), torch.device("cpu"))
    assert [len(batch) for batch in prepared.batches(3, 0, 1)] == [1] * EXAMPLES
    alone = training._Data.of(problem(examples=1), torch.device("cpu"))
    assert [len(batch) for batch in alone.batches(3, 0, 8)] == [1]


@pytest.mark.parametrize("size", [8, 0.5])  # half of 17 is 8 as well
def test_batch_norm_trains_where_a_single_example_is_left_over(size):
    given = problem(noisy(), examples=17)
    found, history = train(given, TrainingPlan(size, 3, learning_rate=0.1), seed=3)
    model = noisy()
    optimizer = torch.optim.Adam(model.parameters(), 0.1, fused=True)
    by_hand(model, optimizer, batch=[8, 9], epochs=3, seed=3, examples=17)
    assert all(torch.equal(value, found.parameters[name]) for name, value in model.named_parameters())
    assert all(torch.equal(value, found.buffers[name]) for name, value in model.named_buffers())
    assert found.buffers["1.num_batches_tracked"] == 2 * 3
    assert np.isfinite(history.loss).all()


# Plans


@pytest.mark.parametrize(
    ("size", "examples", "expected"),
    [(8, 25, 8), (100, 25, 25), (0.1, 50, 5), (0.5, 25, 12), (0.01, 25, 1), (0.999, 10, 10), (8.0, 25, 8), (1, 25, 1)],
)
def test_batch_sizes_are_examples_or_below_one_fractions(size, examples, expected):
    assert TrainingPlan(size, 1).examples_per_batch(examples) == expected


def test_a_fraction_trains_as_its_number_of_examples_does():
    fraction, _ = train(problem(), TrainingPlan(0.2, 2))
    number, history = train(problem(), TrainingPlan(5, 2))
    assert torch.equal(fraction.point.theta, number.point.theta)
    assert history.batch_size == 5


def test_rates_of_the_schedules_by_hand():
    constant = TrainingPlan(8, 4, learning_rate=0.3)
    assert [constant.rate(e) for e in range(4)] == [0.3] * 4
    cosine = TrainingPlan(8, 4, learning_rate=0.3, schedule="cosine")
    half = math.sqrt(0.5)
    # cos 0, π/4, π/2, 3π/4 to the rounding of float64
    assert [cosine.rate(e) for e in range(5)] == pytest.approx(
        [0.3, 0.15 * (1 + half), 0.15, 0.15 * (1 - half), 0.0], rel=1e-15, abs=1e-17
    )
    step = TrainingPlan(8, 6, learning_rate=0.5, schedule="step", milestones=(2, 4), step_factor=0.5)
    assert [step.rate(e) for e in range(6)] == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


@pytest.mark.parametrize(
    "options", [{"schedule": "cosine"}, {"schedule": "step", "milestones": (1, 3), "step_factor": 0.1}]
)
def test_a_schedule_is_followed_and_recorded(options):
    plan = TrainingPlan(8, 4, "sgd", learning_rate=0.4, momentum=0.5, **options)
    found, history = train(problem(), plan)
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.4, momentum=0.5, fused=True)
    by_hand(model, optimizer, batch=8, epochs=4, seed=0, rate=plan.rate)
    assert all(torch.equal(value, found.parameters[name]) for name, value in model.named_parameters())
    assert history.learning_rate.tolist() == [plan.rate(epoch) for epoch in range(4)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], ""),
        ([5.0, 4.0, 3.0], ""),
        ([5.0, 4.0, 4.0], ""),
        ([5.0, 4.0, 4.0, 4.0], "ceased"),
        ([5.0, 4.0, 6.0, 3.9], "ceased"),  # 3.9 is 2.5 % below the best: less than the tenth that counts
        ([5.0, 4.0, 6.0, 3.5, 3.6], ""),  # 3.5 is 12.5 % below
        ([5.0, 4.9, 4.4], ""),  # below the best that counted, 5.0, and not only below the last
        ([5.0, 4.9, 4.8], "ceased"),
        ([5.0, 5.0, 4.0, 3.0, 2.0, 1.0], "limit"),
        ([1.0, 0.0, 0.0, 0.0], "ceased"),
        ([5.0, math.nan, math.nan], "ceased"),
    ],
)
def test_patience_counts_epochs_without_a_relative_improvement_of_the_best(losses, expected):
    reason = _reason_to_stop(TrainingPlan(8, 6, patience=2, improvement=0.1), np.array(losses))
    assert bool(reason) == bool(expected)
    assert expected in reason


def test_without_patience_only_the_epochs_end_training():
    plan = TrainingPlan(8, 3)
    assert [_reason_to_stop(plan, np.ones(epochs)) for epochs in range(4)] == ["", "", "", "epoch limit"]


def test_training_ends_at_the_epoch_at_which_patience_ends():
    plan = TrainingPlan(8, 60, "sgd", learning_rate=1e-9, patience=3)
    found, history = train(problem(), plan)
    assert history.epoch.tolist() == [1, 2, 3, 4]  # the first is the best; three more do not improve on it
    assert history.stopped == found.metadata["stopped"] == "loss ceased to improve for 3 epochs"
    assert found.metadata["epochs"] == 4
    for epochs in range(4):
        assert _reason_to_stop(plan, history.loss[0, :epochs]) == ""
    assert _reason_to_stop(plan, history.loss[0]) == history.stopped


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -3),
        ("batch_size", 2.5),
        ("batch_size", math.nan),
        ("epochs", 0),
        ("optimizer", "lbfgs"),
        ("learning_rate", 0.0),
        ("learning_rate", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("momentum", -0.5),
        ("nesterov", True),
        ("weight_decay", -1e-4),
        ("schedule", "linear"),
        ("step_factor", 0.0),
        ("step_factor", -1.0),
        ("patience", -1),
        ("improvement", -0.1),
        ("improvement", 1.0),
    ],
)
def test_a_plan_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ShapeError, match=f"{name} = "):
        TrainingPlan(**{"batch_size": 8, "epochs": 3, name: value})


def test_every_fault_of_a_plan_is_named_at_once():
    with pytest.raises(ShapeError, match=r"batch_size = 0 .*epochs = 0 .*optimizer = 'x'"):
        TrainingPlan(0, 0, "x")


# Records


def test_the_history_is_measured_with_dropout_off_at_the_weights_returned():
    given = problem(noisy())
    found, history = train(given, TrainingPlan(5, 3, learning_rate=0.05))
    objectives, _ = given.objectives()
    expected = [objective.evaluate(found) for objective in objectives.values()]
    assert history.split.tolist() == ["train", "test"]
    assert history.loss[:, -1].tolist() == [e.loss for e in expected]
    assert history.accuracy[:, -1].tolist() == [e.accuracy for e in expected]
    assert history.epoch.tolist() == [1, 2, 3]
    assert history.status.tolist() == [1, 1, 1]
    assert history.stopped == "epoch limit"


def test_without_test_data_there_is_one_split_and_a_regression_is_finite_without_accuracy():
    inputs = data()[0][0]
    given = Problem(nn.Linear(4, 1), lambda output, target: (output - target) ** 2, (inputs, inputs[:, :1].clone()))
    _, history = train(given, TrainingPlan(8, 2))
    assert history.split.tolist() == ["train"]
    assert np.isfinite(history.loss).all()
    assert np.isnan(history.accuracy).all()
    assert history.status.tolist() == [1, 1]


def test_the_minimizer_knows_how_it_was_trained_and_survives_its_file(tmp_path):
    plan = TrainingPlan(8, 2, schedule="step", milestones=(1,))
    found, _ = train(problem(noisy(), examples=24), plan, seed=7, metadata={"recipe": "ours"})
    assert found.metadata == {
        "recipe": "ours",
        "plan": dataclasses.asdict(plan),
        "seed": 7,
        "epochs": 2,
        "stopped": "epoch limit",
    }
    loaded = load_minimizer(found.save(tmp_path / "m.safetensors"))
    assert all(torch.equal(loaded.buffers[name], value) for name, value in found.buffers.items())
    assert torch.equal(loaded.point.theta, found.point.theta)
    assert loaded.metadata == json.loads(json.dumps(found.metadata))


def test_progress_is_told_after_every_epoch():
    told = []
    train(problem(), TrainingPlan(8, 3), progress=lambda done, total, note: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_same_seed_gives_the_same_bits_and_another_one_other_weights():
    plan = TrainingPlan(5, 3, learning_rate=0.05)
    first, second, other = (train(problem(noisy()), plan, seed=seed) for seed in (0, 0, 1))
    assert_same_minimizer(first[0], second[0])
    assert_same_history(first[1], second[1])
    assert not torch.equal(first[0].point.theta, other[0].point.theta)


def test_the_callers_model_and_random_state_are_the_same_after_as_before():
    model = noisy().eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    train(problem(model), TrainingPlan(5, 2, learning_rate=0.05))
    with pytest.raises(KeyboardInterrupt):
        train(problem(model), TrainingPlan(5, 2), progress=Interrupt(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[4].weight.grad is None
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1], states[2]) == (np.random.get_state()[1].tolist(), random.getstate())


# Interrupted and resumed


def in_file(path, given, plan):
    objectives, _ = given.objectives()
    return store.begin(path, {"history": history_template(objectives, plan)})["history"]


@pytest.mark.parametrize(
    "options", [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd"}]
)
@pytest.mark.parametrize("epoch", [1, 2, 4, 6])
def test_an_interrupted_run_ends_with_the_weights_and_history_of_an_undisturbed_one(
    tmp_path, every_epoch, epoch, options
):
    plan = TrainingPlan(5, 6, learning_rate=0.05, weight_decay=1e-3, schedule="cosine", **options)
    expected, history = train(problem(noisy()), plan, seed=2)
    checkpoint = tmp_path / "run.safetensors"
    given = problem(noisy())
    with in_file(tmp_path / "h.h5", given, plan) as journal, pytest.raises(KeyboardInterrupt):
        train(given, plan, seed=2, journal=journal, checkpoint=checkpoint, progress=Interrupt(epoch))
    assert store.load(tmp_path / "h.h5").status.sum() == epoch  # nothing is lost
    assert checkpoint.exists() == (epoch > 1)  # the interrupt came before the epoch's own checkpoint
    told = []
    with in_file(tmp_path / "h.h5", given, plan) as journal:
        found, resumed = train(
            given, plan, seed=2, journal=journal, checkpoint=checkpoint,
            progress=lambda done, total, note: told.append(done),
        )  # fmt: skip
    assert told == list(range(epoch, 7))  # it went on from the checkpoint, not from the start
    assert_same_minimizer(found, expected)
    assert_same_history(resumed, history)


def test_a_run_interrupted_after_every_epoch_ends_the_same(tmp_path, every_epoch):
    plan = TrainingPlan(5, 5, learning_rate=0.05, patience=2)
    expected, history = train(problem(noisy()), plan)
    for epoch in range(2, 6):  # each start gets one checkpoint further
        with pytest.raises(KeyboardInterrupt):
            train(problem(noisy()), plan, checkpoint=tmp_path / "run", progress=Interrupt(epoch))
    found, resumed = train(problem(noisy()), plan, checkpoint=tmp_path / "run")
    assert_same_minimizer(found, expected)
    assert_same_history(resumed, history)


def test_a_checkpoint_alone_resumes_with_its_history_and_its_patience(tmp_path, every_epoch):
    # patience counts epochs before the interrupt too: were they forgotten, training would end elsewhere
    plan = TrainingPlan(8, 30, "sgd", learning_rate=0.05, patience=3, improvement=0.015)
    expected, history = train(problem(), plan)
    assert 8 < len(history.epoch) < 30
    for epoch in (5, len(history.epoch) - 1):
        checkpoint = tmp_path / f"run-{epoch}"
        with pytest.raises(KeyboardInterrupt):
            train(problem(), plan, checkpoint=checkpoint, progress=Interrupt(epoch))
        found, resumed = train(problem(), plan, checkpoint=checkpoint)
        assert_same_minimizer(found, expected)
        assert_same_history(resumed, history)


def test_a_finished_run_that_was_not_stored_is_finished_again_without_training(tmp_path, every_epoch):
    plan = TrainingPlan(5, 3)
    expected, history = train(problem(noisy()), plan, checkpoint=tmp_path / "run")
    told = []
    found, again = train(
        problem(noisy()), plan, checkpoint=tmp_path / "run", progress=lambda done, total, note: told.append(done)
    )
    assert told == []
    assert_same_minimizer(found, expected)
    assert_same_history(again, history)


def test_a_checkpoint_from_before_a_field_was_added_is_taken_up_where_the_plan_leaves_it_off(tmp_path, every_epoch):
    plan = TrainingPlan(5, 4, learning_rate=0.05)
    expected, _ = train(problem(noisy()), plan)
    with pytest.raises(KeyboardInterrupt):
        train(problem(noisy()), plan, checkpoint=tmp_path / "run", progress=Interrupt(3))
    content = (tmp_path / "run").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    known = json.loads(header["__metadata__"]["run"])
    for name in ("resolution", "augment", "proximal", "proximal_steps", "adversarial", "robust", "ghost_batch", "clip"):
        del known["plan"][name]
    (tmp_path / "run").write_bytes(save(load(content), {"run": json.dumps(known)}))
    with pytest.raises(CheckpointError, match="another plan"):
        train(problem(noisy()), dataclasses.replace(plan, clip=1.0), checkpoint=tmp_path / "run")
    told = []
    found, _ = train(
        problem(noisy()), plan, checkpoint=tmp_path / "run", progress=lambda done, total, note: told.append(done)
    )
    assert told == [3, 4]
    assert_same_minimizer(found, expected)


def test_checkpoints_are_written_at_intervals_and_not_at_every_epoch(tmp_path):
    train(problem(), TrainingPlan(8, 2), checkpoint=tmp_path / "run")  # done within the five seconds
    assert not (tmp_path / "run").exists()


def test_a_kill_while_a_checkpoint_is_written_leaves_the_last_one(tmp_path, every_epoch, monkeypatch):
    plan = TrainingPlan(5, 4, learning_rate=0.05)
    expected, history = train(problem(noisy()), plan)
    saves, sync = [], training.write_atomically

    def dying(path, content):
        saves.append(path)
        if len(saves) == 3:
            raise KeyboardInterrupt
        return sync(path, content)

    monkeypatch.setattr(training, "write_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        train(problem(noisy()), plan, checkpoint=tmp_path / "run")
    found, resumed = train(problem(noisy()), plan, checkpoint=tmp_path / "run")
    assert_same_minimizer(found, expected)
    assert_same_history(resumed, history)


# Failures


def test_a_diverging_run_is_an_error_with_the_history_so_far():
    with pytest.raises(NonFiniteError, match="Lower the learning rate") as caught:
        train(problem(), TrainingPlan(8, 9, "sgd", learning_rate=1e20))
    history = caught.value.partial
    epochs = len(history.epoch)
    assert 1 <= epochs < 9
    assert history.stopped == "diverged"
    assert not np.isfinite(history.loss[0, -1])
    assert history.status.tolist() == [1] * (epochs - 1) + [2]
    assert history.learning_rate.tolist() == [1e20] * epochs


def test_a_model_that_has_already_diverged_is_an_error():
    model = plain()
    model[0].weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="model's weights"):
        train(problem(model), TrainingPlan(8, 1))


def test_data_that_are_not_a_pair_of_tensors_are_refused():
    (inputs, targets), _ = data()
    for wrong in (
        [(inputs, targets)],
        torch.utils.data.TensorDataset(inputs, targets),
        (inputs, targets, targets),
        (inputs, targets.tolist()),
    ):
        with pytest.raises(ShapeError, match="pair"):
            train(Problem(plain(), cross_entropy, wrong), TrainingPlan(8, 1))
    with pytest.raises(DataError, match="equal, positive length"):
        train(Problem(plain(), cross_entropy, (inputs, targets[:-1])), TrainingPlan(8, 1))


def test_the_point_of_a_minimizer_is_that_of_the_trained_model():
    found, _ = train(problem(), TrainingPlan(8, 2))
    model = plain()
    found.load_into(model)
    assert torch.equal(Point.of(model, ParamSpace.of(model)).theta, found.point.theta)
