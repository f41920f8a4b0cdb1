"""The Krylov basis, of single vectors and of blocks, on the device and in host memory: its relation to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import OUTLIERS, Diagonal, Noisy, Poisoned, disorder, random_symmetric, with_spectrum

from sharpness.errors import NonFiniteError
from sharpness.operators import Dense
from sharpness.spectrum import rows as rows_module
from sharpness.spectrum.lanczos import KrylovBasis
from sharpness.spectrum.rows import Rows

FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None)
BLOCKS, PLACES = (1, 2, 5), ("device", "host")
every_kind = [pytest.mark.parametrize("block", BLOCKS), pytest.mark.parametrize("place", PLACES)]


def of_every_kind(test):
    """For every width of blocks and both places."""
    return every_kind[0](every_kind[1](test))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Host memory is cut into several tiles, as it is for large matrices."""
    monkeypatch.setattr(rows_module, "TILE_BYTES", 4_000)
    monkeypatch.setattr(rows_module, "CHUNK_COLUMNS", 7)


def parts(basis):
    """Q (rows), the next block X, T and the border."""
    j = basis.size
    every = basis._rows.read(0, j + basis.width)
    return every[:j], every[j:], torch.as_tensor(basis.projected[:j, :j]), torch.as_tensor(basis.border)


def defect(basis, matrix):
    """A Qᵀ − Qᵀ T − Xᵀ B, which the recurrence says is zero."""
    rows, following, projected, border = parts(basis)
    return matrix @ rows.T - rows.T @ projected - following.T @ border


def fill(basis):
    while not basis.full:
        basis.expand()


# The relation. Tolerance 1e-12: about 10 · n · eps · ‖A‖ for n = 60 and ‖A‖ ≈ 11 in float64.


@of_every_kind
def test_expanding_keeps_the_krylov_relation_and_orthonormal_rows(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 40, seed=0, block=block, place=place)
    for steps in range(1, 40 // block + 1):
        basis.expand()
        rows, following, projected, border = parts(basis)
        assert basis.size == basis.products == steps * block
        assert border.shape == (block, basis.size)
        assert defect(basis, matrix).abs().max() < 1e-12
        assert disorder(torch.cat([rows, following])) < 1e-14
        assert torch.equal(projected, projected.T)
        assert not border[:, :-block].any()  # only the last block has a residual
        assert torch.equal(border[:, -block:], border[:, -block:].triu())
    assert (projected - rows @ matrix @ rows.T).abs().max() < 1e-12


@of_every_kind
def test_lanczos_projection_is_banded_to_rounding(block, place):
    basis = KrylovBasis(Dense(random_symmetric(60)), 20, seed=1, block=block, place=place)
    fill(basis)
    assert basis.size == 20
    assert np.abs(np.triu(basis.projected, block + 1)).max() < 1e-12
    assert np.abs(np.diag(basis.projected, block)).min() > 0.1


@of_every_kind
def test_a_thick_restart_keeps_relation_and_orthonormality_however_often_it_is_done(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 15, seed=0, block=block, place=place)
    for keep in (9, 3, 10, 1, 7):
        while not basis.full:
            basis.expand()
            assert defect(basis, matrix).abs().max() < 1e-10
        values, coefficients, residuals = basis.ritz()
        basis.restart(values[-keep:], coefficients[:, -keep:])
        rows, following, projected, border = parts(basis)
        assert basis.size == keep
        assert torch.equal(projected, torch.diag(torch.as_tensor(values[-keep:])))
        assert np.allclose(np.linalg.norm(border, axis=0), residuals[-keep:], rtol=1e-12, atol=0)
        assert defect(basis, matrix).abs().max() < 1e-10
        assert disorder(torch.cat([rows, following])) < 1e-13
    assert not basis.forgotten.any()


@of_every_kind
def test_residuals_of_ritz_pairs_are_those_of_exact_products(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 20, seed=0, block=block, place=place)
    fill(basis)
    values, coefficients, residuals = basis.ritz()
    vectors = basis.vectors(coefficients).columns()
    exact = torch.linalg.vector_norm(matrix @ vectors - vectors * torch.as_tensor(values), dim=0).numpy()
    assert np.allclose(residuals, exact, rtol=0, atol=1e-12)
    assert residuals.min() > 1e-6  # far above the rounding that is allowed here


@FEW
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(lambda c: sum(c) >= 1),
    block=st.integers(1, 5),
    place=st.sampled_from(PLACES),
    seed=st.integers(0, 3),
)
def test_however_often_eigenvalues_occur_a_basis_grows_until_it_is_complete(counts, block, place, seed):
    # blocks then become dependent, in part or in whole, and the last has fewer rows than the others
    spectrum = [float(value + 1) for value, count in enumerate(counts) for _ in range(count)]
    matrix, n = with_spectrum(spectrum, seed), len(spectrum)
    basis = KrylovBasis(Dense(matrix), n, seed=seed, block=min(block, n), place=place)
    residuals = 0
    while not basis.complete:
        assert basis.width == min(block, n - basis.size)
        basis.expand()
        residuals += int((np.abs(basis.border).max(axis=1, initial=0.0) > 1e-10).sum())
        rows, following, _, _ = parts(basis)
        assert defect(basis, matrix).abs().max() < 1e-12
        assert disorder(torch.cat([rows, following])) < 1e-13
    assert basis.width == 0
    assert np.allclose(basis.ritz()[0], spectrum, rtol=0, atol=1e-12)
    if block == 1:  # invariant after as many steps as there are distinct eigenvalues
        assert residuals <= n - max(counts)


