"""Messages come off a stream as they went onto it, however the stream is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import SpliceError
from wire.framing import MAX_MESSAGE_BYTES, FrameReader, framed


@given(messages=st.lists(st.binary(max_size=300), max_size=12), cuts=st.lists(st.integers(0, 4000), max_size=30))
def test_messages_survive_any_cuts(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(framed(message) for message in messages)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = FrameReader()
    seen = [message for start, end in pairwise(edges) for message in reader.feed(stream[start:end])]
    assert seen == messages


def test_a_message_is_out_as_soon_as_it_is_whole() -> None:
    reader, data = FrameReader(), framed(b"abc") + framed(b"")
    assert [reader.feed(data[index : index + 1]) for index in range(len(data))] == [
        *([[]] * 6),
        [b"abc"],
        *([[]] * 3),
        [b""],
    ]


def test_more_than_the_limit_is_not_waited_for() -> None:
    with pytest.raises(SpliceError, match="at most"):
        FrameReader().feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"))
