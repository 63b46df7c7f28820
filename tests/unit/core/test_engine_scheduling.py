"""Who runs when, who waits, who gives way, and how requests end."""

from __future__ import annotations

import pytest
from engine_bench import EOS

from engine.blocks.block_pool import BlockPool, BlockState, ListGenerations
from engine.config import EngineConfig
from engine.engine import Engine
from engine.scheduling.request import Request, RequestKind, RequestStatus
from wire.block_hash import root_hash
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason, SamplingParams

FREE_RUN = {"ignore_eos": True, "max_tokens": 30}


def status(bench, key):
    return next((each.status for each in bench.engine.requests() if each.key == key), None)


def test_decoding_requests_come_first_and_prompts_share_what_is_left(make_bench):
    bench = make_bench(max_num_batched_tokens=10, max_num_seqs=4)
    first = bench.submit([1, 2, 3], **FREE_RUN)
    bench.step()
    bench.submit(list(range(40)), **FREE_RUN)
    bench.step()
    bench.submit([4, 5, 6], **FREE_RUN)
    bench.step()
    lengths = [[len(part.token_ids) for part in batch.slices] for batch in bench.model.batches]
    assert lengths == [[3], [1, 8], [1, 8]]
    assert len(bench.answer(first)) == 3


def test_a_step_never_exceeds_its_token_budget_or_its_places(make_bench):
    bench = make_bench(max_num_batched_tokens=11, max_num_seqs=5)
    for index in range(12):
        bench.submit(list(range(3 + 4 * index)), **FREE_RUN)
    bench.run()
    assert max(sum(len(part.token_ids) for part in batch.slices) for batch in bench.model.batches) <= 11
    assert bench.engine.stats.max_batch_rows == 5


def test_lower_priority_values_run_first_and_equals_in_order_of_arrival(make_bench):
    bench = make_bench(max_num_seqs=1)
    running = bench.submit([1], max_tokens=2)
    bench.step()
    late, early, urgent = bench.submit([2]), bench.submit([3]), bench.submit([4], priority=-1)
    bench.run()
    order = list(bench.rows)
    assert order == [running, urgent, late, early]


def test_nobody_is_overtaken_for_memory(make_bench):
    bench = make_bench(num_blocks=12, max_model_len=48)
    bench.submit(list(range(40, 20, -1)), **FREE_RUN)
    bench.step()
    big = bench.submit(list(range(30)), kind=RequestKind.RESERVE)
    small = bench.submit([1, 2], kind=RequestKind.RESERVE)
    bench.step()
    assert status(bench, big) is RequestStatus.WAITING
    assert status(bench, small) is RequestStatus.WAITING
    bench.run()
    assert list(bench.reserved) == [big, small]


def test_reservations_do_not_wait_for_the_token_budget(make_bench):
    bench = make_bench(max_num_batched_tokens=8, max_num_seqs=4)
    bench.submit(list(range(50)), **FREE_RUN)
    bench.submit(list(range(50, 20, -1)), **FREE_RUN)
    reserved = bench.submit([1, 2], kind=RequestKind.RESERVE)
    bench.step()
    assert list(bench.reserved) == [reserved]


def test_a_reservation_has_a_block_to_grow_into(make_bench):
    bench = make_bench()
    key = bench.submit(list(range(8)), kind=RequestKind.RESERVE)
    bench.step()
    assert len(bench.reserved[key].block_ids) == 2
    assert bench.pool.count(BlockState.IN_USE) == 3


def test_the_most_junior_gives_way_and_the_oldest_never(make_bench):
    bench = make_bench(num_blocks=14, max_model_len=56)
    keys = [bench.submit([index, 1, 2, 3, 4, 5, 6], **FREE_RUN) for index in range(4)]
    fallen = []
    while bench.engine.has_work():
        before = {key: status(bench, key) for key in keys}
        bench.step()
        fallen += [k for k in keys if before[k] is RequestStatus.RUNNING and status(bench, k) is RequestStatus.WAITING]
    assert fallen
    assert keys[0] not in fallen
    assert fallen[0] == keys[3]
    assert [len(bench.answer(key)) for key in keys] == [30] * 4


def test_prefill_is_admitted_whole_and_never_preempted(make_bench):
    bench = make_bench(num_blocks=14, max_model_len=56, max_num_batched_tokens=8, max_num_seqs=4)
    old = bench.submit([1, 2, 3], **FREE_RUN)
    bench.step()
    prefill = bench.submit(list(range(40)), kind=RequestKind.PREFILL)
    bench.step()
    assert len(bench.engine._scheduler.requests[prefill].block_ids) == 10
    bench.run()  # comes to rest: the old one waits for the lease to end, the prefill is held
    assert status(bench, prefill) is RequestStatus.HELD
    assert status(bench, old) is RequestStatus.RUNNING
    assert not bench.engine.has_work()
    bench.engine.release_hold(prefill)
    bench.run()
    assert len(bench.answer(old)) == 30
    assert bench.engine.stats.preemptions == 0


