"""GET /v1/models, /v1/models/{model} and /v1/plugins."""

from __future__ import annotations

import asyncio
import dataclasses

from fastapi import APIRouter, Depends
from starlette.responses import Response

from strop.server.auth import Gate, KeyedGate
from strop.server.house import House
from strop.server.wire.failures import json_response
from strop.server.wire.models import model_detail, model_entry
from strop.server.wire.schemas import ModelDetail, ModelList, PluginList


def model_routes(house: House, gate: Gate) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", response_model=ModelList, dependencies=[Depends(gate)])
    async def list_models() -> Response:
        """The models and presets that requests may name."""
        return json_response({"object": "list", "data": [model_entry(listed) for listed in house.listing()]})

    @router.get("/v1/models/{model:path}", response_model=ModelDetail, dependencies=[Depends(gate)])
    async def retrieve_model(model: str) -> Response:
        """One model: its card, and the JSON schemas of the guidance, samplers and verifiers it takes."""
        name = house.find(model).name
        return json_response(model_detail(next(listed for listed in house.listing() if listed.id == name)))

    @router.get("/v1/plugins", response_model=PluginList, dependencies=[Depends(KeyedGate(gate))])
    async def list_plugins() -> Response:
        """Every plugin installed, with the error of those that cannot be imported. Needs a configured key."""
        found = await asyncio.to_thread(house.plugins.listing)
        return json_response({"object": "list", "data": [dataclasses.asdict(plugin) for plugin in found]})

    return router
