"""Row statistics: against float64, on both paths, the same bits in any batch and however the vocabulary is split."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from tolerances import assert_close
from torch import Tensor

from strop.errors import KernelError
from strop.kernels import row_stats as module
from strop.kernels.build import load
from strop.kernels.registry import trace, use
from strop.kernels.row_stats import BLOCK, Fold, RowStats, row_stats
from strop.kernels.sample import sample

COMPILED = pytest.mark.skipif(load("row_stats").handle is None, reason="no compiler or no AVX2 here")
PATHS = ["reference", pytest.param("cpu", marks=COMPILED)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VOCABULARIES = [1, 2, 63, 64, 65, 1009, 4096, 4097, 9001]
INF = math.inf


def rows_of_all_kinds(rows: int, vocabulary: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Flat, peaked, far from zero, tied and masked rows, all with a distribution."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * torch.tensor([0.0, 1.0, 3.0, 24.0]).repeat(rows)[:rows, None]
    logits[1::5] = logits[1::5].round()
    logits[2::7] -= 200.0
    logits[3::5, 1::2] = -INF
    logits[4::9, 1:] = -INF
    return logits.to(dtype)


def asked(rows: int, vocabulary: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "temperature": torch.rand(rows, generator=generator) + 0.3,
        "ids": torch.randint(-2, vocabulary + 2, (rows, 3), generator=generator),
        "seeds": torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        "positions": torch.randint(0, 2**40, (rows,), generator=generator),
        "draw_temperature": (torch.rand(rows, generator=generator) * 1.5).round(decimals=1),
    }


def oracle(logits: Tensor, temperature: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """The same by softmax and sort in float64, from the float32 tempered logits."""
    z = (logits.float() * (1.0 / temperature)[:, None]).double()
    logp, ordered = z.log_softmax(1), z.sort(1, descending=True).values
    finite = z > -INF
    count = finite.sum(1)
    inside = (ids >= 0) & (ids < z.shape[1])
    return {
        "max": ordered[:, 0],
        "second": ordered[:, 1] if z.shape[1] > 1 else torch.full_like(ordered[:, 0], -INF),
        "lse": z.logsumexp(1),
        "entropy": -torch.where(finite, logp.exp() * logp, 0.0).sum(1),
        "self_certainty": -torch.where(finite, logp, 0.0).sum(1) / count - count.log(),
        "logprobs": torch.where(inside, logp.gather(1, ids.clamp(0, z.shape[1] - 1)), math.nan),
        "confidence": logp.amax(1).exp(),
        "margin": logp.amax(1).exp() - (logp.sort(1).values[:, -2].exp() if z.shape[1] > 1 else 0.0),
    }


def equal_bits(one: RowStats, other: RowStats) -> bool:
    return all(torch.equal(a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.integers(0, 20), vocabulary=st.sampled_from([1, 2, 63, 64, 65, 1009, 4096, 4097, 9001]), seed=st.integers(0, 10**6)
)
@settings(max_examples=20, deadline=None)
def test_every_number_is_the_float64_one(path: str, dtype: torch.dtype, rows: int, vocabulary: int, seed: int) -> None:
    logits, ask = rows_of_all_kinds(rows, vocabulary, dtype, seed), asked(rows, vocabulary, seed)
    with use(path), trace() as ran:
        found = row_stats(logits, **ask)
    assert ran == {"row_stats": path}
    for name, expected in oracle(logits, ask["temperature"], ask["ids"]).items():
        assert_close(getattr(found, name), expected.float().double())
    assert torch.equal(found.argmax, (logits.float() * (1 / ask["temperature"])[:, None]).argmax(1))


@COMPILED
@given(vocabulary=st.sampled_from([5, 64, 4096, 10_001]), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_row_has_the_same_bits_alone_in_a_batch_and_in_a_strided_view(vocabulary: int, seed: int) -> None:
    logits, ask = rows_of_all_kinds(12, vocabulary, torch.bfloat16, seed), asked(12, vocabulary, seed)
    together = row_stats(logits, **ask)
    wide = torch.full((12, vocabulary + 9), 99.0, dtype=torch.bfloat16)
    wide[:, 5:-4] = logits
    assert equal_bits(row_stats(wide[:, 5:-4], **ask), together)
    for i in range(12):
        alone = row_stats(logits[i : i + 1], **{name: value[i : i + 1] for name, value in ask.items()})
        assert equal_bits(alone, RowStats(*(each[i : i + 1] for each in together)))


@COMPILED
@given(cuts=st.sets(st.integers(1, 4)), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_vocabulary_split_over_calls_gives_the_same_bits(cuts: set[int], seed: int) -> None:
    logits, ask = rows_of_all_kinds(9, 4 * BLOCK + 77, torch.float32, seed), asked(9, 4 * BLOCK + 77, seed)
    fold = Fold(9, *ask.values())
    edges = [0, *(cut * BLOCK for cut in sorted(cuts)), logits.shape[1]]
    for start, end in pairwise(edges):
        fold.take(logits[:, start:end], last=end == logits.shape[1])
    assert equal_bits(module.collect(fold.found, ask["ids"]), row_stats(logits, **ask))


@pytest.mark.parametrize("path", PATHS)
def test_the_winner_is_the_token_that_sampling_draws(path: str) -> None:
    logits, ask = rows_of_all_kinds(60, 6000, torch.float16, 8), asked(60, 6000, 8)
    off = {"top_k": torch.zeros(60, dtype=torch.int32), "top_p": torch.ones(60), "min_p": torch.zeros(60)}
    noise = {"seeds": ask["seeds"], "positions": ask["positions"]}
    with use(path):
        found = row_stats(logits, **ask)
        assert torch.equal(found.winner, sample(logits, temperature=ask["draw_temperature"], **noise, **off))
        own = row_stats(logits, temperature=ask["temperature"], **noise)
        assert torch.equal(own.winner, sample(logits, temperature=ask["temperature"], **noise, **off))
        plain = row_stats(logits, **noise)
        assert torch.equal(plain.winner, sample(logits, temperature=torch.ones(60), **noise, **off))
        again = row_stats(logits, temperature=ask["temperature"], ids=found.winner)
    assert torch.equal(found.winner_logprob, again.logprobs)


@pytest.mark.parametrize("path", PATHS)
def test_winners_follow_the_softmax(path: str) -> None:
    draws, logits = 20_000, torch.randn(50, generator=torch.Generator().manual_seed(1)) * 0.7
    positions = torch.arange(draws)
    with use(path):
        found = row_stats(logits.expand(draws, -1), seeds=torch.full_like(positions, -3), positions=positions)
    expected = draws * logits.double().softmax(0)
    assert scipy_stats.chisquare(found.winner.bincount(minlength=50), expected).pvalue > 1e-4


@pytest.mark.parametrize("path", PATHS)
def test_rows_without_a_distribution_get_defined_results_and_spoil_no_other(path: str) -> None:
    logits = torch.zeros(6, 5000)
    logits[1, 4500], logits[2, 3], logits[3], logits[4, :64] = math.nan, INF, -INF, -INF
    logits[5, 0], logits[5, 1] = INF, math.nan
    some = torch.arange(6)
    with use(path):
        found = row_stats(logits, ids=torch.ones(6, dtype=torch.int64), seeds=some, positions=some)
    good = torch.tensor([True, False, False, False, True, False])
    for value in found:
        assert bool((value[~good] == -1).all()) if value.dtype == torch.int64 else bool(value[~good].isnan().all())
    assert found.argmax[good].tolist() == [0, 64]
    assert_close(found.entropy[good], torch.tensor([5000.0, 4936.0]).log())
    assert found.logprobs[4] == -INF


@pytest.mark.parametrize("path", PATHS)
def test_what_was_not_asked_is_marked_as_missing(path: str) -> None:
    with use(path):
        found = row_stats(torch.zeros(2, 7))
    assert found.winner.tolist() == [-1, -1]
    assert bool(found.winner_logprob.isnan().all())
    assert found.logprobs.shape == (2, 0)
    assert row_stats(torch.zeros(2, 7), ids=torch.tensor([0, 9])).logprobs.shape == (2,)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("logits", {"logits": torch.zeros(2, 0)}),
        ("logits", {"logits": torch.zeros(2, 5, dtype=torch.int64)}),
        ("temperature", {"temperature": torch.ones(1)}),
        ("draw_temperature", {"draw_temperature": torch.ones(2, dtype=torch.float16)}),
        ("ids", {"ids": torch.zeros(3, dtype=torch.int64)}),
        ("ids", {"ids": torch.zeros(2, dtype=torch.int32)}),
        ("ids", {"ids": torch.zeros(2, dtype=torch.int64, device="meta")}),
        ("seeds", {"seeds": torch.zeros(2, dtype=torch.int64)}),
        ("positions", {"seeds": torch.zeros(2, dtype=torch.int64), "positions": torch.zeros(2)}),
    ],
)
def test_a_wrong_argument_is_named(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(KernelError, match=f"^{name}: "):
        row_stats(**({"logits": torch.zeros(2, 5)} | given))


def test_compiled_graphs_keep_the_op() -> None:
    torch.library.opcheck(torch.ops.strop.row_stats.default, module.op.example().args)
