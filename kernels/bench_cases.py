"""What `bench` compares: for each operation, our path and the baselines, as calls without arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

from strop.kernels.linear_stats import linear_stats
from strop.kernels.row_stats import row_stats
from strop.kernels.sample import sample
from strop.kernels.select import Rule, select

Call: TypeAlias = Callable[[], Any]
SPREADS = {"flat": 3.0, "peaked": 24.0}
"""Standard deviation of the logits: real models are peaked, and there exp underflows."""

_WIDTH, _INNER, _KV, _LAYERS, _VOCABULARY = 576, 1536, 192, 30, 49_152
"""The shapes of SmolLM2-135M."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Calls that answer the same question about the same tensors. `read` is what each must read at least, in bytes."""

    op: str
    dtype: torch.dtype
    vocabulary: int
    rows: int
    logits: str
    read: int
    calls: Mapping[str, Call]


def logits_of(rows: int, vocabulary: int, dtype: torch.dtype, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(rows + vocabulary)
    return (torch.randn(rows, vocabulary, generator=generator) * SPREADS[kind]).to(dtype)


def row_cases(x: Tensor, kind: str, *, compiled: bool) -> Iterator[Case]:
    """Statistics and sampling of logits x [B, V]."""
    shape: dict[str, Any] = {"dtype": x.dtype, "vocabulary": x.shape[1], "rows": len(x), "logits": kind, "read": x.nbytes}
    calls: dict[str, Call] = {"ours": lambda: row_stats(x)}
    if compiled:
        lean, full = torch.compile(confidence_and_entropy, dynamic=False), torch.compile(shared_exp, dynamic=False)
        calls |= {"compile, no index or margin": lambda: lean(x), "compile": lambda: full(x)}
    calls |= {"eager, confidence only": lambda: x.float().softmax(1).max(1), "eager": lambda: all_statistics(x)}
    calls["read only"] = lambda: x.view(torch.float32).sum()
    yield Case(op="row_stats", calls=calls, **shape)
    for name, top_p in (("sample", 1.0), ("sample, top-p", 0.9)):
        given = sampling(len(x), top_p)
        calls = {"ours": partial(sample, x, **given), "eager": partial(sort_and_draw, x, top_p)}
        yield Case(op=name, calls=calls, **shape)


def sampling(rows: int, top_p: float) -> dict[str, Tensor]:
    return {
        "temperature": torch.full((rows,), 0.8),
        "top_k": torch.zeros(rows, dtype=torch.int32),
        "top_p": torch.full((rows,), top_p),
        "min_p": torch.zeros(rows),
        "seeds": torch.arange(rows),
        "positions": torch.zeros(rows, dtype=torch.int64),
    }


def confidence_and_entropy(x: Tensor) -> tuple[Tensor, Tensor]:
    """What torch.compile does best: no index and no second largest, each sum over one shared exp."""
    z = x.float()
    d = z - z.amax(1, keepdim=True)
    e = d.exp()
    total = e.sum(1)
    return 1 / total, total.log() - (e * d).sum(1) / total


def shared_exp(x: Tensor) -> tuple[Tensor, ...]:
    """All statistics in the shape that torch.compile fuses best: reductions over one exp, and no topk, which it cannot fuse."""
    z = x.float()
    top, ids = z.max(1, keepdim=True)
    second = z.masked_fill(torch.arange(z.shape[1]) == ids, -math.inf).amax(1)
    d = z - top
    e = d.exp()
    total = e.sum(1)
    top = top[:, 0]
    margin = (1 - (second - top).exp()) / total
    return 1 / total, margin, total.log() - (e * d).sum(1) / total, top + total.log(), ids[:, 0]


def all_statistics(x: Tensor) -> tuple[Tensor, ...]:
    """Confidence, margin, entropy, log-sum-exp and argmax as one writes them in torch."""
    z = x.float()
    logp = z.log_softmax(1)
    top, ids = z.topk(2, dim=1)
    p = logp.exp()
    two = p.gather(1, ids)
    return two[:, 0], two[:, 0] - two[:, 1], -torch.xlogy(p, p).sum(1), top[:, 0] - logp.amax(1), ids[:, 0]


def sort_and_draw(x: Tensor, top_p: float) -> Tensor:
    """The sampler that most engines fall back to: sort, cumulative sum, mask, scatter back, exponential race."""
    z = x.float() / 0.8
    if top_p < 1:
        ordered, order = z.sort(dim=1, descending=True)
        p = ordered.softmax(1)
        dropped = p.cumsum(1) - p >= top_p
        z = z.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -math.inf)
    return (z.softmax(1) / torch.empty_like(z).exponential_()).argmax(1)


def head_case(rows: int, dtype: torch.dtype) -> Case:
    """Scoring `rows` tokens from hidden states, against the matrix product alone."""
    hidden, weight = torch.randn(rows, _WIDTH).to(dtype), (torch.randn(_VOCABULARY, _WIDTH) * 0.05).to(dtype)
    ids = torch.randint(0, _VOCABULARY, (rows,))
    calls: dict[str, Call] = {
        "ours": lambda: linear_stats(hidden, weight, ids=ids),
        "matmul alone": lambda: linear(hidden, weight),
        "matmul, row_stats": lambda: row_stats(linear(hidden, weight), ids=ids),
        "eager": lambda: linear(hidden, weight).float().log_softmax(1).gather(1, ids[:, None]),
    }
    shape: dict[str, Any] = {"dtype": dtype, "vocabulary": _VOCABULARY, "rows": rows, "logits": "-"}
    return Case(op="linear_stats", read=hidden.nbytes + weight.nbytes, calls=calls, **shape)


def step_case(positions: int, dtype: torch.dtype) -> Case:
    """Statistics, draw and commit of one confident-decoding step, against the step's matrix products alone."""
    shapes = [(_WIDTH, _WIDTH), (_KV, _WIDTH), (_KV, _WIDTH), (_WIDTH, _WIDTH), (_INNER, _WIDTH), (_INNER, _WIDTH)]
    layers = [[torch.randn(shape).to(dtype) for shape in [*shapes, (_WIDTH, _INNER)]] for _ in range(_LAYERS)]
    hidden, inner = torch.randn(positions, _WIDTH).to(dtype), torch.randn(positions, _INNER).to(dtype)
    head = torch.randn(_VOCABULARY, _WIDTH).to(dtype)
    logits = logits_of(positions, _VOCABULARY, dtype, "peaked")
    seeds, places = torch.zeros(positions, dtype=torch.int64), torch.arange(positions)
    canvas, rule, value = (
        torch.zeros(1, positions, dtype=torch.int64),
        torch.tensor([Rule.THRESHOLD]).int(),
        torch.tensor([0.9]),
    )

    def decide() -> Tensor:
        found = row_stats(logits, seeds=seeds, positions=places, draw_temperature=torch.full((positions,), 0.8))
        masked = torch.ones(1, positions, dtype=torch.bool)
        confidence = found.winner_logprob.exp()[None]
        return select(canvas, masked, found.winner[None], confidence, rule=rule, value=value)

    def multiply() -> None:
        for *wide, down in layers:
            for weight in wide:
                linear(hidden, weight)
            linear(inner, down)
        linear(hidden, head)

    read = sum(weight.nbytes for layer in layers for weight in layer) + head.nbytes
    shape: dict[str, Any] = {"dtype": dtype, "vocabulary": _VOCABULARY, "rows": positions, "logits": "peaked"}
    return Case(op="decode step", read=read, calls={"ours": decide, "matmuls alone": multiply}, **shape)
