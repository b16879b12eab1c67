"""Dispatch: which path runs, what is said about it, and what happens when it cannot or must not run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from strop.errors import KernelError
from strop.kernels.registry import Arguments, FastPath, Op, arguments, explain, ops, trace, use


def double(x: Tensor) -> Tensor:
    return x * 2


def doubled_by_adding(x: Tensor) -> Tensor:
    return x + x


def tripled(x: Tensor) -> Tensor:
    return x * 3


def even_only(x: Tensor) -> str | None:
    return None if x.shape[0] % 2 == 0 else "the length is odd"


def example() -> Arguments:
    return arguments(torch.arange(4.0))


def make(run=doubled_by_adding, name: str = "double") -> Op[[Tensor], Tensor]:
    return Op(name, double, FastPath("cpu", run, even_only), example=example)


def test_fast_path_runs_where_it_supports_the_arguments_and_the_reference_elsewhere() -> None:
    op = make()
    with trace() as even:
        op(torch.ones(2))
    with trace() as odd:
        op(torch.ones(3))
    with trace() as both:
        op(torch.ones(3))
        op(torch.ones(2))
        op(torch.ones(2))
    assert (even, odd, both) == ({"double": "cpu"}, {"double": "reference"}, {"double": "cpu+reference"})


def test_trace_records_only_what_ran_inside() -> None:
    op = make()
    with trace() as record:
        pass
    op(torch.ones(2))
    assert record == {}


def test_automatic_fallback_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    op = make()
    with caplog.at_level(logging.WARNING):
        op(torch.ones(3))
        op(torch.ones(5))
    assert [record.getMessage() for record in caplog.records] == ["double does not run on its 'cpu' path: the length is odd"]


def test_self_check_drops_a_wrong_path_for_good(caplog: pytest.LogCaptureFixture) -> None:
    op = make(tripled)
    with caplog.at_level(logging.WARNING), trace() as record:
        results = [op(torch.ones(2)) for _ in range(2)]
    assert record == {"double": "reference"}
    assert all(torch.equal(result, torch.full((2,), 2.0)) for result in results)
    assert len(caplog.records) == 1
    assert "self-check failed" in caplog.text


def test_self_check_sees_arguments_written_in_place() -> None:
    def fill(x: Tensor) -> None:
        x.fill_(1.0)

    def forget(x: Tensor) -> None:
        return None

    op = Op("fill", fill, FastPath("cpu", forget, even_only), example=example)
    x = torch.zeros(2)
    op(x)
    assert x.tolist() == [1.0, 1.0]
    assert explain(op).path == "reference"


def test_self_check_refuses_an_example_that_the_path_cannot_run() -> None:
    op = Op("double", double, FastPath("cpu", tripled, even_only), example=lambda: arguments(torch.ones(3)))
    assert op(torch.ones(2)).tolist() == [2.0, 2.0]


def test_self_check_is_not_traced() -> None:
    inner = make(name="inner")
    op = Op("outer", inner, FastPath("cpu", inner, even_only), example=example)
    with trace() as record:
        op.explain(torch.ones(2))
    assert record == {}


def test_a_requested_path_runs_or_raises() -> None:
    op = make()
    with trace() as record, use("reference"):
        op(torch.ones(2))
    assert record == {"double": "reference"}
    with use("cpu"):
        assert op.explain(torch.ones(2)) == ("cpu", "requested by name")
        with pytest.raises(KernelError, match="'cpu' was requested, but the length is odd"):
            op(torch.ones(3))
    with use("triton"), pytest.raises(KernelError, match="has none of that name"):
        op(torch.ones(2))
    with use("cpu"), pytest.raises(KernelError, match="self-check failed"):
        make(tripled)(torch.ones(2))


def test_an_unknown_path_is_refused_with_the_nearest() -> None:
    with pytest.raises(KernelError, match=r"unknown path 'refrence'.*Did you mean 'reference'"), use("refrence"):
        pass


def test_explain_gives_path_and_reason() -> None:
    op = make()
    assert explain(op) == ("cpu", "fastest path")
    assert explain(op, torch.ones(3)) == ("reference", "cpu: the length is odd")
    assert explain(Op("plain", double, example=example)) == ("reference", "the only path")


def test_environment_forces_a_path() -> None:
    code = "from strop.kernels.registry import *; from strop.kernels.registry import _environment; print(_environment())"
    run = [sys.executable, "-P", "-c", code]
    forced = subprocess.run(run, env=os.environ | {"STROP_KERNELS": "reference"}, capture_output=True, text=True, check=True)
    assert forced.stdout.strip() == "reference"
    wrong = subprocess.run(run, env=os.environ | {"STROP_KERNELS": "gpu"}, capture_output=True, text=True, check=False)
    assert wrong.returncode != 0
    assert "valid are reference, cpu, triton" in wrong.stderr


def test_ops_lists_each_op_once_by_name() -> None:
    names = [op.name for op in ops()]
    assert names == sorted(set(names))


def test_custom_op_stays_whole_under_fake_tensors_and_traces_its_path() -> None:
    op = make(name="test_registry_double")
    op.register(fake=torch.empty_like)
    with torch._subclasses.FakeTensorMode():
        assert torch.ops.strop.test_registry_double(torch.ones(2)).shape == (2,)
    torch.library.opcheck(torch.ops.strop.test_registry_double.default, (torch.ones(2),))
    with trace() as record:
        compiled = torch.compile(op, fullgraph=True, backend="eager")
        assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]
    assert record == {"test_registry_double": "cpu"}
