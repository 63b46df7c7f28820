"""What a hand-off promises, kept by pools on devices, over every transport that carries them."""

from __future__ import annotations

import asyncio
import threading

import pytest
from device_pair import NUM_BLOCKS, DeviceConsumer, content, device_pair, device_source_process
from kv_pair import FINAL, KEY, LAYOUT, pair, pattern, until
from structlog.testing import capture_logs

from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.faults import FLIP_BYTE, FLIP_BYTE_UNCHECKED, STALL, FaultPlan
from kvtransfer.registry import DEVICE_SOURCES, MISSING
from wire.errors import ErrorCode, SpliceError

TRANSPORTS = ("cuda_ipc", "nccl", "ucx", "shm", "tcp")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    if request.param not in DEVICE_SOURCES:
        pytest.skip(MISSING[request.param])
    return str(request.param)


def hold_next_pull(pool: DevicePoolMemory) -> threading.Event:
    """The next copy from a peer's pages is launched, and not done before the device's `held` is set again."""
    launched = threading.Event()
    pull = pool.pull

    def pull_late(*arguments):
        pool.pull = pull
        pool.runtime.held.clear()
        launched.set()
        pull(*arguments)

    pool.pull = pull_late
    return launched


async def test_blocks_of_a_device_arrive_unchanged_from_another_process(transport: str) -> None:
    with device_source_process((transport,)) as (_, address, control):
        consumer = DeviceConsumer((transport,))
        await consumer.kv.start()
        dest = list(range(NUM_BLOCKS - 1, -1, -1))
        consumer.kv.fetch(KEY, address, dest, 0, 20.0)
        await until(lambda: consumer.ready or consumer.failed, 20.0)
        assert not consumer.failed, consumer.failed
        key, final, stats = consumer.ready[0]
        assert (key, final) == (KEY, FINAL)
        assert (stats.transport, stats.kv_blocks, stats.transport_fallbacks) == (transport, NUM_BLOCKS, 0)
        for index, block in enumerate(dest):
            assert content(consumer.pool, block) == pattern(index, LAYOUT.block_bytes)
        await consumer.close()
        consumer.pool.runtime.check()
        control.send("stop")
        assert await asyncio.to_thread(control.poll, 10)
        assert control.recv() == ([(KEY, "fetched")], [], {})


async def test_blocks_are_announced_only_behind_the_event_of_their_write(transport: str) -> None:
    async with device_pair((transport,)) as (source, address, consumer):
        source.pool.runtime.held.clear()
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        source.announce_all()
        await until(lambda: source.kv.stats.leases_active == 1)
        await asyncio.sleep(0.1)
        assert source.kv.stats.blocks_announced == 0
        source.pool.runtime.held.set()
        await until(lambda: consumer.ready)
        assert content(consumer.pool, 5) == pattern(5, LAYOUT.block_bytes)


async def test_a_flipped_bit_on_the_device_is_caught_and_the_block_fetched_again_once(transport: str) -> None:
    faults = FaultPlan({FLIP_BYTE: 1})
    async with device_pair((transport,), consumer={"faults": faults}) as (source, address, consumer):
        source.announce_all()
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        await until(lambda: consumer.ready or consumer.failed)
        assert faults.hits[FLIP_BYTE] == 1
        assert consumer.ready[0][2].blocks_refetched == 1
        assert consumer.kv.stats.digest_mismatches == 1
        for block in range(8):
            assert content(consumer.pool, block) == pattern(block, LAYOUT.block_bytes)


async def test_a_block_damaged_twice_on_the_device_fails_the_request(transport: str) -> None:
    faults = FaultPlan({FLIP_BYTE: 2})
    async with device_pair((transport,), consumer={"faults": faults}) as (source, address, consumer):
        source.announce_all(1)
        consumer.kv.fetch(KEY, address, [0], 0, 10.0)
        await until(lambda: consumer.drained)
        ((_, error, blamed),) = consumer.failed
        assert (error.code, blamed) == (ErrorCode.KV_DIGEST_MISMATCH, "prefill-0")


