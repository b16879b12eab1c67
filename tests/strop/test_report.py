"""What benches print and write."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from strop import report
from strop.errors import ConfigError
from strop.report import Machine, Report, machine, versions


def a_report() -> Report:
    return Report(
        title="figures",
        settings={"rounds": 3},
        rows=[{"name": "one", "speed": 12.3456, "big": 12345.6}, {"name": "two [b]", "speed": None, "big": 7}],
        notes=("a [note] as it is",),
        versions={"strop": "0.1.0"},
        machine=Machine(system="Linux 6", processor="Fast 9000", cores=2, features=("avx2",), memory_gb=8.0),
    )


def test_show_prints_figures_notes_and_machine() -> None:
    out = io.StringIO()
    a_report().show(Console(file=out, width=100))
    text = out.getvalue()
    for piece in ("figures", "12.3", "12346", "-", "two [b]", "a [note] as it is", "Fast 9000, 2 cores", "strop 0.1.0"):
        assert piece in text


def test_show_of_no_rows() -> None:
    out = io.StringIO()
    Report(title="nothing", settings={}, rows=[]).show(Console(file=out, width=100))
    assert "cores" in out.getvalue()


def test_write_keeps_everything(tmp_path: Path) -> None:
    a_report().write(tmp_path / "figures.json")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["settings"] == {"rounds": 3}
    assert written["rows"][0]["speed"] == 12.3456
    assert written["machine"]["features"] == ["avx2"]
    assert written["versions"] == {"strop": "0.1.0"}


def test_write_to_nowhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write the report"):
        a_report().write(tmp_path / "missing" / "figures.json")


def test_this_machine_and_its_packages() -> None:
    here = machine()
    assert here.cores >= 1
    assert here.memory_gb > 0
    assert versions()["openai"][0].isdigit()


def test_a_cpuinfo_of_two_processors(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: Fast 9000\nflags\t\t: fpu avx2\n\nmodel name\t: other\n")
    assert report._cpu_facts(file) == {"model name": "Fast 9000", "flags": "fpu avx2"}
    assert report._cpu_facts(tmp_path / "missing") == {}
