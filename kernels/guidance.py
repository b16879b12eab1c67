"""The two reads that every guidance rule on latents needs: moments of the predictions, and their linear combination.

With c the conditional (or strong) and u the unconditional (or weak) prediction of a row, d = c - u and m a momentum buffer,
rules such as CFG rescale, APG and CFG-Zero* follow from sums over the row; `guidance_rules` turns those into coefficients.
Sums of d instead of u keep their digits where the two predictions nearly agree.
"""

from __future__ import annotations

import functools
from ctypes import c_int, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from strop.errors import KernelError
from strop.kernels.build import load
from strop.kernels.registry import Arguments, FastPath, Op, arguments
from strop.kernels.rows import DTYPES


class Moments(NamedTuple):
    """Sums over each row, [B] float64, of its `elements`; those with m are 0 without a momentum buffer."""

    elements: int
    c: Tensor
    d: Tensor
    cc: Tensor
    dd: Tensor
    cd: Tensor
    mm: Tensor
    cm: Tensor
    dm: Tensor


def moments(cond: Tensor, uncond: Tensor, momentum: Tensor | None = None) -> Moments:
    """Moments of predictions [B, ...] of one shape and dtype (float32, bfloat16 or float16), summed in float64."""
    _check_latents(cond=cond, uncond=uncond, momentum=momentum)
    sums = moments_op(cond, uncond, momentum)
    return Moments(cond[0].numel() if len(cond) else 0, *sums.unbind(1))


def combine(coefficients: Tensor, *tensors: Tensor) -> Tensor:
    """sum over k of coefficients[:, k] * tensors[k], in the dtype and shape [B, ...] of the tensors, one to four of them.

    `coefficients` [B, K] float32. Computed in float32, each product and sum rounded by itself, in the order given.
    """
    if not 1 <= len(tensors) <= 4:
        raise KernelError(f"tensors: expected one to four, got {len(tensors)}.", param="tensors")
    _check_latents(**{f"tensors[{k}]": tensor for k, tensor in enumerate(tensors)})
    wanted = (len(tensors[0]), len(tensors))
    if coefficients.dtype != torch.float32 or coefficients.shape != wanted or coefficients.device != tensors[0].device:
        given = f"{coefficients.dtype} {list(coefficients.shape)} on {coefficients.device}"
        message = f"coefficients: expected float32 {list(wanted)} on {tensors[0].device}, got {given}."
        raise KernelError(message, param="coefficients")
    return combine_op(coefficients, *tensors, *[None] * (4 - len(tensors)))


def _check_latents(**latents: Tensor | None) -> None:
    first = next(tensor for tensor in latents.values() if tensor is not None)
    for name, tensor in latents.items():
        if tensor is None:
            continue
        if tensor.dim() < 1 or tensor.dtype not in DTYPES:
            given = f"{tensor.dtype} {list(tensor.shape)}"
            raise KernelError(f"{name}: expected float32, bfloat16 or float16 [B, ...], got {given}.", param=name)
        if tensor.shape != first.shape or tensor.dtype != first.dtype or tensor.device != first.device:
            wanted = f"{first.dtype} {list(first.shape)} on {first.device}"
            given = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise KernelError(f"{name}: expected {wanted} like the first, got {given}.", param=name)


def moments_reference(cond: Tensor, uncond: Tensor, momentum: Tensor | None) -> Tensor:
    """The definition: c, d, cc, dd, cd, mm, cm, dm, [B, 8] float64."""
    c = cond.float().flatten(1) if cond.dim() > 1 else cond.float()[:, None]
    d = (c - uncond.float().view_as(c)).double()
    c = c.double()
    m = torch.zeros_like(c) if momentum is None else momentum.double().view_as(c)
    return torch.stack([x.sum(1) for x in (c, d, c * c, d * d, c * d, m * m, c * m, d * m)], dim=1)


def combine_reference(
    coefficients: Tensor, first: Tensor, second: Tensor | None, third: Tensor | None, fourth: Tensor | None
) -> Tensor:
    """The definition."""
    per_row = coefficients.view(*coefficients.shape, *[1] * (first.dim() - 1)).unbind(1)
    result = first.float() * per_row[0]
    for k, tensor in enumerate((second, third, fourth), start=1):
        if tensor is not None:
            result = result + tensor.float() * per_row[k]
    return result.to(first.dtype)


def _moments_c(cond: Tensor, uncond: Tensor, momentum: Tensor | None) -> Tensor:
    out = torch.empty(len(cond), 8, dtype=torch.float64)
    latents = (cond.data_ptr(), uncond.data_ptr(), None if momentum is None else momentum.data_ptr())
    _moments_function()(*latents, *_shape(cond), out.data_ptr(), torch.get_num_threads())
    return out


def _combine_c(
    coefficients: Tensor, first: Tensor, second: Tensor | None, third: Tensor | None, fourth: Tensor | None
) -> Tensor:
    out = torch.empty_like(first)
    tensors = [None if tensor is None else tensor.data_ptr() for tensor in (first, second, third, fourth)]
    given = (coefficients.data_ptr(), coefficients.shape[1], *tensors)
    _combine_function()(*given, *_shape(first), out.data_ptr(), torch.get_num_threads())
    return out


def _shape(latent: Tensor) -> tuple[int, int, int]:
    return DTYPES.index(latent.dtype), len(latent), latent.numel() // max(len(latent), 1)


@functools.cache
def _moments_function() -> Any:
    return load("guidance").function("moments", *[c_void_p] * 3, c_int, c_int64, c_int64, c_void_p, c_int)


@functools.cache
def _combine_function() -> Any:
    shape = (c_int, c_int64, c_int64)
    return load("guidance").function("combine", c_void_p, c_int, *[c_void_p] * 4, *shape, c_void_p, c_int)


def _supports_c(*tensors: Tensor | None) -> str | None:
    given = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.device.type != "cpu" for tensor in given):
        return "it needs the CPU"
    if not all(tensor.is_contiguous() for tensor in given):
        return "a tensor is not contiguous"
    return load("guidance").missing


def _moments_example() -> Arguments:
    base = torch.arange(2 * 3 * 37, dtype=torch.float32).mul(0.7).sin().view(2, 3, 37)
    return arguments(base, base.roll(1, 2), base.cos())


def _combine_example() -> Arguments:
    base = torch.arange(2 * 3 * 37, dtype=torch.float32).mul(0.7).sin().view(2, 3, 37)
    return arguments(torch.tensor([[1.5, -0.5, 2.0], [3.0, 0.1, 0.0]]), base, base.roll(1, 2), base.cos(), None)


moments_op = Op(
    "guidance_moments",
    moments_reference,
    FastPath("cpu", _moments_c, lambda cond, uncond, momentum: _supports_c(cond, uncond, momentum)),
    example=_moments_example,
)
moments_op.register(fake=lambda cond, *_: cond.new_empty(cond.shape[0], 8, dtype=torch.float64))
combine_op = Op(
    "guidance_combine",
    combine_reference,
    FastPath("cpu", _combine_c, lambda coefficients, *tensors: _supports_c(coefficients, *tensors)),
    example=_combine_example,
)
combine_op.register(fake=lambda coefficients, first, *_: torch.empty_like(first))
