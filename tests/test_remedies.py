"""What a mini-batch undergoes beyond a plain step: each against a closed form or the loop that one would write."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharpness import training
from sharpness.errors import NonFiniteError, ShapeError
from sharpness.objective import BatchLoss, Problem, cross_entropy
from sharpness.random import generator
from sharpness.training import TrainingPlan, augment, train
from sharpness.training.augment import AUGMENTATIONS, augmented, shifted, warped
from sharpness.training.step import Adversarial, Ghost, lent_buffers, mini_batch_step, part_sizes

EXAMPLES = 40
ROUNDING = 1e-12  # some hundred roundings of float64 in another order, through a few layers and steps
EVERY = tuple(AUGMENTATIONS)


def data(dtype=torch.float64, examples=EXAMPLES):
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(examples, 36, generator=draw, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(3, (examples,), generator=draw)


def plain(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def normalised(dtype=torch.float64):
    torch.manual_seed(1)
    first = nn.Linear(36, 6, bias=False)  # a bias there has a gradient of rounding errors, which Adam makes large
    return nn.Sequential(first, nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def noisy(dtype=torch.float32):
    """Convolution, batch norm and dropout: everything that a resumed run could get wrong."""
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(48, 3)
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *layers).to(dtype)


def problem(build=normalised, dtype=torch.float64, **options):
    return Problem(build(dtype), cross_entropy, data(dtype, **options))


def assert_same_bits(found, expected):
    for ours, theirs in ((found.parameters, expected.parameters), (found.buffers, expected.buffers)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def assert_close(found, model):
    """A minimizer against a model that a loop of the test trained."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        ours = {**found.parameters, **found.buffers}[name]
        assert torch.allclose(ours, value.detach(), rtol=ROUNDING, atol=ROUNDING), name


# The loop that one would write, with every remedy in it

REMEDIES = {
    "augment": {"augment": EVERY},
    "proximal": {"proximal": 0.7},
    "adversarial": {"adversarial": 0.1},
    "robust": {"robust": 0.2},
    "ghost": {"ghost_batch": 5},
    "clip": {"clip": 0.1},
    "augment, adversarial, ghost, proximal, clip": {
        "augment": ("flip", "translate"),
        "adversarial": 0.1,
        "ghost_batch": 4,
        "proximal": 2.0,
        "proximal_steps": 2,
        "clip": 0.2,
    },
    "augment, robust, ghost, proximal, clip": {
        "augment": ("shear",),
        "robust": 0.1,
        "ghost_batch": 6,
        "proximal": 0.5,
        "clip": 0.3,
    },
}
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.01, "learning_rate": 0.1},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
}


def loss_by_hand(model, inputs, targets, plan):
    """The mean loss of one mini-batch; second passes go through a copy whose running statistics nobody reads."""
    size, parts = plan.ghost_batch or len(targets), []
    for start in range(0, len(targets), size):
        if len(targets) - start == 1:
            parts[-1].append(start)
        else:
            parts.append(list(range(start, min(start + size, len(targets)))))
    total = 0.0
    for part in parts:
        x, y = inputs[part].clone().requires_grad_(), targets[part]
        other = copy.deepcopy(model)
        mean = F.cross_entropy(model(x), y)
        if plan.adversarial:
            (slope,) = torch.autograd.grad(F.cross_entropy(copy.deepcopy(other)(x), y), x)
            weights = dict(model.named_parameters())
            shifted_output = torch.func.functional_call(other, weights, (x.detach() + plan.adversarial * slope.sign(),))
            mean = 0.5 * mean + 0.5 * F.cross_entropy(shifted_output, y)
        total = total + mean * (len(y) / len(targets))
    return total


def gradient_by_hand(model, inputs, targets, plan):
    weights = list(model.parameters())
    gradient = torch.autograd.grad(loss_by_hand(model, inputs, targets, plan), weights)
    if plan.robust:
        length = math.sqrt(sum(float((g**2).sum()) for g in gradient))
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for weight, g in zip(moved.parameters(), gradient, strict=True):
                weight += plan.robust * g / length
        gradient = torch.autograd.grad(loss_by_hand(moved, inputs, targets, plan), list(moved.parameters()))
    return gradient


