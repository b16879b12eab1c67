"""Contenders as processes: jobs, results, deaths and ends."""

from __future__ import annotations

import sys

import pytest

from strop.errors import EngineFailure
from strop.server.bench.contenders import Child, Server, Worker

ECHO = """
import json, sys
print(flush=True)
for line in sys.stdin:
    job = json.loads(line)
    answers = [{"arrivals": [0.1, 0.2], "tokens": job["tokens"]} for _ in job["questions"]]
    print(json.dumps({"seconds": 2.0, "answers": answers}), flush=True)
"""
SERVER = """
import asyncio
async def serve(reader, writer):
    await reader.readuntil(b"}]")
    text = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\\n\\ndata: {"choices":[],"usage":{"completion_tokens":5}}\\n\\n'
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n%s" % (len(text), text))
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print("loading", flush=True)
    print(f"ready at http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1 now", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def script(code: str) -> list[str]:
    return [sys.executable, "-P", "-c", code]


async def test_a_worker_answers_jobs_and_ends() -> None:
    worker = Worker(script(ECHO))
    await worker.open()
    for count in (1, 3):
        result = await worker.run(["why?"] * count, 8)
        assert result.speed == 8 * count / 2
        assert result.peak_mb is None or result.peak_mb > 1
    await worker.close()
    with pytest.raises(EngineFailure, match="ended with code"):
        await worker.run(["why?"], 8)


async def test_a_server_is_found_by_the_address_it_prints() -> None:
    server = Server(script(SERVER), "model")
    await server.open()
    result = await server.run(["why?", "how?"], 5)
    await server.close()
    assert [answer.tokens for answer in result.answers] == [5, 5]
    assert result.client_cpu is not None and result.client_cpu >= 0


async def test_a_process_that_dies_while_loading_is_told() -> None:
    worker = Worker(script("import sys; sys.exit(7)"))
    with pytest.raises(EngineFailure, match="ended with code 7"):
        await worker.open()
    await worker.close()


async def test_a_process_that_was_never_started() -> None:
    child = Child(["nothing"])
    await child.stop()
    with pytest.raises(EngineFailure, match="nothing was not started"):
        await child.line()


async def test_a_process_that_will_not_end_is_killed() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    child = Child(script(code), patience=0.2)
    await child.start()
    await child.line()
    await child.stop()
    with pytest.raises(EngineFailure, match="code -9"):
        await child.line()
