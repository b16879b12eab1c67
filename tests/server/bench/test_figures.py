"""The arithmetic of the table."""

from __future__ import annotations

import pytest

from strop.server.bench.figures import Answer, Round, milliseconds, summary


def a_round(seconds: float, *, tokens: int = 10, client_cpu: float | None = None, peak_mb: float | None = None) -> Round:
    answers = (Answer(arrivals=(0.1, 0.2, 0.4), tokens=tokens), Answer(arrivals=(0.3,), tokens=tokens))
    return Round(seconds=seconds, answers=answers, client_cpu=client_cpu, peak_mb=peak_mb)


def test_speed_counts_all_tokens() -> None:
    assert a_round(4.0).speed == 5.0


def test_summary_takes_medians_and_pairs_rounds() -> None:
    mine = [a_round(1.0, peak_mb=5.0), a_round(2.0, peak_mb=7.0), a_round(4.0, peak_mb=6.0)]
    theirs = [a_round(2.0), a_round(2.0), a_round(2.0)]
    row = summary(mine, {"other": theirs})
    assert (row["tokens/s"], row["min"], row["max"]) == (10.0, 5.0, 20.0)
    assert row["x other"] == 1.0
    assert row["peak MB"] == 7.0
    assert row["client CPU s"] is None


def test_the_ratio_is_of_neighbours_not_of_medians() -> None:
    mine = [a_round(1.0), a_round(2.0), a_round(10.0)]
    theirs = [a_round(2.0), a_round(4.0), a_round(5.0)]
    assert summary(mine, {"other": theirs})["x other"] == 2.0


def test_latencies_are_pooled() -> None:
    row = summary([a_round(1.0), a_round(1.0, client_cpu=0.5)], {})
    assert row["first p50 ms"] == pytest.approx(100)
    assert row["first p95 ms"] == pytest.approx(300)
    assert row["gap p50 ms"] == pytest.approx(100)
    assert row["gap p95 ms"] == pytest.approx(200)
    assert row["client CPU s"] == 0.5


def test_quantiles_by_nearest_rank() -> None:
    assert milliseconds([], 0.5) is None
    assert milliseconds([0.003, 0.001, 0.002], 0.5) == 2.0
    assert milliseconds([0.001] * 95 + [0.9] * 5, 0.95) == 1.0
    assert milliseconds([0.001] * 94 + [0.9] * 6, 0.95) == 900.0
