"""Engines from their entry in the configuration. Slow: reads weights and, on a new machine, builds kernels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from strop.config import ModelConfig
from strop.contracts import Cost, ModelCard, Role, TextPlan
from strop.errors import ModelLoadError
from strop.kernels.paged_attention import PAGE
from strop.server.engines.causal import CausalEngine, Pace
from strop.server.models import source
from strop.server.models.causal.network import Network, load
from strop.server.models.hardware import dtype_of
from strop.server.models.tokenizer import Tokenizer

KV_BYTES = 1 << 30
"""Memory for the keys and values of each network where the configuration says nothing."""


def causal(name: str, model: ModelConfig, *, cache: Path, network: bool) -> tuple[CausalEngine, Tokenizer]:
    """The engine of an autoregressive model and its tokenizer. `network` allows fetching a hub id.

    Raises ModelLoadError for a source that cannot be loaded or is refused, and for roles that do not fit the base.
    """
    torch.set_flush_denormal(True)  # the threads of torch's pool inherit it, so before anything is computed
    if model.threads is not None:
        torch.set_num_threads(model.threads)
    pace = Pace() if model.max_rows is None else Pace(rows=model.max_rows)
    sources: dict[Role, str] = {"base": model.source}
    sources.update({role: config.source for role, config in model.roles.items()})
    folders = {role: source.resolve(where, cache=cache, network=network) for role, where in sources.items()}
    kv_bytes = KV_BYTES if model.kv_gb is None else int(model.kv_gb * (1 << 30))
    dtype = dtype_of(model.dtype)
    networks = {role: load(folder, dtype=dtype, kv_bytes=kv_bytes, max_tokens=pace.tokens) for role, folder in folders.items()}
    _check_roles(name, networks)
    base = networks["base"]
    tokenizer = Tokenizer(folders["base"], vocabulary=base.vocabulary, eos_ids=base.eos_ids)
    longest = min(net.context_length for net in networks.values())
    card = ModelCard(
        name=name,
        domain="causal",
        engine="causal",
        source=model.source,
        context_length=min(longest, model.context_length or longest, base.pages * PAGE),
        vocabulary=base.vocabulary,
        dtype=str(base.dtype).removeprefix("torch."),
        created=int(time.time()),
        roles=tuple(networks),
        capabilities=_capabilities(tokenizer),
    )
    engine = CausalEngine(card, networks, tokenizer, pace=pace)
    _warm_up(engine)
    return engine, tokenizer


def _warm_up(engine: CausalEngine) -> None:
    """Run two tokens, so that building kernels and first touches of memory are over before the first request."""
    plan = TextPlan(id="warm-up", model="", seed=0, cost=Cost(rows=1, start=1, tokens=3), prompt=(0,), max_tokens=2)
    engine.admit(plan)
    while engine.capacity().running_rows:
        engine.step()


def _check_roles(name: str, networks: Mapping[Role, Network]) -> None:
    """Logits of two roles can be combined only where their vocabularies are the same."""
    sizes = {role: network.vocabulary for role, network in networks.items()}
    if len(set(sizes.values())) > 1:
        raise ModelLoadError(f"the roles of {name!r} have vocabularies of different sizes: {sizes}")


def _capabilities(tokenizer: Tokenizer) -> tuple[str, ...]:
    chat = ("chat",) if tokenizer.has_chat_template else ()
    return (*chat, "completions", "logprobs", "prompt_logprobs", "prefix_cache")
