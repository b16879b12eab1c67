"""A house with a stub engine behind a real socket, served from a thread, for clients that block."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from strop.config import ServerConfig
from strop.server.app import build_app
from strop.server.house import House
from strop.testing import stub_config, stub_plugins


@contextmanager
def thread_house(server: ServerConfig | None = None, **model: Any) -> Iterator[tuple[str, House]]:
    """The base URL of the endpoint, and the house behind it."""
    house = House(stub_config(server, **model), plugins=stub_plugins())
    options: dict[str, Any] = {"http": "httptools", "lifespan": "off", "log_config": None, "access_log": False}
    serving = uvicorn.Server(uvicorn.Config(build_app(house), timeout_graceful_shutdown=1, **options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready = threading.Event()
        thread = threading.Thread(target=asyncio.run, args=(_serve(house, serving, listener, ready),))
        thread.start()
        try:
            if not ready.wait(10):
                raise TimeoutError("the house did not open")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", house
        finally:
            serving.should_exit = True
            thread.join()


async def _serve(house: House, server: uvicorn.Server, listener: socket.socket, ready: threading.Event) -> None:
    await house.open()
    ready.set()
    await server.serve(sockets=[listener])
    await house.close(0)
