"""An answer as server-sent chunks: what does not change between chunks is encoded once, the rest is text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from strop.contracts import Delta, Done, Event, FinishReason, PromptScored, TokenScore
from strop.server.wire.replies import Identity, Totals
from strop.server.wire.scores import CompletionScores, chat_scores

DONE = b"data: [DONE]\n\n"
GREETING = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'


@dataclass(frozen=True, slots=True)
class Shape:
    """How an endpoint writes a piece of text: what stands before it, after it, and for no text at all."""

    kind: str
    before: bytes
    after: bytes
    nothing: bytes


CHAT = Shape("chat.completion.chunk", b'"delta":{"content":', b"}", b'"delta":{}')
COMPLETION = Shape("text_completion", b'"text":', b"", b'"text":""')


class Chunks:
    """Encodes the events of one request, whose prompts have `n` choices each.

    A choice's `finish_reason` comes in a chunk of its own. The last chunk of all carries `strop`; it is the one with `usage`
    where the client asked for that.
    """

    def __init__(self, identity: Identity, shape: Shape, *, n: int, prompts: int = 1, include_usage: bool = False) -> None:
        self._shape = shape
        self._n = n
        self._include_usage = include_usage
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._opening = b"data: " + identity.opening(shape.kind)
        self._heads = [self._opening + b'[{"index":%d,' % choice for choice in range(n * prompts)]
        self._before = [head + shape.before for head in self._heads]
        self._after = shape.after + b',"logprobs":null,"finish_reason":null}]' + self._tail
        self._unopened = set(range(n * prompts))
        self._finished: tuple[int, FinishReason] | None = None
        self._totals = Totals()

    def chunk(self, position: int, event: Event) -> bytes:
        """What to write for an event of the prompt at `position`; may be nothing."""
        if isinstance(event, Delta):
            return self._delta(position * self._n + event.index, event)
        if isinstance(event, PromptScored):
            self.keep_prompt(position, event.scores)
        elif isinstance(event, Done):
            self._totals.add(event)
        return b""

    def end(self) -> bytes:
        """What to write after the last event."""
        strop = b',"strop":' + orjson.dumps(self._totals.strop())
        if not self._include_usage:
            return self._finish(strop) + DONE
        usage = b',"usage":' + orjson.dumps(self._totals.usage())
        return b"".join((self._finish(), self._opening, b"[]", usage, strop, b"}\n\n", DONE))

    def keep_prompt(self, position: int, scores: Sequence[TokenScore]) -> None:
        """Take the prompt's own log-probabilities, for shapes that show them."""

    def first(self, choice: int) -> bytes:
        """The chunk that opens a choice."""
        return b"".join((self._heads[choice], GREETING, self._tail))

    def logprobs(self, choice: int, scores: Sequence[TokenScore]) -> Mapping[str, Any]:
        return chat_scores(scores)

    def text(self, choice: int, text: str, scores: Sequence[TokenScore] = ()) -> bytes:
        """The chunk of a piece of text."""
        head, encoded = self._before[choice], orjson.dumps(text)
        if not scores:
            return b"".join((head, encoded, self._after))
        told = orjson.dumps(self.logprobs(choice, scores))
        return b"".join((head, encoded, self._shape.after, b',"logprobs":', told, b',"finish_reason":null}]', self._tail))

    def _delta(self, choice: int, delta: Delta) -> bytes:
        pieces = [self._finish()]
        if choice in self._unopened:
            self._unopened.remove(choice)
            pieces.append(self.first(choice))
        if delta.text or delta.scores:
            pieces.append(self.text(choice, delta.text, delta.scores))
        if delta.finish:
            self._finished = choice, delta.finish
        return b"".join(pieces)

    def _finish(self, extra: bytes = b"") -> bytes:
        """The held back chunk that ends a choice. It waits for what comes next, because the last one carries more."""
        if self._finished is None:
            return b""
        (choice, reason), self._finished = self._finished, None
        told = b',"logprobs":null,"finish_reason":"' + reason.encode() + b'"}]'
        return b"".join((self._heads[choice], self._shape.nothing, told, extra, self._tail))


class CompletionChunks(Chunks):
    """Chunks of /v1/completions; `echoed` holds the prompts' texts where they are to be repeated."""

    def __init__(self, identity: Identity, *, n: int, prompts: int, echoed: Sequence[str], include_usage: bool = False) -> None:
        super().__init__(identity, COMPLETION, n=n, prompts=prompts, include_usage=include_usage)
        self._echoed = echoed
        self._prompt_scores: dict[int, Sequence[TokenScore]] = {}
        self._scores = [CompletionScores() for _ in range(n * prompts)]

    def keep_prompt(self, position: int, scores: Sequence[TokenScore]) -> None:
        self._prompt_scores[position] = scores

    def first(self, choice: int) -> bytes:
        position = choice // self._n
        return self.text(choice, self._echoed[position], self._prompt_scores.get(position, ())) if self._echoed else b""

    def logprobs(self, choice: int, scores: Sequence[TokenScore]) -> Mapping[str, Any]:
        return self._scores[choice].add(scores)
