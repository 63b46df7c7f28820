from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splice.bench import sse
from splice.bench.sse import EventParser
from wire.errors import SpliceError

STREAM = b': hello\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata:two\ndata: lines\n\n\n\ndata: [DONE]\n\n'
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parser = EventParser()
    found = [event for start, end in itertools.pairwise(edges) for event in parser.feed(STREAM[start:end])]
    assert found == EVENTS


def test_what_follows_the_last_empty_line_is_no_event() -> None:
    assert EventParser().feed(b"data: a\n\ndata: b\n") == [b"a"]


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 100)
    parser = EventParser()
    parser.feed(b"x" * 100)
    with pytest.raises(SpliceError, match="more than 100 bytes"):
        parser.feed(b"x")
