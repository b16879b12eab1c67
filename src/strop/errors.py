"""Every error strop raises on purpose, with the HTTP status, the OpenAI error type and code it becomes on the wire.

The openai SDK retries 408, 409, 429 and >= 500 on its own unless told otherwise, so each class says whether a retry can help.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class StropError(Exception):
    """Root of the tree. `param` names the offending field of the request; `retry_after` is in seconds."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"
    retry: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code


class InvalidRequest(StropError):
    """The request's shape or values are off, whatever the model."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class Unsupported(InvalidRequest):
    """A field of OpenAI's API that we know and cannot honour."""

    code = "unsupported_parameter"


class ContextTooLong(InvalidRequest):
    """Prompt and answer do not fit the model's context, or the engine's whole cache."""

    code = "context_length_exceeded"


class InvalidOption(StropError):
    """An unknown or conflicting option inside `guidance`, `sampler` or `rerank`."""

    status, type, code = 422, "invalid_request_error", "invalid_option"


class Unauthorized(StropError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(StropError):
    status, type, code = 403, "permission_error", "forbidden"


class ModelNotFound(StropError):
    status, type, code = 404, "invalid_request_error", "model_not_found"


class RequestTooLarge(StropError):
    """The body has more bytes than the server reads."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class UnsupportedMediaType(StropError):
    """The body is not announced as JSON."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class RateLimited(StropError):
    """This key has as many requests under way as it may have."""

    status, type, code, retry = 429, "rate_limit_error", "rate_limit_exceeded", True


class Overloaded(StropError):
    """The server's queue is full."""

    status, type, code, retry = 503, "server_error", "overloaded", True


class NotReady(StropError):
    """Models are still loading, or the server is draining."""

    status, type, code, retry = 503, "server_error", "not_ready", True


class Aborted(StropError):
    """The request was under way when the server stopped."""

    status, type, code, retry = 503, "server_error", "aborted", True


class EngineFailure(StropError):
    """This request failed inside the engine. A retry would fail the same way."""

    status, type, code = 500, "server_error", "engine_failure"


class ConfigError(StropError):
    """The configuration or a command line is wrong. Never reaches the wire."""

    code = "config_error"


class ModelLoadError(ConfigError):
    """A model's source cannot be loaded, or is refused (code, pickle, unknown shape)."""

    code = "model_load_error"


class PluginError(ConfigError):
    """A plugin cannot be imported, or two distributions claim one name."""

    code = "plugin_error"


class MessageError(StropError):
    """Bytes between processes that are no message, or an object that cannot become one. Never reaches the wire."""

    code = "message_error"


class KernelError(StropError):
    """A kernel was given arguments it cannot take, or an explicitly requested path is unavailable."""

    code = "kernel_error"


def shorten(text: str, size: int = 80) -> str:
    """`text`, cut where it is longer than a message should repeat."""
    return text if len(text) <= size else text[:size] + "…"


def nearest(word: str, valid: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the valid word closest to `word`, or `""`."""
    close = difflib.get_close_matches(word, list(valid), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
