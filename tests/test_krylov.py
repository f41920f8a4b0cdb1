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
from sharpness.spectrum.rows import Rows, norms

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
    """Q and the pending X as rows, T and the border B."""
    every = basis._rows.read(0, basis.count)
    return every[basis.taken], every[basis.pending], torch.as_tensor(basis.projected), torch.as_tensor(basis.border)


def defect(basis, matrix):
    """A Qᵀ − Qᵀ T − Xᵀ B, which the recurrence says is zero."""
    rows, following, projected, border = parts(basis)
    return matrix @ rows.T - rows.T @ projected - following.T @ border


def fill(basis):
    while len(basis.pending) and basis.room(len(basis.pending)):
        basis.expand(basis.pending)


# The relation. Tolerance 1e-12: about 10 · n · eps · ‖A‖ for n = 60 and ‖A‖ ≈ 11 in float64.


@of_every_kind
def test_expanding_keeps_the_krylov_relation_and_orthonormal_rows(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 40 + block, seed=0, block=block, place=place)
    for steps in range(1, 40 // block + 1):
        added = basis.expand(basis.pending)
        rows, following, projected, border = parts(basis)
        assert basis.size == basis.products == steps * block
        assert border.shape == (block, basis.size)
        assert (added == basis.pending).all()
        assert defect(basis, matrix).abs().max() < 1e-12
        assert disorder(torch.cat([rows, following])) < 1e-14
        assert torch.equal(projected, projected.T)
        assert not border[:, :-block].any()  # only the last block has a residual
        assert torch.equal(border[:, -block:], border[:, -block:].triu())
    assert (projected - rows @ matrix @ rows.T).abs().max() < 1e-12


@of_every_kind
def test_lanczos_projection_is_banded_to_rounding(block, place):
    basis = KrylovBasis(Dense(random_symmetric(60)), 20 + block, seed=1, block=block, place=place)
    fill(basis)
    assert basis.size == 20
    assert np.abs(np.triu(basis.projected, block + 1)).max() < 1e-12
    assert np.abs(np.diag(basis.projected, block)).min() > 0.1


@of_every_kind
def test_a_thick_restart_keeps_relation_and_orthonormality_however_often_it_is_done(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 15 + block, seed=0, block=block, place=place)
    for keep in (9, 3, 10, 1, 7):
        while basis.room(block):
            basis.expand(basis.pending)
            assert defect(basis, matrix).abs().max() < 1e-10
        values, coefficients, _ = ritz = basis.ritz()
        residuals = ritz.residuals
        basis.restart(values[-keep:], coefficients[:, -keep:])
        rows, following, projected, border = parts(basis)
        assert basis.size == keep
        assert torch.equal(projected, torch.diag(torch.as_tensor(values[-keep:])))
        assert np.allclose(np.linalg.norm(border, axis=0), residuals[-keep:], rtol=1e-12, atol=0)
        assert defect(basis, matrix).abs().max() < 1e-10
        assert disorder(torch.cat([rows, following])) < 1e-13


@of_every_kind
def test_residuals_of_ritz_pairs_are_those_of_exact_products(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 20, seed=0, block=block, place=place)
    fill(basis)
    ritz = basis.ritz()
    vectors = basis.vectors(ritz.coefficients).columns()
    exact = torch.linalg.vector_norm(matrix @ vectors - vectors * torch.as_tensor(ritz.values), dim=0).numpy()
    assert np.allclose(ritz.residuals, exact, rtol=0, atol=1e-12)
    assert ritz.residuals.min() > 1e-6  # far above the rounding that is allowed here


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
    sequences = 1
    while not basis.complete:
        if not len(basis.pending):
            basis.add_random()
            sequences += 1
        basis.expand(basis.pending)
        rows, following, _, _ = parts(basis)
        assert defect(basis, matrix).abs().max() < 1e-12
        assert disorder(torch.cat([rows, following])) < 1e-13
    assert not len(basis.pending)
    assert np.allclose(basis.ritz().values, spectrum, rtol=0, atol=1e-12)
    assert sequences <= max(counts)  # each sees every eigenvalue once


def test_dependent_residuals_give_fewer_rows():
    matrix = with_spectrum([3.0] * 6 + [1.0] * 6)
    start = torch.eye(12, dtype=torch.float64)[:2]
    basis = KrylovBasis(Dense(matrix), 12, seed=0, start=torch.cat([start, matrix[:1]]), block=3)
    following = basis.expand(basis.pending)  # e₁, e₂, A e₁: the residuals of e₁ and A e₁ are none, since A² = 4 A − 3
    rows, pending, _, border = parts(basis)
    assert following.tolist() == [3]
    assert border.shape == (1, 3)
    assert defect(basis, matrix).abs().max() < 1e-13
    assert disorder(torch.cat([rows, pending])) < 1e-14


@of_every_kind
def test_one_call_multiplies_the_whole_block(block, place):
    operator = Diagonal(torch.linspace(-1, 1, 50, dtype=torch.float64))
    basis = KrylovBasis(operator, 20 + block, seed=0, block=block, place=place)
    fill(basis)
    assert basis.products == operator.products == 20
    assert operator.calls == 20 // block


@of_every_kind
def test_rows_may_be_multiplied_in_any_order(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 55, seed=0, block=block + 2, place=place)
    for step in range(8):
        basis.expand(basis.pending[step % 3 : step % 3 + block])
        rows, following, projected, _ = parts(basis)
        assert defect(basis, matrix).abs().max() < 1e-12
        assert disorder(torch.cat([rows, following])) < 1e-14
        assert torch.allclose(projected, rows @ matrix @ rows.T, rtol=0, atol=1e-12)


def test_rows_that_lie_elsewhere_are_the_same_rows():
    matrix = random_symmetric(60)
    bases = [KrylovBasis(Dense(matrix), 22, seed=0, block=2, place=place) for place in PLACES]
    for basis in bases:
        fill(basis)
        values, coefficients, _ = basis.ritz()
        basis.restart(values[-5:], coefficients[:, -5:])
        basis.add_random()
        fill(basis)
    for mine, theirs in zip(*map(parts, bases), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)  # rounding, grown over 45 steps


@of_every_kind
def test_another_sequence_begins_beside_the_first_and_is_blind_to_it(block, place):
    matrix = random_symmetric(60)
    basis = KrylovBasis(Dense(matrix), 40, seed=0, block=block, place=place)
    while basis.size < 10:
        basis.expand(basis.pending)
    old, before = basis.taken, basis.ritz()
    added = [basis.add_random()]
    for _ in range(5):
        added += basis.expand(np.array(added[-1:])).tolist()
    assert defect(basis, matrix).abs().max() < 1e-12
    assert disorder(basis._rows.read(0, basis.count)) < 1e-13
    assert np.abs(basis._couplings[np.ix_(old, added)]).max() < 1e-13
    projected = basis.within(added)
    assert np.abs(np.triu(projected, 2)).max() < 1e-12
    both = np.sort(np.append(before.values, np.linalg.eigvalsh(projected[:-1, :-1])))
    assert np.allclose(basis.ritz().values, both, rtol=0, atol=1e-12)


def test_a_basis_holds_no_more_vectors_than_allowed():
    for block in BLOCKS:
        basis = KrylovBasis(Diagonal(torch.arange(1000.0)), 12, seed=0, block=block)
        fill(basis)
        assert basis.count <= basis._rows.count == 12


def test_float32_rows_stay_orthonormal_to_float32_rounding():
    entries = torch.cat([torch.tensor(OUTLIERS), torch.linspace(-0.1, 0.1, 2000)])
    for block in BLOCKS:
        basis = KrylovBasis(Diagonal(entries), 80 + block, seed=0, block=block)
        fill(basis)
        # dot products of 2,010 terms round to a few eps
        assert disorder(basis._rows.read(0, 80 + block)) < 20 * torch.finfo(torch.float32).eps


def test_nearly_equal_starts_are_orthogonal_all_the_same():
    first = torch.ones(1, 200) / 200**0.5
    starts = first + 1e-5 * torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    operator = Diagonal(torch.linspace(0, 1, 200))
    basis = KrylovBasis(operator, 44, seed=0, start=starts, block=4)
    fill(basis)
    assert disorder(basis._rows.read(0, 44)) < 20 * torch.finfo(torch.float32).eps


# Rounding


def test_the_discrepancy_of_exact_products_is_rounding_and_that_of_noisy_ones_their_noise():
    for noise in (0.0, 1e-9, 1e-6):
        operator = Noisy(torch.linspace(0, 1, 300, dtype=torch.float64) ** 4, noise)
        basis = KrylovBasis(operator, 60, seed=0)
        fill(basis)
        before = operator.products
        found = basis.discrepancy(basis.ritz().coefficients[:, -1])
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
def test_orthogonalise_takes_off_what_its_coefficients_say(place):
    columns, _ = torch.linalg.qr(random_symmetric(3000)[:, :7])
    rows = Rows(9, 3000, dtype=torch.float64, device=torch.device("cpu"), place=place)
    rows.write(1, columns.T)
    block = torch.randn(2, 3000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    given = block.clone()
    coefficients = rows.orthogonalise(block, 8, 1)
    assert torch.allclose(block + coefficients.T @ columns.T, given, rtol=0, atol=1e-13)
    assert (block @ columns).abs().max() < 1e-14


def test_norms_are_summed_in_float64():
    block = torch.randn(2, 3_000_000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(norms(block), torch.linalg.vector_norm(block.double(), dim=1), rtol=1e-12, atol=0)
    assert norms(block[:, :3]).tolist() == pytest.approx(block[:, :3].double().norm(dim=1).tolist(), rel=1e-15)


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
