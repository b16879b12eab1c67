"""`strop serve`: configuration, refusals, and a real process that drains on SIGTERM."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from strop.cli import build
from strop.commands.serve import check_exposure, welcome
from strop.config import Config, ServerConfig, key_digest
from strop.errors import ConfigError
from strop.testing import stub_config

STUBBED = """
from strop.commands.serve import host_models
from strop.config import ServerConfig
from strop.testing import stub_config, stub_plugins
host_models(stub_config(ServerConfig(port=0)), stub_plugins())
"""


def strop(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "strop", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment})


def test_print_config_tells_where_values_come_from(tmp_path: Path) -> None:
    file = tmp_path / "strop.yaml"
    file.write_text("server: {port: 9000, drain_seconds: 3}\nmodels: {tiny: {source: here}}\n")
    done = strop("serve", "--config", str(file), "--port", "9001", "--print-config", STROP_COMPAT="lenient", STROP_KEYS="a,b")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert lines["server.port"] == ["9001", "flag", "--port"]
    assert lines["server.compat"] == ["lenient", "env", "STROP_COMPAT"]
    assert lines["server.drain_seconds"][:2] == ["3.0", "file"]
    assert lines["server.host"] == ["127.0.0.1", "default"]
    assert lines["server.keys"] == ["2", "set", "env", "STROP_KEYS"]
    assert key_digest("a") not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to serve"),
        (["model", "--demo"], "say what to serve"),
        (["--config", "missing.yaml"], "cannot read missing.yaml"),
        (["--demo", "--host", "0.0.0.0"], "can be reached from other machines"),
        (["--demo", "--port", "99999"], "server.port"),
        (["--demo", "--compat", "loose"], "server.compat"),
    ],
)
def test_mistakes_are_one_line_and_code_2(arguments: list[str], message: str) -> None:
    done = strop("serve", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    check_exposure(Config(server=ServerConfig(host=host)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_everything_else_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(ConfigError, match="no API key is set"):
        check_exposure(Config(server=ServerConfig(host=host)))
    check_exposure(Config(server=ServerConfig(host=host, keys=(key_digest("key"),))))
    check_exposure(Config(server=ServerConfig(host=host, insecure=True)))


def test_the_welcome_names_the_model_and_the_key() -> None:
    assert "Authorization" not in welcome("http://h:1", stub_config())
    keyed = stub_config(ServerConfig(keys=(key_digest("key"),)))
    *_, body = shlex.split(welcome("http://h:1", keyed).splitlines()[1])
    assert json.loads(body)["model"] == "stub"
    assert 'Bearer $STROP_API_KEY"' in welcome("http://h:1", keyed)


def test_the_curl_line_works_and_sigterm_ends_with_code_0() -> None:
    with subprocess.Popen([sys.executable, "-P", "-c", STUBBED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address, curl = process.stdout.readline(), process.stdout.readline()
        assert address.startswith("strop is ready at http://127.0.0.1:")
        answer = subprocess.run(shlex.split(curl), capture_output=True, text=True, timeout=20, check=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]


@pytest.mark.slow
def test_the_demo_serves_a_real_model_and_says_no_more_than_that(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "strop", "serve", "--demo", "--port", "0"]
    cold = {**os.environ, "STROP_CACHE": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cold) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        curl = process.stdout.readline()
        answer = subprocess.run(shlex.split(curl), capture_output=True, text=True, timeout=100, check=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    assert len(json.loads(answer.stdout)["choices"][0]["message"]["content"]) > 20


def test_a_source_that_is_not_there_ends_with_code_2(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(build(), ["serve", str(tmp_path / "nothing"), "--port", "0"])
    assert isinstance(result.exception, ConfigError)
    assert "nothing" in str(result.exception)
