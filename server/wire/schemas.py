"""The shapes of answers, for /openapi.json. Nothing is validated against them at run time; the tests do that."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="The field at fault, as a path into the body.")
    code: str


class ErrorReply(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="Prompt tokens that needed no computing.")


class UsageReply(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class EvidenceReply(BaseModel):
    """What the answer cost."""

    seconds: float = Field(description="Time in the engine.")
    steps: int = Field(description="Forwards the answer took part in.")
    nfe: dict[str, int] = Field(description="Network rows evaluated, by role.")
    kernels: dict[str, str] = Field(description="The path taken by each fused operation.")


class StropReply(BaseModel):
    """What strop adds to OpenAI's answer."""

    evidence: EvidenceReply


class TokenReply(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ScoredTokenReply(TokenReply):
    top_logprobs: list[TokenReply]


class ChatLogprobs(BaseModel):
    content: list[ScoredTokenReply]
    refusal: None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Reply(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: UsageReply
    strop: StropReply


class ChatCompletionReply(Reply):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionReply(Reply):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelReply(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelReply]


class ModelFacts(BaseModel):
    """The model's card, and the JSON schema of every plugin it takes."""

    domain: str
    engine: str
    source: str
    dtype: str
    context_length: int
    vocabulary: int
    roles: list[str]
    capabilities: list[str]
    preset_of: str | None
    guidance: dict[str, Any]
    samplers: dict[str, Any]
    verifiers: dict[str, Any]


class ModelDetail(ModelReply):
    strop: ModelFacts


class PluginReply(BaseModel):
    group: str
    name: str
    target: str
    distribution: str
    version: str
    error: str | None = Field(description="Why the plugin cannot be used.")


class PluginList(BaseModel):
    object: Literal["list"]
    data: list[PluginReply]


class Tokenized(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int = Field(description="Tokens the model reads at most.")


class Detokenized(BaseModel):
    prompt: str


class Status(BaseModel):
    status: str