def test_a_prefill_under_way_is_not_preempted_for_its_seniors(make_bench):
    bench = make_bench(num_blocks=14, max_model_len=56, max_num_batched_tokens=7, max_num_seqs=4)
    old = bench.submit(list(range(50, 39, -1)), **FREE_RUN)
    bench.step()
    bench.step()
    prefill = bench.submit(list(range(40)), kind=RequestKind.PREFILL)
    for _ in range(9):
        bench.step()
    assert status(bench, prefill) is RequestStatus.RUNNING
    assert len(bench.answer(old)) == 6, "the old one has filled its blocks and there are no others"
    bench.run()
    assert status(bench, prefill) is RequestStatus.HELD
    assert bench.engine.stats.preemptions == 0
    assert bench.engine.stats.prompt_tokens == 51


def test_a_stalled_oldest_goes_on_once_a_reservation_runs_or_ends(make_bench):
    for outcome in ("activate", "abort"):
        bench = make_bench(num_blocks=14, max_model_len=56)
        old = bench.submit([1, 2, 3], **FREE_RUN)
        bench.step()
        reserved = bench.submit(list(range(40)), kind=RequestKind.RESERVE, **{**FREE_RUN, "max_tokens": 4})
        bench.run()
        assert len(bench.answer(old)) < 30
        if outcome == "activate":
            bench.engine.activate(reserved, [5])
        else:
            bench.engine.abort(reserved)
        bench.run()
        assert len(bench.answer(old)) == 30
        assert bench.pool.num_free == 14


def test_prefill_announces_each_complete_block_once_and_the_partial_one_last(make_bench):
    bench = make_bench(max_num_batched_tokens=9, max_num_seqs=1)
    key = bench.submit(list(range(22)), kind=RequestKind.PREFILL, skip_tokens=4)
    bench.run()
    blocks = bench.computed[key]
    assert [(b.first_block, len(b.block_ids), b.num_tokens, b.is_last) for b in blocks] == [
        (1, 1, 8, False),
        (2, 2, 16, False),
        (4, 2, 22, True),
    ]
    assert bench.pool.count(BlockState.HELD) == 6


def test_a_lease_that_ends_early_does_not_silence_the_first_token(make_bench):
    bench = make_bench(max_num_batched_tokens=9, max_num_seqs=1)
    key = bench.submit(list(range(22)), kind=RequestKind.PREFILL)
    bench.step()
    bench.engine.release_hold(key)
    bench.run()
    assert len(bench.answer(key)) == 1
    assert bench.pool.num_free == 200


@pytest.mark.parametrize("kind", RequestKind)
@pytest.mark.parametrize("steps", [0, 1, 2, 9])
def test_abort_frees_every_block_at_once_in_every_state(make_bench, kind, steps):
    bench = make_bench(max_num_batched_tokens=9, max_num_seqs=1)
    key = bench.submit(list(range(20)), kind=kind, **FREE_RUN)
    for _ in range(steps):
        bench.step()
    assert bench.engine.abort(key)
    bench.engine.check()
    assert bench.pool.num_free == 200
    assert not bench.engine.abort(key)
    assert not bench.engine.has_work()


def test_an_abort_while_copies_are_outstanding_keeps_the_blocks_until_they_ended(make_bench):
    bench = make_bench()
    key = bench.submit(list(range(20)), kind=RequestKind.RESERVE)
    bench.step()
    assert bench.engine.abort(key, draining=True)
    assert bench.engine.load().draining_blocks == 6
    assert bench.engine.load().free_blocks == 194
    assert bench.engine.abort(key, draining=False), "draining is not cut short"
    assert bench.engine.load().draining_blocks == 6
    bench.engine.drained(key)
    assert bench.engine.load().free_blocks == 200
    bench.engine.drained(key)


def test_the_last_token_is_part_of_the_answer_and_names_its_reason(make_bench):
    answer = make_bench().generate([3, 1, 4], **FREE_RUN)
    stop = next(token for token in answer[4:] if token not in answer[:4])
    for sampling, length, reason in [
        ({"stop_token_ids": (stop,)}, answer.index(stop) + 1, FinishReason.STOP),
        ({"max_tokens": 3}, 3, FinishReason.LENGTH),
        ({"max_tokens": 100}, 37, FinishReason.LENGTH),
    ]:
        bench = make_bench(max_model_len=40)
        key = bench.submit([3, 1, 4], **{**FREE_RUN, **sampling})
        bench.run()
        assert len(bench.answer(key)) == length
        assert bench.answer(key)[: len(answer)] == answer[:length]
        assert bench.finish(key) is reason


