"""The SDK against a house with a stub engine: the openai surface, strop's fields, evidence and cancellation."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import openai
import pytest
from threadhouse import thread_house

import strop
from strop.config import ServerConfig, key_digest
from strop.contracts import Evidence
from strop.samplers.tokens import Tokens
from strop.server.app import build_app
from strop.server.house import House
from strop.testing import stub_config, stub_plugins

KEY = "a key of ours"
QUESTION = [{"role": "user", "content": "why?"}]


@asynccontextmanager
async def a_client(
    server: ServerConfig | None = None, *, api_key: str | None = None, strict: bool = True
) -> AsyncIterator[strop.AsyncClient]:
    house = House(stub_config(server), plugins=stub_plugins())
    await house.open()
    transport = httpx2.ASGITransport(app=build_app(house))
    async with strop.AsyncClient(
        base_url="http://house/v1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
        api_key=api_key,
        _strict_response_validation=strict,
    ) as client:
        yield client
    await house.close(0)


async def test_chat_with_evidence() -> None:
    async with a_client() as client:
        answer = await client.chat.completions.create(model="stub", messages=QUESTION, max_tokens=5)
    assert answer.choices[0].message.content
    told = strop.evidence(answer)
    assert isinstance(told, Evidence)
    assert told.steps == 5
    assert told.nfe == {"base": 5}


async def test_a_stream_carries_its_evidence_last() -> None:
    async with a_client() as client:
        stream = await client.chat.completions.create(model="stub", messages=QUESTION, max_tokens=4, stream=True)
        async with stream:
            chunks = [chunk async for chunk in stream]
    told = [strop.evidence(chunk) for chunk in chunks]
    assert told[:-1] == [None] * (len(chunks) - 1)
    assert isinstance(told[-1], Evidence)


async def test_completions_and_their_stream() -> None:
    """Not strictly validated: openai's type has no null for the finish reason that its own streams carry."""
    async with a_client(strict=False) as client:
        whole = await client.completions.create(model="stub", prompt="once", max_tokens=6, seed=3)
        parts = await client.completions.create(model="stub", prompt="once", max_tokens=6, seed=3, stream=True)
        async with parts:
            text = "".join([chunk.choices[0].text async for chunk in parts if chunk.choices])
    assert text == whole.choices[0].text
    assert len(text) == 6
    assert isinstance(strop.evidence(whole), Evidence)


@pytest.mark.parametrize("sampler", ["tokens", {"name": "tokens", "top_k": 4}, Tokens(top_k=4)])
async def test_a_plugin_is_a_name_a_dict_or_an_instance(sampler: strop.client.PluginChoice) -> None:
    async with a_client() as client:
        chat = await client.chat.completions.create(model="stub", messages=QUESTION, max_tokens=2, sampler=sampler)
        text = await client.completions.create(model="stub", prompt="a", max_tokens=2, sampler=sampler, guidance=None)
    assert chat.usage is not None and chat.usage.completion_tokens == 2
    assert text.usage is not None and text.usage.completion_tokens == 2


async def test_only_options_that_were_set_are_sent() -> None:
    sent: list[bytes] = []

    async def note(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.content)
        return httpx2.Response(400, json={"error": {"message": "no"}})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(note))
    async with strop.AsyncClient(http_client=http, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model="stub", prompt="a", sampler=Tokens(top_k=4), guidance=None)
    assert json.loads(sent[0]) == {"model": "stub", "prompt": "a", "sampler": {"name": "tokens", "top_k": 4}}


async def test_what_the_server_cannot_do_is_an_openai_error() -> None:
    async with a_client() as client:
        with pytest.raises(openai.UnprocessableEntityError, match="top_kk"):
            await client.chat.completions.create(model="stub", messages=QUESTION, sampler={"name": "tokens", "top_kk": 4})
        with pytest.raises(openai.UnprocessableEntityError, match="magic"):
            await client.chat.completions.create(model="stub", messages=QUESTION, guidance="magic")
        with pytest.raises(openai.NotFoundError, match="nobody"):
            await client.chat.completions.create(model="nobody", messages=QUESTION)


