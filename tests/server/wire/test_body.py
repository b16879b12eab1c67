from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from strop.errors import InvalidRequest, Unsupported
from strop.server.wire.body import MAX_DEPTH, decode, dotted, validate
from strop.server.wire.chat import ChatCompletionBody
from strop.server.wire.tokens import DetokenizeBody, TokenizeBody


def nested(depth: int) -> bytes:
    """An object that holds `depth` - 1 arrays, one in the other."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"", "invalid_json", "not valid JSON"),
        (b"nonsense", "invalid_json", "not valid JSON"),
        (b'{"a": NaN}', "invalid_json", "not valid JSON"),
        (b'{"a": 1e999}', "invalid_json", "not valid JSON"),
        (b'{"a": "\xff"}', "invalid_json", "not valid JSON"),
        (b'{"a": "\\ud800"}', "invalid_json", "not valid JSON"),
        (b'{"\\udc00": 1}', "invalid_json", "not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "invalid_json", "not valid JSON"),
        (b"[" * 10_000 + b"]" * 10_000, "invalid_json", "not valid JSON"),
        (nested(10_000), "invalid_json", "not valid JSON"),
        (nested(MAX_DEPTH + 1), "invalid_json", f"more than {MAX_DEPTH} levels"),
        (b"[]", "invalid_type", "not an array"),
        (b'"text"', "invalid_type", "not a string"),
        (b"true", "invalid_type", "not a boolean"),
        (b"3", "invalid_type", "not a number"),
        (b"3.5", "invalid_type", "not a number"),
        (b"null", "invalid_type", "not null"),
        (b'{"a": "x\\u0000y"}', "invalid_value", "NUL"),
        (b'{"a": [{"b": "\\u0000"}]}', "invalid_value", "NUL"),
        (b'{"\\u0000": 1}', "invalid_value", "NUL"),
        (b'{"extra_body": 3}', "invalid_type", "extra_body"),
        (b'{"n": 1, "extra_body": {"n": 2}}', "invalid_value", "n is given twice"),
    ],
)
def test_what_is_no_plain_json_object_is_refused(raw: bytes, code: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        decode(raw)
    assert caught.value.code == code


def test_nesting_up_to_the_cap_and_an_escaped_backslash_pass() -> None:
    assert decode(nested(MAX_DEPTH - 1))
    assert decode(b'{"a": "\\\\u0000"}') == {"a": "\\u0000"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"n": 1, "extra_body": {"top_k": 2}}', {"n": 1, "top_k": 2}),
        (b'{"n": 1, "extra_body": {"n": 1}}', {"n": 1}),
        (b'{"n": 1, "extra_body": null}', {"n": 1}),
    ],
)
def test_a_nested_extra_body_is_merged(raw: bytes, expected: dict[str, Any]) -> None:
    assert decode(raw) == expected


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_an_object_or_a_refusal(raw: bytes) -> None:
    try:
        assert isinstance(decode(raw), dict)
    except InvalidRequest as error:
        assert error.message


CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_unknown_fields_are_told_before_anything_else_and_with_the_nearest_name() -> None:
    with pytest.raises(InvalidRequest, match=r"temprature: unknown field\. Did you mean 'temperature'") as caught:
        validate(ChatCompletionBody, CHAT | {"tools": [1], "n": "x", "temprature": 1})
    assert (caught.value.param, caught.value.code) == ("temprature", "unknown_parameter")


def test_a_missing_field_and_a_wrong_value_are_told_by_path() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(ChatCompletionBody, {"messages": CHAT["messages"]})
    assert (caught.value.param, caught.value.code) == ("model", "missing_required_parameter")
    with pytest.raises(InvalidRequest, match="given 'robot'") as caught:
        validate(ChatCompletionBody, {"model": "m", "messages": [{"role": "robot", "content": ""}]})
    assert caught.value.param == "messages[0].role"


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(ChatCompletionBody, CHAT | {"n": "x" * 10_000})
    assert len(caught.value.message) < 200
    with pytest.raises(InvalidRequest) as caught:
        validate(ChatCompletionBody, CHAT | {"x" * 10_000: 1})
    assert len(caught.value.message) < 200


def test_a_long_list_of_wrong_values_is_left_at_the_first() -> None:
    for kind, field in ((DetokenizeBody, "tokens"), (TokenizeBody, "messages")):
        with pytest.raises(ValidationError) as refusal:
            kind.model_validate({"model": "m", field: [[]] * 1000})
        assert refusal.value.error_count() == 1


def test_lenient_drops_what_is_unsupported_wherever_it_stands() -> None:
    asked = CHAT | {"store": True, "stream": True, "stream_options": {"include_obfuscation": True, "include_usage": True}}
    with pytest.raises(Unsupported):
        validate(ChatCompletionBody, dict(asked))
    body, ignored = validate(ChatCompletionBody, dict(asked), lenient=True)
    assert ignored == ("store", "stream_options.include_obfuscation")
    assert body.stream_options is not None
    assert body.stream_options.include_usage is True


def test_lenient_never_drops_strop_s_own_fields() -> None:
    with pytest.raises(Unsupported, match="rerank"):
        validate(ChatCompletionBody, CHAT | {"store": True, "rerank": {"n": 4}}, lenient=True)


def test_lenient_still_refuses_unknown_fields_and_wrong_values() -> None:
    with pytest.raises(InvalidRequest, match="temprature"):
        validate(ChatCompletionBody, CHAT | {"store": True, "temprature": 1}, lenient=True)
    with pytest.raises(InvalidRequest, match="temperature"):
        validate(ChatCompletionBody, CHAT | {"store": True, "temperature": 9}, lenient=True)


def test_an_error_of_the_whole_body_has_no_param() -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(strict=True)

    with pytest.raises(InvalidRequest) as caught:
        validate(Odd, [])  # type: ignore[arg-type]  # what pydantic says of a body that is no object
    assert caught.value.param is None


def test_paths_read_like_the_body() -> None:
    assert dotted(("messages", 0, "content")) == "messages[0].content"
    assert dotted(("logit_bias", "x", "[key]")) == "logit_bias.x"
