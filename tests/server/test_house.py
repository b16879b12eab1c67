from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from strop.config import Config, ModelConfig, Preset, ServerConfig
from strop.contracts import ChatRequest, Delta, Domain, Done, Event, PlanId, Sampler
from strop.errors import Aborted, ConfigError, EngineFailure, ModelLoadError, ModelNotFound, NotReady, PluginError
from strop.server.executors.runner import FATAL_FAILURES
from strop.server.house import House
from strop.server.plan import resolve
from strop.testing import StubEngine, StubTokenizer, stub_card, stub_config, stub_plugins


class Greedy(Sampler):
    domains: ClassVar[frozenset[Domain]] = frozenset({"causal"})
    name: Literal["greedy"] = "greedy"


class Broken(StubEngine):
    def step(self) -> Sequence[tuple[PlanId, Event]]:
        raise RuntimeError("broken")


def load_broken(name: str, model: ModelConfig, *, cache: Path, network: bool) -> tuple[StubEngine, StubTokenizer]:
    return Broken(stub_card(name)), StubTokenizer()


def load_nothing(name: str, model: ModelConfig, *, cache: Path, network: bool) -> tuple[StubEngine, StubTokenizer]:
    raise OSError("disk")


def engine(name: str, attribute: str) -> EntryPoint:
    return EntryPoint(name=name, value=f"{__name__}:{attribute}", group="strop.engines")


PLUGINS = stub_plugins(
    engine("broken", "load_broken"),
    engine("nothing", "load_nothing"),
    EntryPoint(name="greedy", value=f"{__name__}:Greedy", group="strop.samplers"),
)


def house(**fields: Any) -> House:
    return House(Config.model_validate(fields), plugins=PLUGINS)


def models(*names: str, **options: Any) -> dict[str, ModelConfig]:
    return {name: ModelConfig.model_validate({"engine": "stub", "source": "stub", **options}) for name in names}


def ask(model: str, max_tokens: int = 4) -> ChatRequest:
    return ChatRequest(model=model, messages=({"role": "user", "content": "hi"},), max_tokens=max_tokens)


async def test_a_house_opens_answers_and_closes_without_a_trace() -> None:
    before = threading.active_count()
    home = House(stub_config(), plugins=stub_plugins())
    assert not home.ready
    await home.open()
    assert home.ready
    [stream] = home.find("stub").scheduler.submit(resolve(ask("stub"), home))
    assert isinstance([event async for event in stream][-1], Done)
    await home.close()
    await home.close()
    assert not home.ready
    assert home.draining
    loop_threads = sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())
    assert threading.active_count() - loop_threads <= before


async def test_the_loop_is_free_while_models_load() -> None:
    home = house(models=models("a", "b"))
    opening = asyncio.create_task(home.open())
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="loading"):
        home.find("b")
    await opening
    assert home.find("b").card.name == "b"
    await home.close(0)


async def test_close_aborts_what_does_not_finish_in_time() -> None:
    home = house(models=models("a", source="stub:0.01", context_length=5000))
    await home.open()
    [stream] = home.find("a").scheduler.submit(resolve(ask("a", max_tokens=4000), home))
    await home.close(0)
    with pytest.raises(Aborted):
        async for _ in stream:
            pass


async def test_a_storm_of_readers_that_leave_keeps_no_row_and_harms_no_other() -> None:
    home = house(models=models("a", source="stub:0.0005"))
    await home.open()
    scheduler = home.find("a").scheduler

    async def reader(number: int) -> str:
        [stream] = scheduler.submit(resolve(replace(ask("a", max_tokens=12), seed=number % 3), home))
        text, patience = "", number % 7 if number % 2 else 99
        async with stream:
            async for event in stream:
                text += event.text if isinstance(event, Delta) else ""
                patience -= 1
                if not patience:
                    return "left"
        return text

    answers = await asyncio.gather(*(reader(number) for number in range(200)))
    stayed = [answer for number, answer in enumerate(answers) if number % 2 == 0]
    assert len(set(stayed)) == 3
    assert all(len(answer) == 12 for answer in stayed)
    assert "left" in answers
    assert scheduler.in_flight == 0
    async with asyncio.timeout(5):
        while scheduler.capacity.running_rows:  # noqa: ASYNC110 - an engine tells no event of ours
            await asyncio.sleep(0.001)
    await home.close(0)


