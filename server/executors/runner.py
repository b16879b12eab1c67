"""One engine and the plans that wait for it: first come, first served, as the engine's capacity allows.

It has no thread and no lock of its own, so that a thread, a worker process or a test can drive it turn by turn.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from strop.contracts import Capacity, Done, Engine, Event, Failed, Plan, PlanId
from strop.errors import ContextTooLong, EngineFailure, StropError
from strop.server.failures import failed

Events: TypeAlias = list[tuple[PlanId, Event]]

FATAL_FAILURES = 3
"""Steps that fail in a row before an engine counts as broken."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy an engine is: rows that wait, rows that run, rows of the turn's step (0: none was made), and steps that failed
    since the last good one."""

    waiting_rows: int = 0
    running_rows: int = 0
    batch_rows: int = 0
    failures: int = 0

    @property
    def healthy(self) -> bool:
        return self.failures < FATAL_FAILURES


class Runner:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[Plan] = deque()
        self._running: dict[PlanId, Plan] = {}
        self._batch_rows = 0
        self._failures = 0
        self.capacity = engine.capacity()
        """What the engine said it has after the last turn."""

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def load(self) -> Load:
        return Load(
            waiting_rows=sum(plan.cost.rows for plan in self._waiting),
            running_rows=self._running_rows(),
            batch_rows=self._batch_rows,
            failures=self._failures,
        )

    def add(self, plan: Plan) -> None:
        self._waiting.append(plan)

    def cancel(self, plan_id: PlanId) -> None:
        """Forget the plan, wherever it is; unknown ids are ignored."""
        if self._running.pop(plan_id, None) is not None:
            self._drop(plan_id)
        else:
            self._waiting = deque(plan for plan in self._waiting if plan.id != plan_id)

    def turn(self) -> Events:
        """Admit what fits, then make one step. Each plan that was added ends by one `Done` or `Failed`, or by `cancel`."""
        events = self._admit()
        self._batch_rows = self._running_rows()
        if self._running:
            events += self._step()
        self._measure()
        return events

    def _admit(self) -> Events:
        events: Events = []
        while self._waiting:
            plan = self._waiting[0]
            try:
                if not self._take_on(plan):
                    break
            except StropError as error:
                events.append((plan.id, failed(error)))
            except Exception:  # noqa: BLE001 - an engine may raise anything, and only the plan at hand may suffer
                _log.exception("engine %s could not admit plan %s", self._engine.card.name, plan.id)
                self._drop(plan.id)
                events.append((plan.id, _failure()))
            self._waiting.popleft()
        return events

    def _take_on(self, plan: Plan) -> bool:
        """Hand the plan to the engine, or say that it has to wait."""
        capacity = self._engine.capacity()
        if not self._fits(plan, capacity):
            return False
        _check(plan, capacity)
        self._engine.admit(plan)
        self._running[plan.id] = plan
        return True

    def _fits(self, plan: Plan, capacity: Capacity) -> bool:
        """Whether the plan's turn has come. An idle engine takes anything: what it caches for nobody makes room."""
        fits = plan.cost.rows <= capacity.free_rows and plan.cost.start <= capacity.free_tokens
        return fits or not self._running

    def _step(self) -> Events:
        try:
            events = [(plan_id, event) for plan_id, event in self._engine.step() if plan_id in self._running]
        except Exception:  # noqa: BLE001 - whatever it was, the engine gets a fresh start
            _log.exception("a step of engine %s failed", self._engine.card.name)
            self._failures += 1
            return self._fail_all()
        self._failures = 0
        for plan_id, event in events:
            if isinstance(event, Done | Failed):
                del self._running[plan_id]
        return events

    def _fail_all(self) -> Events:
        lost, self._running = list(self._running), {}
        for plan_id in lost:
            self._drop(plan_id)
        return [(plan_id, _failure()) for plan_id in lost]

    def _measure(self) -> None:
        try:
            self.capacity = self._engine.capacity()
        except Exception:  # noqa: BLE001 - the figures of the turn before stand
            _log.exception("engine %s could not tell its capacity", self._engine.card.name)

    def _running_rows(self) -> int:
        return sum(plan.cost.rows for plan in self._running.values())

    def _drop(self, plan_id: PlanId) -> None:
        try:
            self._engine.cancel(plan_id)
        except Exception:  # noqa: BLE001 - the plan is gone either way
            _log.exception("engine %s could not cancel plan %s", self._engine.card.name, plan_id)


def _check(plan: Plan, capacity: Capacity) -> None:
    """Refuse what the engine can never hold."""
    if plan.cost.rows > capacity.max_rows or plan.cost.tokens > capacity.max_tokens:
        raise ContextTooLong(
            f"the request needs {plan.cost.rows} rows and {plan.cost.tokens} tokens of cache; "
            f"the engine has {capacity.max_rows} and {capacity.max_tokens}"
        )


def _failure() -> Failed:
    return failed(EngineFailure("the engine failed while it ran this request; the server's log has the details"))
