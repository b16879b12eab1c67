"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from strop.contracts import CompletionRequest
from strop.server.auth import Gate
from strop.server.house import Hosted, House
from strop.server.routes.reading import STREAMED, begin, collect, counted, documented, read_body
from strop.server.sse import EventStream
from strop.server.wire.chunks import CompletionChunks
from strop.server.wire.completions import CompletionBody, completion_request
from strop.server.wire.replies import Identity
from strop.server.wire.schemas import CompletionReply
from strop.server.wire.whole import CompletionWhole


def completion_routes(house: House, gate: Gate, body_type: type[CompletionBody]) -> APIRouter:
    router = APIRouter(dependencies=[Depends(gate)])

    @router.post("/v1/completions", response_model=CompletionReply, openapi_extra=documented(body_type), responses=STREAMED)
    async def create_completion(http: Request, tenant: str = Depends(gate)) -> Response:
        """Continue one text or several. With `stream`, `text/event-stream` of `text_completion` objects."""
        with counted(house):
            body, headers = await read_body(http, body_type, house)
            request = completion_request(body, house.config.server.limits, house.plugins, tenant=tenant)
        hosted, events = await begin(request, house)
        identity = Identity.fresh("cmpl", hosted.name, hosted.card)
        n, prompts, echoed = request.n, len(request.prompts), _echoed(request, hosted)
        if request.stream:
            usage = request.include_usage
            chunks = CompletionChunks(identity, n=n, prompts=prompts, echoed=echoed, include_usage=usage)
            return EventStream(events, chunks, headers=headers)
        scored = request.logprobs is not None
        whole = CompletionWhole(identity, n=n, prompts=prompts, echoed=echoed, scored=scored)
        return await collect(http, events, whole, headers)

    return router


def _echoed(request: CompletionRequest, hosted: Hosted) -> list[str]:
    """The prompts as text, where they are to be repeated."""
    if not request.echo:
        return []
    return [prompt if isinstance(prompt, str) else hosted.tokenizer.decode(prompt) for prompt in request.prompts]
