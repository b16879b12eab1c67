"""Writing into the paged cache: every value where it belongs, and not a byte anywhere else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import same_bits

from strop.errors import KernelError
from strop.kernels import build
from strop.kernels.paged_cache import PAGE, WRITE, allocate, gather, rows_are_dense, write
from strop.kernels.registry import trace, use

MISSING = build.load("paged_cache").missing
PATHS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(MISSING is not None, reason=f"no C++ path: {MISSING}"))]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PAGES = 5


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6, 16, 64]),
    slots=st.permutations(range(PAGES * PAGE)).flatmap(lambda order: st.integers(0, 80).map(lambda n: order[:n])),
    padding=st.integers(0, 2),
)
def test_values_land_in_their_slots_and_nowhere_else(
    path: str, dtype: torch.dtype, kv_heads: int, head_dim: int, slots: list[int], padding: int
) -> None:
    guarded = allocate(PAGES + 2, kv_heads, head_dim, dtype)
    for cache in guarded:
        cache.fill_(-7.0)
    k_cache, v_cache = (cache[1:-1] for cache in guarded)
    rows = torch.randn(len(slots) + padding, 3, kv_heads, head_dim).to(dtype)  # k and v as views of a wider row
    where = torch.tensor([*slots, *[-1] * padding], dtype=torch.int32)
    with use(path), trace() as ran:
        write(rows[:, 0], rows[:, 2], k_cache, v_cache, where)
    keys, values = gather(*guarded, torch.arange(PAGES + 2))
    expected_keys, expected_values = torch.full_like(keys, -7.0), torch.full_like(values, -7.0)
    index = torch.tensor(slots, dtype=torch.long) + PAGE
    expected_keys[index], expected_values[index] = rows[: len(slots), 0], rows[: len(slots), 2]
    assert same_bits(keys, expected_keys)
    assert same_bits(values, expected_values)
    assert ran == {"paged_write": path}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("slot", [-2, 2 * PAGE])
def test_a_slot_outside_the_cache_is_refused_and_nothing_written(path: str, slot: int) -> None:
    caches = [cache.zero_() for cache in allocate(2, 1, 16, torch.float32)]
    row = torch.ones(2, 1, 16)
    with use(path), pytest.raises(KernelError, match="slots: each must be -1 or below 32; got"):
        write(row, row, *caches, torch.tensor([0, slot], dtype=torch.int32))
    assert all(bool((cache == 0).all()) for cache in caches)


def test_bad_arguments_are_named() -> None:
    caches = allocate(2, 1, 16, torch.float32)
    row, slots = torch.ones(2, 1, 16), torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(KernelError, match=r"k, v: both must be \[T, 1, 16\]"):
        write(row, row[:1], *caches, slots)
    with pytest.raises(KernelError, match=r"slots: must be \[2\]"):
        write(row, row, *caches, slots[:1])
    with pytest.raises(KernelError, match=r"must have the caches' type torch.float32"):
        write(row.half(), row.half(), *caches, slots)
    with pytest.raises(KernelError, match="slots: must be on cpu like k; got meta"):
        write(row, row, *caches, slots.to("meta"))
    with pytest.raises(KernelError, match="head_dim 5 is odd"):
        allocate(1, 1, 5, torch.bfloat16)


def test_what_the_cpu_path_cannot_take_goes_to_the_reference() -> None:
    caches = allocate(2, 2, 16, torch.float32)
    rows = torch.randn(3, 16, 2).transpose(1, 2)
    with trace() as ran:
        write(rows, rows, *caches, torch.tensor([0, 1, 2], dtype=torch.int32))
    assert ran == {"paged_write": "reference"}
    assert same_bits(gather(*caches, torch.arange(1))[0][:3], rows)


def test_rows_are_dense_whatever_stride_a_single_head_claims() -> None:
    assert rows_are_dense(torch.zeros(1, 5, 16).transpose(0, 1))
    assert rows_are_dense(torch.zeros(5, 3, 2, 16)[:, 1])
    assert not rows_are_dense(torch.zeros(2, 5, 16).transpose(0, 1))
    assert not rows_are_dense(torch.zeros(5, 2, 32)[:, :, ::2])


def test_the_custom_op_keeps_its_promises() -> None:
    example = WRITE.example()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.strop.paged_write.default, example.args, test_utils=checks)
