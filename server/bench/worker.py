"""A contender in a process of its own: jobs come in as JSON lines, the figures of each go out as one.

`python -m strop.server.bench.worker engine|transformers CONFIG`, where CONFIG is a file as `strop serve --config` reads it,
written as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TextIO

from strop.config import Config
from strop.errors import ConfigError
from strop.plugins import Plugins
from strop.server.bench.figures import Answer


class Ask(Protocol):
    """Answers all questions at once, each in exactly `tokens` tokens, greedily."""

    def __call__(self, questions: Sequence[str], tokens: int) -> list[Answer]: ...


def main(kind: str, path: Path) -> None:
    """Load the contender, then answer jobs until the input ends."""
    if kind not in CONTENDERS:
        raise ConfigError(f"no contender {kind!r}; valid: {', '.join(CONTENDERS)}")
    with _results() as results, CONTENDERS[kind](Config.model_validate_json(path.read_bytes())) as ask:
        answer(sys.stdin, results, ask)


@contextmanager
def engine(config: Config, plugins: Plugins | None = None) -> Iterator[Ask]:
    """Our engine behind executor and scheduler."""
    import uvloop

    from strop.server.bench import in_process
    from strop.server.house import House

    (model,) = config.models
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        house = House(config, plugins=plugins)
        runner.run(house.open())
        try:
            yield lambda questions, tokens: runner.run(in_process.ask(house, model, questions, tokens))
        finally:
            runner.run(house.close(0))


@contextmanager
def transformers(config: Config) -> Iterator[Ask]:
    """transformers' `generate` on a static batch."""
    from strop.server.bench.static_batch import StaticBatch

    (model,) = config.models.values()
    yield StaticBatch(model, config).ask


CONTENDERS = {"engine": engine, "transformers": transformers}


def answer(jobs: Iterable[str], results: TextIO, ask: Ask) -> None:
    """One result a job. The empty line before the first says that the contender is ready."""
    results.write("\n")
    results.flush()
    for line in jobs:
        job = json.loads(line)
        begin = time.perf_counter()
        answers = ask(job["questions"], job["tokens"])
        seconds = time.perf_counter() - begin
        results.write(json.dumps({"seconds": seconds, "answers": [asdict(each) for each in answers]}) + "\n")
        results.flush()


@contextmanager
def _results() -> Iterator[TextIO]:
    """The standard output for results alone: whatever libraries print goes to stderr instead."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as results:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        yield results


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
