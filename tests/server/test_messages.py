from __future__ import annotations

from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.contracts import (
    Cost,
    Delta,
    Domain,
    Done,
    Evidence,
    Failed,
    Guidance,
    Plan,
    PromptScored,
    TextPlan,
    TokenScore,
    Usage,
)
from strop.errors import MessageError
from strop.samplers.tokens import Tokens
from strop.server.messages import KINDS, Codec, Message
from strop.testing import stub_plugins


class Nudge(Guidance):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["nudge"] = "nudge"
    scales: tuple[float, ...] = (1.0,)


PLUGINS = stub_plugins(EntryPoint(name="nudge", value=f"{__name__}:Nudge", group="strop.guidance"))
CODEC = Codec(PLUGINS)

texts, ids, counts = st.text(max_size=8), st.integers(0, 2**31), st.integers(0, 9999)
numbers = st.floats(allow_nan=False)
roles = st.sampled_from(["base", "strong", "weak", "cond", "uncond"])
token_ids = st.lists(ids, max_size=5).map(tuple)
flat_scores = st.builds(TokenScore, id=ids, data=st.binary(max_size=4), logprob=st.none() | numbers)
scores = st.lists(
    st.builds(
        TokenScore,
        id=ids,
        data=st.binary(max_size=4),
        logprob=st.none() | numbers,
        top=st.lists(flat_scores, max_size=2).map(tuple),
    ),
    max_size=3,
).map(tuple)
samplers = st.builds(
    Tokens, temperature=st.floats(0, 2), top_k=counts, logit_bias=st.dictionaries(ids, st.floats(-100, 100), max_size=3)
)
guidances = st.builds(Nudge, scales=st.lists(numbers.filter(lambda x: abs(x) < 1e300), max_size=3).map(tuple))
plan_fields: dict[str, Any] = {
    "id": texts,
    "model": texts,
    "seed": st.integers(-(2**63), 2**63 - 1),
    "cost": st.builds(Cost, rows=counts, start=counts, tokens=counts),
    "guidance": st.none() | guidances,
    "sampler": st.none() | samplers,
    "tenant": texts,
}
text_plans = st.builds(
    TextPlan,
    **plan_fields,
    prompt=token_ids,
    prompts=st.dictionaries(roles, token_ids, max_size=2),
    n=counts,
    max_tokens=counts,
    min_tokens=counts,
    stop=st.lists(texts, max_size=2).map(tuple),
    stop_token_ids=token_ids,
    logprobs=st.none() | counts,
    prompt_logprobs=st.booleans(),
)
evidence = st.builds(
    Evidence,
    seconds=numbers,
    steps=counts,
    nfe=st.dictionaries(roles, counts),
    kernels=st.dictionaries(texts, texts, max_size=2),
)
messages: dict[type, st.SearchStrategy[Message]] = {
    Plan: st.builds(Plan, **plan_fields),
    TextPlan: text_plans,
    Delta: st.builds(
        Delta, index=counts, text=texts, token_ids=token_ids, scores=scores, finish=st.sampled_from([None, "stop", "length"])
    ),
    PromptScored: st.builds(PromptScored, scores=scores),
    Done: st.builds(
        Done,
        usage=st.builds(Usage, prompt_tokens=counts, completion_tokens=counts, cached_tokens=counts),
        evidence=evidence,
    ),
    Failed: st.builds(Failed, status=counts, code=texts, message=texts),
}


@given(st.one_of(*messages.values()))
def test_messages_survive_the_way(message: Message) -> None:
    back = CODEC.decode(CODEC.encode(message))
    assert back == message
    assert type(back) is type(message)


def test_every_kind_is_tried() -> None:
    assert set(messages) == set(KINDS)


def test_which_options_were_set_survives_too() -> None:
    plan = TextPlan(
        id="a", model="m", seed=1, cost=Cost(rows=1, start=1, tokens=2), sampler=Tokens(top_k=3), prompt=(1,), max_tokens=1
    )
    back = CODEC.decode(CODEC.encode(plan))
    assert isinstance(back, TextPlan)
    assert isinstance(back.sampler, Tokens)
    assert "top_k" in back.sampler.model_fields_set
    assert "top_p" not in back.sampler.model_fields_set


@given(st.binary(max_size=64))
def test_hostile_bytes_are_no_message(data: bytes) -> None:
    with pytest.raises(MessageError):
        CODEC.decode(data)


json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([kind.__name__ for kind in KINDS]), st.dictionaries(st.sampled_from(list(plan_fields)) | texts, json))
def test_hostile_fields_are_no_message(kind: str, values: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        CODEC.decode(msgpack.packb([kind, values]))


@pytest.mark.parametrize(
    "value",
    [["StropError", {}], ["os.system", {}], ["Plan", []], ["Plan"], [["Plan"], {}], {"Plan": {}}, 1, None],
    ids=str,
)
def test_only_the_closed_list_is_read(value: object) -> None:
    with pytest.raises(MessageError):
        CODEC.decode(msgpack.packb(value))


@pytest.mark.parametrize("data", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc7\x05\x01"])
def test_depth_and_lying_lengths_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        CODEC.decode(data)


def test_any_mapping_travels_as_a_dictionary() -> None:
    evidence = Evidence(seconds=1, steps=1, nfe=MappingProxyType({"base": 1}))
    done = Done(usage=Usage(prompt_tokens=1, completion_tokens=1), evidence=evidence)
    assert CODEC.decode(CODEC.encode(done)) == done


def test_unknown_plugins_are_refused() -> None:
    plan = Plan(id="a", model="m", seed=1, cost=Cost(rows=1, start=1, tokens=1), guidance=Nudge())
    with pytest.raises(MessageError, match="guidance"):
        Codec(stub_plugins()).decode(CODEC.encode(plan))


def test_size_is_capped_both_ways() -> None:
    small, long = Codec(PLUGINS, max_bytes=100), Delta(index=0, text="x" * 100)
    with pytest.raises(MessageError, match="at most 100"):
        small.encode(long)
    with pytest.raises(MessageError, match="at most 100"):
        small.decode(CODEC.encode(long))


@pytest.mark.parametrize("text", ["\ud800", object(), 1 << 64])
def test_what_does_not_fit_a_message_is_refused(text: Any) -> None:
    with pytest.raises(MessageError, match="Delta"):
        CODEC.encode(Delta(index=0, text=text))
