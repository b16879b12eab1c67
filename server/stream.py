"""The answer of one plan on its way to one reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from strop.contracts import Delta, Done, Event, Failed, Plan
from strop.server.failures import raised


class Stream:
    """The events of one plan, in order: an async iterator. Leaving `async with`, or `aclose()`, cancels the plan.

    Memory is bounded by the answer: deltas that wait for a slow reader are merged, choice by choice.
    """

    def __init__(self, plan: Plan, *, cancel: Callable[[], None]) -> None:
        self.plan = plan
        self._cancel = cancel
        self._before: deque[Event] = deque()
        self._deltas: dict[int, list[Delta]] = {}
        self._end: Done | Failed | None = None
        self._over = False
        self._news = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether the next event, or the end, can be had without waiting."""
        return self._news.is_set()

    def put(self, event: Event) -> None:
        """Queue an event. Called by the scheduler, never after `Done` or `Failed`."""
        match event:
            case Delta():
                self._deltas.setdefault(event.index, []).append(event)
            case Done() | Failed():
                self._end = event
            case _:
                self._before.append(event)
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event. A `Failed` is raised as the `StropError` it stands for."""
        await self._news.wait()
        event = self._take()
        if not (self._before or self._deltas or self._end or self._over):
            self._news.clear()
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give up the answer. The plan's rows are free within one step. Harmless after the end."""
        self._cancel()
        self._over, self._end = True, None
        self._before.clear()
        self._deltas.clear()
        self._news.set()

    def _take(self) -> Event:
        if self._before:
            return self._before.popleft()
        if self._deltas:
            return _merged(self._deltas.pop(next(iter(self._deltas))))
        self._over, end, self._end = True, self._end, None
        if end is None:
            raise StopAsyncIteration
        if isinstance(end, Failed):
            raise raised(end)
        return end


def _merged(deltas: Sequence[Delta]) -> Delta:
    """Deltas of one choice as one."""
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        index=deltas[0].index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        scores=tuple(score for delta in deltas for score in delta.scores),
        finish=deltas[-1].finish,
    )
