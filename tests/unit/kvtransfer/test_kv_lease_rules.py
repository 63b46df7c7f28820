"""The lease table under every order of messages."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvtransfer.handoff import BlockRange, KvFinalData
from kvtransfer.lease import LeaseAction, LeaseTable, Release, SendAnnounce, SendFailed
from wire.errors import ErrorCode

TTL_S = 10.0
FINAL = KvFinalData((1,), 0)
keys = st.tuples(st.integers(0, 2), st.just(1))
consumers = st.integers(1, 2)


def blocks(first: int, count: int) -> BlockRange:
    ids = range(first, first + count)
    return BlockRange(first, tuple(ids), tuple(1 for _ in ids), tuple(bytes(16) for _ in ids), (first + count) * 32)


class LeaseMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(TTL_S)
        self.now_s = 0.0
        self.announced: dict[tuple[int, int], int] = {}
        self.open: set[tuple[int, int]] = set()
        self.reads: list[tuple[int, int]] = []
        self.told: dict[tuple[int, tuple[int, int]], list[int]] = {}

    def see(self, actions: list[LeaseAction]) -> None:
        for action in actions:
            match action:
                case Release(key, _):
                    assert key not in self.reads, "released while its blocks were being read"
                    self.open.discard(key)
                    # Once the end is forgotten, a late announcement is a new hold, under a lease of its own.
                    self.told = {(consumer, k): heard for (consumer, k), heard in self.told.items() if k != key}
                case SendAnnounce(consumer, key, named, _):
                    heard = self.told.setdefault((consumer, key), [])
                    assert not set(heard) & set(named.block_ids), "a consumer was told of a block twice"
                    heard += named.block_ids
                case SendFailed():
                    pass

    @rule(key=keys, count=st.integers(1, 3), final=st.booleans())
    def announce(self, key: tuple[int, int], count: int, final: bool) -> None:
        first = self.announced.get(key, 0)
        self.announced[key] = first + count
        self.open.add(key)
        self.see(self.table.announce(key, blocks(first, count), FINAL if final else None, self.now_s))

    @rule(key=keys)
    def announce_again(self, key: tuple[int, int]) -> None:
        if key in self.announced:
            self.open.add(key)
            self.see(self.table.announce(key, blocks(0, self.announced[key]), None, self.now_s))

    @rule(consumer=consumers, key=keys, skip=st.integers(0, 3))
    def subscribe(self, consumer: int, key: tuple[int, int], skip: int) -> None:
        self.open.add(key)
        self.see(self.table.subscribe(consumer, key, skip, self.now_s))

    @rule(consumer=consumers, key=keys)
    def renew(self, consumer: int, key: tuple[int, int]) -> None:
        self.table.renew(consumer, [key], self.now_s)

    @rule(consumer=consumers, key=keys)
    def release(self, consumer: int, key: tuple[int, int]) -> None:
        self.see(self.table.release(consumer, key, "fetched", self.now_s))

    @rule(key=keys)
    def fail(self, key: tuple[int, int]) -> None:
        self.see(self.table.fail(key, ErrorCode.CANCELLED, "cancelled", self.now_s))

    @rule(consumer=consumers)
    def lose_consumer(self, consumer: int) -> None:
        self.see(self.table.consumer_lost(consumer, self.now_s))

    @rule(key=keys, block=st.integers(0, 5), generation=st.integers(1, 2))
    def begin_read(self, key: tuple[int, int], block: int, generation: int) -> None:
        if self.table.begin_read(key, block, generation):
            assert generation == 1, "a read was granted for a generation that was not"
            self.reads.append(key)

    @rule()
    def end_read(self) -> None:
        if self.reads:
            self.see(self.table.end_read(self.reads.pop(0)))

    @rule(seconds=st.floats(0.1, 15.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.see(self.table.tick(self.now_s))

    @invariant()
    def holds_together(self) -> None:
        assert self.table.check() == []

    def teardown(self) -> None:
        while self.reads:
            self.end_read()
        self.now_s += TTL_S
        self.see(self.table.tick(self.now_s))
        self.now_s += TTL_S
        self.see(self.table.tick(self.now_s))
        assert len(self.table) == 0, "a hold outlived its lease"


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_hold_nobody_subscribes_to_expires_on_the_tick_alone() -> None:
    table = LeaseTable(TTL_S)
    assert table.announce((1, 1), blocks(0, 2), FINAL, 0.0) == []
    assert table.tick(TTL_S - 0.1) == []
    assert table.tick(TTL_S) == [Release((1, 1), "lease expired")]
    assert table.expired_total == 1


def test_a_subscription_before_the_first_announcement_hears_it() -> None:
    table = LeaseTable(TTL_S)
    assert table.subscribe(1, (1, 1), 1, 0.0) == []
    assert table.announce((1, 1), blocks(0, 2), FINAL, 1.0) == [SendAnnounce(1, (1, 1), blocks(1, 1), FINAL)]


def test_renewal_keeps_a_hold_and_only_its_consumer_can_renew() -> None:
    table = LeaseTable(TTL_S)
    table.subscribe(1, (1, 1), 0, 0.0)
    table.renew(1, [(1, 1), (5, 5)], 8.0)
    table.renew(2, [(1, 1)], 12.0)
    assert table.tick(17.9) == []
    assert [type(action) for action in table.tick(18.0)] == [SendFailed, Release]


def test_expiry_waits_for_the_read_under_way() -> None:
    table = LeaseTable(TTL_S)
    table.announce((1, 1), blocks(0, 1), FINAL, 0.0)
    assert table.begin_read((1, 1), 0, 1)
    assert table.tick(TTL_S) == []
    assert not table.begin_read((1, 1), 0, 1)
    assert table.end_read((1, 1)) == [Release((1, 1), "lease expired")]


def test_an_announcement_after_the_end_releases_nothing_that_is_still_being_read() -> None:
    table = LeaseTable(TTL_S)
    table.announce((1, 1), blocks(0, 1), None, 0.0)
    assert table.begin_read((1, 1), 0, 1)
    table.fail((1, 1), ErrorCode.CANCELLED, "cancelled", 1.0)
    assert table.announce((1, 1), blocks(1, 1), FINAL, 2.0) == []
    table.tick(2 * TTL_S)
    table.check()
    assert table.end_read((1, 1)) == [Release((1, 1), "cancelled")]


def test_what_is_announced_after_the_end_is_released_at_once_and_a_late_subscriber_is_told() -> None:
    table = LeaseTable(TTL_S)
    table.subscribe(1, (1, 1), 0, 0.0)
    table.release(1, (1, 1), "client left", 1.0)
    assert table.announce((1, 1), blocks(0, 1), FINAL, 2.0) == [Release((1, 1), "client left")]
    told = table.subscribe(2, (1, 1), 0, 3.0)
    assert told == [SendFailed(2, (1, 1), ErrorCode.KV_TRANSFER_FAILED, "client left")]
