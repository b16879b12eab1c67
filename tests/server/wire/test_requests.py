from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from strop.config import Limits
from strop.contracts import ChatRequest, CompletionRequest
from strop.errors import InvalidOption, InvalidRequest, StropError, Unsupported
from strop.plugins import Plugins
from strop.samplers.tokens import Tokens
from strop.server.wire.body import decode, validate
from strop.server.wire.chat import ChatCompletionBody, chat_body, chat_request
from strop.server.wire.completions import CompletionBody, completion_body, completion_request
from strop.testing import stub_plugins

LIMITS = Limits(messages=3, prompts=3, n=4, logprobs=5, stop=2, stop_chars=8, logit_bias=2)
HELLO = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return stub_plugins()


def chat(plugins: Plugins, **fields: Any) -> ChatRequest:
    raw = json.dumps({"model": "m", "messages": [HELLO]} | fields).encode()
    body, _ = validate(chat_body(LIMITS, plugins), decode(raw))
    return chat_request(body, LIMITS, plugins, tenant="someone")


def complete(plugins: Plugins, **fields: Any) -> CompletionRequest:
    raw = json.dumps({"model": "m", "prompt": "hi"} | fields).encode()
    body, _ = validate(completion_body(LIMITS, plugins), decode(raw))
    return completion_request(body, LIMITS, plugins, tenant="someone")


def test_a_plain_chat_leaves_everything_open(plugins: Plugins) -> None:
    assert chat(plugins) == ChatRequest(model="m", messages=(HELLO,), tenant="someone")


def test_every_field_that_is_honoured_arrives(plugins: Plugins) -> None:
    request = chat(
        plugins,
        stream=True,
        stream_options={"include_usage": True},
        n=2,
        seed=-5,
        stop="END",
        stop_token_ids=[7],
        min_tokens=1,
        ignore_eos=True,
        max_completion_tokens=9,
        logprobs=True,
        top_logprobs=3,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={"5": 1.5},
    )
    expected = Tokens(
        temperature=0.5,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={5: 1.5},
    )
    assert request == ChatRequest(
        model="m",
        messages=(HELLO,),
        tenant="someone",
        stream=True,
        include_usage=True,
        n=2,
        seed=-5,
        stop=("END",),
        stop_token_ids=(7,),
        min_tokens=1,
        ignore_eos=True,
        max_tokens=9,
        logprobs=3,
        sampler=expected,
    )


def test_only_the_options_that_were_given_are_set(plugins: Plugins) -> None:
    sampler = chat(plugins, temperature=0.5, top_p=None).sampler
    assert sampler is not None
    assert sampler.model_fields_set == {"name", "temperature"}


def test_logprobs_without_alternatives_ask_for_none(plugins: Plugins) -> None:
    assert chat(plugins, logprobs=True).logprobs == 0
    assert chat(plugins, logprobs=False).logprobs is None
    assert complete(plugins, logprobs=0).logprobs == 0


def test_flat_fields_and_the_sampler_object_mean_the_same(plugins: Plugins) -> None:
    flat = chat(plugins, temperature=0.5, logit_bias={"5": 1}).sampler
    assert chat(plugins, sampler={"name": "tokens", "temperature": 0.5, "logit_bias": {"5": 1}}).sampler == flat
    assert chat(plugins, sampler={"name": "tokens", "temperature": 0.5}, logit_bias={"5": 1}).sampler == flat
    both = {"name": "tokens", "temperature": 0.5, "logit_bias": {"5": 1}}
    assert chat(plugins, sampler=both, temperature=0.5, logit_bias={"5": 1}).sampler == flat
    assert chat(plugins, sampler="tokens").sampler == Tokens()


def test_text_parts_are_joined_and_developers_become_system(plugins: Plugins) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
        {"role": "user", "content": "hi", "name": "ann"},
    ]
    assert chat(plugins, messages=messages).messages == (
        {"role": "system", "content": "a\nb"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "hi", "name": "ann"},
    )


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        ("", ("",)),
    ],
)
def test_prompts_are_texts_or_token_ids(plugins: Plugins, prompt: Any, prompts: tuple[Any, ...]) -> None:
    assert complete(plugins, prompt=prompt).prompts == prompts


