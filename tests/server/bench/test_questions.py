"""No two questions of a bench are the same."""

from __future__ import annotations

from strop.server.bench.questions import questions


def test_questions_differ_and_repeat_from_run_to_run() -> None:
    first = questions(0, 400)
    assert len(set(first)) == 400
    assert questions(100, 5) == first[100:105]
