"""A client light enough to measure a server on the same cores: raw HTTP, arrival times only, JSON parsed afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import orjson

from strop.errors import EngineFailure
from strop.server.bench.figures import Answer


async def ask(url: str, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """Post every body to `url` at once, each over its own connection, and read the event streams to their ends."""
    return list(await asyncio.gather(*(_ask(url, orjson.dumps(body)) for body in bodies)))


async def _ask(url: str, body: bytes) -> Answer:
    target = urlsplit(url)
    head = f"POST {target.path} HTTP/1.1\r\nhost: {target.netloc}\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[Answer] = loop.create_future()
    transport, _ = await loop.create_connection(
        lambda: EventReader(head.encode() + body, finished), target.hostname or "127.0.0.1", target.port or 80
    )
    try:
        return await finished
    finally:
        transport.close()


class EventReader(asyncio.Protocol):
    """One request and its event stream. Bytes are kept with their arrival times; `finished` gets the answer."""

    def __init__(self, request: bytes, finished: asyncio.Future[Answer]) -> None:
        self._request = request
        self._finished = finished
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[tuple[float, bytes]] = []
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._sent = time.perf_counter()
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        self._pieces.append((time.perf_counter() - self._sent, piece))

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() == 200:
            self._finished.set_result(read_answer(self._pieces))
        else:
            text = b"".join(piece for _, piece in self._pieces).decode(errors="replace")
            self._finished.set_exception(EngineFailure(f"the server answered {self._parser.get_status_code()}: {text}"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._finished.done():
            self._finished.set_exception(EngineFailure(f"the connection broke: {error or 'closed before the answer ended'}"))


def read_answer(pieces: Sequence[tuple[float, bytes]]) -> Answer:
    """When text arrived, from the timed pieces of a chat stream; the tokens come from its `usage`."""
    arrivals: list[float] = []
    tokens, pending = 0, b""
    for arrived, piece in pieces:
        *events, pending = (pending + piece).split(b"\n\n")
        chunks = [orjson.loads(event[6:]) for event in events if event.startswith(b"data: {")]
        if any(choice["delta"].get("content") for chunk in chunks for choice in chunk.get("choices", ())):
            arrivals.append(arrived)
        tokens = next((chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")), tokens)
        failure = next((chunk["error"] for chunk in chunks if "error" in chunk), None)
        if failure is not None:
            raise EngineFailure(f"the stream broke: {failure.get('message')}")
    return Answer(arrivals=tuple(arrivals), tokens=tokens)
