"""Log-probabilities in OpenAI's two shapes: a list of objects (chat) and four parallel lists (completions)."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from strop.contracts import TokenScore

FLOOR = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def chat_scores(scores: Sequence[TokenScore]) -> dict[str, Any]:
    content = [_chat_token(score) | {"top_logprobs": [_chat_token(top) for top in score.top]} for score in scores]
    return {"content": content, "refusal": None}


def _chat_token(score: TokenScore) -> dict[str, Any]:
    text = score.data.decode("utf-8", "replace")
    return {"token": text, "logprob": _finite(score.logprob), "bytes": list(score.data)}


class CompletionScores:
    """The four lists of one choice, over as many deltas as come; offsets count characters of the choice's text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def add(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """The lists for `scores`, which continue those given before."""
        offsets = [self._advance(score.data) for score in scores]
        return {
            "tokens": [token_text(score.data) for score in scores],
            "token_logprobs": [_known(score.logprob) for score in scores],
            "top_logprobs": [_alternatives(score) for score in scores],
            "text_offset": offsets,
        }

    def _advance(self, data: bytes) -> int:
        """Where a token begins; a token that completes a character begins where the character does."""
        start = self._offset
        self._offset += len(self._decoder.decode(data))
        return start


def token_text(data: bytes) -> str:
    """The token's text, or `bytes:\\x..` where it is a part of a character, so that different tokens stay different."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _alternatives(score: TokenScore) -> dict[str, float] | None:
    """The likeliest tokens and the token itself; None for the first token of a prompt, which has no distribution."""
    if score.logprob is None:
        return None
    found: dict[str, float] = {}
    for top in (*score.top, score):
        found.setdefault(token_text(top.data), _finite(top.logprob))
    return found


def _known(logprob: float | None) -> float | None:
    return None if logprob is None else _finite(logprob)


def _finite(logprob: float | None) -> float:
    return FLOOR if logprob is None else max(logprob, FLOOR)
