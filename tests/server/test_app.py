"""The app as a whole: its document is true, and no input breaks it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from plugged import PULL, PUSH
from schemathesis import GenerationMode
from schemathesis.openapi.loaders import from_asgi
from schemathesis.specs.openapi.checks import positive_data_acceptance
from stubhouse import HELLO, Served, served

from strop.config import ServerConfig
from strop.server.app import build_app
from strop.server.house import House
from strop.testing import stub_config, stub_plugins

KEYED = ServerConfig(keys=(hashlib.sha256(b"sesame").hexdigest(),))
BEARER = {"authorization": "Bearer sesame"}


async def document() -> dict[str, Any]:
    async with served(plugins=stub_plugins(PUSH, PULL)) as s:
        first, second = [(await s.http.get("/openapi.json")).json() for _ in range(2)]
        assert first == second
        return first


async def test_the_document_names_bodies_errors_and_plugins() -> None:
    told = await document()
    chat = told["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatCompletionBody"}
    assert {"200", "400", "401", "404", "413", "415", "422", "429", "500", "503"} <= chat["responses"].keys()
    assert chat["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorReply")
    assert "text/event-stream" in chat["responses"]["200"]["content"]
    assert "security" not in chat
    body = told["components"]["schemas"]["ChatCompletionBody"]
    assert body["additionalProperties"] is False
    assert all("description" in field for field in body["properties"].values())
    assert {"Push", "Pull", "Tokens", "Message", "CompletionBody", "TokenizeBody"} <= told["components"]["schemas"].keys()


async def test_the_document_asks_for_keys_where_the_server_does() -> None:
    async with served(KEYED) as s:
        told = (await s.http.get("/openapi.json", headers=BEARER)).json()
    asks = {path: "security" in operation for path, methods in told["paths"].items() for operation in methods.values()}
    assert {path for path, secured in asks.items() if not secured} == {"/health", "/ready"}
    assert told["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


async def test_every_reference_in_the_document_leads_somewhere() -> None:
    told = await document()

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from references(inner)

    found = set(references(told))
    assert len(found) > 10
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in told["components"]["schemas"]


CHAT: dict[str, Any] = {"model": "stub", "messages": HELLO, "max_tokens": 2}
BAD: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("deep arrays", b"[" * 100_000),
    ("deep objects", b'{"messages":' * 10_000 + b"1" + b"}" * 10_000),
    ("deep message", orjson.dumps(CHAT)[:-1] + b',"user":' + b"[" * 500 + b"]" * 500 + b"}"),
    ("array", b"[]"),
    ("string", b'"x"'),
    ("number", b"1"),
    ("null", b"null"),
    ("lone surrogate", b'{"model":"stub","messages":[{"role":"user","content":"\\ud83d"}]}'),
    ("invalid utf-8", b'{"model":"stub","messages":[{"role":"user","content":"\xc3\x28"}]}'),
    ("NUL", b'{"model":"stub","messages":[{"role":"user","content":"a\\u0000"}]}'),
    ("raw NUL", b'{"model":"stub\x00"}'),
    ("huge integer", orjson.dumps(CHAT)[:-1] + b',"seed":' + b"9" * 4000 + b"}"),
    ("huge exponent", orjson.dumps(CHAT)[:-1] + b',"temperature":1e99999}'),
    ("many messages", orjson.dumps(CHAT | {"messages": HELLO * 5000})),
    ("long text", orjson.dumps(CHAT | {"messages": [{"role": "user", "content": "x" * 1_000_000}]})),
    ("no room", orjson.dumps(CHAT | {"max_tokens": 513})),
    ("huge max_tokens", orjson.dumps(CHAT | {"max_tokens": 2**62})),
    ("huge n", orjson.dumps(CHAT | {"n": 2**31})),
    ("many stops", orjson.dumps(CHAT | {"stop": ["a"] * 100_000})),
    ("many biases", orjson.dumps(CHAT | {"logit_bias": {str(i): 1 for i in range(2000)}})),
    ("bias out of vocabulary", orjson.dumps(CHAT | {"logit_bias": {"99999": 1}})),
    ("stop id out of vocabulary", orjson.dumps(CHAT | {"stop_token_ids": [99999]})),
    ("min above max", orjson.dumps(CHAT | {"min_tokens": 3})),
    ("wrong types", orjson.dumps({"model": [], "messages": {}, "n": "x", "stop": {}, "temperature": []})),
    ("evil keys", orjson.dumps(CHAT | {"__class__": 1})),
    ("template injection by role", orjson.dumps(CHAT | {"messages": [{"role": "{{ 1 }}", "content": "x"}]})),
    ("template from the client", orjson.dumps(CHAT | {"chat_template": "{{ x }}"})),
    ("empty name of a model", orjson.dumps(CHAT | {"model": ""})),
    ("path as a model", orjson.dumps(CHAT | {"model": "../../etc/passwd"})),
]


@pytest.fixture
async def stub() -> AsyncIterator[Served]:
    async with served() as s:
        yield s


@pytest.mark.parametrize("raw", [raw for _, raw in BAD], ids=[name for name, _ in BAD])
async def test_bad_input_is_a_clear_refusal_and_the_server_goes_on(stub: Served, raw: bytes) -> None:
    kind = {"content-type": "application/json"}
    reply = await stub.http.post("/v1/chat/completions", content=raw, headers=kind)
    assert reply.status_code in (400, 404, 422)
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) < 1000
    assert (await stub.post("/v1/chat/completions", CHAT)).status_code == 200
    assert stub.in_flight == 0


@pytest.mark.parametrize(
    "changes",
    [{"prompt": [300]}, {"prompt": [2**31 - 1]}, {"prompt": ""}, {"prompt": "x" * 600}, {"prompt": ["a"] * 129}, {"n": 9}],
)
async def test_prompts_that_no_model_can_read_are_refused(stub: Served, changes: dict[str, Any]) -> None:
    reply = await stub.post("/v1/completions", {"model": "stub", "prompt": "a"} | changes)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["messages", "model", "n", "stop", "logit_bias", "stream", "stream_options", "sampler", "guidance", "tools", "seed"]


async def test_any_value_in_any_field_is_answered_or_refused(stub: Served) -> None:
    loop = asyncio.get_running_loop()

    async def post(field: str, value: Any) -> int:
        return (await stub.post("/v1/chat/completions", CHAT | {field: value})).status_code

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from(FIELDS), json_values)
    def check(field: str, value: Any) -> None:
        status = asyncio.run_coroutine_threadsafe(post(field, value), loop).result()
        assert status in (200, 400, 404, 422)

    await asyncio.to_thread(check)


def fuzz(examples: int) -> None:
    """Send every operation data that follows the document, and data that breaks it. Nothing may fail, the second is refused,
    and every answer is one that the document names."""
    house = House(stub_config(), plugins=stub_plugins(PUSH, PULL))
    with asyncio.Runner() as runner:
        runner.run(house.open())
        schema = from_asgi("/openapi.json", build_app(house))
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in GenerationMode if operation.body else [GenerationMode.POSITIVE]:
                send_all(operation.as_strategy(generation_mode=mode), examples)
        runner.run(house.close(0))


def send_all(cases: st.SearchStrategy[schemathesis.Case], examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(cases)
    def send(case: schemathesis.Case) -> None:
        reply = case.call()
        assert reply.status_code < 500, reply.text
        case.validate_response(reply, excluded_checks=[positive_data_acceptance])

    send()


def test_data_that_breaks_the_document_is_refused() -> None:
    fuzz(6)


@pytest.mark.slow
def test_much_data_that_breaks_the_document_is_refused() -> None:
    fuzz(300)
