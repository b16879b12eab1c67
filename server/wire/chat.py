"""The body of /v1/chat/completions to a `ChatRequest`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Le, MaxLen
from pydantic import Field, field_validator

from strop.config import Limits
from strop.contracts import ChatRequest
from strop.errors import InvalidRequest
from strop.plugins import Plugins
from strop.server.wire.fields import Body, Content, Only, unsupported
from strop.server.wire.text import TextBody, installed, shared_caps, shared_fields

_ROLES = {"developer": "system"}
"""Roles that chat templates of open models do not know, and what stands for them."""


class Message(Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = Field(None, description="The text, or a list of parts of type `text`.")
    name: str | None = Field(None, max_length=64, description="Who speaks, for templates that show it.")
    refusal: Annotated[Any, Only((None,))] = Field(None, description="Not supported.")
    audio: Annotated[Any, Only((None,))] = Field(None, description="Not supported.")
    annotations: Annotated[Any, Only((None, []))] = Field(None, description="Not supported.")
    tool_calls: Annotated[Any, Only((None, []))] = Field(None, description="Not supported.")
    function_call: Annotated[Any, Only((None,))] = Field(None, description="Not supported.")

    @field_validator("role", mode="before")
    @classmethod
    def _no_tools(cls, role: Any) -> Any:
        if role in ("tool", "function"):
            raise unsupported("messages of tools are not supported by this server")
        return role

    def template_fields(self) -> dict[str, str]:
        """What a chat template reads."""
        fields = {"role": _ROLES.get(self.role, self.role), "content": self.content or ""}
        return fields if self.name is None else fields | {"name": self.name}


class ChatCompletionBody(TextBody):
    """OpenAI's chat completion request. Fields that read "Not supported" pass only with the values listed."""

    messages: list[Message] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: int | None = Field(None, ge=1, description="Longest answer; default: what the context leaves.")
    max_tokens: int | None = Field(None, ge=1, description="The older name of `max_completion_tokens`.")
    logprobs: bool | None = Field(None, description="Report the log-probability of every token.")
    top_logprobs: int | None = Field(None, ge=0, description="Likeliest tokens to report at each place; needs `logprobs`.")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Accepted and not stored.")
    safety_identifier: str | None = Field(None, max_length=512, description="Accepted and not used.")
    prompt_cache_key: str | None = Field(None, max_length=512, description="Accepted; equal prefixes are found without it.")
    prompt_cache_options: Annotated[Any, Only((None, {}))] = Field(None, description="Not supported.")
    prompt_cache_retention: Annotated[Any, Only((None, "in_memory"))] = Field(None, description="Not supported.")
    response_format: Annotated[Any, Only((None, {"type": "text"}))] = Field(None, description="Only plain text.")
    tools: Annotated[Any, Only((None, []))] = Field(None, description="Not supported.")
    tool_choice: Annotated[Any, Only((None, "none", "auto"))] = Field(None, description="Not supported.")
    parallel_tool_calls: Annotated[Any, Only((None, True, False))] = Field(None, description="Means nothing without tools.")
    functions: Annotated[Any, Only((None, []))] = Field(None, description="Not supported.")
    function_call: Annotated[Any, Only((None, "none", "auto"))] = Field(None, description="Not supported.")
    modalities: Annotated[Any, Only((None, ["text"]))] = Field(None, description="Only text.")
    audio: Annotated[Any, Only((None,))] = Field(None, description="Not supported.")
    prediction: Annotated[Any, Only((None,))] = Field(None, description="Not supported.")
    moderation: Annotated[Any, Only((None,))] = Field(None, description="Not supported.")
    reasoning_effort: Annotated[Any, Only((None, "none"))] = Field(None, description="Not supported.")
    verbosity: Annotated[Any, Only((None, "medium"))] = Field(None, description="Not supported.")
    service_tier: Annotated[Any, Only((None, "auto", "default"))] = Field(None, description="There is one tier.")
    store: Annotated[Any, Only((None, False))] = Field(None, description="Nothing is stored.")
    web_search_options: Annotated[Any, Only((None,))] = Field(None, description="Not supported.")


def chat_body(limits: Limits, plugins: Plugins) -> type[ChatCompletionBody]:
    """The body as this server takes it."""
    caps = {"messages": MaxLen(limits.messages), "top_logprobs": Le(limits.logprobs)}
    return installed(ChatCompletionBody, plugins, shared_caps(limits) | caps)


def chat_request(body: ChatCompletionBody, limits: Limits, plugins: Plugins, *, tenant: str) -> ChatRequest:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    longest = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(longest) > 1:
        raise InvalidRequest("max_tokens and max_completion_tokens differ; give one of them", param="max_tokens")
    for position, message in enumerate(body.messages):
        if message.content is None and message.role != "assistant":
            param = f"messages[{position}].content"
            raise InvalidRequest(f"{param}: a {message.role} message needs content", param=param)
    return ChatRequest(
        messages=tuple(message.template_fields() for message in body.messages),
        max_tokens=longest.pop() if longest else None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        tenant=tenant,
        **shared_fields(body, limits, plugins),
    )
