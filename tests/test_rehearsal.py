"""The search on a cheaper operator nearby: never trusted, sometimes a saving."""

from __future__ import annotations

from typing import final

import numpy as np
import pytest
import torch
from matrices import OUTLIERS, Diagonal

from sharpness import Hessian, Objective, cross_entropy, eigenpairs
from sharpness.errors import NotConvergedError
from sharpness.models import initialised, mlp
from sharpness.operators import SymmetricOperator
from sharpness.random import normal


@final
class Offering(SymmetricOperator):
    """A diagonal that offers another as a cheaper one nearby, and counts what each multiplies."""

    def __init__(self, own: torch.Tensor, near: torch.Tensor, share: float = 0.1) -> None:
        self.own, self.near, self._share = Diagonal(own), Diagonal(near), share

    @property
    def shape(self):
        return self.own.shape

    @property
    def dtype(self):
        return self.own.dtype

    @property
    def device(self):
        return self.own.device

    @property
    def conditions(self):
        return self.own.conditions

    def _product(self, vectors):
        return self.own @ vectors

    def cheaper(self, accuracy):
        return self._share, self.near


def entries(seed: int = 0) -> torch.Tensor:
    return torch.cat([torch.tensor(OUTLIERS), normal(500, key=("bulk",), seed=seed, dtype=torch.float64)]).double()


def test_a_near_operator_leaves_the_exact_one_only_to_certify():
    own = entries()
    operator = Offering(own, own * (1 + 1e-4 * torch.sin(torch.arange(len(own)))))
    pairs = eigenpairs(operator, 4)
    assert pairs.converged.all()
    assert np.allclose(pairs.eigenvalues, own.sort().values.flip(0)[:4].numpy(), rtol=1e-5, atol=0)
    exact = torch.linalg.vector_norm(
        own[:, None] * pairs.vectors - pairs.vectors * torch.tensor(pairs.eigenvalues), dim=0
    )
    assert np.allclose(pairs.residuals, exact.numpy(), rtol=0, atol=1e-10)
    # one to compare, one for each pair, the probe
    assert pairs.products == operator.own.products == 1 + 4 + pairs.probe_products
    assert pairs.conditions["rehearsal"] == {"share": 0.1, "products": operator.near.products}


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude", "both"])
def test_pairs_are_those_of_the_operator_and_not_of_the_one_nearby(which):
    own = torch.cat([entries(), -0.97 * torch.tensor(OUTLIERS).double()])
    near = own * (1 + 5e-4 * torch.cos(torch.arange(len(own))))
    rehearsed, plain = (eigenpairs(Offering(own, near), 3, which, rehearsal=flag) for flag in (True, False))
    assert plain.conditions["rehearsal"] == {} != rehearsed.conditions["rehearsal"]
    assert rehearsed.converged.all()
    # values are right to the square of the residual over the distance to the next
    assert np.allclose(rehearsed.eigenvalues, plain.eigenvalues, rtol=0, atol=2e-5)


def test_an_operator_that_is_not_alike_is_left_after_one_product():
    own = entries()
    operator = Offering(own, entries(seed=1) * 1.1)
    pairs = eigenpairs(operator, 4)
    assert pairs.conditions["rehearsal"] == {}
    assert operator.near.products == 3  # two to lift the leading part of a random vector, one to compare
    assert pairs.products == operator.own.products == eigenpairs(operator, 4, rehearsal=False).products + 1
    assert pairs.converged.all()


def test_a_pair_that_the_one_nearby_does_not_have_is_found_all_the_same():
    own = entries()
    hidden = own.clone()
    own[200] = 0.9 * max(OUTLIERS)  # and 0 for the other: two powers of it hide this from the comparison
    hidden[200] = 0.0
    pairs = eigenpairs(Offering(own, hidden), 4)
    assert np.allclose(pairs.eigenvalues, own.sort().values.flip(0)[:4].numpy(), rtol=1e-5, atol=0)
    assert pairs.converged.all()


