"""What every transport promises; the same tests over each."""

from __future__ import annotations

import gc
import os
from dataclasses import replace

import pytest
from kv_pair import FINAL, KEY, LAYOUT, Consumer, fill, pair, pattern, source_process, until
from structlog.testing import capture_logs

from kvtransfer.faults import FLIP_BYTE, FLIP_BYTE_UNCHECKED, STALL, FaultPlan
from kvtransfer.registry import LINKS
from kvtransfer.transport import Link, PeerPool, TransportError
from wire.errors import ErrorCode
from wire.kv_layout import KVLayout

SHM = "/dev/shm"  # noqa: S108
TRANSPORTS = ("shm", "tcp", "ucx")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_blocks_arrive_unchanged_from_another_process(transport: str) -> None:
    with source_process((transport,), num_blocks=12) as (_, address, control):
        consumer = Consumer((transport,))
        await consumer.kv.start()
        dest = list(range(15, 3, -1))
        consumer.kv.fetch(KEY, address, dest, 0, 20.0)
        await until(lambda: consumer.ready or consumer.failed, 20.0)
        assert not consumer.failed
        key, final, stats = consumer.ready[0]
        assert (key, final) == (KEY, FINAL)
        for index, block in enumerate(dest):
            assert bytes(consumer.pool.block(block)) == pattern(index, LAYOUT.block_bytes)
        assert (stats.transport, stats.kv_blocks, stats.transport_fallbacks) == (transport, 12, 0)
        assert stats.kv_bytes == 12 * LAYOUT.block_bytes
        assert stats.copy_s > 0
        await consumer.close()
        control.send("stop")
        assert control.poll(10)
        assert control.recv() == [(KEY, "fetched")]


def announce_all(source: object, num_blocks: int = 8) -> None:
    fill(source.pool, list(range(num_blocks)))
    source.kv.announce(KEY, 0, list(range(num_blocks)), num_blocks * LAYOUT.block_tokens, FINAL)


async def test_blocks_announced_while_prefill_computes_are_fetched_before_the_final(transport: str) -> None:
    async with pair((transport,)) as (source, address, consumer):
        consumer.kv.fetch(KEY, address, [3, 4, 5, 6], 1, 10.0)
        fill(source.pool, [8, 9, 10, 11])
        source.kv.announce(KEY, 0, [8, 9], 2 * LAYOUT.block_tokens, None)
        await until(lambda: bytes(consumer.pool.block(4)) == pattern(9, LAYOUT.block_bytes))
        assert not consumer.ready
        source.kv.announce(KEY, 2, [10, 11], 4 * LAYOUT.block_tokens - 5, FINAL)
        await until(lambda: consumer.ready)
        assert bytes(consumer.pool.block(6)) == pattern(11, LAYOUT.block_bytes)
        assert not any(consumer.pool.block(3)), "a block the consumer already held was overwritten"
        assert consumer.ready[0][2].kv_blocks == 3
        await until(lambda: source.released == [(KEY, "fetched")])


async def test_a_flipped_bit_is_caught_and_the_block_fetched_again_once(transport: str) -> None:
    faults = FaultPlan({FLIP_BYTE: 1})
    async with pair((transport,), consumer={"faults": faults}) as (source, address, consumer):
        announce_all(source)
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        await until(lambda: consumer.ready or consumer.failed)
        assert faults.hits[FLIP_BYTE] == 1
        assert consumer.ready[0][2].blocks_refetched == 1
        assert consumer.kv.stats.digest_mismatches == 1
        for block in range(8):
            assert bytes(consumer.pool.block(block)) == pattern(block, LAYOUT.block_bytes)


async def test_a_block_damaged_twice_fails_the_request_and_blames_the_source(transport: str) -> None:
    faults = FaultPlan({FLIP_BYTE: 2})
    async with pair((transport,), consumer={"faults": faults}) as (source, address, consumer):
        announce_all(source, 1)
        consumer.kv.fetch(KEY, address, [0], 0, 10.0)
        await until(lambda: consumer.drained)
        assert faults.hits[FLIP_BYTE] == 2
        ((key, error, blamed),) = consumer.failed
        assert (key, error.code, blamed) == (KEY, ErrorCode.KV_DIGEST_MISMATCH, "prefill-0")
        assert not consumer.ready


async def test_without_the_digest_a_flipped_bit_would_pass(transport: str) -> None:
    faults = FaultPlan({FLIP_BYTE_UNCHECKED: 1})
    async with pair((transport,), consumer={"faults": faults}) as (source, address, consumer):
        announce_all(source, 1)
        consumer.kv.fetch(KEY, address, [0], 0, 10.0)
        await until(lambda: consumer.ready)
        assert faults.hits[FLIP_BYTE_UNCHECKED] == 1
        there, here = source.pool.block(0), consumer.pool.block(0)
        assert sum((a ^ b).bit_count() for a, b in zip(there, here, strict=True)) == 1


