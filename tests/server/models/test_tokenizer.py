from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import EOS, VOCABULARY, save_tokenizer
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models

from strop.errors import InvalidRequest, ModelLoadError
from strop.server.models.tokenizer import TextStream, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Tokenizer(folder, vocabulary=VOCABULARY, eos_ids=())


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=WORDS)
def test_bytes_and_streams_spell_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, special=False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream(tokenizer.encode("the", special=False))
    assert "".join(stream.push(token) for token in ids) + stream.flush() == text


def test_an_unfinished_character_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream([])
    ids = tokenizer.encode("🙂", special=False)
    assert [stream.push(token) for token in ids[:-1]] == ["", "", ""]
    assert set(stream.flush()) == {"\ufffd"}
    assert stream.flush() == ""


def test_bytes_that_turn_out_invalid_end_no_stream() -> None:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"\u2581a": 256, "b": 257, "<unk>": 258}
    fast = Fast(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    stream = TextStream(fast, [256])
    assert [stream.push(token) for token in (0x0A, 0xFF, 257, 256, 257)] == ["\n", "", "\ufffdb", " a", "b"]


def test_a_prompt_that_ends_inside_a_character_is_not_told_again(tokenizer: Tokenizer) -> None:
    *begun, last = tokenizer.encode("the 🙂", special=False)
    stream = tokenizer.stream(begun)
    assert "the" not in stream.push(last) + stream.push(tokenizer.encode("a", special=False)[0])


def test_special_tokens_are_known_and_not_streamed(tokenizer: Tokenizer) -> None:
    assert EOS in tokenizer.special_ids
    assert tokenizer.eos_ids == (EOS,)
    stream = tokenizer.stream([])
    assert stream.push(EOS) + stream.flush() == ""
    assert tokenizer.token_bytes(EOS) == b"</s>"
    assert tokenizer.token_bytes(VOCABULARY + 5) == b""


def test_chat_uses_the_model_s_template(tokenizer: Tokenizer) -> None:
    ids = tokenizer.chat([{"role": "user", "content": "the"}])
    assert tokenizer.decode(ids) == "[user]the[assistant]"


def test_what_the_template_refuses_is_the_caller_s_mistake(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="no tools"):
        tokenizer.chat([{"role": "tool", "content": "x"}])


def test_a_template_cannot_reach_python(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidRequest, match="refuses"):
        Tokenizer(tmp_path, vocabulary=VOCABULARY, eos_ids=()).chat([{"role": "user", "content": "x"}])


def test_no_template_no_chat(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, template=None)
    tokenizer = Tokenizer(tmp_path, vocabulary=VOCABULARY, eos_ids=(7,))
    assert not tokenizer.has_chat_template
    assert tokenizer.eos_ids == (EOS, 7)
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "x"}])


def test_an_end_that_the_network_cannot_say_is_none(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    assert Tokenizer(tmp_path, vocabulary=EOS, eos_ids=(1, 7)).eos_ids == (1,)


def test_no_tokenizer_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="tokenizer"):
        Tokenizer(tmp_path, vocabulary=VOCABULARY, eos_ids=())
