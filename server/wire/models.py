"""A model's entry in /v1/models, short and in full."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from strop.server.house import Listed

OWNER = "strop"


def model_entry(listed: Listed) -> dict[str, Any]:
    return {"id": listed.id, "object": "model", "created": listed.card.created, "owned_by": OWNER}


def model_detail(listed: Listed) -> dict[str, Any]:
    card = listed.card
    facts = {
        "domain": card.domain,
        "engine": card.engine,
        "source": _without_folders(card.source),
        "dtype": card.dtype,
        "context_length": card.context_length,
        "vocabulary": card.vocabulary,
        "roles": list(card.roles),
        "capabilities": list(card.capabilities),
        "preset_of": listed.preset_of,
        "guidance": dict(listed.guidance),
        "samplers": dict(listed.samplers),
        "verifiers": dict(listed.verifiers),
    }
    return model_entry(listed) | {"strop": facts}


def _without_folders(source: str) -> str:
    """Where a model lies on the server's disk is nobody's business."""
    path = PurePath(source)
    return path.name if path.is_absolute() or source.startswith((".", "~")) else source
