"""Causal attention of packed queries over a paged key-value cache.

`T` queries of `S` sequences stand back to back; a sequence's keys lie in the pages of 16 that its row of `tables` names.
Law: what a query gets depends, bit for bit, only on itself and the keys it sees: not on its neighbours in the call, on how
the prompt was cut, on page numbers or on threads. So each query meets its keys in one fixed order, whatever is beside it.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import Any

import torch
from torch import Tensor

from strop.errors import KernelError
from strop.kernels import build
from strop.kernels.paged_cache import PAGE, allocate, copy_page, gather, rows_are_dense, write
from strop.kernels.registry import Arguments, FastPath, Op, arguments

__all__ = ["ATTEND", "PAGE", "allocate", "attend", "copy_page", "write"]

_NO_WINDOW = 1 << 40
_CALL = struct.Struct("@7P9q2f2i")  # Call in csrc/attention.cpp
_LARGEST_HEAD = 512  # MAX_DIM of csrc/attention.cpp: what a task holds on its stack
_CHECK = (2**-6, 2**-6)  # weights and results are rounded to bfloat16
_FAULTS = (
    "starts must begin with 0, never fall, and end within the rows of q",
    "lengths must lie between 0 and the keys that tables has room for",
    "tables names a page that the cache does not have",
)


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
    A query that sees no key gets zeros.
    """
    _check(q, k_cache, v_cache, tables, starts, lengths, window, softcap)
    return ATTEND(q, k_cache, v_cache, tables, starts, lengths, scale=scale, window=window, softcap=softcap)


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    tables: Tensor,
    starts: Tensor,
    lengths: Tensor,
    window: int | None,
    softcap: float | None,
) -> None:
    kv_heads, head_dim = v_cache.shape[1], v_cache.shape[3]
    if q.dim() != 3 or q.shape[2] != head_dim or q.shape[1] % kv_heads:
        raise KernelError(f"q: must be [T, a multiple of {kv_heads}, {head_dim}] for these caches; got {list(q.shape)}.")
    if not q.dtype is k_cache.dtype is v_cache.dtype:
        raise KernelError(f"q: must have the caches' type {k_cache.dtype}; got {q.dtype}.")
    others = {"k_cache": k_cache, "v_cache": v_cache, "tables": tables, "starts": starts, "lengths": lengths}
    for name, tensor in others.items():
        if tensor.device != q.device:
            raise KernelError(f"{name}: must be on {q.device} like q; got {tensor.device}.")
    sequences = tables.shape[0]
    if lengths.shape[0] != sequences or starts.shape[0] != sequences + 1:
        raise KernelError(f"tables has {sequences} rows; got {lengths.shape[0]} lengths and {starts.shape[0]} starts.")
    if window is not None and window < 1:
        raise KernelError(f"window: must be at least 1 or None; got {window}.")
    if softcap is not None and not softcap > 0:
        raise KernelError(f"softcap: must be above 0 or None; got {softcap}.")


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
    _check_integers(q, k_cache, tables, starts, lengths)
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    for table, start, end, length in zip(tables, starts.tolist()[:-1], starts.tolist()[1:], lengths.tolist(), strict=True):
        pages = -(-length // PAGE)
        keys, values = (each.float() for each in gather(k_cache, v_cache, table[:pages]))
        for i in range(start, end):
            last = length - (end - i) + 1
            first = max(0, last - window) if window is not None else 0
            if last > first:
                out[i] = _attend_one(q[i].float(), keys[first:last], values[first:last], scale, softcap)
    return out


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None) -> Tensor:
    """One query [H, D] over the keys and values [n, KV, D] it sees: products and sums, so that no matmul picks an order."""
    grouped = q.reshape(keys.shape[1], -1, q.shape[1])
    scores = (grouped * keys.unsqueeze(2)).sum(-1) * scale  # [n, KV, H / KV]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores, dim=0)
    return (weights.unsqueeze(-1) * values.unsqueeze(2)).sum(0).flatten(0, 1)


def _check_integers(q: Tensor, k_cache: Tensor, tables: Tensor, starts: Tensor, lengths: Tensor) -> None:
    if starts[0] != 0 or bool((starts.diff() < 0).any()) or starts[-1] > q.shape[0]:
        raise _fault(1)
    if bool(((lengths < 0) | (lengths > tables.shape[1] * PAGE)).any()):
        raise _fault(2)
    used = torch.arange(tables.shape[1], device=tables.device) * PAGE < lengths.unsqueeze(1)
    if bool((used & ((tables < 0) | (tables >= k_cache.shape[0]))).any()):
        raise _fault(3)


def _fault(number: int) -> KernelError:
    return KernelError(f"attend: {_FAULTS[number - 1]}.")


def attend_cpu(
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
    tokens, heads, head_dim = q.shape
    out = torch.empty((tokens, heads, head_dim), dtype=q.dtype)
    pages, kv_heads = k_cache.shape[:2]
    sequences, width = tables.shape
    call = _CALL.pack(
        q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), out.data_ptr(), tables.data_ptr(), starts.data_ptr(),
        lengths.data_ptr(), q.stride(0), tokens, sequences, width, pages, heads, kv_heads, head_dim, window or _NO_WINDOW,
        scale, softcap or 0.0, q.dtype is torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip
    fault = _c_attend()(call)
    if fault:
        raise _fault(fault)
    return out


def attend_cpu_supports(
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
) -> str | None:
    missing = build.load("attention").missing
    if missing is not None:
        return missing
    if not (q.is_cpu and k_cache.is_cpu and v_cache.is_cpu and tables.is_cpu and starts.is_cpu and lengths.is_cpu):
        return "a tensor is not on the CPU"
    if q.dtype is not torch.bfloat16 and q.dtype is not torch.float32:
        return f"{q.dtype} is neither bfloat16 nor float32"
    head_dim = q.shape[2]
    if head_dim % 16 or head_dim > _LARGEST_HEAD:
        return f"head_dim {head_dim} is not a multiple of 16 up to {_LARGEST_HEAD}"
    if not (rows_are_dense(q) and k_cache.is_contiguous() and v_cache.is_contiguous()):
        return "the rows of q or the caches are not contiguous"
    if not (tables.dtype is starts.dtype is lengths.dtype is torch.int32):
        return "tables, starts and lengths must be int32"
    return None if tables.is_contiguous() and starts.is_contiguous() and lengths.is_contiguous() else "tables are strided"


@functools.cache
def _c_attend() -> Any:
    return build.load("attention").function("strop_attend", ctypes.c_char_p, returns=ctypes.c_int)


def _example() -> Arguments:
    generator = torch.Generator().manual_seed(0)
    k_cache, v_cache = (cache.normal_(generator=generator) for cache in allocate(3, 2, 16, torch.bfloat16))
    q = torch.randn(5, 4, 16, generator=generator).bfloat16()
    tables = torch.tensor([[2, 0], [1, 1]], dtype=torch.int32)
    starts, lengths = torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([18, 1], dtype=torch.int32)
    return arguments(q, k_cache, v_cache, tables, starts, lengths, scale=0.25)


def _fake(q: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


ATTEND = Op(
    "paged_attend", attend_reference, FastPath("cpu", attend_cpu, attend_cpu_supports), example=_example, tolerance=_CHECK
)
ATTEND.register(fake=_fake)
