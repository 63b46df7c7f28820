"""The block pool and its prefix cache."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from engine.block_pool import BlockPool, BlockState, ListGenerations
from wire.block_hash import chain

HASHES = list(chain(list(range(80)), 4))


@pytest.fixture
def pool():
    return BlockPool(6, ListGenerations(6))


def fill(pool, owner, count, *, offset=0):
    pool.open(owner, [], count)
    for index in range(count):
        pool.seal(owner, index, HASHES[offset + index])
    return list(pool.table(owner))


def test_a_block_taken_for_new_content_has_a_new_generation_and_a_shared_one_keeps_its(pool):
    first = fill(pool, "a", 2)
    before = [pool.generation(block) for block in first]
    pool.release("a")
    assert [pool.generation(block) for block in first] == before
    assert list(pool.open("b", pool.match(HASHES[:2]), 0)) == first
    assert [pool.generation(block) for block in first] == before
    pool.release("b")
    pool.open("c", [], 6)
    assert [pool.generation(block) for block in first] == [value + 1 for value in before]
    assert pool.match(HASHES[:2]) == []


def test_the_least_recently_used_goes_first_and_children_before_parents(pool):
    old, young = fill(pool, "old", 2), fill(pool, "young", 2, offset=10)
    pool.release("old")
    pool.release("young")
    pool.open("x", [], 3)  # the two free ones, then one evicted
    assert pool.match(HASHES[:2]) == old[:1]
    assert pool.match(HASHES[10:12]) == young
    pool.check()


def test_found_blocks_are_not_evicted_to_make_room_for_their_own_request(pool):
    found = fill(pool, "a", 4)
    pool.release("a")
    assert pool.num_free == 6
    assert not pool.can_open(found, 3)
    assert pool.can_open(found, 2)
    with pytest.raises(ValueError, match="can_open"):
        pool.open("b", found, 3)
    assert list(pool.open("b", found, 2))[:4] == found
    assert pool.num_free == 0
    pool.check()


def test_a_shared_block_stays_until_its_last_owner_leaves(pool):
    fill(pool, "a", 2)
    shared = pool.match(HASHES[:1])
    pool.open("b", shared, 1)
    pool.hold("b")
    assert pool.state(shared[0]) is BlockState.HELD
    pool.release("b")
    assert pool.state(shared[0]) is BlockState.IN_USE
    pool.release("a")
    assert pool.state(shared[0]) is BlockState.CACHED


def test_draining_keeps_what_may_still_be_written_and_gives_back_what_is_only_read(pool):
    fill(pool, "a", 2)
    pool.release("a")
    pool.open("b", pool.match(HASHES[:2]), 3)
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
    assert pool.match(HASHES[:2]) == []
    assert pool.count(BlockState.FREE) == 6
    pool.check()


def test_check_names_a_block_in_two_states(pool):
    pool.open("a", [], 1)
    pool._free.append(pool.table("a")[0])
    with pytest.raises(AssertionError, match="is in 2 states"):
        pool.check()


class PoolMachine(RuleBasedStateMachine):
    """Random owners over a small pool; a model of what each block's content must be."""

    owners = Bundle("owners")

    def __init__(self):
        super().__init__()
        self.generations = ListGenerations(8)
        self.pool = BlockPool(8, self.generations)
        self.granted = {}
        self.next_owner = 0

    @rule(target=owners, known=st.integers(0, 5), new=st.integers(0, 5))
    def open(self, known, new):
        shared = self.pool.match(HASHES[:known])
        if not self.pool.can_open(shared, new):
            return multiple()
        self.next_owner += 1
        self.pool.open(self.next_owner, shared, new)
        self._grant(self.next_owner)
        return self.next_owner

    def _grant(self, owner):
        self.granted[owner] = {block: self.generations.get(block) for block in self.pool.table(owner)}

    @rule(owner=owners)
    def extend(self, owner):
        if self.pool.num_free:
            self.pool.extend(owner)
            self._grant(owner)

    @rule(owner=owners, count=st.integers(0, 5))
    def seal(self, owner, count):
        for index in range(min(count, len(self.pool.table(owner)))):
            self.pool.seal(owner, index, HASHES[index])

    @rule(owner=owners)
    def hold(self, owner):
        self.pool.hold(owner)

    @rule(owner=owners)
    def drain(self, owner):
        self.pool.drain(owner)
        self._grant(owner)

    @rule(owner=owners)
    def distrust(self, owner):
        self.pool.distrust(owner)

    @rule(owner=consumes(owners))
    def release(self, owner):
        self.pool.release(owner)
        del self.granted[owner]

    @invariant()
    def books_balance_and_nobody_loses_content(self):
        self.pool.check()
        assert sum(self.pool.count(state) for state in BlockState) == 8
        for owner, blocks in self.granted.items():
            assert set(self.pool.table(owner)) == set(blocks)
            assert all(self.generations.get(block) == value for block, value in blocks.items())

    def teardown(self):
        for owner in list(self.granted):
            self.pool.release(owner)
        assert self.pool.num_free == 8


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
TestPoolMachine = PoolMachine.TestCase
