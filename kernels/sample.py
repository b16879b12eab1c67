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

import math

import torch
from torch import Tensor

from strop.errors import KernelError
from strop.kernels.rng import gumbel, log

GREEDY_BELOW = 1e-5
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

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
    settings = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
    check_rows(logits, torch.float32, **settings)
    check_rows(logits, torch.int32, top_k=top_k)
    check_rows(logits, torch.int64, seeds=seeds, positions=positions)
    return reference(logits, temperature, top_k, top_p, min_p, seeds, positions)


def check_logits(name: str, logits: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise KernelError(f"{name}: expected shape [B, V] with V >= 1, got {list(logits.shape)}.", param=name)
    if logits.dtype not in DTYPES:
        raise KernelError(f"{name}: expected float32, bfloat16 or float16, got {logits.dtype}.", param=name)


def check_rows(logits: Tensor, dtype: torch.dtype, **settings: Tensor) -> None:
    """Each setting must hold one number of `dtype` per row of `logits`, on its device."""
    for name, value in settings.items():
        if value.dtype != dtype or value.shape != logits.shape[:1] or value.device != logits.device:
            wanted = f"{dtype} [{logits.shape[0]}] on {logits.device}"
            given = f"{value.dtype} {list(value.shape)} on {value.device}"
            raise KernelError(f"{name}: expected {wanted}, one number a row, got {given}.", param=name)


def reference(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """The definition."""
    greedy = temperature < GREEDY_BELOW
    z = logits.float() * torch.where(greedy, 1.0, 1.0 / temperature)[:, None]
    kept = torch.where(z < threshold(z, top_k, top_p, min_p)[:, None], -math.inf, z)
    scores = torch.where(greedy[:, None], z, kept + gumbel(seeds, positions, z.shape[1]))
    return torch.where(torch.isfinite(z.amax(1)), scores.argmax(1), -1)


def threshold(z: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The smallest tempered logit that min-p, top-k and top-p keep, [B] float32. Sorts, for plainness; fast paths need not."""
    ordered = z.sort(dim=1, descending=True).values
    top = ordered[:, 0]
    floor = torch.where(min_p > 0, top + log(min_p.double()).float(), -math.inf)
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
