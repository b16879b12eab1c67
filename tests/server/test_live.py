"""The app behind uvicorn on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import openai
from stubhouse import HELLO, live, until

from strop.server.house import House

STEP = 0.02


def sync_client(port: int) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0, _strict_response_validation=True
    )


def rows(house: House) -> int:
    return house.find("stub").scheduler.capacity.running_rows


def in_flight(house: House) -> int:
    return house.find("stub").scheduler.in_flight


@asynccontextmanager
async def asked(port: int, **fields: Any) -> AsyncIterator[asyncio.StreamReader]:
    """Send a chat request by hand and hang up at the end of the block, whatever was read by then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"model": "stub", "messages": HELLO, "max_tokens": 400} | fields).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
    try:
        yield reader
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_the_synchronous_client_chats_and_streams() -> None:
    def talk(port: int) -> tuple[str | None, str, int]:
        with sync_client(port) as client:
            chat: dict[str, Any] = {"model": "stub", "messages": HELLO, "max_tokens": 20, "seed": 7}
            whole = client.chat.completions.create(**chat)
            with client.chat.completions.create(**chat, stream=True) as stream:
                parts = [chunk.choices[0].delta.content or "" for chunk in stream]
            return whole.choices[0].message.content, "".join(parts), len(parts)

    async with live(source=f"stub:{STEP / 4}") as (_, port):
        whole, streamed, parts = await asyncio.to_thread(talk, port)
    assert whole == streamed
    assert len(streamed) == 20
    assert parts > 10, "text comes as it is made, not at the end"


async def test_a_client_that_hangs_up_frees_its_row_within_a_step() -> None:
    async with live(source=f"stub:{STEP}") as (house, port):
        for fields in ({"stream": True}, {"stream": False}):
            async with asked(port, **fields):
                await until(lambda: rows(house) == 1)
            await until(lambda: in_flight(house) == 0)
            cut = asyncio.get_running_loop().time()
            await until(lambda: rows(house) == 0)
            assert asyncio.get_running_loop().time() - cut < 3 * STEP + 0.2


async def test_a_storm_of_clients_that_hang_up_leaves_nothing_behind() -> None:
    async with live(source="stub:0.002", max_rows=64) as (house, port):
        before = len(asyncio.all_tasks())

        async def come_and_go(number: int) -> None:
            async with asked(port, stream=number % 2 == 0, n=1 + number % 3):
                await asyncio.sleep(0.001 * (number % 40))

        for batch in range(0, 200, 50):
            await asyncio.gather(*(come_and_go(number) for number in range(batch, batch + 50)))
        await until(lambda: in_flight(house) == 0 and rows(house) == 0)
        await until(lambda: len(asyncio.all_tasks()) <= before)
        async with asked(port, max_tokens=2) as reader:
            assert b"chat.completion" in await reader.read()


async def test_a_reader_that_stalls_holds_nobody_else_up_and_gets_it_all_later() -> None:
    slow = {"stream": True, "max_tokens": 4000, "logprobs": True, "top_logprobs": 5}
    async with live(source="stub:0.0002", context_length=8192) as (house, port), asked(port, **slow) as stalled:
        await until(lambda: rows(house) == 1)
        async with asked(port, max_tokens=20) as quick:
            assert b"chat.completion" in await asyncio.wait_for(quick.read(), 5)
        await until(lambda: in_flight(house) == 0, seconds=20)
        told = await asyncio.wait_for(stalled.read(), 20)
    assert told.count(b'"bytes"') == 4000 * 6
    assert told.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_refused_upload_is_not_read_to_its_end() -> None:
    async with live() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"request_too_large" in answer
        writer.close()
        await writer.wait_closed()