def by_hand(model, plan, seed):
    inputs, targets = data()
    weights = list(model.parameters())
    if plan.optimizer == "adam":
        optimizer = torch.optim.Adam(weights, plan.learning_rate)
    else:
        optimizer = torch.optim.SGD(weights, plan.learning_rate, momentum=plan.momentum, weight_decay=plan.weight_decay)
    model.train()
    for epoch in range(plan.epochs):
        order = torch.randperm(len(targets), generator=generator("batches", epoch, seed=seed))
        for number, index in enumerate(order.split(plan.batch_size)):
            draw = generator("augment", epoch, number, seed=seed)
            batch = augmented(plan.augment, inputs[index], draw)
            start = [weight.detach().clone() for weight in weights]
            for _ in range(plan.proximal_steps if plan.proximal else 1):
                gradient = gradient_by_hand(model, batch, targets[index], plan)
                gradient = [
                    g + plan.proximal * (w.detach() - s) for g, w, s in zip(gradient, weights, start, strict=True)
                ]
                length = math.sqrt(sum(float((g**2).sum()) for g in gradient))
                shrink = min(1.0, plan.clip / length) if plan.clip else 1.0
                for weight, g in zip(weights, gradient, strict=True):
                    weight.grad = shrink * g
                optimizer.step()
    return model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.parametrize("build", [plain, normalised])
def test_training_is_that_of_the_loop_by_hand(build, name, optimizer):
    plan = TrainingPlan(11, 3, **OPTIMIZERS[optimizer], **REMEDIES[name])  # 11 + 11 + 11 + 7, in ghost parts of 5 and 6
    found, _ = train(problem(build), plan, seed=3)
    assert_close(found, by_hand(build(), plan, 3))
    without, _ = train(problem(build), TrainingPlan(11, 3, **OPTIMIZERS[optimizer]), seed=3)
    differs = not torch.allclose(found.point.theta, without.point.theta, rtol=1e-6, atol=1e-6)
    assert differs == (build is normalised or name != "ghost")  # without batch norm, parts change nothing


@pytest.mark.parametrize("name", ["adversarial", "robust"])
def test_a_perturbation_below_rounding_trains_as_none_to_the_bit(name):
    # so the second pass has the dropout masks of the first, leaves no trace in running statistics, and nothing is drawn
    options = {"learning_rate": 0.05, "optimizer": "sgd", "momentum": 0.9}
    expected, _ = train(problem(noisy, torch.float32), TrainingPlan(8, 3, **options))
    found, _ = train(problem(noisy, torch.float32), TrainingPlan(8, 3, **options, **{name: 1e-30}))
    assert_same_bits(found, expected)


@pytest.mark.parametrize(
    "options",
    [{"ghost_batch": 8}, {"ghost_batch": 50}, {"clip": 1e6}, {"proximal_steps": 9}, {"augment": ()}],
    ids=str,
)
def test_what_has_nothing_to_do_changes_no_bit(options):
    expected, _ = train(problem(noisy, torch.float32), TrainingPlan(8, 3))
    found, _ = train(problem(noisy, torch.float32), TrainingPlan(8, 3, **options))
    assert_same_bits(found, expected)


@pytest.mark.parametrize("name", [name for name in REMEDIES if name != "clip"])
def test_frozen_and_unused_weights_stay(name):
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = normalised(), nn.Linear(2, 2).double()
            self.used[0].weight.requires_grad_(False)

        def forward(self, x):
            return self.used(x)

    model = Part()
    found, _ = train(Problem(model, cross_entropy, data()), TrainingPlan(11, 2, clip=0.1, **without_clip(name)))
    assert torch.equal(found.buffers["used.0.weight"], model.used[0].weight)
    assert torch.equal(found.parameters["unused.weight"], model.unused.weight)
    assert not torch.equal(found.parameters["used.3.weight"], model.used[3].weight)


