"""Paged attention: against float64, against its reference, and bit for bit the same however the work is cut."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import Cache, Shape, Stretch, assert_close, oracle, same_bits, sequence

from strop.errors import KernelError
from strop.kernels import build
from strop.kernels.paged_attention import ATTEND, allocate, attend, copy_page
from strop.kernels.registry import trace, use

MISSING = build.load("attention").missing
needs_cpu_path = pytest.mark.skipif(MISSING is not None, reason=f"no C++ path: {MISSING}")
PATHS = ["reference", pytest.param("cpu", marks=needs_cpu_path)]
LENGTHS = st.sampled_from([1, 2, 15, 16, 17, 33, 127, 128, 129, 150])

SHAPES = [
    Shape(),
    Shape(dtype=torch.float32, kv_heads=3, head_dim=64),
    Shape(window=21, head_dim=48, group=4),
    Shape(window=1, dtype=torch.float32),
    Shape(softcap=3.0, group=1),
    Shape(softcap=30.0, window=140, dtype=torch.float32, group=7, kv_heads=1),
]

shapes = st.builds(
    Shape,
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 4, 5, 8, 13]),
    head_dim=st.sampled_from([16, 32, 48, 64, 80, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    window=st.sampled_from([None, 1, 2, 16, 17, 130]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
)


@pytest.mark.parametrize("shape", [*SHAPES, Shape(dtype=torch.float16), Shape(head_dim=10)])
def test_the_reference_is_the_definition(shape: Shape) -> None:
    _compare_with_oracle(shape, [(37, 37), (1, 1), (40, 5)], padding=2, path="reference")


@needs_cpu_path
@settings(max_examples=60, deadline=None)
@given(shape=shapes, sequences=st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=4), padding=st.integers(0, 2))
def test_the_cpu_path_agrees_with_float64(shape: Shape, sequences: list[tuple[int, int]], padding: int) -> None:
    _compare_with_oracle(shape, [(length, min(n, length)) for length, n in sequences], padding, "cpu")


def _compare_with_oracle(shape: Shape, sequences: list[tuple[int, int]], padding: int, path: str) -> None:
    """Several (length, queries) in one call, over a cache that holds NaN wherever nothing was written."""
    cache = Cache(shape, pages=60)
    stretches = [sequence(shape, length, seed) for seed, (length, _) in enumerate(sequences)]
    tables = [cache.table(length) for length, _ in sequences]
    queries = [one.q[length - n :] for one, (length, n) in zip(stretches, sequences, strict=True)]
    with use(path), trace() as ran:
        for one, table in zip(stretches, tables, strict=True):
            cache.write(one, table)
        out = cache.attend(queries, tables, [length for length, _ in sequences], padding)
    expected = [oracle(shape, one)[length - n :] for one, (length, n) in zip(stretches, sequences, strict=True)]
    used = sum(n for _, n in sequences)
    assert_close(out[:used], torch.cat(expected))
    assert bool((out[used:] == 0).all())
    assert ran == {"paged_write": path, "paged_attend": path}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cutting_the_prompt_changes_no_bit(shape: Shape, path: str) -> None:
    length = 300
    one = sequence(shape, length)
    cuts = [[length], list(range(1, length + 1)), [1, 16, 33, 128, 129, length], [100, length]]
    with use(path):
        whole, *others = [_prefill(shape, one, cut, seed) for seed, cut in enumerate(cuts)]
    assert all(same_bits(whole, other) for other in others)


def _prefill(shape: Shape, one: Stretch, cuts: list[int], seed: int) -> torch.Tensor:
    """Write and attend piece by piece, on other pages for every seed."""
    cache = Cache(shape, pages=20, seed=seed)
    table, outs, start = cache.table(len(one.k)), [], 0
    for end in cuts:
        cache.write(one, table, start, end)
        outs.append(cache.attend([one.q[start:end]], [table], [end]))
        start = end
    return torch.cat(outs)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_neighbours_and_threads_change_no_bit(shape: Shape, path: str) -> None:
    lengths = [5, 130, 16, 17, 64, 1, 90]
    cache = Cache(shape, pages=60)
    stretches = [sequence(shape, length) for length in lengths]
    tables = [cache.table(length) for length in lengths]
    threads = torch.get_num_threads()
    with use(path):
        for one, table in zip(stretches, tables, strict=True):
            cache.write(one, table)
        alone = [cache.attend([s.q[-3:]], [t], [n]) for s, t, n in zip(stretches, tables, lengths, strict=True)]
        together = cache.attend([one.q[-3:] for one in stretches], tables, lengths, padding=4)
        try:
            torch.set_num_threads(1)
            serial = cache.attend([one.q[-3:] for one in stretches], tables, lengths)
        finally:
            torch.set_num_threads(threads)
    used = len(serial)
    assert same_bits(torch.cat(alone), together[:used])
    assert same_bits(serial, together[:used])


@pytest.mark.parametrize("path", PATHS)
def test_a_broken_sequence_breaks_no_other(path: str) -> None:
    shape = Shape()
    cache = Cache(shape, pages=10)
    good, bad = sequence(shape, 20, 1), sequence(shape, 20, 2)
    bad.k[3], bad.v[4] = float("nan"), float("inf")
    tables = [cache.table(20), cache.table(20)]
    with use(path):
        cache.write(good, tables[0])
        alone = cache.attend([good.q], tables[:1], [20])
        cache.write(bad, tables[1])
        both = cache.attend([bad.q, good.q], tables[::-1], [20, 20])
    assert same_bits(both[20:], alone)
    assert bool(both[4:20].isnan().all())


@pytest.mark.parametrize("path", PATHS)
def test_queries_without_keys_get_zeros(path: str) -> None:
    shape = Shape()
    cache = Cache(shape, pages=4)
    one, table = sequence(shape, 2), cache.table(2)
    with use(path):
        cache.write(one, table)
        out = cache.attend([torch.cat([one.q] * 2)], [table], [2])
        nothing = cache.attend([one.q[:0]], [[]], [0])
    assert bool((out[:2] == 0).all())
    assert_close(out[2:], oracle(shape, one))
    assert nothing.shape == (0, 6, 32)


@pytest.mark.parametrize("path", PATHS)
def test_far_scores_neither_overflow_nor_vanish(path: str) -> None:
    shape = Shape(dtype=torch.float32)
    cache = Cache(shape, pages=20)
    one, table = sequence(shape, 200), cache.table(200)
    one.k.mul_(300)
    with use(path):
        cache.write(one, table)
        out = cache.attend([one.q], [table], [200])
    assert_close(out, oracle(shape, one), torch.bfloat16)  # scores near 1,000: float32 leaves them four digits


def test_a_copied_page_goes_its_own_way() -> None:
    shape = Shape()
    cache = Cache(shape, pages=4)
    one, other = sequence(shape, 20), sequence(shape, 20, 5)
    first, shared, fork = cache.table(48)
    cache.write(one, [first, shared])
    copy_page(cache.k_cache, cache.v_cache, shared, fork)
    cache.write(other, [first, fork], 18, 20)
    before = cache.attend([one.q[17:18]], [[first, shared]], [18])
    assert same_bits(before, cache.attend([one.q[17:18]], [[first, fork]], [18]))
    mixed = Stretch(other.q[18:], torch.cat([one.k[:18], other.k[18:]]), torch.cat([one.v[:18], other.v[18:]]))
    assert_close(cache.attend([other.q[18:]], [[first, fork]], [20]), oracle(shape, mixed))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": [0, 3, 2]}, "starts must begin with 0"),
        ({"starts": [1, 2, 3]}, "starts must begin with 0"),
        ({"starts": [0, 2, 9]}, "end within the rows of q"),
        ({"lengths": [-1, 1]}, "lengths must lie between"),
        ({"lengths": [2, 17]}, "lengths must lie between"),
        ({"tables": [[0], [7]]}, "a page that the cache does not have"),
        ({"tables": [[-1], [0]]}, "a page that the cache does not have"),
        ({"lengths": [1]}, "got 1 lengths"),
        ({"window": 0}, "window: must be at least 1"),
        ({"softcap": 0.0}, "softcap: must be above 0"),
        ({"q": torch.zeros(4, 3, 16)}, "q: must be"),
        ({"q": torch.zeros(4, 4, 16, device="meta")}, "k_cache: must be on meta like q; got cpu"),
        ({"q": torch.zeros(4, 4, 16, dtype=torch.float16)}, "q: must have the caches' type"),
    ],
)
def test_bad_arguments_are_named(path: str, change: dict[str, object], message: str) -> None:
    given = {"q": torch.zeros(4, 4, 16), "tables": [[0], [1]], "starts": [0, 2, 3], "lengths": [2, 1]} | change
    for name in ("tables", "starts", "lengths"):
        given[name] = torch.tensor(given[name], dtype=torch.int32)
    k_cache, v_cache = allocate(2, 2, 16, torch.float32)
    with use(path), pytest.raises(KernelError, match=message):
        attend(k_cache=k_cache, v_cache=v_cache, scale=1.0, **given)


def test_what_the_cpu_path_cannot_take_goes_to_the_reference() -> None:
    for shape in (Shape(dtype=torch.float16), Shape(head_dim=24)):
        cache = Cache(shape, pages=2)
        one, table = sequence(shape, 3), cache.table(3)
        cache.write(one, table)
        with trace() as ran:
            out = cache.attend([one.q], [table], [3])
        assert ran == {"paged_attend": "reference"}
        assert_close(out, oracle(shape, one))


def test_the_custom_op_keeps_its_promises() -> None:
    example = ATTEND.example()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.strop.paged_attend.default, example.args, example.kwargs, test_utils=checks)


@pytest.mark.parametrize("path", PATHS)
def test_pages_beyond_the_length_are_never_read(path: str) -> None:
    shape = Shape()
    cache, one = Cache(shape, pages=4), sequence(shape, 20)
    table = cache.table(20)
    cache.write(one, table)
    with use(path):
        found = [cache.attend([one.q], [[*table, *beyond]], [20]) for beyond in ([], [2**30, -1])]
    assert same_bits(*found)


@needs_cpu_path
@pytest.mark.slow
@pytest.mark.parametrize("isa", [isa.name for isa in build.ISAS[1:]])
def test_lesser_instruction_sets_pass_the_same_tests(isa: str) -> None:
    if build.best_isa(build.cpu_flags(), isa) is None:
        pytest.skip(f"this processor has no {isa}")
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", "not slow", str(Path(__file__)), "-p", "no:cacheprovider"]
    run = subprocess.run(command, env=os.environ | {"STROP_ISA": isa}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert "no C++ path" not in run.stdout
