"""Skeleton of the interface; the body follows."""

from __future__ import annotations

from collections.abc import Sequence

from strop.contracts import Event, Plan


class Stream:
    """The events of one plan, in order: an async iterator. Leaving `async with`, or `aclose()`, cancels the plan."""

    plan: Plan

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        """The next event. Deltas of one choice that wait are merged. A `Failed` is raised as its `StropError`."""
        raise StopAsyncIteration

    async def aclose(self) -> None: ...


class Scheduler:
    """Admission and delivery for one engine. Every method runs on the event loop."""

    def submit(self, plans: Sequence[Plan]) -> list[Stream]:
        """Start all plans or none. Raises NotReady, RateLimited, Overloaded or ContextTooLong."""
        return []

    async def drain(self, seconds: float) -> None: ...

    def close(self) -> None: ...
