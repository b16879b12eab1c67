"""Causal attention of packed queries over a paged key-value cache.

`T` queries of `S` sequences stand back to back; a sequence's keys lie in pages of 16 tokens named by its row of `tables`.
Law: what a query gets depends, bit for bit, only on itself and the keys it sees: not on its neighbours in the call, on how
the prompt was cut, on page numbers or on threads. So each query meets its keys in one fixed order, whatever is beside it.

Inside a page, `pack` values share 32 bits (2 of 16 bits or 1 of 32), so that one instruction takes a pair of them:
keys are [pages, KV, D / pack, 16, pack] (16 keys' scores in one register), values [pages, KV, 16 / pack, D, pack].
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.errors import KernelError
from strop.kernels.registry import Arguments, Op, arguments

PAGE = 16


def allocate(pages: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Empty key and value caches of one layer. 16-bit types need an even `head_dim`."""
    pack = max(1, 4 // dtype.itemsize)
    if head_dim % pack:
        raise KernelError(f"head_dim {head_dim} is odd; {dtype} caches need an even one.")
    keys = torch.zeros(pages, kv_heads, head_dim // pack, PAGE, pack, dtype=dtype)
    values = torch.zeros(pages, kv_heads, PAGE // pack, head_dim, pack, dtype=dtype)
    return keys, values


def write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Put `k`, `v` [T, KV, D] at `slots` [T] int32: page * 16 + offset, or -1 to skip a row of padding."""
    WRITE(k, v, k_cache, v_cache, slots)


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tables: Tensor,
    starts: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(scale q kᵀ) v over the keys each query sees; [T, H, D] like `q`. H is a multiple of KV (grouped queries).

    `tables` [S, P] int32: the pages of each sequence. `starts` [S + 1] int32: where its queries begin in `q`; rows from
    `starts[S]` on are padding and come back zero. `lengths` [S] int32: keys that its last query sees. So query i of n sees
    keys j <= length - n + i, and of those only the last `window`. `softcap`: scores become softcap * tanh(score / softcap).
    """
    return ATTEND(q, k_cache, v_cache, tables, starts, lengths, scale=scale, window=window, softcap=softcap)


def copy_page(k_cache: Tensor, v_cache: Tensor, source: int, target: int) -> None:
    """Copy one page, for a sequence that forks in the middle of it."""
    k_cache[target].copy_(k_cache[source])
    v_cache[target].copy_(v_cache[source])


def write_reference(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    kept = slots >= 0
    k, v, slots = k[kept], v[kept], slots[kept].long()
    page, offset, pack = slots // PAGE, slots % PAGE, k_cache.shape[-1]
    k_cache.permute(0, 3, 1, 2, 4)[page, offset] = k.reshape(*k.shape[:2], -1, pack)
    v_cache.permute(0, 2, 4, 1, 3)[page, offset // pack, offset % pack] = v


def attend_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tables: Tensor,
    starts: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    out = torch.zeros(q.shape, dtype=q.dtype)
    for s, (start, end) in enumerate(zip(starts.tolist(), starts.tolist()[1:], strict=False)):
        keys, values = _gather(k_cache, v_cache, tables[s])
        for i in range(start, end):
            last = int(lengths[s]) - (end - i) + 1
            first = max(0, last - window) if window is not None else 0
            if last > first:
                out[i] = _attend_one(q[i].float(), keys[first:last], values[first:last], scale, softcap)
    return out


def _gather(k_cache: Tensor, v_cache: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values [P * 16, KV, D] of one sequence, in order, as float32."""
    pages = table.long()
    keys = k_cache[pages].permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)
    values = v_cache[pages].permute(0, 2, 4, 1, 3).flatten(0, 2)
    return keys.float(), values.float()


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None) -> Tensor:
    """One query [H, D] over the keys and values [n, KV, D] it sees: products and sums, so that no matmul picks an order."""
    grouped = q.reshape(keys.shape[1], -1, q.shape[1])
    scores = (grouped * keys.unsqueeze(2)).sum(-1) * scale  # [n, KV, H / KV]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores, dim=0)
    return (weights.unsqueeze(-1) * values.unsqueeze(2)).sum(0).flatten(0, 1)


def _write_example() -> Arguments:
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 3, 2, 16, generator=generator)
    return arguments(k, v, *allocate(2, 2, 16, torch.float32), torch.tensor([17, -1, 3], dtype=torch.int32))


def _attend_example() -> Arguments:
    generator = torch.Generator().manual_seed(0)
    k_cache, v_cache = allocate(3, 2, 16, torch.float32)
    k_cache.normal_(generator=generator)
    v_cache.normal_(generator=generator)
    q = torch.randn(5, 4, 16, generator=generator)
    tables = torch.tensor([[2, 0], [1, 1]], dtype=torch.int32)
    starts, lengths = torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([18, 1], dtype=torch.int32)
    return arguments(q, k_cache, v_cache, tables, starts, lengths, scale=0.25)


WRITE = Op("paged_write", write_reference, example=_write_example)
ATTEND = Op("paged_attend", attend_reference, example=_attend_example)
