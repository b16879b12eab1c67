"""`strop bench kernels`: our paths beside eager torch, torch.compile and a read of the same bytes, in one run.

The calls of a case take turns, so that whatever else the machine does hits all of them. Denormals are flushed for everybody.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from strop.errors import ConfigError
from strop.kernels.bench_cases import SPREADS, Call, Case, head_case, logits_of, row_cases, step_case
from strop.kernels.registry import trace
from strop.report import Report

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NOTES = (
    "ms: median over rounds, with the quartiles beside it; x ours: median over rounds of this contender's time to ours.",
    "GB/s: the bytes that must be read at least, by the median; path: what ran, by the dispatch's own account.",
    "decode step: 'ours' is statistics, draw and commit; its share of the step is 1 / (1 + x ours of the matmuls).",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`decoded` and `scored`: rows of the decode-step and LM-head cases (0 leaves them out). torch.compile is slow to start."""

    vocabularies: tuple[int, ...] = (32_000, 49_152, 128_000, 152_064)
    rows: tuple[int, ...] = (1, 8, 64, 256)
    dtypes: tuple[str, ...] = tuple(DTYPES)
    rounds: int = 9
    decoded: int = 64
    scored: int = 4096
    compiled: bool = True

    def __post_init__(self) -> None:
        if unknown := set(self.dtypes) - set(DTYPES):
            raise ConfigError(f"no dtype {min(unknown)!r} in this bench; valid: {', '.join(DTYPES)}")
        if min((*self.vocabularies, *self.rows, self.rounds)) < 1 or min(self.decoded, self.scored) < 0:
            raise ConfigError("a bench of kernels needs vocabularies, rows and rounds of at least 1")


def run(settings: Settings, progress: Callable[[str], None]) -> Report:
    """Measure what the settings name. `progress` hears in words what is going on."""
    torch.set_flush_denormal(True)
    rows: list[dict[str, Any]] = []
    for case in cases(settings):
        progress(f"{case.op}: {case.rows} x {case.vocabulary}, {case.logits}, {case.dtype}")
        rows += figures(case, settings.rounds)
    facts = asdict(settings) | {"threads": torch.get_num_threads()}
    return Report(title="strop bench kernels", settings=facts, rows=rows, notes=NOTES)


def cases(settings: Settings) -> Iterator[Case]:
    dtypes = [DTYPES[name] for name in settings.dtypes]
    for dtype in dtypes:
        for vocabulary in settings.vocabularies:
            for rows in settings.rows:
                torch.compiler.reset()
                for kind in SPREADS:
                    yield from row_cases(logits_of(rows, vocabulary, dtype, kind), kind, compiled=settings.compiled)
    for dtype in dtypes:
        if settings.decoded:
            yield step_case(settings.decoded, dtype)
        if settings.scored:
            yield head_case(settings.scored, dtype)


def figures(case: Case, rounds: int) -> Iterator[dict[str, Any]]:
    """One row of the report per contender."""
    with trace() as ran:
        case.calls["ours"]()
    paths = " ".join(sorted(set(ran.values())))
    for name, times in measure(case.calls, rounds).items():
        low, median, high = statistics.quantiles(times.milliseconds, n=4)
        yield {
            "op": case.op,
            "dtype": str(case.dtype).removeprefix("torch."),
            "V": case.vocabulary,
            "rows": case.rows,
            "logits": case.logits,
            "contender": name,
            "ms": round(median, 4),
            "25 %": round(low, 4),
            "75 %": round(high, 4),
            "GB/s": round(case.read / median / 1e6, 2),
            "x ours": round(times.to_ours, 3),
            "path": paths if name == "ours" else "torch",
        }


@dataclass(frozen=True, slots=True)
class Times:
    milliseconds: Sequence[float]
    to_ours: float


def measure(calls: Mapping[str, Call], rounds: int) -> dict[str, Times]:
    """Each call once a round, after one that warms up; at least two rounds, for quartiles."""
    for call in calls.values():
        call()
    taken = [{name: _milliseconds(call) for name, call in calls.items()} for _ in range(max(rounds, 2))]
    return {
        name: Times([each[name] for each in taken], statistics.median(each[name] / each["ours"] for each in taken))
        for name in calls
    }


def _milliseconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m strop.kernels.bench", description="Measure the kernels beside torch.")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=Settings().vocabularies)
    parser.add_argument("--rows", type=int, nargs="+", default=Settings().rows)
    parser.add_argument("--dtypes", nargs="+", default=Settings().dtypes)
    parser.add_argument("--rounds", type=int, default=Settings().rounds)
    parser.add_argument("--decoded", type=int, default=Settings().decoded, help="rows of the decode step; 0 leaves it out")
    parser.add_argument("--scored", type=int, default=Settings().scored, help="rows of the LM head case; 0 leaves it out")
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, help="write figures, settings, versions and machine")
    given = parser.parse_args()
    settings = Settings(
        vocabularies=tuple(given.vocabularies),
        rows=tuple(given.rows),
        dtypes=tuple(given.dtypes),
        rounds=given.rounds,
        decoded=given.decoded,
        scored=given.scored,
        compiled=given.compiled,
    )
    with Console(stderr=True).status("starting") as status:
        report = run(settings, status.update)
    console = Console()
    report.show(console if console.is_terminal else Console(width=160))
    if given.json is not None:
        report.write(given.json)


if __name__ == "__main__":
    main()
