"""Ordinary conditions: for each what is asked, the true answer, and how every package is asked for it.

The true answers are dense Hessians in float64 or closed forms, in plain PyTorch and NumPy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from answers import (
    CURVLINOPS,
    EIGENTHINGS,
    FINE,
    LANDSCAPES,
    PYHESSIAN,
    Ask,
    Case,
    Found,
    by_curvlinops,
    by_eigenthings,
    by_pyhessian,
    by_sharpness,
    changes,
    dense_hessian,
    deviation,
    largest,
    largest_by_peers,
    metric,
    moved,
    plane_by_landscapes,
)
from peers import peer
from small_models import (
    UNLABELLED,
    LowRank,
    MeanOutput,
    OneUnused,
    Quadratic,
    TokenMean,
    Tokens,
    WeightNormed,
    classes,
    classifier,
    filled,
    normal,
    own_output,
    real_tokens,
    sentences,
    uniform,
)
from torch import Tensor, nn

import sharpness as sh
from sharpness.journal import NOT_FINITE

EPSILON = 0.01  # of the box of ε-sharpness
EACH = nn.CrossEntropyLoss(reduction="none")  # the loss of each example
OUTLIERS = (10.0, 8.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.5, 2.2, 2.0)
AXES = torch.eye(2).unbind()

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One condition: what is asked for, the true numbers, and how each package finds them."""

    condition: str
    asked: str
    truth: tuple[float, ...]
    ours: Ask
    peers: Mapping[str, Ask]
    tolerance: float = 0.01  # of every number, relative to the true one, or absolute where that is 0

    def right(self, found: Found) -> bool:
        """Whether all numbers given are the true ones."""
        pairs = zip(found.numbers, self.truth, strict=True)
        return all(abs(one - true) <= self.tolerance * (abs(true) or 1.0) for one, true in pairs if one is not None)


# The largest eigenvalue, λ₁


def _largest(condition: str, case: Case, whole: Callable[[Model], Tensor]) -> Row:
    """λ₁ of the Hessian of ``whole(model)``, the loss over all data at once."""
    truth = largest(dense_hessian(case.module, whole))
    return Row(condition, "λ₁", (truth,), lambda: by_sharpness(case), largest_by_peers(case))


def _of_classes(condition: str, module: nn.Module, inputs: Tensor, targets: Tensor, sizes: int | list[int]) -> Row:
    """λ₁ of a classifier's mean cross-entropy over batches of these sizes."""
    batches = list(zip(inputs.split(sizes), targets.split(sizes), strict=True))
    case = Case(module, batches, nn.CrossEntropyLoss(), EACH)
    return _largest(condition, case, lambda model: F.cross_entropy(model(inputs.double()), targets))


def unequal_batches() -> Row:
    return _of_classes("512 examples in batches of 500 and 12", classifier(20), *classes(512, 20), [500, 12])


def padded_tokens() -> Row:
    batches = [sentences(4, longest, 12, seed) for seed, longest in enumerate((12, 6, 1))]

    def whole(model: Model) -> Tensor:
        sums, counts = zip(*(real_tokens(model(tokens), following) for tokens, following in batches), strict=True)
        return sum(sums) / sum(counts)

    case = Case(filled(Tokens()), batches, TokenMean(), real_tokens)
    return _largest("padded tokens: sentences of at most 12, 6 and 1 in three batches", case, whole)


def ignored_targets() -> Row:
    inputs, targets = classes(48, 20)
    targets[24:32] = targets[34:] = UNLABELLED
    batches = list(zip(inputs.split(16), targets.split(16), strict=True))
    module, loss = filled(nn.Linear(20, 3)), nn.CrossEntropyLoss()
    case = Case(module, batches, loss, weight=lambda batch: (batch[1] != UNLABELLED).sum())
    return _largest(
        "ignore_index: 16, 8 and 2 labels in batches of 16", case, lambda m: loss(m(inputs.double()), targets)
    )


def train_mode() -> Row:
    module = classifier(6, nn.BatchNorm1d(5), nn.Dropout()).train()
    nn.init.constant_(module[1].running_var, 2.0)
    return _of_classes("batch norm and dropout left in train mode", module, *classes(64, 6), 32)


