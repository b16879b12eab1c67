from __future__ import annotations

import pytest

from strop.contracts import Failed
from strop.errors import Aborted, ContextTooLong, EngineFailure, InvalidOption, InvalidRequest, NotReady, Overloaded, StropError
from strop.server.failures import failed, raised


@pytest.mark.parametrize("kind", [Aborted, ContextTooLong, EngineFailure, InvalidOption, InvalidRequest, NotReady, Overloaded])
def test_an_error_survives_the_way_as_an_event(kind: type[StropError]) -> None:
    back = raised(failed(kind("why")))
    assert (type(back), back.message, back.status, back.code) == (kind, "why", kind.status, kind.code)


def test_an_unknown_code_keeps_its_status_and_code() -> None:
    back = raised(Failed(status=404, code="nothing_there", message="why"))
    assert (back.status, back.code, back.message) == (404, "nothing_there", "why")


def test_an_unknown_status_is_an_engine_failure() -> None:
    assert isinstance(raised(Failed(status=599, code="x", message="why")), EngineFailure)
