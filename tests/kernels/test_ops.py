"""What every registered op owes, generated from the registry."""

from __future__ import annotations

from typing import Any

import pytest

from strop.kernels import build
from strop.kernels.registry import REFERENCE, FastPath, Op, explain, ops, trace, use

OPS = ops()
CAN_BUILD = build.best_isa(build.cpu_flags()) is not None and build.find_compiler() is not None


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_example_runs_on_the_reference(op: Op[..., Any]) -> None:
    given = op.example()
    with use(REFERENCE), trace() as ran:
        op(*given.args, **given.kwargs)
    assert ran[op.name] == REFERENCE


@pytest.mark.skipif(not CAN_BUILD, reason="needs a C++ compiler and AVX2")
@pytest.mark.parametrize(("op", "path"), [(op, path) for op in OPS for path in op.paths], ids=lambda part: part.name)
def test_each_cpu_path_passes_its_self_check_and_runs_when_requested(op: Op[..., Any], path: FastPath[..., Any]) -> None:
    if path.name != "cpu":
        pytest.skip(f"{path.name} needs a device of its own")
    given = op.example()
    with use(path.name), trace() as ran:
        op(*given.args, **given.kwargs)
    assert ran[op.name] == path.name


@pytest.mark.skipif(not CAN_BUILD, reason="needs a C++ compiler and AVX2")
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_fast_path_is_what_runs_by_itself(op: Op[..., Any]) -> None:
    assert explain(op).path == (op.paths[0].name if op.paths else REFERENCE)
