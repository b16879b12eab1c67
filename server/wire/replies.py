"""What every answer carries besides its text: identity, usage and evidence, summed over the plans of one request."""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson

from strop.contracts import Done, ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The fields that all chunks of one answer repeat."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def fresh(cls, prefix: str, model: str, card: ModelCard) -> Identity:
        return cls(
            id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=model, system_fingerprint=fingerprint(card)
        )

    def fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }

    def opening(self, kind: str) -> bytes:
        """The fields as the beginning of a JSON object that `choices` continues."""
        return orjson.dumps(self.fields(kind))[:-1] + b',"choices":'


def fingerprint(card: ModelCard) -> str:
    """Changes with whatever can change a seeded answer on one machine: weights, engine and number format."""
    told = "\0".join((card.name, card.engine, card.source, card.dtype))
    return "fp_" + hashlib.sha256(told.encode()).hexdigest()[:12]


@dataclass(slots=True)
class Totals:
    """The sum of what the plans of one request report at their end."""

    done: list[Done] = field(default_factory=list)

    def add(self, done: Done) -> None:
        self.done.append(done)

    def usage(self) -> dict[str, Any]:
        usages = [done.usage for done in self.done]
        prompt, completion = sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in usages)},
        }

    def strop(self) -> dict[str, Any]:
        """Plans of one request run side by side: seconds and steps are the longest, network rows the sum."""
        all_evidence = [done.evidence for done in self.done]
        nfe: dict[str, int] = {}
        for evidence in all_evidence:
            for role, rows in evidence.nfe.items():
                nfe[role] = nfe.get(role, 0) + rows
        return {
            "evidence": {
                "seconds": max((e.seconds for e in all_evidence), default=0.0),
                "steps": max((e.steps for e in all_evidence), default=0),
                "nfe": nfe,
                "kernels": {name: path for e in all_evidence for name, path in e.kernels.items()},
            }
        }
