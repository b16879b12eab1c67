"""The log-probabilities that an answer or an echoed prompt reports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from strop.contracts import TokenScore
from strop.kernels.row_stats import row_stats
from strop.server.models.tokenizer import Tokenizer


def score_tokens(
    logits: Tensor, tokens: Sequence[int], tops: Sequence[int | None], tokenizer: Tokenizer
) -> list[tuple[TokenScore, ...]]:
    """The score of each row's token under logits [B, V], with as many alternatives as `tops` says; () where it says None."""
    scores: list[tuple[TokenScore, ...]] = [()] * len(tokens)
    wanted = [i for i, top in enumerate(tops) if top is not None and tokens[i] >= 0]
    if not wanted:
        return scores
    rows = logits[wanted]
    most = max(tops[i] or 0 for i in wanted)
    ids = torch.cat([torch.tensor([[tokens[i]] for i in wanted]), rows.topk(min(most, rows.shape[1])).indices], 1)
    logprobs = row_stats(rows, ids=ids).logprobs
    for i, told in zip(wanted, zip(ids.tolist(), logprobs.tolist(), strict=True), strict=True):
        own, *best = zip(*told, strict=True)
        top = tuple(_score(*pair, tokenizer) for pair in best[: tops[i] or 0])
        scores[i] = (_score(*own, tokenizer, top),)
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
