"""The Python SDK: the openai client with strop's own fields typed, and typed access to what strop adds to an answer.

Everything the openai package offers works unchanged. A plugin field takes an instance, a dict or a name. Streams are
context managers; leaving one early closes its connection, and the server drops the request within one step.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias, Unpack, overload
from urllib.parse import quote, urlsplit

import openai
from openai.resources.chat import AsyncChat, AsyncCompletions, Chat, Completions
from openai.resources.completions import AsyncCompletions as AsyncTextCompletions
from openai.resources.completions import Completions as TextCompletions
from openai.types import Completion
from openai.types import completion_create_params as text_params
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chat_params
from typing_extensions import TypedDict

from strop.contracts import Evidence, Plugin

DEFAULT_URL = "http://127.0.0.1:8000/v1"
PluginChoice: TypeAlias = Plugin | Mapping[str, Any] | str


class ClientOptions(TypedDict, total=False):
    """The options of the openai client that matter for a server of one's own."""

    timeout: float | openai.Timeout | None
    max_retries: int
    default_headers: Mapping[str, str] | None
    default_query: Mapping[str, object] | None
    http_client: Any
    _strict_response_validation: bool


class StropOptions(TypedDict, total=False):
    """What `create` takes beside OpenAI's own fields."""

    guidance: PluginChoice | None
    sampler: PluginChoice | None
    rerank: PluginChoice | None
    extra_body: Mapping[str, Any] | None
    extra_headers: Mapping[str, str] | None
    extra_query: Mapping[str, object] | None
    timeout: float | openai.Timeout | None


class ChatOptions(chat_params.CompletionCreateParamsNonStreaming, StropOptions):
    """A chat call answered at once."""


class ChatStreamOptions(chat_params.CompletionCreateParamsStreaming, StropOptions):
    """A chat call answered as a stream."""


class TextOptions(text_params.CompletionCreateParamsNonStreaming, StropOptions):
    """A completion call answered at once."""


class TextStreamOptions(text_params.CompletionCreateParamsStreaming, StropOptions):
    """A completion call answered as a stream."""


class StropCompletions(Completions):
    """`client.chat.completions`."""

    @overload  # type: ignore[override]  # the same options, told as one dict of types instead of forty parameters
    def create(self, **options: Unpack[ChatOptions]) -> ChatCompletion: ...
    @overload
    def create(self, **options: Unpack[ChatStreamOptions]) -> openai.Stream[ChatCompletionChunk]: ...
    def create(self, **options: Any) -> Any:
        return super().create(**_spelled(options))


class StropAsyncCompletions(AsyncCompletions):
    """`client.chat.completions` of the asynchronous client."""

    @overload  # type: ignore[override]
    async def create(self, **options: Unpack[ChatOptions]) -> ChatCompletion: ...
    @overload
    async def create(self, **options: Unpack[ChatStreamOptions]) -> openai.AsyncStream[ChatCompletionChunk]: ...
    async def create(self, **options: Any) -> Any:
        return await super().create(**_spelled(options))


class StropTextCompletions(TextCompletions):
    """`client.completions`."""

    @overload  # type: ignore[override]
    def create(self, **options: Unpack[TextOptions]) -> Completion: ...
    @overload
    def create(self, **options: Unpack[TextStreamOptions]) -> openai.Stream[Completion]: ...
    def create(self, **options: Any) -> Any:
        return super().create(**_spelled(options))


class StropAsyncTextCompletions(AsyncTextCompletions):
    """`client.completions` of the asynchronous client."""

    @overload  # type: ignore[override]
    async def create(self, **options: Unpack[TextOptions]) -> Completion: ...
    @overload
    async def create(self, **options: Unpack[TextStreamOptions]) -> openai.AsyncStream[Completion]: ...
    async def create(self, **options: Any) -> Any:
        return await super().create(**_spelled(options))


class StropChat(Chat):
    @cached_property
    def completions(self) -> StropCompletions:
        return StropCompletions(self._client)


class StropAsyncChat(AsyncChat):
    @cached_property
    def completions(self) -> StropAsyncCompletions:
        return StropAsyncCompletions(self._client)


