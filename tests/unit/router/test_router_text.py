"""Text comes out the same however its tokens and pieces are split."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_toy_model import byte_fallback_tokenizer, byte_level_tokenizer, toy_card

from router.text.template import ChatTemplate
from router.text.tokenizer import ModelText
from wire.errors import ErrorCode, SpliceError
from wire.text.detokenizer import ByteLevelDetokenizer, WindowDetokenizer, make_detokenizer
from wire.text.stop import StopMatcher
from wire.text.vocabulary import Vocabulary

BYTE_LEVEL = Vocabulary(byte_level_tokenizer(), byte_level_tokenizer().to_str())
BYTE_FALLBACK = Vocabulary(byte_fallback_tokenizer(), byte_fallback_tokenizer().to_str())


def now() -> datetime:
    return datetime(2030, 5, 6, tzinfo=UTC)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, byte_level_tokenizer().get_vocab_size() - 1), max_size=40), st.booleans())
def test_byte_level_pieces_join_to_the_whole(ids: list[int], skip: bool) -> None:
    detokenizer = make_detokenizer(BYTE_LEVEL, skip_special_tokens=skip)
    assert isinstance(detokenizer, ByteLevelDetokenizer)
    joined = "".join(detokenizer.push(each) for each in ids) + detokenizer.flush()
    assert joined == byte_level_tokenizer().decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, byte_fallback_tokenizer().get_vocab_size() - 1), max_size=40), st.booleans())
def test_byte_fallback_pieces_join_to_the_whole(ids: list[int], skip: bool) -> None:
    detokenizer = make_detokenizer(BYTE_FALLBACK, skip_special_tokens=skip)
    assert isinstance(detokenizer, WindowDetokenizer)
    joined = "".join(detokenizer.push(each) for each in ids) + detokenizer.flush()
    assert joined == byte_fallback_tokenizer().decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("vocabulary", [BYTE_LEVEL, BYTE_FALLBACK])
@given(text=st.text(alphabet="abc é日🦊👩\u200d", max_size=30))
@settings(max_examples=100, deadline=None)
def test_valid_text_never_shows_a_replacement_character(vocabulary: Vocabulary, text: str) -> None:
    tokenizer = byte_level_tokenizer() if vocabulary is BYTE_LEVEL else byte_fallback_tokenizer()
    detokenizer = make_detokenizer(vocabulary)
    pieces = [detokenizer.push(each) for each in tokenizer.encode(text, add_special_tokens=False).ids]
    assert not any("\ufffd" in piece for piece in [*pieces, detokenizer.flush()])


def naive_stop(text: str, stops: list[str], include: bool) -> str:
    """The first end of any stop string in the text; the longest of those that end there."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[:end] if include else text[: end - max(len(stop) for stop in ended)]
    return text


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text(alphabet="ab", max_size=4), max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    st.booleans(),
)
def test_stop_strings_are_found_across_any_split(pieces: list[str], stops: list[str], include: bool) -> None:
    matcher = StopMatcher(stops, include_stop=include)
    out = "".join(matcher.feed(piece) for piece in pieces) + matcher.flush()
    assert out == naive_stop("".join(pieces), stops, include)


def test_text_that_cannot_begin_a_stop_string_is_not_held_back() -> None:
    matcher = StopMatcher(["STOP"])
    assert [matcher.feed(piece) for piece in ("hello S", "T", "x", " STO", "P more")] == ["hello ", "", "STx", " ", ""]
    assert matcher.matched == "STOP"
    assert matcher.feed("after") == ""


def test_template_errors_are_the_clients() -> None:
    template = ChatTemplate(toy_card(), now)
    with pytest.raises(SpliceError) as caught:
        template.render([{"role": "tool", "content": "x"}])
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert "no tools here" in caught.value.message


def test_templates_know_the_date_and_cannot_reach_python() -> None:
    dated = msgspec.structs.replace(toy_card(), chat_template="{{ strftime_now('%Y-%m') }}{{ messages | tojson }}")
    assert ChatTemplate(dated, now).render([{"role": "user", "content": "é<"}]).startswith('2030-05[{"role": "user"')
    hostile = msgspec.structs.replace(toy_card(), chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(SpliceError):
        ChatTemplate(hostile, now).render([{"role": "user", "content": ""}])


def test_a_model_without_a_template_says_so() -> None:
    bare = msgspec.structs.replace(toy_card(), chat_template=None)
    with pytest.raises(SpliceError, match="no chat template"):
        ChatTemplate(bare, now).render([])


async def test_long_texts_are_encoded_like_short_ones() -> None:
    text = ModelText(toy_card(), now)
    long = "The quick brown fox. " * 2000
    assert list(await text.encode(long, add_bos=False)) == byte_level_tokenizer().encode(long).ids
    assert (await text.encode("fox", add_bos=True))[0] == toy_card().bos_token_id
