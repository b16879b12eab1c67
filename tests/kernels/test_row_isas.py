"""The row, selection and guidance kernels pass their tests on every instruction set that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from strop.kernels import build

FILES = ("sample", "guided_sample", "row_stats", "linear_stats", "select", "guidance")
LESSER = [isa.name for isa in build.ISAS if isa != build.best_isa(build.cpu_flags())]


@pytest.mark.slow
@pytest.mark.skipif(build.find_compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("isa", LESSER)
def test_the_same_tests_pass_on_a_lesser_instruction_set(isa: str) -> None:
    if build.best_isa(build.cpu_flags(), isa) is None:
        pytest.skip(f"this processor has no {isa}")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in FILES]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", "not slow", *files, "-p", "no:cacheprovider"]
    run = subprocess.run(command, env=os.environ | {"STROP_ISA": isa}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert "skipped" not in run.stdout
