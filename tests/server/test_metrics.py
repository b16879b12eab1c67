from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from strop.contracts import Delta, Done, Evidence, Failed, PromptScored, Usage
from strop.server.executors.runner import Load
from strop.server.metrics import CONTENT_TYPE, Metrics, Stopwatch


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Value by sample name and last label."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, ",".join(value for key, value in sample.labels.items() if key != "model")): sample.value
        for family in families
        for sample in family.samples
    }


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_houses_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.refused("overloaded")
    assert samples(one)["strop_refusals_total", "overloaded"] == 1
    assert ("strop_refusals_total", "overloaded") not in samples(other)
    assert CONTENT_TYPE.startswith("text/plain")


def test_load_becomes_gauges_steps_and_batches() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.observe("m", Load(waiting_rows=3, running_rows=5, batch_rows=5))
    metrics.observe("m", Load(waiting_rows=3, running_rows=0, batch_rows=5, failures=1))
    metrics.observe("m", Load(waiting_rows=2, running_rows=4))
    seen = samples(metrics)
    assert (seen["strop_queue_rows", ""], seen["strop_running_rows", ""]) == (2, 4)
    assert (seen["strop_steps_total", ""], seen["strop_step_failures_total", ""]) == (2, 1)
    assert (seen["strop_batch_rows_count", ""], seen["strop_batch_rows_sum", ""]) == (3, 15)


def test_a_plan_is_timed_from_submission_to_its_end() -> None:
    metrics, clock = Metrics(), Clock()
    watch = Stopwatch(metrics, "m", clock=clock)
    watch.see(PromptScored(scores=()))
    for index, seconds, tokens in [(0, 2.0, (1,)), (1, 0.5, (1,)), (0, 0.5, (1, 2)), (1, 0.5, ())]:
        clock.now += seconds
        watch.see(Delta(index=index, token_ids=tokens))
    usage = Usage(prompt_tokens=7, completion_tokens=4, cached_tokens=5)
    watch.see(Done(usage=usage, evidence=Evidence(seconds=1, steps=3, nfe={})))
    seen = samples(metrics)
    assert (seen["strop_first_token_seconds_count", ""], seen["strop_first_token_seconds_sum", ""]) == (1, 2.0)
    assert (seen["strop_inter_token_seconds_count", ""], seen["strop_inter_token_seconds_sum", ""]) == (1, 0.5)
    assert seen["strop_request_seconds_sum", ""] == 3.5
    assert [seen[f"strop_{kind}_tokens_total", ""] for kind in ("prompt", "cached", "generated")] == [7, 5, 4]
    assert seen["strop_requests_total", "done"] == 1


def test_failures_and_cancels_are_told_apart() -> None:
    metrics = Metrics()
    Stopwatch(metrics, "m").see(Failed(status=500, code="engine_failure", message=""))
    Stopwatch(metrics, "m").end("cancelled")
    seen = samples(metrics)
    assert seen["strop_requests_total", "engine_failure"] == seen["strop_requests_total", "cancelled"] == 1
