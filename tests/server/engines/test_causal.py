"""The causal engine: what a row gets depends on its own plan and on nothing else, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import tiny
import torch
from tiny import EOS, VOCABULARY, prompt, reference_model

from strop.contracts import Delta, Done, Plan, PromptScored
from strop.errors import ContextTooLong, InvalidOption
from strop.kernels.paged_attention import PAGE
from strop.samplers.tokens import Tokens
from strop.server.engines.causal import CausalEngine, Pace
from strop.server.models.causal.network import Network

GREEDY = Tokens(temperature=0)
HOT = Tokens(temperature=1.3, top_p=0.95)


def greedy_reference(ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """Tokens and top-2 margins of transformers' own full-forward greedy decoding."""
    model = reference_model()
    out, margins = list(ids), []
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([out]), use_cache=False).logits[0, -1]
            best = logits.topk(2)
            margins.append(float(best.values[0] - best.values[1]))
            out.append(int(best.indices[0]))
    return out[len(ids) :], margins


def agree_up_to_a_near_tie(found: list[int], right: list[int], margins: list[float]) -> bool:
    for i, (a, b) in enumerate(zip(found, right, strict=True)):
        if a != b:
            return margins[i] < 1e-3
    return True


def test_greedy_answers_are_those_of_transformers_alone_and_in_a_mixed_batch(engine: CausalEngine) -> None:
    prompts = [prompt(i, length) for i, length in enumerate([1, 2, 15, 16, 17, 40, 90, 130, 3, 33, 64, 5, 7, 200, 31, 32])]
    plans = [tiny.plan(p, name=f"{i}", sampler=GREEDY, stop_token_ids=()) for i, p in enumerate(prompts)]
    together = tiny.run(engine, *plans)
    for i, p in enumerate(prompts):
        right, margins = greedy_reference(p, 12)
        assert agree_up_to_a_near_tie(tiny.tokens(together, f"{i}"), right, margins), i
        assert tiny.tokens(tiny.run(engine, plans[i]), f"{i}") == tiny.tokens(together, f"{i}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mates", [1, 2, 16, 17, 32, 64])
def test_same_seed_same_tokens_in_any_batch(folder: Path, dtype: torch.dtype, mates: int) -> None:
    net = tiny.network(dtype=dtype)
    plan = tiny.plan(prompt(0, 37), name="me", sampler=HOT, seed=11, max_tokens=24, stop_token_ids=())
    alone = tiny.tokens(tiny.run(tiny.engine(net, folder), plan), "me")
    others = [tiny.plan(prompt(i, 5 + i), name=f"{i}", sampler=HOT, seed=i, max_tokens=9 + i % 7) for i in range(1, mates)]
    assert tiny.tokens(tiny.run(tiny.engine(net, folder), *others[::2], plan, *others[1::2]), "me") == alone
    assert len(alone) == 24


def test_the_choices_of_n_share_the_prompt_and_are_what_each_would_be(engine: CausalEngine) -> None:
    plan = tiny.plan(prompt(1, 50), n=5, sampler=HOT, seed=3, stop_token_ids=())
    events = tiny.run(engine, plan)
    choices = [tiny.tokens(events, index=i) for i in range(5)]
    assert len({tuple(c) for c in choices}) == 5
    assert choices[0] == tiny.tokens(tiny.run(engine, tiny.plan(prompt(1, 50), sampler=HOT, seed=3, stop_token_ids=())))
    assert choices[:3] == [
        tiny.tokens(tiny.run(engine, tiny.plan(prompt(1, 50), n=3, sampler=HOT, seed=3, stop_token_ids=())), index=i)
        for i in range(3)
    ]
    done = next(e for _, e in events if isinstance(e, Done))
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (50, 5 * 12)
    assert done.evidence.nfe == {"base": 1 + 5 * 11}
    assert set(done.evidence.kernels) >= {"paged_attend"}


def test_a_known_prefix_is_not_computed_again_and_changes_nothing(engine: CausalEngine) -> None:
    long = prompt(2, 5 * PAGE + 3)
    first = tiny.run(engine, tiny.plan(long, sampler=GREEDY, tenant="a"))
    again = tiny.run(engine, tiny.plan(long, sampler=GREEDY, tenant="a"))
    other = tiny.run(engine, tiny.plan(long, sampler=GREEDY, tenant="b"))
    assert [next(e for _, e in run if isinstance(e, Done)).usage.cached_tokens for run in (first, again, other)] == [
        0,
        5 * PAGE,
        0,
    ]
    assert tiny.tokens(first) == tiny.tokens(again) == tiny.tokens(other)


def test_a_full_cache_costs_time_and_no_answer(folder: Path) -> None:
    small = tiny.network(kv_bytes=1)
    engine = tiny.engine(small, folder)
    assert engine.capacity().max_tokens == 8 * PAGE
    plans = [tiny.plan(prompt(i, 30), name=f"{i}", sampler=HOT, seed=i, max_tokens=60, stop_token_ids=()) for i in range(4)]
    plans.append(tiny.plan(prompt(9, 20), name="n", n=3, sampler=HOT, max_tokens=40, stop_token_ids=()))
    crowded = tiny.run(engine, *plans)
    roomy = tiny.run(tiny.engine(tiny.network(), folder), *plans)
    for name, index in [*((f"{i}", 0) for i in range(4)), ("n", 0), ("n", 1), ("n", 2)]:
        assert tiny.tokens(crowded, name, index) == tiny.tokens(roomy, name, index)
    assert engine.capacity().free_tokens == 8 * PAGE


