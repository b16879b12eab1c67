"""A transformers decoder that reads packed tokens of many sequences and keeps their keys and values in pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from strop.errors import ModelLoadError
from strop.kernels import paged_attention
from strop.kernels.paged_attention import PAGE
from strop.server.models.causal.linear import pack, stabilise

_ATTENTION = "strop_paged"
_PROBE_TOKENS = 40
HEAD_ROWS = 64
"""Rows of logits computed at once: the head is tried for so many, and its output is what takes memory."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""How far logits may differ from those of transformers' own attention on the probe, in standard deviations, on average."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn", "proportional"}


@dataclass(frozen=True, slots=True)
class Packed:
    """The tokens of one forward, sequence after sequence; T tokens, S sequences, P pages. Rows past starts[S] are padding."""

    ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int32: where each token's key and value go, page * PAGE + offset; -1 for padding
    tables: Tensor  # [S, P] int32: the pages of each sequence
    starts: Tensor  # [S + 1] int32: where each sequence's tokens begin
    lengths: Tensor  # [S] int32: keys that the sequence's last token sees


class Caches:
    """The keys and values of every layer, `pages` pages each. A layer's are made when it first speaks, in the shape it has."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, layer: int, key: Tensor) -> tuple[Tensor, Tensor]:
        """The caches of `layer`, whose keys [T, KV, D] look like `key`."""
        if layer not in self.layers:
            self.layers[layer] = paged_attention.allocate(self.pages, key.shape[1], key.shape[2], key.dtype)
        return self.layers[layer]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers that have spoken."""
        return sum(tensor.nbytes for pair in self.layers.values() for tensor in pair) // self.pages


@dataclass(frozen=True, slots=True)
class _Context:
    """What the attention of one forward needs; travels through the model's keyword arguments."""

    packed: Packed
    caches: Caches


