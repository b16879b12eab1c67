"""A tiny causal engine with a real tokenizer: what the tests of the causal room stand on."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from families import tiny
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from strop.contracts import Cost, Delta, Event, ModelCard, PlanId, TextPlan
from strop.server.engines.causal import CausalEngine, Pace
from strop.server.models.causal.network import Network, from_model
from strop.server.models.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)
EOS = 2
VOCABULARY = 300


def save_tokenizer(folder: Path, *, template: str | None = TEMPLATE) -> None:
    """A byte-level tokenizer of 3 special tokens, 256 bytes and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("Ġ", "the"), ("i", "n")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    fast = Fast(models.BPE(vocab=vocabulary, merges=merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)


def save_model(folder: Path, family: str = "llama", **options: Any) -> Path:
    """A model folder as transformers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny(family, vocab_size=VOCABULARY, **options).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def network(*, kv_bytes: int = 1 << 22, dtype: torch.dtype = torch.float32, **options: Any) -> Network:
    return from_model(tiny("llama", vocab_size=VOCABULARY, dtype=dtype, **options), kv_bytes=kv_bytes, max_tokens=Pace().tokens)


def engine(net: Network, folder: Path, *, pace: Pace | None = None, **others: Network) -> CausalEngine:
    tokenizer = Tokenizer(folder, vocabulary=VOCABULARY, eos_ids=(EOS,))
    card = ModelCard(
        name="tiny",
        domain="causal",
        engine="causal",
        source="test",
        context_length=net.context_length,
        vocabulary=VOCABULARY,
        dtype="float32",
        created=0,
    )
    return CausalEngine(card, {"base": net, **others}, tokenizer, pace=pace)  # type: ignore[dict-item]


def plan(prompt: Sequence[int], *, name: str = "p", n: int = 1, max_tokens: int = 12, seed: int = 0, **rest: Any) -> TextPlan:
    cost = Cost(rows=n, start=len(prompt), tokens=len(prompt) + max_tokens)
    rest.setdefault("stop_token_ids", (EOS,))
    return TextPlan(id=name, model="tiny", seed=seed, cost=cost, prompt=tuple(prompt), n=n, max_tokens=max_tokens, **rest)


def prompt(i: int, length: int = 20) -> list[int]:
    """Prompt number `i` of that length."""
    ids: list[int] = torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(i)).tolist()
    return ids


def reference_model() -> Any:
    """The transformers model inside `network()`, as transformers runs it."""
    return copy.deepcopy(tiny("llama", vocab_size=VOCABULARY))


def run(engine: CausalEngine, *plans: TextPlan, steps: int = 2000) -> list[tuple[PlanId, Event]]:
    """Admit `plans` and step until nothing runs."""
    for each in plans:
        engine.admit(each)
    events: list[tuple[PlanId, Event]] = []
    while engine.capacity().running_rows:
        events += engine.step()
        steps -= 1
        if steps == 0:
            raise TimeoutError("the engine does not come to an end")
    return events


def tokens(events: Sequence[tuple[PlanId, Event]], name: str = "p", index: int = 0) -> list[int]:
    deltas = [e for i, e in events if i == name and isinstance(e, Delta) and e.index == index]
    return [token for delta in deltas for token in delta.token_ids]


def text(events: Sequence[tuple[PlanId, Event]], name: str = "p", index: int = 0) -> str:
    return "".join(e.text for i, e in events if i == name and isinstance(e, Delta) and e.index == index)


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value
