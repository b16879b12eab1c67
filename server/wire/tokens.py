"""The bodies of /v1/tokenize and /v1/detokenize."""

from __future__ import annotations

from pydantic import Field

from strop.errors import InvalidRequest
from strop.server.wire.chat import Message
from strop.server.wire.fields import Body, TokenId


class TokenizeBody(Body):
    """A text, or a conversation as the model's chat template writes it."""

    model: str = Field(min_length=1, max_length=256, description="A name from `/v1/models`.")
    prompt: str | None = Field(None, description="The text. Either this or `messages`.")
    messages: list[Message] | None = Field(None, min_length=1, fail_fast=True, description="The conversation.")
    add_special_tokens: bool | None = Field(None, description="What the model expects around a text; default true.")

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give either prompt or messages", param="prompt")
        if self.messages is not None and self.add_special_tokens is not None:
            raise InvalidRequest("add_special_tokens goes with prompt only", param="add_special_tokens")


class DetokenizeBody(Body):
    """Token ids to text."""

    model: str = Field(min_length=1, max_length=256, description="A name from `/v1/models`.")
    tokens: list[TokenId] = Field(fail_fast=True, description="Token ids of the model.")
