"""The noise: known answers, independence of the batch, and the distribution of what it becomes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from strop.kernels.rng import TILE, gumbel, log, noise_bits, philox, row_seed

WORD = 0xFFFFFFFF
INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_the_published_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert philox(counter, key) == expected


@given(seed=INT64, position=st.integers(0, 2**63 - 1), index=st.integers(0, 300))
def test_bits_of_an_index_are_one_word_of_one_counter(seed: int, position: int, index: int) -> None:
    bits = noise_bits(torch.tensor([seed]), torch.tensor([position]), 301)
    lane, word = index // TILE * 16 + index % 16, index % TILE // 16
    counter = (lane, 0, position & WORD, position >> 32)
    assert bits[0, index] == philox(counter, (seed & WORD, seed >> 32 & WORD))[word]


def test_noise_of_a_row_depends_on_nothing_but_its_own_key_and_index() -> None:
    seeds, positions = torch.tensor([5, -7, 5]), torch.tensor([0, 3, 1])
    together = gumbel(seeds, positions, 200)
    assert torch.equal(together[1:2], gumbel(seeds[1:2], positions[1:2], 200))
    assert torch.equal(together[:, :67], gumbel(seeds, positions, 67))
    assert not torch.equal(together[0], together[2])


def test_gumbel_noise_has_the_gumbel_distribution() -> None:
    noise = gumbel(torch.arange(4), torch.arange(4) * 2**33, 50_000).flatten()
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 1e-3


def test_log_is_accurate_over_all_exponents_and_close_to_one() -> None:
    y = torch.cat([torch.logspace(-300, 300, 1001, dtype=torch.float64), 1 + torch.linspace(-1e-3, 1e-3, 999).double()])
    torch.testing.assert_close(log(y), y.log(), rtol=1e-10, atol=0)


@given(seed=INT64)
def test_the_first_candidate_keeps_the_seed_and_the_others_differ(seed: int) -> None:
    seeds = [row_seed(seed, index) for index in range(16)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 16
    assert all(-(2**63) <= each < 2**63 for each in seeds)


def test_seeds_of_neighbours_share_no_bits_beyond_chance() -> None:
    pairs = [(row_seed(seed, 1), row_seed(seed + 1, 1)) for seed in range(200)]
    flipped = sum(((a ^ b) & (2**64 - 1)).bit_count() for a, b in pairs)
    assert abs(flipped - 200 * 32) < 5 * math.sqrt(200 * 64) / 2


def test_row_seed_takes_seeds_beyond_64_bits_signed() -> None:
    assert row_seed(2**63, 0) == -(2**63)
    assert row_seed(2**63, 3) == row_seed(-(2**63), 3)
