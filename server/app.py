"""The ASGI app of a house: routes behind their gates, errors in OpenAI's shape, and a true /openapi.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from strop.errors import StropError
from strop.server.auth import PUBLIC, Gate, check_guarded
from strop.server.house import House
from strop.server.middleware import Boundary
from strop.server.routes.chat import chat_routes
from strop.server.routes.completions import completion_routes
from strop.server.routes.models import model_routes
from strop.server.routes.status import status_routes
from strop.server.routes.tokens import token_routes
from strop.server.wire.chat import chat_body
from strop.server.wire.completions import completion_body
from strop.server.wire.failures import failure_response, http_failure
from strop.server.wire.schemas import ErrorReply
from strop.server.wire.tokens import DetokenizeBody, TokenizeBody

FAILURES: Final = {
    400: "The request's shape or values are off, or a field cannot be honoured.",
    401: "No valid API key.",
    403: "Not for callers without a configured key.",
    404: "No such model or path.",
    405: "No such method here.",
    413: "The body is too large.",
    415: "The body is not announced as JSON.",
    422: "An option of guidance or sampler is unknown or in conflict.",
    429: "This key has too many requests under way; see Retry-After.",
    500: "The server failed.",
    503: "The server is full, loading or draining; see Retry-After.",
}


class Api(FastAPI):
    """FastAPI whose document includes the bodies that our routes read themselves, and keys only where there are any."""

    bodies: Sequence[type[BaseModel]] = ()
    keyed: bool = False

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = self._document()
        return self.openapi_schema

    def _document(self) -> dict[str, Any]:
        document = super().openapi()
        wanted: list[tuple[type[BaseModel], Literal["validation"]]] = [(body, "validation") for body in self.bodies]
        _, schemas = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= schemas["$defs"]
        if self.keyed:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path in document["paths"].keys() - PUBLIC:
                for operation in document["paths"][path].values():
                    operation["security"] = [{"key": []}]
        return document


def build_app(house: House) -> FastAPI:
    """The app for a house, which the caller opens and closes."""
    server = house.config.server
    app = Api(
        title="strop",
        openapi_url=None,
        redirect_slashes=False,
        responses={status: {"model": ErrorReply, "description": text} for status, text in FAILURES.items()},
    )
    app.add_middleware(Boundary, body_bytes=server.limits.body_bytes)
    app.add_exception_handler(StropError, _strop_failure)
    app.add_exception_handler(HTTPException, _http_failure)
    gate = Gate(server.keys, metrics=house.metrics)
    chat, completion = chat_body(server.limits, house.plugins), completion_body(server.limits, house.plugins)
    app.bodies, app.keyed = (chat, completion, TokenizeBody, DetokenizeBody), not gate.open
    app.include_router(chat_routes(house, gate, chat))
    app.include_router(completion_routes(house, gate, completion))
    app.include_router(model_routes(house, gate))
    app.include_router(token_routes(house, gate))
    app.include_router(status_routes(house, gate))
    check_guarded(app)
    return app


async def _strop_failure(_request: Request, error: Exception) -> Response:
    return failure_response(error if isinstance(error, StropError) else StropError("the server failed"))


async def _http_failure(request: Request, error: Exception) -> Response:
    asked = f"{request.method} {request.scope['path']}"
    return http_failure(error if isinstance(error, HTTPException) else HTTPException(500), asked)
