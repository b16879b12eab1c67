"""GET /health, /ready, /metrics and /openapi.json."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from strop.errors import NotReady
from strop.server.auth import Gate
from strop.server.house import House
from strop.server.metrics import CONTENT_TYPE
from strop.server.wire.failures import json_response
from strop.server.wire.schemas import Status


def status_routes(house: House, gate: Gate) -> APIRouter:
    router = APIRouter()

    @router.get("/health", response_model=Status)
    async def health() -> Response:
        """The process is alive."""
        return json_response({"status": "alive"})

    @router.get("/ready", response_model=Status)
    async def ready() -> Response:
        """All models are loaded and requests are taken; 503 otherwise."""
        if not house.ready:
            raise NotReady("draining" if house.draining else "a model is loading or has failed", retry_after=1)
        return json_response({"status": "ready"})

    @router.get("/metrics", response_class=Response, dependencies=[Depends(gate)])
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        return Response(house.metrics.render(), headers={"content-type": CONTENT_TYPE})

    @router.get("/openapi.json", dependencies=[Depends(gate)], include_in_schema=False)
    async def openapi(http: Request) -> Response:
        """This document."""
        return json_response(http.app.openapi())

    return router