def without_clip(name):
    return {key: value for key, value in REMEDIES[name].items() if key != "clip"}


# Interrupted and resumed


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", REMEDIES)
def test_a_run_interrupted_after_every_epoch_ends_with_the_same_bits(tmp_path, monkeypatch, name, optimizer):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    plan = TrainingPlan(11, 4, **OPTIMIZERS[optimizer], **REMEDIES[name])
    expected, history = train(problem(noisy, torch.float32), plan, seed=2)
    begun = []

    def interrupt(done, total, note=""):
        begun.append(done)
        if len(begun) % 2 == 0:  # each start is granted the checkpoint of one epoch more
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train(problem(noisy, torch.float32), plan, seed=2, checkpoint=tmp_path / "run", progress=interrupt)
    found, resumed = train(problem(noisy, torch.float32), plan, seed=2, checkpoint=tmp_path / "run")
    assert begun == [1, 2, 2, 3, 3, 4]
    assert_same_bits(found, expected)
    assert found.metadata == expected.metadata
    assert resumed.loss.tobytes() == history.loss.tobytes()


@pytest.mark.parametrize("name", REMEDIES)
def test_data_model_and_global_random_state_are_left_as_they_were(name):
    given = problem(noisy, torch.float32)
    inputs, before = given.train[0].clone(), copy.deepcopy(given.model.state_dict())
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, _ = train(given, TrainingPlan(11, 2, **REMEDIES[name]), seed=1)
    second, _ = train(given, TrainingPlan(11, 2, **REMEDIES[name]), seed=1)
    assert_same_bits(first, second)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1], states[2]) == (np.random.get_state()[1].tolist(), random.getstate())
    assert torch.equal(given.train[0], inputs)
    assert not given.train[0].requires_grad
    assert all(torch.equal(value, before[key]) for key, value in given.model.state_dict().items())


# Quadratics: f(x) = ½ mean (u·x − y)², so that ∇f = A x − b


class Quadratic:
    def __init__(self, count=20, size=4):
        draw = torch.Generator().manual_seed(2)
        self.inputs = torch.randn(count, size, generator=draw, dtype=torch.float64)
        self.targets = torch.randn(count, 1, generator=draw, dtype=torch.float64)
        self.a = self.inputs.T @ self.inputs / count
        self.b = (self.inputs.T @ self.targets / count).squeeze(1)
        self.start = torch.randn(size, generator=draw, dtype=torch.float64)

    def train(self, epochs=1, **options):
        model = nn.Linear(len(self.start), 1, bias=False).double()
        model.weight.data.copy_(self.start[None])
        given = Problem(model, lambda output, target: 0.5 * (output - target) ** 2, (self.inputs, self.targets))
        found, _ = train(given, TrainingPlan(len(self.targets), epochs, "sgd", **options))
        return found.point.theta


def test_many_proximal_steps_solve_the_proximal_problem():
    q, strength = Quadratic(), 3.0
    identity, expected = torch.eye(4, dtype=torch.float64), q.start
    for _ in range(2):  # each mini-batch, here all the data, from where the one before ended
        expected = torch.linalg.solve(q.a + strength * identity, q.b + strength * expected)
    found = q.train(2, learning_rate=0.2, proximal=strength, proximal_steps=200)
    assert torch.allclose(found, expected, rtol=0, atol=ROUNDING)


def test_few_proximal_steps_are_gradient_descent_on_the_penalised_loss():
    q, x = Quadratic(), Quadratic().start
    for _ in range(3):
        x = x - 0.1 * (q.a @ x - q.b + 2.0 * (x - q.start))
    assert torch.allclose(q.train(learning_rate=0.1, proximal=2.0), x, rtol=0, atol=ROUNDING)


