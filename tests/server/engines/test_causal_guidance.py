"""Guidance in the causal engine: roles in lockstep, on one network or two, beside rows that have none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import prompt, reference_model

from strop.contracts import Domain, Done, Failed, Guidance, Memory, PromptScored, Role, Roles, Step
from strop.errors import ContextTooLong
from strop.kernels.paged_attention import PAGE
from strop.samplers.tokens import Tokens
from strop.server.engines.causal import CausalEngine, Pace
from strop.server.models.causal.network import Network, Packed

GREEDY = Tokens(temperature=0)


class Broken(Guidance):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["broken"] = "broken"
    how: str = "raise"

    def predict(self, roles: Roles, x: torch.Tensor, step: Step, memory: Memory) -> torch.Tensor:
        if self.how == "raise":
            raise RuntimeError("a plugin's mistake")
        if self.how == "shape":
            return roles["base"](x, step)[:, 1:]
        return torch.full_like(roles["base"](x, step), torch.nan)


class Steer(Guidance):
    """strong + beta * (strong - weak), remembering how often it was asked."""

    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    roles: ClassVar[tuple[Role, ...]] = ("strong", "weak")
    name: Literal["steer"] = "steer"
    beta: float = 1.0

    def predict(self, roles: Roles, x: torch.Tensor, step: Step, memory: Memory) -> torch.Tensor:
        memory["asked"] = memory.get("asked", 0) + 1
        if memory["asked"] != step.index + 1:
            raise ValueError("the row's memory is not its own")
        strong, weak = roles["strong"](x, step), roles["weak"](x, step)
        return strong + self.beta * (strong - weak)


@pytest.mark.parametrize("how", ["raise", "nan", "shape"])
def test_a_guidance_that_fails_ends_its_own_request_only(
    engine: CausalEngine, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = tiny.plan(prompt(1), name="good", sampler=GREEDY, stop_token_ids=())
    alone = tiny.tokens(tiny.run(engine, good), "good")
    with caplog.at_level(logging.CRITICAL):
        events = tiny.run(engine, tiny.plan(prompt(0), name="bad", n=3, guidance=Broken(how=how)), good)
    assert tiny.tokens(events, "good") == alone
    assert [e for name, e in events if name == "bad"] == [
        Failed(status=500, code="engine_failure", message="the model's logits left no token to draw for this request")
    ]


def test_a_guidance_that_cannot_start_is_refused_before_it_runs(engine: CausalEngine) -> None:
    memories = iter([{}])

    class Once(Steer):
        def start(self) -> Memory:
            return next(memories)

    with pytest.raises(StopIteration):
        engine.admit(tiny.plan(prompt(0), n=2, guidance=Once()))
    assert engine.capacity().running_rows == 0


def test_guidance_reads_its_roles_in_lockstep(engine: CausalEngine) -> None:
    """Two prompts on one network, combined: equal prompts cancel out, others give the tokens of a two-forward oracle."""
    strong, weak = prompt(5, 40), prompt(6, 7)
    same = tiny.run(engine, tiny.plan(strong, guidance=Steer(), sampler=GREEDY, stop_token_ids=()))
    assert tiny.tokens(same) == tiny.tokens(tiny.run(engine, tiny.plan(strong, sampler=GREEDY, stop_token_ids=())))
    events = tiny.run(
        engine,
        tiny.plan(strong, prompts={"weak": tuple(weak)}, guidance=Steer(), sampler=GREEDY, stop_token_ids=()),
        tiny.plan(prompt(8), name="mate"),
    )
    model, right = reference_model(), []
    with torch.inference_mode():
        for _ in range(12):
            s, w = (model(input_ids=torch.tensor([ids + right]), use_cache=False).logits[0, -1] for ids in (strong, weak))
            right.append(int((2 * s - w).argmax()))
    assert tiny.tokens(events) == right
    done = next(e for name, e in events if name == "p" and isinstance(e, Done))
    assert done.evidence.nfe == {"strong": 12, "weak": 12}


def test_another_network_can_be_the_weak_one(net: Network, folder: Path) -> None:
    weak = tiny.network(num_hidden_layers=1)
    engine = tiny.engine(net, folder, weak=weak)
    plan = tiny.plan(prompt(5), guidance=Steer(beta=0.0), sampler=GREEDY, n=2, stop_token_ids=())
    plain = tiny.tokens(tiny.run(engine, tiny.plan(prompt(5), sampler=GREEDY, stop_token_ids=())))
    assert tiny.tokens(tiny.run(engine, plan)) == plain
    strong = tiny.plan(prompt(5), guidance=Steer(beta=3.0), sampler=GREEDY, stop_token_ids=())
    assert tiny.tokens(tiny.run(engine, strong)) != plain


def test_prompts_of_two_roles_that_do_not_fit_together_are_refused(folder: Path) -> None:
    engine = tiny.engine(tiny.network(kv_bytes=1), folder)
    half = 4 * PAGE - 12
    fits = tiny.plan(prompt(0, half), prompts={"weak": tuple(prompt(1, half))}, guidance=Steer(), stop_token_ids=())
    assert len(tiny.tokens(tiny.run(engine, fits))) == 12
    over = tiny.plan(prompt(0, half - 1), prompts={"weak": tuple(prompt(1, half + 1))}, guidance=Steer())
    with pytest.raises(ContextTooLong, match="exceed this model's cache"):
        engine.admit(over)


class Watched:
    """A network that counts the tokens of its forwards."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self.seen: list[int] = []

    def hidden(self, packed: Packed) -> torch.Tensor:
        self.seen.append(len(packed.ids))
        return self._net.hidden(packed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)


