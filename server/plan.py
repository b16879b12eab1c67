"""From what was asked to what will be run. Every refusal that does not depend on load happens here, before any model runs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

from strop.config import Limits
from strop.contracts import ChatRequest, CompletionRequest, Cost, Guidance, Plugin, Role, Sampler, TextPlan, TextRequest
from strop.errors import ContextTooLong, InvalidOption, InvalidRequest, StropError
from strop.plugins import FIELDS, Group, Plugins
from strop.samplers.tokens import Tokens
from strop.server.house import Hosted, House

CHARS_PER_TOKEN = 32
"""A prompt with more characters per token of context is refused unread: tokenising it could only be a waste."""
SEED_BITS = 63

Messages: TypeAlias = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text, token ids or a conversation, and the field of the request it came from."""

    field: str
    value: str | tuple[int, ...] | Messages
    chat: bool = False


@runtime_checkable
class Prompting(Protocol):
    """A guidance some of whose roles read another prompt than the user's: an empty or a negative one, say."""

    def prompts(self, prompt: Prompt) -> Mapping[Role, Prompt]: ...


def resolve(request: ChatRequest | CompletionRequest, house: House) -> list[TextPlan]:
    """One plan per prompt, in order.

    `request.sampler` counts only where the caller set its fields (pydantic's `model_fields_set`); the model's defaults fill
    the rest. Changes nothing and may run in any thread: tokenising a long prompt takes a while. Raises ModelNotFound, NotReady,
    InvalidRequest, ContextTooLong or InvalidOption.
    """
    try:
        hosted = house.find(request.model)
        limits = house.config.server.limits
        _check_shape(request, limits)
        _check_size(request, hosted, limits)
        sampler = _sampler(request.sampler, hosted, house.plugins, limits)
        guidance = request.guidance or hosted.defaults.guidance
        if guidance is not None:
            _check_domain("guidance", guidance, hosted, house.plugins)
        return [_plan(request, prompt, hosted, sampler, guidance) for prompt in _prompts(request)]
    except StropError as error:
        house.metrics.refused(error.code)
        raise


def _prompts(request: ChatRequest | CompletionRequest) -> list[Prompt]:
    if isinstance(request, ChatRequest):
        return [Prompt("messages", request.messages, chat=True)]
    return [Prompt("prompt", prompt) for prompt in request.prompts]


def _check_shape(request: ChatRequest | CompletionRequest, limits: Limits) -> None:
    """What can be said without a model."""
    if isinstance(request, ChatRequest):
        _within("messages", len(request.messages), 1, limits.messages)
    else:
        _within("prompt", len(request.prompts), 1, limits.prompts)
    _within("n", request.n, 1, limits.n)
    _within("stop", len(request.stop), 0, limits.stop)
    _within("stop_token_ids", len(request.stop_token_ids), 0, limits.stop)
    for stop in request.stop:
        _within("stop", len(stop), 1, limits.stop_chars, of="characters of a stop string")
    if request.logprobs is not None:
        _within("logprobs", request.logprobs, 0, limits.logprobs)
    if request.seed is not None:
        _within("seed", request.seed, -(1 << SEED_BITS), (1 << SEED_BITS) - 1)
    if request.max_tokens is not None and request.max_tokens < (0 if _echoes(request) else 1):
        raise InvalidRequest(f"max_tokens is {request.max_tokens}; it must be at least 1, or 0 with echo", param="max_tokens")
    if request.min_tokens < 0:
        raise InvalidRequest(f"min_tokens is {request.min_tokens}; it must be at least 0", param="min_tokens")


def _within(param: str, value: int, low: int, high: int, *, of: str = "") -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{param}: {value} {of or 'given'}; it must be between {low} and {high}", param=param)


def _check_size(request: ChatRequest | CompletionRequest, hosted: Hosted, limits: Limits) -> None:
    """What could never run, however idle the server."""
    rows = hosted.scheduler.capacity.max_rows
    if request.n > rows:
        raise InvalidRequest(f"n is {request.n}; this model runs at most {rows} choices at once", param="n")
    asked = request.n * (1 if isinstance(request, ChatRequest) else len(request.prompts))
    if asked > rows + limits.max_queue:
        raise InvalidRequest(
            f"{asked} choices in one request; the server takes at most {rows + limits.max_queue}", param="prompt"
        )
    _check_ids("stop_token_ids", request.stop_token_ids, hosted)


def _check_ids(param: str, ids: Sequence[int], hosted: Hosted) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < hosted.card.vocabulary:
        wrong = next(token for token in ids if not 0 <= token < hosted.card.vocabulary)
        raise InvalidRequest(
            f"{param}: {wrong} is no token id; this model's are 0 to {hosted.card.vocabulary - 1}", param=param
        )


def _sampler(asked: Sampler | None, hosted: Hosted, plugins: Plugins, limits: Limits) -> Sampler:
    default = hosted.defaults.sampler
    sampler = default
    if asked is not None:
        _check_domain("samplers", asked, hosted, plugins)
        base = default.model_dump(exclude_unset=True) if asked.name == default.name else {}
        options = {**base, **asked.model_dump(exclude_unset=True), "name": asked.name}
        sampler = cast("Sampler", plugins.build("samplers", options, domain=hosted.card.domain))
    if isinstance(sampler, Tokens):
        _within("logit_bias", len(sampler.logit_bias), 0, limits.logit_bias)
        _check_ids("logit_bias", tuple(sampler.logit_bias), hosted)
    return sampler