def test_dependent_residuals_give_rows_of_zeros_in_the_border():
    matrix = with_spectrum([3.0] * 6 + [1.0] * 6)
    start = torch.eye(12, dtype=torch.float64)[:2]
    basis = KrylovBasis(Dense(matrix), 12, seed=0, start=torch.cat([start, matrix[:1]]), block=3)
    basis.expand()  # the block is e₁, e₂, A e₁: the residuals of e₁ and A e₁ are none, since A² = 4 A − 3
    rows, following, _, border = parts(basis)
    assert border.shape == (3, 3)
    assert (border.abs().max(dim=1).values > 0.1).tolist() == [True, False, False]
    assert defect(basis, matrix).abs().max() < 1e-13
    assert disorder(torch.cat([rows, following])) < 1e-14


@of_every_kind
def test_one_call_multiplies_the_whole_block(block, place):
    operator = Diagonal(torch.linspace(-1, 1, 50, dtype=torch.float64))
    basis = KrylovBasis(operator, 20, seed=0, block=block, place=place)
    fill(basis)
    assert basis.products == operator.products == 20
    assert operator.calls == 20 // block


def test_rows_that_lie_elsewhere_are_the_same_rows():
    matrix = random_symmetric(60)
    bases = [KrylovBasis(Dense(matrix), 20, seed=0, block=2, place=place) for place in PLACES]
    for basis in bases:
        fill(basis)
        values, coefficients, _ = basis.ritz()
        basis.restart(values[-5:], coefficients[:, -5:])
        fill(basis)
        values, coefficients, _ = basis.ritz()
        basis.deflate(values[-5:], coefficients[:, -5:])
        fill(basis)
    for mine, theirs in zip(*map(parts, bases), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)  # rounding, grown over 45 steps


def test_a_basis_holds_no_more_vectors_than_allowed_and_one_block():
    for block in BLOCKS:
        basis = KrylovBasis(Diagonal(torch.arange(1000.0)), 12, seed=0, block=block)
        assert basis._rows.read(0, basis._rows.count).shape == (12 + block, 1000)


def test_float32_rows_stay_orthonormal_to_float32_rounding():
    entries = torch.cat([torch.tensor(OUTLIERS), torch.linspace(-0.1, 0.1, 2000)])
    for block in BLOCKS:
        basis = KrylovBasis(Diagonal(entries), 80, seed=0, block=block)
        fill(basis)
        # dot products of 2,010 terms round to a few eps
        assert disorder(basis._rows.read(0, 80 + block)) < 20 * torch.finfo(torch.float32).eps


def test_nearly_equal_starts_are_orthogonal_all_the_same():
    first = torch.ones(1, 200) / 200**0.5
    starts = first + 1e-5 * torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    operator = Diagonal(torch.linspace(0, 1, 200))
    basis = KrylovBasis(operator, 40, seed=0, start=starts, block=4)
    fill(basis)
    assert disorder(basis._rows.read(0, 44)) < 20 * torch.finfo(torch.float32).eps


# Deflation


@of_every_kind
def test_deflating_drops_exactly_the_residuals_that_forgotten_says(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 20, seed=0, block=block, place=place)
    fill(basis)
    values, coefficients, residuals = basis.ritz()
    basis.deflate(values[-5:], coefficients[:, -5:])
    rows, following, _, border = parts(basis)
    assert border.shape == (block, 5)
    assert not border.any()
    assert disorder(torch.cat([rows, following])) < 1e-13
    lost = torch.linalg.vector_norm(defect(basis, matrix), dim=0).numpy()
    assert np.allclose(lost, residuals[-5:], rtol=1e-9)
    assert np.allclose(basis.forgotten, residuals[-5:], rtol=1e-12)


@of_every_kind
def test_after_deflation_the_projection_is_exact_and_the_defect_is_within_forgotten(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 20, seed=0, block=block, place=place)
    for keep in (5, 8):  # the second time rows that have forgotten something are rotated and forget more
        fill(basis)
        values, coefficients, _ = basis.ritz()
        basis.deflate(values[-keep:], coefficients[:, -keep:])
        for _ in range(2):
            basis.expand()
            rows, following, projected, _ = parts(basis)
            assert (projected - rows @ matrix @ rows.T).abs().max() < 1e-10
            assert disorder(torch.cat([rows, following])) < 1e-13
            lost = torch.linalg.vector_norm(defect(basis, matrix), dim=0).numpy()
            assert (lost <= basis.forgotten + 1e-10).all()
            assert not basis.forgotten[keep:].any()
    values, coefficients, recurrence = basis.ritz()
    vectors = basis.vectors(coefficients).columns()
    exact = torch.linalg.vector_norm(matrix @ vectors - vectors * torch.as_tensor(values), dim=0).numpy()
    assert (exact <= recurrence + basis.forgotten_residuals(coefficients) + 1e-10).all()


