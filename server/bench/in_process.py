"""The engine behind executor and scheduler, without HTTP: the server's own way of answering, less the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from strop.contracts import ChatRequest, Delta, Done
from strop.samplers.tokens import Tokens
from strop.server.bench.figures import Answer
from strop.server.house import House
from strop.server.plan import resolve


async def ask(house: House, model: str, questions: Sequence[str], tokens: int) -> list[Answer]:
    """Answer all questions at once, each in exactly `tokens` tokens, greedily."""
    return list(await asyncio.gather(*(_ask(house, model, question, tokens) for question in questions)))


async def _ask(house: House, model: str, question: str, tokens: int) -> Answer:
    sent = time.perf_counter()
    request = ChatRequest(
        model=model,
        messages=({"role": "user", "content": question},),
        sampler=Tokens(temperature=0.0),
        max_tokens=tokens,
        ignore_eos=True,
        seed=0,
    )
    arrivals: list[float] = []
    generated = 0
    (stream,) = house.find(model).scheduler.submit(resolve(request, house))
    async with stream:
        async for event in stream:
            if isinstance(event, Delta) and event.text:
                arrivals.append(time.perf_counter() - sent)
            elif isinstance(event, Done):
                generated = event.usage.completion_tokens
    return Answer(arrivals=tuple(arrivals), tokens=generated)
