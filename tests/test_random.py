"""Named random streams: reproducible, independent of each other and of the global generators, which are kept."""

from __future__ import annotations

import math
import random
import zlib
from itertools import combinations

import numpy as np
import pytest
import torch

from sharpness.random import derive_seed, generator, normal, preserved_random_state


def global_draws() -> tuple[float, float, float]:
    """The next number of each global generator; draws it."""
    return float(torch.rand(())), float(np.random.rand()), random.random()


def global_states() -> tuple:
    name, key, *place = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), name, key.tobytes(), tuple(place), random.getstate()


# ---- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_is_the_same_for_the_same_name_and_seed():
    first, second = (torch.randn(100, generator=generator("probe", 3, seed=7)) for _ in range(2))
    assert torch.equal(first, second)


def test_streams_differ_by_name_by_number_and_by_seed():
    keys = [
        (("probe",), 0),
        (("batches",), 0),
        (("probe",), 1),
        (("probe", 0), 0),
        (("probe", 1), 0),
        ((0, "probe"), 0),
    ]
    seeds = [derive_seed(*key, seed=seed) for key, seed in keys]
    assert len(set(seeds)) == len(keys)


def test_streams_of_nearby_names_are_uncorrelated():
    count = 10_000
    rows = [normal(count, key=("probe", i), seed=0, dtype=torch.float64) for i in range(4)]
    for a, b in combinations(rows, 2):
        # the correlation of independent normal rows has standard deviation 1/√count; 5 of them once in two million
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(count)


def test_drawing_from_one_stream_leaves_another_as_it_is():
    alone = torch.randn(5, generator=generator("probe", seed=0))
    beside = generator("probe", seed=0)
    torch.randn(1000, generator=generator("batches", seed=0))
    assert torch.equal(torch.randn(5, generator=beside), alone)


def test_a_seed_is_derived_by_numpys_seed_sequence_from_the_hashed_name():
    words = np.random.SeedSequence(5, spawn_key=[zlib.crc32(b"plane"), 2]).generate_state(2, np.uint32)
    assert derive_seed("plane", 2, seed=5) == (int(words[0]) * 2**31) ^ int(words[1])


def test_the_seed_of_a_stream_never_changes_between_versions_and_platforms():
    # files record seeds, not numbers: these constants are part of the format
    assert derive_seed("probe", seed=0) == 62382231578614250
    assert derive_seed("probe", 1, seed=0) == 3708592759423504097


def test_seeds_have_63_bits_as_torch_wants_them():
    seeds = [derive_seed("bits", i, seed=0) for i in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) >= 2**62  # of 200 seeds none in the upper half: 2^-200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_standard_normal_in_the_shape_and_dtype_asked_for(dtype):
    numbers = normal(400, 250, key=("probe",), seed=0, dtype=dtype)
    assert numbers.shape == (400, 250)
    assert numbers.dtype == dtype
    # mean of 10⁵ numbers: standard deviation 10^-2.5 = 0.0032; variance: √2 times that; five of them
    assert abs(float(numbers.mean())) < 5 * 10**-2.5
    assert abs(float(numbers.var()) - 1) < 5 * math.sqrt(2) * 10**-2.5


def test_a_single_number_has_no_dimension():
    assert normal(key=("probe",), seed=0).shape == ()


def test_streams_touch_no_global_generator():
    before = global_states()
    normal(10, key=("probe",), seed=0)
    torch.randn(10, generator=generator("probe", seed=0))
    derive_seed("probe", seed=0)
    assert global_states() == before


# ---- the global generators ----------------------------------------------------------------------------------------


def test_the_global_generators_of_torch_numpy_and_python_are_restored():
    before = global_states()
    with preserved_random_state():
        inside = global_draws()
        assert global_states() != before
    assert global_states() == before
    assert global_draws() == inside  # the same numbers come again


def test_the_global_generators_are_restored_after_an_error():
    before = global_states()

    def reseed_and_fail() -> None:
        with preserved_random_state():
            for seed in (torch.manual_seed, np.random.seed, random.seed):
                seed(1)
            assert global_states() != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        reseed_and_fail()
    assert global_states() == before


def test_the_global_generators_are_restored_at_every_level():
    with preserved_random_state():
        global_draws()
        middle = global_states()
        with preserved_random_state():
            global_draws()
        assert global_states() == middle
