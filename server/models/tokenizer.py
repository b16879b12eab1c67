"""Text to token ids and back, on transformers' fast tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from strop.errors import InvalidRequest, ModelLoadError

_CONTEXT = 6
"""Prompt tokens a stream is primed with, so that the first generated token keeps its leading space."""


class Tokenizer:
    """One model's vocabulary and chat template. Safe to share between threads: nothing changes after construction."""

    def __init__(self, folder: Path, *, vocabulary: int, eos_ids: tuple[int, ...]) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelLoadError(f"no tokenizer can be loaded from {folder.name!r}: {error}") from error
        if not getattr(self._tokenizer, "is_fast", False):
            raise ModelLoadError(f"{folder.name!r} has no tokenizer.json, and only such (fast) tokenizers are supported")
        self._fast = self._tokenizer.backend_tokenizer
        self.vocab_size = vocabulary
        self.special_ids = frozenset(self._tokenizer.all_special_ids)
        own = self._tokenizer.eos_token_id
        self.eos_ids = tuple(sorted(token for token in {*eos_ids, own} - {None} if token < vocabulary))

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; `special` adds what the model expects around a text (a BOS token, say)."""
        ids: list[int] = self._fast.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        text: str = self._fast.decode(list(ids), skip_special_tokens=False)
        return text

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation in the model's own template, up to where the assistant speaks next.

        Raises InvalidRequest where the model has no template or its template refuses the messages. The template runs in
        transformers' immutable Jinja sandbox; requests cannot bring their own.
        """
        if not self.has_chat_template:
            raise InvalidRequest("this model has no chat template; use /v1/completions", param="messages")
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, LookupError, AttributeError, TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}", param="messages") from error
        return self.encode(text, special=False)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` stands for; empty for an id the tokenizer does not use."""
        piece: str | None = self._fast.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return bytes(piece, "utf-8")
        if self._byte_level:
            return bytes(self._byte_of[c] for c in piece if c in self._byte_of)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """A decoder of the tokens that follow `prompt`."""
        return TextStream(self._fast, prompt[-_CONTEXT:])

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._fast.get_added_tokens_decoder())

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in repr(self._fast.decoder)

    @cached_property
    def _byte_of(self) -> Mapping[str, int]:
        """GPT-2's map of characters to bytes: printable Latin-1 stands for itself, every other byte for 256, 257, …"""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in set(printable)]
        return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class TextStream:
    """Text of one growing answer. Special tokens are left out; a character split over tokens comes when it is whole."""

    def __init__(self, fast: Any, context: Sequence[int]) -> None:
        self._fast = fast
        self._pending: list[int] = []
        # A stream whose context ends inside a character would tell the context again with the first text.
        while context and self._decode(context).endswith("\ufffd"):
            context = context[:-1]
        self._stream = DecodeStream(ids=list(context), skip_special_tokens=True)

    def push(self, token: int) -> str:
        """Text that `token` completes; "" while a character is unfinished."""
        self._pending.append(token)
        try:
            text: str | None = self._stream.step(self._fast, token)
        except Exception:  # noqa: BLE001 - what DecodeStream raises where bytes that follow make text already told invalid
            text = self._decode(self._pending)
            self._stream = DecodeStream(ids=[token], skip_special_tokens=True)
        if text is None:
            return ""
        self._pending.clear()
        return text

    def flush(self) -> str:
        """What the unfinished tail stands for: replacement characters, or nothing."""
        text = self._decode(self._pending)
        self._pending.clear()
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._fast.decode(list(ids), skip_special_tokens=True)
        return text
