"""The bytes of a body to a validated pydantic model, with every failure in the caller's terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from strop.errors import InvalidRequest, StropError, Unsupported, nearest, shorten

MAX_DEPTH = 64
UNSUPPORTED = "unsupported_parameter"
"""Type of the validation errors that mean: known, and not honoured here. `wire.fields` raises them."""
UNSUPPORTED_VALUE = "unsupported_value"
_CODES: Mapping[str, str] = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}

Body = TypeVar("Body", bound=BaseModel)


def decode(raw: bytes) -> dict[str, Any]:
    """A JSON object. Refuses what is no UTF-8, no JSON or no object, nesting beyond `MAX_DEPTH`, and NUL characters."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_kind(value)}", code="invalid_type")
    _check_nesting(value, look_for_nul=b"\\u0000" in raw)
    return _merge_extra_body(value)


OWN = frozenset({"guidance", "sampler", "rerank"})
"""Fields that are not OpenAI's: who sends one means it, so it is never dropped."""


def validate(model: type[Body], value: dict[str, Any], *, lenient: bool = False) -> tuple[Body, tuple[str, ...]]:
    """The model, and the fields that were dropped because they cannot be honoured (none unless `lenient`)."""
    try:
        return model.model_validate(value), ()
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        dropped = [found["loc"] for found in details if found["type"] == UNSUPPORTED]
        if not (lenient and dropped) or any(loc[0] in OWN for loc in dropped):
            raise refusal(details, model) from error
    for loc in dropped:
        _remove(value, loc)
    body, _ = validate(model, value)
    return body, tuple(sorted(dotted(loc) for loc in dropped))


def refusal(details: list[ErrorDetails], model: type[BaseModel]) -> StropError:
    """What is wrong first: unknown fields before unsupported ones before wrong values."""
    order = {"extra_forbidden": 0, UNSUPPORTED: 1}
    first = min(details, key=lambda found: order.get(found["type"], 2))
    param = dotted(first["loc"])
    if first["type"] in (UNSUPPORTED, UNSUPPORTED_VALUE):
        return Unsupported(f"{param}: {first['msg']}", param=param)
    text = first["msg"]
    if first["type"] == "extra_forbidden":
        valid = model.model_fields if len(first["loc"]) == 1 else ()
        text = f"unknown field.{nearest(str(first['loc'][-1]), valid)}"
    elif first["type"] == "model_type":
        text = "must be an object"
    elif first["type"] != "missing" and isinstance(first["input"], str | int | float):
        text += f" (given {_shown(first['input'])})"
    return InvalidRequest(f"{param}: {text}" if param else text, param=param or None, code=_CODES.get(first["type"]))


def dotted(loc: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` as `messages[0].role`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc if part != "[key]"]
    return shorten("".join(parts).removeprefix("."))


def _check_nesting(value: object, *, look_for_nul: bool) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        if look_for_nul and any("\0" in text for item in level for text in _texts(item)):
            raise InvalidRequest("NUL characters are not allowed in strings")
        level = [child for item in level if isinstance(item, dict | list) for child in _children(item)]
        if not level:
            return
    raise InvalidRequest(f"the body is nested more than {MAX_DEPTH} levels deep", code="invalid_json")


def _texts(item: object) -> list[str]:
    """The item itself if it is a string, the keys if it is an object."""
    if isinstance(item, str):
        return [item]
    return list(item) if isinstance(item, dict) else []


def _children(item: dict[str, Any] | list[Any]) -> Iterable[object]:
    return item.values() if isinstance(item, dict) else item


def _merge_extra_body(value: dict[str, Any]) -> dict[str, Any]:
    """A literal `extra_body` belongs at the top level; some clients send it as it stands in the openai SDK's call."""
    if "extra_body" not in value:
        return value
    extra = value.pop("extra_body")
    if extra is None:
        return value
    if not isinstance(extra, dict):
        raise InvalidRequest("extra_body must be a JSON object", param="extra_body", code="invalid_type")
    for name in extra.keys() & value.keys():
        if extra[name] != value[name]:
            raise InvalidRequest(f"{name} is given twice, with another value in extra_body", param=shorten(name))
    return value | extra


def _remove(value: Any, loc: tuple[int | str, ...]) -> None:
    for part in loc[:-1]:
        value = value[part]
    value.pop(loc[-1], None)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _shown(value: object) -> str:
    return shorten(repr(value))
