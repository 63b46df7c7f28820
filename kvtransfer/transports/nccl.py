"""Between GPUs, of one host or of two: NCCL's send and receive over NVLink, PCIe or a fabric.

Each connection of a consumer makes a communicator of two ranks. A batch is asked for on the connection; the source pins
what is granted under its lease and says so, both launch one group, a send a block at the source and a receive a block
into its place at the consumer, and the generations follow on the connection behind the event of the sends. A block is
one span in either pool, so nothing is gathered first. NCCL's own buffers lie between: a peer never writes to a pool.

NCCL makes no two ranks on one GPU. There cuda_ipc goes, or shm. Compiled, not yet run on a GPU.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Container, Sequence

import msgspec

from kvtransfer.connections import Connections, hang_up, received
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.device_runtime import DeviceError
from kvtransfer.nccl_library import UNIQUE_ID_BYTES, Nccl, NcclError, NcclLibrary, keep_to_loopback
from kvtransfer.nccl_pair import CONSUMER, SOURCE, NcclPair
from kvtransfer.pool import KVPool
from kvtransfer.transport import (
    CAPABILITY_BYTES,
    OPEN_TIMEOUT_S,
    READ_TIMEOUT_S,
    BlockRead,
    PeerPool,
    ReadGate,
    TransportError,
)

MAX_PAIRS = 32
"""Of one source: a communicator takes some tens of MiB of the device."""
PART_BYTES = 64 << 20
"""That one group moves, at most, where a block is no larger: bounds how long blocks are pinned, and a deadline."""
_GRANT = struct.Struct(f"<QQQ{UNIQUE_ID_BYTES}s")
"""incarnation, blocks of the pool, bytes of a block, and the communicator's id"""
_BATCH = struct.Struct("<I")
"""how many blocks follow"""
_WANTED = struct.Struct("<QIQQ")
"""request, attempt, block, generation"""


class _Address(msgspec.Struct, frozen=True):
    host: str
    port: int
    capability: bytes
    device: str
    """The source's GPU."""


class NcclSource:
    """One thread and one communicator per connection; both end with it, however the consumer ended."""

    def __init__(self, pool: KVPool, gate: ReadGate, host: str, nccl: Nccl | None = None) -> None:
        if not isinstance(pool, DevicePoolMemory):
            raise TransportError("nccl moves memory of GPUs, this pool lies in host memory")
        if _is_loopback(host):
            keep_to_loopback()
        self._nccl = nccl or _library()
        self._pool = pool
        self._gate = gate
        listener = socket.create_server((host, 0), backlog=64)
        self._host, self._port = listener.getsockname()[:2]
        self._connections = Connections("nccl", listener, _admitted, self._serve, MAX_PAIRS)

    @property
    def num_pairs(self) -> int:
        """Consumers that were admitted, and have not ended."""
        return len(self._connections)

    def offer(self) -> tuple[bytes, bytes]:
        capability = self._connections.new_capability()
        address = _Address(self._host, self._port, capability, self._pool.runtime.uuid)
        return msgspec.msgpack.encode(address), capability

    def revoke(self, capability: bytes) -> None:
        self._connections.revoke(capability)

    def close(self) -> None:
        self._connections.close()

    def _serve(self, peer: socket.socket) -> None:
        pool = self._pool
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            # Made now, not with the offer: NCCL listens for both ranks until they have come.
            unique_id = self._nccl.new_id()
        except NcclError as error:
            raise TransportError(str(error)) from error
        peer.sendall(_GRANT.pack(pool.incarnation, pool.num_blocks, pool.layout.block_bytes, unique_id))
        pair = NcclPair(pool.runtime, self._nccl, unique_id, SOURCE, peer)
        try:
            while True:
                peer.settimeout(None)  # idle between requests for as long as the consumer's channel lives
                (count,) = _BATCH.unpack(received(peer, _BATCH.size))
                peer.settimeout(READ_TIMEOUT_S)
                if count > pool.batch_blocks:
                    raise TransportError(f"{count} blocks asked for at once, at most {pool.batch_blocks}")
                self._answer(peer, pair, list(_WANTED.iter_unpack(received(peer, count * _WANTED.size))))
        finally:
            pair.abort()

    def _answer(self, peer: socket.socket, pair: NcclPair, wanted: Sequence[tuple[int, int, int, int]]) -> None:
        granted: dict[int, int] = {}
        try:
            for i, (request, attempt, block, generation) in enumerate(wanted):
                if self._gate.begin_read((request, attempt), block, generation):
                    granted[i] = self._pool.place(block)
            peer.sendall(bytes(i in granted for i in range(len(wanted))))
            if granted:
                with self._pool.lane() as lane:
                    pair.send(lane, list(granted.values()), self._pool.layout.block_bytes)
            seen = [0] * len(wanted)
            for i in granted:
                seen[i] = self._pool.get(wanted[i][2])
        finally:
            for i in granted:
                self._gate.end_read((wanted[i][0], wanted[i][1]))
        peer.sendall(struct.pack(f"<{len(seen)}Q", *seen))


