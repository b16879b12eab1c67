"""Who takes part in `strop bench serve`. Each lives in a process of its own, so that all are measured alike."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from strop.errors import EngineFailure
from strop.server.bench.figures import Answer, Round
from strop.server.bench.reader import ask

LINE_BYTES = 1 << 24
PASSED_ON = ("STROP_CACHE", "STROP_KERNELS")
"""What of strop's environment a contender gets: the rest would set up the server in another way than the bench says."""

QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


class Contender(Protocol):
    async def open(self) -> None:
        """Start and load. Returns when the first question can be asked."""

    async def run(self, questions: Sequence[str], tokens: int) -> Round:
        """Have all questions answered at once, each in exactly `tokens` tokens, greedily."""

    async def close(self) -> None:
        """End the process; no child is left behind."""


class Worker:
    """A process that takes jobs and gives results as JSON lines: see `bench.worker`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._child = Child(command)

    async def open(self) -> None:
        await self._child.start()
        await self._child.line()

    async def run(self, questions: Sequence[str], tokens: int) -> Round:
        result = json.loads(await self._child.exchange(json.dumps({"questions": questions, "tokens": tokens})))
        answers = tuple(Answer(arrivals=tuple(each["arrivals"]), tokens=each["tokens"]) for each in result["answers"])
        return Round(seconds=result["seconds"], answers=answers, peak_mb=self._child.peak_mb())

    async def close(self) -> None:
        await self._child.stop()


class Server:
    """A server that prints its base URL when it is ready, asked over HTTP."""

    def __init__(self, command: Sequence[str], model: str) -> None:
        self._child = Child(command)
        self._model = model
        self._url = ""

    async def open(self) -> None:
        await self._child.start()
        while not (found := re.search(r"http://\S+/v1", await self._child.line())):
            continue
        self._url = f"{found.group()}/chat/completions"

    async def run(self, questions: Sequence[str], tokens: int) -> Round:
        bodies = [self._body(question, tokens) for question in questions]
        cpu, begin = time.process_time(), time.perf_counter()
        answers = await ask(self._url, bodies)
        seconds, client_cpu = time.perf_counter() - begin, time.process_time() - cpu
        return Round(seconds=seconds, answers=tuple(answers), peak_mb=self._child.peak_mb(), client_cpu=client_cpu)

    def _body(self, question: str, tokens: int) -> dict[str, object]:
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def close(self) -> None:
        await self._child.stop()


class Child:
    """A process of ours that speaks in lines. `patience` is how many seconds it gets to end when asked."""

    def __init__(self, command: Sequence[str], *, patience: float = 30.0) -> None:
        self._command = command
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        kept = {name: value for name, value in os.environ.items() if not name.startswith("STROP_") or name in PASSED_ON}
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, limit=LINE_BYTES, env={**kept, **QUIET}
        )

    async def line(self) -> str:
        """The next line it prints. Raises EngineFailure if it ended instead."""
        process = self._running()
        line = await process.stdout.readline() if process.stdout else b""
        if not line:
            raise EngineFailure(f"{' '.join(self._command)} ended with code {await process.wait()}")
        return line.decode()

    async def exchange(self, line: str) -> str:
        process = self._running()
        if process.stdin:
            process.stdin.write(line.encode() + b"\n")
        return await self.line()

    def peak_mb(self) -> float | None:
        """The largest resident size so far; None where the system does not tell."""
        status = Path(f"/proc/{self._running().pid}/status")
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
        return int(found.group(1)) / 1024 if found else None

    async def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._patience)
        except TimeoutError:
            process.kill()
            await process.wait()

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise EngineFailure(f"{' '.join(self._command)} was not started")
        return self._process


def contenders(model: str, config: Path) -> Mapping[str, Callable[[], Contender]]:
    """Every contender by name; `config` is a configuration file in JSON that holds one model, `model`."""
    strop = [sys.executable, "-P", "-m", "strop"]
    worker = [sys.executable, "-P", "-m", "strop.server.bench.worker"]
    return {
        "http": lambda: Server([*strop, "serve", "--config", str(config), "--host", "127.0.0.1", "--port", "0"], model),
        "engine": lambda: Worker([*worker, "engine", str(config)]),
        "transformers": lambda: Worker([*worker, "transformers", str(config)]),
    }