def test_a_robust_step_is_that_of_the_gradient_uphill():
    q = Quadratic()
    g = q.a @ q.start - q.b
    uphill = q.start + 0.3 * g / g.norm()
    expected = q.start - 0.1 * (q.a @ uphill - q.b)
    assert torch.allclose(q.train(learning_rate=0.1, robust=0.3), expected, rtol=0, atol=ROUNDING)


def test_where_the_gradient_is_zero_nothing_moves_and_nothing_is_nan():
    q = Quadratic()
    q.targets, q.inputs = torch.zeros_like(q.targets), torch.zeros_like(q.inputs)
    assert torch.equal(q.train(learning_rate=0.1, robust=0.3), q.start)
    assert torch.equal(q.train(learning_rate=0.1, clip=0.3), q.start)


def test_a_longer_gradient_is_clipped_to_the_norm_and_a_shorter_one_left():
    q = Quadratic()
    g = q.a @ q.start - q.b
    clipped = q.start - q.train(learning_rate=1.0, clip=0.25)
    assert torch.allclose(clipped, 0.25 * g / g.norm(), rtol=0, atol=1e-15)
    assert float(clipped.norm()) == pytest.approx(0.25, rel=1e-14)
    left = q.train(learning_rate=1.0, clip=1.01 * float(g.norm()))
    assert torch.equal(left, q.train(learning_rate=1.0))


def test_clipping_holds_where_the_square_of_a_gradient_overflows_float32():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data.fill_(0.0)
    given = Problem(model, lambda output, target: 1e25 * output, (torch.tensor([[3.0, 4.0]]), torch.zeros(1, 1)))
    found, _ = train(given, TrainingPlan(1, 1, "sgd", learning_rate=1.0, clip=5.0))
    assert found.point.theta.tolist() == pytest.approx([-3.0, -4.0], rel=1e-6)


def test_what_diverges_is_still_an_error_with_clipping():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data.fill_(0.0)  # the loss is 0, its gradient overflows float32: no length can be given it
    given = Problem(model, lambda output, target: 1e20 * output, (torch.full((4, 2), 1e20), torch.zeros(4, 1)))
    with pytest.raises(NonFiniteError):
        train(given, TrainingPlan(4, 3, "sgd", clip=1.0))


# Adversarial training


def test_an_adversarial_step_on_a_linear_model_by_hand():
    # r = w·u − y, so ∂(½ r²)/∂u = r w: the worst inputs are u + ε sign(r) sign(w), where |r| is larger by ε ‖w‖₁
    q, size = Quadratic(), 0.3
    residual = (q.inputs @ q.start - q.targets[:, 0])[:, None]
    moved = q.inputs + size * residual.sign() * q.start.sign()
    shifted_residual = residual + size * residual.sign() * q.start.abs().sum()
    gradient = 0.5 * (residual * q.inputs).mean(0) + 0.5 * (shifted_residual * moved).mean(0)
    found = q.train(learning_rate=0.1, adversarial=size)
    assert torch.allclose(found, q.start - 0.1 * gradient, rtol=0, atol=ROUNDING)


def test_the_adversarial_loss_touches_no_gradient_of_the_weights():
    model, (inputs, targets) = plain(), data()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    term = Adversarial(BatchLoss(cross_entropy), 0.2)(model, (inputs, targets))
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[2].weight.grad is None
    assert inputs.grad is None
    assert not inputs.requires_grad
    x = inputs.clone().requires_grad_()
    clean = F.cross_entropy(model(x), targets)
    moved = inputs + 0.2 * torch.autograd.grad(clean, x)[0].sign()
    expected = 0.5 * clean + 0.5 * F.cross_entropy(model(moved), targets)
    assert (term.total / term.weight).item() == pytest.approx(expected.item(), rel=ROUNDING)
    assert expected > clean