def test_no_forward_sees_more_tokens_than_the_pace_says(net: Network, folder: Path) -> None:
    """Row counts are tried up to that number when a model loads; beyond it a row might depend on its mates."""
    pace, watched = Pace(rows=8, busy_tokens=16, idle_tokens=32), Watched(net)
    engine = tiny.engine(watched, folder, pace=pace)  # type: ignore[arg-type]
    tiny.run(engine, *(tiny.plan(prompt(i, 60), name=f"{i}", guidance=Steer(), max_tokens=20) for i in range(8)))
    assert max(watched.seen) <= pace.tokens


def test_the_prompt_that_no_role_replaces_is_the_one_that_is_scored(engine: CausalEngine) -> None:
    class Conditions(Guidance):
        domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
        roles: ClassVar[tuple[Role, ...]] = ("uncond", "cond")
        name: Literal["conditions"] = "conditions"

        def predict(self, roles: Roles, x: torch.Tensor, step: Step, memory: Memory) -> torch.Tensor:
            return roles["cond"](x, step)

    plan = tiny.plan(prompt(3), prompts={"uncond": (5,)}, guidance=Conditions(), logprobs=0, prompt_logprobs=True)
    scored = [event for _, event in tiny.run(engine, plan) if isinstance(event, PromptScored)]
    assert [[score.id for score in event.scores] for event in scored] == [prompt(3)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_joins_and_leaves_no_page_is_left_behind(folder: Path, small: Network, data: st.DataObject) -> None:
    """A cache of 8 pages, plans that fork, share beginnings, lose their pages and are cancelled in the middle."""
    engine = tiny.engine(small, folder, pace=Pace(rows=8, busy_tokens=24, idle_tokens=40))
    number, names = st.integers(0, 3), []
    for i in range(data.draw(st.integers(1, 12))):
        step = data.draw(st.sampled_from(["admit", "admit", "step", "step", "cancel"]))
        if step == "admit":
            names.append(f"{i}")
            steered = {"guidance": Steer(), "prompts": {"weak": (7, 8)}} if data.draw(st.booleans()) else {}
            ids = prompt(data.draw(number), 10 + 13 * data.draw(number))
            engine.admit(tiny.plan(ids, name=f"{i}", n=1 + data.draw(number), max_tokens=1 + 5 * data.draw(number), **steered))
        elif step == "step":
            engine.step()
        elif names:
            engine.cancel(names.pop(data.draw(st.integers(0, len(names) - 1))))
    tiny.run(engine)
    capacity = engine.capacity()
    assert (capacity.free_tokens, capacity.free_rows) == (capacity.max_tokens, capacity.max_rows)


@pytest.mark.parametrize("mates", [1, 16, 40])
def test_guided_mates_change_no_token_of_a_row_without_and_none_of_one_with(folder: Path, mates: int) -> None:
    net = tiny.network(dtype=torch.bfloat16)
    hot = Tokens(temperature=1.3, top_p=0.95)
    plain = tiny.plan(prompt(0, 37), name="plain", sampler=hot, seed=11, stop_token_ids=())
    steered = tiny.plan(
        prompt(1, 21), name="steered", prompts={"weak": (9, 8)}, guidance=Steer(), sampler=hot, seed=5, stop_token_ids=()
    )
    alone = [tiny.tokens(tiny.run(tiny.engine(net, folder), plan), plan.id) for plan in (plain, steered)]
    others = [tiny.plan(prompt(i, 5 + i), name=f"{i}", guidance=Steer(), sampler=hot, seed=i) for i in range(2, 2 + mates)]
    events = tiny.run(tiny.engine(net, folder), *others[::2], plain, steered, *others[1::2])
    assert [tiny.tokens(events, plan.id) for plan in (plain, steered)] == alone
