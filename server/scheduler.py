"""Admission and delivery for one engine: what may wait, who waits for what, and what a stop does to them."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from strop.config import Limits
from strop.contracts import Capacity, Done, Event, Failed, Plan, PlanId
from strop.errors import Aborted, ContextTooLong, NotReady, Overloaded, RateLimited, StropError
from strop.server.executors.thread import Executor
from strop.server.failures import failed
from strop.server.metrics import Metrics, Stopwatch
from strop.server.stream import Stream

__all__ = ["Scheduler", "Stream"]

LONGEST_WAIT = 60
"""Seconds: no client is told to stay away for longer."""


@dataclass(frozen=True, slots=True)
class _Open:
    stream: Stream
    watch: Stopwatch


class Scheduler:
    """Every method runs on the event loop. Plans that wait are bounded by rows, by prompt tokens and, per key, by number.

    `tenants` counts the plans under way of each key; the schedulers of one house share it.
    """

    def __init__(self, executor: Executor, *, limits: Limits, metrics: Metrics, tenants: Counter[str]) -> None:
        self._executor = executor
        self._limits = limits
        self._metrics = metrics
        self._open: dict[PlanId, _Open] = {}
        self._tenants = tenants
        self._rows = 0
        self._tokens = 0
        self._seconds_per_plan = 1.0
        self._accepting = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def capacity(self) -> Capacity:
        """What the engine had after its last step."""
        return self._executor.capacity

    @property
    def healthy(self) -> bool:
        return self._executor.load().healthy

    @property
    def in_flight(self) -> int:
        """Plans that have not ended."""
        return len(self._open)

    def start(self) -> None:
        self._executor.start(self._deliver)
        self._accepting = True

    def submit(self, plans: Sequence[Plan]) -> list[Stream]:
        """Start all plans of one request, or none. Raises NotReady, RateLimited, Overloaded or ContextTooLong."""
        try:
            self._refuse(plans)
        except StropError as error:
            self._metrics.refused(error.code)
            raise
        return [self._begin(plan) for plan in plans]

    async def drain(self, seconds: float) -> None:
        """Take nothing new, let what runs finish for so long, then abort it."""
        self._accepting = False
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        self._abort()

    def close(self) -> None:
        """Abort what is left and stop the engine; waits for its last step."""
        self._accepting = False
        self._abort()
        self._executor.close()

    def _refuse(self, plans: Sequence[Plan]) -> None:
        if not self._accepting:
            raise NotReady("the server is starting or stopping", retry_after=1)
        capacity, limits = self.capacity, self._limits
        for plan in plans:
            if plan.cost.rows > capacity.max_rows or plan.cost.tokens > capacity.max_tokens:
                raise ContextTooLong(
                    f"the request needs {plan.cost.rows} rows and {plan.cost.tokens} tokens of cache; "
                    f"the model has {capacity.max_rows} and {capacity.max_tokens}"
                )
            under_way = self._tenants[plan.tenant]
            if plan.tenant and under_way and under_way + len(plans) > limits.in_flight:
                raise RateLimited(f"this key has {limits.in_flight} prompts under way", retry_after=self._wait())
        if self._rows + sum(plan.cost.rows for plan in plans) > capacity.max_rows + limits.max_queue:
            raise Overloaded(f"{self._rows} rows are running or waiting; try again later", retry_after=self._wait())
        if self._tokens + sum(plan.cost.start for plan in plans) > capacity.max_tokens + limits.max_queue_tokens:
            raise Overloaded(f"{self._tokens} prompt tokens are running or waiting; try again later", retry_after=self._wait())

    def _wait(self) -> float:
        """Seconds until about one batch of what is under way has passed."""
        batches = max(1.0, self._rows / self.capacity.max_rows)
        return min(LONGEST_WAIT, math.ceil(self._seconds_per_plan * batches / 2))

    def _begin(self, plan: Plan) -> Stream:
        stream = Stream(plan, cancel=partial(self._cancel, plan.id))
        self._open[plan.id] = _Open(stream, Stopwatch(self._metrics, plan.model))
        self._tenants[plan.tenant] += 1
        self._rows += plan.cost.rows
        self._tokens += plan.cost.start
        self._idle.clear()
        self._executor.submit(plan)
        return stream

    def _deliver(self, events: Sequence[tuple[PlanId, Event]]) -> None:
        for plan_id, event in events:
            if plan_id in self._open:
                self._hand_over(plan_id, event)

    def _hand_over(self, plan_id: PlanId, event: Event) -> None:
        entry = self._open[plan_id]
        entry.watch.see(event)
        if isinstance(event, Done | Failed):
            self._forget(plan_id)
        if isinstance(event, Done):
            self._seconds_per_plan += 0.1 * (event.evidence.seconds - self._seconds_per_plan)
        entry.stream.put(event)

    def _cancel(self, plan_id: PlanId) -> None:
        """The reader went away. Nothing happens if the plan had ended."""
        entry = self._open.get(plan_id)
        if entry is not None:
            self._forget(plan_id)
            self._executor.cancel(plan_id)
            entry.watch.end("cancelled")

    def _abort(self) -> None:
        for plan_id in list(self._open):
            self._executor.cancel(plan_id)
            self._hand_over(plan_id, failed(Aborted("the server stopped before the answer was complete")))

    def _forget(self, plan_id: PlanId) -> None:
        plan = self._open.pop(plan_id).stream.plan
        self._tenants[plan.tenant] -= 1
        if not self._tenants[plan.tenant]:
            del self._tenants[plan.tenant]
        self._rows -= plan.cost.rows
        self._tokens -= plan.cost.start
        if not self._open:
            self._idle.set()
