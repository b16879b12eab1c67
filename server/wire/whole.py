"""An answer as one JSON body, collected from its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from strop.contracts import Delta, Done, Event, FinishReason, PromptScored, TokenScore
from strop.server.wire.replies import Identity, Totals
from strop.server.wire.scores import CompletionScores, chat_scores


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish: FinishReason = "length"


class Whole:
    """Collects the events of one request, whose prompts have `n` choices each."""

    kind = "chat.completion"

    def __init__(self, identity: Identity, *, n: int, prompts: int = 1, scored: bool = False) -> None:
        self._identity = identity
        self._n = n
        self._scored = scored
        self._choices = [_Choice() for _ in range(n * prompts)]
        self._totals = Totals()

    def add(self, position: int, event: Event) -> None:
        """Take an event of the prompt at `position`."""
        match event:
            case Delta():
                choice = self._choices[position * self._n + event.index]
                choice.text.append(event.text)
                choice.scores.extend(event.scores)
                choice.finish = event.finish or choice.finish
            case PromptScored():
                for choice in self._choices[position * self._n : (position + 1) * self._n]:
                    choice.scores.extend(event.scores)
            case Done():
                self._totals.add(event)

    def body(self) -> dict[str, Any]:
        choices = [self._encode(index, choice) for index, choice in enumerate(self._choices)]
        rest = {"usage": self._totals.usage(), "strop": self._totals.strop()}
        return self._identity.fields(self.kind) | {"choices": choices} | rest

    def answer(self, index: int, text: str) -> dict[str, Any]:
        """The endpoint's own part of a choice."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        return chat_scores(scores)

    def _encode(self, index: int, choice: _Choice) -> dict[str, Any]:
        told = self.logprobs(choice.scores) if self._scored else None
        own = self.answer(index, "".join(choice.text))
        return {"index": index, **own, "logprobs": told, "finish_reason": choice.finish}


class CompletionWhole(Whole):
    """The body of /v1/completions; `echoed` holds the prompts' texts where they are to be repeated."""

    kind = "text_completion"

    def __init__(self, identity: Identity, *, n: int, prompts: int, echoed: Sequence[str], scored: bool) -> None:
        super().__init__(identity, n=n, prompts=prompts, scored=scored)
        self._echoed = echoed

    def answer(self, index: int, text: str) -> dict[str, Any]:
        return {"text": self._echoed[index // self._n] + text if self._echoed else text}

    def logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        return CompletionScores().add(scores)
