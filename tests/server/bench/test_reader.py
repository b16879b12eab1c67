"""The light client reads event streams, errors and broken connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from strop.errors import EngineFailure
from strop.server.bench.figures import Answer
from strop.server.bench.reader import ask, read_answer

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
TEXT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[str]:
    """A server that says the same to everybody."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(reply)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"


def test_only_text_counts_as_an_arrival() -> None:
    pieces = [(0.1, ROLE), (0.2, TEXT), (0.3, TEXT + TEXT), (0.4, USAGE + DONE)]
    assert read_answer(pieces) == Answer(arrivals=(0.2, 0.3), tokens=7)


@pytest.mark.parametrize("at", [1, 10, len(TEXT) - 1])
def test_an_event_split_over_pieces_arrives_with_its_end(at: int) -> None:
    assert read_answer([(0.1, TEXT[:at]), (0.2, TEXT[at:]), (0.3, USAGE)]) == Answer(arrivals=(0.2,), tokens=7)


def test_an_error_in_the_stream_is_raised() -> None:
    with pytest.raises(EngineFailure, match="out of luck"):
        read_answer([(0.1, TEXT + b'data: {"error":{"message":"out of luck"}}\n\n')])


async def test_answers_over_a_socket() -> None:
    async with answering(HEAD + chunked(ROLE, TEXT, TEXT, USAGE, DONE)) as url:
        answers = await ask(url, [{"n": 1}, {"n": 2}, {"n": 3}])
    assert [answer.tokens for answer in answers] == [7, 7, 7]
    assert all(answer.arrivals and answer.arrivals[0] > 0 for answer in answers)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull", "answered 503: full"),
        (HEAD + b"5\r\nda", "connection broke"),
    ],
)
async def test_failures_are_told(reply: bytes, message: str) -> None:
    async with answering(reply) as url:
        with pytest.raises(EngineFailure, match=message):
            await ask(url, [{"n": 1}])
