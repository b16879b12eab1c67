"""Commits the masked positions of each row that its rule trusts, in place and without a word to the host.

Candidates of a row are its masked positions with a proposal (>= 0), ordered by confidence from high to low, the leftmost first
on a tie; NaN counts as the lowest. With c_n the n-th confidence, n from 1, a rule with value v accepts the longest prefix with

    threshold       c_n > v                          (Dimple, 2505.16990, decodes so)
    quota           n <= ceil(v)
    factor          (n + 1) (1 - c_n) < v            (Fast-dLLM, 2505.22618)
    frechet         sum of 1 - c_i over i <= n < v   (a union bound on any of n tokens being wrong)
    entropy_bound   sum of -c_i over i < n <= v      (confidence is minus the entropy, in nats)
    leftmost        n <= ceil(v), ordered by position instead

Whatever the rule says, a row with a candidate commits at least the first. A row never looks at another.
"""

from __future__ import annotations

import functools
import math
from ctypes import c_int, c_int64, c_void_p
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from strop.errors import KernelError
from strop.kernels.build import load
from strop.kernels.registry import Arguments, FastPath, Op, arguments
from strop.kernels.rows import c_support


class Rule(IntEnum):
    THRESHOLD = 0
    QUOTA = 1
    FACTOR = 2
    FRECHET = 3
    ENTROPY_BOUND = 4
    LEFTMOST = 5


def select(canvas: Tensor, masked: Tensor, proposals: Tensor, confidence: Tensor, *, rule: Tensor, value: Tensor) -> Tensor:
    """The positions committed now, [B, T] bool; there, `canvas` takes the proposal and `masked` becomes False.

    All [B, T]: `canvas` int64 and `masked` bool, written in place, `proposals` int64, `confidence` float32. Per row, [B]:
    `rule` int32, a `Rule`, and `value` float32.
    """
    grids = {"masked": (masked, torch.bool), "proposals": (proposals, torch.int64), "confidence": (confidence, torch.float32)}
    _check("canvas", canvas, torch.int64, canvas.shape if canvas.dim() == 2 else torch.Size([0, 0]), canvas.device)
    for name, (tensor, dtype) in grids.items():
        _check(name, tensor, dtype, canvas.shape, canvas.device)
    _check("rule", rule, torch.int32, canvas.shape[:1], canvas.device)
    _check("value", value, torch.float32, canvas.shape[:1], canvas.device)
    return op(canvas, masked, proposals, confidence, rule, value)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device:
        given = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        raise KernelError(f"{name}: expected {dtype} {list(shape)} on {device}, got {given}.", param=name)


def reference(canvas: Tensor, masked: Tensor, proposals: Tensor, confidence: Tensor, rule: Tensor, value: Tensor) -> Tensor:
    """The definition."""
    candidates = masked & (proposals >= 0)
    places = torch.arange(canvas.shape[1], dtype=torch.float32, device=canvas.device)
    trust = torch.where((rule == Rule.LEFTMOST)[:, None], -places, confidence.nan_to_num(-math.inf, math.inf, -math.inf))
    order = trust.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, candidates.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
    chosen = _prefix(trust.gather(1, order).double(), rule, value.double()[:, None])
    if canvas.shape[1]:
        chosen[:, 0] = True
    committed = candidates & torch.zeros_like(candidates).scatter(1, order, chosen)
    canvas.copy_(torch.where(committed, proposals, canvas))
    masked &= ~committed
    return committed


def _prefix(c: Tensor, rule: Tensor, value: Tensor) -> Tensor:
    """Which of the ordered confidences c [B, T] each row's rule accepts."""
    n = torch.arange(1, c.shape[1] + 1, device=c.device)
    accepts = {
        Rule.THRESHOLD: c > value,
        Rule.QUOTA: n - 1 < value,
        Rule.FACTOR: (n + 1) * (1 - c) < value,
        Rule.FRECHET: (1 - c).cumsum(1) < value,
        Rule.ENTROPY_BOUND: (-c).cumsum(1).roll(1, 1).masked_fill(n == 1, 0.0) <= value,
        Rule.LEFTMOST: n - 1 < value,
    }
    chosen = torch.zeros_like(c, dtype=torch.bool)
    for each, accept in accepts.items():
        chosen = torch.where((rule == each)[:, None], accept, chosen)
    return chosen.int().cumprod(1).bool()


def _run_c(canvas: Tensor, masked: Tensor, proposals: Tensor, confidence: Tensor, rule: Tensor, value: Tensor) -> Tensor:
    committed = torch.empty(canvas.shape, dtype=torch.bool)
    grids = [word for grid in (canvas, masked, proposals, confidence) for word in (grid.data_ptr(), grid.stride(0))]
    rows = (rule.data_ptr(), value.data_ptr(), committed.data_ptr())
    _c_function()(*grids, *canvas.shape, *rows, torch.get_num_threads())
    return committed


@functools.cache
def _c_function() -> Any:
    return load("select").function("select_rows", *[c_void_p, c_int64] * 4, c_int64, c_int64, *[c_void_p] * 3, c_int)


def _fake(canvas: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(canvas, dtype=torch.bool, memory_format=torch.contiguous_format)


def _example() -> Arguments:
    rows, positions = len(Rule), 12
    confidence = torch.arange(rows * positions, dtype=torch.float32).mul(0.7).sin().abs().view(rows, positions)
    confidence[Rule.ENTROPY_BOUND] -= 1.0
    return arguments(
        torch.full((rows, positions), -7),
        torch.arange(rows * positions).view(rows, positions) % 4 != 1,
        torch.arange(rows * positions).view(rows, positions),
        confidence,
        torch.tensor([*Rule], dtype=torch.int32),
        torch.tensor([0.6, 2.5, 0.9, 0.7, 0.4, 3.0]),
    )


op = Op("select", reference, FastPath("cpu", _run_c, c_support("select")), example=_example)
op.register(fake=_fake, mutates=("canvas", "masked"))
