"""What this machine's processor is good at."""

from __future__ import annotations

from pathlib import Path

import torch

from strop.errors import ConfigError

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_FAST_BF16 = ("avx512_bf16", "amx_bf16")


def dtype_of(name: str) -> torch.dtype:
    """The dtype for a configuration's `auto`, `bfloat16` or `float32`; auto is bf16 where the CPU multiplies it natively."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def has_fast_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX; without them bf16 is emulated and slower than float32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(errors="replace").partition("flags")[2].partition("\n")[0].split() if cpuinfo.exists() else []
    return any(flag in flags for flag in _FAST_BF16)
