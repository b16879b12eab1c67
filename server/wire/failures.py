"""An error to the status, headers and body that OpenAI's clients expect."""

from __future__ import annotations

import math
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from strop.errors import StropError, Unauthorized

_KINDS = {404: ("invalid_request_error", "not_found"), 405: ("invalid_request_error", "method_not_allowed")}


def failure_body(error: StropError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def failure_headers(error: StropError) -> dict[str, str]:
    """`x-should-retry` settles what the openai client would otherwise guess from the status."""
    headers = {"x-should-retry": "true" if error.retry else "false"}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return headers


def failure_response(error: StropError) -> Response:
    return json_response(failure_body(error), status=error.status, headers=failure_headers(error))


def failure_event(error: StropError) -> bytes:
    """An error in the middle of a stream; the openai client raises it as an APIError."""
    return b"data: " + orjson.dumps(failure_body(error)) + b"\n\n"


def http_failure(error: HTTPException, asked: str) -> Response:
    """What the router itself refuses: unknown paths and methods. `asked` is the method and path of the request."""
    kind, code = _KINDS.get(error.status_code, ("invalid_request_error", "invalid_request"))
    message = f"{error.detail}: {asked} (/openapi.json lists what is here)"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    headers = {"x-should-retry": "false", **(error.headers or {})}
    return json_response(body, status=error.status_code, headers=headers)


def json_response(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type="application/json")