async def test_extra_body_is_kept_beside_our_fields() -> None:
    async with a_client() as client:
        with pytest.raises(openai.BadRequestError, match="no_such_field"):
            await client.chat.completions.create(
                model="stub", messages=QUESTION, sampler="tokens", extra_body={"no_such_field": 1}
            )


async def test_raw_responses_take_our_fields_too() -> None:
    async with a_client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="stub", messages=QUESTION, max_tokens=2, sampler=Tokens(top_k=4)
        )
    assert raw.headers["x-request-id"]


async def test_helpers() -> None:
    async with a_client(ServerConfig(keys=(key_digest(KEY),)), api_key=KEY) as client:
        assert await client.tokenize("abc", model="stub") == [97, 98, 99]
        assert await client.detokenize([97, 98], model="stub") == "ab"
        assert (await client.model("stub"))["id"] == "stub"
        assert "tokens" in str(await client.plugins())


async def test_options_survive_a_copy() -> None:
    async with a_client() as client:
        other = client.with_options(timeout=5)
        assert isinstance(other, strop.AsyncClient)
        assert other.base_url == client.base_url


def test_the_blocking_client() -> None:
    server = ServerConfig(keys=(key_digest(KEY),))
    with thread_house(server) as (url, _), strop.Client(base_url=url, api_key=KEY, max_retries=0) as client:
        chat = client.chat.completions.create(model="stub", messages=QUESTION, max_tokens=3, sampler="tokens")
        text = client.completions.create(model="stub", prompt="once", max_tokens=4)
        tokens = client.tokenize("abc", model="stub")
        assert strop.evidence(chat) and strop.evidence(text)
        assert client.detokenize(tokens, model="stub") == "abc"
        assert client.model("stub")["id"] == "stub"
        assert "tokens" in str(client.plugins())


def test_leaving_a_stream_cancels_it() -> None:
    with thread_house(source="stub:0.01") as (url, house), strop.Client(base_url=url) as client:
        with client.chat.completions.create(model="stub", messages=QUESTION, max_tokens=400, stream=True) as stream:
            next(iter(stream))
            assert house.find("stub").scheduler.in_flight == 1
        patience = time.monotonic() + 2
        while house.find("stub").scheduler.in_flight and time.monotonic() < patience:
            time.sleep(0.005)
        assert house.find("stub").scheduler.in_flight == 0


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STROP_URL", raising=False)
    monkeypatch.delenv("STROP_API_KEY", raising=False)
    with strop.Client() as client:
        assert str(client.base_url) == "http://127.0.0.1:8000/v1/"
    monkeypatch.setenv("STROP_URL", "http://elsewhere/v1")
    monkeypatch.setenv("STROP_API_KEY", KEY)
    with strop.Client() as client:
        assert str(client.base_url) == "http://elsewhere/v1/"
        assert client.api_key == KEY
    with strop.Client(base_url="http://third/v1", api_key="other") as client:
        assert (str(client.base_url), client.api_key) == ("http://third/v1/", "other")


@pytest.mark.parametrize("given", ["http://host:1", "http://host:1/", "http://host:1/v1", "http://host:1/v1/"])
def test_the_address_of_a_server_will_do(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with strop.Client(base_url=given) as client:
        assert str(client.base_url) == "http://host:1/v1/"
    monkeypatch.setenv("STROP_URL", given)
    with strop.Client() as client:
        assert str(client.base_url) == "http://host:1/v1/"
    with strop.Client(base_url="http://host:1/behind/v1") as client:
        assert str(client.base_url) == "http://host:1/behind/v1/"


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        strop.Klient  # noqa: B018
    assert strop.StropError.status == 500
