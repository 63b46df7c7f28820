"""Between hosts: one-sided reads over what UCX finds, RDMA with the hardware, TCP without.

The consumer reads the source's mapped pool with gets, then the block's generation with one more, and believes the block
only if that is still the granted one. The source takes no part, except where UCX has nothing better than TCP: there its
native thread answers. The listener admits by capability. UCX's own data ports know none, and whoever reaches them is
trusted as on an RDMA fabric: they stay on the loopback if `host` is on it, elsewhere the operator names the fabric
(UCX_NET_DEVICES).

Of a pool on a GPU, the blocks are registered as its memory and the table as the host's, each with a key of its own, and
gets go from GPU to GPU: straight, where the fabric can (GPUDirect RDMA), or as UCX carries them. That is compiled, not
yet run on a GPU.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import structlog

from kvtransfer import _ucx, ucx_library
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.handoff import RequestKey
from kvtransfer.pool import KVPool
from kvtransfer.pool_header import GENERATION_BYTES, PAGE_BYTES, PoolHeader, decode_header
from kvtransfer.pool_memory import KVPoolMemory
from kvtransfer.transport import OPEN_TIMEOUT_S, READ_TIMEOUT_S, BlockRead, PeerPool, ReadGate, TransportError
from wire.errors import SpliceError

_log = structlog.get_logger(__name__)
_CLIENT_ID_BYTES = 8
"""What UCX carries to a listener with a connection: the capability."""


class _Address(msgspec.Struct, frozen=True):
    host: str
    port: int
    capability: bytes
    base: int
    """Of header and generations."""
    key: bytes
    blocks: int
    """Of block 0."""
    block_key: bytes
    """Empty where `key` is of the blocks too."""


class UcxSource:
    """A listener for those who show a capability; the pool is mapped for their gets."""

    def __init__(self, pool: KVPool, gate: ReadGate, host: str, memory: str = "cuda") -> None:
        """`gate` is not asked: one-sided reads are checked by the reader, and the pool is never unmapped. `memory` is
        where a pool on a device has its blocks, to UCX."""
        self._host = host
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._source = _registered(pool, host, memory)
        except _ucx.UcxError as error:
            raise TransportError(f"ucx cannot serve on {host}: {error}") from error
        self.port = self._source.port
        base, key = self._source.base, self._source.key
        if isinstance(pool, DevicePoolMemory):
            self._where = _Address(host, self.port, b"", base, key, pool.address, self._source.block_key)
        else:
            header = PoolHeader(pool.layout.layout_id, pool.incarnation, pool.num_blocks, pool.layout.block_bytes)
            self._where = _Address(host, self.port, b"", base, key, base + header.data_offset, b"")

    @property
    def num_consumers(self) -> int:
        """Connections there are now; several a consumer."""
        with self._lock:
            return 0 if self._closed else self._source.consumers

    def offer(self) -> tuple[bytes, bytes]:
        capability = secrets.token_bytes(_CLIENT_ID_BYTES)
        with self._lock:
            if not self._closed:
                if self._source.failure:
                    _log.error("kv ucx source has stopped; its consumers fall back", reason=self._source.failure)
                self._source.admit(_client_id(capability))
        return msgspec.msgpack.encode(msgspec.structs.replace(self._where, capability=capability)), capability

    def revoke(self, capability: bytes) -> None:
        with self._lock:
            if not self._closed:
                self._source.revoke(_client_id(capability))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._source.close()


class UcxLink:
    """Into a pool in host memory."""

    def __init__(self, address: bytes, expected: PeerPool) -> None:
        self._expected = expected
        self._natives = _Natives(address, expected, "host", lambda: None)

    def read(self, key: RequestKey, block: int, generation: int, dest: memoryview) -> int:
        there = self._expected
        if len(dest) != there.block_bytes or not 0 <= block < there.num_blocks:
            raise TransportError(
                f"block {block} into {len(dest)} bytes; the pool has {there.num_blocks} of {there.block_bytes}"
            )
        with self._natives.one(f"ucx read of block {block}") as native:
            address, guard = self._natives.places(block)
            return native.get_granted(dest, address=address, generation=guard, limit_s=READ_TIMEOUT_S)

    def close(self) -> None:
        self._natives.close()


class UcxDeviceLink:
    """Into a pool on a device.

    A fabric may write to a GPU behind the processor's back: that a get has ended does not say that a kernel sees its
    bytes. The digest says it, which a kernel makes of them there, before anything else reads them.
    """

    def __init__(self, address: bytes, expected: PeerPool, pool: DevicePoolMemory, memory: str = "cuda") -> None:
        self._expected = expected
        self._pool = pool
        self._natives = _Natives(address, expected, memory, pool.runtime.enter)

    def read_blocks(self, reads: Sequence[BlockRead]) -> list[int]:
        block_bytes = self._expected.block_bytes
        seen = []
        with self._natives.one(f"ucx read of {len(reads)} blocks") as native, self._pool.lane():
            for read in reads:
                if not 0 <= read.block < self._expected.num_blocks:
                    raise TransportError(f"block {read.block} is outside a pool of {self._expected.num_blocks}")
                address, guard = self._natives.places(read.block)
                dest = self._pool.place(read.dest_block)
                seen.append(native.get_granted_to(dest, block_bytes, address, guard, READ_TIMEOUT_S))
        return seen

    def close(self) -> None:
        self._natives.close()


class _Natives:
    """As many native links to one source as copies run at once; idle ones are used again."""

    def __init__(self, address: bytes, expected: PeerPool, memory: str, enter: Callable[[], None]) -> None:
        """`enter` prepares a thread for copies to `memory`."""
        self._expected = PoolHeader(expected.layout_id, expected.incarnation, expected.num_blocks, expected.block_bytes)
        self._memory = memory
        self._enter = enter
        try:
            self._where = msgspec.msgpack.decode(address, type=_Address)
        except msgspec.MsgspecError as error:
            raise TransportError(f"unreadable ucx address: {error}") from error
        self._lock = threading.Lock()
        self._open: set[_ucx.Link] = set()
        self._idle: list[_ucx.Link] = []
        self._closed = False
        self._idle.append(self._connect())

    @contextmanager
    def one(self, what: str) -> Iterator[_ucx.Link]:
        """A link of the calling thread's own; raises TransportError, naming `what` failed."""
        with self._lock:
            link = self._idle.pop() if self._idle else None
        link = link or self._connect()
        try:
            self._enter()
            yield link
        except BaseException as error:
            with self._lock:
                self._open.discard(link)
            link.close()
            if isinstance(error, _ucx.UcxError):
                raise TransportError(f"{what}: {error}") from error
            raise
        with self._lock:
            self._idle.append(link)

    def places(self, block: int) -> tuple[int, int]:
        """(address of the block, address of its generation) at the source"""
        where = self._where
        return (
            where.blocks + block * self._expected.block_bytes,
            where.base + self._expected.generations_offset + block * GENERATION_BYTES,
        )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            links, self._open, self._idle = self._open, set(), []
        for link in links:
            link.close()  # a read under way ends by that

    def _connect(self) -> _ucx.Link:
        where = self._where
        try:
            self._enter()
            link = _ucx.connect(
                where.host,
                where.port,
                _client_id(where.capability),
                where.key,
                limit_s=OPEN_TIMEOUT_S,
                block_key=where.block_key,
                memory=self._memory,
            )
        except _ucx.UcxError as error:
            raise TransportError(f"ucx cannot connect to {where.host}:{where.port}: {error}") from error
        try:
            self._compare(link)
            with self._lock:
                if self._closed:
                    raise TransportError("closed")
                self._open.add(link)
        except TransportError:
            link.close()
            raise
        return link

    def _compare(self, link: _ucx.Link) -> None:
        """Believes nothing before it has been compared, as the header of a mapped pool."""
        page = bytearray(PAGE_BYTES)
        try:
            link.get(page, address=self._where.base, limit_s=OPEN_TIMEOUT_S)
            header = decode_header(memoryview(page))
        except _ucx.UcxError as error:
            raise TransportError(f"ucx read of the pool's header: {error}") from error
        except SpliceError as error:
            raise TransportError(error.message) from error
        if header != self._expected:
            raise TransportError(f"the pool reached is {header}, expected {self._expected}")


def _registered(pool: KVPool, host: str, memory: str) -> _ucx.Source:
    if isinstance(pool, KVPoolMemory):
        return _ucx.Source(host, pool.whole())
    if not isinstance(pool, DevicePoolMemory):
        raise TransportError(f"ucx knows no pool of the kind {type(pool).__name__}")
    if memory == "cuda" and (reason := ucx_library.why_no_cuda()):
        raise TransportError(reason)
    pool.runtime.enter()
    return _ucx.Source(host, pool.table(), pool.address, pool.nbytes, memory, pool.runtime.context)


def _client_id(capability: bytes) -> int:
    return int.from_bytes(capability[:_CLIENT_ID_BYTES], "little")
