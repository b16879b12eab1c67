"""The streams of one request read as one, and the end of it all when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, Self, TypeVar

from starlette.types import Receive

from strop.contracts import Event
from strop.server.stream import Stream

T = TypeVar("T")


class Answers(Protocol):
    """An async iterator of (position of the prompt, event). `ready`: the next one can be had without waiting."""

    @property
    def ready(self) -> bool: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> tuple[int, Event]: ...

    async def aclose(self) -> None:
        """Cancel what has not ended."""


def answers(streams: Sequence[Stream]) -> Answers:
    return One(streams[0]) if len(streams) == 1 else Several(streams)


class One:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def ready(self) -> bool:
        return self._stream.ready

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Event]:
        return 0, await self._stream.__anext__()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Several:
    """A reader task for each stream. Few events are held here, so that a slow client's deltas are merged where they wait."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams
        self._events: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(maxsize=2 * len(streams))
        self._readers = [asyncio.create_task(self._read(position)) for position in range(len(streams))]
        self._left = len(streams)

    @property
    def ready(self) -> bool:
        return not self._events.empty()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Event]:
        while self._left:
            position, event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            if event is not None:
                return position, event
            self._left -= 1
        raise StopAsyncIteration

    async def aclose(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()

    async def _read(self, position: int) -> None:
        try:
            async for event in self._streams[position]:
                await self._events.put((position, event))
        except Exception as error:  # noqa: BLE001 - raised again where the answers are read
            await self._events.put((position, error))
        else:
            await self._events.put((position, None))


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T], close: Callable[[], Awaitable[None]]) -> T | None:
    """The result of `work`, or None if the client leaves before that; then `close` has been called and `work` has stopped."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        gone.cancel()
        await close()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
