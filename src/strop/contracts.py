"""The few names everything in strop is built from; the first file to read.

A request becomes a `Plan`, an `Engine` runs the plan with a `Sampler` steered by `Guidance`, and `Event`s stream back.
Everything here is data or a protocol: no torch at run time, no I/O, no state.

Letters used everywhere: `B` rows, `T` tokens, `V` vocabulary, `C H W` latent, `N` candidates, `K` verifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

Domain: TypeAlias = Literal["latent", "masked", "causal"]
Role: TypeAlias = Literal["base", "strong", "weak", "cond", "uncond"]
FinishReason: TypeAlias = Literal["stop", "length"]
PlanId: TypeAlias = str
Memory: TypeAlias = dict[str, Any]
"""What a guidance keeps for one row between steps (momentum, cached gaps). Owned by the row, passed back to every call."""


# ---------------------------------------------------------------- what a caller may choose
class Plugin(BaseModel):
    """A method with its validated options. The instance *is* the options; its JSON schema feeds HTTP, OpenAPI, SDK, CLI and UI.

    A subclass declares `name: Literal["…"] = "…"` first and then typed fields with descriptions. Its module imports torch only
    inside methods or under TYPE_CHECKING, so that the SDK can build it where torch is absent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    domains: ClassVar[frozenset[Domain]] = frozenset()
    name: str


class Guidance(Plugin):
    """How the weak steers the strong: one paper, one subclass, one file in `guidance/`."""

    roles: ClassVar[tuple[Role, ...]] = ("base",)
    """The roles whose predictors `predict` calls; an engine prepares these and no others."""

    def nfe(self, steps: int) -> Mapping[Role, int]:
        """Declared price: network rows evaluated per role over `steps` steps."""
        return dict.fromkeys(self.roles, steps)

    def start(self) -> Memory:
        """Fresh memory of one row."""
        return {}

    def predict(self, roles: Roles, x: Tensor, step: Step, memory: Memory) -> Tensor:
        """The guided prediction at `x`. Default: what the base network says."""
        return roles["base"](x, step)


class Sampler(Plugin):
    """How a result is drawn from predictions; one subclass, one file in `samplers/`."""


Roles: TypeAlias = Mapping[Role, "Predictor"]


class Predictor(Protocol):
    """What a network says at `x`: logits [B, V] for the token domains."""

    def __call__(self, x: Tensor, step: Step, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Step:
    """Where a row stands: `index` of `total` steps (for a causal model: of at most `total` tokens)."""

    index: int
    total: int


# ---------------------------------------------------------------- what the caller asked
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the caller asked, before defaults: pure data, JSON-able. `tenant` is a digest of the API key ("" without auth)."""

    model: str
    seed: int | None = None
    stream: bool = False
    guidance: Guidance | None = None
    sampler: Sampler | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest(Request):
    """What chat and completions share. `logprobs`: None, or how many alternatives to report beside each token."""

    max_tokens: int | None = None
    min_tokens: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    include_usage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(TextRequest):
    messages: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(TextRequest):
    """`prompts` are texts or token ids. `echo` returns the prompt, with its log-probabilities when `logprobs` is set."""

    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool = False


# ---------------------------------------------------------------- what will be run
@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan may take: rows that run at once, tokens of cache it needs to begin (its prompt), and tokens it fills at most.

    Engines admit by `rows` and `start`; a plan whose `tokens` exceed what an engine has in all is refused.
    """

    rows: int
    start: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request after every default, name and limit was resolved. Immutable; knows its cost; round-trips through msgpack."""

    id: PlanId
    model: str
    seed: int
    cost: Cost
    guidance: Guidance | None = None
    sampler: Sampler | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPlan(Plan):
    """`n` continuations of one prompt. `prompts` holds the token ids each role of the guidance reads instead of `prompt`."""

    prompt: tuple[int, ...]
    prompts: Mapping[Role, tuple[int, ...]] = field(default_factory=dict)
    n: int = 1
    max_tokens: int
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False


# ---------------------------------------------------------------- what comes back
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """One token with its log-probability; `top` holds the likeliest tokens there (their own `top` is empty).

    `logprob` is None only for the first token of a prompt. Probabilities are those before temperature, penalties, masks and
    truncation: of an answer under its guidance, of a prompt the network's own.
    """

    id: int
    data: bytes
    logprob: float | None
    top: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New text of choice `index`. `finish` is set on the choice's last delta, and only there."""

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScored:
    """The log-probabilities of the prompt's own tokens, sent once before the first delta when the plan asks for them."""

    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens. The prompt is counted once however many choices share it; `cached_tokens` of it needed no computing."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the answer cost: seconds in the engine, forwards it took part in, network rows by role, kernel paths used."""

    seconds: float
    steps: int
    nfe: Mapping[Role, int]
    kernels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    usage: Usage
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The plan ended by an error of its own; other plans go on. Fields are those of `errors.StropError`."""

    status: int
    code: str
    message: str


Event: TypeAlias = Delta | PromptScored | Done | Failed


# ---------------------------------------------------------------- who runs it
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One registry entry, as `/v1/models/{id}` shows it."""

    name: str
    domain: Domain
    engine: str
    source: str
    context_length: int
    vocabulary: int
    dtype: str
    created: int
    roles: tuple[Role, ...] = ("base",)
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What an engine can take on now, and what it holds. A plan whose cost exceeds `max_rows` or `max_tokens` can never run."""

    free_rows: int
    free_tokens: int
    running_rows: int
    max_rows: int
    max_tokens: int


@runtime_checkable
class Engine(Protocol):
    """Owns one model's weights and one device. No HTTP, no queue, no config files. Used from one thread at a time."""

    @property
    def card(self) -> ModelCard: ...

    def admit(self, plan: Plan) -> None:
        """Take the plan on; its rows join at the next `step`. Raises `errors.StropError` if the plan cannot be run."""

    def step(self) -> Sequence[tuple[PlanId, Event]]:
        """One forward. Rows join and leave between steps. A plan's last event is `Done` or `Failed`. Empty when idle."""

    def cancel(self, plan_id: PlanId) -> None:
        """Drop the plan's rows at once; unknown ids are ignored. No further event of it is returned."""

    def capacity(self) -> Capacity: ...

    def close(self) -> None: ...


Deliver: TypeAlias = Callable[[Sequence[tuple[PlanId, Event]]], None]
"""How an executor hands the events of one step to whoever waits for them: one call a step."""
