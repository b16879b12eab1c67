"""The log-probabilities that an answer or an echoed prompt reports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from strop.contracts import TokenScore
from strop.server.models.tokenizer import Tokenizer


def score_tokens(
    logits: Tensor, tokens: Sequence[int], tops: Sequence[int | None], tokenizer: Tokenizer
) -> list[tuple[TokenScore, ...]]:
    """The score of each row's token under logits [B, V], with as many alternatives as `tops` says; () where it says None."""
    scores: list[tuple[TokenScore, ...]] = [()] * len(tokens)
    wanted = [i for i, top in enumerate(tops) if top is not None and tokens[i] >= 0]
    if not wanted:
        return scores
    values = logits[wanted].float()
    values = values - values.logsumexp(-1, keepdim=True)
    most = max(tops[i] or 0 for i in wanted)
    best, ids = values.topk(min(most, values.shape[1]))
    for at, i in enumerate(wanted):
        pairs = zip(ids[at].tolist(), best[at].tolist(), strict=True)
        top = tuple(_score(token, logprob, tokenizer) for token, logprob in pairs)[: tops[i] or 0]
        scores[i] = (_score(tokens[i], float(values[at, tokens[i]]), tokenizer, top),)
    return scores


def score_prompt(logits: Tensor, tokens: Sequence[int], top: int, tokenizer: Tokenizer) -> list[TokenScore]:
    """Scores of `tokens`, each under the row of logits [T, V] that comes before it."""
    rows = score_tokens(logits, tokens, [top] * len(tokens), tokenizer)
    return [score for row in rows for score in row]


def unscored(token: int, tokenizer: Tokenizer) -> TokenScore:
    """The first token of a prompt, which nothing predicts."""
    return _score(token, None, tokenizer)


def _score(token: int, logprob: float | None, tokenizer: Tokenizer, top: tuple[TokenScore, ...] = ()) -> TokenScore:
    if logprob is not None:
        logprob = max(logprob, -torch.finfo(torch.float32).max)
    return TokenScore(id=token, data=tokenizer.token_bytes(token), logprob=logprob, top=top)
