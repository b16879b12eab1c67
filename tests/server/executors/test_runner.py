from __future__ import annotations

from collections.abc import Sequence

import pytest

from strop.contracts import Capacity, Cost, Done, Event, Failed, Plan, PlanId, TextPlan
from strop.errors import InvalidOption
from strop.server.executors.runner import FATAL_FAILURES, Runner
from strop.testing import StubEngine, stub_card


def plan(name: str, *, n: int = 1, start: int = 4, max_tokens: int = 2) -> TextPlan:
    cost = Cost(rows=n, start=start, tokens=start + n * max_tokens)
    return TextPlan(id=name, model="stub", seed=1, cost=cost, prompt=(1,) * start, n=n, max_tokens=max_tokens)


class Faulty(StubEngine):
    """Fails where the test says so."""

    def __init__(self, *, admits: Sequence[str] = (), steps: int = 0, cancels: bool = False) -> None:
        super().__init__(stub_card(), rows=2, tokens=40)
        self.bad_admits = admits
        self.bad_steps = steps
        self.bad_cancels = cancels
        self.bad_capacities = 0

    def admit(self, plan: Plan) -> None:
        super().admit(plan)
        if plan.id in self.bad_admits:
            raise KeyError("half admitted")

    def step(self) -> Sequence[tuple[PlanId, Event]]:
        if self.bad_steps > 0:
            self.bad_steps -= 1
            raise RuntimeError("tensor of shape [3]")
        return super().step()

    def cancel(self, plan_id: PlanId) -> None:
        super().cancel(plan_id)
        if self.bad_cancels:
            raise RuntimeError("cannot")

    def capacity(self) -> Capacity:
        if self.bad_capacities > 0:
            self.bad_capacities -= 1
            raise RuntimeError("no figures")
        return super().capacity()


def finish(runner: Runner) -> dict[str, Event]:
    """The last event of every plan."""
    last: dict[str, Event] = {}
    while not runner.idle:
        last.update(dict(runner.turn()))
    return last


def test_plans_wait_in_order_until_rows_are_free() -> None:
    runner = Runner(Faulty())
    for name, n in [("a", 1), ("b", 2), ("c", 1)]:
        runner.add(plan(name, n=n))
    runner.turn()
    assert (runner.load().running_rows, runner.load().waiting_rows) == (1, 3)
    assert all(isinstance(event, Done) for event in finish(runner).values())


def test_plans_wait_until_their_prompt_fits_the_cache() -> None:
    runner = Runner(Faulty())
    runner.add(plan("a", start=30))
    runner.add(plan("b", start=30))
    runner.turn()
    assert runner.load().waiting_rows == 1
    assert set(finish(runner)) == {"a", "b"}


def test_an_idle_engine_takes_a_plan_whatever_its_cache_holds() -> None:
    class Hoarding(Faulty):
        def capacity(self) -> Capacity:
            return Capacity(free_rows=2, free_tokens=0, running_rows=0, max_rows=2, max_tokens=40)

    runner = Runner(Hoarding())
    runner.add(plan("a"))
    assert isinstance(finish(runner)["a"], Done)


@pytest.mark.parametrize("asked", [plan("a", n=3), plan("a", max_tokens=40)])
def test_what_can_never_fit_fails_and_does_not_block_the_queue(asked: TextPlan) -> None:
    runner = Runner(Faulty())
    runner.add(asked)
    runner.add(plan("b"))
    last = finish(runner)
    assert isinstance(last["a"], Failed)
    assert last["a"].code == "context_length_exceeded"
    assert isinstance(last["b"], Done)


def test_a_plan_the_engine_refuses_fails_with_the_reason() -> None:
    class Refusing(Faulty):
        def admit(self, plan: Plan) -> None:
            raise InvalidOption("no such thing")

    runner = Runner(Refusing())
    runner.add(plan("a"))
    assert finish(runner)["a"] == Failed(status=422, code="invalid_option", message="no such thing")


def test_a_failing_admission_costs_one_plan_and_leaves_no_row() -> None:
    engine = Faulty(admits=["a"])
    runner = Runner(engine)
    runner.add(plan("a"))
    runner.add(plan("b"))
    last = finish(runner)
    assert isinstance(last["a"], Failed)
    assert "half admitted" not in last["a"].message
    assert isinstance(last["b"], Done)
    assert engine.capacity().running_rows == 0


def test_an_engine_that_cannot_tell_its_capacity_costs_one_plan() -> None:
    engine = Faulty()
    runner = Runner(engine)
    engine.bad_capacities = 1
    runner.add(plan("a"))
    runner.add(plan("b"))
    last = finish(runner)
    assert isinstance(last["a"], Failed)
    assert isinstance(last["b"], Done)


def test_the_last_known_capacity_stands_when_the_engine_cannot_tell() -> None:
    engine = Faulty()
    runner = Runner(engine)
    runner.add(plan("a", n=2, max_tokens=9))
    runner.turn()
    engine.bad_capacities = 1
    runner.turn()
    assert runner.capacity.running_rows == 2
    assert isinstance(finish(runner)["a"], Done)


@pytest.mark.parametrize("cancels", [False, True])
def test_a_failing_step_fails_what_runs_and_the_rest_goes_on(cancels: bool) -> None:
    engine = Faulty(steps=1, cancels=cancels)
    runner = Runner(engine)
    for name in "abc":
        runner.add(plan(name))
    last = finish(runner)
    assert {name: type(event) for name, event in last.items()} == {"a": Failed, "b": Failed, "c": Done}
    assert "shape" not in str(last)
    assert engine.capacity().running_rows == 0


def test_failures_in_a_row_make_an_engine_unhealthy_until_a_step_succeeds() -> None:
    runner = Runner(Faulty(steps=FATAL_FAILURES))
    healthy = []
    for attempt in range(FATAL_FAILURES + 1):
        runner.add(plan(str(attempt)))
        runner.turn()
        healthy.append(runner.load().healthy)
    assert healthy == [True] * (FATAL_FAILURES - 1) + [False, True]


def test_cancelled_plans_say_nothing_more() -> None:
    runner = Runner(Faulty())
    for name in "abc":
        runner.add(plan(name, max_tokens=9))
    runner.turn()
    runner.cancel("a")
    runner.cancel("c")
    runner.cancel("unknown")
    assert set(dict(runner.turn())) == {"b"}
    assert set(finish(runner)) == {"b"}


def test_events_of_plans_that_do_not_run_are_dropped() -> None:
    class Babbling(Faulty):
        def step(self) -> Sequence[tuple[PlanId, Event]]:
            return [("stranger", Failed(status=500, code="x", message="y")), *super().step()]

    runner = Runner(Babbling())
    runner.add(plan("a"))
    assert set(finish(runner)) == {"a"}


def test_the_load_tells_the_rows_of_the_last_step() -> None:
    runner = Runner(Faulty())
    runner.add(plan("a", n=2, max_tokens=1))
    runner.turn()
    assert (runner.load().batch_rows, runner.load().running_rows) == (2, 0)
    runner.turn()
    assert runner.load().batch_rows == 0
