"""Guidance on latents: the kernels against float64, and every rule against its formula written out on the latents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from strop.errors import KernelError
from strop.kernels import guidance as module
from strop.kernels import guidance_rules as rules
from strop.kernels.build import load
from strop.kernels.guidance import combine, moments
from strop.kernels.guidance_rules import Convention
from strop.kernels.registry import trace, use

COMPILED = pytest.mark.skipif(load("guidance").handle is None, reason="no compiler or no AVX2 here")
PATHS = ["reference", pytest.param("cpu", marks=COMPILED)]
SHAPES = st.sampled_from([(0, 3), (1, 1), (2, 17), (3, 4, 8, 8), (2, 3, 77, 101), (1, 40_000)])
CONVENTIONS: list[Convention] = ["native", "original"]


def latents(shape: tuple[int, ...], dtype: torch.dtype, count: int, seed: int) -> list[Tensor]:
    """Predictions that differ little, as those of one network do."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(shape, generator=generator)
    return [(first + 0.01 * k * torch.randn(shape, generator=generator)).to(dtype) for k in range(count)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(shape=SHAPES, seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_moments_are_the_float64_sums(path: str, dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> None:
    cond, uncond, buffer = latents(shape, dtype, 3, seed)
    with use(path), trace() as ran:
        found = moments(cond, uncond, buffer)
        without = moments(cond, uncond)
    assert ran == {"guidance_moments": path}
    c, u, m = (each.double().flatten(1) for each in (cond, uncond, buffer))
    d = (c - u).float().double()
    for value, product in zip(found[1:], (c, d, c * c, d * d, c * d, m * m, c * m, d * m), strict=True):
        scale = product.abs().sum(1) + 1e-30
        assert_close(value / scale, product.sum(1) / scale, torch.float32)
    assert torch.equal(torch.stack(without[1:6]), torch.stack(found[1:6]))
    assert not torch.stack(without[6:]).any()


@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(shape=SHAPES, count=st.integers(1, 4), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_both_paths_combine_to_the_same_bits(dtype: torch.dtype, shape: tuple[int, ...], count: int, seed: int) -> None:
    tensors = latents(shape, dtype, count, seed)
    coefficients = torch.randn(shape[0], count, generator=torch.Generator().manual_seed(seed)) * 5
    with use("reference"):
        expected = combine(coefficients, *tensors)
    with trace() as ran:
        found = combine(coefficients, *tensors)
    assert ran == {"guidance_combine": "cpu"}
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    oracle = sum(k[:, None] * t.double().flatten(1) for k, t in zip(coefficients.double().unbind(1), tensors, strict=True))
    assert_close(found / 32, torch.as_tensor(oracle).view(shape) / 32, dtype)


@COMPILED
def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    cond, uncond = latents((5, 40_000), torch.float32, 2, 3)
    together = torch.stack(moments(cond, uncond)[1:])
    alone = [torch.stack(moments(cond[i : i + 1], uncond[i : i + 1])[1:]) for i in range(5)]
    assert torch.equal(torch.cat(alone, 1), together)


def test_not_a_number_and_infinity_pass_through_every_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        bad = torch.tensor([[float("nan"), float("inf"), 1.0]], dtype=dtype)
        result = combine(torch.tensor([[2.0]]), bad)
        assert result.isnan().tolist() == [[True, False, False]]
        assert result[0, 1:].tolist() == [float("inf"), 2.0]


SCALE = torch.tensor([1.0, 3.5, 7.0])


def predictions() -> tuple[Tensor, Tensor, Tensor]:
    c, u, m = latents((3, 4, 8, 8), torch.float32, 3, 9)
    return c, u, (m - c) * 3


def wide(scale: Tensor) -> Tensor:
    return scale.double().view(-1, 1, 1, 1)


def rowwise(product: Tensor) -> Tensor:
    return product.double().flatten(1).sum(1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("convention", "shift"), [("native", 0.0), ("original", -1.0)])
def test_cfg_in_both_conventions(convention: Convention, shift: float) -> None:
    c, u, _ = predictions()
    found = combine(rules.cfg(SCALE + shift, convention=convention), c, u)
    assert_close(found / 8, (u.double() + wide(SCALE) * (c.double() - u)) / 8)


def test_rescale_meets_the_standard_deviation_of_the_condition() -> None:
    c, u, _ = predictions()
    u = u * 0.5
    guided, strength = rules.cfg(SCALE, convention="native"), torch.tensor([1.0, 0.7, 0.0])
    found = combine(rules.rescaled(guided, strength, moments(c, u)), c, u)
    plain = u.double() + wide(SCALE) * (c.double() - u)
    ratio = c.double().flatten(1).std(1) / plain.flatten(1).std(1)
    expected = wide(strength) * plain * wide(ratio) + (1 - wide(strength)) * plain
    assert_close(found / 8, expected / 8)
    assert_close(found[:1].std().double(), c[:1].double().std(), torch.float32)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_zero_star_projects_the_condition_on_the_unconditional(convention: Convention) -> None:
    c, u, _ = predictions()
    found = combine(rules.zero_star(SCALE, moments(c, u), convention=convention), c, u)
    scaled = u.double() * rowwise(c.double() * u) / (rowwise(u.double() * u) + 1e-8)
    base = scaled if convention == "native" else c.double()
    assert_close(found / 8, (base + wide(SCALE) * (c.double() - scaled)) / 8)


@pytest.mark.parametrize("largest", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("parallel", [0.0, 1.0])
@pytest.mark.parametrize("decay", [0.0, -0.75])
def test_apg_cuts_and_projects_the_difference(largest: float, parallel: float, decay: float) -> None:
    c, u, m = predictions()
    sums = moments(c, u, m)
    given_ = rules.apg(SCALE, sums, convention="native", parallel=parallel, largest=largest, decay=decay)
    found = combine(given_, c, u, m)
    difference = c.double() - u + decay * m.double()
    assert_close(combine(rules.momentum(3, decay), c, u, m), difference, torch.float32)
    if largest > 0:
        difference = difference * (largest / rowwise(difference**2).sqrt()).clamp(max=1.0)
    along = c.double() * rowwise(difference * c) / rowwise(c.double() * c)
    expected = c.double() + (wide(SCALE) - 1) * (difference - along + parallel * along)
    assert_close(found / 8, expected / 8)


def test_reflection_is_a_denoise_and_an_inversion_in_one() -> None:
    x, strong, weak = predictions()
    level, following = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.7, 0.4, 0.0])
    down = x + wide(following - level) * strong
    back = down + wide(level - following) * weak
    found = combine(rules.reflection(level - following), x, weak, strong)
    assert_close(found / 4, back / 4)


def test_refinement_goes_from_the_imitation_towards_cfg() -> None:
    c, u, w = predictions()
    weight = torch.tensor([0.0, 1.0, 1.5])
    found = combine(rules.refined(SCALE, weight, convention="native"), w, c, u)
    guided = u.double() + wide(SCALE) * (c.double() - u)
    assert_close(found / 16, (w.double() + wide(weight) * (guided - w)) / 16)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("cond", lambda x: moments(x.long(), x)),
        ("uncond", lambda x: moments(x, x[:1])),
        ("momentum", lambda x: moments(x, x, x.bfloat16())),
        ("tensors", lambda x: combine(torch.ones(2, 0))),
        (r"tensors\[1\]", lambda x: combine(torch.ones(2, 2), x, x[:, :1])),
        ("coefficients", lambda x: combine(torch.ones(2, 3), x, x)),
        ("coefficients", lambda x: combine(torch.ones(2, 1).double(), x)),
        ("convention", lambda x: rules.cfg(torch.ones(2), convention="diffusers")),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_is_named(name: str, call: Any) -> None:
    with pytest.raises(KernelError, match=f"^{name}: "):
        call(torch.zeros(2, 3))


def test_tensors_that_are_not_contiguous_go_to_the_reference() -> None:
    x = torch.randn(2, 3, 4).transpose(1, 2)
    with trace() as ran:
        assert torch.equal(combine(torch.tensor([[2.0], [3.0]]), x)[1], x[1] * 3)
    assert ran == {"guidance_combine": "reference"}


@pytest.mark.parametrize("op", [module.moments_op, module.combine_op], ids=lambda op: op.name)
def test_compiled_graphs_keep_the_ops(op: Any) -> None:
    torch.library.opcheck(getattr(torch.ops.strop, op.name).default, op.example().args)