class NcclLink:
    """One communicator with the source; copy threads take turns."""

    def __init__(self, address: bytes, expected: PeerPool, pool: DevicePoolMemory, nccl: Nccl | None = None) -> None:
        try:
            where = msgspec.msgpack.decode(address, type=_Address)
        except msgspec.MsgspecError as error:
            raise TransportError(f"unreadable nccl address: {error}") from error
        if where.device == pool.runtime.uuid:
            raise TransportError(f"both pools lie on GPU {where.device}, and NCCL makes no two ranks on one")
        if _is_loopback(where.host):
            keep_to_loopback()
        self._pool = pool
        self._expected = expected
        self._turn = threading.Lock()
        try:
            self._source = socket.create_connection((where.host, where.port), OPEN_TIMEOUT_S)
        except OSError as error:
            raise TransportError(f"cannot connect to {where.host}:{where.port}: {error}") from error
        try:
            self._pair = self._join(where, nccl or _library())
        except OSError as error:
            self._source.close()
            raise TransportError(f"the source refused the capability, or has no pair left: {error}") from error
        except TransportError:
            self._source.close()
            raise

    def read_blocks(self, reads: Sequence[BlockRead]) -> list[int]:
        most = max(1, min(self._pool.batch_blocks, PART_BYTES // self._expected.block_bytes))
        seen: list[int] = []
        with self._turn:
            try:
                for begin in range(0, len(reads), most):
                    seen += self._read(reads[begin : begin + most])
            except BaseException as error:
                self._pair.abort()
                hang_up(self._source)
                if isinstance(error, OSError | DeviceError):
                    raise TransportError(f"nccl copy of {len(reads)} blocks: {error}") from error
                raise
        return seen

    def close(self) -> None:
        hang_up(self._source)  # a read under way sees the end of it, and aborts
        # NCCL may take its time over this, and an event loop none over us.
        threading.Thread(target=self._end, name="kv-nccl-end", daemon=True).start()

    def _end(self) -> None:
        with self._turn:
            self._pair.abort()
            self._source.close()

    def _join(self, where: _Address, nccl: Nccl) -> NcclPair:
        self._source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._source.sendall(where.capability)
        grant = received(self._source, _GRANT.size)
        incarnation, num_blocks, block_bytes, unique_id = _GRANT.unpack(grant)
        wanted = (self._expected.incarnation, self._expected.num_blocks, self._expected.block_bytes)
        if (incarnation, num_blocks, block_bytes) != wanted:
            raise TransportError(f"the source has pool {(incarnation, num_blocks, block_bytes)}, expected {wanted}")
        pair = NcclPair(self._pool.runtime, nccl, unique_id, CONSUMER, self._source)
        self._source.settimeout(READ_TIMEOUT_S)
        return pair

    def _read(self, part: Sequence[BlockRead]) -> list[int]:
        places = [self._pool.place(read.dest_block) for read in part]
        rows = [_WANTED.pack(*read.key, read.block, read.generation) for read in part]
        self._source.sendall(b"".join([_BATCH.pack(len(part)), *rows]))
        granted = received(self._source, len(part))
        with self._pool.lane() as lane:
            if any(granted):
                spans = [place for place, is_granted in zip(places, granted, strict=True) if is_granted]
                self._pair.receive(lane, spans, self._expected.block_bytes)
        return list(struct.unpack(f"<{len(part)}Q", received(self._source, 8 * len(part))))


def _admitted(peer: socket.socket, capabilities: Container[bytes]) -> bytes:
    peer.settimeout(OPEN_TIMEOUT_S)
    shown = received(peer, CAPABILITY_BYTES)
    return shown if shown in capabilities else b""


def _library() -> Nccl:
    try:
        return NcclLibrary()
    except NcclError as error:
        raise TransportError(str(error)) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
