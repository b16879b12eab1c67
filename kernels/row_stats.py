"""Everything a decoder asks about a row of logits, from one read of it.

For a row x [V]: z = x / temperature, computed as x * (1 / temperature), p = softmax(z), and

    lse = log sum exp z        entropy = -sum p log p
    confidence = max p         margin = max p - second largest p
    self-certainty = lse - mean z - log V, over the entries above -inf
    winner = argmax(x / draw_temperature + Gumbel noise): the token that `sample` draws without filters

Ties go to the lowest index. A row that holds NaN or +inf, or nothing above -inf, has -1 for indices and NaN for numbers. The
read is B * V elements; logits never leave it in another form.
"""

from __future__ import annotations

import functools
import math
from ctypes import c_int, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from strop.errors import KernelError
from strop.kernels.build import load
from strop.kernels.registry import Arguments, FastPath, Op, arguments
from strop.kernels.rng import gumbel
from strop.kernels.rows import DTYPES, c_support, check_logits, check_per_row
from strop.kernels.sample import GREEDY_BELOW

BLOCK = 4096
"""Columns that C folds at a time; a vocabulary may be split over calls at multiples of it without changing a bit."""

_STATE_BYTES = 80
Numbers = tuple[Tensor, Tensor, Tensor]


class RowStats(NamedTuple):
    """Of each row [B]; `argmax` and `winner` int64, `logprobs` in the shape of the ids asked for, all else float32."""

    max: Tensor
    second: Tensor
    lse: Tensor
    entropy: Tensor
    self_certainty: Tensor
    confidence: Tensor
    margin: Tensor
    argmax: Tensor
    logprobs: Tensor
    winner: Tensor
    winner_logprob: Tensor


def row_stats(
    logits: Tensor,
    *,
    temperature: Tensor | None = None,
    ids: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    draw_temperature: Tensor | None = None,
) -> RowStats:
    """Statistics of logits [B, V] (float32, bfloat16 or float16).

    `temperature` [B] float32 > 0 tempers all of them. `ids` [B] or [B, K] int64 asks for log-probabilities (NaN for an id
    outside the vocabulary). `seeds` and `positions` [B] int64 ask for the winner, drawn at `draw_temperature` [B] float32
    (0: greedy; default: `temperature`) while its log-probability, as all else, is at `temperature`.
    """
    check_logits("logits", logits)
    check_asked(logits, temperature, ids, seeds, positions, draw_temperature)
    columns = ids[:, None] if ids is not None and ids.dim() == 1 else ids
    return collect(op(logits, temperature, columns, seeds, positions, draw_temperature), ids)


def check_asked(
    logits: Tensor,
    temperature: Tensor | None,
    ids: Tensor | None,
    seeds: Tensor | None,
    positions: Tensor | None,
    draw_temperature: Tensor | None,
) -> None:
    floats = {"temperature": temperature, "draw_temperature": draw_temperature}
    check_per_row(logits, torch.float32, **{name: value for name, value in floats.items() if value is not None})
    noise = {"seeds": seeds, "positions": positions}
    check_per_row(logits, torch.int64, **{name: value for name, value in noise.items() if value is not None})
    if (seeds is None) != (positions is None):
        raise KernelError("seeds: a draw needs both seeds and positions.", param="seeds")
    if ids is not None and (ids.dtype != torch.int64 or ids.dim() not in (1, 2) or ids.shape[:1] != logits.shape[:1]):
        wanted = f"int64 [{logits.shape[0]}] or [{logits.shape[0]}, K]"
        raise KernelError(f"ids: expected {wanted}, got {ids.dtype} {list(ids.shape)}.", param="ids")
    if ids is not None and ids.device != logits.device:
        raise KernelError(f"ids: expected them on {logits.device} like the rows they belong to, got {ids.device}.", param="ids")


def collect(found: Numbers, ids: Tensor | None) -> RowStats:
    """What an op returned, by name."""
    numbers, picks, logprobs = found
    top, second, lse, entropy, certainty, confidence, margin, winner_logprob = numbers.unbind()
    argmax, winner = picks.unbind()
    shaped = logprobs if ids is None else logprobs.view(ids.shape)
    return RowStats(top, second, lse, entropy, certainty, confidence, margin, argmax, shaped, winner, winner_logprob)