def unused_parameter() -> Row:
    return _of_classes("a layer that is never used", filled(OneUnused(6)), *classes(64, 6), 32)


def weight_norm() -> Row:
    by_hand, (inputs, targets) = WeightNormed(6), classes(64, 6)
    row = _of_classes("PyTorch's weight_norm", by_hand.by_library(), inputs, targets, 32)
    dense = dense_hessian(by_hand, lambda model: F.cross_entropy(model(inputs.double()), targets))
    return replace(row, truth=(largest(dense),))


def bfloat16_model() -> Row:
    inputs, targets = classes(64, 6)
    return _of_classes("bfloat16 weights", classifier(6).bfloat16(), inputs.bfloat16(), targets, 32)


def second_analysis() -> Row:
    inputs, targets = classes(64, 6)
    row = _of_classes("the second of two analyses of one model", classifier(6), inputs, targets, 64)
    case = Case(classifier(6), [(inputs, targets)], nn.CrossEntropyLoss(), EACH)

    def ours() -> Found:
        first, second = (sh.Hessian(*case.objective()) for _ in range(2))
        sh.eigenpairs(first, 1)
        return Found(sh.eigenpairs(second, 1).eigenvalues.tolist())

    def pyhessian() -> Found:
        make, module = peer("pyhessian").hessian, case.copy().module
        first, second = (make(module, case.mean_loss, data=case.batches[0], cuda=False) for _ in range(2))
        first.eigenvalues(**FINE)
        return Found(second.eigenvalues(**FINE)[0])

    def again(by: Callable[[Case], Found]) -> Ask:
        def ask() -> Found:
            own = case.copy()
            by(own)
            return by(own)

        return ask

    peers = {PYHESSIAN: pyhessian, EIGENTHINGS: again(by_eigenthings), CURVLINOPS: again(by_curvlinops)}
    return replace(row, ours=ours, peers=peers)


# Solvers: spectra that are known


def _diagonal(curvature: Tensor) -> Case:
    """A model whose Hessian is diag(curvature)."""
    ones = curvature.new_ones(4, 1)
    return Case(Quadratic(curvature, torch.ones_like(curvature)), [(ones, ones)], MeanOutput(), own_output)


def ghost_copies(size: int = 20_000) -> Row:
    case, k = _diagonal(torch.cat([torch.tensor(OUTLIERS), 0.3 * normal(size - len(OUTLIERS), seed=0)])), len(OUTLIERS)

    def eigenthings() -> Found:
        many, few = by_eigenthings(case.copy(), k, steps=100), by_eigenthings(case.copy(), k)
        return Found(many.numbers, f"{many.remark}; {few.remark}: {', '.join(f'{value:.3g}' for value in few.numbers)}")

    peers: dict[str, Ask] = {
        PYHESSIAN: lambda: by_pyhessian(case.copy(), k),
        EIGENTHINGS: eigenthings,
        CURVLINOPS: lambda: by_curvlinops(case.copy(), k),
    }
    return Row("ten outliers, 100 Lanczos steps", "λ₁ to λ₁₀", OUTLIERS, lambda: by_sharpness(case, k), peers)


def near_tie() -> Row:
    case = _diagonal(torch.cat([torch.tensor([1.0, -0.999]), uniform(998, seed=0) - 0.5]))
    peers: dict[str, Ask] = {
        PYHESSIAN: lambda: by_pyhessian(case.copy(), 2),
        EIGENTHINGS: lambda: by_eigenthings(case.copy(), 2, which="LM"),
        CURVLINOPS: lambda: by_curvlinops(case.copy(), 2, which="BE"),
    }
    return Row("a near-tie of 1 and -0.999", "λ₁ and λₙ", (1.0, -0.999), lambda: by_sharpness(case, 1, "both"), peers)


def multiple_eigenvalue() -> Row:
    values = (3.0, 3.0, 3.0, 2.0)
    case = _diagonal(torch.cat([torch.tensor(values), uniform(996, seed=0)]).double())
    k = len(values)
    peers: dict[str, Ask] = {
        PYHESSIAN: lambda: by_pyhessian(case.copy(), k),
        EIGENTHINGS: lambda: by_eigenthings(case.copy(), k),
        CURVLINOPS: lambda: by_curvlinops(case.copy(), k),
    }
    return Row("an eigenvalue of multiplicity 3, in float64", "λ₁ to λ₄", values, lambda: by_sharpness(case, k), peers)


