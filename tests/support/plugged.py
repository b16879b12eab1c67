"""Plugins that only tests install."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import ClassVar, Literal

from pydantic import Field

from strop.contracts import Domain, Guidance


class Push(Guidance):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["push"] = "push"
    scale: float = Field(1.0, ge=0, description="How far.")


class Pull(Guidance):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["pull"] = "pull"


PUSH = EntryPoint(name="push", value="plugged:Push", group="strop.guidance")
PULL = EntryPoint(name="pull", value="plugged:Pull", group="strop.guidance")
MISFILED = EntryPoint(name="push", value="plugged:Push", group="strop.samplers")
STUB = EntryPoint(name="stub", value="strop.testing:load_stub", group="strop.engines")
TOKENS = EntryPoint(name="tokens", value="strop.samplers.tokens:Tokens", group="strop.samplers")
BROKEN = EntryPoint(name="broken", value="plugged:Nothing", group="strop.guidance")