def reference(
    logits: Tensor,
    temperature: Tensor | None,
    ids: Tensor | None,
    seeds: Tensor | None,
    positions: Tensor | None,
    draw_temperature: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: numbers [8, B], argmax and winner [2, B], log-probabilities [B, K]."""
    x = logits.float()
    z = x if temperature is None else x * (1.0 / temperature)[:, None]
    top, argmax = z.max(1)
    d = z - top[:, None]
    finite = z > -math.inf
    e, count = d.exp(), finite.sum(1)
    second = z.scatter(1, argmax[:, None], -math.inf).amax(1)
    total = torch.where(finite, z, 0.0).sum(1, dtype=torch.float64)
    log_sum = e.sum(1, dtype=torch.float64).log()
    entropy = log_sum - torch.where(finite, e * d, 0.0).sum(1, dtype=torch.float64) / log_sum.exp()
    lse = top + log_sum
    certainty = lse - total / count - count.log()
    winner = torch.full_like(argmax, -1)
    if seeds is not None and positions is not None:
        winner = _winner(x, temperature if draw_temperature is None else draw_temperature, seeds, positions)
    chosen = torch.where(winner < 0, math.nan, z.gather(1, winner.clamp(min=0)[:, None])[:, 0])
    confidence = (-log_sum).exp()
    margin = confidence * -torch.expm1((second - top).double())
    columns = [top, second, lse, entropy.clamp(min=0.0), certainty, confidence, margin, chosen - lse]
    numbers = torch.stack(columns).float()
    logprobs = z.new_empty(len(z), 0) if ids is None else _picked(z, ids) - lse[:, None]
    valid = torch.isfinite(top)
    picks = torch.where(valid, torch.stack([argmax, winner]), -1)
    return torch.where(valid, numbers, math.nan), picks, torch.where(valid[:, None], logprobs.float(), math.nan)


def _winner(x: Tensor, temperature: Tensor | None, seeds: Tensor, positions: Tensor) -> Tensor:
    noise = gumbel(seeds, positions, x.shape[1])
    if temperature is None:
        return (x + noise).argmax(1)
    scores = x * (1.0 / temperature)[:, None] + noise
    return torch.where(temperature < GREEDY_BELOW, x.argmax(1), scores.argmax(1))


def _picked(z: Tensor, ids: Tensor) -> Tensor:
    inside = (ids >= 0) & (ids < z.shape[1])
    return torch.where(inside, z.gather(1, torch.where(inside, ids, 0)), math.nan)


def _run_c(
    logits: Tensor,
    temperature: Tensor | None,
    ids: Tensor | None,
    seeds: Tensor | None,
    positions: Tensor | None,
    draw_temperature: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    fold = Fold(len(logits), temperature, ids, seeds, positions, draw_temperature)
    fold.take(logits, last=True)
    return fold.found


class Fold:
    """Statistics under way in C: `take` chunks of columns from left to right, each but the last a multiple of `BLOCK` wide."""

    def __init__(
        self,
        rows: int,
        temperature: Tensor | None,
        ids: Tensor | None,
        seeds: Tensor | None,
        positions: Tensor | None,
        draw_temperature: Tensor | None,
    ) -> None:
        width = 0 if ids is None else ids.shape[1]
        self.found = torch.empty(8, rows), torch.empty(2, rows, dtype=torch.int64), torch.empty(rows, width)
        self._states = torch.empty(rows, _STATE_BYTES, dtype=torch.uint8)
        self._asked = (temperature, None if ids is None else ids.contiguous(), seeds, positions, draw_temperature)
        self._offset = 0

    def take(self, chunk: Tensor, *, last: bool) -> None:
        temperature, ids, *draw = (None if tensor is None else tensor.data_ptr() for tensor in self._asked)
        shape = (DTYPES.index(chunk.dtype), *chunk.shape, chunk.stride(0), self._offset, last)
        outputs = (self._states, *self.found)
        asked = (temperature, ids, self.found[2].shape[1], *draw)
        _c_function()(chunk.data_ptr(), *shape, *asked, *(out.data_ptr() for out in outputs), torch.get_num_threads())
        self._offset += chunk.shape[1]


@functools.cache
def _c_function() -> Any:
    library = load("row_stats")
    shape = (c_int, *[c_int64] * 4, c_int)
    asked = (c_void_p, c_void_p, c_int64, *[c_void_p] * 3)
    return library.function("row_stats", c_void_p, *shape, *asked, *[c_void_p] * 4, c_int)


def _fake(logits: Tensor, temperature: Tensor | None, ids: Tensor | None, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = logits.shape[0], 0 if ids is None else ids.shape[1]
    numbers = logits.new_empty(8, rows, dtype=torch.float32)
    picks = logits.new_empty(2, rows, dtype=torch.int64)
    return numbers, picks, logits.new_empty(rows, width, dtype=torch.float32)


def _example() -> Arguments:
    logits = torch.arange(3 * 97, dtype=torch.float32).mul(0.7).sin().mul(4.0).view(3, 97)
    ids = torch.tensor([[0, 96], [5, 5], [12, 13]])
    draw_temperature = torch.tensor([1.0, 0.0, 0.5])
    seeds, positions = torch.tensor([3, 1, 4]), torch.tensor([1, 5, 9])
    return arguments(logits, torch.tensor([1.0, 0.7, 1.3]), ids, seeds, positions, draw_temperature)


op = Op("row_stats", reference, FastPath("cpu", _run_c, c_support("row_stats")), example=_example)
op.register(fake=_fake)