async def test_names_presets_and_the_default_model() -> None:
    presets = {"a@cool": Preset(sampler={"temperature": 0.1}), "a@long": Preset(max_tokens=9)}
    home = house(
        models=models("a", defaults={"top_p": 0.5}, max_tokens=7), presets=presets, server=ServerConfig(default_model="a@cool")
    )
    await home.open()
    own, cool, long = (home.find(name) for name in ("a", "a@cool", "a@long"))
    assert own.scheduler is cool.scheduler
    assert own.defaults.sampler.model_dump(exclude_unset=True) == {"name": "tokens", "top_p": 0.5}
    assert cool.defaults.sampler.model_dump(exclude_unset=True) == {"name": "tokens", "top_p": 0.5, "temperature": 0.1}
    assert [found.defaults.max_tokens for found in (own, cool, long)] == [7, 7, 9]
    assert home.find("gpt-4o") is cool
    await home.close(0)


async def test_a_preset_with_another_sampler_leaves_the_model_s_options_behind() -> None:
    home = house(models=models("a", defaults={"top_p": 0.5}), presets={"a@g": Preset(sampler={"name": "greedy"})})
    await home.open()
    assert home.find("a@g").defaults.sampler == Greedy()
    await home.close(0)


async def test_an_unknown_model_gets_the_nearest_name() -> None:
    home = house(models=models("smollm2"))
    await home.open()
    with pytest.raises(ModelNotFound, match="Did you mean 'smollm2'") as refusal:
        home.find("smolm2")
    assert refusal.value.param == "model"
    await home.close(0)


async def test_the_listing_shows_every_name_with_what_it_takes() -> None:
    home = house(models=models("a", "b"), presets={"a@x": Preset()})
    await home.open()
    assert [(entry.id, entry.preset_of) for entry in home.listing()] == [("a", None), ("a@x", "a"), ("b", None)]
    assert "temperature" in home.listing()[0].samplers["tokens"]["properties"]
    await home.close(0)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"models": models("a", engine="nothing")}, ModelLoadError, "models.a: OSError: disk"),
        ({"models": models("a", source="weights.bin")}, ModelLoadError, "weights.bin"),
        ({"models": models("a", engine="stubb")}, PluginError, "Did you mean 'stub'"),
        (
            {"models": models("a", defaults={"temprature": 1})},
            ConfigError,
            r"models\.a\.defaults: sampler\.temprature.*'temperature'",
        ),
        ({"models": models("a"), "presets": {"a@x": Preset(guidance="w2sd")}}, ConfigError, r"presets\.a@x: 'w2sd'"),
    ],
)
async def test_what_cannot_be_hosted_is_told_by_its_place_in_the_file(fields: dict[str, Any], kind: type, message: str) -> None:
    home = house(**fields)
    with pytest.raises(kind, match=message):
        await home.open()
    assert not home.ready
    await home.close(0)


async def test_a_broken_engine_makes_the_house_not_ready_and_goes_on_answering() -> None:
    home = house(models=models("a", engine="broken"))
    await home.open()
    for _ in range(FATAL_FAILURES):
        [stream] = home.find("a").scheduler.submit(resolve(ask("a"), home))
        with pytest.raises(EngineFailure):
            await anext(stream)
    assert not home.ready
    await home.close(0)


def test_a_house_discovers_plugins_by_itself() -> None:
    assert "causal" in House(Config()).plugins.names("engines")
