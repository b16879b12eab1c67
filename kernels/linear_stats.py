"""Row statistics of logits that never exist whole: the LM head runs by chunks of the vocabulary, each folded at once.

`linear_stats(h, W)` is `row_stats(h @ W.T)`, but for the last bits of a matrix product that is cut into other pieces. Extra
memory is one chunk of logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from strop.errors import KernelError
from strop.kernels import row_stats
from strop.kernels.registry import Arguments, FastPath, Op, arguments
from strop.kernels.row_stats import BLOCK, Fold, RowStats, check_asked, collect
from strop.kernels.rows import DTYPES, c_support


def linear_stats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: Tensor | None = None,
    ids: Tensor | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    draw_temperature: Tensor | None = None,
    chunk: int | None = None,
) -> RowStats:
    """Statistics of the logits hidden [B, D] @ weight [V, D].T + bias [V], computed in the dtype of `hidden`.

    The rest as in `row_stats`. `chunk`, a multiple of `row_stats.BLOCK`, is how many columns of logits exist at a time; by
    default as many as fit 1/12 of what float32 logits would take.
    """
    _check(hidden, weight, bias)
    if chunk is None:
        chunk = BLOCK * max(1, len(weight) * 4 // (12 * BLOCK * hidden.itemsize))
    if chunk < 1 or chunk % BLOCK:
        raise KernelError(f"chunk: expected a multiple of {BLOCK}, got {chunk}.", param="chunk")
    check_asked(hidden, temperature, ids, seeds, positions, draw_temperature)
    columns = ids[:, None] if ids is not None and ids.dim() == 1 else ids
    return collect(op(hidden, weight, bias, temperature, columns, seeds, positions, draw_temperature, chunk), ids)


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if hidden.dim() != 2 or hidden.dtype not in DTYPES:
        given = f"{hidden.dtype} {list(hidden.shape)}"
        raise KernelError(f"hidden: expected float32, bfloat16 or float16 [B, D], got {given}.", param="hidden")
    if weight.shape != (max(len(weight), 1), hidden.shape[1]) or weight.dtype != hidden.dtype or weight.device != hidden.device:
        wanted = f"{hidden.dtype} [V, {hidden.shape[1]}] on {hidden.device} with V >= 1"
        given = f"{weight.dtype} {list(weight.shape)} on {weight.device}"
        raise KernelError(f"weight: expected {wanted}, got {given}.", param="weight")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != hidden.dtype or bias.device != hidden.device):
        wanted = f"{hidden.dtype} [{len(weight)}] on {hidden.device}"
        raise KernelError(f"bias: expected {wanted}, got {bias.dtype} {list(bias.shape)} on {bias.device}.", param="bias")


def reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    ids: Tensor | None,
    seeds: Tensor | None,
    positions: Tensor | None,
    draw_temperature: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition."""
    logits = linear(hidden, weight, bias)
    return row_stats.reference(logits, temperature, ids, seeds, positions, draw_temperature)


def _run_c(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    ids: Tensor | None,
    seeds: Tensor | None,
    positions: Tensor | None,
    draw_temperature: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    fold = Fold(len(hidden), temperature, ids, seeds, positions, draw_temperature)
    for start in range(0, len(weight), chunk):
        end = min(start + chunk, len(weight))
        fold.take(linear(hidden, weight[start:end], None if bias is None else bias[start:end]), last=end == len(weight))
    return fold.found


def _fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    ids: Tensor | None,
    *_: Tensor | int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = hidden.shape[0], 0 if ids is None else ids.shape[1]
    numbers = hidden.new_empty(8, rows, dtype=torch.float32)
    return numbers, hidden.new_empty(2, rows, dtype=torch.int64), hidden.new_empty(rows, width, dtype=torch.float32)


def _example() -> Arguments:
    hidden = torch.arange(3 * 16, dtype=torch.float32).mul(0.7).sin().view(3, 16)
    weight = torch.arange((BLOCK + 9) * 16, dtype=torch.float32).mul(0.3).cos().view(BLOCK + 9, 16)
    ids = torch.tensor([[0], [BLOCK], [BLOCK + 8]])
    seeds, positions = torch.tensor([3, 1, 4]), torch.tensor([1, 5, 9])
    return arguments(hidden, weight, None, torch.tensor([1.0, 0.7, 1.3]), ids, seeds, positions, None, BLOCK)


op = Op("linear_stats", reference, FastPath("cpu", _run_c, c_support("row_stats")), example=_example, tolerance=(1e-4, 1e-4))
op.register(fake=_fake)
