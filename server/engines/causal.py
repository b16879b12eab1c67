"""The engine of autoregressive models: continuous batching over paged caches, one packed forward a step.

Requests join and leave between steps. A step reads one token of every row that is generating and a bounded piece of the
prompts that wait, so that a long prompt does not stall running streams. When the cache is full the youngest row gives its
pages back and computes its tokens anew later; its answer does not change, since results depend on nothing but the tokens.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.contracts import (
    Capacity,
    Delta,
    Event,
    Failed,
    Memory,
    ModelCard,
    Plan,
    PlanId,
    PromptScored,
    Role,
    Step,
    TextPlan,
    TokenScore,
)
from strop.errors import ContextTooLong, EngineFailure, InvalidOption
from strop.kernels.paged_attention import PAGE
from strop.kernels.registry import trace
from strop.kernels.rng import row_seed
from strop.samplers.tokens import Tokens, draw
from strop.server.engines.answer import Answer
from strop.server.engines.rows import Job, Piece, Reader, Row, Track, packed
from strop.server.engines.scores import score_tokens
from strop.server.models.causal.network import Network
from strop.server.models.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Rows that run at once, and prompt tokens read in one step while most rows generate, or while most rows wait to."""

    rows: int = 64
    busy_tokens: int = 128
    idle_tokens: int = 512

    @property
    def tokens(self) -> int:
        """The most tokens one forward sees."""
        return self.rows + self.idle_tokens

    def prompt_tokens(self, *, busy: bool, beside: int) -> int:
        """How many prompt tokens the next step may read, beside one token each of so many sequences that grow."""
        return max(0, min(self.busy_tokens if busy else self.idle_tokens, self.tokens - beside))


