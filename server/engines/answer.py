"""From the tokens of one choice to the deltas a caller sees: text, stop conditions, token scores."""

from __future__ import annotations

from collections.abc import Sequence

from strop.contracts import Delta, FinishReason, TextPlan, TokenScore
from strop.server.models.tokenizer import Tokenizer


class Answer:
    """One choice's text as it grows. Text that may turn out to begin a stop string is held back until that is decided."""

    def __init__(self, plan: TextPlan, index: int, tokenizer: Tokenizer) -> None:
        self._plan = plan
        self._index = index
        self._stream = tokenizer.stream(plan.prompt)
        self._held = ""
        self.count = 0

    def push(self, token: int, scores: tuple[TokenScore, ...] = ()) -> Delta:
        """The delta that `token` makes. Its `finish` is set when the choice ends with it."""
        plan = self._plan
        self.count += 1
        finish: FinishReason | None = None
        if token in plan.stop_token_ids and self.count >= plan.min_tokens:
            finish = "stop"
        else:
            self._held += self._stream.push(token)
        if finish is None and self.count >= plan.max_tokens:
            finish = "length"
        text, stopped = self._release(ended=finish is not None)
        return Delta(index=self._index, text=text, token_ids=(token,), scores=scores, finish="stop" if stopped else finish)

    def end(self) -> Delta:
        """The last delta of a choice that generates nothing."""
        return Delta(index=self._index, finish="length")

    def _release(self, *, ended: bool) -> tuple[str, bool]:
        """Text that is safe to send now, and whether a stop string was met."""
        if ended:
            self._held += self._stream.flush()
        if self._plan.stop and self.count >= self._plan.min_tokens:
            cut = min((at for at in map(self._held.find, self._plan.stop) if at >= 0), default=-1)
            if cut >= 0:
                text, self._held = self._held[:cut], ""
                return text, True
        keep = 0 if ended else overlap(self._held, self._plan.stop)
        split = len(self._held) - keep
        text, self._held = self._held[:split], self._held[split:]
        return text, False


def overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `stops` and is not the whole of it."""
    return max(
        (size for stop in stops for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])),
        default=0,
    )
