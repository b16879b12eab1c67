"""What routes with a JSON body share: reading it, documenting it, and starting the work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from strop.contracts import ChatRequest, CompletionRequest
from strop.errors import StropError, UnsupportedMediaType
from strop.server.answers import Answers, answers, unless_gone
from strop.server.house import Hosted, House
from strop.server.plan import resolve
from strop.server.wire.body import decode, validate
from strop.server.wire.failures import json_response
from strop.server.wire.whole import Whole

Body = TypeVar("Body", bound=BaseModel)
IGNORED_HEADER = "x-strop-ignored"
CLIENT_CLOSED = 499
LARGE = 1 << 18
"""Bytes from which a body is read beside the loop, so that running streams do not stall."""
STREAMED: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""What an operation answers besides JSON, where the body says `stream`."""


@contextmanager
def counted(house: House) -> Iterator[None]:
    """Counts a refusal inside the block; `resolve` and `submit` count their own."""
    try:
        yield
    except StropError as error:
        house.metrics.refused(error.code)
        raise


async def read_body(http: Request, model: type[Body], house: House) -> tuple[Body, dict[str, str]]:
    """The validated body, and headers for the answer: the fields that were ignored, where the server is lenient."""
    raw = await http.body()
    lenient = house.config.server.compat == "lenient"
    _check_type(http.headers.get("content-type", ""))
    if len(raw) < LARGE:
        body, ignored = validate(model, decode(raw), lenient=lenient)
    else:
        body, ignored = await asyncio.to_thread(lambda: validate(model, decode(raw), lenient=lenient))
    return body, {IGNORED_HEADER: ", ".join(ignored)} if ignored else {}


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """The body's part of an operation in /openapi.json; `app.Api` adds the schema that it names."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def begin(request: ChatRequest | CompletionRequest, house: House) -> tuple[Hosted, Answers]:
    """Plan and submit a request. A long prompt is tokenised beside the loop, not on it."""
    plans = await asyncio.to_thread(resolve, request, house)
    hosted = house.find(request.model)
    return hosted, answers(hosted.scheduler.submit(plans))


async def collect(http: Request, events: Answers, whole: Whole, headers: dict[str, str]) -> Response:
    """The complete answer as one body. If the client leaves, the work is cancelled and nobody hears the rest."""

    async def gather() -> Whole:
        async for position, event in events:
            whole.add(position, event)
        return whole

    complete = await unless_gone(http.receive, gather(), events.aclose)
    return Response(status_code=CLIENT_CLOSED) if complete is None else json_response(complete.body(), headers=headers)


def _check_type(content_type: str) -> None:
    """JSON only: a web page can post other types to a local server without asking first."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType("send the body as JSON, with `Content-Type: application/json`")