def _attend(
    module: nn.Module,
    query: Tensor,  # [1, H, T, D]
    key: Tensor,  # [1, KV, T, D]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: _Context,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over the pages: store this forward's keys and values, then attend to all stored."""
    if attention_mask is not None or s_aux is not None:
        raise ModelLoadError("this architecture needs an attention mask or sinks of its own, which the paged attention lacks")
    packed, key = paged.packed, _by_token(key)
    k_cache, v_cache = paged.caches.of(int(module.layer_idx), key)  # type: ignore[arg-type]
    paged_attention.write(key, _by_token(value), k_cache, v_cache, packed.slots)
    out = paged_attention.attend(
        _by_token(query),
        k_cache,
        v_cache,
        packed.tables,
        packed.starts,
        packed.lengths,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out.unsqueeze(0), None


def _by_token(x: Tensor) -> Tensor:
    return x[0].transpose(0, 1).contiguous()


class Network:
    """One decoder's weights and its KV cache. Used from one thread at a time."""

    def __init__(self, model: Any, *, pages: int) -> None:
        config = model.config.get_text_config()
        self._model = model
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.dtype: torch.dtype = model.dtype
        self.vocabulary = int(config.vocab_size)
        self.context_length = context_length(config)
        self.eos_ids = _eos_ids(model)
        self.caches = Caches(pages)
        self.padding = 1

    @property
    def pages(self) -> int:
        return self.caches.pages

    def settle(self, *, kv_bytes: int, max_tokens: int) -> None:
        """Take the memory and the weight layout for serving forwards of up to `max_tokens` tokens."""
        self.caches = Caches(max(kv_bytes // self.caches.page_bytes, 8))
        pack(self._model)
        self.padding = stabilise(
            self._model, sizes=_sizes(max_tokens), head=self._model.get_output_embeddings(), head_sizes=_sizes(HEAD_ROWS)
        )

    @torch.inference_mode()
    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states [T, width] of the packed tokens, whose keys and values are stored on the way."""
        out = self._model.base_model(
            input_ids=packed.ids.unsqueeze(0),
            position_ids=packed.positions.unsqueeze(0),
            use_cache=False,
            paged=_Context(packed, self.caches),
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [B, V] of hidden states [B, width]."""
        if hidden.shape[0] > HEAD_ROWS:
            return torch.cat([self.logits(part) for part in torch.split(hidden, HEAD_ROWS)])
        rows = hidden.shape[0]
        out: Tensor = self._model.get_output_embeddings()(nn.functional.pad(hidden, (0, 0, 0, -rows % self.padding)))[:rows]
        return out if self._softcap is None else torch.tanh(out / self._softcap) * self._softcap

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        """Copy what page `source` holds, in every layer, to page `target`."""
        for k_cache, v_cache in self.caches.layers.values():
            paged_attention.copy_page(k_cache, v_cache, source, target)


def load(folder: Path, *, dtype: torch.dtype, kv_bytes: int, max_tokens: int) -> Network:
    """The network of a checked Hugging Face folder. Raises ModelLoadError for architectures that the pages cannot serve.

    `max_tokens` is the most tokens a forward will see. What an architecture does is not guessed from its name: its own eager
    attention and ours must give the same logits on a probe before the network is accepted.
    """
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check(config)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise ModelLoadError(f"{folder.name!r} cannot be loaded: {error}") from error
    return from_model(model, kv_bytes=kv_bytes, max_tokens=max_tokens)


def from_model(model: Any, *, kv_bytes: int, max_tokens: int) -> Network:
    """A network around an instantiated transformers decoder, after the probe of `load`."""
    _check(model.config)
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False) or model.get_output_embeddings() is None:
        raise ModelLoadError(f"{name} does not take an attention of ours (transformers' attention interface)")
    AttentionInterface.register(_ATTENTION, _attend)
    model.eval().set_attn_implementation("eager")
    probe = torch.arange(_PROBE_TOKENS) * 7919 % int(model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        expected = model(input_ids=probe.unsqueeze(0), use_cache=False).logits[0].float()
    model.set_attn_implementation(_ATTENTION)
    network = Network(model, pages=-(-_PROBE_TOKENS // PAGE))
    found = network.logits(network.hidden(_probe(probe))).float()
    limit = _TOLERANCE[network.dtype] * max(float(expected.std()), 1e-6)
    if not float((found - expected).abs().mean()) <= limit:
        raise ModelLoadError(f"{name} does more than its attention tells: its logits and ours differ by more than {limit:.3g}")
    network.settle(kv_bytes=kv_bytes, max_tokens=max_tokens)
    return network


def context_length(config: Any) -> int:
    """Positions the model was made for; where its rotary embedding changes with length, those before it does."""
    length = int(getattr(config, "max_position_embeddings", 0) or 2048)
    rope = getattr(config, "rope_parameters", None) or {}
    for options in rope.values() if rope and all(isinstance(v, dict) for v in rope.values()) else [rope]:
        if options.get("rope_type", "default") not in _STATIC_ROPE:
            original = options.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            length = min(length, int(original or length))
    return length


def _check(config: Any) -> None:
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(f"{config.model_type!r} is an encoder-decoder; the causal engine serves decoders only")
    if strange := set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES:
        raise ModelLoadError(
            f"{config.model_type!r} has layers of kind {sorted(strange)}, which the paged attention cannot serve"
        )


def _probe(ids: Tensor) -> Packed:
    count = ids.shape[0]
    pages = -(-count // PAGE)
    return Packed(
        ids=ids,
        positions=torch.arange(count),
        slots=torch.arange(count, dtype=torch.int32),
        tables=torch.arange(pages, dtype=torch.int32).unsqueeze(0),
        starts=torch.tensor([0, count], dtype=torch.int32),
        lengths=torch.tensor([count], dtype=torch.int32),
    )


def _sizes(most: int) -> list[int]:
    small = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 128, 129, 192, 256, 384, 512]
    return [size for size in small if size < most] + [most]


def _eos_ids(model: Any) -> tuple[int, ...]:
    ids = getattr(model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    return tuple(ids) if isinstance(ids, list | tuple) else () if ids is None else (int(ids),)
