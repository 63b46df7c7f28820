"""The table knows every request from arrival to end, and at most one attempt of each."""

from __future__ import annotations

import pytest
from role_bench import RecordingSession

from worker.request_table import RequestTable, Tracked

HERE, THERE = RecordingSession(), RecordingSession()


def tracked(request: int, attempt: int = 1, deadline_s: float = 10.0, session: RecordingSession = HERE) -> Tracked:
    return Tracked((request, attempt), session, 0.0, deadline_s)


def test_a_newer_attempt_takes_the_place_of_the_older_one() -> None:
    table = RequestTable()
    first = tracked(1)
    assert table.add(first) is None
    assert table.add(tracked(1, 2)) is first
    assert [each.key for each in table] == [(1, 2)]
    assert table.remove((1, 1)) is None
    assert table.remove((1, 2)) is not None
    assert len(table) == 0


@pytest.mark.parametrize("late", [1, 2])
def test_an_attempt_that_is_repeated_or_older_is_refused(late: int) -> None:
    table = RequestTable()
    table.add(tracked(1, 2))
    with pytest.raises(KeyError):
        table.add(tracked(1, late))
    assert [each.key for each in table] == [(1, 2)]


def test_what_is_removed_is_forgotten_for_good() -> None:
    table = RequestTable()
    table.add(tracked(1, 3))
    table.remove((1, 3))
    assert table.add(tracked(1, 1)) is None
    assert table.get((1, 3)) is None


def test_deadlines_and_sessions_select_their_own() -> None:
    table = RequestTable()
    table.add(tracked(1, deadline_s=5.0))
    table.add(tracked(2, deadline_s=6.0, session=THERE))
    assert [each.key for each in table.expired(5.0)] == [(1, 1)]
    assert [each.key for each in table.of_session(THERE)] == [(2, 1)]
