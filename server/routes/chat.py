"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from strop.server.auth import Gate
from strop.server.house import House
from strop.server.routes.reading import STREAMED, begin, collect, counted, documented, read_body
from strop.server.sse import EventStream
from strop.server.wire.chat import ChatCompletionBody, chat_request
from strop.server.wire.chunks import CHAT, Chunks
from strop.server.wire.replies import Identity
from strop.server.wire.schemas import ChatCompletionReply
from strop.server.wire.whole import Whole


def chat_routes(house: House, gate: Gate, body_type: type[ChatCompletionBody]) -> APIRouter:
    router = APIRouter(dependencies=[Depends(gate)])

    @router.post(
        "/v1/chat/completions", response_model=ChatCompletionReply, openapi_extra=documented(body_type), responses=STREAMED
    )
    async def create_chat_completion(http: Request, tenant: str = Depends(gate)) -> Response:
        """Answer a conversation. With `stream`, `text/event-stream` of `chat.completion.chunk` objects."""
        with counted(house):
            body, headers = await read_body(http, body_type, house)
            request = chat_request(body, house.config.server.limits, house.plugins, tenant=tenant)
        hosted, events = await begin(request, house)
        identity = Identity.fresh("chatcmpl", hosted.name, hosted.card)
        if request.stream:
            chunks = Chunks(identity, CHAT, n=request.n, include_usage=request.include_usage)
            return EventStream(events, chunks, headers=headers)
        return await collect(http, events, Whole(identity, n=request.n, scored=request.logprobs is not None), headers)

    return router