def test_clean_and_adversarial_inputs_count_by_half_also_where_weights_depend_on_the_output():
    def positive(output, target):
        return (output.clamp(min=0) ** 2).sum(), (output > 0).sum()  # the mean over what is positive

    model, (inputs, targets) = plain(), data()
    x = inputs.clone().requires_grad_()
    total, weight = positive(model(x), targets)
    moved_total, moved_weight = positive(model(inputs + 0.5 * torch.autograd.grad(total, x)[0].sign()), targets)
    assert weight != moved_weight
    term = Adversarial(BatchLoss(positive), 0.5)(model, (inputs, targets))
    expected = 0.5 * total / weight + 0.5 * moved_total / moved_weight
    assert (term.total / term.weight).item() == pytest.approx(expected.item(), rel=ROUNDING)


@pytest.mark.parametrize("form", ["each", "mean", "pair"])
def test_every_form_of_the_loss_gives_the_same_training(form):
    forms = {
        "each": cross_entropy,
        "mean": F.cross_entropy,
        "pair": lambda output, target: (F.cross_entropy(output, target, reduction="sum"), len(target)),
    }
    plan = TrainingPlan(11, 2, adversarial=0.1, ghost_batch=4, learning_rate=0.01)
    found, _ = train(Problem(normalised(), forms[form], data()), plan)
    assert_close(found, by_hand(normalised(), plan, 0))


# Ghost batch norm


@pytest.mark.parametrize(
    ("examples", "size", "expected"),
    [
        (10, 5, [5, 5]),
        (12, 5, [5, 5, 2]),
        (11, 5, [5, 6]),
        (6, 5, [6]),
        (5, 5, [5]),
        (4, 5, [4]),
        (3, 2, [3]),
        (1, 5, [1]),
    ],
)
def test_no_part_of_a_mini_batch_has_one_example(examples, size, expected):
    assert part_sizes(examples, size) == expected


def test_the_gradient_of_ghost_parts_is_the_mean_of_theirs_by_their_examples():
    model, (inputs, targets) = normalised(), data()
    expected = [torch.zeros_like(p) for p in model.parameters()]
    statistics = copy.deepcopy(model)
    for part in (range(15), range(15, 30), range(30, 40)):  # the last part is smaller
        own = copy.deepcopy(model).train()
        F.cross_entropy(own(inputs[part]), targets[part]).backward()
        for mean, parameter in zip(expected, own.parameters(), strict=True):
            mean += parameter.grad * len(part) / len(targets)
        statistics.train()(inputs[part])
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    step = mini_batch_step(TrainingPlan(40, 1, ghost_batch=15), model.train(), optimizer, BatchLoss(cross_entropy))
    step((inputs, targets))
    for mean, parameter in zip(expected, model.parameters(), strict=True):
        assert torch.allclose(parameter.grad, mean, rtol=0, atol=ROUNDING)
    for (name, ours), theirs in zip(model.named_buffers(), statistics.buffers(), strict=True):
        assert torch.equal(ours, theirs), name  # each part updates the running statistics once


def test_without_batch_norm_ghost_parts_give_the_loss_of_the_whole_also_of_masked_targets():
    model, (inputs, targets) = plain(), data()
    targets = torch.where(torch.arange(EXAMPLES) < 13, -100, targets)  # most of the first part does not count

    def masked(output, target):
        return F.cross_entropy(output, target, reduction="sum"), (target >= 0).sum()

    whole = BatchLoss(masked)(model, (inputs, targets))
    parts = Ghost(BatchLoss(masked), 15)(model, (inputs, targets))
    assert parts.weight == whole.weight == EXAMPLES - 13
    assert parts.total.item() == pytest.approx(whole.total.item(), rel=ROUNDING)


def test_a_last_mini_batch_that_leaves_one_example_trains_in_ghost_parts():
    plan = TrainingPlan(18, 2, ghost_batch=6)  # 18, 18 and 13 = 6 + 7
    found, _ = train(problem(examples=49), plan)
    assert torch.isfinite(found.point.theta).all()
    assert int(found.buffers["1.num_batches_tracked"]) == 2 * (3 + 3 + 2)