def _check_domain(group: Group, plugin: Plugin, hosted: Hosted, plugins: Plugins) -> None:
    domain = hosted.card.domain
    if domain not in plugin.domains:
        valid = ", ".join(plugins.classes(group, domain)) or "none"
        raise InvalidOption(f"{plugin.name!r} is not for {domain} models; valid: {valid}.", param=f"{FIELDS[group]}.name")


def _plan(
    request: ChatRequest | CompletionRequest, prompt: Prompt, hosted: Hosted, sampler: Sampler, guidance: Guidance | None
) -> TextPlan:
    tokens = _tokenise(prompt, hosted)
    others: Mapping[Role, Prompt] = guidance.prompts(prompt) if isinstance(guidance, Prompting) else {}
    prompts = {role: _tokenise(other, hosted) for role, other in others.items()}
    roles = _roles(guidance, {*hosted.card.roles, *prompts}, hosted)
    read = [len(prompts.get(role, tokens)) for role in roles]
    max_tokens = _max_tokens(request, max(read), sum(read), len(roles), hosted)
    stop_ids = request.stop_token_ids if request.ignore_eos else (*request.stop_token_ids, *hosted.tokenizer.eos_ids)
    return TextPlan(
        id=secrets.token_hex(12),
        model=hosted.card.name,
        seed=secrets.randbits(SEED_BITS) if request.seed is None else request.seed,
        cost=Cost(rows=request.n, start=sum(read), tokens=sum(read) + len(roles) * request.n * max_tokens),
        guidance=guidance,
        sampler=sampler,
        tenant=request.tenant,
        prompt=tokens,
        prompts=prompts,
        n=request.n,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        stop=request.stop,
        stop_token_ids=tuple(dict.fromkeys(stop_ids)),
        logprobs=request.logprobs,
        prompt_logprobs=_echoes(request) and request.logprobs is not None,
    )


def _roles(guidance: Guidance | None, playable: set[Role], hosted: Hosted) -> tuple[Role, ...]:
    """The roles that will be run. The base network plays any role that reads a prompt of its own; others need a partner."""
    roles: tuple[Role, ...] = guidance.roles if guidance else ("base",)
    lacking = [role for role in roles if role not in playable]
    if guidance and lacking:
        raise InvalidOption(
            f"guidance {guidance.name!r} needs the roles {', '.join(lacking)}; "
            f"the model {hosted.card.name!r} has {', '.join(hosted.card.roles)}",
            param="guidance",
        )
    return roles


def _tokenise(prompt: Prompt, hosted: Hosted) -> tuple[int, ...]:
    """Token ids of a prompt, which may fill the context but not exceed it."""
    context, value = hosted.card.context_length, prompt.value
    if _chars(value) > context * CHARS_PER_TOKEN:
        raise ContextTooLong(
            f"the {prompt.field} has {_chars(value)} characters; this model reads {context} tokens", param=prompt.field
        )
    if prompt.chat:
        tokens = tuple(hosted.tokenizer.chat(cast("Messages", value)))
    elif isinstance(value, str):
        tokens = tuple(hosted.tokenizer.encode(value))
    else:
        tokens = cast("tuple[int, ...]", value)
    _check_ids(prompt.field, tokens, hosted)  # some tokenizers know more tokens than their network
    if not tokens:
        raise InvalidRequest(f"the {prompt.field} is empty", param=prompt.field)
    if len(tokens) > context:
        raise ContextTooLong(f"the {prompt.field} has {len(tokens)} tokens; this model reads {context}", param=prompt.field)
    return tokens


def _chars(value: object) -> int:
    """Characters of all strings inside; a number counts as one."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_chars(item) for item in value.values())
    return sum(_chars(item) for item in value) if isinstance(value, list | tuple) else 1


def _max_tokens(request: TextRequest, longest: int, read: int, roles: int, hosted: Hosted) -> int:
    """What was asked if it fits; else the model's default within what context and cache leave."""
    context, cache = hosted.card.context_length, hosted.scheduler.capacity.max_tokens
    left = min(context - longest, (cache - read) // (roles * request.n))
    asked = request.max_tokens
    if left < (1 if asked is None else asked):
        wanted = "an answer" if asked is None else f"max_tokens {asked}"
        raise ContextTooLong(
            f"{longest} prompt tokens and {wanted} for n={request.n} do not fit: this model reads {context} tokens a choice "
            f"and caches {cache} in all, which leaves {max(left, 0)}",
            param="max_tokens" if asked else None,
        )
    tokens = min(left, hosted.defaults.max_tokens or left) if asked is None else asked
    if request.min_tokens > tokens:
        raise InvalidRequest(f"min_tokens is {request.min_tokens}, more than max_tokens, {tokens}", param="min_tokens")
    return tokens


def _echoes(request: TextRequest) -> bool:
    return isinstance(request, CompletionRequest) and request.echo
