"""A prefill worker holds what it computed until the lease ends, and nothing longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from role_bench import RecordingSession, RoleBench, submit

from engine.scheduling.request import RequestKind
from prefill_worker.role import PrefillRole
from wire.convert import sampling_to_proto
from wire.sampling import SamplingParams

PREFILL = RequestKind.PREFILL


@pytest.fixture
def bench(tiny: Path) -> RoleBench[PrefillRole]:
    return RoleBench(tiny, PrefillRole)


def test_a_computed_prompt_is_held_until_it_is_cancelled(bench: RoleBench[PrefillRole]) -> None:
    bench.role.submit(PREFILL, submit(), bench.session)
    bench.turn(3)
    [frame] = bench.session.of("frame")
    assert list(frame.handed_off) == [True]
    assert bench.engine.load().held_blocks == 2
    bench.role.cancel((1, 1))
    bench.turn()
    assert bench.is_empty


def test_a_prompt_cancelled_before_or_amid_its_computation_leaves_nothing(bench: RoleBench[PrefillRole]) -> None:
    bench.role.submit(PREFILL, submit(1, length=500), bench.session)
    bench.role.submit(PREFILL, submit(2, length=500), bench.session)
    bench.turn()
    bench.role.cancel((1, 1))
    bench.role.cancel((2, 1))
    bench.turn(3)
    assert bench.is_empty
    assert not bench.session.tokens


def test_an_answer_of_one_token_is_never_held(bench: RoleBench[PrefillRole]) -> None:
    one = sampling_to_proto(SamplingParams(max_tokens=1, temperature=0.0))
    bench.role.submit(PREFILL, submit(sampling=one), bench.session)
    bench.turn(3)
    assert len(bench.session.tokens) == 1
    assert bench.is_empty


def test_an_answer_complete_on_arrival_leaves_nothing(bench: RoleBench[PrefillRole]) -> None:
    one = sampling_to_proto(SamplingParams(max_tokens=1, temperature=0.0))
    message = submit(sampling=one, num_prompt_tokens=39)
    bench.role.submit(PREFILL, message, bench.session)
    bench.turn(2)
    assert bench.is_empty
    assert not bench.role._held


def test_the_same_prompt_gives_the_same_token_cached_or_not(bench: RoleBench[PrefillRole]) -> None:
    again = submit(1, attempt=2)
    for message in (submit(1), again):
        bench.role.submit(PREFILL, message, bench.session)
        bench.turn(3)
        bench.role.cancel((1, message.attempt))
        bench.turn()
    first, second = bench.session.tokens
    assert first == second
    assert bench.session.of("frame")[1].cached_tokens == [39]


def test_a_newer_attempt_replaces_the_older_one_wherever_it_stands(bench: RoleBench[PrefillRole]) -> None:
    bench.role.submit(PREFILL, submit(attempt=1), bench.session)
    bench.turn(2)
    other = RecordingSession()
    bench.role.submit(PREFILL, submit(attempt=2), other)
    bench.turn(3)
    assert [tracked.key for tracked in bench.role.table] == [(1, 2)]
    assert other.tokens == bench.session.tokens
    bench.role.session_lost(bench.session)
    assert len(bench.role.table) == 1
    bench.role.session_lost(other)
    bench.turn(2)
    assert bench.is_empty


def test_a_deadline_ends_a_held_prompt_with_an_error(bench: RoleBench[PrefillRole]) -> None:
    bench.role.submit(PREFILL, submit(timeout_s=1.0), bench.session)
    bench.turn(2)
    bench.now_s = 1.0
    bench.turn(2)
    assert bench.session.codes == ["deadline_exceeded"]
    assert bench.is_empty


def test_a_prompt_that_cannot_be_announced_fails_alone(
    bench: RoleBench[PrefillRole], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(type(bench.memory), "digest", lambda *_: 1 / 0)
        bench.role.submit(PREFILL, submit(1), bench.session)
        bench.turn()
    bench.role.submit(PREFILL, submit(2), bench.session)
    bench.turn(2)
    [failed] = bench.session.of("failed")
    assert (failed.request, failed.code, failed.retryable) == (1, "internal_error", True)
    assert [tracked.key for tracked in bench.role.table] == [(2, 1)]
    bench.role.cancel((2, 1))
    bench.turn(2)
    assert bench.is_empty


def test_unreadable_requests_are_refused_one_by_one(bench: RoleBench[PrefillRole]) -> None:
    bench.role.submit(PREFILL, submit(1, num_prompt_tokens=0), bench.session)
    bench.role.submit(PREFILL, submit(2, tokens=[]), bench.session)
    bench.role.submit(PREFILL, submit(3, tokens=[4_000_000]), bench.session)
    bench.role.submit(RequestKind.RESERVE, submit(4), bench.session)
    bench.turn()
    assert bench.session.codes == ["invalid_request"] * 4
    assert not any(failed.retryable for failed in bench.session.of("failed"))
    assert bench.is_empty
