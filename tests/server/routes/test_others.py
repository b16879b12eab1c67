from __future__ import annotations

import hashlib

import openai
import pytest
from plugged import BROKEN, PUSH, STUB, TOKENS
from prometheus_client.parser import text_string_to_metric_families
from stubhouse import HELLO, served

from strop.config import Config, ModelConfig, Preset, ServerConfig
from strop.plugins import Plugins
from strop.server.app import build_app
from strop.server.house import House, Listed
from strop.server.wire.models import model_detail
from strop.testing import stub_card, stub_config, stub_plugins

KEY = "sesame"
KEYED = ServerConfig(keys=(hashlib.sha256(KEY.encode()).hexdigest(),))
BEARER = {"authorization": f"Bearer {KEY}"}


async def test_models_are_listed_and_described_with_the_schemas_of_what_they_take() -> None:
    async with served(plugins=stub_plugins(PUSH)) as s:
        assert [model.id async for model in s.openai.models.list()] == ["stub"]
        model = await s.openai.models.retrieve("stub")
        assert model.model_extra is not None
        facts = model.model_extra["strop"]
        assert (facts["domain"], facts["context_length"], facts["preset_of"]) == ("causal", 512, None)
        assert facts["samplers"]["tokens"]["properties"]["temperature"]["maximum"] == 2
        assert facts["guidance"]["push"]["properties"]["scale"]["description"] == "How far."


async def test_a_model_that_is_not_there_is_404_with_the_nearest_name() -> None:
    async with served() as s:
        for name in ("stob", "a/b/stob", "..%2f..%2fetc%2fpasswd", "s" * 10_000):
            with pytest.raises(openai.NotFoundError) as caught:
                await s.openai.models.retrieve(name)
            assert caught.value.code == "model_not_found"
            assert len(caught.value.response.content) < 400


async def test_an_unknown_model_is_described_by_the_default_that_would_answer() -> None:
    async with served(ServerConfig(default_model="stub")) as s:
        assert (await s.openai.models.retrieve("gpt-4o")).id == "stub"


async def test_presets_are_models_with_a_slash_and_an_at_sign_in_their_names() -> None:
    config = Config(
        models={"org/stub": ModelConfig(engine="stub", source="stub")},
        presets={"org/stub@calm": Preset(sampler={"temperature": 0.1})},
    )
    house = House(config, plugins=stub_plugins())
    await house.open()
    async with served() as s:
        s.http._transport.app = build_app(house)  # type: ignore[attr-defined]
        detail = (await s.http.get("/v1/models/org/stub@calm")).json()
        assert (detail["id"], detail["strop"]["preset_of"]) == ("org/stub@calm", "org/stub")
        reply = await s.openai.chat.completions.create(model="org/stub@calm", messages=HELLO, max_tokens=2)
        assert reply.model == "org/stub@calm"
    await house.close(0)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/srv/tiny", "tiny"),
        ("./here/tiny.gguf", "tiny.gguf"),
        ("pypi:llm", "pypi:llm"),
        ("org/name", "org/name"),
    ],
)
def test_folders_of_the_server_are_not_shown(source: str, shown: str) -> None:
    import dataclasses

    card = dataclasses.replace(stub_card(), source=source)
    listed = Listed(id="m", card=card, preset_of=None, guidance={}, samplers={}, verifiers={})
    assert model_detail(listed)["strop"]["source"] == shown


async def test_plugins_are_for_configured_keys_only_and_tell_import_errors() -> None:
    async with served(plugins=Plugins([STUB, TOKENS, BROKEN])) as s:
        assert (await s.http.get("/v1/plugins")).status_code == 403
        assert (await s.http.get("/v1/plugins", headers=BEARER)).status_code == 403
    async with served(KEYED, plugins=Plugins([STUB, TOKENS, BROKEN])) as s:
        assert (await s.http.get("/v1/plugins")).status_code == 401
        listing = (await s.http.get("/v1/plugins", headers=BEARER)).json()
        errors = {plugin["name"]: plugin["error"] for plugin in listing["data"]}
        assert errors["tokens"] is None
        assert "Nothing" in errors["broken"]


