"""Drawing the next token: temperature, truncation, penalties and biases, each row by its own numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from strop.contracts import Domain, Sampler

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOP_K = 2**31 - 1
"""What the kernels' int32 holds."""


class Tokens(Sampler):
    """One token at a time from the model's distribution. `temperature: 0` takes the likeliest token."""

    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["tokens"] = "tokens"
    temperature: float = Field(default=1.0, ge=0, le=2, description="Divides the logits; 0 is greedy.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Keep the likeliest tokens that together reach this probability.")
    top_k: int = Field(default=0, ge=0, le=MAX_TOP_K, description="Keep this many of the likeliest tokens; 0 keeps all.")
    min_p: float = Field(default=0.0, ge=0, le=1, description="Drop tokens less likely than this times the likeliest one.")
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Subtracted from the logit of every token generated so far."
    )
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, description="Subtracted once per time the token was generated.")
    repetition_penalty: float = Field(
        default=1.0, gt=0, le=10, description="Divides positive and multiplies negative logits of tokens in prompt or answer."
    )
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, description="Added to the logits of these token ids; -100 bans, 100 forces."
    )

    def start(self, prompt: Sequence[int], *, seed: int) -> TokenRow:
        """The state of one answer to `prompt`; `seed` is the row's own."""
        return TokenRow(sampler=self, seed=seed, prompt=frozenset(prompt) if self.repetition_penalty != 1 else frozenset())

    @property
    def reshapes(self) -> bool:
        """Whether logits change before temperature and truncation."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias)


@dataclass(slots=True)
class TokenRow:
    """One answer under way: what was drawn so far, and what may not be drawn next.

    `banned` ids are never drawn now (end-of-text before `min_tokens`, say); `allowed` [V] bool, when set, is the grammar's say.
    """

    sampler: Tokens
    seed: int
    prompt: frozenset[int]
    position: int = 0
    counts: Counter[int] = field(default_factory=Counter)
    banned: tuple[int, ...] = ()
    allowed: Tensor | None = None

    def accept(self, token: int) -> None:
        """Take `token` as drawn."""
        self.position += 1
        self.counts[token] += 1


def draw(logits: Tensor, rows: Sequence[TokenRow]) -> Tensor:
    """The next token of each row, ids [B] int64, from logits [B, V]; -1 where a row's logits leave nothing to draw.

    Order: repetition penalty (1909.05858 eq. 2 as commonly extended to negative logits), presence and frequency penalties,
    bias, bans; then temperature and truncation in `kernels.sample`. Noise is keyed by (row seed, position): the same token
    alone and in any batch.
    """
    import torch

    from strop.kernels.sample import sample

    if any(row.sampler.reshapes or row.banned or row.allowed is not None for row in rows):
        logits = torch.stack([reshape(values, row) for values, row in zip(logits.float(), rows, strict=True)])
    options = [row.sampler for row in rows]
    return sample(
        logits,
        temperature=torch.tensor([o.temperature for o in options]),
        top_k=torch.tensor([o.top_k for o in options], dtype=torch.int32),
        top_p=torch.tensor([o.top_p for o in options]),
        min_p=torch.tensor([o.min_p for o in options]),
        seeds=torch.tensor([row.seed for row in rows], dtype=torch.int64),
        positions=torch.tensor([row.position for row in rows], dtype=torch.int64),
    )


def reshape(logits: Tensor, row: TokenRow) -> Tensor:
    """The logits [V] float32 of one row after its penalties, biases and bans; a new tensor."""
    import torch

    logits, options = logits.clone(), row.sampler
    if options.repetition_penalty != 1 and (seen := sorted(row.prompt | row.counts.keys())):
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / options.repetition_penalty, values * options.repetition_penalty)
    if row.counts and (options.presence_penalty or options.frequency_penalty):
        times = torch.tensor(list(row.counts.values()), dtype=logits.dtype)
        logits[list(row.counts)] -= options.presence_penalty + options.frequency_penalty * times
    if options.logit_bias:
        logits[list(options.logit_bias)] += torch.tensor(list(options.logit_bias.values()), dtype=logits.dtype)
    if row.banned:
        logits[list(row.banned)] = -torch.inf
    if row.allowed is not None:
        logits.masked_fill_(~row.allowed, -torch.inf)
    return logits
