"""What the operations on rows of logits share: checks of their arguments, and how a row reaches C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from strop.errors import KernelError
from strop.kernels.build import load

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What logits may be made of. The index is the code that C knows the type by."""


def check_logits(name: str, logits: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise KernelError(f"{name}: expected shape [B, V] with V >= 1, got {list(logits.shape)}.", param=name)
    if logits.dtype not in DTYPES:
        raise KernelError(f"{name}: expected float32, bfloat16 or float16, got {logits.dtype}.", param=name)


def check_alike(logits: Tensor, name: str, other: Tensor) -> None:
    """`other` must have the shape, dtype and device of `logits`."""
    if other.shape != logits.shape or other.dtype != logits.dtype or other.device != logits.device:
        wanted = f"{logits.dtype} {list(logits.shape)} on {logits.device}"
        given = f"{other.dtype} {list(other.shape)} on {other.device}"
        raise KernelError(f"{name}: expected {wanted} like the rows it belongs to, got {given}.", param=name)


def check_per_row(logits: Tensor, dtype: torch.dtype, **settings: Tensor) -> None:
    """Each setting must hold one number of `dtype` per row of `logits`, on its device."""
    for name, value in settings.items():
        if value.dtype != dtype or value.shape != logits.shape[:1] or value.device != logits.device:
            wanted = f"{dtype} [{logits.shape[0]}] on {logits.device}"
            given = f"{value.dtype} {list(value.shape)} on {value.device}"
            raise KernelError(f"{name}: expected {wanted}, one number a row, got {given}.", param=name)


def c_support(library: str) -> Callable[..., str | None]:
    """`supports` of a path in `csrc/<library>.cpp` that takes tensors on the CPU, contiguous along their last axis."""

    def supports(*given: Any, **named: Any) -> str | None:
        return load(library).missing or next(filter(None, map(_unfit, (*given, *named.values()))), None)

    return supports


def _unfit(value: Any) -> str | None:
    if not isinstance(value, Tensor) or not value.numel():
        return None
    if value.device.type != "cpu":
        return f"it needs the CPU, and a tensor is on {value.device}"
    if value.shape[-1] > 1 and value.stride(-1) != 1:
        return "a tensor is not contiguous along its last axis"
    return None
