from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.contracts import Cost, Delta, TextPlan
from strop.server.engines.answer import Answer, overlap

PIECES = ["a", "b", "ab", "ba", "", "é"]


class Spelling:
    """Stands in for the tokenizer: token i is PIECES[i]; the text of a character that is unfinished comes at the end."""

    def stream(self, _prompt: Sequence[int]) -> Spelling:
        return self

    def push(self, token: int) -> str:
        return PIECES[token]

    def flush(self) -> str:
        return "~"


def answer(**options: object) -> Answer:
    options = {"max_tokens": 100, **options}
    plan = TextPlan(id="p", model="m", seed=0, cost=Cost(rows=1, start=1, tokens=1), prompt=(1,), **options)  # type: ignore[arg-type]
    return Answer(plan, 0, Spelling())  # type: ignore[arg-type]


def feed(answer: Answer, tokens: Sequence[int]) -> list[Delta]:
    deltas = []
    for token in tokens:
        deltas.append(answer.push(token))
        if deltas[-1].finish:
            break
    return deltas


@given(
    st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string_and_nothing_is_sent_too_early(tokens: list[int], stops: list[str]) -> None:
    deltas = feed(answer(stop=tuple(stops), max_tokens=len(tokens)), tokens)
    sent = "".join(delta.text for delta in deltas)
    full = "".join(PIECES[token] for token in tokens)
    found = [full.find(stop) for stop in stops if stop in full]
    if not found:
        assert (sent, deltas[-1].finish) == (full + "~", "length")
        return
    assert deltas[-1].finish == "stop"
    assert all(stop not in sent for stop in stops)
    assert full.startswith(sent)
    assert len(deltas) == next(
        n for n in range(1, len(tokens) + 1) if any(s in "".join(PIECES[t] for t in tokens[:n]) for s in stops)
    )


def test_a_stop_token_ends_the_answer_and_is_not_text() -> None:
    deltas = feed(answer(stop_token_ids=(1,)), [0, 1, 0])
    assert [delta.text for delta in deltas] == ["a", "~"]
    assert deltas[-1].finish == "stop"
    assert deltas[-1].token_ids == (1,)


def test_before_min_tokens_nothing_stops() -> None:
    deltas = feed(answer(stop=("b",), min_tokens=3), [1, 1, 1])
    assert [delta.finish for delta in deltas] == [None, None, "stop"]


def test_a_stop_string_that_was_met_before_min_tokens_stops_nothing_later() -> None:
    deltas = feed(answer(stop=("b",), min_tokens=3), [0, 1, 0, 1])
    assert "".join(delta.text for delta in deltas) == "aba"
    assert [delta.finish for delta in deltas] == [None, None, None, "stop"]


def test_an_answer_of_no_tokens() -> None:
    assert answer(max_tokens=0).end() == Delta(index=0, finish="length")


@pytest.mark.parametrize(
    ("text", "stops", "size"), [("xa", ["ab"], 1), ("xab", ["abc", "b"], 2), ("x", ["ab"], 0), ("", ["a"], 0), ("a", [], 0)]
)
def test_overlap(text: str, stops: list[str], size: int) -> None:
    assert overlap(text, stops) == size
