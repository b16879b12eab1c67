"""Guidance rules on latents as coefficients [B, K] float32 for `guidance.combine`; none of them touches a latent.

Scales and strengths are per row, [B]. Two conventions of a CFG scale are in use and must be told apart:

    "native"    u + s (c - u)    s = 1 is the conditional prediction
    "original"  c + s (c - u)    s = 0 is
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from strop.errors import KernelError, nearest
from strop.kernels.guidance import Moments

Convention: TypeAlias = Literal["native", "original"]


def cfg(scale: Tensor, *, convention: Convention) -> Tensor:
    """For (c, u): classifier-free guidance (2207.12598), or autoguidance (2406.02507 eq. 3) with c strong and u weak."""
    return _columns(*_cfg(scale, convention))


def rescaled(coefficients: Tensor, strength: Tensor, moments: Moments) -> Tensor:
    """For (c, u): the guided prediction pulled towards the standard deviation of c by `strength` (2305.08891 eq. 14-16)."""
    on_c, on_u = coefficients.double().unbind(1)
    variance = _variance(moments.c, moments.cc, moments)
    along_c, along_d = on_c + on_u, -on_u
    mean = along_c * moments.c + along_d * moments.d
    square = along_c**2 * moments.cc + 2 * along_c * along_d * moments.cd + along_d**2 * moments.dd
    factor = (variance / _variance(mean, square, moments)).sqrt()
    return _columns(*((1 + strength.double() * (factor - 1)) * each for each in (on_c, on_u)))


def zero_star(scale: Tensor, moments: Moments, *, convention: Convention) -> Tensor:
    """For (c, u): CFG-Zero* (2503.18886), CFG on u scaled by <c, u> / |u|^2. Its zero first steps are the caller's."""
    on_c, on_u = _cfg(scale, convention)
    uu = moments.cc - 2 * moments.cd + moments.dd
    alpha = (moments.cc - moments.cd) / (uu + 1e-8)
    return _columns(on_c, alpha * on_u)


def apg(scale: Tensor, moments: Moments, *, convention: Convention, parallel: float, largest: float, decay: float) -> Tensor:
    """For (c, u, m): adaptive projected guidance (2410.02416 alg. 1).

    The difference g = c - u + decay * m is cut to norm `largest` (0: not at all), and of its part along c only `parallel` is
    kept. The buffer of the next step is g itself: `combine(momentum(...), c, u, m)`.
    """
    weight = _cfg(scale, convention)[0] - 1
    square = moments.dd + 2 * decay * moments.dm + decay**2 * moments.mm
    if largest > 0:
        weight = weight * (largest / square.sqrt()).clamp(max=1.0)
    along = (moments.cd + decay * moments.cm) / moments.cc
    return _columns(1 + weight * (1 - (1 - parallel) * along), -weight, weight * decay)


def momentum(rows: int, decay: float, *, device: torch.device | str = "cpu") -> Tensor:
    """For (c, u, m): the next momentum buffer of `apg`, c - u + decay * m."""
    return torch.tensor([[1.0, -1.0, decay]], device=device).expand(rows, 3).contiguous()


def reflection(shift: Tensor) -> Tensor:
    """For (x, weak, strong): x + shift * (weak - strong), W2SD's denoise and inversion in one (2502.00473)."""
    return _columns(torch.ones_like(shift), shift, -shift)


def refined(scale: Tensor, weight: Tensor, *, convention: Convention) -> Tensor:
    """For (w, c, u): CoRe's combination w + weight * (CFG(c, u) - w) of a weak imitation w of CFG (2503.09662)."""
    on_c, on_u = _cfg(scale, convention)
    return _columns(1 - weight.double(), weight * on_c, weight * on_u)


def _cfg(scale: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    if convention not in ("native", "original"):
        hint = nearest(convention, ("native", "original"))
        raise KernelError(f"convention: expected 'native' or 'original', got {convention!r}.{hint}", param="convention")
    s = scale.double() + (convention == "original")
    return s, 1 - s


def _variance(total: Tensor, square: Tensor, moments: Moments) -> Tensor:
    return (square - total**2 / moments.elements) / (moments.elements - 1)


def _columns(*columns: Tensor) -> Tensor:
    return torch.stack([column.double() for column in columns], dim=1).float()
