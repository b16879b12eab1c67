"""The rows of the causal engine: answers under way, and the sequences of tokens that their roles read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from strop.contracts import Done, Evidence, Memory, Role, TextPlan, TokenScore, Usage
from strop.kernels.paged_attention import PAGE
from strop.samplers.tokens import TokenRow
from strop.server.engines.answer import Answer
from strop.server.engines.scores import score_prompt, unscored
from strop.server.models.causal.network import Network, Packed
from strop.server.models.causal.pages import Chain, Pages
from strop.server.models.tokenizer import Tokenizer

_SCORED_AT_ONCE = 128
"""Rows of logits that scoring a prompt holds at a time."""


class Reader:
    """A network and the pages of its cache: what the tracks of one role share."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.pages = Pages(network.pages)


@dataclass(slots=True, eq=False)
class Track:
    """One sequence that one role reads: its tokens, and how many of them the cache holds.

    `ready` [width] is the last hidden state once all are; `reused` counts the tokens found computed at the start.
    """

    reader: Reader
    tokens: list[int]
    tenant: str
    reuse: bool = True
    computed: int = 0
    chain: Chain | None = None
    ready: Tensor | None = None
    reused: int | None = None

    @property
    def pending(self) -> int:
        return 0 if self.ready is not None else len(self.tokens) - self.computed

    def reserve(self, count: int) -> bool:
        """Hold pages for `count` more tokens. False when the cache has too few."""
        return self.reader.pages.extend(self.open(), self.computed + count)

    def open(self) -> Chain:
        """This track's pages; at the first call, those of the longest prefix that others have computed."""
        if self.chain is None:
            self.chain = self.reader.pages.match(self.tokens if self.reuse else (), tenant=self.tenant)
            self.computed = len(self.chain.pages) * PAGE
            self.reused = self.computed if self.reused is None else self.reused
        return self.chain

    def advance(self, count: int, last: Tensor) -> None:
        """Take note that `count` more tokens are in the cache; `last` is the hidden state of the last of them."""
        self.computed += count
        self.reader.pages.remember(self.open(), self.tokens, self.computed)
        if self.computed == len(self.tokens):
            self.ready = last

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.ready = None

    def release(self) -> None:
        """Give the pages back; the track can start over."""
        if self.chain is not None:
            self.reader.pages.release(self.chain)
        self.chain, self.computed, self.ready = None, 0, None

    def fork(self) -> Track:
        """A copy that shares the full pages. Where no page is free for the rest, it computes its tokens anew."""
        copy = Track(self.reader, list(self.tokens), self.tenant, reused=self.reused)
        chain, partial = self.reader.pages.fork(self.open(), self.computed)
        if partial is not None:
            if not self.reader.pages.extend(chain, self.computed):
                self.reader.pages.release(chain)
                return copy
            self.reader.network.copy_page(partial, chain.pages[-1])
        copy.chain, copy.computed, copy.ready = chain, self.computed, self.ready
        return copy


@dataclass(slots=True, eq=False)
class Job:
    """A plan under way: what it has cost so far, and how many of its choices are still open."""

    plan: TextPlan
    open: int
    started: float = field(default_factory=time.perf_counter)
    forwards: int = 0
    nfe: Counter[Role] = field(default_factory=Counter)
    generated: int = 0
    cached: int = 0
    prompt_scores: list[TokenScore] = field(default_factory=list)

    @property
    def scored(self) -> bool:
        """Whether every prompt token has its score."""
        return len(self.prompt_scores) == len(self.plan.prompt)

    def score(self, track: Track, states: Tensor, tokenizer: Tokenizer) -> None:
        """Score the prompt tokens that hidden states [count, width] from `track.computed` on predict."""
        start, scores = track.computed, self.prompt_scores
        del scores[start + 1 if start else 0 :]
        if start == 0:
            scores.append(unscored(track.tokens[0], tokenizer))
        for part in range(0, len(states), _SCORED_AT_ONCE):
            logits = track.reader.network.logits(states[part : part + _SCORED_AT_ONCE])
            after = track.tokens[start + part + 1 : start + part + 1 + len(logits)]
            scores += score_prompt(logits[: len(after)], after, self.plan.logprobs or 0, tokenizer)

    def done(self, kernels: Mapping[str, str]) -> Done:
        usage = Usage(prompt_tokens=len(self.plan.prompt), completion_tokens=self.generated, cached_tokens=self.cached)
        seconds = time.perf_counter() - self.started
        evidence = Evidence(seconds=seconds, steps=self.forwards, nfe=dict(self.nfe), kernels=dict(kernels))
        return Done(usage=usage, evidence=evidence)


@dataclass(slots=True, eq=False)
class Row:
    """One choice under way. `forks` are the guidance memories of the choices that start from its prompt once it is computed."""

    job: Job
    answer: Answer
    draw: TokenRow
    tracks: dict[Role, Track]
    memory: Memory
    forks: Sequence[Memory] = ()

    @property
    def leading(self) -> Track:
        """The track that reads the caller's own prompt: the first whose role the plan gives no other."""
        given = self.job.plan.prompts
        return next((track for role, track in self.tracks.items() if role not in given), next(iter(self.tracks.values())))

    @property
    def ready(self) -> bool:
        return all(track.ready is not None for track in self.tracks.values())

    def release(self) -> None:
        for track in self.tracks.values():
            track.release()


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `count` tokens of a track, to be read in one forward."""

    row: Row
    role: Role
    track: Track
    count: int


def packed(pieces: Sequence[Piece], padding: int) -> Packed:
    """One forward's tokens, padded to a multiple of `padding`; every piece has its pages."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for piece in pieces:
        track = piece.track
        pages = track.open().pages
        span = range(track.computed, track.computed + piece.count)
        ids += track.tokens[span.start : span.stop]
        positions += span
        slots += [pages[at // PAGE] * PAGE + at % PAGE for at in span]
        starts.append(len(ids))
    fill = -len(ids) % padding
    chains = [piece.track.open().pages for piece in pieces]
    width = max(len(chain) for chain in chains)
    return Packed(
        ids=torch.tensor(ids + [0] * fill),
        positions=torch.tensor(positions + [0] * fill),
        slots=torch.tensor(slots + [-1] * fill, dtype=torch.int32),
        tables=torch.tensor([chain + [0] * (width - len(chain)) for chain in chains], dtype=torch.int32),
        starts=torch.tensor(starts, dtype=torch.int32),
        lengths=torch.tensor([piece.track.computed + piece.count for piece in pieces], dtype=torch.int32),
    )
