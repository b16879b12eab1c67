"""Plans and events as bytes: what an engine in another process is told, and what it answers.

A message is a msgpack array `[class name, {field: value}]`. The classes are a closed list and nothing is ever imported or
called by name, except plugins that are installed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final, TypeAlias

import msgpack
from pydantic import TypeAdapter, ValidationError

from strop.contracts import Delta, Done, Failed, Plan, Plugin, PromptScored, TextPlan
from strop.errors import InvalidOption, MessageError
from strop.plugins import Group, Plugins

Message: TypeAlias = Plan | Delta | PromptScored | Done | Failed
KINDS: Final = (Plan, TextPlan, Delta, PromptScored, Done, Failed)
PLUGINS: Final[Mapping[str, Group]] = {"guidance": "guidance", "sampler": "samplers"}
MAX_BYTES: Final = 64 << 20


class Codec:
    """Encodes and decodes the messages of one process, whose plugins it knows."""

    def __init__(self, plugins: Plugins, *, max_bytes: int = MAX_BYTES) -> None:
        self._plugins = plugins
        self._max_bytes = max_bytes
        self._adapters: dict[str, TypeAdapter[Message]] = {kind.__name__: TypeAdapter(kind) for kind in KINDS}

    def encode(self, message: Message) -> bytes:
        """Raises MessageError for what does not fit into a message."""
        try:
            data: bytes = msgpack.packb([type(message).__name__, message], default=_plain)
        except (TypeError, ValueError, OverflowError) as error:
            raise MessageError(f"a {type(message).__name__} cannot be encoded: {error}") from error
        self._check_size(data)
        return data

    def decode(self, data: bytes) -> Message:
        """Raises MessageError for anything that `encode` does not produce."""
        self._check_size(data)
        try:
            kind, values = msgpack.unpackb(data, strict_map_key=False)
            return self._adapters[kind].validate_python(self._with_plugins(values))
        except (ValidationError, InvalidOption) as error:
            raise MessageError(f"a message does not fit its class: {error}") from error
        except Exception as error:
            raise MessageError(f"not a message: {type(error).__name__}") from error

    def _with_plugins(self, values: dict[str, Any]) -> dict[str, Any]:
        built = {
            field: self._plugins.build(group, values[field])
            for field, group in PLUGINS.items()
            if isinstance(values.get(field), dict)
        }
        return {**values, **built}

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._max_bytes:
            raise MessageError(f"a message of {len(data)} bytes; at most {self._max_bytes} are allowed")


def _plain(value: object) -> dict[str, Any]:
    """What msgpack cannot pack by itself, as a mapping."""
    if isinstance(value, Plugin):
        return {"name": value.name, **value.model_dump(exclude_unset=True)}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no part of a message")
