"""Weak-to-strong sampling: the combined distribution, the masks it keeps, and the same token on both paths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from strop.errors import KernelError
from strop.kernels import guided_sample as module
from strop.kernels.build import load
from strop.kernels.guided_sample import guided_sample
from strop.kernels.registry import trace, use
from strop.kernels.sample import sample

COMPILED = pytest.mark.skipif(load("sample").handle is None, reason="no compiler or no AVX2 here")
PATHS = ["reference", pytest.param("cpu", marks=COMPILED)]
INF = math.inf


def options(rows: int, **given: Any) -> dict[str, Tensor]:
    """Settings for `rows` rows: temperature 1 and no filter, but for those given."""
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seeds": 7, "positions": 0} | given
    kinds = {"top_k": torch.int32, "seeds": torch.int64, "positions": torch.int64}
    return {
        name: torch.as_tensor(value).to(kinds.get(name, torch.float32)).expand(rows).contiguous()
        for name, value in defaults.items()
    }


def pair(rows: int, vocabulary: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """A strong model's logits and a weak one's that resemble them, some masked in one or both, some broken."""
    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(rows, vocabulary, generator=generator) * 3
    weak = strong * 0.7 + torch.randn(rows, vocabulary, generator=generator)
    strong[1::5, ::2] = -INF
    weak[2::5, ::3] = -INF
    strong[3::7, -1] = math.nan
    weak[4::7, 0] = math.nan
    weak[5::11], strong[6::11] = -INF, -INF
    return strong.to(dtype), weak.to(dtype)


@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(rows=st.integers(0, 25), vocabulary=st.sampled_from([1, 63, 64, 65, 1009]), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_both_paths_draw_the_same_tokens(dtype: torch.dtype, rows: int, vocabulary: int, seed: int) -> None:
    strong, weak = pair(rows, vocabulary, dtype, seed)
    generator = torch.Generator().manual_seed(seed)

    def uniform() -> Tensor:
        return torch.rand(rows, generator=generator)

    given_ = options(
        rows,
        scale=uniform() * 3,
        plausibility=torch.where(uniform() < 0.5, 0.0, uniform()),
        temperature=torch.where(uniform() < 0.2, 0.0, uniform() * 2),
        top_k=torch.where(uniform() < 0.5, 0, (uniform() * 50).int()),
        top_p=torch.where(uniform() < 0.5, 1.0, uniform()),
        min_p=torch.where(uniform() < 0.5, 0.0, uniform() * 0.1),
        seeds=torch.arange(rows),
    )
    with use("reference"):
        expected = guided_sample(strong, weak, **given_)
    with trace() as ran:
        drawn = guided_sample(strong, weak, **given_)
    assert ran == {"guided_sample": "cpu"}
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("scale", "plausibility"), [(1.5, 0.0), (3.0, 0.1), (0.3, 0.01), (2.0, 1.0)])
def test_draws_follow_the_steered_distribution(path: str, scale: float, plausibility: float) -> None:
    draws, (strong, weak) = 20_000, pair(1, 40, torch.float32, 2)
    given_ = options(draws, scale=scale, plausibility=plausibility, positions=torch.arange(draws))
    with use(path):
        ids = guided_sample(strong.expand(draws, -1), weak.expand(draws, -1), **given_)
    s, w = strong[0].double(), weak[0].double()
    steered = w.log_softmax(0) + scale * (s.log_softmax(0) - w.log_softmax(0))
    p = torch.where(s.softmax(0) >= plausibility * s.softmax(0).max(), steered, -INF).softmax(0)
    counts = ids.bincount(minlength=40).double()
    assert not counts[p == 0].any()
    common = p * draws > 5
    if int(common.sum()) > 1:
        observed = torch.cat([counts[common], counts[~common].sum()[None] + 1e-9])
        expected = torch.cat([p[common], p[~common].sum()[None]]) * draws + 1e-9
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("path", PATHS)
def test_scale_one_is_the_strong_model_and_equal_models_are_either(path: str) -> None:
    strong, weak = pair(30, 500, torch.bfloat16, 4)
    weak = torch.where(weak.isnan(), 0.0, weak).to(torch.bfloat16)
    alone = options(30, positions=torch.arange(30), top_p=0.9)
    integral = strong.float().round().nan_to_num(0.0, INF, -INF)
    with use(path):
        steered = guided_sample(integral, weak.float().round(), **options(30, scale=1.0, plausibility=0.0) | alone)
        assert torch.equal(steered, sample(integral, **alone))
        same = guided_sample(strong, strong, **options(30, scale=2.7, plausibility=0.0) | alone)
        assert torch.equal(same, sample(strong, **alone))


@pytest.mark.parametrize("path", PATHS)
def test_masks_of_the_strong_model_hold_and_those_of_the_weak_do_not(path: str) -> None:
    strong, weak = torch.zeros(3000, 4), torch.zeros(3000, 4)
    strong[:, 0], weak[:, 0] = -INF, 50.0
    weak[:, 1] = -INF
    given_ = options(3000, scale=1.5, plausibility=0.0, positions=torch.arange(3000))
    with use(path):
        assert set(guided_sample(strong, weak, **given_).tolist()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("strong", torch.zeros(2, 0)),
        ("weak", torch.zeros(2, 6)),
        ("weak", torch.zeros(2, 5, dtype=torch.bfloat16)),
        ("scale", torch.ones(3)),
        ("plausibility", torch.ones(2, dtype=torch.float64)),
        ("seeds", torch.ones(2)),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Tensor) -> None:
    given_ = {"strong": torch.zeros(2, 5), "weak": torch.zeros(2, 5), **options(2, scale=1.0, plausibility=0.0), name: value}
    with pytest.raises(KernelError, match=f"^{name}: "):
        guided_sample(**given_)


def test_compiled_graphs_keep_the_op() -> None:
    torch.library.opcheck(torch.ops.strop.guided_sample.default, module.op.example().args)
