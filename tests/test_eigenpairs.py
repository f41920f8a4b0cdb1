"""Eigenpairs: the Krylov relation to rounding, values against dense references, and doubts by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh
from torch import nn

from sharpness.errors import NonFiniteError, NotConvergedError, ShapeError
from sharpness.objective import Objective, cross_entropy
from sharpness.operators import Dense, Hessian, SymmetricOperator
from sharpness.spectrum import eigenpairs
from sharpness.spectrum.lanczos import KrylovBasis, orthogonalise
from sharpness.spectrum.solver import ENDS, PROBE_STEPS, _Solver, select

FEW = settings(max_examples=30, deadline=None, derandomize=True, database=None)
OUTLIERS = [10.0, 8.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.5, 2.2, 2.0]


class Diagonal(SymmetricOperator):
    """diag(entries), which counts the products that it is asked for."""

    def __init__(self, entries):
        self.entries, self.products = torch.as_tensor(entries), 0

    @property
    def shape(self):
        return (len(self.entries), len(self.entries))

    @property
    def dtype(self):
        return self.entries.dtype

    @property
    def device(self):
        return self.entries.device

    @property
    def conditions(self):
        return {"operator": "diagonal"}

    def _product(self, vectors):
        self.products += vectors.shape[1]
        return self.entries[:, None] * vectors


class Poisoned(Diagonal):
    """A diagonal whose products are spoilt from the ``first``-th on."""

    def __init__(self, entries, poison, first):
        super().__init__(entries)
        self.poison, self.first = poison, first

    def _product(self, vectors):
        image = super()._product(vectors)
        if self.products >= self.first:
            image[0] = self.poison
        return image


def random_symmetric(n, seed=0, dtype=torch.float64):
    drawn = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((drawn + drawn.T) / 2).to(dtype)


def with_spectrum(values, seed=0):
    """A dense matrix with these eigenvalues in a random orthonormal basis."""
    values = torch.as_tensor(values, dtype=torch.float64)
    drawn = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, _ = torch.linalg.qr(drawn)
    matrix = (q * values) @ q.T
    return (matrix + matrix.T) / 2


def wanted(values, k, which):
    """The values that ``eigenpairs`` promises, in descending order."""
    values = np.sort(np.asarray(values, float))[::-1]
    if which == "largest":
        return values[:k]
    if which == "smallest":
        return values[len(values) - k :]
    if which == "magnitude":
        return np.sort(values[np.argsort(-np.abs(values), kind="stable")[:k]])[::-1]
    return values if 2 * k >= len(values) else np.concatenate([values[:k], values[-k:]])


def parts(basis):
    """Q (rows), the next vector q, T and the border."""
    j = basis.size
    return basis.vectors(np.eye(j)).T, basis._rows[j], torch.as_tensor(basis.projected[:j, :j]), basis.border


def defect(basis, matrix):
    """A Qᵀ − Qᵀ T − q borderᵀ, which the recurrence says is zero."""
    rows, following, projected, border = parts(basis)
    return matrix @ rows.T - rows.T @ projected - torch.outer(following, torch.as_tensor(border))


def disorder(rows):
    return float((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)).abs().max())


# The basis. Tolerance 1e-12: about 10 · n · eps · ‖A‖ for n = 60 and ‖A‖ ≈ 11 in float64.


def test_expanding_keeps_the_krylov_relation_and_orthonormal_rows():
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), capacity=40, seed=0)
    for steps in range(1, 41):
        basis.expand()
        rows, following, projected, border = parts(basis)
        assert basis.size == basis.products == steps
        assert defect(basis, matrix).abs().max() < 1e-12
        assert disorder(torch.cat([rows, following[None]])) < 1e-14
        assert torch.equal(projected, projected.T)
        assert np.count_nonzero(border[:-1]) == 0
    assert (projected - rows @ matrix @ rows.T).abs().max() < 1e-12


def test_lanczos_projection_is_tridiagonal_to_rounding():
    basis = KrylovBasis(Dense(random_symmetric(60)), capacity=20, seed=1)
    for _ in range(20):
        basis.expand()
    beyond = np.triu(basis.projected, 2)
    assert np.abs(beyond).max() < 1e-12
    assert np.abs(np.diag(basis.projected, 1)).min() > 0.1


def test_a_thick_restart_keeps_relation_and_orthonormality_however_often_it_is_done():
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), capacity=15, seed=0)
    for keep in (9, 3, 12, 1, 7):
        while basis.size < basis.capacity:
            basis.expand()
            assert defect(basis, matrix).abs().max() < 1e-10
        values, coefficients, residuals = basis.ritz()
        basis.restart(values[-keep:], coefficients[:, -keep:])
        rows, following, projected, border = parts(basis)
        assert basis.size == keep
        assert torch.equal(projected, torch.diag(torch.as_tensor(values[-keep:])))
        assert np.allclose(np.abs(border), residuals[-keep:], rtol=1e-12, atol=0)
        assert defect(basis, matrix).abs().max() < 1e-10
        assert disorder(torch.cat([rows, following[None]])) < 1e-13
    assert not basis.forgotten.any()


def test_deflating_drops_exactly_the_residuals_that_forgotten_says():
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), capacity=20, seed=0)
    while basis.size < 20:
        basis.expand()
    values, coefficients, residuals = basis.ritz()
    basis.deflate(values[-5:], coefficients[:, -5:])
    rows, following, _, border = parts(basis)
    assert not border.any()
    assert disorder(torch.cat([rows, following[None]])) < 1e-13
    lost = torch.linalg.vector_norm(defect(basis, matrix), dim=0).numpy()
    assert np.allclose(lost, residuals[-5:], rtol=1e-9)
    assert np.allclose(basis.forgotten, residuals[-5:], rtol=1e-12)


def test_after_deflation_the_projection_is_exact_and_the_defect_is_within_forgotten():
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), capacity=20, seed=0)
    for keep in (5, 8):  # the second time rows that have forgotten something are rotated and forget more
        while basis.size < 20:
            basis.expand()
        values, coefficients, _ = basis.ritz()
        basis.deflate(values[-keep:], coefficients[:, -keep:])
        for _ in range(6):
            basis.expand()
            rows, following, projected, _ = parts(basis)
            assert (projected - rows @ matrix @ rows.T).abs().max() < 1e-10
            assert disorder(torch.cat([rows, following[None]])) < 1e-13
            lost = torch.linalg.vector_norm(defect(basis, matrix), dim=0).numpy()
            assert (lost <= basis.forgotten + 1e-10).all()
            assert not basis.forgotten[keep:].any()
    values, coefficients, recurrence = basis.ritz()
    vectors = basis.vectors(coefficients)
    exact = torch.linalg.vector_norm(matrix @ vectors - vectors * torch.as_tensor(values), dim=0).numpy()
    assert (exact <= recurrence + basis.forgotten_residuals(coefficients) + 1e-10).all()


def test_couplings_to_deflated_vectors_enter_the_projection():
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), capacity=12, seed=0)
    for _ in range(6):
        basis.expand()
    values, coefficients, residuals = basis.ritz()
    basis.deflate(values[-2:], coefficients[:, -2:])
    basis.expand()
    rows, _, projected, _ = parts(basis)
    couplings = rows[:2] @ matrix @ rows[2]
    assert couplings.abs().max() > 1e-3 * residuals.max()  # not converged, so the new vector sees the old ones
    assert torch.allclose(projected[:2, 2], couplings, rtol=0, atol=1e-12)


def test_an_invariant_basis_goes_on_in_its_complement_until_it_is_complete():
    matrix = with_spectrum([3.0] * 5 + [1.0] * 5)
    basis = KrylovBasis(Dense(matrix), capacity=10, seed=0)
    borders = []
    while not basis.complete:
        basis.expand()
        borders.append(basis.border[-1])
        assert defect(basis, matrix).abs().max() < 1e-13 if not basis.complete else True
    assert sum(border > 0.1 for border in borders) <= 5  # two distinct eigenvalues: invariant after two steps each
    rows, _ = basis.vectors(np.eye(10)).T, None
    assert disorder(rows) < 1e-14
    assert not basis.border.any()
    assert np.allclose(basis.ritz()[0], [1.0] * 5 + [3.0] * 5, rtol=0, atol=1e-14)


def test_float32_rows_stay_orthonormal_to_float32_rounding():
    entries = torch.cat([torch.tensor(OUTLIERS), torch.linspace(-0.1, 0.1, 2000)])
    basis = KrylovBasis(Diagonal(entries), capacity=80, seed=0)
    for _ in range(80):
        basis.expand()
    rows = basis._rows[:81]
    assert disorder(rows) < 20 * torch.finfo(torch.float32).eps  # dot products of 2,010 terms round to a few eps


def test_orthogonalise_returns_the_rest_and_the_coefficients_of_the_vector():
    rows, _ = torch.linalg.qr(random_symmetric(30)[:, :7])
    vector = torch.randn(30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rest, coefficients = orthogonalise(vector, rows.T)
    assert torch.allclose(rest + rows @ coefficients, vector, rtol=0, atol=1e-14)
    assert (rows.T @ rest).abs().max() < 1e-15


# Values


@FEW
@given(n=st.integers(1, 90), data=st.data())
def test_random_matrices_give_the_values_of_a_dense_solver(n, data):
    k = data.draw(st.integers(1, min(n, 8)), label="k")
    which, seed = data.draw(st.sampled_from(ENDS), label="which"), data.draw(st.integers(0, 5), label="seed")
    matrix = random_symmetric(n, seed)
    pairs = eigenpairs(Dense(matrix), k, which, tolerance=1e-8, seed=seed)
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
    seed=st.integers(0, 3),
)
def test_multiple_eigenvalues_are_found_as_often_as_they_occur(counts, k, which, seed):
    # few distinct values: a probe of 8 steps then spans every eigenspace that the first sequence saw only once
    spectrum = [float(value - 2) for value, count in enumerate(counts) for _ in range(count)]
    k = min(k, len(spectrum))
    pairs = eigenpairs(Dense(with_spectrum(spectrum, seed)), k, which, tolerance=1e-6, seed=seed)
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


@pytest.mark.parametrize("which", ENDS)
def test_every_product_is_counted(which):
    operator = Diagonal(torch.linspace(-1, 1, 500, dtype=torch.float64) ** 3)
    seen = []
    pairs = eigenpairs(operator, 4, which, max_vectors=20, progress=lambda done, total, note: seen.append(done))
    assert pairs.restarts > 0
    assert pairs.products == operator.products
    assert PROBE_STEPS <= pairs.probe_products < pairs.products
    assert seen == sorted(seen)
    assert seen[-1] + len(pairs.eigenvalues) == pairs.products  # the audit costs one each


def test_products_of_a_second_attempt_are_counted_too(monkeypatch):
    bases, multiplied = [], []

    def recorded(*args, **kwargs):
        bases.append(KrylovBasis(*args, **kwargs))
        return bases[-1]

    plain = Dense._product
    monkeypatch.setattr("sharpness.spectrum.solver.KrylovBasis", recorded)
    monkeypatch.setattr(Dense, "_product", lambda self, v: multiplied.append(v.shape[1]) or plain(self, v))
    with pytest.raises(NotConvergedError) as caught:  # exact products refute the recurrence: a second, tighter attempt
        eigenpairs(Dense(random_symmetric(120, dtype=torch.float32)), 3, tolerance=1e-7)
    assert len(bases) == 2
    assert caught.value.partial.products == sum(multiplied) == sum(basis.products for basis in bases) + 2 * 3


def test_few_vectors_suffice_when_restarts_do_the_rest():
    matrix = with_spectrum(np.linspace(-1, 1, 300) ** 5)
    pairs = eigenpairs(Dense(matrix), 4, max_vectors=4 + PROBE_STEPS, tolerance=1e-6)
    assert pairs.restarts > 3
    assert pairs.conditions["max_vectors"] == 12
    assert np.allclose(pairs.eigenvalues, np.linspace(-1, 1, 300)[:-5:-1] ** 5, rtol=0, atol=1e-6)


def test_a_basis_holds_no_more_vectors_than_allowed():
    basis = KrylovBasis(Diagonal(torch.arange(1000.0)), capacity=12, seed=0)
    assert basis._rows.shape == (13, 1000)


def test_a_start_that_is_blind_to_the_largest_eigenvector_is_rescued_by_the_probe():
    entries = torch.cat([torch.tensor([10.0]), torch.linspace(-1, 1, 199)]).double()
    blind = torch.ones(200, dtype=torch.float64)
    blind[0] = 0.0  # and stays exactly 0 under a diagonal matrix
    basis = KrylovBasis(Diagonal(entries), capacity=40, seed=0, start=blind)
    solver = _Solver(basis, "largest", 2, 500, lambda done, total, note: None)
    assert solver.solve(1e-6)
    assert solver.probe_passed
    assert np.allclose(basis.ritz()[0][-2:], [1.0, 10.0], rtol=0, atol=1e-5)


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
        ({"max_vectors": 10}, "max_vectors >= 11"),
        ({"max_vectors": 0}, "max_vectors >= 11"),
        ({"max_products": 0}, "max_products >= 1"),
        ({"max_products": -5}, "max_products >= 1"),
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
        eigenpairs(operator, 5, max_products=12, tolerance=1e-6)
    partial = caught.value.partial
    assert partial.converged.tolist() == [True, False, False, False, False]
    assert (partial.converged == (partial.residuals <= 1e-6 * 50.0)).all()
    assert partial.eigenvalues[0] == pytest.approx(50.0, rel=1e-9)
    assert partial.products == operator.products == 12 + 5  # the audit comes on top
    assert not partial.probe_passed
    assert "float64" not in str(caught.value)


def test_a_budget_below_the_wanted_pairs_is_an_error_even_where_all_found_are_exact():
    with pytest.raises(NotConvergedError, match="expected 5 eigenpairs") as caught:
        eigenpairs(Dense(torch.eye(50)), 5, max_products=3)
    assert caught.value.partial.converged.tolist() == [True] * 3


@pytest.mark.parametrize("tolerance", [1e-7, 1e-9, 1e-12])
def test_a_tolerance_below_the_float32_floor_is_an_error_that_advises_float64(tolerance):
    matrix = random_symmetric(120, dtype=torch.float32)
    with pytest.raises(NotConvergedError, match="float64") as caught:
        eigenpairs(Dense(matrix), 3, tolerance=tolerance)
    partial = caught.value.partial
    scale = np.abs(partial.eigenvalues).max()
    assert not partial.converged.all()
    # as good as float32 allows: sums of 120 products of entries up to ‖A‖, each rounded to 6e-8
    assert partial.residuals.max() < 1e-5 * scale
    assert 0 < partial.floor < 1e-5
    assert eigenpairs(Dense(matrix.double()), 3, tolerance=max(tolerance, 1e-10)).converged.all()


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