def test_end_of_sequence_stops_unless_ignored_and_not_before_min_tokens(make_bench):
    forced = {"logit_bias": {EOS: 1e6}, "max_tokens": 5}
    assert make_bench().generate([1], **forced) == [EOS]
    assert make_bench().generate([1], ignore_eos=True, **forced) == [EOS] * 5
    patient = make_bench().generate([1], min_tokens=3, **forced)
    assert EOS not in patient[:3]
    assert patient[3:] == [EOS]


def test_a_first_token_that_ends_the_request_is_not_handed_off(make_bench):
    bench = make_bench()
    key = bench.submit([1, 2, 3], kind=RequestKind.PREFILL, max_tokens=1)
    bench.run()
    (row,) = bench.rows[key]
    assert (row.finish, row.handed_off) == (FinishReason.LENGTH, False)
    assert status(bench, key) is RequestStatus.HELD


def test_requests_of_another_root_share_no_blocks(make_bench):
    bench = make_bench()
    prompt = list(range(20))
    bench.generate(prompt)
    keys = [bench.submit(prompt, root=root_hash(b"tenant")), bench.submit(prompt)]
    bench.run()
    assert [bench.rows[key][0].cached_tokens for key in keys] == [0, 19]
    assert bench.engine.stats.prefix_hit_tokens == 19


@pytest.mark.parametrize(
    ("tokens", "options", "code"),
    [
        (list(range(56)), {}, ErrorCode.CONTEXT_LENGTH_EXCEEDED),
        ([], {}, ErrorCode.INVALID_REQUEST),
        ([1, 61], {}, ErrorCode.INVALID_REQUEST),
        ([1, -1], {}, ErrorCode.INVALID_REQUEST),
        ([1], {"max_tokens": 0}, ErrorCode.INVALID_REQUEST),
        (list(range(9)), {"skip_tokens": 4}, ErrorCode.INVALID_REQUEST),
        (list(range(9)), {"skip_tokens": 3, "kind": RequestKind.PREFILL}, ErrorCode.INVALID_REQUEST),
    ],
)
def test_what_can_never_run_is_refused_at_once(make_bench, tokens, options, code):
    bench = make_bench(max_model_len=56, num_blocks=14)
    with pytest.raises(SpliceError) as caught:
        bench.submit(tokens, **options)
    assert caught.value.code is code
    assert not bench.engine.has_work()


@pytest.mark.parametrize("kind", RequestKind)
def test_the_longest_request_that_is_accepted_runs_in_the_smallest_pool(make_bench, kind):
    bench = make_bench(max_model_len=56, num_blocks=14)
    key = bench.submit(list(range(55)), kind=kind, **FREE_RUN)
    bench.run()
    assert key in (bench.reserved if kind is RequestKind.RESERVE else bench.rows)


def test_a_key_is_used_once(make_bench):
    bench = make_bench()
    request = Request((1, 1), [1], 1, SamplingParams(max_tokens=3))
    bench.engine.submit(request)
    with pytest.raises(SpliceError, match="already here"):
        bench.engine.submit(Request((1, 1), [2], 1, SamplingParams(max_tokens=3)))


def test_only_a_reservation_can_be_activated(make_bench):
    bench = make_bench()
    key = bench.submit([1, 2], **FREE_RUN)
    with pytest.raises(SpliceError, match="cannot activate"):
        bench.engine.activate(key, [3])
    with pytest.raises(SpliceError, match="unknown"):
        bench.engine.activate((99, 1), [3])


@pytest.mark.parametrize(
    ("sizes", "param"),
    [
        ({"num_blocks": 3, "max_model_len": 100}, "max_model_len"),
        ({"num_blocks": 0, "max_model_len": 10}, "num_blocks"),
        ({"num_blocks": 9, "max_model_len": 10, "max_num_batched_tokens": 94}, "max_num_batched_tokens"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(sizes, param):
    with pytest.raises(SpliceError) as caught:
        EngineConfig(**sizes)
    assert (caught.value.code, caught.value.param) == (ErrorCode.BAD_SETTING, param)


def test_an_engine_refuses_a_pool_of_another_size(make_bench):
    bench = make_bench()
    with pytest.raises(SpliceError, match="same number"):
        Engine(bench.model, bench.blocks, bench.config, BlockPool(7, ListGenerations(7)))
