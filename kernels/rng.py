"""Counter-based noise: what a row draws depends on its seed, its position and the vocabulary index, and on nothing else.

The bits are Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). What turns them into a
float uses only exactly rounded operations in a fixed order, so that every path gets the same float, bit for bit.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)

TOKENS, SEEDS = 0, 1
"""What the noise is for; the second word of the counter keeps the uses apart."""

LANES = 16
"""A tile of 4 x 16 neighbouring indices takes 16 counters; word w of counter l is the noise of index 16 w + l of the tile."""

TILE = 4 * LANES
_MASK = 0xFFFFFFFF
_SERIES = tuple(1.0 / (2 * k + 1) for k in range(5, -1, -1))


def row_seed(seed: int, index: int) -> int:
    """The seed (64 bits, signed) of candidate `index` of a request: `seed` itself for the first, unrelated ones after."""
    if index == 0:
        return _signed(seed)
    low, high, _, _ = philox((index & _MASK, SEEDS, index >> 32, 0), (seed & _MASK, seed >> 32 & _MASK))
    return _signed(high << 32 | low)


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10 on words of 32 bits, held in ints or int64 tensors (whose products wrap, but keep the bits we read)."""
    a, b, c, d = counter
    k, l = key  # noqa: E741 - the two words of the key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32 & _MASK) ^ b ^ k, right & _MASK, (left >> 32 & _MASK) ^ d ^ l, left & _MASK
        k, l = k + 0x9E3779B9 & _MASK, l + 0xBB67AE85 & _MASK  # noqa: E741
    return a, b, c, d


def noise_bits(seeds: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """32 random bits for every row and vocabulary index, [B, V] int64, from seeds and positions [B] int64."""
    tiles = -(-vocabulary // TILE)
    counters = torch.arange(tiles * LANES, dtype=torch.int64, device=seeds.device)[None, :]
    position, seed = positions[:, None], seeds[:, None]
    counter = (counters, torch.full_like(counters, TOKENS), position & _MASK, position >> 32 & _MASK)
    words = torch.stack(philox(counter, (seed & _MASK, seed >> 32 & _MASK)), dim=1)  # [B, 4, tiles * LANES]
    return words.view(len(seeds), 4, tiles, LANES).transpose(1, 2).reshape(len(seeds), tiles * TILE)[:, :vocabulary]


def gumbel(seeds: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise -log(-log(1 - w)), w = (bits + 1/2) / 2^32, [B, V] float32.

    1 - w is exact in float64, so the tail that wins draws, w near 0, keeps its full resolution.
    """
    w = (noise_bits(seeds, positions, vocabulary).double() + 0.5) * 2.0**-32
    return (-log(-log(1.0 - w))).float()


def log(y: Tensor) -> Tensor:
    """log y for y > 0 in float64, to 1e-10 relative: 2 atanh((m - 1) / (m + 1)) + e log 2 with m in [sqrt 1/2, sqrt 2)."""
    mantissa, exponent = torch.frexp(y)
    low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(low, mantissa + mantissa, mantissa)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = torch.full_like(s, _SERIES[0])
    for coefficient in _SERIES[1:]:
        series = series * square + coefficient
    return (s + s) * series + (exponent - low.int()).double() * math.log(2.0)


def _signed(word: int) -> int:
    return (word + 2**63) % 2**64 - 2**63
