"""Same host, blocks on GPUs: the consumer maps the source's allocation and copies from its pages into its own.

One launch gathers a batch of blocks, over NVLink or PCIe between GPUs; the source takes no part. The consumer
believes a block if its generation, in host memory both map, is the granted one before the launch and after its event.
The connection by which the handle came stays open while the memory is mapped: its end tells the consumer that the
source is gone or takes its memory back, and the source that the memory is not mapped any more.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import structlog

from kvtransfer.capability_socket import admitted, listening
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.device_runtime import DeviceError
from kvtransfer.peer_mappings import PeerMapping
from kvtransfer.pool import KVPool
from kvtransfer.pool_table import PeerTable
from kvtransfer.transport import CAPABILITY_BYTES, OPEN_TIMEOUT_S, BlockRead, PeerPool, ReadGate, TransportError

_log = structlog.get_logger(__name__)
_GRANT_BYTES = 512
CLOSE_TIMEOUT_S = 5.0
"""What consumers have for unmapping when a source closes; after that the memory stays until the process ends."""


class _Address(msgspec.Struct, frozen=True):
    socket_name: str
    capability: bytes


class _Grant(msgspec.Struct, frozen=True):
    handle: bytes
    offset: int
    device: str


class CudaIpcSource:
    """Hands the pool's handle, and a read-only descriptor of its generations, to whoever shows a capability."""

    def __init__(self, pool: KVPool, gate: ReadGate, host: str) -> None:
        """`gate` is not asked: reads are checked by the reader, and the pool stays while it is mapped."""
        if not isinstance(pool, DevicePoolMemory):
            raise TransportError("cuda_ipc maps pools on a device, this one lies in host memory")
        try:
            handle, offset = pool.export()
        except DeviceError as error:
            raise TransportError(f"the device's memory cannot be shared: {error}") from error
        self._pool = pool
        self._grant = msgspec.msgpack.encode(_Grant(handle, offset, pool.runtime.uuid))
        self._table = os.open(f"/proc/self/fd/{pool.table_fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._changed = threading.Condition()
        self._capabilities: set[bytes] = set()
        self._mapped: dict[socket.socket, bytes] = {}
        self._name, self._listener = listening()
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="kv-cuda-ipc", daemon=True)
        self._thread.start()

    @property
    def num_mapped(self) -> int:
        """Consumers that may have the pool mapped."""
        with self._changed:
            return len(self._mapped)

    def offer(self) -> tuple[bytes, bytes]:
        capability = secrets.token_bytes(CAPABILITY_BYTES)
        with self._changed:
            self._capabilities.add(capability)
        return msgspec.msgpack.encode(_Address(self._name, capability)), capability

    def revoke(self, capability: bytes) -> None:
        with self._changed:
            self._capabilities.discard(capability)
            shown_by = [peer for peer, shown in self._mapped.items() if shown == capability]
            for peer in shown_by:
                _say_no_more(peer)

    def close(self) -> None:
        with self._changed:
            self._capabilities.clear()
            for peer in self._mapped:
                _say_no_more(peer)
            unmapped = self._changed.wait_for(lambda: not self._mapped, CLOSE_TIMEOUT_S)
            if not unmapped:
                self._pool.keep_until_exit(f"{len(self._mapped)} consumers still map it")
        self._waker.close()
        self._thread.join()
        self._wake.close()
        self._listener.close()
        os.close(self._table)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                for event, _ in selector.select():
                    ready = event.fileobj
                    if ready is self._wake:
                        return
                    if ready is self._listener:
                        peer = self._admit()
                        if peer is not None:
                            selector.register(peer, selectors.EVENT_READ)
                    elif isinstance(ready, socket.socket):  # it has nothing to say: it unmapped, or died
                        selector.unregister(ready)
                        with self._changed:
                            del self._mapped[ready]
                            self._changed.notify_all()
                        ready.close()

    def _admit(self) -> socket.socket | None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return None  # it has hung up already
        with suppress(OSError):  # a peer that breaks off gets no handle and no answer
            capability = admitted(peer, self._capabilities)
            with self._changed:
                if capability in self._capabilities:
                    self._mapped[peer] = capability
                    socket.send_fds(peer, [self._grant], [self._table])
                    return peer
        with self._changed:
            self._mapped.pop(peer, None)
        peer.close()
        return None


class CudaIpcLink:
    """One mapping of the source's pool; reads go straight into the local one, on its device."""

    def __init__(self, address: bytes, expected: PeerPool, pool: DevicePoolMemory) -> None:
        self._pool = pool
        self._expected = expected
        try:
            where = msgspec.msgpack.decode(address, type=_Address)
            connection, grant, table = _ask(where)
        except (OSError, msgspec.MsgspecError) as error:
            raise TransportError(f"cannot get the source's pool: {error}") from error
        try:
            if not pool.runtime.can_reach(grant.device):
                raise TransportError(f"GPU {pool.runtime.uuid} has no way to the memory of GPU {grant.device}")
            self._table = PeerTable(table, expected)
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(table)
        self._offset = grant.offset
        self._mapping: PeerMapping = pool.mappings.open(grant.handle, connection)

    def read_blocks(self, reads: Sequence[BlockRead]) -> list[int]:
        for read in reads:
            if not 0 <= read.block < self._expected.num_blocks:
                raise TransportError(f"block {read.block} is outside the source's pool of {self._expected.num_blocks}")
        with self._mapping.used() as base:
            seen = [self._table.seen(read.block, read.generation) for read in reads]
            granted = [i for i, read in enumerate(reads) if seen[i] == read.generation]
            if granted:
                ours, theirs = [reads[i].dest_block for i in granted], [reads[i].block for i in granted]
                try:
                    self._pool.pull(ours, base + self._offset, theirs)
                except DeviceError as error:
                    raise TransportError(f"cuda_ipc copy of {len(ours)} blocks: {error}") from error
            for i in granted:
                seen[i] = self._table.seen(reads[i].block, reads[i].generation)
        return seen

    def close(self) -> None:
        self._mapping.end("closed")


def _ask(where: _Address) -> tuple[socket.socket, _Grant, int]:
    """The connection, which stays open, what the source granted, and a descriptor of its generations."""
    source = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fds: list[int] = []
    try:
        source.settimeout(OPEN_TIMEOUT_S)
        source.connect("\0" + where.socket_name)
        source.sendall(where.capability)
        answer, fds, _, _ = socket.recv_fds(source, _GRANT_BYTES, 1)
        if len(fds) != 1:
            raise TransportError("the source refused the capability")
        return source, msgspec.msgpack.decode(answer, type=_Grant), fds[0]
    except BaseException:
        source.close()
        for fd in fds:
            os.close(fd)
        raise


def _say_no_more(peer: socket.socket) -> None:
    """Ends our side of the connection: the consumer unmaps, then closes its own."""
    with suppress(OSError):
        peer.shutdown(socket.SHUT_WR)