class Client(openai.OpenAI):
    """A synchronous client. `base_url` defaults to `STROP_URL` or the local server, `api_key` to `STROP_API_KEY`."""

    def __init__(self, *, base_url: str | None = None, api_key: str | None = None, **options: Unpack[ClientOptions]) -> None:
        super().__init__(base_url=_url(base_url), api_key=api_key or _default_key(), **options)

    @cached_property
    def chat(self) -> StropChat:
        return StropChat(self)

    @cached_property
    def completions(self) -> StropTextCompletions:
        return StropTextCompletions(self)

    def model(self, name: str) -> dict[str, Any]:
        """What the server says of one model: its card, and the JSON schemas of the plugins it takes."""
        return self.get(_model_path(name), cast_to=dict[str, Any])

    def plugins(self) -> dict[str, Any]:
        """The plugins installed on the server, those that failed to import with their error. Needs an API key."""
        return self.get("/plugins", cast_to=dict[str, Any])

    def tokenize(self, text: str, *, model: str) -> list[int]:
        return self.post("/tokenize", body={"model": model, "prompt": text}, cast_to=Tokenized).tokens

    def detokenize(self, tokens: Sequence[int], *, model: str) -> str:
        body = {"model": model, "tokens": list(tokens)}
        return self.post("/detokenize", body=body, cast_to=Detokenized).prompt


class AsyncClient(openai.AsyncOpenAI):
    """`Client` for asyncio."""

    def __init__(self, *, base_url: str | None = None, api_key: str | None = None, **options: Unpack[ClientOptions]) -> None:
        super().__init__(base_url=_url(base_url), api_key=api_key or _default_key(), **options)

    @cached_property
    def chat(self) -> StropAsyncChat:
        return StropAsyncChat(self)

    @cached_property
    def completions(self) -> StropAsyncTextCompletions:
        return StropAsyncTextCompletions(self)

    async def model(self, name: str) -> dict[str, Any]:
        """What the server says of one model: its card, and the JSON schemas of the plugins it takes."""
        return await self.get(_model_path(name), cast_to=dict[str, Any])

    async def plugins(self) -> dict[str, Any]:
        """The plugins installed on the server, those that failed to import with their error. Needs an API key."""
        return await self.get("/plugins", cast_to=dict[str, Any])

    async def tokenize(self, text: str, *, model: str) -> list[int]:
        body = {"model": model, "prompt": text}
        return (await self.post("/tokenize", body=body, cast_to=Tokenized)).tokens

    async def detokenize(self, tokens: Sequence[int], *, model: str) -> str:
        body = {"model": model, "tokens": list(tokens)}
        return (await self.post("/detokenize", body=body, cast_to=Detokenized)).prompt


class Tokenized(openai.BaseModel):
    tokens: list[int]


class Detokenized(openai.BaseModel):
    prompt: str


def evidence(answer: ChatCompletion | ChatCompletionChunk | Completion) -> Evidence | None:
    """What the answer cost. In a stream the last chunk carries it; None where the answer has none."""
    told = ((answer.model_extra or {}).get("strop") or {}).get("evidence")
    if told is None:
        return None
    known = {field.name for field in dataclasses.fields(Evidence)}
    return Evidence(**{key: value for key, value in told.items() if key in known})


def _spelled(options: dict[str, Any]) -> dict[str, Any]:
    """Move strop's fields from the options of `create` into the body the openai client sends."""
    ours = {key: options.pop(key) for key in ("guidance", "sampler", "rerank") if key in options}
    body = {key: _as_json(value) for key, value in ours.items() if value is not None}
    return {**options, "extra_body": {**(options.get("extra_body") or {}), **body}}


def _as_json(choice: PluginChoice) -> Any:
    """Only what the caller set is sent: the server's defaults for the model fill the rest."""
    if isinstance(choice, Plugin):
        return {"name": choice.name, **choice.model_dump(mode="json", exclude_unset=True)}
    return choice


def _url(given: str | None) -> str:
    """An address without a path is a server's: its API stands at /v1."""
    url = str(given or os.environ.get("STROP_URL") or DEFAULT_URL)  # a copy of a client hands on a URL object
    return f"{url.rstrip('/')}/v1" if urlsplit(url).path in ("", "/") else url


def _default_key() -> str:
    """The openai client insists on a key; a server without keys ignores it."""
    return os.environ.get("STROP_API_KEY") or "no-key"


def _model_path(name: str) -> str:
    return f"/models/{quote(name, safe='/@:')}"
