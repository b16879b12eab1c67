"""Sequences with keys, values and queries, as packed rows over scattered pages and as plain tensors beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tolerances import ATTENTION
from torch import Tensor

from strop.kernels.paged_attention import PAGE, allocate, attend, write


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One attention layer. `heads` = `kv_heads` * `group`."""

    kv_heads: int = 2
    group: int = 3
    head_dim: int = 32
    dtype: torch.dtype = torch.bfloat16
    window: int | None = None
    softcap: float | None = None

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


@dataclass(frozen=True, slots=True)
class Stretch:
    """q [n, H, D] belongs to the last n of the keys and values [length, KV, D]."""

    q: Tensor
    k: Tensor
    v: Tensor


def sequence(shape: Shape, length: int, seed: int = 0) -> Stretch:
    """A sequence with a query at every key."""
    generator = torch.Generator().manual_seed(seed * 100_003 + length)
    heads = shape.kv_heads * shape.group
    q = torch.randn(length, heads, shape.head_dim, generator=generator)
    k, v = torch.randn(2, length, shape.kv_heads, shape.head_dim, generator=generator)
    return Stretch(q.to(shape.dtype), k.to(shape.dtype), v.to(shape.dtype))


def oracle(shape: Shape, one: Stretch) -> Tensor:
    """Attention of one sequence in float64, by its definition."""
    k, v = (each.double().repeat_interleave(shape.group, dim=1) for each in (one.k, one.v))
    scores = torch.einsum("qhd,khd->hqk", one.q.double(), k) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    n, length = len(one.q), len(one.k)
    age = (torch.arange(length - n, length).unsqueeze(1) - torch.arange(length)).unsqueeze(0)
    hidden = (age < 0) | (age >= (shape.window or length + 1))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


class Cache:
    """A paged cache full of NaN, with a guard page before and after it; pages are dealt in a random order."""

    def __init__(self, shape: Shape, pages: int, seed: int = 0) -> None:
        self.shape = shape
        self.guarded = allocate(pages + 2, shape.kv_heads, shape.head_dim, shape.dtype)
        for cache in self.guarded:
            cache.fill_(float("nan"))
        self.k_cache, self.v_cache = (cache[1:-1] for cache in self.guarded)
        self.free = torch.randperm(pages, generator=torch.Generator().manual_seed(seed)).tolist()

    def table(self, length: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-length // PAGE))]

    def write(self, one: Stretch, table: Sequence[int], start: int = 0, end: int | None = None) -> None:
        """Keys and values `start` to `end` of the sequence, with a row of padding behind them."""
        end = len(one.k) if end is None else end
        slots = [table[j // PAGE] * PAGE + j % PAGE for j in range(start, end)]
        padding = one.k[:1] * float("nan")
        k, v = torch.cat([one.k[start:end], padding]), torch.cat([one.v[start:end], padding])
        write(k, v, self.k_cache, self.v_cache, torch.tensor([*slots, -1], dtype=torch.int32))

    def attend(
        self, queries: Sequence[Tensor], tables: Sequence[Sequence[int]], lengths: Sequence[int], padding: int = 0
    ) -> Tensor:
        """The queries [n, H, D] of each sequence, packed as a strided view between rows of NaN."""
        rows = sum(len(q) for q in queries)
        buffer = torch.full((rows + padding, 3, *queries[0].shape[1:]), float("nan"), dtype=self.shape.dtype)
        buffer[:rows, 1] = torch.cat(list(queries))
        return attend(
            buffer[:, 1],
            self.k_cache,
            self.v_cache,
            pack(tables),
            torch.tensor([0, *(len(q) for q in queries)]).cumsum(0).int(),
            torch.tensor(list(lengths), dtype=torch.int32),
            scale=self.shape.scale,
            window=self.shape.window,
            softcap=self.shape.softcap,
        )


def pack(tables: Sequence[Sequence[int]]) -> Tensor:
    """[S, P] int32; short rows end in a page that does not exist, for nobody may read it."""
    width = max(len(table) for table in tables)
    return torch.tensor([[*table, *[2**30] * (width - len(table))] for table in tables], dtype=torch.int32)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Equal within the table's entry for `dtype`, by default that of `actual`."""
    rtol, atol = ATTENTION[dtype or actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)
