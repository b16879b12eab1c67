"""Skeleton of the interface; the body follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.config import Config
from strop.contracts import Guidance, ModelCard, Sampler
from strop.plugins import Plugins
from strop.server.models.tokenizer import Tokenizer
from strop.server.scheduler import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request gets that does not say otherwise."""

    sampler: Sampler
    guidance: Guidance | None
    max_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """One model that is loaded, under one of its names."""

    name: str
    card: ModelCard
    tokenizer: Tokenizer
    scheduler: Scheduler
    defaults: Defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One entry of /v1/models. `preset_of` is the model's name for a preset. The mappings are name → JSON schema."""

    id: str
    card: ModelCard
    preset_of: str | None
    guidance: Mapping[str, dict[str, Any]]
    samplers: Mapping[str, dict[str, Any]]
    verifiers: Mapping[str, dict[str, Any]]


class House:
    """Composition root: config → plugins, engines, schedulers."""

    config: Config
    plugins: Plugins
    ready: bool
    draining: bool

    def __init__(self, config: Config, *, plugins: Plugins | None = None) -> None: ...

    async def open(self) -> None: ...

    async def close(self, drain_seconds: float | None = None) -> None: ...

    def find(self, name: str) -> Hosted:
        raise KeyError(name)

    def listing(self) -> list[Listed]:
        return []
