"""Eigenpairs: values against dense references, what is said about them, and doubts by name."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import OUTLIERS, Diagonal, Noisy, Poisoned, disorder, random_symmetric, wanted, with_spectrum
from scipy.sparse.linalg import eigsh
from torch import nn

from sharpness import store
from sharpness.errors import NonFiniteError, NotConvergedError, ShapeError
from sharpness.objective import Objective, cross_entropy
from sharpness.operators import Dense, Hessian
from sharpness.spectrum import eigenpairs
from sharpness.spectrum.audit import agrees, images_of, rayleigh_ritz
from sharpness.spectrum.lanczos import KrylovBasis
from sharpness.spectrum.rows import PLACES, Rows
from sharpness.spectrum.search import PROBE_RISK, PROBE_STEPS, forecast, hidden, innermost, select
from sharpness.spectrum.solver import ENDS

FEW = settings(max_examples=30, deadline=None, derandomize=True, database=None)


# Values


@FEW
@given(n=st.integers(1, 90), place=st.sampled_from(PLACES), data=st.data())
def test_random_matrices_give_the_values_of_a_dense_solver(n, place, data):
    k = data.draw(st.integers(1, min(n, 8)), label="k")
    which, seed = data.draw(st.sampled_from(ENDS), label="which"), data.draw(st.integers(0, 5), label="seed")
    block = data.draw(st.integers(1, min(n, 5)), label="block")
    matrix = random_symmetric(n, seed)
    pairs = eigenpairs(Dense(matrix), k, which, tolerance=1e-8, seed=seed, block=block, basis=place)
    expected = wanted(np.linalg.eigvalsh(matrix.numpy()), k, which)
    # an error of a value is at most its residual; 1e-12 is the rounding of the dense solver
    assert np.abs(pairs.eigenvalues - expected).max() <= 1e-8 * np.abs(expected).max() + 1e-12
    assert (np.diff(pairs.eigenvalues) <= 0).all()
    assert pairs.converged.all()
    assert pairs.which == which


@FEW
@given(
    counts=st.lists(st.integers(0, 12), min_size=2, max_size=7).filter(lambda c: sum(c) >= 1),
    k=st.integers(1, 6),
    which=st.sampled_from(ENDS),
    block=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_multiple_eigenvalues_are_found_as_often_as_they_occur(counts, k, which, block, seed):
    # few distinct values: a probe of 8 steps then spans every eigenspace that the first sequence saw only once
    spectrum = [float(value - 2) for value, count in enumerate(counts) for _ in range(count)]
    k = min(k, len(spectrum))
    block = min(block, len(spectrum))
    pairs = eigenpairs(Dense(with_spectrum(spectrum, seed)), k, which, tolerance=1e-6, seed=seed, block=block)
    expected = wanted(spectrum, k, which)
    scale = max(np.abs(spectrum).max(), 1e-12)
    if which == "magnitude":  # ±λ tie: either is right
        assert np.allclose(np.sort(np.abs(pairs.eigenvalues)), np.sort(np.abs(expected)), rtol=0, atol=1e-6 * scale)
    else:
        assert np.allclose(pairs.eigenvalues, expected, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_all_pairs_of_a_matrix_are_its_dense_decomposition(n, which):
    matrix = random_symmetric(n, seed=n)
    pairs = eigenpairs(Dense(matrix), n, which, tolerance=1e-10)
    assert pairs.eigenvalues.shape == pairs.residuals.shape == pairs.converged.shape == (n,)
    assert np.allclose(pairs.eigenvalues, np.linalg.eigvalsh(matrix.numpy())[::-1], rtol=0, atol=1e-12)
    rebuilt = (pairs.vectors * torch.as_tensor(pairs.eigenvalues.copy())) @ pairs.vectors.T
    assert torch.allclose(rebuilt, matrix, rtol=0, atol=1e-11)


@pytest.mark.parametrize("k", [10, 30])
def test_every_outlier_of_a_large_float32_matrix_is_found_once(k):
    bulk = 0.005 * torch.randn(20_000 - 10, generator=torch.Generator().manual_seed(0))
    operator = Diagonal(torch.cat([torch.tensor(OUTLIERS), bulk]))
    pairs = eigenpairs(operator, k)
    assert np.allclose(pairs.eigenvalues[:10], OUTLIERS, rtol=0, atol=1e-3 * 10.0)  # the tolerance times max |λ|
    assert pairs.eigenvalues[10:].max(initial=0.0) < 0.03  # no ghost: the 11th largest entry is about 0.02
    assert pairs.converged.all()
    assert pairs.probe_passed


def test_eigenvalues_of_nearly_equal_magnitude_and_opposite_sign_are_kept_apart():
    operator = Dense(with_spectrum([1.0, -0.9999, *np.linspace(-0.5, 0.5, 100)]))
    for which, expected in (
        ("magnitude", [1.0, -0.9999]),
        ("largest", [1.0, 0.5]),
        ("smallest", [-0.5, -0.9999]),
    ):
        pairs = eigenpairs(operator, 2, which, tolerance=1e-6)
        assert np.allclose(pairs.eigenvalues, expected, rtol=0, atol=1e-6)
    assert np.allclose(eigenpairs(operator, 1, "both", tolerance=1e-6).eigenvalues, [1.0, -0.9999], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_eigenvalue_of_multiplicity_three_is_found_three_times(dtype):
    entries = torch.cat([torch.tensor([5.0, 5.0, 5.0, 4.0]), torch.linspace(-1, 1, 1000)]).to(dtype)
    pairs = eigenpairs(Diagonal(entries), 4)
    assert np.allclose(pairs.eigenvalues, [5, 5, 5, 4], rtol=0, atol=5e-3)  # the tolerance times max |λ|
    eps = torch.finfo(dtype).eps
    assert disorder(pairs.vectors.T) < 50 * eps
    assert (pairs.vectors[:3, :3].square().sum(0) > 1 - 1e-4).all()  # all within the threefold eigenspace


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("scale", [0.0, 1.0, -2.5])
def test_multiples_of_the_identity_have_one_eigenvalue_as_often_as_asked(scale, which):
    pairs = eigenpairs(Dense(scale * torch.eye(60, dtype=torch.float64)), 5, which)
    count = 10 if which == "both" else 5
    assert np.allclose(pairs.eigenvalues, [scale] * count, rtol=0, atol=1e-14)
    assert pairs.residuals.max() < 1e-14
    assert pairs.converged.all()
    assert disorder(pairs.vectors.T) < 1e-13


@pytest.mark.parametrize(("which", "mirrored"), [("largest", "smallest"), ("both", "both"), ("magnitude", "magnitude")])
def test_the_negated_matrix_has_the_negated_pairs(which, mirrored):
    matrix = random_symmetric(80, seed=4)
    ours = eigenpairs(Dense(matrix), 4, which, tolerance=1e-10).eigenvalues
    theirs = eigenpairs(Dense(-matrix), 4, mirrored, tolerance=1e-10).eigenvalues
    assert np.allclose(ours, -theirs[::-1], rtol=0, atol=1e-9)


def test_scaling_and_shifting_the_matrix_scales_and_shifts_its_values():
    matrix = random_symmetric(80, seed=5)
    plain = eigenpairs(Dense(matrix), 4, tolerance=1e-10).eigenvalues
    changed = eigenpairs(Dense(1e-6 * matrix + 3e-6 * torch.eye(80, dtype=torch.float64)), 4, tolerance=1e-10)
    assert np.allclose(changed.eigenvalues, 1e-6 * plain + 3e-6, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("which", "theirs"), [("largest", "LA"), ("smallest", "SA"), ("magnitude", "LM")])
def test_scipy_finds_the_same_values_through_to_scipy(which, theirs):
    operator = Dense(random_symmetric(300, seed=6))
    found = eigsh(operator.to_scipy(), 6, which=theirs, return_eigenvectors=False, v0=np.ones(300), tol=1e-10)
    ours = eigenpairs(operator, 6, which, tolerance=1e-10).eigenvalues
    assert np.allclose(ours, np.sort(found)[::-1], rtol=0, atol=1e-8)


def test_pairs_of_a_hessian_are_those_of_its_dense_matrix():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = (torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3)
    operator = Hessian(*Objective.from_module(model, cross_entropy, data))
    dense = (operator @ torch.eye(operator.shape[0], dtype=torch.float64)).numpy()
    pairs = eigenpairs(operator, 5, "both", tolerance=1e-8)
    assert np.allclose(pairs.eigenvalues, wanted(np.linalg.eigvalsh(dense), 5, "both"), rtol=0, atol=1e-9)
    assert pairs.conditions["operator"] == "hessian"


# What is said about them


def test_residuals_are_those_of_the_returned_pairs_by_hand():
    matrix = random_symmetric(150, seed=1)
    pairs = eigenpairs(Dense(matrix), 6, "both", tolerance=1e-5)
    values = torch.as_tensor(pairs.eigenvalues.copy())
    by_hand = torch.linalg.vector_norm(matrix @ pairs.vectors - pairs.vectors * values, dim=0).numpy()
    assert pairs.residuals.max() > 1e-9  # far above the rounding that is allowed here
    assert np.allclose(pairs.residuals, by_hand, rtol=0, atol=1e-12)
    assert disorder(pairs.vectors.T) < 1e-13


def test_float32_residuals_agree_with_float64_by_hand_to_float32_rounding():
    matrix = random_symmetric(150, seed=1, dtype=torch.float32)
    pairs = eigenpairs(Dense(matrix), 6, tolerance=1e-4)
    vectors = pairs.vectors.double()
    by_hand = torch.linalg.vector_norm(matrix.double() @ vectors - vectors * torch.as_tensor(pairs.eigenvalues), dim=0)
    scale = np.abs(pairs.eigenvalues).max()
    # a float32 product of 150 terms and vectors rounded to float32: a few eps of ‖A‖
    assert np.abs(pairs.residuals - by_hand.numpy()).max() < 20 * torch.finfo(torch.float32).eps * scale
    assert pairs.vectors.dtype == torch.float32
    assert pairs.eigenvalues.dtype == pairs.residuals.dtype == np.float64


def test_an_eigenvalue_lies_within_each_residual():
    matrix = random_symmetric(150, seed=2)
    true = np.linalg.eigvalsh(matrix.numpy())
    pairs = eigenpairs(Dense(matrix), 6, tolerance=3e-2)
    nearest = np.abs(true[:, None] - pairs.eigenvalues).min(axis=0)
    assert (nearest <= pairs.residuals + 1e-12).all()


@pytest.mark.parametrize("which", ENDS)
def test_recurrence_residuals_bound_the_exact_ones_to_rounding(which):
    matrix = random_symmetric(200, seed=3)
    pairs = eigenpairs(Dense(matrix), 5, which, tolerance=1e-4)
    assert (pairs.residuals <= pairs.recurrence_residuals + 1e-10).all()


def test_converged_means_a_residual_within_tolerance_of_the_largest_magnitude():
    # wanted are the largest (up to 1), but the scale of rounding is the largest magnitude seen (100)
    operator = Dense(with_spectrum([-100.0, 1.0, 0.9, *np.linspace(-0.5, 0.5, 150)]))
    pairs = eigenpairs(operator, 2, tolerance=1e-3)
    assert (pairs.residuals <= 1e-3 * 100.5).all()
    assert pairs.converged.all()
    assert np.abs(pairs.eigenvalues - [1.0, 0.9]).max() <= 0.1


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("which", ENDS)
def test_every_product_is_counted(which, block):
    operator = Diagonal(torch.linspace(-1, 1, 500, dtype=torch.float64) ** 3)
    seen = []
    pairs = eigenpairs(
        operator, 4, which, block=block, max_vectors=20, progress=lambda done, total, note: seen.append(done)
    )
    assert pairs.restarts > 0
    assert pairs.products == operator.products
    assert 0 < pairs.probe_products < pairs.products
    assert seen == sorted(seen)
    assert seen[-1] + 1 == pairs.products  # and the one of the audit


def test_products_of_a_second_attempt_are_counted_too(monkeypatch):
    bases = []

    def recorded(*args, **kwargs):
        bases.append(KrylovBasis(*args, **kwargs))
        return bases[-1]

    monkeypatch.setattr("sharpness.spectrum.search.KrylovBasis", recorded)
    operator = Noisy(torch.linspace(-1, 1, 120, dtype=torch.float64) ** 5, 8e-7)
    with pytest.raises(NotConvergedError) as caught:  # exact products refute the recurrence: a second, tighter attempt
        eigenpairs(operator, 3, tolerance=1e-6)
    assert len(bases) == 2
    assert caught.value.partial.products == operator.products == sum(basis.products for basis in bases)


def test_few_vectors_suffice_when_restarts_do_the_rest():
    matrix = with_spectrum(np.linspace(-1, 1, 300) ** 5)
    pairs = eigenpairs(Dense(matrix), 4, max_vectors=4 + PROBE_STEPS + 2, tolerance=1e-6)
    assert pairs.restarts > 3
    assert pairs.conditions["max_vectors"] == 14
    assert np.allclose(pairs.eigenvalues, np.linspace(-1, 1, 300)[:-5:-1] ** 5, rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_the_least_vectors_allowed_suffice_for_a_probe(block):
    matrix = with_spectrum(np.linspace(-1, 1, 300) ** 5)
    least = 4 + max(PROBE_STEPS + 1 + block, 2 * block)
    pairs = eigenpairs(Dense(matrix), 4, max_vectors=least, block=block, max_products=2000)
    assert pairs.probe_passed
    assert np.allclose(pairs.eigenvalues, np.linspace(-1, 1, 300)[:-5:-1] ** 5, rtol=0, atol=1e-3)
    with pytest.raises(ShapeError, match=f"max_vectors >= {least}"):
        eigenpairs(Dense(matrix), 4, max_vectors=least - 1, block=block)


def test_a_probe_that_ends_early_says_no_more_than_it_knows():
    # what is left of a random vector after one product is below rounding in float32: the probe ends, the risk does not
    entries = torch.cat([torch.tensor([1000.0]), 1e-6 * torch.linspace(-1, 1, 200_000)])
    pairs = eigenpairs(Diagonal(entries), 1)
    assert pairs.probe_products == 1
    assert pairs.probe_risk > 1e-6
    assert eigenpairs(Diagonal(torch.zeros(50)), 1).probe_risk == 0.0


def test_a_start_that_is_blind_to_the_largest_eigenvector_is_rescued_by_the_probe():
    entries = torch.cat([torch.tensor([10.0]), torch.linspace(-1, 1, 199)]).double()
    blind = torch.ones(200, dtype=torch.float64)
    blind[0] = 0.0  # and stays exactly 0 under a diagonal matrix
    pairs = eigenpairs(Diagonal(entries), 2, tolerance=1e-6, start=blind)
    assert pairs.probe_passed
    # the first probe found it and the second nothing
    assert pairs.probe_products > eigenpairs(Diagonal(entries), 2, tolerance=1e-6).probe_products
    assert np.allclose(pairs.eigenvalues, [10.0, 1.0], rtol=0, atol=1e-5)


def test_a_hidden_eigenvector_stays_hidden_as_seldom_as_the_risk_says():
    # Lanczos from many random vectors, stopped as soon as the risk for eigenvalues from 0.9 on is below r: how often
    # has the eigenvalue 0.9 itself not shown by then?
    operator = Diagonal(torch.cat([torch.tensor([0.9]), torch.linspace(-0.5, 0.5, 1999)]).double())
    hidden_at = {0.3: 0, 0.1: 0}
    trials, steps = 400, []
    for seed in range(trials):
        basis = KrylovBasis(operator, 30, seed)
        for risk in hidden_at:
            while True:
                basis.expand(basis.pending)
                seen = basis.ritz().values[-1] > 0.89
                if seen or hidden(basis.projected, basis.border[0, -1], [0.89], 2000) <= risk:
                    break
            hidden_at[risk] += not seen
        steps.append(basis.products)
    assert max(steps) < 29
    for risk, count in hidden_at.items():
        assert count / trials <= risk + 3 * np.sqrt(risk * (1 - risk) / trials)
    assert hidden_at[0.3] > 0.02 * trials  # or the bound would say nothing


def test_the_risk_of_a_hidden_pair_is_said_and_stored(tmp_path):
    entries = torch.cat([torch.tensor(OUTLIERS), torch.linspace(-0.1, 0.1, 20_000)])
    easy = eigenpairs(Diagonal(entries), 4)  # the others are far below the fourth
    hard = eigenpairs(Diagonal(torch.linspace(0, 1, 20_000)), 1, tolerance=1e-2)  # there are many near the first
    assert 0 < easy.probe_risk <= PROBE_RISK
    assert easy.probe_products < PROBE_STEPS
    assert hard.probe_risk > PROBE_RISK
    assert hard.probe_products == PROBE_STEPS
    store.save(easy, tmp_path / "pairs.h5")
    assert store.load(tmp_path / "pairs.h5").probe_risk == easy.probe_risk
    assert eigenpairs(Dense(random_symmetric(5)), 5).probe_risk == 0.0  # nowhere to hide


def test_the_edges_beyond_which_a_pair_is_wanted():
    found = np.array([-4.0, -3.0, 1.0, 3.0])
    assert innermost(found, "largest") == [-4.0]
    assert innermost(found, "smallest") == [3.0]
    assert innermost(found, "magnitude") == [-1.0, 1.0]
    assert innermost(found, "both") == [-3.0, 1.0]
    assert innermost(found[:1], "both") == [-4.0]


def test_the_same_seed_gives_the_same_bits():
    entries = torch.cat([torch.tensor(OUTLIERS), torch.linspace(-1, 1, 3000)])
    first, second = (eigenpairs(Diagonal(entries), 12, seed=7) for _ in range(2))
    assert first.eigenvalues.tobytes() == second.eigenvalues.tobytes()
    assert first.residuals.tobytes() == second.residuals.tobytes()
    assert torch.equal(first.vectors, second.vectors)
    assert first.products == second.products


def test_another_seed_starts_elsewhere_and_finds_the_same_values():
    operator = Dense(random_symmetric(150, seed=8))
    first, second = (eigenpairs(operator, 3, tolerance=1e-9, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.vectors, second.vectors)
    assert np.allclose(first.eigenvalues, second.eigenvalues, rtol=0, atol=1e-10)


def test_global_random_state_is_left_alone():
    torch.manual_seed(3)
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    eigenpairs(Dense(random_symmetric(50)), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == legacy).all()


# Blocks, and a basis in host memory


def test_a_block_sees_as_many_copies_of_an_eigenvalue_as_it_has_vectors():
    entries = torch.cat([torch.tensor([5.0, 5.0, 5.0, 4.0]), torch.linspace(-1, 1, 1000)]).double()
    found = {block: eigenpairs(Diagonal(entries), 2, block=block, max_vectors=60) for block in (1, 3)}
    assert [pairs.eigenvalues.round(3).tolist() for pairs in found.values()] == [[5.0, 5.0], [5.0, 5.0]]
    # one vector takes 4 for the second, until a probe finds the second 5; three need no correction
    assert found[1].probe_products > found[3].probe_products
    assert found[3].probe_products <= PROBE_STEPS


@pytest.mark.parametrize("block", [1, 2, 4])
def test_a_block_is_multiplied_in_one_call(block):
    operator = Diagonal(torch.cat([torch.tensor(OUTLIERS), torch.linspace(-1, 1, 500)]))
    pairs = eigenpairs(operator, 5, block=block)
    assert operator.widths[: 5 // block] == [block] * (5 // block)
    assert max(operator.widths) == block  # and fewer where a row of it does not matter any more
    assert operator.widths[-pairs.probe_products - 1 :] == [1] * (pairs.probe_products + 1)
    assert sum(operator.widths) == pairs.products
    assert pairs.conditions["block"] == block


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("which", ENDS)
def test_a_basis_in_host_memory_gives_the_same_pairs(which, block, monkeypatch):
    monkeypatch.setattr("sharpness.spectrum.rows.TILE_BYTES", 20_000)  # some 60 columns of a basis
    operator = Dense(random_symmetric(200, seed=9))
    mine, theirs = (eigenpairs(operator, 4, which, block=block, basis=place) for place in PLACES)
    assert mine.products == theirs.products
    assert np.allclose(mine.eigenvalues, theirs.eigenvalues, rtol=0, atol=1e-9)  # rounding, grown over all steps
    assert np.allclose(mine.residuals, theirs.residuals, rtol=0, atol=1e-7)
    overlaps = (mine.vectors * theirs.vectors).sum(0).abs()
    assert torch.allclose(overlaps, torch.ones_like(overlaps), rtol=0, atol=1e-9)
    assert (mine.conditions["basis"], theirs.conditions["basis"]) == PLACES


# Warm start


def outliers(rotation=0.0, n=3000):
    """A matrix with outliers whose eigenvectors are turned by ``rotation`` towards random directions."""
    values = torch.cat([torch.tensor(OUTLIERS), 0.5 * torch.rand(n, generator=torch.Generator().manual_seed(0))])
    turned = torch.randn(n + 10, 10, generator=torch.Generator().manual_seed(1)).double()
    turned = turned / turned.norm(dim=0)
    vectors, _ = torch.linalg.qr(torch.eye(n + 10, 10, dtype=torch.float64) + rotation * turned)
    return Diagonal(values.double()), vectors


def test_near_vectors_save_products_and_the_nearer_the_more():
    operator, _ = outliers()
    cold = eigenpairs(operator, 5)
    warm = [eigenpairs(operator, 5, start=outliers(turn)[1][:, :5]) for turn in (0.3, 0.03, 0.003)]
    steps = [pairs.products - pairs.probe_products for pairs in (cold, *warm)]
    assert steps[0] > steps[1] > steps[2] >= steps[3]
    assert steps[3] <= 0.75 * steps[0]


@pytest.mark.parametrize("block", [1, 2, 7])
def test_eigenvectors_themselves_converge_in_as_many_steps_as_there_are(block):
    operator, vectors = outliers()
    pairs = eigenpairs(operator, 5, start=vectors[:, :5], tolerance=1e-10, block=block)
    assert np.allclose(pairs.eigenvalues, OUTLIERS[:5], rtol=0, atol=1e-9)
    # an invariant space of 5 vectors, of which blocks of 7 have 2 rows to fill
    assert pairs.products <= {1: 5, 2: 6, 7: 7}[block] + PROBE_STEPS + 1
    assert pairs.conditions["warm_start"]


def test_a_start_may_be_the_pairs_of_a_neighbour_or_one_vector_of_any_length_and_type():
    operator, vectors = outliers()
    pairs = eigenpairs(operator, 3, start=vectors[:, :3], tolerance=1e-8)
    again = eigenpairs(operator, 3, start=pairs, tolerance=1e-8)
    assert again.products <= pairs.products
    one = eigenpairs(operator, 1, start=1e6 * vectors[:, 0].float(), tolerance=1e-8)
    assert one.products < eigenpairs(operator, 1, tolerance=1e-8).products
    assert not eigenpairs(operator, 1).conditions["warm_start"]


@pytest.mark.parametrize(
    ("start", "error", "expected"),
    [
        (torch.ones(7), ShapeError, r"start of shape \(20,\) or \(20, j\)"),
        (torch.ones(20, 2, 2), ShapeError, "start of shape"),
        (torch.ones(20, 0), ShapeError, "start of shape"),
        (np.ones(20), ShapeError, "got ndarray"),
        (torch.zeros(20), ShapeError, "other than zero"),
        (torch.eye(20)[:, :3] * torch.tensor([1.0, 0.0, 1.0]), ShapeError, "other than zero"),
        (torch.full((20,), float("nan")), NonFiniteError, "finite start"),
    ],
)
def test_starts_that_are_none_are_refused_before_any_product(start, error, expected):
    operator = Diagonal(torch.arange(20.0))
    with pytest.raises(error, match=expected):
        eigenpairs(operator, 3, start=start)
    assert operator.products == 0


def test_pairs_from_a_file_which_holds_no_vectors_are_no_start():
    operator = Diagonal(torch.arange(20.0))
    stored = replace(eigenpairs(operator, 3), vectors=None)
    with pytest.raises(ShapeError, match="files hold none"):
        eigenpairs(operator, 3, start=stored)


# The floor that rounding sets


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4.7e-7), (torch.float64, 8e-16)])
def test_a_tolerance_that_no_product_meets_is_refused_before_any(dtype, tolerance):
    operator = Diagonal(torch.arange(20.0, dtype=dtype))
    with pytest.raises(ShapeError, match=r"tolerance >= .*float64"):
        eigenpairs(operator, 3, tolerance=tolerance)
    assert operator.products == 0


@pytest.mark.parametrize("noise", [1e-4, 1e-7])
def test_below_the_floor_nothing_is_tried_for_long(noise):
    spectrum = torch.linspace(-1, 1, 400, dtype=torch.float64) ** 5
    exact = eigenpairs(Diagonal(spectrum), 3, tolerance=noise)
    with pytest.raises(NotConvergedError, match=r"Rounding in the products sets a floor .* float64") as caught:
        eigenpairs(Noisy(spectrum, noise), 3, tolerance=1e-10)
    partial = caught.value.partial
    assert partial.products <= exact.products + 15  # a few steps beyond what the noise allows
    # of three errors in products, weighted by 1 to 2 and summed, beside that of the vector itself
    assert 0.5 * noise <= partial.floor <= 5 * noise
    assert partial.residuals.max() <= 5 * noise
    assert not partial.converged.any()
    assert not partial.audit_agrees.all()
    assert f"disagrees with the recurrence for pairs {', '.join(map(str, partial.doubted))}." in str(caught.value)


def test_a_tight_tolerance_spends_one_product_on_the_floor_and_an_ordinary_one_none():
    matrix = random_symmetric(120, dtype=torch.float32)
    loose, tight = (eigenpairs(Dense(matrix), 120, tolerance=tolerance) for tolerance in (1e-3, 1e-5))
    assert tight.products == loose.products + 1  # both take 120 steps


def test_the_floor_is_what_float32_products_and_sums_are_off_by():
    matrix = random_symmetric(120, dtype=torch.float32)
    pairs = eigenpairs(Dense(matrix), 3, tolerance=1e-6)
    rounded = (matrix @ pairs.vectors).double() - matrix.double() @ pairs.vectors.double()
    error = float(rounded.norm(dim=0).max() / pairs.eigenvalues[0])
    assert error / 3 < pairs.floor < 20 * error  # three pairs add up, and sums of 120 terms
    assert eigenpairs(Dense(matrix.double()), 3, tolerance=1e-6).floor < 1e-14


def test_the_audit_agrees_unless_residuals_are_larger_than_the_recurrence_and_rounding_say():
    assert agrees(np.array([2e-4]), np.array([1e-4]), 0.0, 1e-4).tolist() == [True]
    assert agrees(np.array([2.1e-4]), np.array([1e-4]), 0.0, 1e-4).tolist() == [False]
    assert agrees(np.array([2.1e-4]), np.array([1e-4]), 1e-5, 1e-4).tolist() == [True]
    assert agrees(np.array([1e-5]), np.array([0.0]), 0.0, 1e-4).tolist() == [True]
    noisy = eigenpairs(Noisy(torch.linspace(-1, 1, 400, dtype=torch.float64) ** 5, 1e-4), 3, tolerance=1e-3)
    assert noisy.converged.all()
    assert noisy.audit_agrees.tolist() == [False, False, True]  # the recurrence had converged far below the noise
    assert noisy.doubted == [1, 2]
    exact = eigenpairs(Diagonal(torch.linspace(-1, 1, 400, dtype=torch.float64) ** 5), 3, tolerance=1e-3)
    assert exact.audit_agrees.all()
    assert exact.doubted == replace(exact, audit_agrees=None).doubted == []  # nor is it said of files that do not say


def test_a_file_tells_what_the_audit_found_and_one_of_an_earlier_release_does_not(tmp_path):
    noisy = eigenpairs(Noisy(torch.linspace(-1, 1, 400, dtype=torch.float64) ** 5, 1e-4), 3, tolerance=1e-3)
    store.save(noisy, tmp_path / "new.h5")
    found = store.load(tmp_path / "new.h5")
    assert found.audit_agrees.dtype == bool
    assert (found.audit_agrees == noisy.audit_agrees).all()
    assert found.doubted == noisy.doubted != []
    store.save(replace(noisy, audit_agrees=None), tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5") as file:
        assert "audit_agrees" not in file["eigenpairs"]
    old = store.load(tmp_path / "old.h5")
    assert (old.audit_agrees, old.doubted) == (None, [])
    assert old.residuals.tobytes() == noisy.residuals.tobytes()


@pytest.mark.parametrize("place", PLACES)
def test_a_rayleigh_ritz_step_diagonalises_within_the_span(place):
    matrix = random_symmetric(80)
    vectors = Rows(6, 80, dtype=torch.float64, device=torch.device("cpu"), place=place)
    given = torch.linalg.qr(random_symmetric(80, seed=1)[:, :6])[0].T
    given = given + 1e-3 * random_symmetric(80, seed=2)[:6]  # not quite orthonormal
    vectors.write(0, given)
    images = images_of(Dense(matrix), vectors)
    values, residuals = rayleigh_ritz(vectors, images)
    assert torch.allclose(images.columns(), matrix @ vectors.columns(), rtol=0, atol=1e-13)
    found = vectors.columns()
    assert disorder(found.T) < 1e-13
    assert torch.allclose(found.T @ matrix @ found, torch.diag(torch.as_tensor(values)), rtol=0, atol=1e-13)
    assert torch.linalg.matrix_rank(torch.cat([found.T, given]), tol=1e-10) == 6
    exact = torch.linalg.vector_norm(matrix @ found - found * torch.as_tensor(values), dim=0)
    assert np.allclose(residuals, exact.numpy(), rtol=0, atol=1e-13)
    assert (np.diff(values) < 0).all()


# The budget, and how much of it is still to come


@FEW
@given(
    budget=st.integers(1, 70),
    k=st.integers(1, 6),
    block=st.integers(1, 3),
    tolerance=st.sampled_from([1e-1, 1e-3, 1e-6]),
    noise=st.sampled_from([0.0, 1e-5]),
)
def test_the_budget_is_never_exceeded(budget, k, block, tolerance, noise):
    operator = Noisy(torch.linspace(-1, 1, 300, dtype=torch.float64) ** 5, noise)
    try:
        pairs = eigenpairs(operator, k, tolerance=tolerance, block=block, max_products=budget)
    except NotConvergedError as error:
        pairs = error.partial
        assert len(pairs.eigenvalues) >= min(k, budget // 2 - block)  # what there is, is audited
    except ShapeError:
        assert budget < 2 * block
        return
    assert pairs.products == operator.products <= budget


def test_the_estimate_of_all_products_is_near_and_never_below_what_is_done():
    seen = []
    operator = Diagonal(torch.linspace(-1, 1, 2000, dtype=torch.float64) ** 5)
    pairs = eigenpairs(operator, 5, tolerance=1e-6, progress=lambda *report: seen.append(report))
    assert seen[0][1] is None  # nothing is known of the decay
    known = [(done, total) for done, total, _ in seen if total is not None]
    assert all(done <= total <= 400 for done, total in known)
    late = [total for done, total in known if done > pairs.products / 2]
    assert np.median(np.abs(np.array(late) - pairs.products)) < 0.6 * pairs.products
    assert known[-1][1] == pairs.products  # while probing, what is left is certain
    notes = [note for *_, note in seen]
    assert notes[0] == "0/5 pairs converged"
    assert notes[-1] == "looking for missed pairs"


def test_a_decay_is_continued_and_what_does_not_decay_is_not():
    steady = [(step, 10.0**-step) for step in range(20)]
    assert forecast(steady, 1e-30) == 30
    assert forecast(steady, 1e-5) == 19  # it is there
    bumps = [(step, worst * (100 if step % 5 == 4 else 1)) for step, worst in steady]
    assert abs(forecast(bumps, 1e-30) - 30) <= 2
    assert forecast([(step, 1.0 + step) for step in range(20)], 1e-3) is None
    assert forecast(steady[:2], 1e-3) is None
    assert forecast([(step, 0.0) for step in range(20)], 1e-3) is None
    assert forecast([(step, 1.0) for step in range(-20, 0)] + steady, 1e-30) == 30  # by the later half alone


# Refusals


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 0}, "1 <= k <= n"),
        ({"k": -1}, "1 <= k <= n"),
        ({"k": 21}, "1 <= k <= n"),
        ({"k": 21, "which": "both"}, "1 <= k <= n"),
        ({"which": "biggest"}, "largest, smallest, magnitude, both"),
        ({"tolerance": 0.0}, "tolerance > 0"),
        ({"tolerance": -1e-3}, "tolerance > 0"),
        ({"tolerance": float("nan")}, "tolerance > 0"),
        ({"max_vectors": 10}, "max_vectors >= 13"),
        ({"max_vectors": 0}, "max_vectors >= 13"),
        ({"max_products": 1}, "max_products >= 2"),
        ({"max_products": -5}, "max_products >= 2"),
        ({"max_products": 4, "block": 4}, "max_products >= 5"),
        ({"block": 0}, "1 <= block <= n = 20"),
        ({"block": 21}, "1 <= block <= n = 20"),
        ({"block": 5, "max_vectors": 16}, "max_vectors >= 17"),
        ({"basis": "disk"}, "device, host"),
    ],
)
def test_arguments_out_of_range_are_refused_before_any_product(options, expected):
    operator = Diagonal(torch.arange(20.0))
    with pytest.raises(ShapeError, match=expected):
        eigenpairs(operator, **{"k": 3, **options})
    assert operator.products == 0


def test_an_exhausted_budget_is_an_error_that_carries_the_pairs_with_their_flags():
    operator = Diagonal(torch.cat([torch.tensor([50.0]), torch.linspace(0, 1, 2000)]).double())
    with pytest.raises(NotConvergedError, match="max_products") as caught:
        eigenpairs(operator, 5, max_products=13, tolerance=1e-6)
    partial = caught.value.partial
    assert partial.converged.tolist() == [True, False, False, False, False]
    assert (partial.converged == (partial.residuals <= 1e-6 * 50.0)).all()
    assert partial.eigenvalues[0] == pytest.approx(50.0, rel=1e-9)
    assert partial.products == operator.products == 13  # 12 steps and the audit
    assert not partial.probe_passed
    assert partial.audit_agrees.all()
    assert "float64" not in str(caught.value)


def test_a_budget_below_the_wanted_pairs_is_an_error_even_where_all_found_are_exact():
    with pytest.raises(NotConvergedError, match="expected 5 eigenpairs") as caught:
        eigenpairs(Dense(torch.eye(50)), 5, max_products=4)
    assert caught.value.partial.converged.tolist() == [True] * 3


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [1, 7])
def test_products_that_are_not_finite_are_an_error(poison, first):
    with pytest.raises(NonFiniteError, match=f"product {first} holds NaN or infinite"):
        eigenpairs(Poisoned(torch.linspace(-1, 1, 200), poison, first), 3)


# Selection


@FEW
@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20).map(sorted),
    count=st.integers(1, 25),
    which=st.sampled_from(ENDS),
)
def test_selection_is_ascending_distinct_and_leaves_nothing_more_extreme_out(values, count, which):
    values = np.array(values)
    chosen = select(values, count, which)
    assert len(chosen) == min(count, len(values))
    assert (np.diff(chosen) > 0).all()
    left = np.delete(values, chosen)
    kept = values[chosen]
    if not left.size:
        return
    if which == "largest":
        assert kept.min() >= left.max()
    elif which == "smallest":
        assert kept.max() <= left.min()
    elif which == "magnitude":
        assert np.abs(kept).min() >= np.abs(left).max()
    else:
        low, high = count // 2, count - count // 2
        assert (np.sort(kept)[:low] <= left.min()).all()
        assert (np.sort(kept)[-high:] >= left.max()).all()
