"""The stand-ins behave as the contract says, so that what passes on them means something."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from strop.contracts import Cost, Delta, Done, Engine, Event, Plan, PromptScored, TextPlan
from strop.errors import InvalidOption, ModelLoadError
from strop.testing import StubEngine, StubTokenizer, load_stub, stub_card, stub_config


def plan(name: str = "a", **fields: Any) -> TextPlan:
    cost = Cost(rows=fields.get("n", 1), start=2, tokens=40)
    return TextPlan(**{"id": name, "model": "stub", "seed": 1, "cost": cost, "prompt": (104, 105), "max_tokens": 9, **fields})


def run(*plans: Plan) -> dict[str, list[Event]]:
    engine = StubEngine(stub_card())
    for asked in plans:
        engine.admit(asked)
    events: dict[str, list[Event]] = {asked.id: [] for asked in plans}
    while engine.capacity().running_rows:
        for plan_id, event in engine.step():
            events[plan_id].append(event)
    return events


def text(events: list[Event], index: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.index == index)


def test_it_is_an_engine() -> None:
    assert isinstance(StubEngine(stub_card()), Engine)


def test_answers_depend_on_prompt_seed_and_choice_and_not_on_company() -> None:
    alone = text(run(plan())["a"])
    assert text(run(plan("b", prompt=(1,)), plan())["a"]) == alone
    others = [run(plan(seed=2))["a"], run(plan(prompt=(1,)))["a"]]
    assert alone not in [text(events) for events in others]
    both = run(plan(n=2))["a"]
    assert text(both, 0) == alone != text(both, 1)


def test_an_answer_ends_at_its_length_with_the_figures() -> None:
    *deltas, done = run(plan(n=2, max_tokens=5))["a"]
    assert [delta.finish for delta in deltas if isinstance(delta, Delta)] == [None] * 8 + ["length"] * 2
    assert isinstance(done, Done)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.evidence.steps) == (2, 10, 5)


def test_stops_end_an_answer_and_do_not_show() -> None:
    whole = text(run(plan(max_tokens=40))["a"])
    stop = whole[5:8]
    events = run(plan(max_tokens=40, stop=(stop,)))["a"]
    assert text(events) == whole[: whole.index(stop)]
    assert isinstance(events[-2], Delta)
    assert events[-2].finish == "stop"
    by_id = run(plan(max_tokens=40, stop_token_ids=(ord(whole[0]),)))["a"]
    assert text(by_id) == ""
    late = run(plan(max_tokens=40, stop_token_ids=(ord(whole[0]),), min_tokens=2))["a"]
    assert text(late).startswith(whole[0])


def test_scores_come_with_as_many_alternatives_as_asked() -> None:
    first, delta, *_ = run(plan(logprobs=3, prompt_logprobs=True))["a"]
    assert isinstance(first, PromptScored)
    assert [score.id for score in first.scores] == [104, 105]
    assert isinstance(delta, Delta)
    assert [len(score.top) for score in delta.scores] == [3]


def test_nothing_to_say() -> None:
    delta, done = run(plan(max_tokens=0))["a"]
    assert delta == Delta(index=0, finish="length")
    assert isinstance(done, Done)


def test_cancelled_rows_are_free_at_once() -> None:
    engine = StubEngine(stub_card())
    engine.admit(plan(n=3))
    engine.cancel("a")
    engine.cancel("a")
    assert engine.capacity().running_rows == 0
    assert engine.step() == []


def test_it_refuses_what_it_cannot_hold() -> None:
    engine = StubEngine(stub_card(), rows=2)
    with pytest.raises(RuntimeError):
        engine.admit(plan(n=3))
    with pytest.raises(InvalidOption):
        engine.admit(Plan(id="a", model="stub", seed=1, cost=Cost(rows=1, start=1, tokens=1)))


def test_the_tokenizer_turns_back_what_it_read() -> None:
    tokenizer = StubTokenizer()
    assert tokenizer.decode(tokenizer.encode("grüß 🙂")) == "grüß 🙂"
    assert tokenizer.token_bytes(tokenizer.eos_ids[0]) == b""
    assert max(tokenizer.special_ids) < tokenizer.vocab_size


def test_only_stubs_are_loaded() -> None:
    model = stub_config(source="weights").models["stub"]
    with pytest.raises(ModelLoadError):
        load_stub("stub", model, cache=stub_config().cache, network=False)


def test_it_needs_no_torch() -> None:
    code = "import sys, strop.testing, strop.server.house, strop.server.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
