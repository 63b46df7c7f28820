"""Sources and consumers whose pools lie on fake devices, for the same real channel as pools in host memory."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from fake_device import FakeDevice, FakeKernels
from fake_nccl import FakeNccl
from kv_pair import FINAL, KEY, LAYOUT, SOURCE_INCARNATION, Consumer, Source, pattern, until

from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.handoff import SourceAddress
from kvtransfer.registry import DEVICE_LINKS, DEVICE_SOURCES, links_into
from kvtransfer.transports.nccl import NcclLink, NcclSource

NUM_BLOCKS = 16
OTHER_GPU = "1" * 32


def device_pool(incarnation: int, **options: Any) -> DevicePoolMemory:
    device = FakeDevice(**options)
    return DevicePoolMemory(LAYOUT, NUM_BLOCKS, incarnation, device, FakeKernels(device))


class SilentGate:
    """Of transports whose reads ask nobody."""

    def begin_read(self, key: tuple[int, int], block: int, generation: int) -> bool:
        raise AssertionError

    def end_read(self, key: tuple[int, int]) -> None:
        raise AssertionError


@contextlib.contextmanager
def quiet_pool(incarnation: int, **options: Any) -> Iterator[DevicePoolMemory]:
    """At its end nothing is left of it on the device and no order was wrong."""
    pool = device_pool(incarnation, **options)
    try:
        yield pool
    finally:
        pool.close()
    pool.runtime.check()
    assert not pool.runtime.left


@contextlib.contextmanager
def written_pool(**options: Any) -> Iterator[DevicePoolMemory]:
    """A source's `quiet_pool`, blocks 0 to 7 written."""
    with quiet_pool(SOURCE_INCARNATION, **options) as pool:
        writer = Writer(pool)
        pool.seal(list(range(8)), writer.write(list(range(8)))).digests()
        try:
            yield pool
        finally:
            writer.close()


class Writer:
    """Writes blocks as an engine's kernels do: bumped first, launched on a stream, an event behind."""

    def __init__(self, pool: DevicePoolMemory) -> None:
        self.pool = pool
        self.device: FakeDevice = pool.runtime  # type: ignore[assignment]
        self.stream = self.device.new_stream()
        self.event = self.device.new_event()
        self.device.record(self.event, self.stream)

    def write(self, blocks: list[int], seeds: list[int] | None = None) -> int:
        """The event behind the write."""
        size = self.pool.layout.block_bytes
        for block, seed in zip(blocks, seeds or blocks, strict=True):
            self.pool.bump(block)
            place = self.pool.address + block * size
            content = pattern(seed, size)
            self.device.launch(
                lambda at=place, new=content: self.device.write(at, new), [], [(place, size)], self.stream
            )
        self.device.record(self.event, self.stream)
        return self.event

    def close(self) -> None:
        while not self.device.is_done(self.event):
            pass
        self.device.end_event(self.event)
        self.device.end_stream(self.stream)


def content(pool: DevicePoolMemory, block: int) -> bytes:
    with pool.lent(block) as held:
        return bytes(held)


class DeviceSource(Source):
    def __init__(self, transports: tuple[str, ...], *, device: dict[str, Any] | None = None, **options: Any) -> None:
        pool = device_pool(SOURCE_INCARNATION, **{"host_addresses": "ucx" in transports, **(device or {})})
        self.nccl = FakeNccl(pool.runtime)
        sources = {**DEVICE_SOURCES, "nccl": partial(NcclSource, nccl=self.nccl)}
        if "ucx" in sources:
            sources["ucx"] = partial(DEVICE_SOURCES["ucx"], memory="host")  # what a fake device's is to UCX
        super().__init__(transports, pool=pool, **{"factories": sources, **options})
        self.writer = Writer(self.pool)

    def announce_all(self, count: int = 8) -> None:
        blocks = list(range(count))
        self.kv.announce(KEY, 0, blocks, count * LAYOUT.block_tokens, FINAL, self.writer.write(blocks))

    async def close(self) -> None:
        await self.server.stop(0)
        await self.kv.close()
        self.writer.close()
        await asyncio.to_thread(self.pool.close)


class DeviceConsumer(Consumer):
    def __init__(self, transports: tuple[str, ...], *, device: dict[str, Any] | None = None, **options: Any) -> None:
        of_ours = {"seed": 2, "uuid": OTHER_GPU, "host_addresses": "ucx" in transports}
        pool = device_pool(7, **{**of_ours, **(device or {})})
        self.nccl = FakeNccl(pool.runtime)
        links = {**links_into(pool), "nccl": partial(NcclLink, pool=pool, nccl=self.nccl)}
        if "ucx" in DEVICE_LINKS:
            links["ucx"] = partial(DEVICE_LINKS["ucx"], pool=pool, memory="host")
        super().__init__(transports, pool=pool, **{"factories": links, **options})

    async def close(self) -> None:
        await self.kv.close()
        await until(lambda: not self.nccl.communicators)
        await asyncio.to_thread(self.pool.close)
        await until(lambda: not self.pool.runtime.left)


@contextlib.asynccontextmanager
async def device_pair(
    transports: tuple[str, ...] = ("cuda_ipc",),
    *,
    source: dict[str, Any] | None = None,
    consumer: dict[str, Any] | None = None,
) -> AsyncIterator[tuple[DeviceSource, SourceAddress, DeviceConsumer]]:
    """Both in this process, as two instances of the device; no order was wrong and nothing is left at the end."""
    served = DeviceSource(transports, **(source or {}))
    address = await served.start()
    pulling = DeviceConsumer(**({"transports": transports} | (consumer or {})))
    await pulling.kv.start()
    try:
        yield served, address, pulling
    finally:
        await pulling.close()
        await served.close()
    for pool in (served.pool, pulling.pool):
        pool.runtime.check()
        assert not pool.runtime.left


def _serve(pipe: Any, transports: tuple[str, ...], final: bool) -> None:
    async def run() -> None:
        source = DeviceSource(transports, ttl_s=30.0)
        address = await source.start()
        blocks = list(range(NUM_BLOCKS))
        written = source.writer.write(blocks)
        last = FINAL if final else None
        source.kv.announce(KEY, 0, blocks, NUM_BLOCKS * LAYOUT.block_tokens, last, written)
        pipe.send((address.worker_id, address.incarnation, address.endpoint))
        await asyncio.to_thread(pipe.recv)
        await source.close()
        pipe.send((source.released, source.pool.runtime.breaches, source.pool.runtime.left))

    asyncio.run(run())


@contextlib.contextmanager
def device_source_process(transports: tuple[str, ...] = ("cuda_ipc",), *, final: bool = True) -> Iterator[Any]:
    """(process, its address, a pipe: anything sent stops it, and it answers (released, breaches, what is left))"""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, transports, final))
    process.start()
    theirs.close()
    try:
        assert ours.poll(30), "the source process did not start"
        yield process, SourceAddress(*ours.recv()), ours
    finally:
        process.kill()
        process.join()
        ours.close()
