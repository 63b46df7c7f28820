"""Pushes: blocks are there when they are announced, and memory that may be written to is never reused."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from typing import Any

from device_pair import DeviceConsumer, DeviceSource, content, device_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_pair import FINAL, KEY, LAYOUT, pattern, until

from kvtransfer.device_runtime import DeviceError
from kvtransfer.fetch import CopyOutcome, Drained, FetchMachine, Ready, StartCopy
from kvtransfer.handoff import BlockRange, SourceAddress
from kvtransfer.push import PushGrant, PushTable, PushTarget, SendQuiet
from wire.errors import ErrorCode, SpliceError

SIZE = LAYOUT.block_bytes


def push(source: DeviceSource, blocks: list[int], *, wrong: int = -1) -> tuple[int, bool]:
    """Writes `blocks`, those of KEY in order, as a kernel with two pairs of pointers: (event, whether it pushed)."""
    writer, device = source.writer, source.writer.device
    target = source.kv.push_target(KEY)
    writes = []
    for index, block in enumerate(blocks):
        source.pool.bump(block)
        writes.append((source.pool.address + block * SIZE, pattern(block, SIZE)))
        slot = -1 if target is None else target.slot(index * LAYOUT.block_tokens, LAYOUT.block_tokens)
        if target is not None and slot >= 0:
            there = target.address + slot // LAYOUT.block_tokens * SIZE
            writes.append((there, pattern(99 if index == wrong else block, SIZE)))

    def run() -> None:
        for place, new in writes:
            device.write(place, new)

    device.launch(run, [], [(place, SIZE) for place, _ in writes], writer.stream)
    device.record(writer.event, writer.stream)
    if target is not None:
        source.kv.stored([KEY], writer.event)
    return writer.event, target is not None


@contextlib.asynccontextmanager
async def pushing_pair(**options: Any) -> AsyncIterator[tuple[DeviceSource, SourceAddress, DeviceConsumer]]:
    given_source = {"push": True} | options.get("source", {})
    async with device_pair(source=given_source, consumer={"push": "on"} | options.get("consumer", {})) as parts:
        yield parts


def mapped_by(source: DeviceSource) -> int:
    """Pools of consumers that the source could push to now."""
    return sum(link is not None for link in source.kv._pusher._links.values())


async def fetching(source: DeviceSource, address: SourceAddress, consumer: DeviceConsumer, **fetch: Any) -> None:
    arguments = {"dest_blocks": [15, 14, 13, 12], "skip_blocks": 0, "deadline_s": 20.0} | fetch
    consumer.kv.fetch(KEY, address, **arguments)
    await until(lambda: len(source.kv._pusher) == 1 and mapped_by(source) == 1)


async def test_pushed_blocks_are_there_when_they_are_announced_and_nothing_is_pulled() -> None:
    async with pushing_pair() as (source, address, consumer):
        await fetching(source, address, consumer)
        pulls = []
        consumer.pool.pull = lambda *arguments: pulls.append(arguments)
        event, pushed = push(source, [0, 1, 2, 3])
        source.kv.announce(KEY, 0, [0, 1, 2, 3], 4 * LAYOUT.block_tokens, FINAL, event, 0 if pushed else None)
        await until(lambda: consumer.ready or consumer.failed)
        stats = consumer.ready[0][2]
        assert (stats.transport, stats.kv_blocks, stats.blocks_pushed, stats.blocks_refetched) == ("push", 4, 4, 0)
        assert consumer.kv.stats.blocks_pushed == 4
        assert not pulls
        for index, block in enumerate([15, 14, 13, 12]):
            assert content(consumer.pool, block) == pattern(index, SIZE)
        await until(lambda: len(source.kv._pusher) == 0)


async def test_a_block_that_was_not_pushed_whole_is_pulled() -> None:
    async with pushing_pair() as (source, address, consumer):
        await fetching(source, address, consumer)
        event, pushed = push(source, [0, 1, 2, 3], wrong=2)
        source.kv.announce(KEY, 0, [0, 1, 2, 3], 4 * LAYOUT.block_tokens, FINAL, event, 0 if pushed else None)
        await until(lambda: consumer.ready or consumer.failed)
        stats = consumer.ready[0][2]
        assert (stats.transport, stats.kv_blocks, stats.blocks_pushed, stats.blocks_refetched) == ("cuda_ipc", 4, 3, 0)
        assert consumer.kv.stats.digest_mismatches == 0
        assert content(consumer.pool, 13) == pattern(2, SIZE)


async def test_blocks_that_the_consumer_holds_already_are_not_granted() -> None:
    async with pushing_pair() as (source, address, consumer):
        with consumer.pool.filling(15) as held:
            held[:] = pattern(50, SIZE)
        await fetching(source, address, consumer, skip_blocks=1)
        event, pushed = push(source, [0, 1, 2, 3])
        source.kv.announce(KEY, 0, [0, 1, 2, 3], 4 * LAYOUT.block_tokens, FINAL, event, 0 if pushed else None)
        await until(lambda: consumer.ready)
        assert consumer.ready[0][2].blocks_pushed == 3
        assert content(consumer.pool, 15) == pattern(50, SIZE)


async def test_a_cancelled_targets_memory_drains_only_when_the_push_is_done() -> None:
    async with pushing_pair() as (source, address, consumer):
        await fetching(source, address, consumer)
        source.pool.runtime.held.clear()
        push(source, [0, 1, 2, 3])
        consumer.kv.cancel(KEY, "client left")
        await until(lambda: source.released == [(KEY, "client left")])
        assert source.kv.push_target(KEY) is None
        await asyncio.sleep(0.1)
        assert not consumer.drained
        source.pool.runtime.held.set()
        await until(lambda: consumer.drained == [KEY])
        assert len(source.kv._pusher) == 0


async def test_a_launch_that_was_not_made_does_not_hold_the_target() -> None:
    async with pushing_pair() as (source, address, consumer):
        await fetching(source, address, consumer)
        assert source.kv.push_target(KEY) is not None
        source.kv.stored([KEY], None)
        source.kv.fail(KEY, SpliceError(ErrorCode.INTERNAL_ERROR, "out of memory"))
        await until(lambda: consumer.failed and consumer.drained == [KEY])


async def test_a_consumer_that_closes_waits_for_a_push_under_way_and_then_nobody_maps_it() -> None:
    async with pushing_pair() as (source, address, consumer):
        await fetching(source, address, consumer)
        source.pool.runtime.held.clear()
        push(source, [0, 1, 2, 3])
        closing = asyncio.create_task(consumer.kv.close())
        await asyncio.sleep(0.3)
        assert not closing.done()
        assert not consumer.drained
        assert source.pool.runtime.num_mapped == 1
        source.pool.runtime.held.set()
        await asyncio.wait_for(closing, 10)
        assert consumer.drained == [KEY]
        assert source.pool.runtime.num_mapped == 0


async def test_a_source_that_does_not_push_is_pulled_from() -> None:
    async with pushing_pair(source={"push": False}) as (source, address, consumer):
        source.announce_all(4)
        consumer.kv.fetch(KEY, address, [0, 1, 2, 3], 0, 10.0)
        await until(lambda: consumer.ready)
        assert (consumer.ready[0][2].transport, consumer.ready[0][2].blocks_pushed) == ("cuda_ipc", 0)
        assert source.kv.push_target(KEY) is None


async def test_where_the_consumers_memory_cannot_be_mapped_blocks_are_pulled() -> None:
    async with pushing_pair(source={"device": {"reaches": False}}) as (source, address, consumer):
        consumer.kv.fetch(KEY, address, [0, 1], 0, 10.0)
        await until(lambda: len(source.kv._pusher) == 1)
        event, pushed = push(source, [0, 1])
        assert not pushed
        source.kv.announce(KEY, 0, [0, 1], 2 * LAYOUT.block_tokens, FINAL, event, 0 if pushed else None)
        await until(lambda: consumer.ready)
        assert consumer.ready[0][2].blocks_pushed == 0


async def test_a_request_refused_at_the_source_leaves_no_grant_behind() -> None:
    async with pushing_pair() as (source, address, consumer):
        source.kv.fail(KEY, SpliceError(ErrorCode.INTERNAL_ERROR, "never fits"))
        consumer.kv.fetch(KEY, address, [0, 1], 0, 10.0)
        await until(lambda: consumer.drained == [KEY])
        assert "never fits" in consumer.failed[0][1].message
        assert len(source.kv._pusher) == 0


async def test_a_push_on_a_device_that_fails_lets_go_of_its_target() -> None:
    async with pushing_pair() as (source, address, consumer):
        await fetching(source, address, consumer)
        device = source.pool.runtime
        device.held.clear()
        push(source, [0])
        device.fail_next = "is_done"
        device.held.set()
        consumer.kv.cancel(KEY, "client left")
        await until(lambda: consumer.drained == [KEY])


def _push_and_hang(pipe: Any) -> None:
    """A source whose device is busy for ever: it has launched a push, and its process is killed in that."""

    async def run() -> None:
        source = DeviceSource(("cuda_ipc",), ttl_s=30.0, push=True)
        address = await source.start()
        pipe.send((address.worker_id, address.incarnation, address.endpoint))
        await until(lambda: len(source.kv._pusher) == 1 and mapped_by(source) == 1, 30.0)
        source.pool.runtime.held.clear()
        push(source, [0, 1, 2, 3])
        pipe.send("pushing")
        await asyncio.sleep(60)

    asyncio.run(run())


@contextlib.contextmanager
def pushing_process() -> Iterator[tuple[Any, SourceAddress, Any]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_push_and_hang, args=(theirs,))
    process.start()
    theirs.close()
    try:
        assert ours.poll(30), "the source process did not start"
        yield process, SourceAddress(*ours.recv()), ours
    finally:
        process.kill()
        process.join()
        ours.close()


async def test_a_killed_pushers_target_drains_when_its_process_is_gone_and_can_be_freed() -> None:
    with pushing_process() as (process, address, pipe):
        consumer = DeviceConsumer(("cuda_ipc",), push="on")
        await consumer.kv.start()
        consumer.kv.fetch(KEY, address, list(range(4)), 0, 60.0)
        assert await asyncio.to_thread(pipe.poll, 30)
        consumer.kv.cancel(KEY, "client left")
        await asyncio.sleep(0.2)
        assert not consumer.drained, "the push is still under way"
        process.kill()
        await until(lambda: consumer.drained == [KEY], 5.0)
        await consumer.close()
        consumer.pool.runtime.check()
        assert not consumer.pool.runtime.left


async def test_a_request_that_runs_out_of_time_fails_at_once_and_drains_when_the_push_is_done() -> None:
    async with pushing_pair() as (source, address, consumer):
        await fetching(source, address, consumer)
        source.pool.runtime.held.clear()
        push(source, [0, 1, 2, 3])
        consumer.kv._fetches[KEY].machine.deadline_s = 0.0
        await until(lambda: consumer.failed)
        assert consumer.failed[0][1].code is ErrorCode.DEADLINE_EXCEEDED
        await until(lambda: source.released)
        assert not consumer.drained
        assert source.kv.push_target(KEY) is None
        source.pool.runtime.held.set()
        await until(lambda: consumer.drained == [KEY])


async def test_a_request_given_up_at_its_source_in_mid_push_drains_when_the_push_is_done() -> None:
    async with pushing_pair() as (source, address, consumer):
        await fetching(source, address, consumer)
        source.pool.runtime.held.clear()
        push(source, [0, 1, 2, 3])
        source.kv.fail(KEY, SpliceError(ErrorCode.INTERNAL_ERROR, "the engine gave up"))
        await until(lambda: consumer.failed)
        assert not consumer.drained
        source.pool.runtime.held.set()
        await until(lambda: consumer.drained == [KEY])


async def test_a_launch_no_one_can_follow_holds_the_target_until_the_source_is_gone() -> None:
    async with pushing_pair() as (source, address, consumer):
        await fetching(source, address, consumer)
        event = source.writer.write([0])
        assert source.kv.push_target(KEY) is not None
        lanes = source.pool._lanes

        def refused() -> None:
            raise DeviceError("out of memory")

        lanes.take, take = refused, lanes.take
        source.kv.stored([KEY], event)
        lanes.take = take
        consumer.kv.cancel(KEY, "client left")
        await until(lambda: source.released)
        assert len(source.kv._pusher) == 1
        assert not consumer.drained
        source.kv._pusher._finish([KEY])  # what the end of its process does
        await until(lambda: consumer.drained == [KEY])


def _fetch_and_hang(pipe: Any, source: tuple[str, int, str]) -> None:
    """A consumer that grants its blocks, and whose process is killed while they are pushed to."""

    async def run() -> None:
        consumer = DeviceConsumer(("cuda_ipc",), push="on")
        await consumer.kv.start()
        consumer.kv.fetch(KEY, SourceAddress(*source), list(range(4)), 0, 60.0)
        pipe.send("fetching")
        await asyncio.sleep(60)

    asyncio.run(run())


async def test_a_killed_consumers_memory_stays_mapped_until_the_push_is_done_and_no_longer() -> None:
    source = DeviceSource(("cuda_ipc",), ttl_s=30.0, push=True)
    address = await source.start()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    where = (address.worker_id, address.incarnation, address.endpoint)
    process = context.Process(target=_fetch_and_hang, args=(theirs, where))
    process.start()
    theirs.close()
    try:
        await until(lambda: len(source.kv._pusher) == 1 and mapped_by(source) == 1, 60.0)
        source.pool.runtime.held.clear()
        push(source, [0, 1, 2, 3])
        process.kill()
        await until(lambda: source.released == [(KEY, "consumer lost")], 30.0)
        assert source.kv.push_target(KEY) is None
        assert source.pool.runtime.num_mapped == 1, "work on it is under way"
        source.pool.runtime.held.set()
        await until(lambda: source.pool.runtime.num_mapped == 0 and not len(source.kv._pusher))
    finally:
        process.kill()
        process.join()
        ours.close()
        source.pool.runtime.held.set()
        await source.close()
    source.pool.runtime.check()
    assert not source.pool.runtime.left


def test_a_range_is_announced_in_two_where_only_its_end_was_pushed() -> None:
    whole = BlockRange(3, (7, 8, 9), (1, 2, 3), (b"a", b"b", b"c"), 190)
    assert whole.split(None) == [whole]
    assert whole.split(6) == whole.split(9) == [whole]
    assert [(part.first_block, part.block_ids, part.digests, part.pushed) for part in whole.split(5)] == [
        (3, (7, 8), (b"a", b"b"), False),
        (5, (9,), (b"c",), True),
    ]
    assert [(part.block_ids, part.pushed) for part in whole.split(0)] == [((7, 8, 9), True)]
    assert BlockRange(3, (), (), (), 96).split(0) == [BlockRange(3, (), (), (), 96)]
    assert [whole.tokens_of(index, 32) for index in (3, 4, 5, 6)] == [32, 32, 30, 0]


def test_rows_beyond_a_grant_stay() -> None:
    target = PushTarget(0, PushGrant(2, (9, 4)))
    slots = [target.slot(position, 32) for position in (0, 63, 64, 95, 96, 127, 128)]
    assert slots == [-1, -1, 9 * 32, 9 * 32 + 31, 4 * 32, 4 * 32 + 31, -1]


# --- the cores ---

KEYS = [(1, 1), (2, 1)]
EVENTS = st.sampled_from(["grant", "begin", "finish", "end", "lost", "other"])


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.sampled_from(KEYS)), max_size=40))
def test_each_grant_ends_in_one_quiet_and_never_while_a_launch_is_under_way(events: list[tuple[str, Any]]) -> None:
    table = PushTable()
    live: dict[Any, int] = {}
    granted, quiet = 0, 0
    for event, key in events:
        actions: list[SendQuiet] = []
        match event:
            case "grant" if key not in live:
                actions = table.grant(1, key, PushGrant(0, (1,)))
                live[key] = 0
                granted += 1
            case "other" if key in live:
                assert table.grant(2, key, PushGrant(0, (2,))) == [SendQuiet(2, key)]
            case "begin":
                if table.begin(key) is not None:
                    live[key] += 1
            case "finish" if live.get(key):
                live[key] -= 1
                actions = table.finish(key)
            case "end":
                actions = table.end(key)
            case "lost":
                table.consumer_lost(1)
                for gone in [known for known, launches in live.items() if not launches]:
                    del live[gone]
                    quiet += 1
        for action in actions:
            assert live.pop(action.key) == 0
            quiet += 1
        assert not table.check()
        assert len(table) == granted - quiet


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["announce", "good", "absent", "bad", "quiet", "cancel", "lost", "final"]), max_size=30),
    st.booleans(),
)
def test_memory_that_may_be_pushed_to_is_never_reported_drained(events: list[str], pushed: bool) -> None:
    machine = FetchMachine(
        KEY, dest_blocks=3, skip_blocks=0, block_tokens=32, num_layers=2, deadline_s=100.0, max_outstanding=2
    )
    machine.push_granted()
    copies: list[StartCopy] = []
    pushing, ended = True, 0
    announced = 0
    for event in events:
        actions: list[Any] = []
        if event in ("announce", "final") and announced < 3 and not ended:
            last = FINAL if event == "final" else None
            blocks = BlockRange(announced, (announced,), (1,), (bytes(16),), 32 * (announced + 1), pushed)
            was_live = machine.is_live
            actions = machine.announced(blocks, (0, 2), last, 1.0)
            pushing = pushing and not (last is not None and was_live)
            announced = 3 if last is not None else announced + 1
        elif event in ("good", "absent", "bad") and copies:
            copy = copies.pop(0)
            outcome = {"good": CopyOutcome.VERIFIED, "bad": CopyOutcome.STALE, "absent": CopyOutcome.ABSENT}[event]
            if outcome is CopyOutcome.ABSENT and not copy.in_place:
                outcome = CopyOutcome.DAMAGED
            actions = machine.copied(copy.index, outcome, "", 2.0)
        elif event == "quiet":
            pushing = False
            actions = machine.quiet()
        elif event == "cancel":
            actions = machine.cancel("client left")
        elif event == "lost":
            actions = machine.source_lost(ErrorCode.WORKER_LOST, "gone")
        copies += [action for action in actions if isinstance(action, StartCopy)]
        for action in actions:
            if isinstance(action, Drained | Ready):
                assert not pushing
                assert not copies
                ended += 1
        assert ended <= 1
        assert not machine.check()
    if not machine.is_live and not copies and not pushing:
        assert ended == 1, "nobody would ever be told"
