"""Branches of one request: they share what they have in common and end as each would alone."""

from __future__ import annotations

import itertools

import pytest

from engine.blocks.block_pool import BlockState
from engine.scheduling.request import RequestKind, RequestStatus
from wire.block_hash import root_hash
from wire.errors import ErrorCode, SpliceError

PROMPT = [(7 * i * i + 3 * i + 1) % 59 for i in range(18)]
RUN = {"ignore_eos": True, "max_tokens": 12}


def parent_of(bench, steps=3):
    """A parent with a token for every step."""
    key = bench.submit(PROMPT, **RUN)
    for _ in range(steps):
        bench.step()
    assert len(bench.answer(key)) == steps
    return key


def branch(make_bench, tokens):
    return make_bench().generate(PROMPT, emitted=tokens, **RUN)


def test_branches_answer_as_each_would_alone(make_bench):
    bench = make_bench()
    parent = parent_of(bench)
    head = bench.answer(parent)
    starts = [[*head[:length], token] for length, token in [(3, 5), (2, 7), (0, 11), (1, 3), (3, 9)]]
    children = [bench.fork(parent, PROMPT, emitted=start, **RUN) for start in starts]
    bench.run()
    assert bench.answer(parent) == make_bench().generate(PROMPT, **RUN)
    assert [bench.answer(child) for child in children] == [branch(make_bench, start) for start in starts]
    assert bench.pool.num_free == 200


