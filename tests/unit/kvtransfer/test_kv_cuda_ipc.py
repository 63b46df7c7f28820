"""What cuda_ipc promises beyond the contract: who may map what, and until when. Processes are real, devices are not."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from device_pair import NUM_BLOCKS, SilentGate, Writer, content, device_pool, quiet_pool, written_pool
from fake_device import Breach, FakeDevice, FakeKernels
from kv_pair import LAYOUT, SOURCE_INCARNATION, pattern
from peer_processes import process, until

from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.device_runtime import DeviceError
from kvtransfer.kv_checksum import checksum
from kvtransfer.transport import BlockRead, PeerPool, TransportError
from kvtransfer.transports import cuda_ipc
from kvtransfer.transports.cuda_ipc import CudaIpcLink, CudaIpcSource
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVLayout

EXPECTED = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION, NUM_BLOCKS, LAYOUT.block_bytes)
READ = BlockRead((1, 1), 3, 1, 5)


@contextlib.contextmanager
def served() -> Iterator[tuple[DevicePoolMemory, CudaIpcSource]]:
    """A source with blocks 0 to 7 written; at its end nothing is mapped and no order was wrong."""
    with written_pool() as pool:
        source = CudaIpcSource(pool, SilentGate(), "127.0.0.1")
        try:
            yield pool, source
        finally:
            source.close()


@contextlib.contextmanager
def local() -> Iterator[DevicePoolMemory]:
    with quiet_pool(7, seed=3) as pool:
        yield pool


def _map_and_wait(pipe: Any) -> None:
    pool = device_pool(9)
    link = CudaIpcLink(pipe.recv(), EXPECTED, pool)
    pipe.send(link.read_blocks([READ]))
    pipe.recv()


def _map_and_hang_up(pipe: Any) -> None:
    """Its connection ends without a word, and the process lives on, with the memory mapped."""
    pool = device_pool(9)
    link = CudaIpcLink(pipe.recv(), EXPECTED, pool)
    link._mapping.connection.shutdown(socket.SHUT_RDWR)
    pipe.send("hung up")
    pipe.recv()


def _serve_and_wait(pipe: Any) -> None:
    with served() as (_, source):
        pipe.send(source.offer()[0])
        pipe.recv()


def test_a_killed_consumers_mapping_is_gone_within_seconds_and_the_pool_can_be_freed() -> None:
    with served() as (_, source), process(_map_and_wait) as (consumer, pipe):
        pipe.send(source.offer()[0])
        assert pipe.poll(30)
        assert pipe.recv() == [1]
        assert source.num_mapped == 1
        consumer.kill()
        until(lambda: source.num_mapped == 0, 5.0)


def test_a_lost_connection_proves_nothing_and_the_end_of_the_process_does() -> None:
    with served() as (_, source), process(_map_and_hang_up) as (consumer, pipe):
        pipe.send(source.offer()[0])
        assert pipe.poll(30)
        time.sleep(0.2)
        assert source.num_mapped == 1
        consumer.kill()
        until(lambda: source.num_mapped == 0, 5.0)


def test_a_killed_sources_memory_is_unmapped_within_seconds_and_without_a_read() -> None:
    with local() as pool, process(_serve_and_wait) as (source, pipe):
        link = CudaIpcLink(pipe.recv(), EXPECTED, pool)
        assert link.read_blocks([READ]) == [1]
        assert content(pool, 5) == pattern(3, LAYOUT.block_bytes)
        source.kill()
        until(lambda: len(pool.mappings) == 0 and pool.runtime.num_mapped == 0, 5.0)
        with pytest.raises(TransportError, match="the source is gone"):
            link.read_blocks([READ])


def test_only_an_offered_capability_opens_and_a_revoked_one_is_cut_off() -> None:
    with served() as (_, source), local() as pool, local() as other:
        address, capability = source.offer()
        with pytest.raises(TransportError, match="refused the capability"):
            CudaIpcLink(address.replace(capability, bytes(16)), EXPECTED, pool)
        link = CudaIpcLink(address, EXPECTED, pool)
        kept = CudaIpcLink(source.offer()[0], EXPECTED, other)
        source.revoke(capability)
        until(lambda: pool.runtime.num_mapped == 0)
        with pytest.raises(TransportError):
            link.read_blocks([READ])
        with pytest.raises(TransportError, match="refused the capability"):
            CudaIpcLink(address, EXPECTED, pool)
        assert kept.read_blocks([READ]) == [1]
        link.close()
        kept.close()


def test_another_pool_than_expected_is_refused_and_nothing_stays_open() -> None:
    with served() as (_, source), local() as pool:
        for wrong in (
            PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION + 1, NUM_BLOCKS, LAYOUT.block_bytes),
            PeerPool("ab" * 16, SOURCE_INCARNATION, NUM_BLOCKS, LAYOUT.block_bytes),
            PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION, 10_000, LAYOUT.block_bytes),
        ):
            with pytest.raises(TransportError, match="expected"):
                CudaIpcLink(source.offer()[0], wrong, pool)
        assert pool.runtime.opened == 0
        until(lambda: source.num_mapped == 0)


def test_a_source_in_another_ipc_namespace_is_refused_before_its_handle_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served() as (_, source), local() as pool:
        monkeypatch.setattr(cuda_ipc, "ipc_namespace", lambda: "ipc:[1]")
        with pytest.raises(TransportError, match="another IPC namespace"):
            CudaIpcLink(source.offer()[0], EXPECTED, pool)
        assert pool.runtime.opened == 0
        until(lambda: source.num_mapped == 0)


def test_an_unreadable_address_is_an_error_of_the_transport() -> None:
    with local() as pool, pytest.raises(TransportError, match="cannot get the source's pool"):
        CudaIpcLink(b"\xff", EXPECTED, pool)


def test_an_allocation_is_opened_once_and_again_only_when_it_was_closed() -> None:
    with served() as (_, source), local() as pool:
        first = CudaIpcLink(source.offer()[0], EXPECTED, pool)
        second: list[CudaIpcLink] = []
        with first._mapping.used():
            opening = threading.Thread(target=lambda: second.append(CudaIpcLink(source.offer()[0], EXPECTED, pool)))
            opening.start()
            first.close()
            opening.join(0.2)
            assert opening.is_alive(), "opened while a copy may still be under way"
        opening.join(10)
        assert second[0].read_blocks([READ]) == [1]
        assert pool.runtime.opened == 2
        second[0].close()


def test_a_stale_block_is_not_copied_and_does_not_hold_up_the_others() -> None:
    with served() as (theirs, source), local() as pool:
        link = CudaIpcLink(source.offer()[0], EXPECTED, pool)
        theirs.bump(3)
        fine = replace(READ, block=4, dest_block=6)
        assert link.read_blocks([READ, fine]) == [2, 1]
        assert not any(content(pool, 5))
        assert content(pool, 6) == pattern(4, LAYOUT.block_bytes)
        link.close()


def test_a_block_outside_either_pool_is_refused_before_a_launch() -> None:
    with served() as (_, source), local() as pool:
        link = CudaIpcLink(source.offer()[0], EXPECTED, pool)
        with pytest.raises(TransportError, match="outside the source's pool of 16"):
            link.read_blocks([replace(READ, block=NUM_BLOCKS)])
        with pytest.raises(IndexError, match="outside a pool of 16"):
            link.read_blocks([replace(READ, dest_block=NUM_BLOCKS)])
        link.close()


def test_closing_the_local_pool_waits_for_the_copy_under_way() -> None:
    with served() as (_, source), local() as pool:
        link = CudaIpcLink(source.offer()[0], EXPECTED, pool)
        pool.runtime.held.clear()
        seen: list[list[int]] = []
        reading = threading.Thread(target=lambda: seen.append(link.read_blocks([READ])))
        reading.start()
        until(lambda: link._mapping.users == 1)
        closing = threading.Thread(target=pool.close)
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        assert source.num_mapped == 1
        pool.runtime.held.set()
        closing.join(10)
        reading.join(10)
        assert seen == [[1]]
        assert source.num_mapped == 0 or until(lambda: source.num_mapped == 0) is None


def test_closing_a_pool_waits_for_whoever_reads_or_seals_a_block() -> None:
    pool = device_pool(1)
    with pool.lent(1) as held:
        closing = threading.Thread(target=pool.close)
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        assert not any(held)
        with pytest.raises(DeviceError, match="closed"):
            pool.digests([0])
    closing.join(10)
    assert not closing.is_alive()
    pool.runtime.check()
    assert not pool.runtime.left


def test_memory_that_a_consumer_does_not_give_back_is_kept_until_the_process_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_ipc, "CLOSE_TIMEOUT_S", 0.2)
    theirs = device_pool(SOURCE_INCARNATION)
    source = CudaIpcSource(theirs, SilentGate(), "127.0.0.1")
    with local() as pool:
        link = CudaIpcLink(source.offer()[0], EXPECTED, pool)
        with link._mapping.used():
            source.close()
            theirs.close()
            theirs.runtime.check()
            assert theirs.runtime.left == {"own": 1}


def test_a_batch_of_every_size_arrives_in_the_blocks_it_was_meant_for() -> None:
    with served() as (_, source), local() as pool:
        link = CudaIpcLink(source.offer()[0], EXPECTED, pool)
        for count in range(9):
            reads = [BlockRead((1, 1), i, 1, (7 * i + count) % NUM_BLOCKS) for i in range(count)]
            assert link.read_blocks(reads) == [1] * count
            for read in reads:
                assert content(pool, read.dest_block) == pattern(read.block, LAYOUT.block_bytes)
        link.close()


def test_digests_are_of_the_bytes_on_the_device_in_any_number() -> None:
    with local() as pool:
        blocks = [1, 2] * 200
        with pool.filling(2) as dest:
            dest[:] = pattern(4, LAYOUT.block_bytes)
        zeros, filled = checksum(bytes(LAYOUT.block_bytes)), checksum(pattern(4, LAYOUT.block_bytes))
        assert pool.digests(blocks) == (zeros, filled) * 200
        assert pool.digests([]) == ()


def test_a_pool_larger_than_the_device_is_refused() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SpliceError, match="lower --gpu-memory-utilization") as refused:
        device_pool(1, nbytes=1 << 14)
    assert (refused.value.code, refused.value.param) == (ErrorCode.BAD_SETTING, "num_blocks")
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_blocks_that_the_kernels_cannot_take_are_refused_when_the_pool_is_made() -> None:
    device = FakeDevice()
    ragged = KVLayout(num_layers=1, num_kv_heads=1, head_dim=3, block_tokens=1, dtype="int8", planes=1)
    assert ragged.block_bytes == 7
    with pytest.raises(SpliceError, match="of 7 bytes on a device, expected a multiple of 16"):
        DevicePoolMemory(ragged, 4, 1, device, FakeKernels(device))
    assert not device.left


def test_a_device_that_refuses_to_seal_is_told_to_the_request() -> None:
    pool = device_pool(1)
    writer = Writer(pool)
    event = writer.write([0])
    pool.runtime.fail_next = "launch"
    with pytest.raises(SpliceError, match="cannot be sealed: launch") as refused:
        pool.seal([0], event)
    assert refused.value.code is ErrorCode.KV_TRANSFER_FAILED
    with pytest.raises(SpliceError, match="behind the event of their write"):
        pool.seal([0])
    writer.close()
    pool.close()
    pool.runtime.check()
    assert not pool.runtime.left


# --- the judge itself: what it is there to catch, it catches ---


def test_the_judge_sees_a_seal_that_does_not_wait_for_the_write() -> None:
    pool = device_pool(1)
    writer = Writer(pool)
    writer.write([0])
    never = pool.runtime.new_event()
    pool.runtime.record(never, pool.runtime.new_stream())
    with pytest.raises(Breach, match="does not wait for the event"):
        pool.seal([0], never)


def test_the_judge_sees_memory_given_back_under_work_and_used_after() -> None:
    device = FakeDevice(lazy=1.0)
    address, stream = device.allocate(4096), device.new_stream()
    device.clear(address, 4096, stream)
    with pytest.raises(Breach, match="given back while work"):
        device.free(address)
    other = device.allocate(4096)
    device.free(other)
    with pytest.raises(Breach, match="not any more"):
        device.clear(other, 4096, stream)
    with pytest.raises(Breach, match="ended with work in it"):
        device.end_stream(stream)


def test_the_judge_sees_a_second_open_an_own_open_and_a_free_under_a_mapping() -> None:
    owner, peer = FakeDevice(), FakeDevice()
    address = owner.allocate(4096)
    handle, _ = owner.export(address)
    peer.open_export(handle)
    with pytest.raises(Breach, match="opened twice"):
        peer.open_export(handle)
    with pytest.raises(Breach, match="its own export"):
        owner.open_export(handle)
    with pytest.raises(Breach, match="freed while a peer maps it"):
        owner.free(address)


def test_the_judge_shows_nothing_of_a_copy_before_its_event() -> None:
    device = FakeDevice(lazy=0.0)
    address, pinned, stream, event = (
        device.allocate(64),
        device.allocate_pinned(64),
        device.new_stream(),
        device.new_event(),
    )
    with pytest.raises(Breach, match="never recorded"):
        device.is_done(event)
    device.clear(address, 64, stream)
    device.copy(pinned.address, address, 64, stream)
    assert 0 not in bytes(pinned.view)
    device.record(event, stream)
    assert device.is_done(event)
    assert not any(pinned.view)


def test_the_judge_refuses_a_handle_whose_owner_is_gone() -> None:
    owner = FakeDevice()
    handle, _ = owner.export(owner.allocate(64))
    gone = (2**22 + 1).to_bytes(8, "little") + handle[8:]
    with pytest.raises(DeviceError, match="invalid handle"):
        FakeDevice().open_export(gone)
