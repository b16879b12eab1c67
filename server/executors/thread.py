"""An engine in a thread of this process, fed from the event loop and answering to it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from strop.contracts import Capacity, Deliver, Engine, ModelCard, Plan, PlanId
from strop.server.executors.runner import Events, Load, Runner


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


class ThreadExecutor:
    """One thread, one engine. `observe` is told the load after each turn, in that thread."""

    def __init__(self, engine: Engine, *, observe: Callable[[Load], None], threads: int | None = None) -> None:
        self.card = engine.card
        self._engine = engine
        self._observe = observe
        self._threads = threads
        self._runner = Runner(engine)
        self._condition = threading.Condition()
        self._inbox: list[Plan | PlanId] = []
        self._load = Load()
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def capacity(self) -> Capacity:
        return self._runner.capacity

    def start(self, deliver: Deliver) -> None:
        arguments = (asyncio.get_running_loop(), deliver)
        self._thread = threading.Thread(target=self._run, args=arguments, name=f"strop-{self.card.name}", daemon=True)
        self._thread.start()

    def submit(self, plan: Plan) -> None:
        self._post(plan)

    def cancel(self, plan_id: PlanId) -> None:
        self._post(plan_id)

    def load(self) -> Load:
        return self._load

    def close(self) -> None:
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread is None:
            self._engine.close()
        else:
            self._thread.join()

    def _post(self, item: Plan | PlanId) -> None:
        """A plan to run, or the id of one to cancel."""
        with self._condition:
            self._inbox.append(item)
            self._condition.notify()

    def _run(self, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        prepare_thread(sys.modules, threads=self._threads)
        try:
            while self._take():
                self._publish(self._runner.turn(), loop, deliver)
        finally:
            self._engine.close()

    def _take(self) -> bool:
        """Move the inbox to the runner, sleeping while there is nothing to do. False: time to stop."""
        with self._condition:
            self._condition.wait_for(lambda: self._closing or self._inbox or not self._runner.idle)
            inbox, self._inbox = self._inbox, []
        for item in inbox:
            if isinstance(item, Plan):
                self._runner.add(item)
            else:
                self._runner.cancel(item)
        return not self._closing

    def _publish(self, events: Events, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        self._load = self._runner.load()
        self._observe(self._load)
        if events:
            try:
                loop.call_soon_threadsafe(deliver, events)
            except RuntimeError:
                self._closing = True


def prepare_thread(modules: Mapping[str, Any], *, threads: int | None) -> None:
    """Set the flags that torch keeps per thread. An engine that does without torch has not imported it."""
    torch = modules.get("torch")
    if torch is None:
        return
    torch.set_flush_denormal(True)
    if threads is not None:
        torch.set_num_threads(threads)
