"""A tiny engine for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from strop.server.engines.causal import CausalEngine
from strop.server.models.causal.network import Network


@pytest.fixture(scope="module")
def net() -> Network:
    return tiny.network()


@pytest.fixture(scope="module")
def small() -> Network:
    return tiny.network(kv_bytes=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(folder)
    return folder


@pytest.fixture
def engine(net: Network, folder: Path) -> CausalEngine:
    return tiny.engine(net, folder)
