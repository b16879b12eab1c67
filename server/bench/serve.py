"""`strop bench serve`: our server over HTTP, our engine in process, and baselines, side by side in one run.

Contenders take turns round by round, so that drift of the machine meets all of them alike; a ratio is the median over rounds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strop.config import Config, load
from strop.errors import ConfigError, nearest
from strop.report import Report
from strop.server.bench.contenders import Contender, contenders
from strop.server.bench.figures import Round, summary
from strop.server.bench.questions import questions

MODEL = "bench"
NAMES = ("http", "engine", "transformers")
BASELINES = ("engine", "transformers")
NOTES = (
    "tokens/s: generated tokens by wall time, prompts included; x NAME: median ratio to NAME in the same round.",
    "client CPU s: what reading the answers took in this process, per round, on the same cores.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    source: str
    concurrency: tuple[int, ...] = (1, 4, 8, 16, 32)
    tokens: int = 64
    rounds: int = 5
    names: tuple[str, ...] = NAMES
    dtype: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in NAMES:
                raise ConfigError(f"no contender {name!r}; valid: {', '.join(NAMES)}.{nearest(name, NAMES)}")
        if min(self.concurrency, default=0) < 1 or self.tokens < 2 or self.rounds < 1 or not self.names:
            raise ConfigError("a bench needs a contender, a round, a concurrency of 1 and answers of 2 tokens at least")


async def run(settings: Settings, progress: Callable[[str], None]) -> Report:
    """Measure what the settings name. `progress` hears in words what is going on. SIGTERM ends the contenders, too."""
    _cancel_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="strop-bench-") as folder:
        path = Path(folder) / "config.json"
        path.write_text(_config(settings).model_dump_json(exclude_defaults=True))
        makers = contenders(MODEL, path)
        rows = await measure({name: makers[name]() for name in settings.names}, settings, progress)
    return Report(title="strop bench serve", settings=asdict(settings), rows=rows, notes=NOTES)


def _cancel_on_sigterm() -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _config(settings: Settings) -> Config:
    """The same model for all, in the cache that the environment names."""
    model = {"source": settings.source, "dtype": settings.dtype, "threads": settings.threads}
    places = {name: value for name, value in os.environ.items() if name == "STROP_CACHE"}
    return load({"models": {MODEL: model}}, places, {})[0]


async def measure(field: Mapping[str, Contender], settings: Settings, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each concurrency and contender."""
    rows: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        for name, contender in field.items():
            progress(f"loading {name}")
            stack.push_async_callback(contender.close)
            await contender.open()
        for concurrency in settings.concurrency:
            rounds = await _compete(field, concurrency, settings, progress)
            baselines = {name: rounds[name] for name in BASELINES if name in rounds}
            rows += [{"at": concurrency, "contender": name, **summary(rounds[name], baselines)} for name in field]
    return rows


async def _compete(
    field: Mapping[str, Contender], concurrency: int, settings: Settings, progress: Callable[[str], None]
) -> dict[str, Sequence[Round]]:
    """The rounds of every contender at one concurrency, after a first round that warms up and does not count."""
    rounds: dict[str, list[Round]] = {name: [] for name in field}
    for index in range(settings.rounds + 1):
        asked = questions(1000 * concurrency + index * concurrency, concurrency)
        for name, contender in field.items():
            progress(f"{concurrency} at once, round {index} of {settings.rounds}: {name}")
            result = await contender.run(asked, settings.tokens)
            if index > 0:
                rounds[name].append(result)
    return {name: tuple(results) for name, results in rounds.items()}