async def test_a_block_reused_at_the_source_is_discarded(transport: str) -> None:
    async with pair((transport,)) as (source, address, consumer):
        announce_all(source)
        source.pool.bump(5)
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        await until(lambda: consumer.drained)
        ((_, error, blamed),) = consumer.failed
        assert (error.code, blamed) == (ErrorCode.KV_TRANSFER_FAILED, None)
        assert "block 5" in error.message
        assert not consumer.ready


async def test_another_layout_is_refused_before_the_first_byte(transport: str) -> None:
    other = KVLayout(num_layers=2, num_kv_heads=1, head_dim=64, block_tokens=32, dtype="bfloat16")
    assert other.block_bytes == LAYOUT.block_bytes
    async with pair((transport,), consumer={"layout": other}) as (source, address, consumer):
        announce_all(source)
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        await until(lambda: consumer.drained)
        ((_, error, _),) = consumer.failed
        assert error.code is ErrorCode.LAYOUT_MISMATCH
        assert "num_kv_heads" in error.message
        assert not any(consumer.pool.data())


async def test_another_model_or_a_restarted_source_is_refused(transport: str) -> None:
    async with pair((transport,), consumer={"compat": "other"}) as (source, address, consumer):
        announce_all(source)
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        consumer.kv.fetch((1, 1), replace(address, incarnation=99), [8], 0, 10.0)
        await until(lambda: len(consumer.drained) == 2)
        errors = {key: error for key, error, _ in consumer.failed}
        assert "compat_id" in errors[KEY].message
        assert errors[(1, 1)].code is ErrorCode.INCARNATION_MISMATCH


async def test_killing_the_source_fails_its_fetches_at_once_and_then_drains(transport: str) -> None:
    faults = FaultPlan({STALL: 1})
    with source_process((transport,), num_blocks=4, final=False) as (process, address, _):
        consumer = Consumer((transport,), faults=faults)
        await consumer.kv.start()
        consumer.kv.fetch(KEY, address, [0, 1, 2, 3], 0, 60.0)
        await until(lambda: faults.hits[STALL] and consumer.kv.stats.copies_outstanding == 1)
        process.kill()
        await until(lambda: consumer.failed, 5.0)
        assert consumer.failed[0][1].code is ErrorCode.WORKER_LOST
        assert consumer.failed[0][2] == "prefill-0"
        assert not consumer.drained, "a copy was still outstanding"
        faults.end_stalls()
        await until(lambda: consumer.drained == [KEY], 5.0)
        assert consumer.kv.stats.copies_outstanding == 0
        await consumer.close()


async def test_cancel_drains_in_every_state(transport: str) -> None:
    faults = FaultPlan({STALL: 1})
    async with pair((transport,), consumer={"faults": faults}) as (source, address, consumer):
        consumer.kv.cancel((9, 9), "never heard of")
        await until(lambda: consumer.drained == [(9, 9)])
        consumer.kv.fetch((2, 1), address, [0], 0, 10.0)  # awaits prefill
        await until(lambda: source.kv.stats.leases_active == 1)
        consumer.kv.cancel((2, 1), "client left")
        await until(lambda: consumer.drained[1:] == [(2, 1)] and source.released == [((2, 1), "client left")])
        announce_all(source)
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)  # fetching, one copy stalled
        await until(lambda: faults.hits[STALL])
        consumer.kv.cancel(KEY, "client left")
        await until(lambda: len(source.released) == 2)
        assert KEY not in consumer.drained
        faults.end_stalls()
        await until(lambda: consumer.drained[2:] == [KEY])
        assert not consumer.ready
        assert not consumer.failed


async def test_a_transport_that_fails_is_passed_over_in_the_open(transport: str) -> None:
    second = next(name for name in TRANSPORTS if name != transport)

    def broken(address: bytes, expected: PeerPool) -> Link:
        raise TransportError("no such device")

    options = {"factories": {**LINKS, transport: broken}}
    async with pair((transport, second), consumer=options) as (source, address, consumer):
        announce_all(source)
        with capture_logs() as logs:
            consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
            await until(lambda: consumer.ready)
        assert consumer.ready[0][2].transport == second
        assert consumer.ready[0][2].transport_fallbacks == 1
        assert [log["transport"] for log in logs if log["event"] == "kv transport passed over"] == [transport]


async def test_nothing_is_left_open(transport: str) -> None:
    async def once() -> None:
        async with pair((transport,)) as (source, address, consumer):
            announce_all(source)
            consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
            await until(lambda: consumer.ready)

    shared = set(os.listdir(SHM))
    await once()  # libraries open descriptors of their own once
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    await once()
    await once()
    await until(lambda: gc.collect() >= 0 and len(os.listdir("/proc/self/fd")) <= before)
    ours = {name for name in set(os.listdir(SHM)) - shared if "splice" in name}
    assert not ours
