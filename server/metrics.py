"""What a house counts, for Prometheus. Each house has its own registry, so that several can live in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from strop.contracts import Delta, Done, Event, Failed, PromptScored
from strop.server.executors.runner import Load

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_FAST = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        model = ("model",)
        self.queue = Gauge("strop_queue_rows", "Rows that wait for the engine", model, registry=registry)
        self.running = Gauge("strop_running_rows", "Rows the engine works on", model, registry=registry)
        self.batch = Histogram("strop_batch_rows", "Rows of one step", model, registry=registry, buckets=_ROWS)
        self.steps = Counter("strop_steps", "Steps the engine made", model, registry=registry)
        self.failures = Counter("strop_step_failures", "Steps that failed", model, registry=registry)
        self.prompt = Counter("strop_prompt_tokens", "Tokens of prompts", model, registry=registry)
        self.cached = Counter("strop_cached_tokens", "Tokens of prompts found in the cache", model, registry=registry)
        self.generated = Counter("strop_generated_tokens", "Tokens generated", model, registry=registry)
        self.first = Histogram(
            "strop_first_token_seconds", "From submission to the first token", model, registry=registry, buckets=_SLOW
        )
        self.inter = Histogram(
            "strop_inter_token_seconds", "Between two tokens of one choice", model, registry=registry, buckets=_FAST
        )
        self.seconds = Histogram(
            "strop_request_seconds", "From submission to the last event", model, registry=registry, buckets=_SLOW
        )
        self.ended = Counter("strop_requests", "Plans that ended", ("model", "outcome"), registry=registry)
        self._refusals = Counter("strop_refusals", "Requests refused before any model ran", ("code",), registry=registry)

    def refused(self, code: str) -> None:
        """Count a refusal by its error code. `plan.resolve` and `Scheduler.submit` count their own."""
        self._refusals.labels(code).inc()

    def observe(self, model: str, load: Load) -> None:
        """Take in the load of one model's engine after a turn."""
        self.queue.labels(model).set(load.waiting_rows)
        self.running.labels(model).set(load.running_rows)
        if load.batch_rows:
            self.batch.labels(model).observe(load.batch_rows)
            (self.failures if load.failures else self.steps).labels(model).inc()

    def render(self) -> bytes:
        """The exposition text; its type is `CONTENT_TYPE`."""
        return bytes(generate_latest(self._registry))


class Stopwatch:
    """Times one plan from its submission and counts what came of it."""

    def __init__(self, metrics: Metrics, model: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._model = model
        self._clock = clock
        self._start = clock()
        self._last: dict[int, float] = {}
        self._first = metrics.first.labels(model)
        self._inter = metrics.inter.labels(model)

    def see(self, event: Event) -> None:
        match event:
            case Delta():
                self._see_delta(event)
            case Done():
                self._metrics.prompt.labels(self._model).inc(event.usage.prompt_tokens)
                self._metrics.cached.labels(self._model).inc(event.usage.cached_tokens)
                self._metrics.generated.labels(self._model).inc(event.usage.completion_tokens)
                self.end("done")
            case Failed():
                self.end(event.code)
            case PromptScored():
                pass

    def end(self, outcome: str) -> None:
        """Count the plan under `outcome`, with the seconds it took."""
        self._metrics.seconds.labels(self._model).observe(self._clock() - self._start)
        self._metrics.ended.labels(self._model, outcome).inc()

    def _see_delta(self, delta: Delta) -> None:
        now = self._clock()
        last = self._last.get(delta.index)
        if not self._last:
            self._first.observe(now - self._start)
        elif last is not None and delta.token_ids:
            self._inter.observe((now - last) / len(delta.token_ids))
        self._last[delta.index] = now