async def test_tokens_come_and_go() -> None:
    async with served() as s:
        reply = (await s.post("/v1/tokenize", {"model": "stub", "prompt": "héy"})).json()
        assert reply == {"tokens": list("héy".encode()), "count": 4, "max_model_len": 512}
        back = await s.post("/v1/detokenize", {"model": "stub", "tokens": reply["tokens"]})
        assert back.json() == {"prompt": "héy"}
        chat = (await s.post("/v1/tokenize", {"model": "stub", "messages": HELLO})).json()
        assert chat["count"] == len("hello") + 2
        plain = await s.post("/v1/tokenize", {"model": "stub", "prompt": "", "add_special_tokens": False})
        assert plain.json()["tokens"] == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("tokenize", {"model": "stub"}, 400),
        ("tokenize", {"model": "stub", "prompt": "a", "messages": HELLO}, 400),
        ("tokenize", {"model": "stub", "messages": HELLO, "add_special_tokens": True}, 400),
        ("tokenize", {"model": "stub", "prompt": "a" * (512 * 32 + 1)}, 400),
        ("tokenize", {"model": "stub", "prompt": "a\0"}, 400),
        ("tokenize", {"model": "other", "prompt": "a"}, 404),
        ("detokenize", {"model": "stub", "tokens": [260]}, 400),
        ("detokenize", {"model": "stub", "tokens": [-1]}, 400),
        ("detokenize", {"model": "stub", "tokens": ["a"]}, 400),
        ("detokenize", {"model": "stub", "tokens": 5}, 400),
        ("detokenize", {"model": "other", "tokens": []}, 404),
    ],
)
async def test_token_routes_refuse_by_the_same_rules(path: str, body: dict[str, object], status: int) -> None:
    async with served() as s:
        reply = await s.post(f"/v1/{path}", body)
        assert reply.status_code == status
        assert reply.json()["error"]["code"]


async def test_ready_follows_the_house_and_health_does_not() -> None:
    house = House(stub_config(), plugins=stub_plugins())
    async with served() as s:
        s.http._transport.app = build_app(house)  # type: ignore[attr-defined]
        loading = await s.http.get("/ready")
        assert (loading.status_code, loading.headers["retry-after"]) == (503, "1")
        early = await s.post("/v1/chat/completions", {"model": "stub", "messages": HELLO})
        assert (early.status_code, early.json()["error"]["code"]) == (503, "not_ready")
        await house.open()
        assert (await s.http.get("/ready")).json() == {"status": "ready"}
        await house.close(0)
        draining = await s.http.get("/ready")
        assert (draining.status_code, draining.json()["error"]["message"]) == (503, "draining")
        assert (await s.http.get("/health")).json() == {"status": "alive"}


async def test_metrics_count_what_happened() -> None:
    async with served() as s:
        await s.openai.chat.completions.create(model="stub", messages=HELLO, max_tokens=5)
        await s.post("/v1/chat/completions", {"model": "stub", "messages": HELLO, "wrong": 1})
        await s.post("/v1/chat/completions", {"model": "stub", "messages": HELLO, "sampler": "nope"})
        await s.post("/v1/completions", {"model": "stub", "prompt": "a", "suffix": "b"})
        await s.post("/v1/tokenize", {"model": "stub"})
        reply = await s.http.get("/metrics")
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(reply.text)
            for sample in family.samples
        }
        assert samples["strop_generated_tokens_total", "stub"] == 5
        refusals = {name[1]: value for name, value in samples.items() if name[0] == "strop_refusals_total"}
        assert refusals == {"unknown_parameter": 1, "invalid_option": 1, "unsupported_parameter": 1, "invalid_value": 1}
        assert reply.headers["content-type"].startswith("text/plain")
