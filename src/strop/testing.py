"""Stand-ins for a model, so that servers, routes and plugins can be tested without weights and without torch."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from strop.config import Config, ModelConfig, ServerConfig
from strop.contracts import (
    Capacity,
    Delta,
    Done,
    Event,
    Evidence,
    FinishReason,
    ModelCard,
    Plan,
    PlanId,
    PromptScored,
    TextPlan,
    TokenScore,
    Usage,
)
from strop.errors import InvalidOption, ModelLoadError
from strop.plugins import Plugins

BYTES = 256
ROLES = ("system", "user", "assistant")
END = BYTES + len(ROLES)
LETTERS = b"etaoinshrdlucmfw etaoinshrdlu ,."


class StubTokenizer:
    """One token a byte, one for each role of a chat, one for the end."""

    vocab_size = END + 1
    eos_ids = (END,)
    special_ids = frozenset(range(BYTES, END + 1))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(token) for token in ids).decode(errors="replace")

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        turns = [[BYTES + ROLES.index(message["role"]), *self.encode(message["content"])] for message in messages]
        return [token for turn in turns for token in turn] + [BYTES + ROLES.index("assistant")]

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < BYTES else b""


@dataclass(slots=True)
class _Row:
    """One plan under way: what each of its choices still has to say."""

    plan: TextPlan
    choices: dict[int, Iterator[Delta]]
    started: float
    steps: int = 0
    tokens: int = 0


class StubEngine:
    """Says letters that depend on nothing but prompt, seed and choice: one token a row and step, `seconds` a step.

    It honours `n`, `max_tokens`, `min_tokens`, stops and logprobs, and refuses to hold more than its `rows` and `tokens`.
    """

    def __init__(self, card: ModelCard, *, rows: int = 8, tokens: int = 8192, seconds: float = 0.0) -> None:
        self.card = card
        self._max_rows = rows
        self._max_tokens = tokens
        self._seconds = seconds
        self._rows: dict[PlanId, _Row] = {}
        self.closed = False

    def admit(self, plan: Plan) -> None:
        if not isinstance(plan, TextPlan):
            raise InvalidOption(f"a stub runs text plans, not {type(plan).__name__}")
        if plan.n > self.capacity().free_rows:
            raise RuntimeError("more rows than the engine has")
        choices = {index: answer(plan, index) for index in range(plan.n)}
        self._rows[plan.id] = _Row(plan, choices, time.monotonic())

    def step(self) -> Sequence[tuple[PlanId, Event]]:
        if self._seconds:
            time.sleep(self._seconds)
        return [(plan_id, event) for plan_id, row in list(self._rows.items()) for event in self._advance(row)]

    def cancel(self, plan_id: PlanId) -> None:
        self._rows.pop(plan_id, None)

    def capacity(self) -> Capacity:
        running = sum(len(row.choices) for row in self._rows.values())
        filled = sum(len(row.plan.prompt) + row.tokens for row in self._rows.values())
        return Capacity(
            free_rows=self._max_rows - running,
            free_tokens=max(self._max_tokens - filled, 0),
            running_rows=running,
            max_rows=self._max_rows,
            max_tokens=self._max_tokens,
        )

    def close(self) -> None:
        self._rows.clear()
        self.closed = True

    def _advance(self, row: _Row) -> Iterator[Event]:
        if row.steps == 0 and row.plan.prompt_logprobs:
            yield PromptScored(scores=tuple(_score(row.plan, token) for token in row.plan.prompt))
        row.steps += 1
        for index, deltas in list(row.choices.items()):
            delta = next(deltas)
            row.tokens += len(delta.token_ids)
            if delta.finish:
                del row.choices[index]
            yield delta
        if not row.choices:
            del self._rows[row.plan.id]
            yield self._done(row)

    def _done(self, row: _Row) -> Done:
        usage = Usage(prompt_tokens=len(row.plan.prompt), completion_tokens=row.tokens)
        seconds = time.monotonic() - row.started
        return Done(usage=usage, evidence=Evidence(seconds=seconds, steps=row.steps, nfe={"base": row.steps}))


def answer(plan: TextPlan, index: int) -> Iterator[Delta]:
    """What the stub says as choice `index` of `plan`: a pure function of prompt, seed and index."""
    tokens, text, finish = _speech(plan, index)
    if not tokens:
        yield Delta(index=index, finish=finish)
    for i, token in enumerate(tokens):
        end = finish if i + 1 == len(tokens) else None
        yield Delta(index=index, text=text[i : i + 1], token_ids=(token,), scores=_scores(plan, token), finish=end)


def _speech(plan: TextPlan, index: int) -> tuple[list[int], str, FinishReason]:
    """Tokens, text without the stop that ended it, and why it ended."""
    tokens: list[int] = []
    letters = _letters(plan, index)
    while len(tokens) < plan.max_tokens:
        tokens.append(next(letters))
        text = bytes(tokens).decode()
        if len(tokens) < plan.min_tokens:
            continue
        if tokens[-1] in plan.stop_token_ids:
            return tokens, text[:-1], "stop"
        for stop in plan.stop:
            if text.endswith(stop):
                return tokens, text.removesuffix(stop), "stop"
    return tokens, bytes(tokens).decode(), "length"


def _letters(plan: TextPlan, index: int) -> Iterator[int]:
    block = 0
    while True:
        digest = hashlib.sha256(repr((plan.prompt, plan.seed, index, block)).encode()).digest()
        yield from (LETTERS[byte % len(LETTERS)] for byte in digest)
        block += 1


def _scores(plan: TextPlan, token: int) -> tuple[TokenScore, ...]:
    return () if plan.logprobs is None else (_score(plan, token),)


def _score(plan: TextPlan, token: int) -> TokenScore:
    """The token is the likeliest; the tokens after it follow."""
    likeliest = [(token + rank) % BYTES for rank in range(plan.logprobs or 0)]
    top = tuple(TokenScore(id=other, data=bytes([other]), logprob=-0.5 - rank) for rank, other in enumerate(likeliest))
    return TokenScore(id=token, data=bytes([token % BYTES]), logprob=-0.5, top=top)


def stub_card(name: str = "stub", *, context_length: int = 512) -> ModelCard:
    return ModelCard(
        name=name,
        domain="causal",
        engine="stub",
        source="stub",
        context_length=context_length,
        vocabulary=StubTokenizer.vocab_size,
        dtype="float32",
        created=0,
    )


def load_stub(name: str, model: ModelConfig, *, cache: Path, network: bool) -> tuple[StubEngine, StubTokenizer]:
    """The loader behind `engine: stub`. The source is `stub`, or `stub:SECONDS` for so long a step."""
    kind, _, seconds = model.source.partition(":")
    if kind != "stub":
        raise ModelLoadError(f"a stub's source is 'stub' or 'stub:SECONDS', not {model.source!r}")
    card = stub_card(name, context_length=model.context_length or 512)
    return StubEngine(card, rows=model.max_rows or 8, seconds=float(seconds or 0)), StubTokenizer()


def stub_plugins(*extra: EntryPoint) -> Plugins:
    """Strop's own plugins with the engine `stub`, and what else a test brings."""
    stub = EntryPoint(name="stub", value=f"{__name__}:load_stub", group="strop.engines")
    return Plugins.discover({**os.environ, "STROP_PLUGINS": "builtin"}, extra=(stub, *extra))


def stub_config(server: ServerConfig | None = None, **model: Any) -> Config:
    """One stubbed model called `stub`, with options of `ModelConfig`."""
    options = {"engine": "stub", "source": "stub", **model}
    return Config(server=server or ServerConfig(), models={"stub": ModelConfig.model_validate(options)})
