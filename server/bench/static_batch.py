"""The baseline everybody has: transformers' `generate` on one left-padded batch that starts and ends together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from strop.config import Config, ModelConfig
from strop.server.bench.figures import Answer
from strop.server.models import source
from strop.server.models.hardware import dtype_of


class StaticBatch:
    """One model of a configuration, in the dtype that the engine takes too."""

    def __init__(self, model: ModelConfig, config: Config) -> None:
        if model.threads is not None:
            torch.set_num_threads(model.threads)
        folder = source.resolve(model.source, cache=config.cache, network=config.server.network)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=dtype_of(model.dtype)
        ).eval()
        self._model.generation_config.eos_token_id = None
        torch.set_flush_denormal(True)

    def ask(self, questions: Sequence[str], tokens: int) -> list[Answer]:
        """Answer all questions at once, each in exactly `tokens` tokens, greedily."""
        arrivals = Arrivals()
        chats = [[{"role": "user", "content": question}] for question in questions]
        inputs = self._tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            self._model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, streamer=arrivals)
        return [Answer(arrivals=arrivals.times, tokens=len(arrivals.times))] * len(questions)


class Arrivals(BaseStreamer):  # type: ignore[misc]
    """Notes when each step's tokens came. `generate` puts the prompt first."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._marks: list[float] = []

    def put(self, value: Tensor) -> None:
        self._marks.append(time.perf_counter() - self._start)

    def end(self) -> None:
        """Nothing is held back."""

    @property
    def times(self) -> tuple[float, ...]:
        return tuple(self._marks[1:])
