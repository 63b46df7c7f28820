"""Both sides of pushes, their cores alone, with everything between them late: memory is never given back while a launch
that may write to it is under way, and it is given back in the end."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kv_pair import FINAL, KEY

from kvtransfer.fetch import CopyOutcome, Drained, FetchMachine, Ready, SendRelease, StartCopy
from kvtransfer.handoff import BlockRange
from kvtransfer.lease import LeaseTable, Release, SendAnnounce, SendFailed
from kvtransfer.push import PushGrant, PushTable, SendQuiet
from wire.errors import ErrorCode

BLOCKS, TOKENS = 3, 32
CONSUMER = 1


class Pushing(RuleBasedStateMachine):
    """What `KvSource`, `PushSource` and `KvConsumer` do with their cores, one request, every message in a queue."""

    @initialize(
        skip=st.integers(0, BLOCKS),
        granting=st.sampled_from([True, True, True, False]),
        heard=st.sampled_from([2, 2, 1, 0]),
        launched=st.integers(0, 2),
    )
    def begin(self, skip: int, granting: bool, heard: int, launched: int) -> None:
        """`heard`: so many messages have arrived already, and so many steps were `launched` then."""
        self.now_s = 0.0
        self.leases, self.table = LeaseTable(10.0), PushTable()
        self.machine = FetchMachine(
            KEY, dest_blocks=BLOCKS, skip_blocks=skip, block_tokens=TOKENS, num_layers=2, deadline_s=50.0
        )
        self.to_source: deque[tuple[str, Any]] = deque([("subscribe", skip)])
        self.to_consumer: deque[Any] = deque()
        self.launches: list[bool] = []
        """Under way: whether each may write to the consumer's memory."""
        self.copies: list[StartCopy] = []
        self.announced, self.pushed_from = 0, 0
        self.is_source_alive, self.is_free = True, False
        if granting and skip < BLOCKS:
            self.machine.push_granted()
            self.to_source.append(("grant", PushGrant(skip, tuple(range(BLOCKS - skip)))))
        for _ in range(min(heard, len(self.to_source))):
            self.source_hears()
        for _ in range(launched):
            self.launches_a_step()

    # --- the source ---

    @precondition(lambda self: self.is_source_alive and self.to_source)
    @rule()
    def source_hears(self) -> None:
        kind, body = self.to_source.popleft()
        match kind:
            case "subscribe":
                self.source_does(self.leases.subscribe(CONSUMER, KEY, body, self.now_s))
            case "release":
                self.source_does(self.leases.release(CONSUMER, KEY, body, self.now_s))
            case "grant" if self.leases.is_held_by(CONSUMER, KEY):
                self.source_does(self.table.grant(CONSUMER, KEY, body))
            case "grant":
                self.to_consumer.append(SendQuiet(CONSUMER, KEY))

    @precondition(lambda self: self.is_source_alive and self.announced < BLOCKS and len(self.launches) < 2)
    @rule()
    def launches_a_step(self) -> None:
        pushes = self.table.begin(KEY) is not None
        self.launches.append(pushes)
        if not pushes:
            self.pushed_from = BLOCKS

    @precondition(lambda self: self.is_source_alive and self.launches)
    @rule(announces=st.booleans())
    def a_step_is_done(self, announces: bool) -> None:
        if self.launches.pop(0):
            self.source_does(self.table.finish(KEY))
        if not announces or self.announced == BLOCKS:
            return
        is_last = self.announced == BLOCKS - 1
        if is_last and self.launches:
            return  # the rest of the prompt is being computed
        one = BlockRange(self.announced, (self.announced,), (1,), (bytes(16),), TOKENS * (self.announced + 1))
        self.announced += 1
        for part in one.split(self.pushed_from):
            self.source_does(self.leases.announce(KEY, part, FINAL if is_last else None, self.now_s))

    @precondition(lambda self: self.is_source_alive)
    @rule()
    def source_gives_up(self) -> None:
        self.source_does(self.leases.fail(KEY, ErrorCode.INTERNAL_ERROR, "gave up", self.now_s))

    @precondition(lambda self: self.is_source_alive)
    @rule()
    def source_is_killed(self) -> None:
        """What it had launched ends with its process; messages under way may still arrive."""
        self.is_source_alive = False
        self.launches.clear()
        self.to_consumer.append("gone")

    def source_does(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Release():
                    self.source_does(self.table.end(KEY))
                case SendAnnounce() | SendFailed() | SendQuiet():
                    self.to_consumer.append(action)

    # --- the consumer ---

    @precondition(lambda self: self.to_consumer)
    @rule()
    def consumer_hears(self) -> None:
        heard = self.to_consumer.popleft()
        if self.is_free:
            return
        match heard:
            case SendAnnounce(_, _, blocks, final):
                self.consumer_does(self.machine.announced(blocks, (0, 2), final, self.now_s))
            case SendFailed(_, _, code, message):
                self.consumer_does(self.machine.source_failed(code, message))
            case SendQuiet():
                self.consumer_does(self.machine.quiet())
            case _:
                self.consumer_does(self.machine.source_lost(ErrorCode.WORKER_LOST, "gone"))
                if not self.is_free:
                    self.consumer_does(self.machine.quiet())

    @precondition(lambda self: self.copies)
    @rule(outcome=st.sampled_from(list(CopyOutcome)))
    def a_copy_ends(self, outcome: CopyOutcome) -> None:
        copy = self.copies.pop(0)
        if outcome is CopyOutcome.ABSENT and not copy.in_place:
            outcome = CopyOutcome.DAMAGED
        self.consumer_does(self.machine.copied(copy.index, outcome, "broken", self.now_s))

    @precondition(lambda self: not self.is_free)
    @rule()
    def client_leaves(self) -> None:
        self.consumer_does(self.machine.cancel("client left"))

    @rule(seconds=st.sampled_from([1.0, 11.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        if not self.is_free:
            self.consumer_does(self.machine.tick(self.now_s))
        if self.is_source_alive:
            self.source_does(self.leases.tick(self.now_s))

    def consumer_does(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case StartCopy():
                    self.copies.append(action)
                case SendRelease(reason):
                    self.to_source.append(("release", reason))
                case Drained() | Ready():
                    assert not any(self.launches), "memory is given back while it may be pushed to"
                    assert not self.copies
                    assert not self.is_free
                    self.is_free = True

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "machine"):
            assert not self.machine.check() + self.leases.check() + self.table.check()

    def teardown(self) -> None:
        """Whatever happened, once everything under way has arrived and time is up, nobody waits for ever."""
        if not hasattr(self, "machine"):
            return
        self.time_passes(60.0)
        while self.to_source or self.to_consumer or self.launches or self.copies:
            if self.copies:
                self.a_copy_ends(CopyOutcome.STALE)
            elif self.to_source and self.is_source_alive:
                self.source_hears()
            elif self.to_consumer:
                self.consumer_hears()
            elif self.launches:  # a device that is later than everybody
                self.a_step_is_done(announces=False)
            else:
                self.to_source.clear()
        assert self.is_free, "memory stays taken for ever"


TestPushing = Pushing.TestCase
TestPushing.settings = settings(max_examples=80, stateful_step_count=15, deadline=None)
