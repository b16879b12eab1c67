"""Skeleton of the interface; the body follows."""

from __future__ import annotations

from strop.contracts import ChatRequest, CompletionRequest, TextPlan
from strop.server.house import House


def resolve(request: ChatRequest | CompletionRequest, house: House) -> list[TextPlan]:
    """One plan per prompt, in order. `request.sampler` holds only the options that the caller set (pydantic's
    `model_fields_set`); the model's defaults fill the rest."""
    return []
