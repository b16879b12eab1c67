"""Statistics of an LM head's logits without the logits: the same numbers, in a fraction of the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from strop.errors import KernelError
from strop.kernels import linear_stats as module
from strop.kernels.build import load
from strop.kernels.linear_stats import linear_stats
from strop.kernels.registry import trace, use
from strop.kernels.row_stats import BLOCK, row_stats

COMPILED = pytest.mark.skipif(load("row_stats").handle is None, reason="no compiler or no AVX2 here")
PATHS = ["reference", pytest.param("cpu", marks=COMPILED)]


def integers(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Small whole numbers: their products sum exactly in any order and dtype, so that logits are the same however cut."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    rows=st.integers(0, 9),
    vocabulary=st.sampled_from([1, BLOCK, BLOCK + 1, 2 * BLOCK + 100]),
    chunk=st.sampled_from([None, BLOCK, 2 * BLOCK]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=10, deadline=None)
def test_statistics_equal_those_of_the_whole_logits(
    path: str, dtype: torch.dtype, rows: int, vocabulary: int, chunk: int | None, seed: int
) -> None:
    hidden, weight = integers(rows, 8, dtype=dtype, seed=seed), integers(vocabulary, 8, dtype=dtype, seed=seed + 1)
    bias = integers(vocabulary, dtype=dtype, seed=seed + 2)
    ids = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))
    asked: dict[str, Any] = {"ids": ids, "seeds": torch.arange(rows), "positions": torch.arange(rows) + seed}
    with use(path), trace() as ran:
        found = linear_stats(hidden, weight, bias, temperature=torch.full((rows,), 0.8), chunk=chunk, **asked)
        whole = row_stats(hidden @ weight.T + bias, temperature=torch.full((rows,), 0.8), **asked)
    assert ran == {"linear_stats": path, "row_stats": path}
    for name, value, expected in zip(found._fields, found, whole, strict=True):
        assert torch.equal(value, expected), name


class LargestResult(TorchDispatchMode):
    """Notes the most elements that any operation inside returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result._is_view():
            self.elements = max(self.elements, result.numel())
        return result


@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_takes_a_tenth_of_float32_logits(dtype: torch.dtype) -> None:
    hidden, weight = integers(300, 8, dtype=dtype, seed=1), integers(49_152, 8, dtype=dtype, seed=2)
    linear_stats(hidden, weight)
    with LargestResult() as seen, trace() as ran:
        linear_stats(hidden, weight)
    assert ran == {"linear_stats": "cpu"}
    assert seen.elements >= 300 * BLOCK
    assert seen.elements * dtype.itemsize <= 0.1 * 4 * 300 * 49_152


@COMPILED
def test_scores_of_a_real_product_are_close_to_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(16, 64, generator=generator), torch.randn(2 * BLOCK, 64, generator=generator) * 0.3
    ids = torch.arange(16) * 500
    found = linear_stats(hidden, weight, ids=ids, chunk=BLOCK)
    logits = hidden.double() @ weight.double().T
    assert_close(found.logprobs / 4, logits.log_softmax(1).gather(1, ids[:, None])[:, 0] / 4)
    assert torch.equal(found.argmax, logits.argmax(1))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("hidden", {"hidden": torch.zeros(2, 3, 4)}),
        ("hidden", {"hidden": torch.zeros(2, 4, dtype=torch.int8)}),
        ("weight", {"weight": torch.zeros(7, 5)}),
        ("weight", {"weight": torch.zeros(0, 4)}),
        ("weight", {"weight": torch.zeros(7, 4, dtype=torch.bfloat16)}),
        ("weight", {"weight": torch.zeros(7, 4, device="meta")}),
        ("bias", {"bias": torch.zeros(6)}),
        ("ids", {"ids": torch.zeros(3, dtype=torch.int64)}),
        ("chunk", {"chunk": 0}),
        ("chunk", {"chunk": 1000}),
    ],
)
def test_a_wrong_argument_is_named(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(KernelError, match=f"^{name}: "):
        linear_stats(**({"hidden": torch.zeros(2, 4), "weight": torch.zeros(7, 4)} | given))


def test_compiled_graphs_keep_the_op() -> None:
    torch.library.opcheck(torch.ops.strop.linear_stats.default, module.op.example().args, rtol=1e-4, atol=1e-4)
