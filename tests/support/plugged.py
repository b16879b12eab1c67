"""Plugins that only tests install."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from strop.config import ModelConfig
from strop.contracts import Domain, Event, Guidance, PlanId
from strop.testing import StubEngine, StubTokenizer, stub_card


class Push(Guidance):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["push"] = "push"
    scale: float = Field(1.0, ge=0, description="How far.")


class Pull(Guidance):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["pull"] = "pull"


def load_broken(name: str, model: ModelConfig, *, cache: Path, network: bool) -> tuple[StubEngine, StubTokenizer]:
    """An engine whose third step fails, whatever runs."""

    class BrokenEngine(StubEngine):
        steps = 0

        def step(self) -> Sequence[tuple[PlanId, Event]]:
            self.steps += 1
            if self.steps >= 3:
                raise ZeroDivisionError("/srv/secret")
            return super().step()

    return BrokenEngine(stub_card(name)), StubTokenizer()


BROKEN_ENGINE = EntryPoint(name="broken", value="plugged:load_broken", group="strop.engines")
PUSH = EntryPoint(name="push", value="plugged:Push", group="strop.guidance")
PULL = EntryPoint(name="pull", value="plugged:Pull", group="strop.guidance")
MISFILED = EntryPoint(name="push", value="plugged:Push", group="strop.samplers")
STUB = EntryPoint(name="stub", value="strop.testing:load_stub", group="strop.engines")
TOKENS = EntryPoint(name="tokens", value="strop.samplers.tokens:Tokens", group="strop.samplers")
BROKEN = EntryPoint(name="broken", value="plugged:Nothing", group="strop.guidance")