class CausalEngine:
    """Implements `contracts.Engine` for decoders. `networks` holds the base and, for guidance, other roles' networks."""

    def __init__(
        self, card: ModelCard, networks: Mapping[Role, Network], tokenizer: Tokenizer, *, pace: Pace | None = None
    ) -> None:
        self._card = card
        self._readers: dict[Role, Reader] = {role: Reader(network) for role, network in networks.items()}
        self._tokenizer = tokenizer
        self._pace = pace or Pace()
        self._rows: list[Row] = []
        self._kernels: dict[str, str] = {}

    @property
    def card(self) -> ModelCard:
        return self._card

    def admit(self, plan: Plan) -> None:
        """Take on a TextPlan. Raises ContextTooLong or InvalidOption for what this model cannot run at all."""
        if not isinstance(plan, TextPlan):
            raise InvalidOption(f"a causal model runs text plans, not {type(plan).__name__}")
        sampler = plan.sampler or Tokens()
        if not isinstance(sampler, Tokens):
            raise InvalidOption(f"a causal model draws with the sampler 'tokens', not {sampler.name!r}", param="sampler")
        roles: tuple[Role, ...] = plan.guidance.roles if plan.guidance else ("base",)
        tracks = {role: self._track(plan, role) for role in roles}
        pages: Counter[Reader] = Counter()
        for track in tracks.values():
            tokens = len(track.tokens) + plan.max_tokens
            pages[track.reader] += -(-tokens // PAGE)
            network = track.reader.network
            if tokens > network.context_length or pages[track.reader] > network.pages:
                raise ContextTooLong(f"{len(track.tokens)} prompt and {plan.max_tokens} new tokens exceed this model's cache")
        memories = [plan.guidance.start() if plan.guidance else {} for _ in range(plan.n)]
        self._rows.append(self._row(Job(plan, open=plan.n), 0, tracks, memories[0], forks=memories[1:]))

    @torch.inference_mode()
    def step(self) -> Sequence[tuple[PlanId, Event]]:
        """One forward per network, then one draw for every row whose next-token logits are known."""
        if not self._rows:
            return []
        events: list[tuple[PlanId, Event]] = []
        with trace() as kernels:
            self._read(self._schedule(), events)
            self._fork_ready()
            ready = [row for row in self._rows if row.ready]
            if ready:
                self._draw(ready, events)
        self._kernels = dict(kernels)
        return events

    def cancel(self, plan_id: PlanId) -> None:
        self._drop(lambda row: row.job.plan.id == plan_id)

    def capacity(self) -> Capacity:
        rows = sum(1 + len(row.forks) for row in self._rows)
        pages = min((r.pages.free for r in self._readers.values()), default=0)
        total = min((r.network.pages for r in self._readers.values()), default=0)
        return Capacity(
            free_rows=self._pace.rows - rows,
            free_tokens=max(pages - rows, 0) * PAGE,
            running_rows=rows,
            max_rows=self._pace.rows,
            max_tokens=total * PAGE,
        )

    def close(self) -> None:
        self._drop(lambda _: True)
        self._readers.clear()

    def _track(self, plan: TextPlan, role: Role) -> Track:
        reader = self._readers.get(role) or self._readers["base"]
        return Track(reader, list(plan.prompts.get(role, plan.prompt)), plan.tenant, reuse=not plan.prompt_logprobs)

    def _row(self, job: Job, index: int, tracks: dict[Role, Track], memory: Memory, *, forks: Sequence[Memory] = ()) -> Row:
        plan = job.plan
        sampler = plan.sampler if isinstance(plan.sampler, Tokens) else Tokens()
        return Row(
            job=job,
            answer=Answer(plan, index, self._tokenizer),
            draw=sampler.start(plan.prompt, seed=row_seed(plan.seed, index)),
            tracks=tracks,
            memory=memory,
            forks=forks,
        )

    def _schedule(self) -> list[Piece]:
        """What to read now, oldest row first. A row for which no page is left takes those of the youngest."""
        growing = [sum(track.pending == 1 for track in row.tracks.values()) for row in self._rows]
        busy = 2 * (len(growing) - growing.count(0)) >= len(growing)
        budget = self._pace.prompt_tokens(busy=busy, beside=sum(growing))
        pieces: list[Piece] = []
        for row in list(self._rows):
            for role, track in row.tracks.items():
                prompt = track.pending > 1
                if track.pending == 0 or (prompt and not budget):
                    continue
                track.open()
                count = min(track.pending, budget) if prompt else 1
                if self._make_room(row, track, count):
                    pieces.append(Piece(row, role, track, count))
                    budget -= count if prompt else 0
        return pieces

    def _make_room(self, row: Row, track: Track, count: int) -> bool:
        """Reserve pages for `count` tokens, taking them from younger rows, which have not been scheduled in this step yet."""
        younger = self._rows[self._rows.index(row) + 1 :]
        while not track.reserve(count):
            if not younger:
                return False
            younger.pop().release()
        return True

    def _read(self, pieces: Sequence[Piece], events: list[tuple[PlanId, Event]]) -> None:
        """Forward the pieces, those of one network together."""
        by_reader: dict[Reader, list[Piece]] = defaultdict(list)
        for piece in pieces:
            by_reader[piece.track.reader].append(piece)
        for reader, group in by_reader.items():
            hidden = reader.network.hidden(packed(group, reader.network.padding))
            at = 0
            for piece in group:
                states = hidden[at : at + piece.count]
                at += piece.count
                self._take_note(piece, states, events)
        for job in {piece.row.job for piece in pieces}:
            job.forwards += 1

    def _take_note(self, piece: Piece, states: Tensor, events: list[tuple[PlanId, Event]]) -> None:
        job, track = piece.row.job, piece.track
        if job.plan.prompt_logprobs and not job.scored and track is piece.row.leading:
            job.score(track, states, self._tokenizer)
            if job.scored:
                events.append((job.plan.id, PromptScored(scores=tuple(job.prompt_scores))))
        track.advance(piece.count, states[-1])
        job.nfe[piece.role] += 1

    def _fork_ready(self) -> None:
        """Start the other choices of prompts that are computed; they share its pages."""
        for row in [row for row in self._rows if row.forks and row.ready]:
            at = self._rows.index(row) + 1
            siblings = [
                self._row(row.job, index, {role: track.fork() for role, track in row.tracks.items()}, memory)
                for index, memory in enumerate(row.forks, start=1)
            ]
            self._rows[at:at] = siblings
            row.forks = ()

    def _draw(self, rows: Sequence[Row], events: list[tuple[PlanId, Event]]) -> None:
        """Draw the next token of every row and tell its plan."""
        for row in [row for row in rows if row.job.plan.max_tokens == 0]:
            self._finish(row, row.answer.end(), events)
        rows = [row for row in rows if row.job.plan.max_tokens > 0]
        if not rows:
            return
        for row in rows:
            early = row.answer.count < row.job.plan.min_tokens
            row.draw.banned = row.job.plan.stop_token_ids if early else ()
        logits = self._logits(rows)
        drawn: list[int] = draw(logits, [row.draw for row in rows]).tolist()
        scores = score_tokens(logits, drawn, [row.job.plan.logprobs for row in rows], self._tokenizer)
        for row, token, scored in zip(rows, drawn, scores, strict=True):
            if token >= 0 and row.job.open:
                self._accept(row, token, scored, events)
            elif row.job.open:
                self._fail(row.job, EngineFailure("the model's logits left no token to draw for this request"), events)

    def _accept(self, row: Row, token: int, scores: tuple[TokenScore, ...], events: list[tuple[PlanId, Event]]) -> None:
        row.draw.accept(token)
        row.job.generated += 1
        delta = row.answer.push(token, scores)
        if delta.finish is not None:
            self._finish(row, delta, events)
            return
        for track in row.tracks.values():
            track.append(token)
        events.append((row.job.plan.id, delta))

    def _logits(self, rows: Sequence[Row]) -> Tensor:
        """Next-token logits [B, V] of rows that are ready, guided where their plan says so."""
        by_network: dict[Network, list[Track]] = defaultdict(list)
        for row in rows:
            for track in row.tracks.values():
                by_network[track.reader.network].append(track)
        told: dict[Track, Tensor] = {}
        for network, tracks in by_network.items():
            logits = network.logits(torch.stack([track.ready for track in tracks if track.ready is not None]))
            if len(tracks) == len(rows) and all(row.job.plan.guidance is None for row in rows):
                return logits
            told.update(zip(tracks, torch.split(logits.float(), 1), strict=True))
        return torch.cat([self._guided(row, {role: told[track] for role, track in row.tracks.items()}) for row in rows])

    def _guided(self, row: Row, logits: Mapping[Role, Tensor]) -> Tensor:
        """Logits [1, V] of one row from its roles' logits, read in lockstep: a predictor only looks its own up.

        A guidance that raises, or returns another shape, leaves NaN, with which the row's plan fails alone.
        """
        plan, own = row.job.plan, next(iter(logits.values()))
        if plan.guidance is None:
            return own
        roles = {role: _known(values) for role, values in logits.items()}
        tokens = torch.tensor([row.leading.tokens])
        at = Step(index=row.answer.count, total=plan.max_tokens)
        try:
            out = plan.guidance.predict(roles, tokens, at, row.memory).float()
        except Exception:  # noqa: BLE001 - a plugin's code may raise anything
            _log.exception("guidance %s failed", plan.guidance.name)
            return torch.full_like(own, torch.nan)
        return out if out.shape == own.shape else torch.full_like(own, torch.nan)

    def _finish(self, row: Row, delta: Delta, events: list[tuple[PlanId, Event]]) -> None:
        job = row.job
        events.append((job.plan.id, delta))
        job.cached = max(job.cached, row.leading.reused or 0)
        self._drop(lambda other: other is row)
        job.open -= 1
        if job.open == 0:
            events.append((job.plan.id, job.done(self._kernels)))

    def _fail(self, job: Job, error: EngineFailure, events: list[tuple[PlanId, Event]]) -> None:
        job.open = 0
        self._drop(lambda row: row.job is job)
        events.append((job.plan.id, Failed(status=error.status, code=error.code, message=error.message)))

    def _drop(self, gone: Callable[[Row], bool]) -> None:
        for row in self._rows:
            if gone(row):
                row.release()
        self._rows = [row for row in self._rows if not gone(row)]


def _known(logits: Tensor) -> Callable[[Tensor, Step], Tensor]:
    return lambda _x, _step: logits
