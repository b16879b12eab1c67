"""Draws one token per row from its tempered and truncated distribution, with noise keyed by (seed, position, index).

For a row x: z = x / temperature, computed as x * (1 / temperature); m = max z. Filters, in this order, each on what the one
before left; every filter keeps all tokens that tie with the last one it keeps:

    min-p   keep z >= m + log(min_p)
    top-k   keep the k largest z
    top-p   keep z while the mass of the tokens with a larger z is below top_p times the mass that min-p and top-k left

A token's mass is round(2^30 exp(z - m)): integers sum exactly in any order. Among the kept tokens the winner is
argmax(z + Gumbel noise), the lowest index on a tie, which is an exact draw from the renormalised softmax. Rows with a
temperature under `GREEDY_BELOW` take argmax x and need no noise. A row that holds NaN or +inf, or nothing above -inf, gets -1.
"""

from __future__ import annotations

import functools
import math
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from strop.kernels.build import load
from strop.kernels.registry import Arguments, FastPath, Op, arguments
from strop.kernels.rng import gumbel, log
from strop.kernels.rows import DTYPES, c_support, check_logits, check_per_row

GREEDY_BELOW = 1e-5

# exp on [-log(2) / 2, log(2) / 2]; log 2 is split so that n * _LN2_HIGH is exact.
_EXP = (1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0)
_LN2_HIGH = 0.693359375
_LN2_LOW = math.log(2.0) - _LN2_HIGH


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Token ids [B] int64 drawn from logits [B, V] (float32, bfloat16 or float16).

    Per row, [B]: `temperature` float32 (0: greedy), `top_k` int32 (0: off), `top_p` float32 (1: off), `min_p` float32
    (0: off), `seeds` and `positions` int64.
    """
    check_logits("logits", logits)
    check_settings(logits, temperature, top_k, top_p, min_p, seeds, positions)
    return op(logits, temperature, top_k, top_p, min_p, seeds, positions)


def check_settings(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> None:
    check_logits("logits", logits)
    check_per_row(logits, torch.float32, temperature=temperature, top_p=top_p, min_p=min_p)
    check_per_row(logits, torch.int32, top_k=top_k)
    check_per_row(logits, torch.int64, seeds=seeds, positions=positions)


def reference(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """The definition."""
    return draw(logits.float(), temperature, top_k, top_p, min_p, seeds, positions)


def draw(
    x: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """The definition, for float32 logits x [B, V]."""
    greedy = temperature < GREEDY_BELOW
    z = x * torch.where(greedy, 1.0, 1.0 / temperature)[:, None]
    kept = torch.where(z < threshold(z, top_k, top_p, min_p)[:, None], -math.inf, z)
    scores = torch.where(greedy[:, None], z, kept + gumbel(seeds, positions, z.shape[1]))
    return torch.where(torch.isfinite(z.amax(1)), scores.argmax(1), -1)


def threshold(z: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The smallest tempered logit that min-p, top-k and top-p keep, [B] float32. Sorts, for plainness; fast paths need not."""
    ordered = z.sort(dim=1, descending=True).values
    top = ordered[:, 0]
    floor = torch.where(min_p > 0, top + log(min_p.double().clamp(max=1.0)).float(), -math.inf)
    kth = ordered.gather(1, top_k.long().clamp(1, z.shape[1])[:, None] - 1)[:, 0]
    floor = torch.where(top_k > 0, torch.maximum(floor, kth), floor)
    masses = torch.where(ordered >= floor[:, None], mass(ordered - top[:, None]), 0)
    above = masses.cumsum(1) - masses
    limit = (top_p.double() * masses.sum(1).double()).clamp(min=1.0)
    last = (above < limit[:, None]).sum(1, keepdim=True) - 1
    nucleus = ordered.gather(1, last.clamp(min=0))[:, 0]
    return torch.where(top_p < 1, torch.maximum(floor, nucleus), floor)


def mass(d: Tensor) -> Tensor:
    """round(2^30 exp(d)) for d <= 0 as int64, by float32 operations that are exactly rounded one by one."""
    d = d.clamp(min=-22.0)
    n = torch.round(d * math.log2(math.e))
    r = (d - n * _LN2_HIGH) - n * _LN2_LOW
    p = torch.full_like(r, _EXP[0])
    for coefficient in _EXP[1:]:
        p = p * r + coefficient
    power = ((n.int() + (127 + 30)) << 23).view(torch.float32)
    return torch.round(p * power).long()


def _run_c(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    ids = torch.empty(len(logits), dtype=torch.int64)
    settings = (temperature, top_k, top_p, min_p, seeds, positions, ids)
    shape = (DTYPES.index(logits.dtype), *logits.shape, logits.stride(0))
    _c_function()(logits.data_ptr(), *shape, *(tensor.data_ptr() for tensor in settings), torch.get_num_threads())
    return ids


@functools.cache
def _c_function() -> Any:
    return load("sample").function("sample", c_void_p, c_int, *[c_int64] * 3, *[c_void_p] * 7, c_int)


def _fake(logits: Tensor, *_: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _example() -> Arguments:
    logits = torch.arange(5 * 97, dtype=torch.float32).mul(0.7).sin().mul(4.0).view(5, 97)
    return arguments(
        logits,
        torch.tensor([1.0, 0.0, 0.7, 1.3, 0.9]),
        torch.tensor([0, 0, 7, 20, 0], dtype=torch.int32),
        torch.tensor([1.0, 1.0, 1.0, 0.5, 0.8]),
        torch.tensor([0.0, 0.0, 0.0, 0.02, 0.1]),
        torch.tensor([3, 1, 4, -1, 5]),
        torch.tensor([9, 2, 6, 5, 2**33]),
    )


op = Op("sample", reference, FastPath("cpu", _run_c, c_support("sample")), example=_example)
op.register(fake=_fake)
