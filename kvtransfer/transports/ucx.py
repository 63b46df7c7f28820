"""Between hosts: one-sided reads over what UCX finds, RDMA with the hardware, TCP without.

The consumer reads the source's mapped pool with gets, then the block's generation with one more, and believes the block
only if that is still the granted one. The source takes no part, except where UCX has nothing better than TCP: there its
native thread answers. The listener admits by capability. UCX's own data ports know none, and whoever reaches them is
trusted as on an RDMA fabric: they stay on the loopback if `host` is on it, elsewhere the operator names the fabric
(UCX_NET_DEVICES).
"""

from __future__ import annotations

import secrets
import threading

import msgspec
import structlog

from kvtransfer import _ucx
from kvtransfer.handoff import RequestKey
from kvtransfer.pool import KVPool
from kvtransfer.pool_header import GENERATION_BYTES, PAGE_BYTES, PoolHeader, decode_header
from kvtransfer.pool_memory import KVPoolMemory
from kvtransfer.transport import OPEN_TIMEOUT_S, READ_TIMEOUT_S, PeerPool, ReadGate, TransportError
from wire.errors import SpliceError

_log = structlog.get_logger(__name__)
_CLIENT_ID_BYTES = 8
"""What UCX carries to a listener with a connection: the capability."""


class _Address(msgspec.Struct, frozen=True):
    host: str
    port: int
    capability: bytes
    base: int
    key: bytes


class UcxSource:
    """A listener for those who show a capability; the pool is mapped for their gets."""

    def __init__(self, pool: KVPool, gate: ReadGate, host: str) -> None:
        """`gate` is not asked: one-sided reads are checked by the reader, and the pool is never unmapped."""
        if not isinstance(pool, KVPoolMemory):
            raise TransportError("ucx registers pools in host memory, this one lies on a device")
        self._host = host
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._source = _ucx.Source(host, pool.whole())
        except _ucx.UcxError as error:
            raise TransportError(f"ucx cannot serve on {host}: {error}") from error
        self.port, self._base, self._key = self._source.port, self._source.base, self._source.key

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
        address = _Address(self._host, self.port, capability, self._base, self._key)
        return msgspec.msgpack.encode(address), capability

    def revoke(self, capability: bytes) -> None:
        with self._lock:
            if not self._closed:
                self._source.revoke(_client_id(capability))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._source.close()


class UcxLink:
    """As many native links as copies run at once; idle ones are used again."""

    def __init__(self, address: bytes, expected: PeerPool) -> None:
        self._expected = PoolHeader(expected.layout_id, expected.incarnation, expected.num_blocks, expected.block_bytes)
        try:
            self._where = msgspec.msgpack.decode(address, type=_Address)
        except msgspec.MsgspecError as error:
            raise TransportError(f"unreadable ucx address: {error}") from error
        self._lock = threading.Lock()
        self._open: set[_ucx.Link] = set()
        self._idle: list[_ucx.Link] = []
        self._closed = False
        self._idle.append(self._connect())

    def read(self, key: RequestKey, block: int, generation: int, dest: memoryview) -> int:
        there = self._expected
        if len(dest) != there.block_bytes or not 0 <= block < there.num_blocks:
            raise TransportError(
                f"block {block} into {len(dest)} bytes; the pool has {there.num_blocks} of {there.block_bytes}"
            )
        with self._lock:
            link = self._idle.pop() if self._idle else None
        link = link or self._connect()
        try:
            seen = link.get_granted(
                dest,
                address=self._where.base + there.data_offset + block * there.block_bytes,
                generation=self._where.base + there.generations_offset + block * GENERATION_BYTES,
                limit_s=READ_TIMEOUT_S,
            )
        except _ucx.UcxError as error:
            with self._lock:
                self._open.discard(link)
            link.close()
            raise TransportError(f"ucx read of block {block}: {error}") from error
        with self._lock:
            self._idle.append(link)
        return seen

    def close(self) -> None:
        with self._lock:
            self._closed = True
            links, self._open, self._idle = self._open, set(), []
        for link in links:
            link.close()  # a read under way ends by that

    def _connect(self) -> _ucx.Link:
        where = self._where
        try:
            link = _ucx.connect(where.host, where.port, _client_id(where.capability), where.key, limit_s=OPEN_TIMEOUT_S)
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


def _client_id(capability: bytes) -> int:
    return int.from_bytes(capability[:_CLIENT_ID_BYTES], "little")
