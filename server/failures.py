"""Errors as events: an engine's failure crosses threads and processes as data and is raised again on the other side."""

from __future__ import annotations

from collections.abc import Iterator

from strop.contracts import Failed
from strop.errors import EngineFailure, StropError


def failed(error: StropError) -> Failed:
    return Failed(status=error.status, code=error.code, message=error.message)


def raised(event: Failed) -> StropError:
    """The error that `event` stands for: the class of the same status and code, else the plainest of that status."""
    same_status = [kind for kind in _tree(StropError) if kind.status == event.status]
    same_code = [kind for kind in same_status if kind.code == event.code]
    kind = (same_code or same_status or [EngineFailure])[0]
    return kind(event.message, code=event.code)


def _tree(root: type[StropError]) -> Iterator[type[StropError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from _tree(kind)