def test_completions_have_openais_defaults(plugins: Plugins) -> None:
    request = complete(plugins, best_of=1, suffix="", echo=None)
    assert (request.max_tokens, request.echo, request.n) == (16, False, 1)
    assert complete(plugins, echo=True, max_tokens=0).max_tokens == 0


def test_every_field_of_openai_is_known() -> None:
    """`stream` stands in the two subclasses, not in the base."""
    chat_fields = {*chat_params.CompletionCreateParamsBase.__annotations__, "stream"}
    assert chat_fields - ChatCompletionBody.model_fields.keys() == set()
    completion_fields = {*completion_params.CompletionCreateParamsBase.__annotations__, "stream"}
    assert completion_fields - CompletionBody.model_fields.keys() == set()


ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "prompt_cache_options": (None, {}),
    "prompt_cache_retention": (None, "in_memory"),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "moderation": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "web_search_options": (None,),
    "rerank": (None,),
    "user": (None, "ann"),
    "metadata": (None, {"a": "b"}),
    "safety_identifier": (None, "x"),
    "prompt_cache_key": (None, "x"),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ASKS_FOR_NOTHING.items() for value in values])
def test_values_that_ask_for_nothing_change_nothing(plugins: Plugins, field: str, value: Any) -> None:
    assert chat(plugins, **{field: value}) == chat(plugins)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_cache_options", {"mode": "explicit"}),
        ("prompt_cache_retention", "24h"),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("parallel_tool_calls", 1),
        ("functions", [{}]),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("prediction", {"type": "content"}),
        ("moderation", {}),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("service_tier", "flex"),
        ("store", True),
        ("store", 0),
        ("web_search_options", {}),
        ("rerank", {"n": 4}),
        ("messages", [{"role": "tool", "content": "x", "tool_call_id": "1"}]),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "function", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]),
        ("messages", [{"role": "assistant", "tool_calls": [{"id": "1"}]}]),
        ("stream_options", {"include_obfuscation": True}),
    ],
)
def test_what_cannot_be_honoured_is_said(plugins: Plugins, field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(plugins, **{field: value})
    error = caught.value
    assert error.status == 400
    assert (error.param or "").startswith(field)
    if "tool_call_id" not in str(value):
        assert (type(error), error.code) == (Unsupported, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 5}, "n"),
        ({"n": 0}, "n"),
        ({"n": "1"}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.5}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stop": ["a", "b", "c"]}, "stop"),
        ({"stop": "123456789"}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": [1, 2, 3]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"logit_bias": {"1": 1, "2": 1, "3": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"top_logprobs": 6, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"model": ""}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [HELLO] * 4}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
        ({"messages": [HELLO | {"mood": "good"}]}, "messages[0].mood"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]}, "messages[0].content"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"user": "u" * 513}, "user"),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(plugins: Plugins, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(plugins, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param.rpartition(".")[2].split("[")[0] in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 4}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"echo": "yes"}, "echo"),
        ({"messages": [HELLO]}, "messages"),
    ],
)
def test_completions_refuse_by_name_too(plugins: Plugins, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        complete(plugins, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampler": "nope"}, "sampler.name"),
        ({"sampler": {}}, "sampler.name"),
        ({"sampler": 3}, "sampler"),
        ({"sampler": {"name": "tokens", "temprature": 1}}, "sampler.temprature"),
        ({"sampler": {"name": "tokens", "temperature": 9}}, "sampler.temperature"),
        ({"sampler": {"name": "tokens", "temperature": 0.5}, "temperature": 0.6}, "sampler.temperature"),
        ({"guidance": "nope"}, "guidance.name"),
        ({"guidance": []}, "guidance"),
        ({"guidance": {"name": ["x"]}}, "guidance.name"),
    ],
)
def test_options_of_our_own_objects_are_refused_with_422(plugins: Plugins, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        chat(plugins, **fields)
    assert (caught.value.status, caught.value.param) == (422, param)


def test_a_refusal_is_always_one_of_ours(plugins: Plugins) -> None:
    with pytest.raises(StropError):
        chat(plugins, sampler={"name": "tokens", "logit_bias": {"a": "b"}})
