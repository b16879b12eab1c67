"""The paged key-value cache: its layout, and the writing of new keys and values into it.

A page holds 16 tokens of one layer. Inside it, `pack` values share 32 bits (2 of 16 bits, or 1 of 32), so that one
instruction takes a pair of them: keys are [pages, KV, D / pack, 16, pack], so that a register holds the same dimensions of
16 keys; values are [pages, KV, 16 / pack, D, pack], so that it holds 16 dimensions of the same keys.
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
from strop.kernels.registry import Arguments, FastPath, Op, arguments

PAGE = 16
_CALL = struct.Struct("@5P6q2i")  # Call in csrc/paged_cache.cpp


def allocate(pages: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Key and value caches of one layer, holding anything: memory is not touched here. 16-bit types need an even `head_dim`."""
    pack = max(1, 4 // dtype.itemsize)
    if head_dim % pack:
        raise KernelError(f"head_dim {head_dim} is odd; {dtype} caches need an even one.")
    keys = torch.empty(pages, kv_heads, head_dim // pack, PAGE, pack, dtype=dtype)
    values = torch.empty(pages, kv_heads, PAGE // pack, head_dim, pack, dtype=dtype)
    return keys, values


def write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Put `k`, `v` [T, KV, D] at `slots` [T] int32: page * 16 + offset, each at most once, or -1 to skip a row of padding."""
    heads_and_dim = (k_cache.shape[1], v_cache.shape[3])
    if k.shape != v.shape or k.shape[1:] != heads_and_dim:
        raise KernelError(f"k, v: both must be [T, {heads_and_dim[0]}, {heads_and_dim[1]}]; got {k.shape} and {v.shape}.")
    if slots.shape != k.shape[:1]:
        raise KernelError(f"slots: must be [{k.shape[0]}], one for each row of k; got {slots.shape}.")
    if not k.dtype is v.dtype is k_cache.dtype is v_cache.dtype:
        raise KernelError(f"k, v: must have the caches' type {k_cache.dtype}; got {k.dtype} and {v.dtype}.")
    for name, tensor in {"v": v, "k_cache": k_cache, "v_cache": v_cache, "slots": slots}.items():
        if tensor.device != k.device:
            raise KernelError(f"{name}: must be on {k.device} like k; got {tensor.device}.")
    WRITE(k, v, k_cache, v_cache, slots)


def copy_page(k_cache: Tensor, v_cache: Tensor, source: int, target: int) -> None:
    """Copy one page, for a sequence that forks in the middle of it."""
    k_cache[target].copy_(k_cache[source])
    v_cache[target].copy_(v_cache[source])


def gather(k_cache: Tensor, v_cache: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values [P * 16, KV, D] of the pages in `table` [P], in order; contiguous, so that sums go one way."""
    pages = table.long()
    keys = k_cache[pages].permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)
    values = v_cache[pages].permute(0, 2, 4, 1, 3).flatten(0, 2)
    return keys.contiguous(), values.contiguous()


def write_reference(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    if bool(((slots < -1) | (slots >= k_cache.shape[0] * PAGE)).any()):
        raise _bad_slots(k_cache, slots)
    kept = slots >= 0
    k, v, slots = k[kept], v[kept], slots[kept].long()
    page, offset, pack = slots // PAGE, slots % PAGE, k_cache.shape[-1]
    k_cache.permute(0, 3, 1, 2, 4)[page, offset] = k.reshape(*k.shape[:2], k_cache.shape[2], pack)
    v_cache.permute(0, 2, 4, 1, 3)[page, offset // pack, offset % pack] = v


def write_cpu(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    tokens, kv_heads, head_dim = k.shape
    call = _CALL.pack(
        k.data_ptr(), v.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), slots.data_ptr(), k.stride(0), v.stride(0),
        tokens, k_cache.shape[0], kv_heads, head_dim, k.dtype.itemsize, torch.get_num_threads(),
    )  # fmt: skip
    if _c_write()(call):
        raise _bad_slots(k_cache, slots)


def write_cpu_supports(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> str | None:
    missing = build.load("paged_cache").missing
    if missing is not None:
        return missing
    if not (k.is_cpu and v.is_cpu and k_cache.is_cpu and v_cache.is_cpu and slots.is_cpu):
        return "a tensor is not on the CPU"
    if k.dtype.itemsize not in (2, 4):
        return f"{k.dtype} is neither of 16 nor of 32 bits"
    if not (slots.dtype is torch.int32 and slots.is_contiguous() and k_cache.is_contiguous() and v_cache.is_contiguous()):
        return "slots must be contiguous int32, and the caches contiguous"
    return None if rows_are_dense(k) and rows_are_dense(v) else "the rows of k or v are not contiguous"


def rows_are_dense(x: Tensor) -> bool:
    """Whether each x[t] of [T, heads, D] is contiguous, whatever lies between the rows."""
    _, across_heads, across_dim = x.stride()
    return across_dim == 1 and (across_heads == x.shape[2] or x.shape[1] == 1)


def _bad_slots(k_cache: Tensor, slots: Tensor) -> KernelError:
    return KernelError(f"slots: each must be -1 or below {k_cache.shape[0] * PAGE}; got {slots.tolist()}.")


@functools.cache
def _c_write() -> Any:
    return build.load("paged_cache").function("strop_paged_write", ctypes.c_char_p, returns=ctypes.c_int)


def _example() -> Arguments:
    k, v = torch.randn(2, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    caches = (cache.zero_() for cache in allocate(2, 2, 16, torch.float32))
    return arguments(k, v, *caches, torch.tensor([17, -1, 3], dtype=torch.int32))


WRITE = Op("paged_write", write_reference, FastPath("cpu", write_cpu, write_cpu_supports), example=_example)
WRITE.register(fake=lambda k, v, k_cache, v_cache, slots: None, mutates=("k_cache", "v_cache"))
