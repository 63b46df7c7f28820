"""A hand-off between two processes on one GPU: driver, kernels, transport and generations, all of them real.

NCCL wants two GPUs: of it, one alone shows that it is there and refuses.
"""

# ruff: noqa: E402 (imports stand behind what may be missing)
from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import kernel_platform
import pytest

for part in ("msgspec", "structlog", "kvtransfer._native"):
    pytest.importorskip(part, reason=f"hand-offs need {part}: install the package, build the native modules")

from engine.ops.cuda.library import INSTALLED
from kvtransfer import nccl_library, ucx_library
from kvtransfer.cuda_runtime import CudaRuntime
from kvtransfer.device_kernels import CudaBlockKernels
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.kv_checksum import checksum
from kvtransfer.transport import BlockRead, PeerPool, TransportError
from kvtransfer.transports.cuda_ipc import CudaIpcLink, CudaIpcSource
from kvtransfer.transports.nccl import NcclLink, NcclSource
from kvtransfer.transports.staged import StagedLink, StagedSource
from wire.kv_layout import KVLayout

pytestmark = pytest.mark.gpu
LAYOUT = KVLayout(num_layers=4, num_kv_heads=8, head_dim=128, block_tokens=32, dtype="bfloat16")
NUM_BLOCKS, INCARNATION = 300, 0xF00D
"""More than one batch."""
EXPECTED = PeerPool(LAYOUT.layout_id, INCARNATION, NUM_BLOCKS, LAYOUT.block_bytes)


@pytest.fixture(autouse=True)
def _gpu() -> None:
    missing = kernel_platform.why_no_gpu()
    if missing:
        pytest.skip(missing)


def _content(block: int) -> bytes:
    return block.to_bytes(8, "little") * (LAYOUT.block_bytes // 8)


@contextlib.contextmanager
def _pool(incarnation: int) -> Iterator[DevicePoolMemory]:
    layers, planes, heads, _, _ = LAYOUT.block_shape
    kernels = CudaBlockKernels(INSTALLED, layers * planes * heads)
    pool = DevicePoolMemory(LAYOUT, NUM_BLOCKS, incarnation, CudaRuntime(), kernels)
    try:
        yield pool
    finally:
        pool.close()


def _ways(transport: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(its source, its link); skips where what it needs is not here."""
    if transport == "cuda_ipc":
        return CudaIpcSource, CudaIpcLink
    if transport == "shm":
        return StagedSource, StagedLink
    if transport == "nccl":
        if missing := nccl_library.why_missing():
            pytest.skip(missing)
        return NcclSource, NcclLink
    if missing := ucx_library.why_no_cuda():
        pytest.skip(missing)
    for part in ("psutil", "xxhash"):
        pytest.importorskip(part, reason=f"ucx needs {part}: install the package")
    from kvtransfer.transports.ucx import UcxDeviceLink, UcxSource

    return UcxSource, UcxDeviceLink


class Gate:
    """Grants everything."""

    def begin_read(self, key: tuple[int, int], block: int, generation: int) -> bool:
        return True

    def end_read(self, key: tuple[int, int]) -> None:
        pass


def _serve(pipe: Any, transport: str) -> None:
    with _pool(INCARNATION) as pool:
        for block in range(NUM_BLOCKS):
            pool.bump(block)
            with pool.filling(block) as dest:
                dest[:] = _content(block)
        stream, event = pool.runtime.new_stream(), pool.runtime.new_event()
        pool.runtime.record(event, stream)
        digests = pool.seal(range(NUM_BLOCKS), event).digests()
        source = _ways(transport)[0](pool, Gate(), "127.0.0.1")
        pipe.send((source.offer()[0], digests))
        while pipe.recv() == "bump":
            pipe.send(pool.bump(7))
        source.close()


@contextlib.contextmanager
def _source(transport: str) -> Iterator[tuple[Any, Any]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, transport))
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), "the source process did not start"
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


@pytest.mark.parametrize("transport", ["cuda_ipc", "ucx", "shm"])
def test_blocks_arrive_whole_stale_ones_are_seen_and_a_dead_sources_memory_is_unmapped(transport: str) -> None:
    _, link_of = _ways(transport)
    with _source(transport) as (process, pipe), _pool(7) as pool:
        address, digests = pipe.recv()
        assert digests[5] == checksum(_content(5))
        link = link_of(address, EXPECTED, pool)
        blocks = list(range(NUM_BLOCKS))
        for begin in range(0, NUM_BLOCKS, pool.batch_blocks):
            part = blocks[begin : begin + pool.batch_blocks]
            reads = [BlockRead((1, 1), block, 1, NUM_BLOCKS - 1 - block) for block in part]
            assert link.read_blocks(reads) == [1] * len(part)
        assert pool.digests(blocks[::-1]) == digests
        with pool.lent(NUM_BLOCKS - 1 - 123) as held:
            assert bytes(held) == _content(123)
        pipe.send("bump")
        assert pipe.recv() == 2
        assert link.read_blocks([BlockRead((1, 1), 7, 1, 0)]) == [2]
        os.kill(process.pid, 9)
        end_s = time.monotonic() + 5
        while len(pool.mappings):
            assert time.monotonic() < end_s, "the dead source's memory is still mapped"
            time.sleep(0.01)
        with pytest.raises(TransportError):
            link.read_blocks([BlockRead((1, 1), 7, 1, 0)])
        link.close()


def test_nccl_makes_no_pair_of_two_ranks_on_one_gpu() -> None:
    _, link_of = _ways("nccl")
    with _source("nccl") as (_, pipe), _pool(7) as pool:
        address, _ = pipe.recv()
        with pytest.raises(TransportError, match="no two ranks on one"):
            link_of(address, EXPECTED, pool)
