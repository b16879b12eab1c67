"""Questions for benches: all different, so that a cache of prompts helps no further than it would real users."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, product

OPENINGS = ("Explain in plain words", "Write a short story about", "List ten facts about", "Compare the past and future of")
SUBJECTS = ("the tides", "bread", "a lighthouse", "copper", "glaciers", "honey bees", "railways", "the violin", "salt", "maps")
SETTINGS = ("for a child", "for a traveller", "in the year {year}", "as a letter from the year {year}")


def questions(start: int, amount: int) -> list[str]:
    """The questions `start` … `start + amount - 1` of an endless fixed sequence."""
    return list(islice(_endless(), start, start + amount))


def _endless() -> Iterator[str]:
    for year in count(1800):
        for opening, subject, setting in product(OPENINGS, SUBJECTS, SETTINGS):
            yield f"Question {year}: {opening} {subject} {setting.format(year=year)}."
