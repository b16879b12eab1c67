"""The scheduler over a runner that the test drives turn by turn: no thread, no clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from strop.config import Limits
from strop.contracts import Capacity, Cost, Deliver, Delta, Done, Event, Failed, ModelCard, Plan, PlanId, PromptScored, TextPlan
from strop.errors import Aborted, ContextTooLong, EngineFailure, NotReady, Overloaded, RateLimited
from strop.server.executors.runner import Load, Runner
from strop.server.metrics import Metrics
from strop.server.scheduler import Scheduler, Stream
from strop.testing import StubEngine, answer, stub_card

ROWS, TOKENS, QUEUE, IN_FLIGHT = 4, 64, 5, 3


class HandExecutor:
    """An executor that works only when the test says so."""

    def __init__(self, engine: StubEngine) -> None:
        self.engine = engine
        self.runner = Runner(engine)
        self.deliver: Deliver = lambda events: None
        self.alive: dict[PlanId, Plan] = {}

    @property
    def card(self) -> ModelCard:
        return self.engine.card

    @property
    def capacity(self) -> Capacity:
        return self.runner.capacity

    def start(self, deliver: Deliver) -> None:
        self.deliver = deliver

    def submit(self, plan: Plan) -> None:
        self.runner.add(plan)
        self.alive[plan.id] = plan

    def cancel(self, plan_id: PlanId) -> None:
        self.runner.cancel(plan_id)
        self.alive.pop(plan_id)

    def load(self) -> Load:
        return self.runner.load()

    def close(self) -> None:
        self.engine.close()

    def turn(self) -> None:
        events = self.runner.turn()
        for plan_id, event in events:
            if isinstance(event, Done | Failed):
                self.alive.pop(plan_id)
        self.deliver(events)

    def finish(self) -> None:
        while not self.runner.idle:
            self.turn()


def plan(name: str, *, n: int = 1, prompt: int = 4, max_tokens: int = 3, tenant: str = "") -> TextPlan:
    tokens = tuple(range(1, prompt + 1))
    cost = Cost(rows=n, start=prompt, tokens=prompt + n * max_tokens)
    return TextPlan(id=name, model="stub", seed=7, cost=cost, prompt=tokens, n=n, max_tokens=max_tokens, tenant=tenant)


class Bench:
    """A scheduler, its engine, and metrics, ready to be driven."""

    def __init__(self, engine: StubEngine | None = None, *, tenants: Counter[str] | None = None, **limits: int) -> None:
        self.engine = engine or StubEngine(stub_card(), rows=ROWS, tokens=TOKENS)
        self.executor = HandExecutor(self.engine)
        self.metrics = Metrics()
        caps = {"max_queue": QUEUE, "max_queue_tokens": TOKENS, "in_flight": IN_FLIGHT, **limits}
        held = Counter() if tenants is None else tenants
        self.scheduler = Scheduler(self.executor, limits=Limits(**caps), metrics=self.metrics, tenants=held)
        self.scheduler.start()

    def submit(self, *plans: Plan) -> list[Stream]:
        return self.scheduler.submit(plans)


async def read(stream: Stream) -> list[Event]:
    return [event async for event in stream]


def said(events: Sequence[Event], index: int) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.index == index)


def expected(plan: TextPlan, index: int) -> str:
    return "".join(delta.text for delta in answer(plan, index))


async def test_a_plan_is_answered_in_full() -> None:
    bench, asked = Bench(), plan("a", n=2, max_tokens=5)
    [stream] = bench.submit(asked)
    bench.executor.finish()
    events = await read(stream)
    assert [said(events, i) for i in range(2)] == [expected(asked, i) for i in range(2)]
    assert isinstance(events[-1], Done)
    assert events[-1].usage.completion_tokens == 10
    assert bench.scheduler.in_flight == 0


async def test_a_slow_reader_gets_few_large_deltas_and_a_fast_one_gets_each() -> None:
    bench, asked = Bench(), plan("a", max_tokens=6)
    [stream] = bench.submit(asked)
    fast: list[Event] = []
    for _ in range(3):
        bench.executor.turn()
        fast.append(await anext(stream))
        assert not stream.ready
    bench.executor.finish()
    slow = await read(stream)
    assert [len(event.token_ids) for event in [*fast, *slow] if isinstance(event, Delta)] == [1, 1, 1, 3]
    assert said([*fast, *slow], 0) == expected(asked, 0)
    assert [event.finish for event in slow if isinstance(event, Delta)] == ["length"]


async def test_a_reader_that_waits_wakes_when_the_step_is_delivered() -> None:
    bench = Bench()
    [stream] = bench.submit(plan("a"))
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    bench.executor.turn()
    assert isinstance(await waiting, Delta)


async def test_prompt_scores_come_before_the_answer() -> None:
    bench = Bench()
    [stream] = bench.submit(replace(plan("a"), logprobs=0, prompt_logprobs=True))
    bench.executor.finish()
    assert [type(event) for event in await read(stream)] == [PromptScored, Delta, Done]


@pytest.mark.parametrize("turns", [0, 1])
async def test_leaving_a_stream_frees_its_rows_before_the_next_step(turns: int) -> None:
    bench = Bench()
    [stream] = bench.submit(plan("a", n=ROWS, max_tokens=9))
    for _ in range(turns):
        bench.executor.turn()
    async with stream:
        pass
    assert bench.scheduler.in_flight == 0
    assert bench.engine.capacity().running_rows == 0
    assert bench.executor.runner.idle
    assert await read(stream) == []


async def test_closing_an_ended_or_closed_stream_is_harmless() -> None:
    bench = Bench()
    [first] = bench.submit(plan("a"))
    bench.executor.finish()
    await first.aclose()
    await first.aclose()
    assert bench.scheduler.in_flight == 0
    assert 'outcome="cancelled"' not in bench.metrics.render().decode()


async def test_events_under_way_when_a_reader_leaves_are_dropped() -> None:
    bench = Bench()
    [stream] = bench.submit(plan("a"))
    late = bench.executor.runner.turn()
    await stream.aclose()
    bench.executor.deliver(late)
    assert await read(stream) == []


async def test_a_full_queue_refuses_all_plans_of_a_request_and_says_when_to_come_back() -> None:
    bench = Bench()
    bench.submit(*[plan(f"p{i}", prompt=1) for i in range(ROWS + QUEUE - 1)])
    with pytest.raises(Overloaded) as refusal:
        bench.submit(plan("x", prompt=1), plan("y", prompt=1))
    assert refusal.value.retry_after is not None
    assert 1 <= refusal.value.retry_after <= 60
    assert bench.scheduler.in_flight == ROWS + QUEUE - 1
    assert 'strop_refusals_total{code="overloaded"} 1.0' in bench.metrics.render().decode()
    bench.executor.finish()
    assert len(bench.submit(plan("x"), plan("y"))) == 2


async def test_prompt_tokens_that_wait_are_bounded() -> None:
    bench = Bench(max_queue_tokens=10)
    bench.submit(plan("a", prompt=60), plan("b", prompt=10))
    with pytest.raises(Overloaded):
        bench.submit(plan("c", prompt=5))
    bench.executor.finish()
    assert len(bench.submit(plan("d", prompt=60), plan("e", prompt=10))) == 2


async def test_one_key_is_limited_and_others_are_not() -> None:
    bench = Bench()
    bench.submit(*[plan(f"a{i}", tenant="alice") for i in range(IN_FLIGHT)])
    with pytest.raises(RateLimited):
        bench.submit(plan("a9", tenant="alice"))
    bench.submit(plan("b", tenant="bob"), plan("c"))
    bench.executor.finish()
    bench.submit(plan("a9", tenant="alice"))


async def test_a_key_s_limit_holds_over_all_models_of_a_house() -> None:
    shared: Counter[str] = Counter()
    one, other = Bench(tenants=shared), Bench(tenants=shared)
    one.submit(*[plan(f"a{i}", tenant="alice") for i in range(IN_FLIGHT)])
    with pytest.raises(RateLimited):
        other.submit(plan("a9", tenant="alice"))
    one.executor.finish()
    other.submit(plan("a9", tenant="alice"))


@pytest.mark.parametrize("asked", [plan("a", n=ROWS + 1, max_tokens=1), plan("a", max_tokens=TOKENS)])
async def test_what_can_never_fit_is_refused(asked: TextPlan) -> None:
    bench = Bench()
    with pytest.raises(ContextTooLong, match=str(TOKENS)):
        bench.submit(asked)


async def test_drain_lets_running_plans_finish_and_takes_no_new_ones() -> None:
    bench = Bench()
    [stream] = bench.submit(plan("a"))
    draining = asyncio.create_task(bench.scheduler.drain(60))
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        bench.submit(plan("b"))
    bench.executor.finish()
    await draining
    assert isinstance((await read(stream))[-1], Done)


async def test_drain_aborts_what_takes_too_long() -> None:
    bench = Bench()
    [stream] = bench.submit(plan("a", max_tokens=50))
    bench.executor.turn()
    await bench.scheduler.drain(0)
    assert isinstance(await anext(stream), Delta)
    with pytest.raises(Aborted):
        await anext(stream)
    assert await read(stream) == []
    assert bench.engine.capacity().running_rows == 0


async def test_close_aborts_and_stops_the_engine() -> None:
    bench = Bench()
    [stream] = bench.submit(plan("a"))
    bench.scheduler.close()
    with pytest.raises(Aborted):
        await anext(stream)
    assert bench.engine.closed


async def test_an_engine_failure_reaches_every_reader_and_the_engine_goes_on() -> None:
    class Tripping(StubEngine):
        failures = 1

        def step(self) -> Sequence[tuple[PlanId, Event]]:
            self.failures -= 1
            if self.failures >= 0:
                raise ZeroDivisionError("secret detail")
            return super().step()

    bench = Bench(Tripping(stub_card(), rows=ROWS, tokens=TOKENS))
    streams = bench.submit(plan("a"), plan("b"))
    bench.executor.turn()
    for stream in streams:
        with pytest.raises(EngineFailure) as failure:
            await anext(stream)
        assert "secret" not in failure.value.message
    [after] = bench.submit(plan("c"))
    bench.executor.finish()
    assert isinstance((await read(after))[-1], Done)
    assert bench.scheduler.healthy


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever callers do, no plan is lost, every stream ends, and no bound is exceeded."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bench = Bench()
        self.plans: dict[Stream, TextPlan] = {}
        self.seen: dict[Stream, list[Event]] = {}
        self.left: set[Stream] = set()

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    @rule(
        target=streams,
        shapes=st.lists(st.tuples(st.integers(1, ROWS), st.integers(1, 30), st.integers(0, 8)), min_size=1, max_size=3),
        tenant=st.sampled_from(["", "alice", "bob"]),
    )
    def submit(self, shapes: list[tuple[int, int, int]], tenant: str) -> Any:
        before = self.bench.scheduler.in_flight
        of_tenant = sum(plan.tenant == tenant for plan in self.bench.executor.alive.values())
        plans = [
            plan(f"{len(self.plans)}.{i}", n=n, prompt=prompt, max_tokens=max_tokens, tenant=tenant)
            for i, (n, prompt, max_tokens) in enumerate(shapes)
        ]
        try:
            streams = self.bench.submit(*plans)
        except (Overloaded, RateLimited):
            assert self.bench.scheduler.in_flight == before
            return multiple()
        assert not tenant or of_tenant < IN_FLIGHT
        self.plans.update(zip(streams, plans, strict=True))
        self.seen.update({stream: [] for stream in streams})
        return multiple(*streams)

    @rule()
    def turn(self) -> None:
        self.bench.executor.turn()

    @rule(stream=streams)
    def read(self, stream: Stream) -> None:
        if stream.ready:
            self.seen[stream] += [event for event in [self.run(anext(stream, None))] if event is not None]

    @rule(stream=streams)
    def leave(self, stream: Stream) -> None:
        self.run(stream.aclose())
        self.left.add(stream)
        assert stream.ready

    @invariant()
    def bounds_hold(self) -> None:
        assert self.bench.executor.load().running_rows <= ROWS
        assert self.bench.engine.capacity().running_rows <= ROWS
        load = self.bench.executor.load()
        assert load.waiting_rows + load.running_rows <= ROWS + QUEUE
        assert self.bench.scheduler.in_flight == len(self.bench.executor.alive)

    def teardown(self) -> None:
        self.bench.executor.finish()
        for stream, asked in self.plans.items():
            events = self.seen[stream] + self.run(read(stream))
            if stream in self.left:
                continue
            assert isinstance(events[-1], Done)
            assert [said(events, i) for i in range(asked.n)] == [expected(asked, i) for i in range(asked.n)]
        assert self.bench.scheduler.in_flight == 0
        assert self.bench.engine.capacity().running_rows == 0
        self.loop.close()


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase
