"""Engines in one thread of this process, fed from the event loop and answering to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from strop.contracts import Capacity, Deliver, Engine, ModelCard, Plan, PlanId
from strop.server.executors.runner import Events, Load, Runner

T = TypeVar("T")


class Executor(Protocol):
    """Where an engine lives. All methods are called on the event loop and return at once, except `close`."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def capacity(self) -> Capacity:
        """What the engine had after its last step. The maxima never change."""

    def start(self, deliver: Deliver) -> None:
        """Begin to run plans. `deliver` is called on the running event loop, once a step."""

    def submit(self, plan: Plan) -> None: ...

    def cancel(self, plan_id: PlanId) -> None:
        """Free the plan's rows before the next step. Events already under way may still arrive."""

    def load(self) -> Load: ...

    def close(self) -> None:
        """Stop after the step under way and give back all resources. Waits for it."""


class ComputeThread:
    """The one thread in which a process loads its engines and runs them, turn by turn.

    One, because OpenMP gives every thread that computes a pool of its own: when these have more threads together than the
    machine has cores, libgomp no longer spins where threads meet, and a step of a small model takes up to twice as long.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._calls: list[Callable[[], object]] = []
        self._executors: list[ThreadExecutor] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="strop-compute", daemon=True)

    def post(self, work: Callable[[], object]) -> None:
        """Have `work` done before the next turn; at once where the thread has ended."""
        if self._closing:
            work()
            return
        with self._condition:
            if self._thread.ident is None:
                self._thread.start()
            self._calls.append(work)
            self._condition.notify()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done, and its result or exception told."""
        future: Future[T] = Future()
        self.post(partial(_settle, future, work))
        return future

    def attach(self, executor: ThreadExecutor) -> None:
        self.post(partial(self._executors.append, executor))

    def detach(self, executor: ThreadExecutor) -> None:
        """Give the executor no more turns. Called in this thread."""
        if executor in self._executors:
            self._executors.remove(executor)

    def close(self) -> None:
        """End the thread after the work that was posted, and wait for that."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(self._has_work)
                calls, self._calls = self._calls, []
            for call in calls:
                call()
            busy = [executor for executor in self._executors if not executor.idle]
            for executor in busy:
                executor.turn()
            if self._closing and not calls:
                return

    def _has_work(self) -> bool:
        return bool(self._calls or self._closing or any(not executor.idle for executor in self._executors))


class ThreadExecutor:
    """One engine in a compute thread. `observe` is told the load after each turn, in that thread."""

    def __init__(self, engine: Engine, thread: ComputeThread, *, observe: Callable[[Load], None]) -> None:
        self.card = engine.card
        self._engine = engine
        self._thread = thread
        self._observe = observe
        self._runner = Runner(engine)
        self._load = Load()
        self._stirred = False
        self._hand_over: Callable[[Events], object] = _to_nobody

    @property
    def capacity(self) -> Capacity:
        return self._runner.capacity

    @property
    def idle(self) -> bool:
        """Whether a turn would change nothing."""
        return self._runner.idle and not self._stirred

    def start(self, deliver: Deliver) -> None:
        loop = asyncio.get_running_loop()
        self._hand_over = lambda events: loop.call_soon_threadsafe(deliver, events)
        self._thread.attach(self)

    def submit(self, plan: Plan) -> None:
        self._thread.post(partial(self._stir, partial(self._runner.add, plan)))

    def cancel(self, plan_id: PlanId) -> None:
        self._thread.post(partial(self._stir, partial(self._runner.cancel, plan_id)))

    def load(self) -> Load:
        return self._load

    def close(self) -> None:
        self._thread.call(self._close).result()

    def turn(self) -> None:
        """Admit, step, deliver. Called in the compute thread."""
        self._stirred = False
        events = self._runner.turn()
        self._load = self._runner.load()
        self._observe(self._load)
        if events:
            try:
                self._hand_over(events)
            except RuntimeError:  # the event loop is gone, and with it everybody who listened
                self._close()

    def _stir(self, change: Callable[[], None]) -> None:
        """Change what runs or waits; what the engine holds is told after the turn that follows."""
        change()
        self._stirred = True

    def _close(self) -> None:
        self._thread.detach(self)
        self._engine.close()


def _to_nobody(_events: Events) -> None:
    """Where events go before `start`: an executor that was not started gets no turns."""


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised again where the result is awaited
        future.set_exception(error)
