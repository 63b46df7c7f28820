"""What ucx promises for pools on GPUs. Here the memory of the device is the host's, to UCX too; processes are real."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from device_pair import NUM_BLOCKS, OTHER_GPU, SilentGate, content, quiet_pool, written_pool
from kv_pair import LAYOUT, SOURCE_INCARNATION, pattern
from peer_processes import freeze, process, until
from structlog.testing import capture_logs

from kvtransfer import registry, ucx_library
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.transport import BlockRead, PeerPool, TransportError
from wire.errors import SpliceError

if missing := ucx_library.why_missing():
    pytest.skip(missing, allow_module_level=True)

from kvtransfer import _ucx
from kvtransfer.transports.ucx import UcxDeviceLink, UcxLink, UcxSource

EXPECTED = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION, NUM_BLOCKS, LAYOUT.block_bytes)
READ = BlockRead((1, 1), 3, 1, 5)


@contextlib.contextmanager
def served() -> Iterator[tuple[DevicePoolMemory, UcxSource]]:
    """Blocks 0 to 7 written; at the end nothing is left and no order was wrong."""
    with written_pool(host_addresses=True) as pool:
        source = UcxSource(pool, SilentGate(), "127.0.0.1", memory="host")
        try:
            yield pool, source
        finally:
            source.close()


@contextlib.contextmanager
def local() -> Iterator[DevicePoolMemory]:
    with quiet_pool(7, uuid=OTHER_GPU, host_addresses=True) as pool:
        yield pool


def _serve(pipe: Any) -> None:
    with served() as (_, source):
        pipe.send(source.offer()[0])
        pipe.recv()


def test_blocks_come_with_the_generations_behind_them() -> None:
    with served() as (theirs, source), local() as pool:
        link = UcxDeviceLink(source.offer()[0], EXPECTED, pool, memory="host")
        theirs.bump(4)
        wanted = [BlockRead((1, 1), i, 1, NUM_BLOCKS - 1 - i) for i in range(8)]
        assert link.read_blocks(wanted) == [1, 1, 1, 1, 2, 1, 1, 1]
        for read in wanted:
            assert content(pool, read.dest_block) == pattern(read.block, LAYOUT.block_bytes)
        link.close()


def test_a_pool_in_host_memory_reads_one_on_a_device() -> None:
    with served() as (_, source):
        link = UcxLink(source.offer()[0], EXPECTED)
        dest = bytearray(LAYOUT.block_bytes)
        assert link.read((1, 1), 6, 1, memoryview(dest)) == 1
        assert dest == pattern(6, LAYOUT.block_bytes)
        link.close()


def test_a_block_outside_either_pool_and_another_pool_are_refused() -> None:
    with served() as (_, source), local() as pool:
        link = UcxDeviceLink(source.offer()[0], EXPECTED, pool, memory="host")
        with pytest.raises(TransportError, match="outside a pool of 16"):
            link.read_blocks([replace(READ, block=NUM_BLOCKS)])
        with pytest.raises(IndexError, match="outside a pool of 16"):
            link.read_blocks([replace(READ, dest_block=NUM_BLOCKS)])
        assert link.read_blocks([READ]) == [1]
        link.close()
        restarted = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION + 1, NUM_BLOCKS, LAYOUT.block_bytes)
        with pytest.raises(TransportError, match="expected"):
            UcxDeviceLink(source.offer()[0], restarted, pool, memory="host")


def test_killing_the_source_ends_a_get_in_flight_within_seconds() -> None:
    with process(_serve) as (source, pipe), local() as pool:
        link = UcxDeviceLink(pipe.recv(), EXPECTED, pool, memory="host")
        freeze(source.pid)
        failed: list[TransportError] = []

        def read() -> None:
            try:
                link.read_blocks([READ])
            except TransportError as error:
                failed.append(error)

        reading = threading.Thread(target=read)
        reading.start()
        source.kill()
        reading.join(5.0)
        assert len(failed) == 1
        link.close()


def test_every_thread_that_copies_has_entered_the_device() -> None:
    with served() as (theirs, source), local() as pool:
        link = UcxDeviceLink(source.offer()[0], EXPECTED, pool, memory="host")
        reading = threading.Thread(target=lambda: link.read_blocks([READ]))
        reading.start()
        reading.join()
        assert {threading.get_ident(), reading.ident} <= pool.runtime.entered
        assert threading.get_ident() in theirs.runtime.entered
        link.close()


def test_a_source_whose_thread_cannot_enter_the_device_says_so() -> None:
    with local() as pool:
        source = _ucx.Source("127.0.0.1", pool.table(), pool.address, pool.nbytes, "host", driver_context=1)
        until(lambda: "the CUDA context cannot be entered" in source.failure)
        source.close()
        with pytest.raises(_ucx.UcxError, match="no memory 'disk'; known: host, cuda"):
            _ucx.Source("127.0.0.1", pool.table(), pool.address, pool.nbytes, "disk", driver_context=0)


def test_without_cuda_in_ucx_pools_on_devices_go_another_way_and_the_reason_is_said() -> None:
    reason = ucx_library.why_no_cuda()
    if not reason:
        pytest.skip("this UCX moves memory of GPUs")
    with local() as pool:
        with pytest.raises(TransportError, match="knows no memory of GPUs"):
            UcxSource(pool, SilentGate(), "127.0.0.1")
        assert "ucx" not in registry.sources_of(pool)
        assert "ucx" not in registry.links_into(pool)
        known, missing = list(registry.sources_of(pool)), registry.missing_for(pool)
        with capture_logs() as logs:
            assert registry.checked(("cuda_ipc", "ucx", "tcp"), known, missing) == ("cuda_ipc", "tcp")
        assert [log["reason"] for log in logs] == [f"ucx: {reason}"]
        with pytest.raises(SpliceError, match="knows no memory of GPUs"):
            registry.checked(("ucx",), known, missing)