# Weights that are zero


def zero_weights() -> Row:
    inputs, noise = normal(20, 3, seed=100), normal(20, 1, seed=101)
    targets = inputs @ torch.tensor([[1.0], [-1.0], [0.5]]) + 0.1 * noise
    case = Case(LowRank(3, 2), [(inputs, targets)], nn.MSELoss(), lambda output, target: (output - target) ** 2)
    first = largest(dense_hessian(case.module, lambda m: F.mse_loss(m(inputs.double()), targets.double())))
    loss, highest = _low_rank_losses(case.module, inputs.double(), targets.double())

    def ours() -> Found:
        f, theta = case.objective()
        plane = sh.evaluate_plane({"train": f}, sh.random_plane(theta, f.space), [-1, 0, 1], [-1, 0, 1]).loss[0]
        sharpness = sh.epsilon_sharpness(f, theta, epsilon=EPSILON).sharpness
        return Found([*by_sharpness(case).numbers, sharpness, plane[1, 1] if np.isfinite(plane).all() else np.nan])

    def landscapes() -> Found:
        own = case.copy()
        return Found([None, None, peer("loss_landscapes").random_plane(own.module, metric(own), steps=2)[1, 1]])

    def padded(ask: Ask) -> Ask:
        return lambda: Found([*ask().numbers, None, None])

    return Row(
        "zero weights: a bias and LoRA's B",
        "λ₁, ε-sharpness in %, loss amid a filter-normalised plane",
        (first, 100 * (highest - loss) / (1 + loss), loss),
        ours,
        {name: padded(ask) for name, ask in largest_by_peers(case).items()} | {LANDSCAPES: landscapes},
    )


