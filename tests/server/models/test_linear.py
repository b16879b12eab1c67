from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.server.models.causal.linear import PackedLinear, pack, stabilise


class Unstable(nn.Linear):
    """A layer whose rows depend on how many there are unless that is a multiple of `good`."""

    good = 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (0 if len(x) % self.good == 0 else 1e-3 * len(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_is_the_linear(dtype: torch.dtype, bias: bool) -> None:
    linear = nn.Linear(48, 80, bias=bias, dtype=dtype)
    model = nn.Sequential(linear)
    x = torch.randn(3, 5, 48).to(dtype)
    with torch.inference_mode():
        expected = linear(x)
        pack(model)
        assert isinstance(model[0], PackedLinear)
        found = model(x)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        model[0].chunk = 16
        torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)
        assert model(torch.randn(37, 48).to(dtype)).shape == (37, 80)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_depend_on_their_number(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(96, 160, dtype=dtype))
    with torch.inference_mode():
        pack(model)
        padding = stabilise(model, sizes=[1, 2, 3, 16, 17, 64])
        rows = torch.randn(64, 96).to(dtype)
        whole = model(rows)
        for size in range(padding, 65, padding):
            assert torch.equal(model(rows[:size]), whole[:size])


def test_the_smallest_padding_that_works_is_found() -> None:
    with torch.inference_mode():
        assert stabilise(nn.Sequential(Unstable(16, 16)), sizes=[1, 2, 9, 30]) == 8


class SeldomUnstable(nn.Linear):
    """A layer that gives one row in eight other bits when it comes alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (1e-3 if len(x) == 1 and float(x[0, 0]) > 1.15 else 0)


def test_a_difference_that_few_rows_show_is_found() -> None:
    with torch.inference_mode():
        assert stabilise(nn.Sequential(SeldomUnstable(16, 16)), sizes=[1, 2, 3, 64, 192]) == 2


def test_where_no_padding_works_rows_go_in_chunks() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    with torch.inference_mode():
        pack(model)
        packed = model[0]
        assert isinstance(packed, PackedLinear)
        plain = packed._apply_linear
        packed._apply_linear = lambda x: plain(x) + 1e-3 * len(x)  # type: ignore[method-assign]
        assert stabilise(model, sizes=[1, 20, 40]) == 16
        assert packed.chunk == 16
        rows = torch.randn(40, 16)
        assert torch.equal(model(rows)[:16], model(rows[:16]))