@pytest.mark.parametrize(
    ("name", "updates"), [("adversarial", 4), ("robust", 4), ("proximal", 12), ("clip", 4), ("augment", 4)]
)
def test_how_often_running_statistics_are_updated(name, updates):
    found, _ = train(problem(), TrainingPlan(11, 1, **REMEDIES[name]))
    assert int(found.buffers["1.num_batches_tracked"]) == updates


def test_lent_buffers_are_returned_also_after_an_error_and_shared_ones_stay_shared():
    model = nn.Sequential(normalised(), normalised())
    model[1][1].running_mean = model[0][1].running_mean
    own = dict(model.named_buffers(remove_duplicate=False))
    before = {name: buffer.clone() for name, buffer in own.items()}

    def interrupted():
        with lent_buffers(model):
            assert model[0][1].running_mean is model[1][1].running_mean
            assert model[0][1].running_mean is not own["0.1.running_mean"]
            model.train()[0](data()[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = dict(model.named_buffers(remove_duplicate=False))
    assert all(after[name] is own[name] and torch.equal(own[name], before[name]) for name in own)


# Augmentations


def images(count=5, channels=2, height=9, width=7, dtype=torch.float64):
    draw = torch.Generator().manual_seed(3)
    return torch.randn(count, channels, height, width, generator=draw, dtype=torch.float64).to(dtype)


def drawn(name, given, seed=0):
    return AUGMENTATIONS[name](given, torch.Generator().manual_seed(seed))


def test_a_flip_exchanges_left_and_right_of_about_half_and_twice_is_none():
    given = images(4000, 1, 2, 3)
    once = drawn("flip", given)
    chosen = (once != given).flatten(1).any(1)
    assert torch.equal(once[chosen], given[chosen].flip(3))
    assert abs(float(chosen.double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(4000)  # five standard deviations
    assert torch.equal(drawn("flip", once), given)


def test_a_shift_by_whole_pixels_is_exact():
    given, down, right = images(), torch.tensor([0, 2, -1, 9, -3]), torch.tensor([0, -3, 1, 0, -7])
    expected = torch.zeros_like(given)
    for image in range(5):
        for row in range(9):
            for column in range(7):
                to = row + int(down[image]), column + int(right[image])
                if 0 <= to[0] < 9 and 0 <= to[1] < 7:
                    expected[image, :, to[0], to[1]] = given[image, :, row, column]
    assert torch.equal(shifted(given, down, right), expected)


@pytest.mark.parametrize(
    ("height", "width", "most"), [(32, 32, (4, 4)), (28, 17, (3, 2)), (8, 8, (1, 1)), (4, 5, (1, 1))]
)
def test_translations_are_uniform_within_an_eighth_of_the_side(height, width, most):
    given = torch.zeros(3000, 1, height, width)
    given[:, 0, height // 2, width // 2] = 1
    place = drawn("translate", given).flatten(1).argmax(1)
    down, right = place // width - height // 2, place % width - width // 2
    for moved, largest in ((down, most[0]), (right, most[1])):
        counts = torch.bincount(moved + largest)
        share, count = 1 / (2 * largest + 1), 3000
        assert len(counts) == 2 * largest + 1
        assert (counts / count - share).abs().max() < 5 * math.sqrt(share * (1 - share) / count)
    assert abs(np.corrcoef(down, right)[0, 1]) < 5 / math.sqrt(3000)


def test_a_quarter_and_a_half_turn_are_exact():
    square, quarter = images(height=6, width=6), torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    # what comes to (right, down) = (0, 1) was at (-1, 0): the left side comes to the bottom
    assert torch.allclose(warped(square, quarter.expand(5, 2, 2)), square.rot90(1, (2, 3)), atol=ROUNDING)
    half = -torch.eye(2, dtype=torch.float64).expand(5, 2, 2)
    assert torch.allclose(warped(images(), half), images().flip((2, 3)), atol=ROUNDING)


def test_a_shear_by_one_pixel_per_pixel_moves_each_row_by_its_distance_from_the_middle():
    given, slanted = images(height=5, width=7), torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    found = warped(given, slanted.expand(5, 2, 2))
    nothing = torch.zeros(5, dtype=torch.long)
    for row in range(5):
        expected = shifted(given, nothing, nothing - (row - 2))[:, :, row]
        assert torch.allclose(found[:, :, row], expected, rtol=0, atol=ROUNDING), row


def test_a_turn_keeps_lengths_in_pixels_where_sides_differ():
    given = torch.zeros(1, 1, 21, 41, dtype=torch.float64)
    given[0, 0, 10, 30] = 1  # ten to the right of the middle
    cos, sin = 0.8, 0.6  # a turn after which (10, 0) is at the whole pixel (8, ±6)
    found = warped(given, torch.tensor([[[cos, -sin], [sin, cos]]], dtype=torch.float64))
    row, column = divmod(int(found.flatten().argmax()), 41)
    assert (abs(row - 10), column - 20) == (6, 8)
    assert float(found.max()) == pytest.approx(1.0, abs=ROUNDING)


@pytest.mark.parametrize("name", ["rotate", "shear"])
def test_turns_and_shears_fill_their_range_evenly(name, monkeypatch):
    matrices = []
    monkeypatch.setattr(augment, "warped", lambda given, matrix: matrices.append(matrix))
    drawn(name, images(4000))
    (found,) = matrices
    if name == "rotate":
        amount, largest = torch.atan2(found[:, 1, 0], found[:, 0, 0]), math.radians(15)
        assert torch.allclose(torch.linalg.det(found), torch.ones(4000, dtype=torch.float64), atol=ROUNDING)
        assert torch.allclose(found[:, 0, 1], -found[:, 1, 0])
    else:
        amount, largest = found[:, 0, 1], 0.1
        assert torch.equal(found[:, [0, 1, 1], [0, 0, 1]], torch.tensor([1.0, 0.0, 1.0]).double().expand(4000, 3))
    assert float(amount.abs().max()) <= largest
    assert torch.histc(amount / largest, 4, -1, 1).sub(1000).abs().max() < 5 * math.sqrt(4000 * 3 / 16)


@pytest.mark.parametrize("name", EVERY)
def test_augmentations_treat_each_image_by_itself_and_leave_the_given_ones(name):
    given = images(6, 1, 8, 8)[:1].expand(50, 1, 8, 8).contiguous()
    before = given.clone()
    found = drawn(name, given)
    assert found.shape == given.shape
    assert found.dtype == given.dtype
    assert len({image.numpy().tobytes() for image in found}) > 1
    assert torch.equal(given, before)
    assert torch.equal(found, drawn(name, given))
    assert not torch.equal(found, drawn(name, given, seed=1))
    alone = drawn(name, images(6, 1, 8, 8)[:1].expand(50, 3, 8, 8))  # all channels of an image alike
    assert torch.equal(alone, found.expand(50, 3, 8, 8))


@pytest.mark.parametrize("name", EVERY)
def test_the_numbers_drawn_do_not_depend_on_the_precision(name):
    double, single = drawn(name, images()), drawn(name, images(dtype=torch.float32))
    assert torch.allclose(double.float(), single, atol=1e-5)  # places in float32, of which a pixel is some 1e-7


def test_rows_of_a_square_number_are_images_of_one_channel():
    flat = images(5, 1, 6, 6).reshape(5, 36)
    found = augmented(EVERY, flat, torch.Generator().manual_seed(4))
    assert torch.equal(
        found, augmented(EVERY, flat.reshape(5, 1, 6, 6), torch.Generator().manual_seed(4)).reshape(5, 36)
    )
    assert not torch.equal(found, flat)


def test_augmentations_act_in_the_order_given():
    first, second = (
        augmented(names, images(height=9, width=9), torch.Generator().manual_seed(4))
        for names in (("translate", "rotate"), ("rotate", "translate"))
    )
    assert not torch.allclose(first, second)
    draw = torch.Generator().manual_seed(4)
    moved = AUGMENTATIONS["translate"](images(height=9, width=9), draw)
    assert torch.equal(first, AUGMENTATIONS["rotate"](moved, draw))


def test_every_mini_batch_of_every_epoch_and_seed_is_augmented_by_its_own_numbers():
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain()

        def forward(self, x):
            if self.training:
                seen.append(x.clone())
            return self.inner(x)

    same = torch.arange(36.0, dtype=torch.float64).expand(4, 36).contiguous(), torch.zeros(4, dtype=torch.long)
    for seed in (0, 0, 1):
        train(Problem(Watch(), cross_entropy, same), TrainingPlan(2, 2, augment=("rotate",)), seed=seed)
    first, second, other = seen[:4], seen[4:8], seen[8:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({batch.numpy().tobytes() for batch in first + other}) == 8


def test_the_history_is_of_the_data_as_they_are():
    given = problem()
    found, history = train(given, TrainingPlan(11, 2, augment=EVERY, ghost_batch=5))
    assert history.loss[0, -1] == given.objectives()[0]["train"].evaluate(found).loss


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": ("flip", "mirror")}, r"augment = \('flip', 'mirror'\) \(different ones of flip, translate"),
        ({"augment": ("flip", "flip")}, "augment = "),
        ({"augment": "flip"}, "augment = 'flip'"),
        ({"proximal": -1.0}, "proximal = -1.0"),
        ({"proximal": math.inf}, "proximal = inf"),
        ({"proximal": math.nan}, "proximal = nan"),
        ({"proximal_steps": 0}, "proximal_steps = 0"),
        ({"proximal": 1.0, "proximal_steps": 1}, "proximal_steps = 1 "),
        ({"proximal_steps": 2.5}, "proximal_steps = 2.5"),
        ({"adversarial": -0.1}, "adversarial = -0.1"),
        ({"adversarial": math.nan}, "adversarial = nan"),
        ({"robust": -0.1}, "robust = -0.1"),
        ({"robust": math.inf}, "robust = inf"),
        ({"robust": 0.1, "adversarial": 0.1}, "robust = 0.1 .not together with adversarial"),
        ({"ghost_batch": 1}, "ghost_batch = 1 "),
        ({"ghost_batch": -8}, "ghost_batch = -8 "),
        ({"ghost_batch": 7.5}, "ghost_batch = 7.5 "),
        ({"clip": -1.0}, "clip = -1.0"),
        ({"clip": math.nan}, "clip = nan"),
    ],
    ids=str,
)
def test_a_plan_out_of_range_is_refused_by_name(options, message):
    with pytest.raises(ShapeError, match=message):
        TrainingPlan(8, 3, **options)


def test_the_defaults_are_off():
    off = {"augment": (), "proximal": 0.0, "adversarial": 0.0, "robust": 0.0, "ghost_batch": 0, "clip": 0.0}
    assert {name: value for name, value in asdict(TrainingPlan(8, 3)).items() if name in off} == off


@pytest.mark.parametrize(
    "inputs",
    [torch.zeros(8, 35), torch.zeros(8, 6, 6), torch.zeros(8), torch.zeros(8, 36, dtype=torch.long)],
    ids=lambda inputs: f"{tuple(inputs.shape)}",
)
def test_inputs_that_are_no_images_are_refused_before_training(inputs):
    given = Problem(nn.Linear(36, 3), cross_entropy, (inputs, torch.zeros(8, dtype=torch.long)))
    with pytest.raises(ShapeError, match=r"expected images to augment.*leave augment empty"):
        train(given, TrainingPlan(4, 1, augment=("flip",)))


def test_inputs_without_a_gradient_are_refused_before_training():
    given = Problem(nn.Embedding(5, 3), cross_entropy, 2 * (torch.arange(3),))
    with pytest.raises(ShapeError, match=r"floating-point inputs for adversarial = 0.1; got torch.int64"):
        train(given, TrainingPlan(3, 1, adversarial=0.1))
    train(given, TrainingPlan(3, 1, robust=0.1))
