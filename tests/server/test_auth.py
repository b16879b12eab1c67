from __future__ import annotations

import hashlib
from collections.abc import Iterator

import openai
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from stubhouse import HELLO, served

from strop.config import Limits, ServerConfig
from strop.contracts import ChatRequest
from strop.errors import ConfigError
from strop.server.auth import PUBLIC, check_guarded
from strop.server.plan import resolve

KEYS = ["sesame", "höhle 47", "k" * 5000]
SESAME = hashlib.sha256(b"sesame").hexdigest()[:16]
KEYED = ServerConfig(keys=tuple(hashlib.sha256(key.encode()).hexdigest() for key in KEYS))


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        assert isinstance(route, APIRoute)
        for method in sorted(route.methods):
            yield method, route.path.replace("{model:path}", "stub")


async def test_every_route_refuses_without_a_key_or_is_on_the_public_list() -> None:
    async with served(KEYED) as s:
        seen = set()
        for method, path in operations(s.app):
            reply = await s.http.request(method, path)
            seen.add(path)
            if path in PUBLIC:
                assert reply.status_code == 200, path
            else:
                assert reply.status_code == 401, path
                assert reply.headers["www-authenticate"] == "Bearer"
                assert reply.json()["error"]["code"] == "invalid_api_key"
                assert reply.headers["x-should-retry"] == "false"
        assert {"/health", "/ready"} == PUBLIC
        assert {"/metrics", "/openapi.json", "/v1/chat/completions", "/v1/plugins", "/v1/models/stub"} < seen


@pytest.mark.parametrize("key", KEYS)
async def test_every_configured_key_opens(key: str) -> None:
    async with served(KEYED, key=key) as s:
        reply = await s.http.get("/v1/models", headers={"authorization": f"Bearer {key}".encode()})
        assert reply.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Bearer sesam",
        b"Bearer sesame2",
        b"Bearer sesame,other",
        b"Basic c2VzYW1lOg==",
        b"sesame",
        b"Bearer \xff\xfe",
        b"Bearer " + b"x" * 100_000,
        b"Bearer " + hashlib.sha256(b"sesame").hexdigest().encode(),
    ],
)
async def test_everything_else_does_not(header: bytes) -> None:
    async with served(KEYED) as s:
        assert (await s.http.get("/v1/models", headers={"authorization": header})).status_code == 401


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1/models/", "/v1/../v1/models", "/health/../v1/models", "/V1/models", "/health/", "/v1%2fmodels"]
)
async def test_spellings_of_a_path_open_nothing(path: str) -> None:
    async with served(KEYED) as s:
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            for host in ("x", "x/health?", "/health#"):
                reply = await s.http.request(method, f"http://strop.test{path}", headers={"host": host})
                assert reply.status_code in (401, 404, 405), (method, path, host)


async def test_a_key_is_needed_before_the_body_is_read() -> None:
    async with served(KEYED) as s:
        reply = await s.http.post("/v1/chat/completions", content=b"no json")
        assert reply.status_code == 401


async def test_a_key_becomes_a_tenant_with_a_quota_of_its_own() -> None:
    server = KEYED.model_copy(update={"limits": Limits(in_flight=1)})
    async with served(server, key="sesame", source="stub:0.02") as s:
        request = ChatRequest(model="stub", messages=tuple(HELLO), max_tokens=400, tenant=SESAME)
        [held] = s.house.find("stub").scheduler.submit(resolve(request, s.house))
        with pytest.raises(openai.RateLimitError) as caught:
            await s.openai.chat.completions.create(model="stub", messages=HELLO)
        assert caught.value.response.headers["x-should-retry"] == "true"
        other = {"authorization": f"Bearer {KEYS[2]}"}
        body = {"model": "stub", "messages": HELLO, "max_tokens": 1}
        assert (await s.post("/v1/chat/completions", body, **other)).status_code == 200
        await held.aclose()


async def test_the_client_raises_its_own_error() -> None:
    async with served(KEYED, key="wrong") as s:
        with pytest.raises(openai.AuthenticationError):
            await s.openai.chat.completions.create(model="stub", messages=HELLO)


async def test_without_keys_everybody_is_let_in_but_not_to_the_plugins() -> None:
    async with served() as s:
        for method, path in operations(s.app):
            status = (await s.http.request(method, path)).status_code
            assert status == (403 if path == "/v1/plugins" else 415 if method == "POST" else 200), path


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:7860", 200),
        ("http://127.0.0.1:8000", 200),
        ("http://192.168.1.5", 200),
        ("http://[::1]:8000", 200),
        ("http://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://127.0.0.1.evil.example:8000", 403),
        ("http://[::1", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_without_keys_pages_of_other_hosts_are_refused(origin: str, status: int) -> None:
    async with served() as s:
        assert (await s.http.get("/v1/models", headers={"origin": origin})).status_code == status


async def test_with_a_key_any_page_may_call() -> None:
    async with served(KEYED) as s:
        headers = {"origin": "https://app.example", "authorization": "Bearer sesame"}
        assert (await s.http.get("/v1/models", headers=headers)).status_code == 200


def test_an_app_with_an_unguarded_route_is_refused() -> None:
    router = APIRouter()

    @router.get("/v1/secret")
    async def secret() -> None: ...

    app = FastAPI(openapi_url=None)
    app.include_router(router)
    with pytest.raises(ConfigError, match="/v1/secret"):
        check_guarded(app)


def test_an_app_with_its_own_documentation_pages_is_refused() -> None:
    with pytest.raises(ConfigError, match="no gate"):
        check_guarded(FastAPI())
