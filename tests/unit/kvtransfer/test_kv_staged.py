"""What staging through shared memory promises beyond the contract. Processes are real, devices are not."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from counting_gate import Gate
from device_pair import NUM_BLOCKS, content, device_pool, written_pool
from kv_pair import LAYOUT, SOURCE_INCARNATION, pattern
from peer_processes import process, until

from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.staging_ring import StagingRing, new_ring
from kvtransfer.transport import BlockRead, PeerPool, TransportError
from kvtransfer.transports import staged
from kvtransfer.transports.staged import StagedLink, StagedSource

EXPECTED = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION, NUM_BLOCKS, LAYOUT.block_bytes)
READ = BlockRead((1, 1), 3, 1, 5)
HALF = 2
"""Blocks of a half of the ring in these tests: batches take several."""


@pytest.fixture(autouse=True)
def _small_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "HALF_BYTES", HALF * LAYOUT.block_bytes)


@contextlib.contextmanager
def served() -> Iterator[tuple[DevicePoolMemory, StagedSource, Gate]]:
    """Blocks 0 to 7 written; at the end nothing is left and no order was wrong."""
    with written_pool() as pool:
        gate = Gate()
        source = StagedSource(pool, gate, "127.0.0.1")
        try:
            yield pool, source, gate
        finally:
            source.close()
        assert gate.reading == 0


@contextlib.contextmanager
def local() -> Iterator[DevicePoolMemory]:
    pool = device_pool(7, seed=3)
    try:
        yield pool
    finally:
        pool.close()
    pool.runtime.check()
    until(lambda: not pool.runtime.left)


def reads(count: int) -> list[BlockRead]:
    return [BlockRead((1, 1), i % 8, 1, (5 * i + 3) % NUM_BLOCKS) for i in range(count)]


def pinned(pool: DevicePoolMemory) -> int:
    return pool.runtime.left.get("pinned", 0)


def read_in_vain(link: StagedLink, failed: list[str]) -> None:
    try:
        link.read_blocks([READ])
    except TransportError as error:
        failed.append(str(error))


def _serve(pipe: Any) -> None:
    with served() as (_, source, _gate):
        pipe.send(source.offer()[0])
        pipe.recv()


def _read_and_wait(pipe: Any) -> None:
    link = StagedLink(pipe.recv(), EXPECTED, device_pool(9))
    pipe.send(link.read_blocks([READ]))
    pipe.recv()


def test_batches_of_every_size_pass_a_ring_smaller_than_they_are() -> None:
    with served() as (_, source, gate), local() as pool:
        link = StagedLink(source.offer()[0], EXPECTED, pool)
        for count in range(4 * HALF + 2):
            assert link.read_blocks(reads(count)) == [1] * count
            for read in reads(count):
                assert content(pool, read.dest_block) == pattern(read.block, LAYOUT.block_bytes)
        assert gate.most <= 2 * HALF, "more blocks were pinned under their lease than the ring holds"
        link.close()


def test_a_block_that_is_not_granted_does_not_arrive_and_does_not_hold_up_the_others() -> None:
    with served() as (theirs, source, _), local() as pool:
        link = StagedLink(source.offer()[0], EXPECTED, pool)
        theirs.bump(4)
        wanted = [READ, replace(READ, block=4, dest_block=6), replace(READ, generation=9, dest_block=7)]
        assert link.read_blocks(wanted) == [1, 2, 0]
        assert content(pool, 5) == pattern(3, LAYOUT.block_bytes)
        assert not any(content(pool, 6) + content(pool, 7))
        assert link.read_blocks([READ]) == [1]
        link.close()


def test_a_killed_consumers_ring_is_unpinned_within_seconds() -> None:
    with served() as (pool, source, _), process(_read_and_wait) as (consumer, pipe):
        before = pinned(pool)
        pipe.send(source.offer()[0])
        assert pipe.poll(30)
        assert (source.num_rings, pinned(pool)) == (1, before + 1)
        consumer.kill()
        until(lambda: source.num_rings == 0 and pinned(pool) == before, 5.0)


def test_a_read_from_a_killed_source_ends_and_its_ring_is_unpinned() -> None:
    with local() as pool, process(_serve) as (source, pipe):
        link = StagedLink(pipe.recv(), EXPECTED, pool)
        assert link.read_blocks(reads(5)) == [1] * 5
        before = pinned(pool)
        source.kill()
        with pytest.raises(TransportError):
            link.read_blocks(reads(5))
        assert pinned(pool) == before - 1
        link.close()


def test_closing_the_link_ends_a_read_that_waits_for_the_source() -> None:
    with served() as (theirs, source, _), local() as pool:
        link = StagedLink(source.offer()[0], EXPECTED, pool)
        theirs.runtime.held.clear()
        failed: list[str] = []
        reading = threading.Thread(target=read_in_vain, args=(link, failed))
        reading.start()
        until(lambda: theirs.runtime.is_asked)
        link.close()
        reading.join(10)
        assert len(failed) == 1
        with pytest.raises(TransportError, match="closed"):
            link.read_blocks([READ])
        theirs.runtime.held.set()


def test_a_source_closes_only_when_its_device_no_longer_writes_to_a_ring() -> None:
    with served() as (theirs, source, _), local() as pool:
        link = StagedLink(source.offer()[0], EXPECTED, pool)
        theirs.runtime.held.clear()
        reading = threading.Thread(target=read_in_vain, args=(link, []))
        reading.start()
        until(lambda: theirs.runtime.is_asked)
        closing = threading.Thread(target=source.close)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        theirs.runtime.held.set()
        closing.join(10)
        reading.join(10)
        assert not closing.is_alive()
        link.close()


def test_only_an_offered_capability_opens_and_a_revoked_one_is_cut_off() -> None:
    with served() as (_, source, _gate), local() as pool:
        address, capability = source.offer()
        with pytest.raises(TransportError, match="refused the capability"):
            StagedLink(address.replace(capability, bytes(16)), EXPECTED, pool)
        link = StagedLink(address, EXPECTED, pool)
        kept = StagedLink(source.offer()[0], EXPECTED, pool)
        source.revoke(capability)
        with pytest.raises(TransportError):
            link.read_blocks([READ])
        with pytest.raises(TransportError, match="refused the capability"):
            StagedLink(address, EXPECTED, pool)
        assert kept.read_blocks([READ]) == [1]
        link.close()
        kept.close()


def test_rings_are_bounded_and_the_next_consumer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "MAX_RINGS", 1)
    with served() as (_, source, _gate), local() as pool:
        link = StagedLink(source.offer()[0], EXPECTED, pool)
        with pytest.raises(TransportError, match=r"no ring left|cannot share"):
            StagedLink(source.offer()[0], EXPECTED, pool)
        link.close()
        until(lambda: source.num_rings == 0)


def test_another_pool_and_memory_that_cannot_be_pinned_are_refused() -> None:
    with served() as (theirs, source, _), local() as pool:
        other = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION + 1, NUM_BLOCKS, LAYOUT.block_bytes)
        with pytest.raises(TransportError, match="expected"):
            StagedLink(source.offer()[0], other, pool)
        pool.runtime.fail_next = "pin"
        with pytest.raises(TransportError, match="cannot be pinned"):
            StagedLink(source.offer()[0], EXPECTED, pool)
        theirs.runtime.fail_next = "pin"
        with pytest.raises(TransportError, match="refused"):
            StagedLink(source.offer()[0], EXPECTED, pool)
        with pytest.raises(TransportError, match="unreadable"):
            StagedLink(b"\xff", EXPECTED, pool)
        until(lambda: source.num_rings == 0)


def test_a_ring_of_another_size_is_not_believed() -> None:
    with local() as pool:
        for wrong in (new_ring(4, 4096), os.memfd_create("not a ring")):
            with pytest.raises(TransportError, match="not a ring of 4096 bytes"):
                StagingRing(pool.runtime, wrong, 1, 2048)
            os.close(wrong)
        fd = new_ring(1, 2048)
        ring = StagingRing(pool.runtime, fd, 1, 2048)
        assert ring.places(1, 1)[0] - ring.places(0, 1)[0] == 2048
        for half, count in ((2, 1), (0, 2)):
            with pytest.raises(TransportError, match="of a ring"):
                ring.places(half, count)
        ring.close()
        os.close(fd)


def test_no_descriptor_and_no_mapping_is_left() -> None:
    def once() -> None:
        with served() as (_, source, _gate), local() as pool:
            link = StagedLink(source.offer()[0], EXPECTED, pool)
            link.read_blocks(reads(5))
            link.close()

    def staging_maps() -> int:
        with open("/proc/self/maps", encoding="ascii") as maps:
            return sum("splice-kv-staging" in line for line in maps)

    once()
    before = len(os.listdir("/proc/self/fd"))
    once()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert staging_maps() == 0
