"""NCCL, driver, pair, protocol and processes together: libraries of host memory are all that is made up.

Bytes pass between two processes, each with its own driver and its own NCCL, which like the real ones know nothing of
each other's death.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from compiled_fakes import compiled
from counting_gate import Gate
from fake_device import FakeKernels
from kv_pair import LAYOUT, SOURCE_INCARNATION, pattern
from peer_processes import freeze, process, until

from kvtransfer.cuda_runtime import CudaRuntime
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.nccl_library import NcclLibrary
from kvtransfer.transport import BlockRead, PeerPool, TransportError
from kvtransfer.transports.nccl import NcclLink, NcclSource

NUM_BLOCKS = 12
EXPECTED = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION, NUM_BLOCKS, LAYOUT.block_bytes)
READS = [BlockRead((1, 1), block, 1, NUM_BLOCKS - 1 - block) for block in range(10)]


@pytest.fixture(scope="module")
def nccl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compiled("nccl_moving.cpp", tmp_path_factory.mktemp("nccl") / "libnccl.so.2", "-pthread")


@contextlib.contextmanager
def _pool(driver: str, device: int, incarnation: int) -> Iterator[DevicePoolMemory]:
    runtime = CudaRuntime(device, driver)
    pool = DevicePoolMemory(LAYOUT, NUM_BLOCKS, incarnation, runtime, FakeKernels(runtime))  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        pool.close()


def _serve(pipe: Any) -> None:
    driver, library = pipe.recv()
    with _pool(driver, 0, SOURCE_INCARNATION) as pool:
        for block in range(NUM_BLOCKS):
            pool.bump(block)
            with pool.filling(block) as dest:
                dest[:] = pattern(block, LAYOUT.block_bytes)
        gate = Gate()
        source = NcclSource(pool, gate, "127.0.0.1", NcclLibrary(library))
        pipe.send(source.offer()[0])
        while pipe.recv() == "how":
            pipe.send((gate.reading, source.num_pairs))
        source.close()
        pipe.send("closed")


@pytest.fixture
def parts(driver: str, nccl: str) -> Iterator[tuple[Any, Any, DevicePoolMemory, NcclLink]]:
    with process(_serve) as (source, pipe), _pool(driver, 1, 7) as pool:
        pipe.send((driver, nccl))
        link = NcclLink(pipe.recv(), EXPECTED, pool, NcclLibrary(nccl))
        yield source, pipe, pool, link
        link.close()


def test_granted_blocks_arrive_and_either_side_closes(parts: tuple[Any, Any, DevicePoolMemory, NcclLink]) -> None:
    _, pipe, pool, link = parts
    for _ in range(3):
        assert link.read_blocks(READS) == [1] * 8 + [0, 0]
    for read in READS[:8]:
        with pool.lent(read.dest_block) as held:
            assert bytes(held) == pattern(read.block, LAYOUT.block_bytes)
    for read in READS[8:]:
        with pool.lent(read.dest_block) as held:
            assert not any(held)
    link.close()

    def left() -> tuple[int, int]:
        pipe.send("how")
        return pipe.recv()

    until(lambda: left() == (0, 0))
    pipe.send("close")
    assert pipe.recv() == "closed"


def test_a_receive_from_a_killed_source_ends_within_seconds(parts: tuple[Any, Any, DevicePoolMemory, NcclLink]) -> None:
    source, _, _, link = parts
    freeze(source.pid)
    failed: list[TransportError] = []

    def read() -> None:
        try:
            link.read_blocks(READS)
        except TransportError as error:
            failed.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    source.kill()
    reading.join(5)
    assert len(failed) == 1
