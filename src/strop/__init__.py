"""strop: an inference and generation server that spends extra compute at request time where it pays.

The SDK's names are loaded on first use, so that `import strop` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strop.client import AsyncClient, Client, evidence
    from strop.errors import StropError

__all__ = ["AsyncClient", "Client", "StropError", "evidence"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'strop' has no attribute {name!r}")
    home = "strop.errors" if name == "StropError" else "strop.client"
    return getattr(importlib.import_module(home), name)
