from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from strop.contracts import Cost, Delta, Done, Event, Evidence, Failed, TextPlan, Usage
from strop.errors import EngineFailure, Overloaded
from strop.server.answers import answers
from strop.server.sse import EventStream
from strop.server.stream import Stream
from strop.server.wire.chunks import CHAT, Chunks
from strop.server.wire.replies import Identity

WHO = Identity(id="x", created=1, model="m", system_fingerprint="f")
DONE = Done(usage=Usage(prompt_tokens=1, completion_tokens=1), evidence=Evidence(seconds=0, steps=1, nfe={}))


class Line:
    """A client's side of ASGI: collects what is sent and leaves when told to."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.leave = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def receive(self) -> Message:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.open.wait()
        self.sent.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


class Told:
    """Streams whose events the test puts in, and whether each was cancelled."""

    def __init__(self, count: int = 1) -> None:
        self.cancelled = 0
        plan = TextPlan(id="p", model="m", seed=1, cost=Cost(rows=1, start=1, tokens=2), prompt=(1,), max_tokens=9)
        self.streams = [Stream(plan, cancel=self._cancel) for _ in range(count)]

    def put(self, *events: Event, stream: int = 0) -> None:
        for event in events:
            self.streams[stream].put(event)

    def _cancel(self) -> None:
        self.cancelled += 1


def running(told: Told, line: Line, encoder: Any = None) -> asyncio.Task[None]:
    response = EventStream(answers(told.streams), encoder or Chunks(WHO, CHAT, n=2, prompts=len(told.streams)))
    return asyncio.create_task(response({"type": "http"}, line.receive, line.send))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_one_step_brings_is_one_write() -> None:
    told, line = Told(), Line()
    task = running(told, line)
    await settle()
    assert line.sent == []
    told.put(Delta(index=0, text="a"), Delta(index=1, text="b"))
    await settle()
    assert [body.count(b"data: ") for body in line.bodies] == [4]
    told.put(Delta(index=0, text="c"))
    await settle()
    assert [body.count(b"data: ") for body in line.bodies] == [4, 1]
    told.put(Delta(index=0, finish="stop"), Delta(index=1, finish="stop"), DONE)
    await task
    assert len(line.bodies) == 3
    assert line.bodies[-1].endswith(b"data: [DONE]\n\n")
    assert [message.get("more_body") for message in line.sent[1:]] == [True, True, False]
    assert line.sent[0]["status"] == 200
    headers = dict(line.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers


async def test_a_client_that_leaves_cancels_the_plan_at_once() -> None:
    told, line = Told(), Line()
    task = running(told, line)
    told.put(Delta(index=0, text="a"))
    await settle()
    line.leave.set()
    await asyncio.wait_for(task, 1)
    assert told.cancelled == 1


async def test_a_client_may_leave_before_the_first_event_or_in_the_middle_of_a_write() -> None:
    told, line = Told(), Line()
    task = running(told, line)
    await settle()
    line.leave.set()
    await asyncio.wait_for(task, 1)
    assert (told.cancelled, line.sent) == (1, [])

    told, line = Told(), Line()
    line.open.clear()
    task = running(told, line)
    told.put(Delta(index=0, text="a"))
    await settle()
    line.leave.set()
    await asyncio.wait_for(task, 1)
    assert (told.cancelled, line.sent) == (1, [])


async def test_a_slow_reader_gets_merged_text_and_loses_none() -> None:
    told, line = Told(), Line()
    task = running(told, line)
    told.put(Delta(index=0, text="a"))
    await settle()
    line.open.clear()
    for letter in "bcdefgh":
        told.put(Delta(index=0, text=letter))
        await settle()
    line.open.set()
    told.put(Delta(index=0, finish="stop"), DONE)
    await task
    assert b'"content":"b"' in b"".join(line.bodies)
    assert b'"content":"cdefgh"' in b"".join(line.bodies)


async def test_a_request_that_fails_at_once_gets_its_own_status() -> None:
    told, line = Told(), Line()
    told.put(Failed(status=503, code="overloaded", message="full"))
    with pytest.raises(Overloaded):
        await running(told, line)
    assert line.sent == []


async def test_a_failure_in_the_middle_is_told_as_an_event_after_the_text_before_it() -> None:
    told, line = Told(), Line()
    task = running(told, line)
    told.put(Delta(index=0, text="a"))
    await settle()
    told.put(Delta(index=0, text="b"), Failed(status=500, code="engine_failure", message="it broke"))
    await task
    last = line.bodies[-1]
    assert last.index(b'"content":"b"') < last.index(b'data: {"error":{"message":"it broke"')
    assert b"[DONE]" not in last
    assert line.sent[-1]["more_body"] is False


async def test_a_bug_in_the_middle_is_logged_and_told_without_details(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Chunks):
        def end(self) -> bytes:
            raise ZeroDivisionError("/srv/secret")

    told, line = Told(), Line()
    told.put(Delta(index=0, text="a", finish="stop"), DONE)
    await running(told, line, Broken(WHO, CHAT, n=1))
    assert EngineFailure.code.encode() in line.bodies[-1]
    assert b"secret" not in b"".join(line.bodies)
    assert len(caplog.records) == 1


async def test_several_streams_are_read_as_one_until_the_last_ends() -> None:
    told, line = Told(2), Line()
    task = running(told, line, Chunks(WHO, CHAT, n=1, prompts=2))
    told.put(Delta(index=0, text="b", finish="stop"), DONE, stream=1)
    await settle()
    assert not task.done()
    told.put(Delta(index=0, text="a", finish="stop"), DONE, stream=0)
    await task
    text = b"".join(line.bodies)
    assert text.index(b'"index":1,"delta":{"content":"b"}') < text.index(b'"index":0,"delta":{"content":"a"}')


async def test_one_of_several_that_fails_ends_and_cancels_all() -> None:
    told, line = Told(2), Line()
    task = running(told, line, Chunks(WHO, CHAT, n=1, prompts=2))
    told.put(Delta(index=0, text="b"), stream=1)
    await settle()
    told.put(Failed(status=500, code="engine_failure", message="it broke"), stream=0)
    await task
    assert b"it broke" in line.bodies[-1]
    assert told.cancelled == 2


async def test_leaving_several_streams_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    told, line = Told(3), Line()
    task = running(told, line, Chunks(WHO, CHAT, n=1, prompts=3))
    told.put(Delta(index=0, text="b"), stream=1)
    await settle()
    line.leave.set()
    await task
    assert told.cancelled == 3
    assert asyncio.all_tasks() == before


async def test_a_server_that_stops_the_response_stops_the_plan() -> None:
    told, line = Told(), Line()
    task = running(told, line)
    told.put(Delta(index=0, text="a"))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told.cancelled == 1
