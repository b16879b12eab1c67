"""POST /v1/tokenize and /v1/detokenize."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from strop.errors import ContextTooLong, InvalidRequest
from strop.server.auth import Gate
from strop.server.house import Hosted, House
from strop.server.plan import CHARS_PER_TOKEN
from strop.server.routes.reading import counted, documented, read_body
from strop.server.wire.failures import json_response
from strop.server.wire.schemas import Detokenized, Tokenized
from strop.server.wire.tokens import DetokenizeBody, TokenizeBody


def token_routes(house: House, gate: Gate) -> APIRouter:
    router = APIRouter(dependencies=[Depends(gate)])

    @router.post("/v1/tokenize", response_model=Tokenized, openapi_extra=documented(TokenizeBody))
    async def tokenize(http: Request) -> Response:
        """The token ids of a text or of a conversation."""
        with counted(house):
            body, headers = await read_body(http, TokenizeBody, house)
            body.check()
        hosted = house.find(body.model)
        tokens = await asyncio.to_thread(_tokens, body, hosted)
        reply = {"tokens": tokens, "count": len(tokens), "max_model_len": hosted.card.context_length}
        return json_response(reply, headers=headers)

    @router.post("/v1/detokenize", response_model=Detokenized, openapi_extra=documented(DetokenizeBody))
    async def detokenize(http: Request) -> Response:
        """The text of token ids."""
        with counted(house):
            body, headers = await read_body(http, DetokenizeBody, house)
        hosted = house.find(body.model)
        last = hosted.card.vocabulary - 1
        if body.tokens and max(body.tokens) > last:
            raise InvalidRequest(f"tokens: {max(body.tokens)} is no token id; the model's last is {last}", param="tokens")
        text = await asyncio.to_thread(hosted.tokenizer.decode, body.tokens)
        return json_response({"prompt": text}, headers=headers)

    return router


def _tokens(body: TokenizeBody, hosted: Hosted) -> list[int]:
    messages = [message.template_fields() for message in body.messages or ()]
    chars = len(body.prompt or "") + sum(len(text) for message in messages for text in message.values())
    if chars > hosted.card.context_length * CHARS_PER_TOKEN:
        raise ContextTooLong(f"{chars} characters; this model reads {hosted.card.context_length} tokens")
    if body.prompt is None:
        return hosted.tokenizer.chat(messages)
    return hosted.tokenizer.encode(body.prompt, special=body.add_special_tokens is not False)
