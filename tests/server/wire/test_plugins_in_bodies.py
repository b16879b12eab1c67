from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest
from plugged import BROKEN, MISFILED, PULL, PUSH, Push

from strop.config import Limits
from strop.contracts import ChatRequest
from strop.errors import InvalidOption
from strop.server.wire.body import validate
from strop.server.wire.chat import chat_body, chat_request
from strop.testing import stub_plugins

LIMITS = Limits()


def chat(points: tuple[EntryPoint, ...], **fields: Any) -> ChatRequest:
    plugins = stub_plugins(*points)
    value = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    body, _ = validate(chat_body(LIMITS, plugins), value)
    return chat_request(body, LIMITS, plugins, tenant="")


@pytest.mark.parametrize("points", [(PUSH,), (PUSH, PULL)])
def test_guidance_comes_by_name_or_with_options(points: tuple[EntryPoint, ...]) -> None:
    assert chat(points, guidance="push").guidance == Push()
    assert chat(points, guidance={"name": "push", "scale": 3}).guidance == Push(scale=3)
    assert chat(points, guidance=None).guidance is None


@pytest.mark.parametrize("points", [(PUSH,), (PUSH, PULL)])
def test_wrong_options_are_refused_by_path(points: tuple[EntryPoint, ...]) -> None:
    for guidance, param in [({"name": "push", "scal": 3}, "guidance.scal"), ({"name": "push", "scale": -1}, "guidance.scale")]:
        with pytest.raises(InvalidOption) as caught:
            chat(points, guidance=guidance)
        assert caught.value.param == param


def test_the_schema_tells_every_plugin_and_its_options() -> None:
    schema = chat_body(LIMITS, stub_plugins(PUSH, PULL, BROKEN)).model_json_schema()
    assert schema["$defs"]["Push"]["properties"]["scale"]["description"] == "How far."
    assert schema["$defs"]["Push"]["additionalProperties"] is False
    guidance = str(schema["properties"]["guidance"])
    assert "#/$defs/Push" in guidance
    assert "#/$defs/Pull" in guidance
    assert "broken" not in guidance
    assert "['pull', 'push']" in guidance


def test_a_plugin_in_the_wrong_group_is_refused() -> None:
    with pytest.raises(InvalidOption, match="'push' is no sampler"):
        chat((MISFILED,), sampler="push")
