"""The one table of tolerances: how far a kernel's results may be from the float64 answer to the same inputs."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float32: (1e-6, 2e-6),
    torch.bfloat16: (8e-3, 8e-3),
    torch.float16: (1e-3, 1e-3),
}
"""(relative, absolute), by the dtype a result is rounded to: for the 16-bit types, one unit in their last place."""


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """`actual` against the float64 `expected`, as close as `dtype` allows, by default that of `actual`."""
    relative, absolute = TOLERANCES[dtype or actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=relative, atol=absolute, equal_nan=True)


ATTENTION: dict[torch.dtype, tuple[float, float]] = {
    torch.float32: (2e-6, 2e-6),
    torch.bfloat16: (2**-8, 2**-7),
    torch.float16: (2**-10, 2**-10),
}
"""The same for weighted means of normal values (some reach 4), returned in the type of the inputs. The absolute part is for
weights, which are rounded to 16 bits too: 2^-9 of each for bfloat16."""
