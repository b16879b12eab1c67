"""What one contender did in one round, and what the rounds together say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer as its reader saw it: seconds from sending the question to each arrival of text, and its tokens."""

    arrivals: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All answers of one round. `client_cpu` is what the reader spent outside the contender's process, in seconds."""

    seconds: float
    answers: tuple[Answer, ...]
    peak_mb: float | None = None
    client_cpu: float | None = None

    @property
    def speed(self) -> float:
        """Generated tokens per second, prompts included in the time."""
        return sum(answer.tokens for answer in self.answers) / self.seconds


def summary(rounds: Sequence[Round], baselines: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """One row of the table. The ratio to a baseline is the median over pairs of rounds that ran next to each other."""
    speeds = [each.speed for each in rounds]
    answers = [answer for each in rounds for answer in each.answers]
    first = [answer.arrivals[0] for answer in answers if answer.arrivals]
    gaps = [later - earlier for answer in answers for earlier, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)]
    row: dict[str, Any] = {
        "tokens/s": statistics.median(speeds),
        "min": min(speeds),
        "max": max(speeds),
    }
    for name, others in baselines.items():
        ratios = [mine.speed / theirs.speed for mine, theirs in zip(rounds, others, strict=True)]
        row[f"x {name}"] = statistics.median(ratios)
    row |= {
        "first p50 ms": milliseconds(first, 0.5),
        "first p95 ms": milliseconds(first, 0.95),
        "gap p50 ms": milliseconds(gaps, 0.5),
        "gap p95 ms": milliseconds(gaps, 0.95),
        "peak MB": max((each.peak_mb for each in rounds if each.peak_mb is not None), default=None),
        "client CPU s": _median_or_none([each.client_cpu for each in rounds]),
    }
    return row


def milliseconds(seconds: Sequence[float], quantile: float) -> float | None:
    """The nearest-rank quantile, in milliseconds; None of nothing."""
    if not seconds:
        return None
    return sorted(seconds)[max(math.ceil(quantile * len(seconds)) - 1, 0)] * 1000


def _median_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
