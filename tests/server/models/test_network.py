"""Every promised family over the pages against its own transformers attention; and architectures that must be refused."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES, tiny

from strop.errors import ModelLoadError
from strop.kernels.paged_attention import PAGE
from strop.server.models.causal.network import Network, Packed, context_length, from_model

PROMPT = torch.randint(3, 200, (50,), generator=torch.Generator().manual_seed(1))


def feed(network: Network, pages: list[int], start: int, ids: torch.Tensor) -> torch.Tensor:
    """Logits of `ids` at positions from `start` of one sequence that lives in `pages`."""
    positions = torch.arange(start, start + len(ids))
    table = torch.tensor(pages, dtype=torch.int32)
    fill = -len(ids) % network.padding
    slots = table[positions // PAGE] * PAGE + (positions % PAGE).int()
    packed = Packed(
        ids=torch.nn.functional.pad(ids, (0, fill)),
        positions=torch.nn.functional.pad(positions, (0, fill)),
        slots=torch.nn.functional.pad(slots, (0, fill), value=-1),
        tables=table.unsqueeze(0),
        starts=torch.tensor([0, len(ids)], dtype=torch.int32),
        lengths=torch.tensor([start + len(ids)], dtype=torch.int32),
    )
    return network.logits(network.hidden(packed)[: len(ids)])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_are_those_of_the_model_itself(family: str) -> None:
    model = tiny(family)
    expected = copy.deepcopy(model)
    network = from_model(model, kv_bytes=1 << 20, max_tokens=64)
    found = feed(network, [5, 2, 7, 0], 0, PROMPT)
    with torch.inference_mode():
        right = expected(input_ids=PROMPT.unsqueeze(0), use_cache=False).logits[0]
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cutting_the_prompt_changes_no_bit(family: str, dtype: torch.dtype) -> None:
    network = from_model(tiny(family, dtype=dtype), kv_bytes=1 << 20, max_tokens=64)
    whole = feed(network, [0, 1, 2, 3], 0, PROMPT)
    for cuts in ([50], [1] * 50, [17, 16, 15, 2], [49, 1]):
        start, parts = 0, []
        for size in cuts:
            parts.append(feed(network, [9, 4, 6, 8], start, PROMPT[start : start + size]))
            start += size
        assert torch.equal(torch.cat(parts), whole), cuts


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bloom", "attention interface"),
        ("mamba", "layers of kind"),
        ("cohere", "more than its attention"),
        ("t5", "encoder-decoder"),
    ],
)
def test_what_the_pages_cannot_serve_is_refused(family: str, reason: str) -> None:
    if family == "t5":
        from transformers import T5Config, T5ForConditionalGeneration

        small = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        model = T5ForConditionalGeneration(small)
    else:
        model = tiny(family)
    with pytest.raises(ModelLoadError, match=reason):
        from_model(model, kv_bytes=1 << 20, max_tokens=64)


def test_attention_sinks_are_refused() -> None:
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256, "rope_theta": 10000.0}
    with pytest.raises(ModelLoadError, match="sinks"):
        from_model(tiny("gpt_oss", rope_parameters=yarn), kv_bytes=1 << 20, max_tokens=64)


def test_rope_that_changes_with_length_is_cut_before_it_does() -> None:
    static = tiny("llama").config
    assert context_length(static) == 512
    static.rope_parameters = {"rope_type": "dynamic", "original_max_position_embeddings": 128}
    assert context_length(static) == 128
    static.rope_parameters = {"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 64}}
    assert context_length(static) == 64
