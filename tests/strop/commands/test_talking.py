"""`strop chat` and `strop models` against a live house, and how failures read."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from threadhouse import thread_house
from typer.testing import CliRunner, Result

from strop.cli import build
from strop.config import ServerConfig, key_digest
from strop.errors import ConfigError, StropError


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with thread_house() as (address, _):
        yield address


def strop(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(build(), list(arguments), input=text)


def test_one_question(url: str) -> None:
    first = strop("chat", "why?", "--url", url, "--max-tokens", "8", "--seed", "3", "--temperature", "0")
    again = strop("chat", "why?", "--url", url, "--max-tokens", "8", "--seed", "3", "--system", "be brief")
    assert first.exit_code == again.exit_code == 0
    assert len(first.stdout.rstrip("\n")) == len(again.stdout.rstrip("\n")) == 8
    assert first.stdout != again.stdout


def test_a_conversation_remembers(url: str) -> None:
    twice = strop("chat", "--url", url, "--max-tokens", "8", "--seed", "3", text="why?\n\nwhy?\n")
    assert twice.exit_code == 0
    first, second = (line.removeprefix("> ").removeprefix("> ") for line in twice.stdout.splitlines()[1:3])
    assert len(first) == len(second) == 8
    assert first != second


def test_a_sampler_by_json(url: str) -> None:
    sampler = '{"name": "tokens", "top_k": 3}'
    assert strop("chat", "why?", "--url", url, "--max-tokens", "2", "--sampler", sampler).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--sampler", '{"name": "tokens", "topk": 3}'], StropError, "topk.*HTTP 422"),
        (["--model", "nobody"], StropError, "'nobody' does not exist.*HTTP 404"),
        (["--guidance", '{"name": '], ConfigError, "--guidance is neither a name nor JSON"),
        (["--url", "http://127.0.0.1:1/v1"], StropError, "no server answers at"),
    ],
)
def test_failures_are_told(url: str, arguments: list[str], kind: type[StropError], message: str) -> None:
    result = strop("chat", "why?", *(arguments if "--url" in arguments else ["--url", url, *arguments]))
    assert isinstance(result.exception, kind)
    assert result.exception is not None
    with pytest.raises(kind, match=message):
        raise result.exception


def test_an_error_in_mid_stream_is_told() -> None:
    with thread_house(source="stub:0.05") as (address, house):
        closing = threading.Timer(0.5, lambda: house.find("stub").scheduler.close())
        closing.start()
        result = strop("chat", "why?", "--url", address, "--max-tokens", "400")
        closing.join()
    assert isinstance(result.exception, StropError)


def test_models(url: str) -> None:
    result = strop("models", "--url", url)
    assert result.exit_code == 0
    assert "stub" in result.stdout


def test_a_key_is_sent() -> None:
    with thread_house(ServerConfig(keys=(key_digest("key"),))) as (address, _):
        assert strop("models", "--url", address, "--api-key", "key").exit_code == 0
        refused = strop("models", "--url", address, "--api-key", "other")
    assert isinstance(refused.exception, StropError)
    assert "HTTP 401" in str(refused.exception)