async def test_without_the_checksum_a_flipped_bit_would_pass(transport: str) -> None:
    faults = FaultPlan({FLIP_BYTE_UNCHECKED: 1})
    async with device_pair((transport,), consumer={"faults": faults}) as (source, address, consumer):
        source.announce_all(1)
        consumer.kv.fetch(KEY, address, [0], 0, 10.0)
        await until(lambda: consumer.ready)
        there, here = content(source.pool, 0), content(consumer.pool, 0)
        assert sum((a ^ b).bit_count() for a, b in zip(there, here, strict=True)) == 1


async def test_a_block_reused_on_the_device_is_discarded(transport: str) -> None:
    async with device_pair((transport,)) as (source, address, consumer):
        source.announce_all()
        await until(lambda: source.kv.stats.blocks_announced == 8)
        source.writer.write([5], [77])
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        await until(lambda: consumer.drained)
        ((_, error, blamed),) = consumer.failed
        assert (error.code, blamed) == (ErrorCode.KV_TRANSFER_FAILED, None)
        assert "block 5" in error.message


async def test_a_block_overwritten_during_its_copy_is_discarded() -> None:
    """The copy is launched while the grant holds and done after it ended: only the second look can tell."""
    async with device_pair() as (source, address, consumer):
        source.announce_all(1)
        await until(lambda: source.kv.stats.blocks_announced == 1)
        launched = hold_next_pull(consumer.pool)
        consumer.kv.fetch(KEY, address, [3], 0, 10.0)
        assert await asyncio.to_thread(launched.wait, 5)
        source.writer.write([0], [77])
        consumer.pool.runtime.held.set()
        await until(lambda: consumer.drained)
        assert "reused at the source" in consumer.failed[0][1].message
        assert consumer.kv.stats.digest_mismatches == 0


@pytest.mark.parametrize("shared_by", ["cuda_ipc", "shm"])
async def test_killing_a_device_source_fails_at_once_and_its_memory_is_unmapped_within_seconds(shared_by: str) -> None:
    faults = FaultPlan({STALL: 1})
    with device_source_process((shared_by,), final=False) as (process, address, _):
        consumer = DeviceConsumer((shared_by,), faults=faults)
        before = consumer.pool.runtime.left
        await consumer.kv.start()
        consumer.kv.fetch(KEY, address, list(range(NUM_BLOCKS)), 0, 60.0)
        await until(lambda: faults.hits[STALL] and consumer.pool.runtime.left != before)
        process.kill()
        await until(lambda: consumer.failed, 5.0)
        assert consumer.failed[0][1].code is ErrorCode.WORKER_LOST
        assert not consumer.drained, "a copy was still outstanding"
        await until(lambda: consumer.pool.runtime.left == before, 5.0)
        faults.end_stalls()
        await until(lambda: consumer.drained == [KEY], 5.0)
        await consumer.close()
        consumer.pool.runtime.check()
        assert not consumer.pool.runtime.left


async def test_memory_of_a_killed_source_stays_mapped_until_the_copy_from_it_has_ended() -> None:
    with device_source_process() as (process, address, _):
        consumer = DeviceConsumer(("cuda_ipc",))
        device = consumer.pool.runtime
        await consumer.kv.start()
        under_way = hold_next_pull(consumer.pool)
        consumer.kv.fetch(KEY, address, list(range(NUM_BLOCKS)), 0, 60.0)
        assert await asyncio.to_thread(under_way.wait, 5)
        process.kill()
        await until(lambda: consumer.failed, 5.0)
        await asyncio.sleep(0.1)
        assert device.num_mapped == 1
        assert not consumer.drained
        device.held.set()
        await until(lambda: consumer.drained == [KEY] and device.num_mapped == 0, 5.0)
        await consumer.close()
        device.check()
        assert not device.left


async def test_a_revoked_consumer_unmaps_and_its_next_copy_falls_back() -> None:
    async with device_pair(("cuda_ipc", "tcp")) as (source, address, consumer):
        source.announce_all()
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        await until(lambda: consumer.ready)
        transport = source.kv._serving["cuda_ipc"]
        transport.revoke(next(iter(transport._mapped.values())).capability)
        await until(lambda: consumer.pool.runtime.num_mapped == 0 and transport.num_mapped == 0)
        again = (KEY[0], 2)
        written = source.writer.write([9])
        source.kv.announce(again, 0, [9], LAYOUT.block_tokens, FINAL, written)
        consumer.kv.fetch(again, address, [12], 0, 10.0)
        await until(lambda: len(consumer.ready) == 2)
        assert consumer.ready[1][2].transport == "tcp"
        assert content(consumer.pool, 12) == pattern(9, LAYOUT.block_bytes)


