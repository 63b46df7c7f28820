"""The block pool and its prefix cache."""

from __future__ import annotations

import pytest

from engine.blocks.block_pool import BlockPool, BlockState, ListGenerations
from engine.blocks.cached_block import BlockContent
from wire.block_hash import ROOT, block_hash, chain

TOKENS = list(range(80))
NAMES = list(chain(TOKENS, 4))


def content(index, num_tokens=4):
    """What block `index` of the one known text holds."""
    tokens = tuple(TOKENS[4 * index : 4 * index + num_tokens])
    parent = NAMES[index - 1] if index else ROOT
    return BlockContent(block_hash(parent, tokens), parent, tokens, num_tokens == 4)


def known(pool, first, last):
    """Blocks of the pool that hold the leading contents of [first, last), as many as are known."""
    names = NAMES[first:last]
    return [pool.cache.find(name).block for name in names[: pool.cache.num_known(names)]]


@pytest.fixture
def pool():
    return BlockPool(6, ListGenerations(6))


def fill(pool, owner, count, *, offset=0):
    pool.open(owner, [], count)
    for index in range(count):
        pool.seal(owner, index, content(offset + index))
    return list(pool.table(owner))


def test_a_block_taken_for_new_content_has_a_new_generation_and_a_shared_one_keeps_its(pool):
    first = fill(pool, "a", 2)
    before = [pool.generation(block) for block in first]
    pool.release("a")
    assert [pool.generation(block) for block in first] == before
    assert list(pool.open("b", NAMES[:2], 0)) == first
    assert [pool.generation(block) for block in first] == before
    pool.release("b")
    pool.open("c", [], 6)
    assert [pool.generation(block) for block in first] == [value + 1 for value in before]
    assert known(pool, 0, 2) == []


def test_the_least_recently_used_goes_first_and_children_before_parents(pool):
    old, young = fill(pool, "old", 2), fill(pool, "young", 2, offset=10)
    pool.release("old")
    pool.release("young")
    pool.open("x", [], 3)  # the two free ones, then one evicted
    assert known(pool, 0, 2) == old[:1]
    assert known(pool, 10, 12) == young
    pool.check()


def test_found_blocks_are_not_evicted_to_make_room_for_their_own_request(pool):
    found = fill(pool, "a", 4)
    pool.release("a")
    assert pool.num_free == 6
    assert not pool.can_open(NAMES[:4], 3)
    assert pool.can_open(NAMES[:4], 2)
    assert pool.open("b", NAMES[:4], 3) is None
    assert list(pool.open("b", NAMES[:4], 2))[:4] == found
    assert pool.num_free == 0
    pool.check()


def test_a_shared_block_stays_until_its_last_owner_leaves(pool):
    fill(pool, "a", 2)
    shared = known(pool, 0, 1)
    pool.open("b", NAMES[:1], 1)
    pool.hold("b")
    assert pool.state(shared[0]) is BlockState.HELD
    pool.release("b")
    assert pool.state(shared[0]) is BlockState.IN_USE
    pool.release("a")
    assert pool.state(shared[0]) is BlockState.CACHED


def test_draining_keeps_what_may_still_be_written_and_gives_back_what_is_only_read(pool):
    fill(pool, "a", 2)
    pool.release("a")
    pool.open("b", NAMES[:2], 3)
    pool.drain("b")
    assert pool.count(BlockState.DRAINING) == 3
    assert pool.count(BlockState.CACHED) == 2
    pool.check()
    pool.release("b")
    assert pool.num_free == 6


def test_distrusted_blocks_are_not_found_again(pool):
    fill(pool, "a", 2)
    pool.distrust("a")
    pool.release("a")
    assert known(pool, 0, 2) == []
    assert pool.count(BlockState.FREE) == 6
    pool.check()


def test_check_names_a_block_in_two_states(pool):
    pool.open("a", [], 1)
    pool._free.append(pool.table("a")[0])
    with pytest.raises(AssertionError, match="is in 2 states"):
        pool.check()