def test_a_rehearsal_that_exact_products_refute_begins_the_search():
    own = entries()
    near = own.clone()
    near[1] += 0.05  # the second pair: near enough for the comparison, not for the tolerance
    angle = torch.tensor(0.02).double()
    operator = Offering(own, near)
    rotated = _Rotated(near, angle)
    operator.cheaper = lambda accuracy: (0.1, rotated)
    pairs = eigenpairs(operator, 3, tolerance=1e-3)
    assert pairs.converged.all()
    assert np.allclose(pairs.eigenvalues, own.sort().values.flip(0)[:3].numpy(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rehearsal", [True, False])
def test_what_a_rehearsal_is_blind_to_its_probe_is_not(rehearsal):
    # the rehearsed sequence sees one of two; a probe that begins as it did would be as blind
    own = torch.cat([torch.tensor([5.0, 5.0, 4.0]), torch.linspace(-1, 1, 1000)]).double()
    for seed in range(3):
        pairs = eigenpairs(Offering(own, own), 2, rehearsal=rehearsal, seed=seed)
        assert np.allclose(pairs.eigenvalues, [5.0, 5.0], rtol=0, atol=5e-3)


def test_a_rehearsal_may_find_all_there_is_or_leave_too_little_for_a_search():
    own = torch.linspace(1, 2, 6).double()
    pairs = eigenpairs(Offering(own, own), 6)
    assert np.allclose(pairs.eigenvalues, own.flip(0).numpy(), rtol=0, atol=1e-12)
    assert (pairs.probe_passed, pairs.probe_risk) == (True, 0.0)
    wrong = Offering(entries(), entries() * torch.linspace(1, 1.0005, 510).flip(0))
    for budget in (12, 19, 25):
        with pytest.raises(NotConvergedError) as caught:
            eigenpairs(wrong, 10, max_products=budget, block=8, tolerance=1e-4)
        assert caught.value.partial.products <= budget


class _Rotated(Diagonal):
    """A diagonal whose entries 2 and 300 are mixed by a rotation."""

    def __init__(self, values: torch.Tensor, angle: torch.Tensor) -> None:
        super().__init__(values)
        self._turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])

    def _product(self, vectors):
        turned = vectors.clone()
        turned[[2, 300]] = self._turn @ vectors[[2, 300]]
        images = super()._product(turned)
        images[[2, 300]] = self._turn.T @ images[[2, 300]]
        return images


def learnt(share_hard: float) -> tuple[Objective, torch.Tensor]:
    """A network that has learnt all but a share of its examples: of two far clusters, with some in between."""
    inputs = normal(400, 6, key=("inputs",), seed=0)
    targets = (inputs[:, 0] > 0).long()
    inputs[:, 0] += 4 * (2 * targets - 1)
    hard = int(400 * share_hard)
    inputs[:hard, 0] *= 0.02
    model = initialised(lambda: mlp([6, 8, 2]), seed=0)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        cross_entropy(model(inputs), targets).mean().backward()
        optimiser.step()
    return Objective.from_module(model, cross_entropy, (inputs, targets), chunk_size=150)


def test_the_cheaper_hessian_is_that_of_the_examples_with_the_largest_losses():
    f, theta = learnt(0.1)
    losses = f.losses(theta)
    assert float(losses.mean()) == pytest.approx(f.value(theta), rel=1e-5)
    hessian = Hessian(f, theta)
    share, cheap = hessian.cheaper(1e-3)
    hard = losses >= losses.sort(descending=True).values[round(share * 400) - 1]
    assert int(hard.sum()) == round(share * 400)
    assert losses[~hard].sum() <= 1e-3 * losses.sum()
    v = normal(f.size, key=("v",), seed=0)
    part = Hessian(f.replace(examples=hard), theta)
    assert torch.allclose(cheap @ v, part @ v * share, rtol=1e-5, atol=1e-9)
    assert (cheap @ v - hessian @ v).norm() < 0.02 * (hessian @ v).norm()


def test_no_cheaper_hessian_where_the_loss_does_not_tell_examples_apart_or_few_are_learnt():
    assert Hessian(*learnt(0.5)).cheaper(1e-3) is None
    model = torch.nn.Linear(6, 2)
    data = (normal(40, 6, key=("x",), seed=0), torch.arange(40) % 2)
    scalar, place = Objective.from_module(model, torch.nn.functional.cross_entropy, data)
    assert scalar.losses(place) is None
    assert Hessian(scalar, place).cheaper(1e-3) is None
    batch = torch.nn.Sequential(model, torch.nn.BatchNorm1d(2))
    coupled, place = Objective.from_module(batch, cross_entropy, data, batchnorm="batch")
    assert coupled.losses(place) is None


def test_eigenpairs_of_a_learnt_network_are_those_of_all_examples():
    f, theta = learnt(0.1)
    hessian = Hessian(f.replace(dtype=torch.float64), theta.double())
    dense = hessian @ torch.eye(f.size, dtype=torch.float64)
    pairs = eigenpairs(Hessian(f, theta), 3)
    assert pairs.conditions["rehearsal"]["share"] < 1 / 5
    expected = torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)[:3].numpy()
    assert np.abs(pairs.eigenvalues - expected).max() <= pairs.residuals.max() + 1e-5 * expected[0]
    assert pairs.converged.all()


def test_a_mask_of_examples_leaves_those_where_it_is_true_whatever_the_batches():
    model = torch.nn.Linear(3, 2)
    x, y = normal(10, 3, key=("x",), seed=0), torch.arange(10) % 2
    mask = torch.tensor([True, False] * 5)
    whole, theta = Objective.from_module(model, cross_entropy, (x[mask], y[mask]))
    for data in ((x, y), [(x[:4], y[:4]), (x[4:], y[4:])]):
        part = Objective.from_module(model, cross_entropy, data)[0].replace(examples=mask)
        assert part.examples == 5
        assert part.value(theta) == pytest.approx(whole.value(theta), rel=1e-6)
