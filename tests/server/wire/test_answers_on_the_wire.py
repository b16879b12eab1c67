from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from strop.contracts import Delta, Done, Event, Evidence, PromptScored, TokenScore, Usage
from strop.server.wire.chunks import CHAT, Chunks, CompletionChunks
from strop.server.wire.replies import Identity, fingerprint
from strop.server.wire.schemas import ChatCompletionReply, CompletionReply
from strop.server.wire.scores import CompletionScores, chat_scores
from strop.server.wire.whole import CompletionWhole, Whole
from strop.testing import stub_card

WHO = Identity(id="x-1", created=7, model="m", system_fingerprint="fp_1")


def done(prompt: int = 3, completion: int = 2, cached: int = 1, seconds: float = 0.5) -> Done:
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
    return Done(usage=usage, evidence=Evidence(seconds=seconds, steps=2, nfe={"base": 2}, kernels={"attend": "c"}))


def score(data: bytes, logprob: float | None = -0.5, *, top: Sequence[tuple[bytes, float]] = ()) -> TokenScore:
    others = tuple(TokenScore(id=i, data=other, logprob=value) for i, (other, value) in enumerate(top))
    return TokenScore(id=0, data=data, logprob=logprob, top=others)


def parsed(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream that ends as it should."""
    *events, end, rest = raw.split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"")
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events]


def streamed(chunks: Chunks, events: Sequence[tuple[int, Event]]) -> list[dict[str, Any]]:
    return parsed(b"".join([*itertools.starmap(chunks.chunk, events), chunks.end()]))


ONE: list[tuple[int, Event]] = [
    (0, Delta(index=0, text='a"ü\n')),
    (0, Delta(index=0, text="b", finish="stop")),
    (0, done()),
]


def test_a_chat_stream_opens_with_the_role_and_ends_with_a_reason_and_evidence() -> None:
    first, *middle, last = streamed(Chunks(WHO, CHAT, n=1), ONE)
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert [chunk["choices"][0]["delta"] for chunk in middle] == [{"content": 'a"ü\n'}, {"content": "b"}]
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert last["strop"]["evidence"] == {"seconds": 0.5, "steps": 2, "nfe": {"base": 2}, "kernels": {"attend": "c"}}
    assert "strop" not in first
    for chunk in (first, *middle, last):
        assert {"id": "x-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}.items() <= chunk.items()
        assert "usage" not in chunk
        ChatCompletionChunk.model_validate(chunk, strict=True)


def test_usage_comes_in_a_last_chunk_without_choices() -> None:
    *chunks, last = streamed(Chunks(WHO, CHAT, n=1, include_usage=True), ONE)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 5
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert "evidence" in last["strop"]
    ChatCompletionChunk.model_validate(last, strict=True)


def test_a_delta_without_text_writes_nothing_unless_it_is_scored() -> None:
    chunks = Chunks(WHO, CHAT, n=1)
    assert chunks.chunk(0, Delta(index=0, text="a"))
    assert chunks.chunk(0, Delta(index=0, token_ids=(5,))) == b""
    written = chunks.chunk(0, Delta(index=0, scores=(score(b"\xc3"),)))
    [choice] = orjson.loads(written.removeprefix(b"data: "))["choices"]
    assert choice["delta"] == {"content": ""}
    assert choice["logprobs"]["content"][0]["bytes"] == [0xC3]


def test_a_choice_that_ends_early_is_told_before_the_others_go_on() -> None:
    events: list[tuple[int, Event]] = [
        (0, Delta(index=1, text="b", finish="length")),
        (0, Delta(index=0, text="a", finish="stop")),
        (0, done()),
    ]
    chunks = streamed(Chunks(WHO, CHAT, n=2), events)
    told = [(chunk["choices"][0]["index"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]
    assert told == [(1, None), (1, None), (1, "length"), (0, None), (0, None), (0, "stop")]
    assert ["strop" in chunk for chunk in chunks] == [False] * 5 + [True]


def test_a_completion_stream_echoes_each_prompt_once_with_its_scores() -> None:
    chunks = CompletionChunks(WHO, n=1, prompts=2, echoed=["ab", "c"])
    events: list[tuple[int, Event]] = [
        (1, PromptScored(scores=(score(b"c", None),))),
        (1, Delta(index=0, text="d", scores=(score(b"d"),), finish="stop")),
        (0, Delta(index=0, text="e", finish="length")),
        (1, done()),
        (0, done()),
    ]
    written = streamed(chunks, events)
    assert [(c["choices"][0]["index"], c["choices"][0]["text"]) for c in written] == [
        (1, "c"),
        (1, "d"),
        (1, ""),
        (0, "ab"),
        (0, "e"),
        (0, ""),
    ]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in written[:2]] == [[0], [1]]
    assert written[0]["choices"][0]["logprobs"]["token_logprobs"] == [None]
    assert written[-1]["strop"]["evidence"]["nfe"] == {"base": 4}


def test_a_whole_chat_answer_has_openais_shape() -> None:
    whole = Whole(WHO, n=2, scored=True)
    whole.add(0, Delta(index=1, text="b", scores=(score(b"b", top=[(b"b", -0.5), (b"c", -1.5)]),), finish="stop"))
    whole.add(0, Delta(index=0, text="a", scores=(score(b"a"),)))
    whole.add(0, Delta(index=0, text="!", scores=(score(b"!"),), finish="length"))
    whole.add(0, done(seconds=1.0))
    body = whole.body()
    ChatCompletion.model_validate(body, strict=True)
    ChatCompletionReply.model_validate(body, strict=True)
    assert [choice["message"]["content"] for choice in body["choices"]] == ["a!", "b"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "stop"]
    assert [top["token"] for top in body["choices"][1]["logprobs"]["content"][0]["top_logprobs"]] == ["b", "c"]
    assert body["usage"]["prompt_tokens"] == 3


def test_a_whole_completion_puts_the_prompt_before_each_choice() -> None:
    whole = CompletionWhole(WHO, n=2, prompts=2, echoed=["x", "y"], scored=True)
    for position in range(2):
        whole.add(position, PromptScored(scores=(score(b"xy"[position : position + 1], None),)))
        for index in range(2):
            text = str(2 * position + index)
            whole.add(position, Delta(index=index, text=text, scores=(score(text.encode()),), finish="stop"))
        whole.add(position, done())
    body = whole.body()
    CompletionReply.model_validate(body, strict=True)
    assert [choice["text"] for choice in body["choices"]] == ["x0", "x1", "y2", "y3"]
    assert body["choices"][3]["logprobs"] == {
        "tokens": ["y", "3"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"3": -0.5}],
        "text_offset": [0, 1],
    }
    assert body["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 4,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_answers_without_scores_have_no_logprobs() -> None:
    whole = CompletionWhole(WHO, n=1, prompts=1, echoed=[], scored=False)
    whole.add(0, Delta(index=0, text="a", finish="stop"))
    whole.add(0, done())
    body = whole.body()
    assert body["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}]
    Completion.model_validate(body, strict=True)


def test_pieces_of_characters_keep_their_bytes_and_offsets() -> None:
    lists = CompletionScores().add([score(b"a"), score(b"\xe2\x82"), score(b"\xac"), score(b"b")])
    assert lists["tokens"] == ["a", "bytes:\\xe2\\x82", "bytes:\\xac", "b"]
    assert lists["text_offset"] == [0, 1, 1, 2]
    [first] = chat_scores([score(b"\xe2\x82")])["content"]
    assert (first["token"], first["bytes"]) == ("\ufffd", [0xE2, 0x82])


def test_an_impossible_token_gets_a_number_json_can_say() -> None:
    [told] = chat_scores([score(b"a", float("-inf"))])["content"]
    assert told["logprob"] == -9999.0
    assert CompletionScores().add([score(b"a", float("-inf"))])["token_logprobs"] == [-9999.0]


@pytest.mark.parametrize("field", ["name", "engine", "source", "dtype"])
def test_the_fingerprint_follows_what_computes_the_answer(field: str) -> None:
    import dataclasses

    card = stub_card()
    other = dataclasses.replace(card, **{field: "other"})
    assert fingerprint(card) == fingerprint(dataclasses.replace(card, created=5))
    assert fingerprint(card) != fingerprint(other)


def test_identities_differ_between_answers() -> None:
    first, second = (Identity.fresh("chatcmpl", "m", stub_card()) for _ in range(2))
    assert first.id != second.id
    assert first.id.startswith("chatcmpl-")