def test_couplings_to_deflated_vectors_enter_the_projection():
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 12, seed=0)
    for _ in range(6):
        basis.expand()
    values, coefficients, residuals = basis.ritz()
    basis.deflate(values[-2:], coefficients[:, -2:])
    basis.expand()
    rows, _, projected, _ = parts(basis)
    couplings = rows[:2] @ matrix @ rows[2]
    assert couplings.abs().max() > 1e-3 * residuals.max()  # not converged, so the new vector sees the old ones
    assert torch.allclose(projected[:2, 2], couplings, rtol=0, atol=1e-12)


def test_the_width_may_change_where_a_basis_is_deflated():
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 30, seed=0, block=4)
    fill(basis)
    values, coefficients, _ = basis.ritz()
    basis.block = 1
    basis.deflate(values[-3:], coefficients[:, -3:])
    basis.expand()
    assert (basis.size, basis.width) == (4, 1)
    basis.block = 4
    basis.expand()  # one residual and three random rows
    assert (basis.size, basis.width) == (5, 4)
    rows, following, projected, border = parts(basis)
    assert disorder(torch.cat([rows, following])) < 1e-13
    assert not border[1:].any()
    assert (projected - rows @ matrix @ rows.T).abs().max() < 1e-11


# Rounding


def test_the_discrepancy_of_exact_products_is_rounding_and_that_of_noisy_ones_their_noise():
    for noise in (0.0, 1e-9, 1e-6):
        operator = Noisy(torch.linspace(0, 1, 300, dtype=torch.float64) ** 4, noise)
        basis = KrylovBasis(operator, 60, seed=0)
        fill(basis)
        values, coefficients, _ = basis.ritz()
        before = operator.products
        found = basis.discrepancy(values[-1], coefficients[:, -1])
        assert operator.products == basis.products == before + 1
        # two errors of this size add up, of the product and of those that the vector is made of
        assert found <= 3 * noise + 1e-14
        assert found >= 0.5 * noise


@pytest.mark.parametrize("block", BLOCKS)
def test_asymmetry_sees_noise_and_none_where_there_is_none(block):
    for noise in (0.0, 1e-6):
        operator = Noisy(torch.linspace(0, 1, 300, dtype=torch.float64), noise)
        basis = KrylovBasis(operator, 30, seed=0, block=block)
        fill(basis)
        assert noise / 1000 <= basis.asymmetry <= noise + 1e-14


@pytest.mark.parametrize("block", BLOCKS)
def test_a_product_that_is_not_finite_is_named_by_its_number(block):
    basis = KrylovBasis(Poisoned(torch.linspace(-1, 1, 200), float("nan"), 7), 30, seed=0, block=block)
    spoilt = {1: 7, 2: 7, 5: 6}[block]  # the first of the block that holds the seventh
    with pytest.raises(NonFiniteError, match=f"product {spoilt} holds NaN or infinite"):
        fill(basis)


# Rows


@pytest.mark.parametrize("place", PLACES)
def test_orthogonalise_returns_the_rest_and_the_coefficients_of_the_block(place):
    columns, _ = torch.linalg.qr(random_symmetric(3000)[:, :7])
    rows = Rows(9, 3000, dtype=torch.float64, device=torch.device("cpu"), place=place)
    rows.write(1, columns.T)
    block = torch.randn(2, 3000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    given = block.clone()
    rest, coefficients = rows.orthogonalise(block, 8, 1)
    assert torch.equal(block, given)
    assert torch.allclose(rest + coefficients.T @ columns.T, block, rtol=0, atol=1e-13)
    assert (rest @ columns).abs().max() < 1e-14


@pytest.mark.parametrize("place", PLACES)
def test_rows_are_read_combined_and_pasted_as_a_matrix_would_be(place):
    rows = Rows(5, 1001, dtype=torch.float64, device=torch.device("cpu"), place=place)
    assert len(list(rows.chunks())) > 1
    matrix = torch.randn(5, 1001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows.write(0, matrix)
    assert torch.equal(rows.read(1, 4), matrix[1:4])
    assert torch.equal(rows.columns(), matrix.T)
    coefficients = np.random.default_rng(0).normal(size=(4, 3))
    combined = rows.like(3)
    rows.combine(coefficients, combined)
    expected = torch.as_tensor(coefficients).T @ matrix[:4]
    assert torch.allclose(combined.columns().T, expected, rtol=0, atol=1e-14)
    rows.combine(coefficients, rows)  # in their own place
    assert torch.allclose(rows.read(0, 3), expected, rtol=0, atol=1e-14)
    assert torch.equal(rows.read(3, 5), matrix[3:])
    assert torch.equal(torch.cat([rows.cut(columns) for columns in rows.chunks()], dim=1), rows.read(0, 5))
