"""A request of low priority finishes, whatever keeps arriving."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_scheduler import PlayedScheduler, request_of

from engine.config import EngineConfig
from wire.errors import ErrorCode, SpliceError

LOW = (1, 1)


def crowd(ageing_steps, levels, lengths, *, host_blocks=0, num_steps):
    """One low request among ever more urgent ones, one a step; which were admitted when, and when it was done."""
    config = EngineConfig(
        num_blocks=12,
        block_tokens=4,
        max_model_len=40,
        max_num_seqs=3,
        max_num_batched_tokens=12,
        ageing_steps=ageing_steps,
        num_host_blocks=host_blocks,
    )
    played = PlayedScheduler(config)
    played.scheduler.submit(request_of((2, 1), 30, 9))
    played.step()
    played.scheduler.submit(request_of(LOW, 20, 15, priority=levels))
    admitted: dict[tuple[int, int], int] = {}
    arrived: dict[tuple[int, int], int] = {}
    for step in range(num_steps):
        key = (3 + step, 1)
        length, max_tokens = lengths[step % len(lengths)]
        arrived[key] = played.steps
        played.scheduler.submit(request_of(key, length, max_tokens))
        plan = played.step()
        admitted.update((request.key, played.steps) for request in plan.admitted)
        if LOW in played.done:
            break
    return played, admitted, arrived


lengths = st.lists(st.tuples(st.integers(1, 24), st.integers(1, 14)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ageing_steps=st.integers(1, 12), levels=st.integers(0, 8), lengths=lengths, host_blocks=st.sampled_from([0, 9]))
def test_a_low_request_is_overtaken_only_by_those_that_arrive_within_the_bound(
    ageing_steps, levels, lengths, host_blocks
):
    played, admitted, arrived = crowd(ageing_steps, levels, lengths, host_blocks=host_blocks, num_steps=4000)
    assert LOW in played.done
    # Its own arrival is step 1: whoever comes `levels * ageing_steps` later is behind it.
    late = [key for key, step in arrived.items() if step > 1 + levels * ageing_steps]
    overtaking = [key for key in late if admitted.get(key, played.steps + 1) < admitted[LOW]]
    assert not overtaking
    assert not [key for key in late if key in played.done and played.done[key] < admitted[LOW]]


def test_without_ageing_it_would_wait_for_ever():
    played, admitted, _ = crowd(10**9, 1, [(8, 6)], num_steps=400)
    assert LOW not in admitted
    assert len(played.done) > 100


def test_a_preempted_request_keeps_its_seniority():
    config = EngineConfig(
        num_blocks=12, block_tokens=4, max_model_len=40, max_num_seqs=4, max_num_batched_tokens=12, ageing_steps=5
    )
    played = PlayedScheduler(config)
    requests = [request_of((key, 1), 7, 30) for key in range(1, 5)]
    for request in requests:
        played.scheduler.submit(request)
    ranks = [request.seniority for request in requests]
    preempted = 0
    while played.scheduler.requests:
        preempted += played.step().num_preempted
    assert preempted > 0
    assert [request.seniority for request in requests] == ranks
    assert list(played.done) == [request.key for request in requests], "first come, first done"


def test_levels_of_priority_are_kept_among_those_that_arrive_together():
    played = PlayedScheduler(EngineConfig(num_blocks=40, max_model_len=64, max_num_seqs=1, block_tokens=4))
    for key, priority in [(1, 2), (2, 0), (3, 1), (4, -1), (5, 0)]:
        played.scheduler.submit(request_of((key, 1), 9, 2, priority=priority))
    while played.scheduler.requests:
        played.step()
    assert [key for key, _ in played.done] == [4, 2, 5, 3, 1]


def test_an_ageing_that_never_comes_is_refused():
    with pytest.raises(SpliceError) as caught:
        EngineConfig(num_blocks=9, max_model_len=10, ageing_steps=0)
    assert (caught.value.code, caught.value.param) == (ErrorCode.BAD_SETTING, "ageing_steps")
