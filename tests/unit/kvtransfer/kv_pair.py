"""A source and a consumer for the contract tests, in one process or in two."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from kvtransfer.consumer import KvConsumer
from kvtransfer.faults import FaultPlan
from kvtransfer.handoff import KvFinalData, SourceAddress, WorkerIdentity
from kvtransfer.host import host_id
from kvtransfer.pool_memory import KVPoolMemory
from kvtransfer.source import KvSource
from wire.errors import SpliceError
from wire.kv_layout import KVLayout

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=32, block_tokens=32, dtype="bfloat16")
FINAL = KvFinalData(first_tokens=(42,), first_seq=0)
KEY = (0xDEADBEEFCAFE, 1)
SOURCE_INCARNATION = 0xF00D_0000_0000_0001


def identity(name: str, incarnation: int = 7, compat: str = "compat") -> WorkerIdentity:
    return WorkerIdentity(name, incarnation, compat, host_id())


def pattern(seed: int, size: int) -> bytes:
    return bytes((seed * 31 + i * 7) & 0xFF for i in range(256)) * (size // 256)


def fill(pool: KVPoolMemory, blocks: list[int]) -> None:
    for block in blocks:
        pool.bump(block)
        pool.block(block)[:] = pattern(block, pool.layout.block_bytes)


class Source:
    """KvSource on a real server, in this process's loop."""

    def __init__(
        self,
        transports: tuple[str, ...],
        *,
        ttl_s: float = 5.0,
        layout: KVLayout = LAYOUT,
        num_blocks: int = 16,
        faults: FaultPlan | None = None,
        pool: Any = None,
        **options: Any,
    ) -> None:
        self.pool = pool or KVPoolMemory.create(layout, num_blocks, SOURCE_INCARNATION)
        self.released: list[tuple[tuple[int, int], str]] = []
        self.kv = KvSource(
            self.pool,
            identity("prefill-0", SOURCE_INCARNATION),
            lease_ttl_s=ttl_s,
            transports=transports,
            on_release=lambda key, reason: self.released.append((key, reason)),
            host="127.0.0.1",
            faults=faults,
            **options,
        )
        self.server = grpc.aio.server()
        self.kv.add_to_server(self.server)

    async def start(self) -> SourceAddress:
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.kv.start()
        await self.server.start()
        return SourceAddress("prefill-0", SOURCE_INCARNATION, f"127.0.0.1:{port}")

    async def close(self) -> None:
        await self.server.stop(0)
        await self.kv.close()
        self.pool.close()


class Consumer:
    """KvConsumer with its callbacks recorded."""

    def __init__(
        self,
        transports: tuple[str, ...],
        *,
        layout: KVLayout = LAYOUT,
        num_blocks: int = 16,
        compat: str = "compat",
        pool: Any = None,
        **options: Any,
    ) -> None:
        self.pool = pool or KVPoolMemory.create(layout, num_blocks, 7)
        self.ready: list[tuple[Any, ...]] = []
        self.failed: list[tuple[tuple[int, int], SpliceError, str | None]] = []
        self.drained: list[tuple[int, int]] = []
        self.kv = KvConsumer(
            self.pool,
            identity("decode-0", compat=compat),
            transports=transports,
            on_ready=lambda *event: self.ready.append(event),
            on_failed=lambda key, error, blamed: self.failed.append((key, error, blamed)),
            on_drained=self.drained.append,
            **options,
        )

    async def close(self) -> None:
        await self.kv.close()
        self.pool.close()


@contextlib.asynccontextmanager
async def pair(
    transports: tuple[str, ...], *, source: dict[str, Any] | None = None, consumer: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Source, SourceAddress, Consumer]]:
    served = Source(transports, **(source or {}))
    address = await served.start()
    pulling = Consumer(**({"transports": transports} | (consumer or {})))
    await pulling.kv.start()
    try:
        yield served, address, pulling
    finally:
        await pulling.close()
        await served.close()


async def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    """Returns when `condition` holds; a promise that is not kept in `limit_s` fails the test."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "not reached in time"
        await asyncio.sleep(0.005)


def serve_in_process(pipe: Any, transports: tuple[str, ...], layout: KVLayout, num_blocks: int, final: bool) -> None:
    """Body of a source process: announces blocks 0…n-1 of KEY, says where it listens, serves until told to stop."""

    async def run() -> None:
        source = Source(transports, layout=layout, num_blocks=num_blocks, ttl_s=30.0)
        address = await source.start()
        blocks = list(range(num_blocks))
        fill(source.pool, blocks)
        source.kv.announce(KEY, 0, blocks, num_blocks * layout.block_tokens, FINAL if final else None)
        pipe.send((address.worker_id, address.incarnation, address.endpoint))
        await asyncio.to_thread(pipe.recv)
        pipe.send(source.released)
        await source.close()

    asyncio.run(run())


@contextlib.contextmanager
def source_process(
    transports: tuple[str, ...], *, layout: KVLayout = LAYOUT, num_blocks: int = 16, final: bool = True
) -> Any:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_in_process, args=(theirs, transports, layout, num_blocks, final))
    process.start()
    theirs.close()
    try:
        assert ours.poll(30), "the source process did not start"
        yield process, SourceAddress(*ours.recv()), ours
    finally:
        if process.is_alive():
            with contextlib.suppress(OSError):
                ours.send("stop")
            process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()
