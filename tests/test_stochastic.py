"""Spectral density and trace against matrices whose spectrum is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sharpness import Dense, ShapeError, spectral_density, trace
from sharpness.random import normal


def symmetric(n: int, seed: int = 0) -> torch.Tensor:
    matrix = normal(n, n, key=("matrix",), seed=seed, dtype=torch.float64)
    return (matrix + matrix.T) / 2


def test_weights_of_every_probe_sum_to_one():
    density = spectral_density(Dense(symmetric(60)), probes=3, steps=20)
    np.testing.assert_allclose(density.weights.sum(1), 1.0, rtol=1e-12)  # rounding of 20 squares


def test_the_density_integrates_to_one():
    density = spectral_density(Dense(symmetric(60)), probes=2, steps=30)
    # five widths of the Gaussian are kept at either end: less than 1e-6 of it is cut off
    assert np.trapezoid(density.density, density.eigenvalue) == pytest.approx(1.0, abs=1e-5)


@given(power=st.integers(0, 9))
def test_quadrature_from_m_nodes_is_exact_for_polynomials_below_degree_2m(power):
    matrix = symmetric(12)
    density = spectral_density(Dense(matrix), probes=1, steps=5, seed=3)
    start = normal(12, key=("density", 0), seed=3, dtype=torch.float64)
    start = start / start.norm()
    exact = float(start @ torch.linalg.matrix_power(matrix, power) @ start)
    scale = float(torch.linalg.matrix_norm(matrix, 2)) ** power
    assert abs((density.weights[0] * density.nodes[0] ** power).sum() - exact) < 1e-11 * scale


def test_with_as_many_steps_as_rows_the_nodes_are_the_eigenvalues():
    matrix = symmetric(8)
    density = spectral_density(Dense(matrix), probes=1, steps=50)
    np.testing.assert_allclose(density.nodes[0], torch.linalg.eigvalsh(matrix).numpy(), atol=1e-10)


def test_one_probe_has_no_standard_error():
    assert np.isnan(spectral_density(Dense(symmetric(10)), probes=1, steps=4).standard_error).all()


def test_the_zero_matrix_has_its_density_at_zero():
    density = spectral_density(Dense(torch.zeros(5, 5)), probes=2, steps=3)
    assert abs(density.eigenvalue[density.density.argmax()]) < density.width


def test_the_trace_of_a_diagonal_matrix_is_exact():
    estimate = trace(Dense(torch.diag(torch.arange(50.0))), samples=2)
    assert (estimate.value, estimate.standard_error) == (49 * 50 / 2, 0.0)


def test_the_trace_lies_within_five_standard_errors():
    matrix = symmetric(80)
    estimate = trace(Dense(matrix), samples=200)
    assert abs(estimate.value - float(matrix.trace())) < 5 * estimate.standard_error


def test_the_same_seed_gives_the_same_bits():
    operator = Dense(symmetric(40).float())
    first, second = (spectral_density(operator, probes=2, steps=10, seed=5) for _ in range(2))
    assert first.density.tobytes() == second.density.tobytes()
    assert trace(operator, samples=4).samples.tobytes() == trace(operator, samples=4).samples.tobytes()


@pytest.mark.parametrize("arguments", [{"probes": 0}, {"steps": 0}])
def test_a_density_without_probes_or_steps_is_refused(arguments):
    with pytest.raises(ShapeError, match="expected probes >= 1"):
        spectral_density(Dense(torch.eye(3)), **arguments)


def test_a_trace_from_one_sample_is_refused():
    with pytest.raises(ShapeError, match="standard error"):
        trace(Dense(torch.eye(3)), samples=1)
