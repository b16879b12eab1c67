"""Who may call: bearer keys, known by their digests only. Each route states its need; nothing depends on a path's beginning."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request

from strop.errors import ConfigError, Forbidden, Unauthorized
from strop.server.metrics import Metrics

PUBLIC: Final = frozenset({"/health", "/ready"})
"""The only routes that answer without a key once keys are configured."""
TENANT_LETTERS: Final = 16


class Gate:
    """A dependency of routes: lets a request pass and says whose it is, or raises Unauthorized."""

    def __init__(self, digests: Sequence[str], *, metrics: Metrics) -> None:
        self._digests = tuple(bytes.fromhex(digest) for digest in digests)
        self._metrics = metrics

    @property
    def open(self) -> bool:
        """Whether no key is configured."""
        return not self._digests

    async def __call__(self, http: Request) -> str:
        """The tenant: a short digest of the key, or "" where the server has none."""
        if self.open:
            self._refuse_pages(http.headers.get("origin"))
            return ""
        digest = hashlib.sha256(_key(http)).digest()
        known = [hmac.compare_digest(digest, other) for other in self._digests]
        if not any(known):
            self._metrics.refused(Unauthorized.code)
            raise Unauthorized("a valid API key is needed: send it as `Authorization: Bearer KEY`")
        return digest.hex()[:TENANT_LETTERS]

    def _refuse_pages(self, origin: str | None) -> None:
        """Without keys only pages from localhost or a numeric address may call: a name can be rebound to this machine."""
        if origin is not None and not _is_address(origin):
            self._metrics.refused(Forbidden.code)
            raise Forbidden("web pages of other hosts may not call a server without API keys")


class KeyedGate:
    """A dependency of routes that answer to configured keys only, never to everybody."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __call__(self, http: Request) -> str:
        if self._gate.open:
            raise Forbidden("this needs an API key, and the server has none configured (server.keys)")
        return await self._gate(http)


def check_guarded(app: FastAPI) -> None:
    """Refuse an app with a route that is neither behind a gate nor on the public list."""
    for route in app.routes:
        if getattr(route, "path", None) in PUBLIC:
            continue
        if not (isinstance(route, APIRoute) and _guarded(route.dependant)):
            raise ConfigError(f"the route {route!r} has no gate and is not public")


def _guarded(dependant: Dependant) -> bool:
    return isinstance(dependant.call, Gate | KeyedGate) or any(_guarded(inner) for inner in dependant.dependencies)


def _is_address(origin: str) -> bool:
    """Whether an origin's host is one that DNS cannot rebind."""
    with suppress(ValueError):
        host = urlsplit(origin).hostname or ""
        return host == "localhost" or bool(ip_address(host))
    return False


def _key(http: Request) -> bytes:
    """The key's bytes as they were sent (headers are decoded as Latin-1); empty for any scheme but Bearer."""
    scheme, _, key = http.headers.get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