def test_a_long_prompt_is_read_in_pieces_while_others_stream(net: Network, folder: Path) -> None:
    engine = tiny.engine(net, folder, pace=Pace(busy_tokens=16, idle_tokens=32))
    engine.admit(tiny.plan(prompt(0), name="stream", max_tokens=40, sampler=GREEDY, stop_token_ids=()))
    engine.step()
    engine.admit(tiny.plan(prompt(1, 160), name="long", sampler=GREEDY, stop_token_ids=()))
    steps = [engine.step() for _ in range(10)]
    assert all(any(name == "stream" for name, _ in events) for events in steps)
    assert [any(name == "long" for name, _ in events) for events in steps] == [False] * 9 + [True]


def test_cancelling_frees_rows_and_pages_at_once(engine: CausalEngine) -> None:
    engine.admit(tiny.plan(prompt(0, 60), name="gone", n=4, max_tokens=50))
    engine.admit(tiny.plan(prompt(1), name="stays", sampler=GREEDY, stop_token_ids=()))
    engine.step()
    engine.step()
    engine.cancel("gone")
    engine.cancel("never was")
    assert engine.capacity().running_rows == 1
    events = tiny.run(engine)
    assert {name for name, _ in events} == {"stays"}
    assert engine.capacity().free_tokens == engine.capacity().max_tokens
    engine.close()
    assert engine.step() == []


def test_prompt_scores_are_those_of_a_full_forward(engine: CausalEngine) -> None:
    ids = prompt(3, 70)
    for _ in range(2):
        events = tiny.run(engine, tiny.plan(ids, max_tokens=0, logprobs=3, prompt_logprobs=True))
    scores = next(e for _, e in events if isinstance(e, PromptScored)).scores
    with torch.inference_mode():
        right = torch.log_softmax(reference_model()(input_ids=torch.tensor([ids]), use_cache=False).logits[0], -1)
    assert [s.id for s in scores] == ids
    assert scores[0].logprob is None
    found = torch.tensor([s.logprob for s in scores[1:]])
    torch.testing.assert_close(found, right[range(69), ids[1:]], rtol=1e-4, atol=1e-4)
    assert all(len(s.top) == 3 and s.top[0].logprob >= s.top[1].logprob for s in scores[1:])  # type: ignore[operator]
    assert [e for _, e in events if isinstance(e, Delta)] == [Delta(index=0, finish="length")]


def test_prompt_scores_survive_being_preempted(folder: Path) -> None:
    engine = tiny.engine(tiny.network(kv_bytes=1), folder, pace=Pace(busy_tokens=8, idle_tokens=16))
    first = tiny.plan(prompt(0, 40), name="first", max_tokens=60, sampler=GREEDY, stop_token_ids=())
    scored = tiny.plan(prompt(3, 70), name="scored", max_tokens=2, logprobs=0, prompt_logprobs=True, sampler=GREEDY)
    events = tiny.run(engine, first, scored)
    scores = next(e for _, e in events if isinstance(e, PromptScored)).scores
    assert [s.id for s in scores] == prompt(3, 70)


def test_choices_that_lose_their_pages_tell_the_prompt_once_and_count_nothing_as_cached(folder: Path) -> None:
    engine = tiny.engine(tiny.network(kv_bytes=1), folder)
    plan = tiny.plan(
        prompt(3, 6 * PAGE + 3), n=4, max_tokens=25, logprobs=0, prompt_logprobs=True, sampler=HOT, stop_token_ids=()
    )
    events = [event for _, event in tiny.run(engine, plan)]
    assert [type(event) for event in events].count(PromptScored) == 1
    done = events[-1]
    assert isinstance(done, Done)
    assert done.evidence.nfe["base"] > 1 + 4 * 24
    assert done.usage.cached_tokens == 0
    assert engine.capacity().free_tokens == engine.capacity().max_tokens


def test_token_scores_add_up_to_one_and_ignore_the_options_of_drawing(engine: CausalEngine) -> None:
    plan = tiny.plan(
        prompt(4), logprobs=VOCABULARY, sampler=Tokens(temperature=0.5, top_k=2, logit_bias={9: 5.0}), max_tokens=3
    )
    events = tiny.run(engine, plan)
    with torch.inference_mode():
        right = torch.log_softmax(reference_model()(input_ids=torch.tensor([prompt(4)]), use_cache=False).logits[0, -1], -1)
    first = next(e for _, e in events if isinstance(e, Delta)).scores[0]
    assert sum(torch.tensor(s.logprob).exp().item() for s in first.top) == pytest.approx(1, abs=1e-4)
    assert first.logprob == pytest.approx(right[first.id].item(), abs=1e-4)


def test_min_tokens_keeps_the_end_away(engine: CausalEngine) -> None:
    force = Tokens(logit_bias={EOS: 100.0})
    short = tiny.tokens(tiny.run(engine, tiny.plan(prompt(0), sampler=force)))
    long = tiny.tokens(tiny.run(engine, tiny.plan(prompt(0), sampler=force, min_tokens=5)))
    assert short == [EOS]
    assert len(long) == 6
    assert long.index(EOS) == 5


def test_plans_that_can_never_run_are_refused(engine: CausalEngine) -> None:
    with pytest.raises(ContextTooLong, match="600 prompt"):
        engine.admit(tiny.plan(prompt(0, 600)))
    with pytest.raises(InvalidOption, match="text plans"):
        engine.admit(Plan(id="p", model="m", seed=0, cost=tiny.plan([1]).cost))
    with pytest.raises(InvalidOption, match="tokens"):
        engine.admit(tiny.plan([1], sampler=_Other()))
    assert engine.capacity().running_rows == 0


class _Other(Tokens.__base__):  # type: ignore[misc, name-defined]
    name: Literal["other"] = "other"
