"""Commands that need more than the base install say so in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from strop.errors import ConfigError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports inside that fail are told as the extra to install."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"this command needs more packages ({error}): pip install 'strop[{extra}]'") from error