def _low_rank_losses(module: LowRank, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """f, and its maximum in the box, at a corner: f is convex in A, and in B and b, while the others are held."""
    parts = [part.detach().double() for part in (module.down, module.up, module.base.bias)]
    theta = torch.cat([part.reshape(-1) for part in parts])
    corners = torch.tensor([[0.0] * len(theta), *itertools.product((-1.0, 1.0), repeat=len(theta))]).double()
    places = theta + EPSILON * (theta.abs() + 1) * corners
    down, up, bias = (
        place.view(-1, *part.shape)
        for place, part in zip(places.split([p.numel() for p in parts], 1), parts, strict=True)
    )
    outputs = inputs @ module.base.weight.double().T + inputs @ down.mT @ up.mT + bias[:, None]
    losses = (outputs - targets).square().mean((1, 2)).tolist()
    return losses[0], max(losses)


# What is the caller's


def callers_own() -> Row:
    data = classes(64, 6)

    def trained() -> Case:
        module = classifier(6, nn.BatchNorm1d(5), nn.Dropout()).train()
        nn.init.constant_(module[1].bias, 0.5)  # loss-landscapes divides by its length
        module[0].bias.requires_grad_(False)
        case = Case(module, [data], nn.CrossEntropyLoss(), EACH)
        case.mean_loss(module(data[0]), data[1]).backward()
        return case

    def after(analyse: Callable[[Case], object], expected: type[Exception] | tuple[()] = Exception) -> Ask:
        def ask() -> Found:
            case = trained()
            return changes(case.module, lambda: analyse(case), expected)

        return ask

    def plane(case: Case) -> None:
        peer("loss_landscapes").random_plane(case.module, metric(case), steps=3)

    peers = {
        PYHESSIAN: after(by_pyhessian),
        EIGENTHINGS: after(by_eigenthings),
        CURVLINOPS: after(by_curvlinops),
        LANDSCAPES: after(plane),
    }
    asked = "weights, buffers, gradients, modes, random states that changed"
    return Row("a model in training", asked, (0,), after(_everything, expected=()), peers)


def _everything(case: Case) -> None:
    """What this package can do with a model, and an analysis that fails."""
    f, theta = case.objective()
    hessian = sh.Hessian(f, theta)
    sh.eigenpairs(hessian, 2)
    sh.trace(hessian, samples=2)
    sh.spectral_density(hessian, probes=1, steps=3)
    sh.epsilon_sharpness(f, theta)
    sh.evaluate_plane({"train": f}, sh.random_plane(theta, f.space), [-1, 0, 1], [0, 1])
    with suppress(sh.NotConvergedError):
        sh.eigenpairs(hessian, 2, max_products=4)


# Planes and lines


def _bowl(cliff: float = np.inf) -> Case:
    """½(w₁² + 3w₂²), at (-1, 0.5); NaN where w₁ + w₂ is more than ``cliff`` above its value there."""
    start, ones = torch.tensor([-1.0, 0.5]), torch.ones(4, 1)
    return Case(Quadratic(torch.tensor([1.0, 3.0]), start, cliff - 0.5), [(ones, ones)], MeanOutput(), own_output)


def _height(alphas: np.ndarray, betas: np.ndarray, cliff: float = np.inf) -> np.ndarray:
    """Its value α and β away along w₁ and w₂."""
    values = 0.5 * ((alphas - 1) ** 2 + 3 * (betas + 0.5) ** 2)
    return np.where(alphas + betas > cliff, np.nan, values)


def nan_in_a_corner() -> Row:
    cliff = 1.3
    case = _bowl(cliff)

    def ours() -> Found:
        f, theta = case.objective()
        axis = np.linspace(0, 1, 5)
        plane = sh.evaluate_plane({"train": f}, sh.Plane(theta, *AXES), axis, axis)
        exact = _height(axis[:, None], axis, cliff)
        unmarked = (plane.status == NOT_FINITE) != np.isnan(exact)
        misplaced, error = deviation(plane.loss[0], exact)
        return Found([misplaced + int(unmarked.sum()), error])

    def landscapes() -> Found:
        i, j = np.indices((5, 5))
        there = _height(i / 5, (j + (i % 2 == 0)) / 5, cliff)  # where it really goes
        return Found(deviation(plane_by_landscapes(case, *AXES, steps=5), there))

    asked = "points wrongly NaN or not, largest error of the others"
    return Row("NaN in a corner of a plane", asked, (0, 0), ours, {LANDSCAPES: landscapes}, tolerance=1e-5)


def oblong_plane() -> Row:
    case = _bowl()

    def ours() -> Found:
        f, theta = case.objective()
        alphas, betas = np.linspace(-1, 1, 3), np.linspace(0, 2, 5)
        plane = sh.evaluate_plane({"train": f}, sh.Plane(theta, *AXES), alphas, betas)
        return Found([deviation(plane.loss[0], _height(alphas[:, None], betas))[1]])

    def landscapes() -> Found:
        i, j = np.indices((5, 5)) / 5
        found = plane_by_landscapes(case, *AXES, steps=5)
        return Found([deviation(found, _height(i, j))[1]], "of 5 × 5 points: it knows squares only")

    return Row("a plane of 3 × 5 points", "largest error", (0,), ours, {LANDSCAPES: landscapes}, tolerance=1e-5)


def ends_of_a_line() -> Row:
    case = _bowl()
    truth = tuple(_height(np.array([0.0, 1.0]), np.zeros(2)).tolist())

    def ours() -> Found:
        f, theta = case.objective()
        line = sh.evaluate_line({"train": f}, sh.Line(theta, theta + AXES[0]), np.linspace(0, 1, 5))
        return Found(line.loss[0, [0, -1]].tolist())

    def landscapes() -> Found:
        ends = case.copy().module, moved(case.module, AXES[0])
        return Found(peer("loss_landscapes").linear_interpolation(*ends, metric(case), steps=5)[[0, -1]].tolist())

    return Row("a line of 5 points", "loss at α = 0 and 1", truth, ours, {LANDSCAPES: landscapes}, tolerance=1e-5)


ROWS: tuple[Callable[[], Row], ...] = (
    unequal_batches,
    padded_tokens,
    ignored_targets,
    ghost_copies,
    near_tie,
    multiple_eigenvalue,
    train_mode,
    unused_parameter,
    zero_weights,
    weight_norm,
    bfloat16_model,
    second_analysis,
    callers_own,
    nan_in_a_corner,
    oblong_plane,
    ends_of_a_line,
)
