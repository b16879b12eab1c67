from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from strop.contracts import Cost, Delta, Done, Event, PlanId, TextPlan
from strop.server.executors.runner import Load
from strop.server.executors.thread import ComputeThread, ThreadExecutor
from strop.testing import StubEngine, stub_card


def plan(name: str, *, max_tokens: int = 3) -> TextPlan:
    cost = Cost(rows=1, start=2, tokens=2 + max_tokens)
    return TextPlan(id=name, model="stub", seed=1, cost=cost, prompt=(1, 2), max_tokens=max_tokens)


@pytest.fixture
def thread() -> Iterator[ComputeThread]:
    thread = ComputeThread()
    yield thread
    thread.close()


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


async def test_a_step_is_one_delivery_on_the_loop_and_nothing_runs_there(thread: ComputeThread) -> None:
    loads: list[Load] = []
    threads: set[int] = set()

    class Watched(StubEngine):
        def step(self) -> Sequence[tuple[PlanId, Event]]:
            threads.add(threading.get_ident())
            return super().step()

    executor, reader = ThreadExecutor(Watched(stub_card()), thread, observe=loads.append), Reader()
    both = threading.Event()
    thread.post(both.wait)
    executor.submit(plan("a"))
    executor.submit(plan("b"))
    executor.start(reader)
    both.set()
    assert {await reader.done.get(), await reader.done.get()} == {"a", "b"}
    executor.close()
    assert len(reader.deliveries) == 3
    assert all({plan_id for plan_id, _ in events} == {"a", "b"} for events in reader.deliveries)
    assert reader.threads == {threading.get_ident()}
    assert threads.isdisjoint(reader.threads)
    assert [load.batch_rows for load in loads[:3]] == [2, 2, 2]
    assert executor.load().running_rows == executor.capacity.running_rows == 0


async def test_a_cancel_takes_effect_before_the_next_step(thread: ComputeThread) -> None:
    engine = StubEngine(stub_card(), seconds=0.001)
    executor, reader = ThreadExecutor(engine, thread, observe=lambda load: None), Reader()
    executor.submit(plan("a", max_tokens=5000))
    executor.submit(plan("b", max_tokens=60))
    executor.start(reader)
    await reader.begun.wait()
    assert executor.capacity.running_rows == 2
    executor.cancel("a")
    assert await reader.done.get() == "b"
    executor.close()
    of_a = [event for events in reader.deliveries for plan_id, event in events if plan_id == "a"]
    assert all(isinstance(event, Delta) for event in of_a)
    assert len(of_a) < 40


async def test_an_idle_thread_sleeps_and_wakes(thread: ComputeThread) -> None:
    turns: list[Load] = []
    executor, reader = ThreadExecutor(StubEngine(stub_card()), thread, observe=turns.append), Reader()
    executor.start(reader)
    await asyncio.sleep(0.05)
    assert turns == []
    executor.submit(plan("a"))
    assert await reader.done.get() == "a"
    executor.close()


@pytest.mark.parametrize("started", [False, True])
async def test_closing_leaves_no_thread_and_closes_the_engine(started: bool) -> None:
    engine = StubEngine(stub_card(), seconds=0.001)
    before = threading.active_count()
    thread = ComputeThread()
    executor = ThreadExecutor(engine, thread, observe=lambda load: None)
    if started:
        executor.start(Reader())
        executor.submit(plan("a", max_tokens=5000))
    executor.close()
    thread.close()
    assert threading.active_count() == before
    assert engine.closed
    executor.close()


async def test_engines_take_turns_in_one_thread(thread: ComputeThread) -> None:
    turns: list[str] = []
    executors = [
        ThreadExecutor(StubEngine(stub_card()), thread, observe=lambda load, name=name: turns.append(name))  # type: ignore[misc]
        for name in ("a", "b")
    ]
    reader, ready = Reader(), threading.Event()
    thread.post(ready.wait)
    for executor in executors:
        executor.start(reader)
        executor.submit(plan(str(id(executor)), max_tokens=4))
    ready.set()
    await reader.done.get()
    await reader.done.get()
    assert turns == ["a", "b"] * 4
    for executor in executors:
        executor.close()


async def test_work_is_done_in_the_thread_and_its_errors_come_back(thread: ComputeThread) -> None:
    assert await asyncio.wrap_future(thread.call(threading.get_ident)) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wrap_future(thread.call(lambda: 1 // 0))


def test_a_loop_that_is_gone_stops_the_engine(thread: ComputeThread) -> None:
    closed = threading.Event()

    class Closing(StubEngine):
        def close(self) -> None:
            closed.set()

    executor = ThreadExecutor(Closing(stub_card()), thread, observe=lambda load: None)

    async def start() -> None:
        executor.start(Reader())

    asyncio.run(start())
    executor.submit(plan("a"))
    assert closed.wait(5)
    executor.close()
