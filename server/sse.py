"""Server-sent events as they leave the house: one write for all that is ready, nothing else on the way.

The response speaks ASGI itself. What Starlette's StreamingResponse adds to each chunk would cost more than encoding it.
"""

from __future__ import annotations

import logging
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from strop.contracts import Event
from strop.errors import EngineFailure, StropError
from strop.server.answers import Answers, unless_gone
from strop.server.wire.failures import failure_event

_log = logging.getLogger(__name__)


class Encoder(Protocol):
    def chunk(self, position: int, event: Event) -> bytes: ...

    def end(self) -> bytes: ...


class EventStream(Response):
    """Sends the answers as they come and cancels them when the client leaves.

    Nothing is sent before the first event, so that a request that fails at once still gets a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, encoder: Encoder, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._answers = answers
        self._encoder = encoder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send_all(send), self._answers.aclose)

    async def _send_all(self, send: Send) -> None:
        pieces = [self._encoder.chunk(*await anext(self._answers))]
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._send_events(send, pieces)
            pieces.append(self._encoder.end())
        except StropError as error:
            pieces.append(failure_event(error))
        except Exception:  # noqa: BLE001 - the status is sent; the stream can only say that it broke off
            _log.exception("a stream broke off")
            pieces.append(failure_event(EngineFailure("the server failed in the middle of this answer")))
        await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": False})

    async def _send_events(self, send: Send, pieces: list[bytes]) -> None:
        """Send all events; what is encoded and not sent yet is in `pieces`, at the end too."""
        while True:
            if not self._answers.ready and any(pieces):
                body, pieces[:] = b"".join(pieces), ()
                await send({"type": "http.response.body", "body": body, "more_body": True})
            try:
                position, event = await anext(self._answers)
            except StopAsyncIteration:
                return
            pieces.append(self._encoder.chunk(position, event))
