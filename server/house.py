"""Composition root: config → plugins, engines, schedulers. The only place that wires."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from strop.config import Config, ModelConfig, PluginChoice, Preset
from strop.contracts import Domain, Engine, Guidance, ModelCard, Sampler
from strop.errors import ConfigError, InvalidOption, ModelLoadError, ModelNotFound, NotReady, StropError, nearest, shorten
from strop.plugins import Plugins
from strop.server.executors.thread import ComputeThread, ThreadExecutor
from strop.server.metrics import Metrics
from strop.server.scheduler import Scheduler

if TYPE_CHECKING:
    from strop.server.models.tokenizer import Tokenizer

DEFAULT_SAMPLERS: Mapping[Domain, str] = {"causal": "tokens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request gets that does not say otherwise."""

    sampler: Sampler
    guidance: Guidance | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """One loaded model under one of its names: its own, or a preset's."""

    name: str
    card: ModelCard
    tokenizer: Tokenizer
    scheduler: Scheduler
    defaults: Defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One entry of /v1/models. `preset_of` is the model behind a preset. The mappings are name → JSON schema."""

    id: str
    card: ModelCard
    preset_of: str | None
    guidance: Mapping[str, dict[str, Any]]
    samplers: Mapping[str, dict[str, Any]]
    verifiers: Mapping[str, dict[str, Any]]


class House:
    """Everything one server process owns. `open` and `close` it once, on the event loop that serves."""

    def __init__(self, config: Config, *, plugins: Plugins | None = None) -> None:
        self.config = config
        self.plugins = Plugins.discover(os.environ) if plugins is None else plugins
        self.metrics = Metrics()
        self.draining = False
        self._opened = False
        self._thread = ComputeThread()
        self._tenants: Counter[str] = Counter()
        self._hosted: dict[str, Hosted] = {}
        self._listing: list[Listed] = []

    @property
    def ready(self) -> bool:
        """Whether all models are loaded and healthy, and requests are taken."""
        return self._opened and not self.draining and all(hosted.scheduler.healthy for hosted in self._hosted.values())

    async def open(self) -> None:
        """Load the models one after another, off the loop. Raises ConfigError, ModelLoadError among them."""
        for name, model in self.config.models.items():
            engine, tokenizer = await asyncio.wrap_future(self._thread.call(partial(self._load, name, model)))
            self._host(name, model, engine, tokenizer)
        self._opened = True

    async def close(self, drain_seconds: float | None = None) -> None:
        """Refuse what is new, let what runs finish for so long (default: the config's), abort the rest, stop the engines."""
        self.draining = True
        seconds = self.config.server.drain_seconds if drain_seconds is None else drain_seconds
        schedulers = {id(hosted.scheduler): hosted.scheduler for hosted in self._hosted.values()}.values()
        await asyncio.gather(*(scheduler.drain(seconds) for scheduler in schedulers))
        for scheduler in schedulers:
            scheduler.close()
        self._thread.close()

    def find(self, name: str) -> Hosted:
        """The model behind a name or preset, else `server.default_model`. Raises ModelNotFound, or NotReady while it loads."""
        if name in self._hosted:
            return self._hosted[name]
        known = [*self.config.models, *self.config.presets]
        if name in known:
            raise NotReady(f"the model {name!r} is still loading", param="model", retry_after=1)
        default = self.config.server.default_model
        if default is not None:
            return self.find(default)
        raise ModelNotFound(
            f"the model {shorten(repr(name))} does not exist; "
            f"this server has {', '.join(known) or 'none'}.{nearest(name, known)}",
            param="model",
        )

    def listing(self) -> list[Listed]:
        """Every name that requests may use now."""
        return list(self._listing)

    def _load(self, name: str, model: ModelConfig) -> tuple[Engine, Tokenizer]:
        load = self.plugins.load("engines", model.engine)
        try:
            return cast(
                "tuple[Engine, Tokenizer]", load(name, model, cache=self.config.cache, network=self.config.server.network)
            )
        except StropError:
            raise
        except Exception as error:
            raise ModelLoadError(f"models.{name}: {type(error).__name__}: {error}") from error

    def _host(self, name: str, model: ModelConfig, engine: Engine, tokenizer: Tokenizer) -> None:
        """Start the model's engine and give the model and its presets their names."""
        card = engine.card
        try:
            defaults = self._defaults(f"models.{name}.defaults", card.domain, model.defaults)
            own = replace(defaults, max_tokens=model.max_tokens)
            presets = {key: self._preset(key, card.domain, model, preset) for key, preset in self._presets_of(name)}
        except StropError:
            engine.close()
            raise
        executor = ThreadExecutor(engine, self._thread, observe=partial(self.metrics.observe, name))
        limits = self.config.server.limits
        scheduler = Scheduler(executor, limits=limits, metrics=self.metrics, tenants=self._tenants)
        scheduler.start()
        for key, chosen in {name: own, **presets}.items():
            self._hosted[key] = Hosted(name=key, card=card, tokenizer=tokenizer, scheduler=scheduler, defaults=chosen)
            self._listing.append(self._listed(key, card, preset_of=None if key == name else name))

    def _presets_of(self, model: str) -> list[tuple[str, Preset]]:
        return [(key, preset) for key, preset in self.config.presets.items() if key.partition("@")[0] == model]

    def _preset(self, key: str, domain: Domain, model: ModelConfig, preset: Preset) -> Defaults:
        """The model's defaults with the preset's choices over them. Another sampler brings its own defaults."""
        same = preset.sampler.get("name", DEFAULT_SAMPLERS[domain]) == model.defaults.get("name", DEFAULT_SAMPLERS[domain])
        options = {**(model.defaults if same else {}), **preset.sampler}
        defaults = self._defaults(f"presets.{key}", domain, options, preset.guidance)
        return replace(defaults, max_tokens=preset.max_tokens or model.max_tokens)

    def _defaults(
        self, path: str, domain: Domain, options: Mapping[str, Any], guidance: PluginChoice | None = None
    ) -> Defaults:
        try:
            sampler = self.plugins.build("samplers", {"name": DEFAULT_SAMPLERS[domain], **options}, domain=domain)
            steering = None if guidance is None else self.plugins.build("guidance", guidance, domain=domain)
        except InvalidOption as error:
            raise ConfigError(f"{path}: {error.message}") from error
        return Defaults(sampler=cast("Sampler", sampler), guidance=cast("Guidance | None", steering))

    def _listed(self, key: str, card: ModelCard, *, preset_of: str | None) -> Listed:
        return Listed(
            id=key,
            card=card,
            preset_of=preset_of,
            guidance=self.plugins.schemas("guidance", card.domain),
            samplers=self.plugins.schemas("samplers", card.domain),
            verifiers=self.plugins.schemas("verifiers", card.domain),
        )
