from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect
from stubhouse import HELLO, served

from strop.config import Limits, ServerConfig
from strop.server.middleware import Boundary

SMALL = ServerConfig(limits=Limits(body_bytes=1024))


async def drip(total: int) -> AsyncIterator[bytes]:
    """A body sent in chunks, without a Content-Length."""
    for _ in range(total // 100):
        yield b"x" * 100


async def test_a_body_beyond_the_cap_is_refused_whether_announced_or_not() -> None:
    async with served(SMALL) as s:
        kind = {"content-type": "application/json"}
        for content in (b"x" * 1025, drip(10_000)):
            reply = await s.http.post("/v1/chat/completions", content=content, headers=kind)
            assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
            assert reply.headers["x-request-id"]
        under = await s.http.post("/v1/chat/completions", content=drip(1000), headers=kind)
        assert under.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"", b"9" * 5000])
async def test_a_strange_content_length_is_refused(length: bytes) -> None:
    async with served(SMALL) as s:
        reply = await s.http.post("/v1/chat/completions", content=b"{}", headers={"content-length": length})
        assert reply.status_code == 413


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
)
async def test_only_json_is_read(kind: str) -> None:
    async with served() as s:
        reply = await s.http.post("/v1/tokenize", content=b'{"model":"stub","prompt":"a"}', headers={"content-type": kind})
        assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
async def test_json_is_read_under_its_usual_names(kind: str) -> None:
    async with served() as s:
        reply = await s.http.post("/v1/tokenize", content=b'{"model":"stub","prompt":"a"}', headers={"content-type": kind})
        assert reply.status_code == 200


async def test_every_answer_has_a_request_id_and_a_safe_one_of_the_clients_is_kept() -> None:
    async with served() as s:
        ids = [(await s.http.get(path)).headers["x-request-id"] for path in ("/health", "/nope", "/v1/models", "/health")]
        assert len(set(ids)) == 4
        kept = await s.http.get("/health", headers={"x-request-id": "abc-1.2_3"})
        assert kept.headers.get_list("x-request-id") == ["abc-1.2_3"]
        for unsafe in (b"a b", b"a\x1b[31m", b"x" * 65, b"\xff", b"a;b"):
            reply = await s.http.get("/health", headers={"x-request-id": unsafe})
            assert reply.headers["x-request-id"].startswith("req_")
        body = {"model": "stub", "messages": HELLO, "max_tokens": 2, "stream": True}
        streamed = await s.post("/v1/chat/completions", body, **{"x-request-id": "stream-1"})
        assert streamed.headers["x-request-id"] == "stream-1"


async def test_unknown_paths_and_methods_are_refused_in_openais_shape() -> None:
    async with served() as s:
        for method, path, status, code in [
            ("GET", "/nope", 404, "not_found"),
            ("POST", "/health", 405, "method_not_allowed"),
            ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
            ("GET", "/docs", 404, "not_found"),
        ]:
            reply = await s.http.request(method, path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
            assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
            assert reply.headers["x-should-retry"] == "false"


def wrapped(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(Boundary(app, body_bytes=10)), base_url="http://strop.test")


async def test_an_error_nobody_planned_for_is_told_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("/srv/secret")

    async with wrapped(broken) as http:
        reply = await http.get("/", headers={"x-request-id": "mine"})
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "mine" in error["message"]
    assert "secret" not in reply.text
    assert reply.headers["x-should-retry"] == "false"
    [record] = caplog.records
    assert (record.levelno, "mine" in record.getMessage(), record.exc_info is not None) == (logging.ERROR, True, True)


async def test_an_error_after_the_start_only_ends_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def halfway(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    await Boundary(halfway, body_bytes=10)({"type": "http", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert len(caplog.records) == 1


async def test_a_client_that_leaves_while_sending_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def left(scope: Any, receive: Any, send: Any) -> None:
        raise ClientDisconnect

    await Boundary(left, body_bytes=10)({"type": "http", "headers": []}, None, None)  # type: ignore[arg-type]
    assert not caplog.records


async def test_other_protocols_pass_untouched() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], receive, send))

    await Boundary(app, body_bytes=10)({"type": "lifespan"}, "receive", "send")  # type: ignore[arg-type]
    assert seen == [("lifespan", "receive", "send")]


async def test_logs_stay_on_one_line_whatever_the_client_sends(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="strop"):
        async with served() as s:
            evil = "x\r\nERROR root: \x1b[31mhacked"
            await s.post("/v1/chat/completions", {"model": evil, "messages": HELLO, evil: evil})
            await s.post("/v1/chat/completions", {"model": evil, "messages": HELLO})
            await s.http.get("/v1/models/x%0d%0aERROR%1b[31m")
    assert not any("\x1b" in record.getMessage() or "\n" in record.getMessage() for record in caplog.records)
