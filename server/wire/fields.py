"""Field types that the request bodies share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from strop.server.wire.body import UNSUPPORTED, UNSUPPORTED_VALUE

MAX_SEED = 2**63 - 1
MAX_TOKEN_ID = 2**31 - 1


class Body(BaseModel):
    """JSON types are taken as they are: no string stands for a number, no number for a boolean."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Only:
    """Marks a field of OpenAI's API that cannot be honoured: it passes with the values that ask for nothing."""

    values: tuple[Any, ...]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.values)}

    def _check(self, value: Any) -> Any:
        if any(value == valid and type(value) is type(valid) for valid in self.values):
            return value
        raise PydanticCustomError(UNSUPPORTED, "not supported by this server; leave it out")


def unsupported(message: str) -> PydanticCustomError:
    """The refusal of a value that asks for something this server cannot do, in a field that it does honour."""
    return PydanticCustomError(UNSUPPORTED_VALUE, "{reason}", {"reason": message})


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    """The text of OpenAI's content parts, joined by line breaks; other values unchanged."""
    if not isinstance(value, list):
        return value
    return "\n".join(_part_text(part, position) for position, part in enumerate(value))


def _part_text(part: Any, position: int) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise PydanticCustomError("content_part", "part {at} must be an object with a type", {"at": position})
    if part["type"] != "text":
        raise unsupported(f"part {position}: only parts of type 'text' are supported")
    if not isinstance(part.get("text"), str) or part.keys() != {"type", "text"}:
        raise PydanticCustomError("content_part", "part {at} must have 'type' and 'text', a string", {"at": position})
    text: str = part["text"]
    return text


class TextPart(Body):
    """A piece of a message."""

    type: Annotated[str, Field(json_schema_extra={"const": "text"})]
    text: str


Strings = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Content = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | list[TextPart])]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
Seed = Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)]
