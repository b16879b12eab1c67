"""Houses with a stub engine behind the real app: in process for most tests, on a real socket for a few."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI

from strop.config import ServerConfig
from strop.plugins import Plugins
from strop.server.app import build_app
from strop.server.house import House
from strop.testing import stub_config, stub_plugins

HELLO = [{"role": "user", "content": "hello"}]
URL = "http://strop.test"


@dataclass(frozen=True)
class Served:
    house: House
    app: FastAPI
    http: httpx.AsyncClient
    openai: AsyncOpenAI

    @property
    def busy_rows(self) -> int:
        """Rows the engine works on, as of its last step."""
        return self.house.find("stub").scheduler.capacity.running_rows

    @property
    def in_flight(self) -> int:
        return self.house.find("stub").scheduler.in_flight

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return await self.http.post(path, json=body, headers=headers)


@asynccontextmanager
async def served(
    server: ServerConfig | None = None, *, key: str = "unused", plugins: Plugins | None = None, **model: Any
) -> AsyncIterator[Served]:
    """An open house and clients that reach its app without a socket."""
    house = House(stub_config(server, **model), plugins=plugins or stub_plugins())
    await house.open()
    app = build_app(house)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL) as http:
            yield Served(house, app, http, client(f"{URL}/v1", key, http))
    finally:
        await house.close(0)


def client(url: str, key: str, http: httpx.AsyncClient, *, strict: bool = True) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=url, api_key=key, http_client=http, max_retries=0, _strict_response_validation=strict)


@asynccontextmanager
async def live(**model: Any) -> AsyncIterator[tuple[House, int]]:
    """A house behind uvicorn on a free port of the loopback address."""
    house = House(stub_config(**model), plugins=stub_plugins())
    await house.open()
    options: dict[str, Any] = {"http": "httptools", "lifespan": "off", "ws": "none", "log_config": None, "access_log": False}
    server = uvicorn.Server(uvicorn.Config(build_app(house), timeout_graceful_shutdown=1, **options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server._serve([listener]))
        try:
            await until(lambda: server.started)
            yield house, listener.getsockname()[1]
        finally:
            await house.close(0)
            server.should_exit = True
            await serving


async def until(condition: Any, *, seconds: float = 5.0) -> None:
    """Wait for `condition()` to hold; TimeoutError if it does not."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - engines and servers tell no event of ours
            await asyncio.sleep(0.005)