@pytest.mark.parametrize("staging", ["shm", "tcp"])
async def test_where_devices_cannot_reach_each_other_blocks_go_through_pinned_memory(staging: str) -> None:
    with capture_logs() as logs:
        options = {"device": {"reaches": False}}
        async with device_pair(("cuda_ipc", staging), consumer=options) as (source, address, consumer):
            source.announce_all()
            consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
            await until(lambda: consumer.ready)
            assert (consumer.ready[0][2].transport, consumer.ready[0][2].transport_fallbacks) == (staging, 1)
            assert content(consumer.pool, 7) == pattern(7, LAYOUT.block_bytes)
    assert [log["transport"] for log in logs if log["event"] == "kv transport passed over"] == ["cuda_ipc"]


async def test_memory_that_cannot_be_exported_is_served_through_pinned_memory() -> None:
    async with device_pair(("cuda_ipc", "tcp")) as (source, address, consumer):
        await source.kv.close()
        source.kv._sealer = type(source.kv._sealer)(1)
        source.pool._export = None
        source.pool.runtime.fail_next = "export"
        await source.kv.start()
        assert list(source.kv._serving) == ["tcp"]
        source.announce_all()
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        await until(lambda: consumer.ready)
        assert consumer.ready[0][2].transport == "tcp"


async def test_a_copy_that_the_driver_refuses_falls_back() -> None:
    async with device_pair(("cuda_ipc", "tcp")) as (source, address, consumer):
        source.announce_all()
        await until(lambda: source.kv.stats.blocks_announced == 8)
        consumer.pool.runtime.fail_next = "launch"
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        await until(lambda: consumer.ready or consumer.failed)
        assert consumer.ready, consumer.failed
        assert consumer.ready[0][2].transport == "tcp"


async def test_blocks_that_cannot_be_sealed_fail_their_request() -> None:
    async with device_pair() as (source, address, consumer):
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        await until(lambda: source.kv.stats.leases_active == 1)
        written = source.writer.write([0])
        source.pool.runtime.held.clear()
        source.kv.announce(KEY, 0, [0], LAYOUT.block_tokens, FINAL, written)
        source.pool.runtime.fail_next = "is_done"
        source.pool.runtime.held.set()
        await until(lambda: consumer.failed)
        assert "cannot be sealed" in consumer.failed[0][1].message


async def test_cancelling_drains_only_when_the_device_is_quiet() -> None:
    async with device_pair() as (source, address, consumer):
        source.announce_all()
        await until(lambda: source.kv.stats.blocks_announced == 8)
        device = consumer.pool.runtime
        launched = hold_next_pull(consumer.pool)
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        assert await asyncio.to_thread(launched.wait, 5)
        assert consumer.kv.stats.copies_outstanding == 8
        consumer.kv.cancel(KEY, "client left")
        await until(lambda: source.released == [(KEY, "client left")])
        await asyncio.sleep(0.05)
        assert not consumer.drained
        device.held.set()
        await until(lambda: consumer.drained == [KEY])
        assert not consumer.ready
        assert not consumer.failed


async def test_a_source_that_closes_waits_until_its_memory_is_unmapped() -> None:
    async with device_pair() as (source, address, consumer):
        source.announce_all()
        await until(lambda: source.kv.stats.blocks_announced == 8)
        device = consumer.pool.runtime
        under_way = hold_next_pull(consumer.pool)
        consumer.kv.fetch(KEY, address, list(range(8)), 0, 10.0)
        assert await asyncio.to_thread(under_way.wait, 5)
        transport = source.kv._serving.pop("cuda_ipc")
        closing = asyncio.create_task(asyncio.to_thread(transport.close))
        await asyncio.sleep(0.1)
        assert not closing.done()
        device.held.set()
        await asyncio.wait_for(closing, 10)
        assert device.num_mapped == 0


async def test_a_pool_in_host_memory_refuses_the_transports_of_devices() -> None:
    with pytest.raises(SpliceError, match="lies in host memory"):
        async with pair(("cuda_ipc",)):
            pass
    with pytest.raises(SpliceError, match="lies in host memory"):
        async with pair(("nccl",)):
            pass
