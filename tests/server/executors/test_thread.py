from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from types import ModuleType

import pytest

from strop.contracts import Cost, Delta, Done, Event, PlanId, TextPlan
from strop.server.executors.runner import Load
from strop.server.executors.thread import ThreadExecutor, prepare_thread
from strop.testing import StubEngine, stub_card


def plan(name: str, *, max_tokens: int = 3) -> TextPlan:
    cost = Cost(rows=1, start=2, tokens=2 + max_tokens)
    return TextPlan(id=name, model="stub", seed=1, cost=cost, prompt=(1, 2), max_tokens=max_tokens)


class Reader:
    """Keeps what is delivered, and tells when a plan is done."""

    def __init__(self) -> None:
        self.deliveries: list[list[tuple[PlanId, Event]]] = []
        self.threads: set[int] = set()
        self.begun = asyncio.Event()
        self.done: asyncio.Queue[PlanId] = asyncio.Queue()

    def __call__(self, events: Sequence[tuple[PlanId, Event]]) -> None:
        self.begun.set()
        self.deliveries.append(list(events))
        self.threads.add(threading.get_ident())
        for plan_id, event in events:
            if isinstance(event, Done):
                self.done.put_nowait(plan_id)


async def test_a_step_is_one_delivery_on_the_loop_and_nothing_runs_there() -> None:
    loads: list[Load] = []
    threads: set[int] = set()

    class Watched(StubEngine):
        def step(self) -> Sequence[tuple[PlanId, Event]]:
            threads.add(threading.get_ident())
            return super().step()

    executor, reader = ThreadExecutor(Watched(stub_card()), observe=loads.append), Reader()
    executor.submit(plan("a"))
    executor.submit(plan("b"))
    executor.start(reader)
    assert {await reader.done.get(), await reader.done.get()} == {"a", "b"}
    executor.close()
    assert len(reader.deliveries) == 3
    assert all({plan_id for plan_id, _ in events} == {"a", "b"} for events in reader.deliveries)
    assert reader.threads == {threading.get_ident()}
    assert threads.isdisjoint(reader.threads)
    assert [load.batch_rows for load in loads[:3]] == [2, 2, 2]
    assert executor.load().running_rows == executor.capacity.running_rows == 0


async def test_a_cancel_takes_effect_before_the_next_step() -> None:
    engine = StubEngine(stub_card(), seconds=0.001)
    executor, reader = ThreadExecutor(engine, observe=lambda load: None), Reader()
    executor.start(reader)
    executor.submit(plan("a", max_tokens=5000))
    executor.submit(plan("b", max_tokens=60))
    await reader.begun.wait()
    assert executor.capacity.running_rows == 2
    executor.cancel("a")
    assert await reader.done.get() == "b"
    executor.close()
    of_a = [event for events in reader.deliveries for plan_id, event in events if plan_id == "a"]
    assert all(isinstance(event, Delta) for event in of_a)
    assert len(of_a) < 40


async def test_an_idle_thread_sleeps_and_wakes() -> None:
    turns: list[Load] = []
    executor, reader = ThreadExecutor(StubEngine(stub_card()), observe=turns.append), Reader()
    executor.start(reader)
    await asyncio.sleep(0.05)
    assert turns == []
    executor.submit(plan("a"))
    assert await reader.done.get() == "a"
    executor.close()


@pytest.mark.parametrize("started", [False, True])
async def test_closing_leaves_no_thread_and_closes_the_engine(started: bool) -> None:
    engine = StubEngine(stub_card(), seconds=0.001)
    executor = ThreadExecutor(engine, observe=lambda load: None)
    before = threading.active_count()
    if started:
        executor.start(Reader())
        executor.submit(plan("a", max_tokens=5000))
    executor.close()
    assert threading.active_count() == before
    assert engine.closed


def test_a_loop_that_is_gone_stops_the_thread() -> None:
    closed = threading.Event()

    class Closing(StubEngine):
        def close(self) -> None:
            closed.set()

    engine = Closing(stub_card())
    executor = ThreadExecutor(engine, observe=lambda load: None)

    async def start() -> None:
        executor.start(Reader())

    asyncio.run(start())
    executor.submit(plan("a"))
    assert closed.wait(5)
    executor.close()


def test_torch_is_prepared_only_where_it_is_in_use() -> None:
    calls: list[object] = []
    torch = ModuleType("torch")
    torch.set_flush_denormal = calls.append  # type: ignore[attr-defined]
    torch.set_num_threads = calls.append  # type: ignore[attr-defined]
    prepare_thread({}, threads=2)
    assert calls == []
    prepare_thread({"torch": torch}, threads=None)
    prepare_thread({"torch": torch}, threads=2)
    assert calls == [True, True, 2]
    assert "torch" not in vars(sys.modules[ThreadExecutor.__module__])
