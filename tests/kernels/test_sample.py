"""Sampling: the same token on every path and in every batch, from exactly the distribution that the definition names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from strop.errors import KernelError
from strop.kernels import sample as module
from strop.kernels.build import load
from strop.kernels.registry import trace, use
from strop.kernels.sample import sample

PATHS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(load("sample").handle is None, reason="no compiler or no AVX2 here")),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF = math.inf


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def options(rows: int, **given: Any) -> dict[str, Tensor]:
    """Settings for `rows` rows: all off at temperature 1, but for those given as a number or a tensor."""
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seeds": 7, "positions": 0} | given
    kinds = {"top_k": torch.int32, "seeds": torch.int64, "positions": torch.int64}
    return {
        name: torch.as_tensor(value).to(kinds.get(name, torch.float32)).expand(rows).contiguous()
        for name, value in defaults.items()
    }


def mixed(rows: int, seed: int) -> dict[str, Tensor]:
    """Every row with settings of its own, greedy rows among them."""
    generator = torch.Generator().manual_seed(seed)

    def uniform() -> Tensor:
        return torch.rand(rows, generator=generator)

    return options(
        rows,
        temperature=torch.where(uniform() < 0.15, 0.0, uniform() * 2),
        top_k=torch.where(uniform() < 0.5, 0, (uniform() * 300).int()),
        top_p=torch.where(uniform() < 0.4, 1.0, uniform()),
        min_p=torch.where(uniform() < 0.5, 0.0, uniform() * 0.2),
        seeds=torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        positions=torch.randint(0, 2**40, (rows,), generator=generator),
    )


def awkward(rows: int, vocabulary: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Logits of several scales with ties and masked entries, and a few rows that cannot be drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * torch.tensor([0.0, 1.0, 3.0, 24.0]).repeat(rows)[:rows, None]
    logits[1::5] = logits[1::5].round()
    logits[2::5, ::2] = -INF
    logits[3::11, -1] = math.nan
    logits[4::13, 0] = INF
    logits[5::17] = -INF
    return logits.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(rows=st.integers(0, 23), vocabulary=st.sampled_from([1, 2, 63, 64, 65, 131, 1009, 5003]), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
@pytest.mark.skipif(load("sample").handle is None, reason="no compiler or no AVX2 here")
def test_both_paths_draw_the_same_tokens(dtype: torch.dtype, rows: int, vocabulary: int, seed: int) -> None:
    logits, settings_ = awkward(rows, vocabulary, dtype, seed), mixed(rows, seed)
    with use("reference"):
        expected = sample(logits, **settings_)
    with trace() as ran:
        drawn = sample(logits, **settings_)
    assert ran == {"sample": "cpu"}
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("path", PATHS)
def test_a_row_draws_the_same_alone_in_a_batch_and_from_a_strided_view(path: str) -> None:
    logits, settings_ = awkward(40, 997, torch.bfloat16, 3), mixed(40, 3)
    wide = torch.full((40, 1100), 50.0, dtype=torch.bfloat16)
    wide[:, 7:1004] = logits
    with use(path):
        together = sample(logits, **settings_)
        alone = [sample(logits[i : i + 1], **{name: value[i : i + 1] for name, value in settings_.items()}) for i in range(40)]
        assert torch.equal(torch.cat(alone), together)
        assert torch.equal(sample(wide[:, 7:1004], **settings_), together)


@pytest.mark.parametrize("path", PATHS)
def test_the_number_of_threads_changes_no_token(path: str) -> None:
    logits, settings_ = awkward(80, 997, torch.float32, 4), mixed(80, 4)
    with use(path):
        together = sample(logits, **settings_)
        with one_thread():
            assert torch.equal(sample(logits, **settings_), together)


def test_logits_strided_along_the_vocabulary_go_to_the_reference() -> None:
    logits, settings_ = awkward(10, 64, torch.float32, 1), mixed(10, 1)
    with trace() as ran:
        drawn = sample(logits.t().contiguous().t(), **settings_)
    assert ran == {"sample": "reference"}
    assert torch.equal(drawn, sample(logits, **settings_))


def kept_by(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens the filters keep, token by token in float64: an oracle that shares no code with the kernel."""
    p = (logits.double() / temperature).softmax(0)
    kept = p >= min_p * p.max()
    if top_k:
        kept &= torch.tensor([int((p > each).sum()) < top_k for each in p])
    if top_p < 1:
        left = torch.where(kept, p, 0.0)
        kept &= torch.tensor([float(left[p > each].sum()) < top_p * float(left.sum()) for each in p])
    return kept


