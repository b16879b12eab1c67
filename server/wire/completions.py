"""The body of /v1/completions to a `CompletionRequest`."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from annotated_types import Le
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from strop.config import Limits
from strop.contracts import CompletionRequest
from strop.errors import InvalidRequest, Unsupported
from strop.plugins import Plugins
from strop.server.wire.fields import MAX_TOKEN_ID, Only, TokenId
from strop.server.wire.text import TextBody, installed, shared_caps, shared_fields

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""

Prompt: TypeAlias = str | tuple[int, ...]


def _prompts(value: Any) -> list[Prompt]:
    """One prompt or several, as text or token ids, as a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if _is_ids(value):
            return [tuple(value)]
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) and item and _is_ids(item) for item in value):
            return [tuple(item) for item in value]
    raise PydanticCustomError("prompt", "must be a string, token ids, or a list of either that is not empty")


def _is_ids(value: list[Any]) -> bool:
    return all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in value)


class CompletionBody(TextBody):
    """OpenAI's completion request, on the prompt as it stands: no chat template."""

    prompt: Annotated[
        list[Any],
        BeforeValidator(
            _prompts,
            json_schema_input_type=str
            | Annotated[list[str] | list[TokenId] | list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)],
        ),
    ] = Field(description="A text or its token ids, or a list of prompts.")
    max_tokens: int | None = Field(None, ge=0, description=f"Longest answer; default {DEFAULT_MAX_TOKENS}.")
    echo: bool | None = Field(None, description="Put the prompt before the answer, with its log-probabilities if asked for.")
    logprobs: int | None = Field(None, ge=0, description="Likeliest tokens to report at each place.")
    best_of: int | None = Field(None, ge=1, description="Only the value of `n`.")
    suffix: Annotated[Any, Only((None, ""))] = Field(None, description="Not supported.")


def completion_body(limits: Limits, plugins: Plugins) -> type[CompletionBody]:
    """The body as this server takes it."""
    return installed(CompletionBody, plugins, shared_caps(limits) | {"logprobs": Le(limits.logprobs)})


def completion_request(body: CompletionBody, limits: Limits, plugins: Plugins, *, tenant: str) -> CompletionRequest:
    if len(body.prompt) > limits.prompts:
        raise InvalidRequest(f"prompt: at most {limits.prompts} prompts in one request", param="prompt")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Unsupported("best_of: only the value of n is supported", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens: 0 makes sense with echo: true only", param="max_tokens")
    return CompletionRequest(
        prompts=tuple(body.prompt),
        echo=bool(body.echo),
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        tenant=tenant,
        **shared_fields(body, limits, plugins),
    )
