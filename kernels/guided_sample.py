"""Draws one token per row from a strong model's logits steered by a weak model's, without writing the combined row.

For rows s (strong) and w (weak): x = w + scale * (s - w), then `sample`'s definition on x. In these letters

    contrastive decoding (2210.15097; with logits as in 2309.09117): scale = 1 + beta, plausibility = alpha
    classifier-free guidance (2306.17806): s with the condition, w without, scale = gamma
    autoguidance (2406.02507): scale = w of equation 1

Normalising the logits first would shift a whole row, which changes no draw. Tokens with s < max s + log(plausibility), that is
with less than `plausibility` times the strong model's largest probability, are dropped (2210.15097 eq. 2). An entry at -inf in
s stays there (a grammar's mask); where only w is at -inf, x = s.
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
from strop.kernels.rng import log
from strop.kernels.rows import DTYPES, c_support, check_alike, check_logits, check_per_row
from strop.kernels.sample import check_settings, draw


def guided_sample(
    strong: Tensor,
    weak: Tensor,
    *,
    scale: Tensor,
    plausibility: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Token ids [B] int64 from strong and weak logits [B, V] of one dtype (float32, bfloat16 or float16).

    Per row, [B] float32: `scale` (1: strong alone, 0: weak alone but for its masks) and `plausibility` (0: off). The rest, and
    the rows that get -1, as in `sample`.
    """
    check_logits("strong", strong)
    check_alike(strong, "weak", weak)
    check_per_row(strong, torch.float32, scale=scale, plausibility=plausibility)
    check_settings(strong, temperature, top_k, top_p, min_p, seeds, positions)
    return op(strong, weak, scale, plausibility, temperature, top_k, top_p, min_p, seeds, positions)


def combine(strong: Tensor, weak: Tensor, scale: Tensor, plausibility: Tensor) -> Tensor:
    """The steered logits x [B, V] float32."""
    s, w = strong.float(), weak.float()
    steered = torch.where(w == -math.inf, s, w + scale[:, None] * (s - w))
    floor = torch.where(plausibility > 0, s.amax(1) + log(plausibility.double().clamp(max=1.0)).float(), -math.inf)
    return torch.where((s == -math.inf) | (s < floor[:, None]), -math.inf, steered)


def reference(
    strong: Tensor,
    weak: Tensor,
    scale: Tensor,
    plausibility: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """The definition."""
    return draw(combine(strong, weak, scale, plausibility), temperature, top_k, top_p, min_p, seeds, positions)


def _run_c(
    strong: Tensor,
    weak: Tensor,
    scale: Tensor,
    plausibility: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    ids = torch.empty(len(strong), dtype=torch.int64)
    settings = (scale, plausibility, temperature, top_k, top_p, min_p, seeds, positions, ids)
    shape = (DTYPES.index(strong.dtype), *strong.shape, strong.stride(0), weak.stride(0))
    rows = (strong.data_ptr(), weak.data_ptr())
    _c_function()(*rows, *shape, *(tensor.data_ptr() for tensor in settings), torch.get_num_threads())
    return ids


@functools.cache
def _c_function() -> Any:
    return load("sample").function("guided_sample", *[c_void_p] * 2, c_int, *[c_int64] * 4, *[c_void_p] * 9, c_int)


def _fake(strong: Tensor, *_: Tensor) -> Tensor:
    return strong.new_empty(strong.shape[0], dtype=torch.int64)


def _example() -> Arguments:
    strong = torch.arange(3 * 97, dtype=torch.float32).mul(0.7).sin().mul(4.0).view(3, 97)
    return arguments(
        strong,
        strong.roll(3, 1) * 0.8,
        torch.tensor([1.5, 3.0, 0.5]),
        torch.tensor([0.0, 0.1, 0.02]),
        torch.tensor([1.0, 0.0, 0.7]),
        torch.tensor([0, 0, 7], dtype=torch.int32),
        torch.tensor([1.0, 0.9, 0.8]),
        torch.tensor([0.0, 0.0, 0.01]),
        torch.tensor([3, 1, 4]),
        torch.tensor([9, 2, 6]),
    )


op = Op("guided_sample", reference, FastPath("cpu", _run_c, c_support("sample")), example=_example)
op.register(fake=_fake)