CASES = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 10**6},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.7},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_follow_the_exact_distribution(path: str, case: dict[str, float]) -> None:
    draws, logits = 20_000, torch.randn(70, generator=torch.Generator().manual_seed(5)) * 1.5
    logits[[3, 60]] = logits.topk(4).values[-1]
    logits[11] = -INF
    with use(path):
        ids = sample(logits.expand(draws, -1), **options(draws, positions=torch.arange(draws), **case))
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | case
    kept = kept_by(logits, full["temperature"], int(full["top_k"]), full["top_p"], full["min_p"])
    counts = ids.bincount(minlength=70)
    assert not counts[~kept].any()
    p = (logits.double() / full["temperature"]).softmax(0)[kept]
    expected = draws * p / p.sum()
    common = expected > 5
    observed = torch.cat([counts[kept][common], counts[kept][~common].sum()[None]]).double()
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    assert counts[kept].sum() == draws
    if int(kept.sum()) > 1:
        assert stats.chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 1e-4


@pytest.mark.parametrize("path", PATHS)
def test_seeds_positions_and_nothing_else_tell_draws_apart(path: str) -> None:
    logits = torch.zeros(4, 5000)
    with use(path):
        ids = sample(logits, **options(4, seeds=torch.tensor([1, 2, 1, 1]), positions=torch.tensor([0, 0, 1, 0])))
    assert ids[0] == ids[3]
    assert len(set(ids.tolist())) == 3


@pytest.mark.parametrize("path", PATHS)
def test_ties_at_the_edge_of_a_filter_are_kept_and_greedy_takes_the_first(path: str) -> None:
    logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]).expand(2000, -1)
    with use(path):
        for case in ({"top_k": 1}, {"top_p": 0.05}, {"min_p": 0.9}):
            ids = sample(logits, **options(2000, positions=torch.arange(2000), **case))
            assert set(ids.tolist()) == {1, 2, 3}
        assert sample(logits, **options(2000, temperature=0.0)).unique().tolist() == [1]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_distribution_gets_minus_one_and_spoils_no_other(path: str, temperature: float) -> None:
    logits = torch.zeros(5, 33)
    logits[1, 20], logits[2, 32], logits[3] = math.nan, INF, -INF
    with use(path):
        ids = sample(logits, **options(5, temperature=temperature, top_p=0.9))
    assert (ids < 0).tolist() == [False, True, True, True, False]
    assert ids[1:4].tolist() == [-1, -1, -1]


@pytest.mark.parametrize("path", PATHS)
def test_a_lone_unmasked_token_is_always_drawn(path: str) -> None:
    logits = torch.full((64, 300), -INF)
    logits[torch.arange(64), torch.arange(64) * 4] = -40.0
    with use(path):
        assert sample(logits, **mixed(64, 2)).tolist() == list(range(0, 256, 4))


def test_no_rows_draw_no_tokens() -> None:
    assert sample(torch.zeros(0, 10), **options(0)).shape == (0,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logits", torch.zeros(2, 0)),
        ("logits", torch.zeros(3)),
        ("logits", torch.zeros(2, 5, dtype=torch.float64)),
        ("temperature", torch.ones(3)),
        ("top_p", torch.ones(2, dtype=torch.float64)),
        ("top_k", torch.ones(2, dtype=torch.int64)),
        ("seeds", torch.ones(2, dtype=torch.int32)),
        ("positions", torch.ones(2, 1, dtype=torch.int64)),
        ("min_p", torch.ones(2, device="meta")),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Tensor) -> None:
    given = {"logits": torch.zeros(2, 5), **options(2), name: value}
    with pytest.raises(KernelError, match=f"^{name}: ") as caught:
        sample(**given)
    assert caught.value.param == name


def test_compiled_graphs_keep_the_op() -> None:
    torch.library.opcheck(torch.ops.strop.sample.default, module.op.example().args)
