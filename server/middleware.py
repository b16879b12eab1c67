"""The outermost layer of the app, in plain ASGI: a request id on every response, a cap on every body, and no error escapes."""

from __future__ import annotations

import logging
import re
import uuid

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from strop.errors import RequestTooLarge, StropError
from strop.server.wire.failures import failure_response

_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


class Boundary:
    """Wraps the routes. A client's own `x-request-id` is kept where it is safe to log and to send back."""

    def __init__(self, app: ASGIApp, *, body_bytes: int) -> None:
        self._app = app
        self._body_bytes = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        started = False

        async def tagged(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            self._check_announced(headers.get(b"content-length", b"0"))
            await self._app(scope, self._capped(receive), tagged)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the last place that can answer
            failure = error if isinstance(error, StropError) else _unforeseen(request_id.decode(), error)
            if not started:
                response = failure_response(failure)
                response.headers["connection"] = "close"
                await response(scope, receive, tagged)

    def _check_announced(self, length: bytes) -> None:
        if not length.isdigit() or int(length[:20]) > self._body_bytes:
            raise self._too_large()

    def _capped(self, receive: Receive) -> Receive:
        """`receive` that counts what comes, for bodies whose length is not announced."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"the body has more than {self._body_bytes} bytes")


def _request_id(sent: bytes) -> bytes:
    return sent if _SAFE_ID.fullmatch(sent) else b"req_" + uuid.uuid4().hex.encode()


def _unforeseen(request_id: str, error: Exception) -> StropError:
    """What the client hears of an error nobody planned for; the rest is for the log."""
    _log.error("request %s failed", request_id, exc_info=error)
    return StropError(f"the server failed to handle this request; its log has more under {request_id}")
