from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import Completion
from stubhouse import URL, Served, client, served

from strop.contracts import CompletionRequest
from strop.server.plan import resolve
from strop.testing import answer


def expected(s: Served, prompt: str, index: int = 0, *, max_tokens: int, n: int = 1) -> str:
    request = CompletionRequest(model="stub", prompts=(prompt,), max_tokens=max_tokens, seed=7, n=n)
    return "".join(delta.text for delta in answer(resolve(request, s.house)[0], index))


async def streamed(s: Served, **asked: Any) -> list[Completion]:
    """Not strict: the client's type has no room for the null that OpenAI, too, sends as `finish_reason` until the end."""
    lax = client(f"{URL}/v1", "unused", s.http, strict=False)
    return [chunk async for chunk in await lax.completions.create(**asked, stream=True)]


def said(chunks: list[Completion], index: int) -> str:
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


async def test_prompts_and_choices_are_numbered_in_order_whole_and_streamed() -> None:
    asked: dict[str, Any] = {"model": "stub", "prompt": ["ab", "c"], "max_tokens": 5, "n": 2, "seed": 7}
    async with served() as s:
        texts = [expected(s, prompt, i, max_tokens=5, n=2) for prompt in ("ab", "c") for i in range(2)]
        reply = await s.openai.completions.create(**asked)
        assert [choice.text for choice in reply.choices] == texts
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
        assert reply.usage is not None
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 20)
        chunks = await streamed(s, **asked, stream_options={"include_usage": True})
        assert [said(chunks, index) for index in range(4)] == texts
        assert chunks[-1].usage == reply.usage
        assert s.in_flight == 0


async def test_token_ids_are_prompts_too() -> None:
    async with served() as s:
        by_text = await s.openai.completions.create(model="stub", prompt="hi", seed=7)
        by_ids = await s.openai.completions.create(model="stub", prompt=[104, 105], seed=7)
        assert by_text.choices[0].text == by_ids.choices[0].text
        lists = await s.openai.completions.create(model="stub", prompt=[[104, 105], [1]], seed=7, echo=True)
        assert lists.choices[0].text == "hi" + by_text.choices[0].text
        assert lists.choices[1].text.startswith("\x01")


async def test_the_default_length_is_openais() -> None:
    async with served() as s:
        reply = await s.openai.completions.create(model="stub", prompt="hi")
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 16


async def test_logprobs_are_four_lists_that_agree_with_the_text() -> None:
    async with served() as s:
        reply = await s.openai.completions.create(model="stub", prompt="hi", max_tokens=4, logprobs=2, seed=7)
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert "".join(logprobs.tokens) == reply.choices[0].text
        assert logprobs.text_offset == [0, 1, 2, 3]
        assert logprobs.token_logprobs == [-0.5] * 4
        assert [len(top) for top in logprobs.top_logprobs or ()] == [2] * 4


@pytest.mark.parametrize("max_tokens", [0, 2])
async def test_echo_scores_the_prompt_even_with_nothing_to_add(max_tokens: int) -> None:
    body = {"model": "stub", "prompt": "héy", "max_tokens": max_tokens, "echo": True, "logprobs": 1, "seed": 7}
    async with served() as s:
        reply = (await s.post("/v1/completions", body)).json()
        [choice] = reply["choices"]
        assert choice["text"] == "héy" + expected(s, "héy", max_tokens=2)[:max_tokens]
        assert choice["logprobs"]["tokens"][:4] == ["h", "bytes:\\xc3", "bytes:\\xa9", "y"]
        assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2, 3, 4][: 4 + max_tokens]
        assert reply["usage"]["completion_tokens"] == max_tokens
        assert choice["finish_reason"] == "length"


async def test_echo_without_scores_repeats_the_text_in_a_stream_too() -> None:
    async with served() as s:
        chunks = await streamed(s, model="stub", prompt=["ab", "c"], max_tokens=3, echo=True, seed=7)
        assert said(chunks, 0) == "ab" + expected(s, "ab", max_tokens=3)
        assert said(chunks, 1) == "c" + expected(s, "c", max_tokens=3)


async def test_one_prompt_that_cannot_run_refuses_the_whole_request() -> None:
    async with served() as s:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError):
                await s.openai.completions.create(model="stub", prompt=["a", "b" * 600], stream=stream)
        assert s.in_flight == 0
