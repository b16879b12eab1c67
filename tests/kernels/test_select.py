"""Commit rules: every rule against its words, on both paths, row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strop.errors import KernelError
from strop.kernels import select as module
from strop.kernels.build import load
from strop.kernels.registry import trace, use
from strop.kernels.select import Rule, select

COMPILED = pytest.mark.skipif(load("select").handle is None, reason="no compiler or no AVX2 here")
PATHS = ["reference", pytest.param("cpu", marks=COMPILED)]
ALL = list(Rule)


def step(rows: int, positions: int, seed: int) -> dict[str, Tensor]:
    """Rows of every rule, with ties, committed positions, positions without a proposal and some NaN."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randint(0, len(Rule), (rows,), generator=generator)
    confidence = torch.rand(rows, positions, generator=generator).mul(20).round().div(20)
    confidence[torch.rand(rows, positions, generator=generator) < 0.03] = math.nan
    confidence = torch.where((rule == Rule.ENTROPY_BOUND)[:, None], -confidence, confidence)
    proposals = torch.randint(0, 100, (rows, positions), generator=generator)
    proposals[torch.rand(rows, positions, generator=generator) < 0.05] = -1
    counted = (rule == Rule.QUOTA) | (rule == Rule.LEFTMOST)
    value = torch.rand(rows, generator=generator) * torch.where(counted, 7.0, 1.3)
    return {
        "canvas": torch.full((rows, positions), -5),
        "masked": torch.rand(rows, positions, generator=generator) < 0.7,
        "proposals": proposals,
        "confidence": confidence,
        "rule": rule.int(),
        "value": value,
    }


def chosen(row: dict[str, Any]) -> set[int]:
    """The positions that one row commits, in plain Python."""
    rule, value = Rule(row["rule"]), row["value"]
    c = {t: -math.inf if math.isnan(x) else x for t, x in enumerate(row["confidence"])}
    candidates = [t for t, (free, token) in enumerate(zip(row["masked"], row["proposals"], strict=True)) if free and token >= 0]
    if rule != Rule.LEFTMOST:
        candidates.sort(key=lambda t: (-c[t], t))
    count = 0
    for n in range(1, len(candidates) + 1):
        last, before = c[candidates[n - 1]], [c[t] for t in candidates[: n - 1]]
        holds = {
            Rule.THRESHOLD: last > value,
            Rule.QUOTA: n <= math.ceil(value),
            Rule.FACTOR: (n + 1) * (1 - last) < value,
            Rule.FRECHET: sum(1 - each for each in [*before, last]) < value,
            Rule.ENTROPY_BOUND: sum(-each for each in before) <= value,
            Rule.LEFTMOST: n <= math.ceil(value),
        }[rule]
        if not holds:
            break
        count = n
    return set(candidates[: max(count, 1)])


@pytest.mark.parametrize("path", PATHS)
@given(rows=st.integers(0, 20), positions=st.sampled_from([0, 1, 2, 17, 64]), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_every_row_commits_what_its_rule_says_and_nothing_else_changes(path: str, rows: int, positions: int, seed: int) -> None:
    given_, before = step(rows, positions, seed), step(rows, positions, seed)
    with use(path), trace() as ran:
        committed = select(**given_)
    assert ran == {"select": path}
    for b in range(rows):
        row = {name: value[b].tolist() for name, value in before.items()}
        assert set(committed[b].nonzero()[:, 0].tolist()) == chosen(row)
    assert torch.equal(given_["canvas"], torch.where(committed, before["proposals"], before["canvas"]))
    assert torch.equal(given_["masked"], before["masked"] & ~committed)


@COMPILED
def test_views_of_a_larger_canvas_are_written_in_place_and_only_there() -> None:
    whole = step(300, 100, 5)
    views = {name: value[:, 10:60] if value.dim() == 2 else value for name, value in whole.items()}
    dense = {name: value.clone() for name, value in views.items()}
    with trace() as ran:
        assert torch.equal(select(**views), select(**dense))
    assert ran == {"select": "cpu"}
    assert torch.equal(whole["canvas"][:, 10:60], dense["canvas"])
    assert bool((whole["canvas"][:, :10] == -5).all() and (whole["canvas"][:, 60:] == -5).all())
    assert torch.equal(whole["masked"][:, 60:], step(300, 100, 5)["masked"][:, 60:])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", ALL)
def test_a_rule_that_accepts_nothing_still_commits_one_token_a_step(path: str, rule: Rule) -> None:
    never = 2.0 if rule == Rule.THRESHOLD else -1.0
    state = step(3, 9, 7) | {"rule": torch.full((3,), rule, dtype=torch.int32), "value": torch.full((3,), never)}
    state["proposals"] = state["proposals"].abs()
    with use(path):
        counts = [int(select(**state).sum()) for _ in range(9)]
    assert not state["masked"].any()
    assert max(counts) == 3


@pytest.mark.parametrize("path", PATHS)
def test_the_factor_rule_stops_before_a_token_that_fails_though_it_is_the_last(path: str) -> None:
    state = step(1, 3, 0) | {
        "masked": torch.ones(1, 3, dtype=torch.bool),
        "proposals": torch.tensor([[4, 5, 6]]),
        "confidence": torch.tensor([[0.99, 0.99, 0.10]]),
        "rule": torch.tensor([Rule.FACTOR], dtype=torch.int32),
        "value": torch.tensor([1.0]),
    }
    with use(path):
        assert select(**state).tolist() == [[True, True, False]]


@pytest.mark.parametrize("path", PATHS)
def test_a_row_with_nothing_to_commit_commits_nothing(path: str) -> None:
    state = step(2, 4, 1) | {"masked": torch.tensor([[False] * 4, [True] * 4]), "proposals": torch.full((2, 4), -1)}
    with use(path):
        assert not select(**state).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("canvas", torch.zeros(4, dtype=torch.int64)),
        ("canvas", torch.zeros(2, 4)),
        ("masked", torch.ones(2, 4, dtype=torch.int64)),
        ("proposals", torch.zeros(2, 5, dtype=torch.int64)),
        ("confidence", torch.zeros(2, 4, dtype=torch.float64)),
        ("rule", torch.zeros(2, dtype=torch.int64)),
        ("value", torch.zeros(3)),
        ("value", torch.zeros(2, device="meta")),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Tensor) -> None:
    with pytest.raises(KernelError, match=f"^{name}: "):
        select(**(step(2, 4, 0) | {name: value}))


def test_compiled_graphs_keep_the_op() -> None:
    torch.library.opcheck(torch.ops.strop.select.default, module.op.example().args)
