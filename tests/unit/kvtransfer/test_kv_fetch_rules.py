"""The fetch machine under every order of announcements, copies, losses and cancels."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtransfer.fetch import (
    CopyOutcome,
    Drained,
    Failed,
    FetchAction,
    FetchMachine,
    FetchState,
    Ready,
    SendRelease,
    StartCopy,
)
from kvtransfer.handoff import BlockRange, KvFinalData
from wire.errors import ErrorCode

FINAL = KvFinalData((1,), 0)
DEADLINE_S = 100.0


def machine(num_blocks: int, skip: int = 0) -> FetchMachine:
    return FetchMachine(
        (1, 1), dest_blocks=num_blocks + 1, skip_blocks=skip, block_tokens=32, num_layers=2, deadline_s=DEADLINE_S
    )


def blocks(first: int, count: int) -> BlockRange:
    ids = range(first, first + count)
    return BlockRange(first, tuple(ids), tuple(1 for _ in ids), tuple(bytes(16) for _ in ids), (first + count) * 32)


class FetchRules(RuleBasedStateMachine):
    @initialize(num_blocks=st.integers(1, 10), skip=st.integers(0, 3))
    def begin(self, num_blocks: int, skip: int) -> None:
        self.num_blocks, self.skip = num_blocks, min(skip, num_blocks)
        self.fetch = machine(num_blocks, self.skip)
        self.now_s = 0.0
        self.outstanding: list[int] = []
        self.bad: dict[int, int] = {}
        self.good: set[int] = set()
        self.events: list[type] = []
        self.cancelled = False

    def see(self, actions: list[FetchAction]) -> None:
        for action in actions:
            assert Drained not in self.events, "something happened after the memory was declared quiet"
            if isinstance(action, StartCopy):
                assert Failed not in self.events
                assert not self.cancelled
                assert action.index not in self.outstanding
                assert action.index >= self.skip
                self.outstanding.append(action.index)
            else:
                assert type(action) not in self.events, f"{type(action).__name__} twice"
                self.events.append(type(action))
            if isinstance(action, Drained):
                assert not self.outstanding, "drained with copies outstanding"
            if isinstance(action, Ready):
                assert self.good == set(range(self.skip, self.num_blocks)), "ready without all blocks"

    @rule(first=st.integers(0, 9), count=st.integers(1, 10), final=st.booleans())
    def announce(self, first: int, count: int, final: bool) -> None:
        first = min(first, self.num_blocks)
        count = min(count, self.num_blocks - first)
        if final:
            count = self.num_blocks - first
        self.see(self.fetch.announced(blocks(first, count), (0, 2), FINAL if final else None, self.now_s))

    @precondition(lambda self: self.outstanding)
    @rule(data=st.data(), outcome=st.sampled_from(CopyOutcome))
    def end_copy(self, data: st.DataObject, outcome: CopyOutcome) -> None:
        index = data.draw(st.sampled_from(self.outstanding))
        self.outstanding.remove(index)
        if outcome is CopyOutcome.VERIFIED:
            self.good.add(index)
        else:
            self.bad[index] = self.bad.get(index, 0) + 1
            assert self.bad[index] <= 2, "fetched more than once again"
        self.see(self.fetch.copied(index, outcome, "broken", self.now_s))

    @rule()
    def cancel(self) -> None:
        live = self.fetch.is_live
        self.see(self.fetch.cancel("client left"))
        self.cancelled |= live

    @rule()
    def lose_source(self) -> None:
        self.see(self.fetch.source_lost(ErrorCode.WORKER_LOST, "gone"))

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.see(self.fetch.tick(self.now_s))

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "fetch"):
            assert self.fetch.check() == []

    def teardown(self) -> None:
        if not hasattr(self, "fetch"):
            return
        self.now_s = DEADLINE_S
        self.see(self.fetch.tick(self.now_s))
        while self.outstanding:
            index = self.outstanding.pop()
            self.see(self.fetch.copied(index, CopyOutcome.BROKEN, "closed", self.now_s))
        assert (Ready in self.events) != (Drained in self.events), "a fetch ends ready or drained"
        assert SendRelease in self.events, "the source was not told"


TestFetchRules = FetchRules.TestCase
TestFetchRules.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_without_the_final_announcement_a_fetch_runs_into_its_deadline() -> None:
    fetch = machine(1)
    fetch.announced(blocks(0, 1), (0, 2), None, 0.0)
    fetch.copied(0, CopyOutcome.VERIFIED, "", 1.0)
    assert fetch.tick(DEADLINE_S - 1) == []
    failed, release, drained = fetch.tick(DEADLINE_S)
    assert isinstance(failed, Failed)
    assert failed.code is ErrorCode.DEADLINE_EXCEEDED
    assert "final" in failed.message
    assert (type(release), type(drained)) == (SendRelease, Drained)


def test_more_blocks_than_reserved_are_refused() -> None:
    fetch = machine(2)
    failed = fetch.announced(blocks(0, 4), (0, 2), FINAL, 0.0)[0]
    assert isinstance(failed, Failed)
    assert failed.source_is_to_blame
    assert fetch.state is FetchState.FAILED


def test_a_request_held_here_already_is_ready_with_its_final_alone() -> None:
    fetch = machine(2, skip=2)
    ready = fetch.announced(blocks(2, 0), (0, 2), FINAL, 5.0)[0]
    assert isinstance(ready, Ready)
    assert (ready.kv_blocks, ready.copy_s, ready.exposed_s) == (0, 0.0, 0.0)


def test_copy_time_counts_overlapping_copies_once() -> None:
    fetch = machine(2)
    fetch.announced(blocks(0, 2), (0, 2), FINAL, 1.0)
    fetch.copied(0, CopyOutcome.VERIFIED, "", 3.0)
    ready = fetch.copied(1, CopyOutcome.VERIFIED, "", 4.0)[0]
    assert isinstance(ready, Ready)
    assert (ready.copy_s, ready.exposed_s) == (3.0, 3.0)
