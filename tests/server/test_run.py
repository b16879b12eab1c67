"""Starting, draining and stopping, with real sockets and real signals, in the main thread as `strop serve` does."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from strop.config import ServerConfig
from strop.errors import ConfigError, ModelLoadError
from strop.server.house import House
from strop.server.run import address, listen, run
from strop.testing import stub_config, stub_plugins

LONG = {"model": "stub", "messages": [{"role": "user", "content": "why?"}], "max_tokens": 60, "stream": True}


def a_house(*, drain_seconds: float = 5.0, **model: Any) -> House:
    return House(stub_config(ServerConfig(port=0, drain_seconds=drain_seconds), **model), plugins=stub_plugins())


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def served(house: House, use: Callable[[str], None]) -> None:
    """Run the house; when it is ready, call `use` with its address in a thread, which has to send the signal."""
    failures: list[BaseException] = []

    def guarded(url: str) -> None:
        try:
            use(url)
        except BaseException as error:  # noqa: BLE001 - told to the test below
            failures.append(error)
            stop()

    users: list[threading.Thread] = []

    def ready(url: str) -> None:
        users.append(threading.Thread(target=guarded, args=(url,)))
        users[0].start()

    run(house, ready=ready)
    for user in users:
        user.join()
    if failures:
        raise failures[0]


def test_it_serves_until_the_signal_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    codes: list[int] = []

    def use(url: str) -> None:
        codes.append(httpx.get(f"{url}/ready").status_code)
        stop()

    served(a_house(), use)
    assert codes == [200]
    assert {thread for thread in threading.enumerate() if thread.name.startswith("strop")} <= before


def test_running_answers_finish_while_new_ones_are_refused() -> None:
    told: dict[str, Any] = {}

    def use(url: str) -> None:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=LONG, timeout=20) as answer:
            lines = answer.iter_lines()
            next(lines)
            stop()
            while told.get("ready") != 503:
                told["ready"] = httpx.get(f"{url}/ready").status_code
            told["new"] = httpx.post(f"{url}/v1/chat/completions", json={**LONG, "stream": False}).status_code
            told["rest"] = "".join(lines)

    served(a_house(source="stub:0.02"), use)
    assert told["new"] == 503
    assert '"finish_reason":"length"' in told["rest"]
    assert told["rest"].endswith("data: [DONE]")


def test_what_outlasts_the_drain_is_aborted() -> None:
    told: list[str] = []

    def use(url: str) -> None:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**LONG, "max_tokens": 400}, timeout=20) as answer:
            lines = answer.iter_lines()
            next(lines)
            stop()
            told.append("".join(lines))

    begin = time.monotonic()
    served(a_house(source="stub:0.05", drain_seconds=0.2), use)
    assert time.monotonic() - begin < 5
    assert '"error"' in told[0]
    assert "aborted" in told[0]


def test_a_signal_while_models_load_ends_it() -> None:
    threading.Timer(0.3, stop).start()
    ready: list[str] = []
    run(SlowHouse(stub_config(ServerConfig(port=0)), plugins=stub_plugins()), ready=ready.append)
    assert ready == []


class SlowHouse(House):
    """A house whose models take longer to load than anybody waits."""

    async def open(self) -> None:
        await asyncio.sleep(60)


def test_a_model_that_cannot_be_loaded_ends_it() -> None:
    with pytest.raises(ModelLoadError, match="a stub's source"):
        run(a_house(source="nothing"), ready=lambda url: None)


def test_a_taken_port_is_told_before_anything_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ServerConfig(port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{server.port}: another program listens there"):
            run(House(stub_config(server), plugins=stub_plugins()), ready=lambda url: None)


def test_an_address_that_is_no_address() -> None:
    with pytest.raises(ConfigError, match="cannot listen on no such host"):
        listen(ServerConfig(host="no such host", port=0))


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_ipv6_address_is_written_as_urls_want_it() -> None:
    try:
        listener = listen(ServerConfig(host="::1", port=0))
    except ConfigError:
        pytest.skip("IPv6 is switched off here")
    with listener:
        assert address(listener).startswith("http://[::1]:")