def test_a_fork_takes_no_memory_and_the_first_to_write_copies_one_block(make_bench):
    bench = make_bench()
    parent = parent_of(bench, steps=4)  # 22 tokens, of which 21 are computed: the sixth block is partial
    head = bench.answer(parent)
    before = bench.pool.count(BlockState.IN_USE)
    children = [bench.fork(parent, PROMPT, emitted=[*head, token], **RUN) for token in (1, 2)]
    assert bench.pool.count(BlockState.IN_USE) == before
    bench.step()
    assert bench.pool.count(BlockState.IN_USE) == before + 2, "three branches, two copies"
    lengths = [len(part.token_ids) for part in bench.model.batches[-1].slices]
    assert lengths == [1, 2, 2], "all that is not in the parent's blocks, and nothing else"
    bench.run()
    assert [bench.answer(child) for child in children] == [branch(make_bench, [*head, t]) for t in (1, 2)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_branches_are_aborted_in_any_order_and_nothing_leaks(make_bench, order, steps):
    bench = make_bench()
    parent = parent_of(bench)
    head = bench.answer(parent)
    keys = [parent, *(bench.fork(parent, PROMPT, emitted=[*head, token], **RUN) for token in (1, 2))]
    for index in order[:2]:
        for _ in range(steps):
            bench.step()
        assert bench.engine.abort(keys[index])
        bench.engine.check()
    last = keys[order[2]]
    bench.run()
    expected = make_bench().generate(PROMPT, **RUN) if last == parent else branch(make_bench, [*head, order[2]])
    assert bench.answer(last) == expected
    assert bench.pool.num_free == 200


@pytest.mark.parametrize("caching", [True, False])
def test_branches_that_are_preempted_answer_as_each_would_alone(make_bench, caching):
    bench = make_bench(num_blocks=14, max_model_len=56, enable_prefix_caching=caching)
    parent = parent_of(bench)
    head = bench.answer(parent)
    starts = [[*head[: index % 4], 20 + index] for index in range(6)]
    children = [bench.fork(parent, PROMPT, emitted=start, **RUN) for start in starts]
    bench.run()
    assert bench.engine.stats.preemptions > 0
    assert [bench.answer(child) for child in children] == [branch(make_bench, start) for start in starts]
    assert bench.pool.num_free == 14


def test_a_branch_of_a_branch_and_of_a_block_border(make_bench):
    bench = make_bench()
    parent = parent_of(bench, steps=7)  # 24 of 25 tokens are computed: no block is partial
    head = bench.answer(parent)
    first = bench.fork(parent, PROMPT, emitted=[*head[:6], 5], **RUN)
    second = bench.fork(first, PROMPT, emitted=[*head[:6], 7], **RUN)
    third = bench.fork(second, PROMPT, emitted=[*head[:2], 7], **RUN)
    bench.engine.check()
    bench.run()
    assert bench.answer(first) == branch(make_bench, [*head[:6], 5])
    assert bench.answer(second) == branch(make_bench, [*head[:6], 7])
    assert bench.answer(third) == branch(make_bench, [*head[:2], 7])


def test_a_branch_without_a_place_in_the_batch_waits_behind_its_parent(make_bench):
    bench = make_bench(max_num_seqs=1)
    parent = parent_of(bench)
    stranger = bench.submit([1, 2, 3], **RUN)
    child = bench.fork(parent, PROMPT, emitted=[4], **RUN)
    bench.run()
    assert list(bench.rows) == [parent, child, stranger], "a branch is as senior as its parent"
    assert bench.answer(child) == branch(make_bench, [4])


def test_a_branch_of_a_request_that_waits_or_only_prefills_is_computed_like_any_other(make_bench):
    bench = make_bench()
    waiting = bench.submit(PROMPT, **RUN)
    early = bench.fork(waiting, PROMPT, emitted=[5], **RUN)
    prefill = bench.submit(PROMPT, kind=RequestKind.PREFILL)
    bench.run()
    late = bench.fork(prefill, PROMPT, emitted=[6], **RUN)
    bench.run()
    assert bench.answer(early) == branch(make_bench, [5])
    assert bench.answer(late) == branch(make_bench, [6])
    bench.engine.release_hold(prefill)
    assert bench.pool.num_free == 200


def test_a_reservation_forks_once_it_runs(make_bench):
    bench = make_bench()
    source = make_bench()
    key = bench.submit(PROMPT, kind=RequestKind.RESERVE, **RUN)
    bench.run()
    given = source.submit(PROMPT, kind=RequestKind.PREFILL, **RUN)
    source.run()
    for blocks in source.computed[given]:
        for index, block in enumerate(blocks.block_ids, start=blocks.first_block):
            bench.kv_cache[bench.reserved[key].block_ids[index]] = source.kv_cache[block]
    bench.engine.activate(key, [3])
    child = bench.fork(key, PROMPT, emitted=[8], **RUN)
    bench.run()
    assert bench.engine.stats.prompt_tokens == 0
    assert bench.answer(key) == branch(make_bench, [3])
    assert bench.answer(child) == branch(make_bench, [8])


def test_a_branch_that_is_complete_ends_at_once(make_bench):
    bench = make_bench()
    parent = parent_of(bench)
    child = bench.fork(parent, PROMPT, emitted=[1, 2], max_tokens=2)
    bench.step()
    assert [(row.seq, row.tokens) for row in bench.rows[child]] == [(2, ())]


def test_a_branch_of_another_root_shares_nothing(make_bench):
    bench = make_bench()
    parent = parent_of(bench)
    child = bench._request(PROMPT, [5], RequestKind.GENERATE, RUN, root=root_hash(b"tenant"))
    bench.engine.fork(parent, child)
    assert child.status is RequestStatus.RUNNING
    assert len(child.block_ids) == 0
    bench.run()
    assert bench.answer(child.key) == branch(make_bench, [5])


def test_a_fork_of_nothing_or_into_something_else_is_refused(make_bench):
    bench = make_bench()
    parent = parent_of(bench)
    with pytest.raises(SpliceError, match="cannot fork") as caught:
        bench.fork((99, 1), PROMPT)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    with pytest.raises(SpliceError, match="cannot fork"):
        bench.engine.fork(parent, bench._request(PROMPT, [], RequestKind.RESERVE, RUN))
    with pytest.raises(SpliceError, match="outside the vocabulary"):
        bench.fork(parent, [1, 61])
    child = bench._request(PROMPT, [], RequestKind.GENERATE, RUN)
    bench.engine.fork(parent, child)
    with pytest.raises(SpliceError, match="already here"):
        bench.engine.fork(parent, child)
    assert len(bench.engine.requests()) == 2


@pytest.mark.parametrize(
    ("branches", "max_tokens", "caching", "fits"),
    [
        (4, 10, False, True),
        (4, 11, False, False),
        (4, 22, True, True),
        (4, 23, True, False),
        (17, 1, True, False),
        (0, 1, True, False),
    ],
)
def test_branches_that_wait_for_each_other_and_could_never_be_here_together_are_refused(
    make_bench, branches, max_tokens, caching, fits
):
    """18 tokens of prompt fill 4 blocks, which are shared where blocks are found by content; 4 beams have 28."""
    bench = make_bench(num_blocks=28, max_model_len=56, enable_prefix_caching=caching)
    request = bench._request(
        PROMPT, [], RequestKind.GENERATE, {"max_tokens": max_tokens + 1}, num_branches=branches
    )  # the KV of the last token is never kept
    if fits:
        bench.engine.submit(request)
        return
    with pytest.raises(SpliceError) as caught:
        bench.engine.submit(request)
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_REQUEST, "num_branches")
