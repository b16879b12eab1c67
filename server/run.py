"""Runs a house behind uvicorn: opens it, tells when it is ready, drains it on SIGTERM or SIGINT, leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from strop.config import ServerConfig
from strop.errors import ConfigError
from strop.server.app import build_app
from strop.server.house import House

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FAREWELL_SECONDS = 5
"""What connections get to take the end of their answers, once every request has ended."""


def run(house: House, *, ready: Callable[[str], None]) -> None:
    """Serve until a signal comes. `ready` hears the server's address once every model is loaded.

    The first signal lets running requests finish for `drain_seconds` while new ones are refused, then aborts them; the second
    ends the process at once. Raises ConfigError if the address is taken or a model cannot be loaded.
    """
    listener = listen(house.config.server)
    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_host(house, listener, ready))


def listen(server: ServerConfig) -> socket.socket:
    """A socket bound before anything is loaded, so that a taken port fails at once."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        return socket.create_server((server.host, server.port), family=family, backlog=2048)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "another program listens there; choose another with --port" if taken else error.strerror or error
        raise ConfigError(f"cannot listen on {server.host}:{server.port}: {reason}") from error


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn that leaves signals to us: its own handlers would stop listening before the house has drained."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _host(house: House, listener: socket.socket, ready: Callable[[str], None]) -> None:
    server = Server(
        uvicorn.Config(
            build_app(house),
            http="httptools",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=FAREWELL_SECONDS,
        )
    )
    leaving = _signalled()
    opening = asyncio.create_task(house.open())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.wait({opening, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            ready(address(listener))
            await leaving
    finally:
        opening.cancel()
        await house.close(house.config.server.drain_seconds)
        server.should_exit = True
        await serving


def _signalled() -> asyncio.Future[None]:
    """Done at the first signal. The second one finds the system's own handlers again."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()

    def leave() -> None:
        for each in SIGNALS:
            loop.remove_signal_handler(each)
        arrived.set_result(None)

    for each in SIGNALS:
        loop.add_signal_handler(each, leave)
    return arrived
