from __future__ import annotations

import json

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from plugged import BROKEN_ENGINE
from stubhouse import HELLO, Served, served, until

from strop.config import Limits, ServerConfig
from strop.contracts import ChatRequest
from strop.server.plan import resolve
from strop.testing import answer, stub_plugins


def said(chunks: list[ChatCompletionChunk], index: int) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def expected(s: Served, index: int = 0, *, max_tokens: int, seed: int = 7, n: int = 1) -> str:
    """What the stub says, asked past HTTP."""
    request = ChatRequest(model="stub", messages=tuple(HELLO), max_tokens=max_tokens, seed=seed, n=n)
    return "".join(delta.text for delta in answer(resolve(request, s.house)[0], index))


async def test_the_openai_client_gets_the_engines_answer() -> None:
    async with served() as s:
        reply = await s.openai.chat.completions.create(model="stub", messages=HELLO, max_tokens=12, seed=7)
        assert reply.choices[0].message.content == expected(s, max_tokens=12)
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 12
        assert reply.usage.total_tokens == 12 + reply.usage.prompt_tokens
        assert reply.system_fingerprint is not None
        assert reply.model_extra is not None
        assert reply.model_extra["strop"]["evidence"]["nfe"] == {"base": 12}


async def test_a_stream_says_the_same_and_tells_usage_when_asked() -> None:
    async with served() as s:
        stream = await s.openai.chat.completions.create(
            model="stub", messages=HELLO, max_tokens=12, seed=7, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert said(chunks, 0) == expected(s, max_tokens=12)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 12
        assert len({chunk.id for chunk in chunks}) == 1


async def test_several_choices_differ_and_come_by_index_in_both_forms() -> None:
    async with served() as s:
        reply = await s.openai.chat.completions.create(model="stub", messages=HELLO, max_tokens=9, seed=7, n=3)
        texts = [choice.message.content for choice in reply.choices]
        assert texts == [expected(s, index, max_tokens=9, n=3) for index in range(3)]
        assert len(set(texts)) == 3
        stream = await s.openai.chat.completions.create(model="stub", messages=HELLO, max_tokens=9, seed=7, n=3, stream=True)
        chunks = [chunk async for chunk in stream]
        assert [said(chunks, index) for index in range(3)] == texts


async def test_logprobs_come_with_their_alternatives() -> None:
    async with served() as s:
        asked = {"model": "stub", "messages": HELLO, "max_tokens": 4, "logprobs": True, "top_logprobs": 2, "seed": 7}
        reply = await s.openai.chat.completions.create(**asked)
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert "".join(token.token for token in logprobs.content) == reply.choices[0].message.content
        assert [len(token.top_logprobs) for token in logprobs.content] == [2] * 4
        stream = await s.openai.chat.completions.create(**asked, stream=True)
        told = [choice.logprobs async for chunk in stream for choice in chunk.choices if choice.logprobs]
        assert [token for part in told for token in part.content or ()] == logprobs.content


async def test_stops_end_the_answer_and_are_not_in_it() -> None:
    async with served() as s:
        whole = expected(s, max_tokens=40)
        stop = whole[20:23]
        reply = await s.openai.chat.completions.create(model="stub", messages=HELLO, max_tokens=40, seed=7, stop=[stop])
        assert reply.choices[0].message.content == whole[: whole.index(stop)]
        assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"model": "stubb"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 5}, openai.BadRequestError, "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "unsupported_parameter"),
        ({"extra_body": {"sampler": {"name": "tokens", "tempo": 1}}}, openai.UnprocessableEntityError, "invalid_option"),
        ({"extra_body": {"guidence": "x"}}, openai.BadRequestError, "unknown_parameter"),
        ({"max_tokens": 10_000}, openai.BadRequestError, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_become_the_clients_own_errors(changes: dict, error: type, code: str, stream: bool) -> None:
    async with served() as s:
        with pytest.raises(error) as caught:
            await s.openai.chat.completions.create(**{"model": "stub", "messages": HELLO, "stream": stream} | changes)
        assert caught.value.code == code
        assert caught.value.request_id
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert s.in_flight == 0


async def test_a_full_server_says_when_to_come_back() -> None:
    server = ServerConfig(limits=Limits(max_queue=0))
    async with served(server, max_rows=1, source="stub:0.02") as s:
        stream = await s.openai.chat.completions.create(
            model="stub", messages=HELLO, max_tokens=3, stream=True, extra_body={"top_k": 3}
        )
        assert [chunk async for chunk in stream]
        with_room = s.house.find("stub").scheduler
        request = ChatRequest(model="stub", messages=tuple(HELLO), max_tokens=400)
        [held] = with_room.submit(resolve(request, s.house))
        with pytest.raises(openai.InternalServerError) as caught:
            await s.openai.chat.completions.create(model="stub", messages=HELLO)
        assert caught.value.status_code == 503
        assert caught.value.code == "overloaded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.response.headers["x-should-retry"] == "true"
        await held.aclose()
        await until(lambda: s.in_flight == 0)


async def test_a_failing_engine_is_told_in_both_forms_and_without_details() -> None:
    asked = {"model": "stub", "messages": HELLO, "max_tokens": 9}
    for stream in (False, True):
        async with served(plugins=stub_plugins(BROKEN_ENGINE), engine="broken") as s:
            reply = await s.post("/v1/chat/completions", asked | {"stream": stream})
            assert "secret" not in reply.text
            assert '"code":"engine_failure"' in reply.text
            if stream:
                assert reply.text.index('"content":') < reply.text.index('data: {"error":')
                assert "[DONE]" not in reply.text
            else:
                assert (reply.status_code, reply.headers["x-should-retry"]) == (500, "false")


async def test_a_failure_in_the_middle_of_a_stream_raises_in_the_client() -> None:
    async with served(plugins=stub_plugins(BROKEN_ENGINE), engine="broken") as s:
        stream = await s.openai.chat.completions.create(model="stub", messages=HELLO, max_tokens=9, stream=True)
        with pytest.raises(openai.APIError, match="the engine failed"):
            [chunk async for chunk in stream]


async def test_a_large_body_is_read_like_a_small_one() -> None:
    async with served() as s:
        padded = {"model": "stub", "messages": HELLO, "max_tokens": 2, "seed": 7}
        small = (await s.post("/v1/chat/completions", padded)).json()
        content = b" " * 300_000 + json.dumps(padded).encode()
        reply = await s.http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        assert reply.json()["choices"] == small["choices"]


async def test_lenient_answers_and_lists_what_it_ignored() -> None:
    async with served(ServerConfig(compat="lenient")) as s:
        body = {"model": "stub", "messages": HELLO, "max_tokens": 2, "store": True, "tools": [{"type": "function"}]}
        for stream in (False, True):
            reply = await s.post("/v1/chat/completions", body | {"stream": stream})
            assert reply.status_code == 200
            assert reply.headers["x-strop-ignored"] == "store, tools"
        assert "x-strop-ignored" not in (await s.post("/v1/chat/completions", {"model": "stub", "messages": HELLO})).headers


async def test_an_unknown_model_is_answered_by_the_default_under_its_own_name() -> None:
    async with served(ServerConfig(default_model="stub")) as s:
        reply = await s.openai.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=2)
        assert reply.model == "stub"
