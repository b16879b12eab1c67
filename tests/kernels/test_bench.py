"""The bench measures what it says: equal answers, our path, every contender in every round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import assert_close

from strop.errors import ConfigError
from strop.kernels.bench import Settings, cases, measure, run
from strop.kernels.bench_cases import all_statistics, confidence_and_entropy, logits_of, shared_exp, sort_and_draw
from strop.kernels.row_stats import row_stats

SMALL = Settings(vocabularies=(500,), rows=(3,), dtypes=("float32",), rounds=2, decoded=0, scored=8, compiled=False)


@pytest.fixture(autouse=True)
def _denormals() -> Any:
    yield
    torch.set_flush_denormal(False)


def test_the_baselines_compute_what_ours_computes() -> None:
    x = logits_of(4, 700, torch.float32, "flat")
    ours = row_stats(x)
    for formulation in (all_statistics, shared_exp):
        confidence, margin, entropy, lse, argmax = formulation(x)
        assert torch.equal(argmax, ours.argmax)
        for theirs, value in ((confidence, ours.confidence), (margin, ours.margin), (lse / 8, ours.lse / 8)):
            assert_close(theirs, value)
        assert_close(entropy / 4, ours.entropy / 4)
    lean = confidence_and_entropy(x)
    assert_close(lean[0], ours.confidence)
    assert_close(lean[1] / 4, ours.entropy / 4)
    peaked = torch.tensor([[9.0, 1.0, 0.0]]).expand(50, -1)
    assert sort_and_draw(peaked, 0.5).unique().tolist() == [0]


def test_a_report_has_every_contender_of_every_case() -> None:
    heard: list[str] = []
    report = run(SMALL, heard.append)
    expected = [(case.op, case.logits, name) for case in cases(SMALL) for name in case.calls]
    assert [(row["op"], row["logits"], row["contender"]) for row in report.rows] == expected
    assert len(heard) == len(list(cases(SMALL)))
    assert all(row["25 %"] <= row["ms"] <= row["75 %"] and row["ms"] > 0 for row in report.rows)
    assert all(row["x ours"] == 1 for row in report.rows if row["contender"] == "ours")
    assert {row["path"] for row in report.rows if row["contender"] == "ours"} <= {"cpu", "reference"}


def test_contenders_take_turns() -> None:
    order: list[str] = []
    measure({"ours": lambda: order.append("a"), "other": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4


def test_settings_that_measure_nothing_are_refused() -> None:
    for wrong in ({"rounds": 0}, {"rows": (0,)}, {"scored": -1}, {"decoded": -1}, {"dtypes": ("float64",)}):
        with pytest.raises(ConfigError):
            Settings(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_module_runs_by_itself_and_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    flags = ["--vocabularies", "500", "--rows", "2", "--dtypes", "float32", "--rounds", "2", "--scored", "4"]
    command = [sys.executable, "-P", "-m", "strop.kernels.bench", *flags, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "row_stats" in done.stdout
    assert "decode step" in done.stdout
    assert '"compile"' in file.read_text()
