"""Same host, blocks on GPUs that cannot map each other's memory: through pinned memory that both processes share.

The source's device writes granted blocks into one half of a ring, the consumer's reads the other half meanwhile: two
DMA copies a block, none by a processor. Neither GPUs with access to each other nor a common IPC namespace are needed.
The source takes part: a block stays pinned under its lease from the request to the event of its copy, and its
generation is read behind that. A half is written again only when the consumer, which asks for it, has copied it out.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Sequence

import msgspec
import structlog

from kvtransfer.capability_socket import admitted, listening
from kvtransfer.connections import Connections, hang_up, received
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.device_runtime import DeviceError
from kvtransfer.pool import KVPool
from kvtransfer.staging_ring import StagingRing, new_ring
from kvtransfer.transport import (
    OPEN_TIMEOUT_S,
    READ_TIMEOUT_S,
    BlockRead,
    PeerPool,
    ReadGate,
    TransportError,
)

_log = structlog.get_logger(__name__)
HALF_BYTES = 8 << 20
"""Of a ring, at most, where a block is no larger: some 300 µs of a PCIe 5 link, ten times what asking takes."""
MAX_RINGS = 64
"""Of one source. A copy thread of a consumer has one; who finds none left takes the next transport."""
_BATCH = struct.Struct("<II")
"""half of the ring, how many blocks follow"""
_WANTED = struct.Struct("<QIQQ")
"""request, attempt, block, generation; answered by 64 bits, the generation seen behind the copy or 0"""
_GRANT_BYTES = 512


class _Address(msgspec.Struct, frozen=True):
    socket_name: str
    capability: bytes


class _Grant(msgspec.Struct, frozen=True):
    """Of one ring."""

    half_blocks: int
    block_bytes: int
    num_blocks: int
    incarnation: int


class StagedSource:
    """One thread and one ring per connection; both end with it, however the consumer ended."""

    def __init__(self, pool: KVPool, gate: ReadGate, host: str) -> None:
        if not isinstance(pool, DevicePoolMemory):
            raise TransportError("blocks in host memory are not staged, they are mapped")
        self._pool = pool
        self._gate = gate
        self._lock = threading.Lock()
        self._rings = 0
        self._name, listener = listening()
        self._connections = Connections("shm", listener, admitted, self._serve_ring, MAX_RINGS)

    @property
    def num_rings(self) -> int:
        """Mapped and pinned now."""
        with self._lock:
            return self._rings

    def offer(self) -> tuple[bytes, bytes]:
        capability = self._connections.new_capability()
        return msgspec.msgpack.encode(_Address(self._name, capability)), capability

    def revoke(self, capability: bytes) -> None:
        self._connections.revoke(capability)

    def close(self) -> None:
        self._connections.close()

    def _serve_ring(self, peer: socket.socket) -> None:
        block_bytes = self._pool.layout.block_bytes
        half_blocks = max(1, min(self._pool.batch_blocks, HALF_BYTES // block_bytes))
        fd = new_ring(half_blocks, block_bytes)
        try:
            ring = StagingRing(self._pool.runtime, fd, half_blocks, block_bytes)
            self._count(1)
            try:
                grant = _Grant(half_blocks, block_bytes, self._pool.num_blocks, self._pool.incarnation)
                socket.send_fds(peer, [msgspec.msgpack.encode(grant)], [fd])
                while True:
                    peer.settimeout(None)  # idle between requests for as long as the consumer's channel lives
                    half, count = _BATCH.unpack(received(peer, _BATCH.size))
                    places = ring.places(half, count)
                    peer.settimeout(READ_TIMEOUT_S)
                    wanted = list(_WANTED.iter_unpack(received(peer, count * _WANTED.size)))
                    peer.sendall(struct.pack(f"<{count}Q", *self._fill(places, wanted)))
            finally:
                self._count(-1)
                ring.close()
        finally:
            os.close(fd)

    def _fill(self, places: Sequence[int], wanted: Sequence[tuple[int, int, int, int]]) -> list[int]:
        """Copies what is granted; the generations seen after it."""
        granted: list[int] = []
        try:
            for i, (request, attempt, block, generation) in enumerate(wanted):
                if self._gate.begin_read((request, attempt), block, generation):
                    granted.append(i)
            self._pool.copy_out([wanted[i][2] for i in granted], [places[i] for i in granted])
            seen = [0] * len(wanted)
            for i in granted:
                seen[i] = self._pool.get(wanted[i][2])
            return seen
        finally:
            for i in granted:
                self._gate.end_read((wanted[i][0], wanted[i][1]))

    def _count(self, more: int) -> None:
        with self._lock:
            self._rings += more


class StagedLink:
    """As many rings as copies run at once; idle ones are used again."""

    def __init__(self, address: bytes, expected: PeerPool, pool: DevicePoolMemory) -> None:
        try:
            self._where = msgspec.msgpack.decode(address, type=_Address)
        except msgspec.MsgspecError as error:
            raise TransportError(f"unreadable address: {error}") from error
        self._pool = pool
        self._expected = expected
        self._lock = threading.Lock()
        self._idle: list[_Stage] = []
        self._busy: set[_Stage] = set()
        self._closed = False
        self._idle.append(_Stage(self._where, expected, pool))

    def read_blocks(self, reads: Sequence[BlockRead]) -> list[int]:
        stage = self._take()
        try:
            seen = stage.read_blocks(reads)
        except (OSError, DeviceError) as error:
            raise TransportError(f"staged copy of {len(reads)} blocks: {error}") from error
        finally:
            self._put_back(stage)
        return seen

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for stage in self._busy:
                stage.hang_up()  # its reader sees the end, and closes it
        if idle:  # the driver may wait for the device, which no event loop should
            threading.Thread(target=_close_all, args=(idle,), name="kv-staged-end", daemon=True).start()

    def _take(self) -> _Stage:
        with self._lock:
            stage = self._idle.pop() if self._idle else None
        stage = stage or _Stage(self._where, self._expected, self._pool)
        with self._lock:
            if not self._closed:
                self._busy.add(stage)
                return stage
        stage.close()
        raise TransportError("closed")

    def _put_back(self, stage: _Stage) -> None:
        with self._lock:
            self._busy.discard(stage)
            keep = stage.is_settled and not self._closed
            if keep:
                self._idle.append(stage)
        if not keep:
            stage.close()


def _close_all(stages: Sequence[_Stage]) -> None:
    for stage in stages:
        stage.close()


class _Stage:
    """One connection with its ring, used by one thread at a time."""

    def __init__(self, where: _Address, expected: PeerPool, pool: DevicePoolMemory) -> None:
        self.is_settled = True
        """Nothing was asked for that was not answered, and copied."""
        self._pool = pool
        self._source = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fds: list[int] = []
        try:
            self._source.settimeout(OPEN_TIMEOUT_S)
            self._source.connect("\0" + where.socket_name)
            self._source.sendall(where.capability)
            answer, fds, _, _ = socket.recv_fds(self._source, _GRANT_BYTES, 1)
            if len(fds) != 1:
                raise TransportError("the source refused the capability, or has no ring left")
            grant = msgspec.msgpack.decode(answer, type=_Grant)
            wanted = (expected.block_bytes, expected.num_blocks, expected.incarnation)
            if (grant.block_bytes, grant.num_blocks, grant.incarnation) != wanted:
                raise TransportError(f"the source stages {grant}, expected {wanted}")
            self._ring = StagingRing(pool.runtime, fds[0], grant.half_blocks, grant.block_bytes)
            self._source.settimeout(READ_TIMEOUT_S)
        except (OSError, msgspec.MsgspecError) as error:
            self._source.close()
            raise TransportError(f"cannot share memory with the source: {error}") from error
        except TransportError:
            self._source.close()
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def read_blocks(self, reads: Sequence[BlockRead]) -> list[int]:
        """One half is asked for while the other is copied out. Raises OSError, DeviceError; quiet either way."""
        self.is_settled = False
        most = self._ring.half_blocks
        parts = [reads[begin : begin + most] for begin in range(0, len(reads), most)]
        seen: list[int] = []
        if parts:
            self._ask(0, parts[0])
        for number, part in enumerate(parts):
            if number + 1 < len(parts):
                self._ask((number + 1) & 1, parts[number + 1])
            seen += self._copy_in(number & 1, part)
        self.is_settled = True
        return seen

    def hang_up(self) -> None:
        hang_up(self._source)

    def close(self) -> None:
        self._source.close()
        try:
            self._ring.close()
        except DeviceError as error:
            _log.error("kv staging memory cannot be unpinned", error=str(error))

    def _ask(self, half: int, part: Sequence[BlockRead]) -> None:
        rows = [_WANTED.pack(*read.key, read.block, read.generation) for read in part]
        self._source.sendall(b"".join([_BATCH.pack(half, len(part)), *rows]))

    def _copy_in(self, half: int, part: Sequence[BlockRead]) -> list[int]:
        seen = [word for (word,) in struct.iter_unpack("<Q", received(self._source, 8 * len(part)))]
        places = self._ring.places(half, len(part))
        granted = [i for i, read in enumerate(part) if seen[i] == read.generation]
        self._pool.copy_in([part[i].dest_block for i in granted], [places[i] for i in granted])
        return seen
