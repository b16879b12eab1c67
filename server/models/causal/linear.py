"""Linear layers with weights laid out once for the CPU's matrix kernels, and row-count-stable results.

oneDNN copies a plain weight into its blocked layout at every call; done once at load a step of a small model takes 0.7x the
time in bf16 and 0.4x in float32. And a GEMM may give a row other last bits when it is computed among other rows: `stabilise`
measures whether this machine's kernels do, and chooses paddings with which they do not, so that a row never depends on its
batch mates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

PADDINGS = (1, 2, 4, 8, 16)
_CHUNK = 16
_TRIED = 64


class PackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU: x [..., I] -> [..., O]. With `chunk` set, GEMMs run on exactly that many rows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 32)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.dtype = linear.weight.dtype
        self.chunk: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.chunk is None:
            return self._apply_linear(x)
        rows = x.reshape(-1, self.in_features)
        count = rows.shape[0]
        rows = nn.functional.pad(rows, (0, 0, 0, -count % self.chunk))
        out = torch.cat([self._apply_linear(part) for part in torch.split(rows, self.chunk)])
        return out[:count].view(*x.shape[:-1], self.out_features)

    def _apply_linear(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def pack(model: nn.Module) -> None:
    """Replace every `nn.Linear` inside `model`, which frees the plain weights that no other module shares."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear(child))


def stabilise(model: nn.Module, *, sizes: Sequence[int], head: nn.Module | None = None, head_sizes: Sequence[int] = ()) -> int:
    """The number to whose multiples rows must be padded so that no row's result depends on how many others there are.

    Tries each padding on one layer of every shape, over all of `sizes` rows; the output layer `head`, wide and slow, over
    `head_sizes`. Layers that no padding makes stable compute in chunks of 16 rows from here on, which costs reading their
    weights once per chunk.
    """
    layers = [(shape, layer, head_sizes if layer is head else sizes) for shape, layer in _one_of_each_shape(model)]
    for padding in PADDINGS:
        unstable = [shape for shape, layer, rows in layers if not _stable(layer, padding, rows)]
        if not unstable:
            return padding
    for module in model.modules():
        if isinstance(module, PackedLinear) and (module.in_features, module.out_features) in unstable:
            module.chunk = _CHUNK
    return _CHUNK


def _one_of_each_shape(model: nn.Module) -> Iterator[tuple[tuple[int, int], nn.Module]]:
    seen: set[tuple[int, int]] = set()
    for module in model.modules():
        if isinstance(module, PackedLinear | nn.Linear):
            shape = (module.in_features, module.out_features)
            if shape not in seen:
                seen.add(shape)
                yield shape, module


def _stable(layer: nn.Module, padding: int, sizes: Sequence[int]) -> bool:
    """Whether rows come out of every padded batch the same, bit for bit, as out of the largest.

    Of each size so many batches are tried that they hold `_TRIED` rows together: where one row alone takes another kernel than
    two do, only about every tenth row of bf16 shows it.
    """
    padded = sorted({-(-size // padding) * padding for size in sizes})
    dtype = layer.dtype if isinstance(layer, PackedLinear) else layer.weight.dtype
    rows = torch.randn(padded[-1], int(layer.in_features), generator=torch.Generator().manual_seed(0)).to(dtype)  # type: ignore[arg-type]
    expected = layer(rows)
    for size in padded[:-1]:
        for start in range(0, min(max(_TRIED, size), padded[-1] - size + 1), size):
            if not torch.equal(layer(rows[start : start + size]), expected[start : start + size]):
                return False
    return True
