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
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import structlog

from kvtransfer.capability_socket import admitted, listening
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.device_runtime import DeviceError
from kvtransfer.host import ipc_namespace
from kvtransfer.peer_mappings import UNMAPPED, PeerMapping, part_unmapped
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
    ipc_namespace: str


class CudaIpcSource:
    """Hands the pool's handle, and a read-only descriptor of its generations, to whoever shows a capability."""

    def __init__(
        self,
        pool: KVPool,
        gate: ReadGate | None,
        host: str,
        on_unmapped: Callable[[bytes], None] = lambda capability: None,
    ) -> None:
        """`gate` is not asked: reads are checked by the reader, and the pool stays while it is mapped.

        `on_unmapped(capability)` comes on a thread of ours when a peer that had mapped the pool has unmapped it and
        said so, or is dead: its process has ended, and with it what it had launched.
        """
        if not isinstance(pool, DevicePoolMemory):
            raise TransportError("cuda_ipc maps pools on a device, this one lies in host memory")
        try:
            handle, offset = pool.export()
        except DeviceError as error:
            raise TransportError(f"the device's memory cannot be shared: {error}") from error
        self._pool = pool
        self._on_unmapped = on_unmapped
        self._grant = msgspec.msgpack.encode(_Grant(handle, offset, pool.runtime.uuid, ipc_namespace()))
        self._table = os.open(f"/proc/self/fd/{pool.table_fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._changed = threading.Condition()
        self._capabilities: set[bytes] = set()
        self._mapped: dict[socket.socket, _Mapped] = {}
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
            for peer, mapped in self._mapped.items():
                if mapped.capability == capability:
                    _say_no_more(peer)

    def is_mapped(self, capability: bytes) -> bool:
        with self._changed:
            return any(mapped.capability == capability for mapped in self._mapped.values())

    def close(self) -> None:
        if self._table < 0:
            return
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
        self._table = -1

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
                            selector.register(peer, selectors.EVENT_READ, peer)
                    else:
                        self._hear(selector, event.data)

    def _hear(self, selector: selectors.BaseSelector, peer: socket.socket) -> None:
        """A peer says one thing, that it has unmapped. Its connection may end before what it launched does, if it was
        killed: its memory is quiet when the process is gone."""
        mapped = self._mapped[peer]
        if not mapped.silent:
            selector.unregister(peer)
            try:
                said = peer.recv(1)
            except OSError:
                said = b""
            if said != UNMAPPED and mapped.process >= 0:
                mapped.silent = True
                selector.register(mapped.process, selectors.EVENT_READ, peer)
                return
        else:
            selector.unregister(mapped.process)
        self._on_unmapped(mapped.capability)
        with self._changed:
            del self._mapped[peer]
            self._changed.notify_all()
        mapped.close(peer)

    def _admit(self) -> socket.socket | None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return None  # it has hung up already
        mapped = _Mapped(process=_process_of(peer))
        with suppress(OSError):  # a peer that breaks off gets no handle and no answer
            mapped.capability = admitted(peer, self._capabilities)
            with self._changed:
                if mapped.capability in self._capabilities:
                    self._mapped[peer] = mapped
                    socket.send_fds(peer, [self._grant], [self._table])
                    return peer
        with self._changed:
            self._mapped.pop(peer, None)
        mapped.close(peer)
        return None


@dataclass(slots=True)
class _Mapped:
    """A peer that may have the pool mapped."""

    process: int
    """A descriptor that is readable when it has ended; -1 where Linux gives none."""
    capability: bytes = b""
    silent: bool = False
    """Its connection ended without a word."""

    def close(self, connection: socket.socket) -> None:
        connection.close()
        if self.process >= 0:
            os.close(self.process)


def _process_of(peer: socket.socket) -> int:
    pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return os.pidfd_open(pid)
    except OSError:  # Linux < 5.3, or a sandbox: the end of the connection has to do
        return -1


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
            if grant.ipc_namespace != ipc_namespace():
                raise TransportError("the source lives in another IPC namespace: start both containers with one")
            self._table = PeerTable(table, expected)
        except BaseException:
            part_unmapped(connection)
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

    def begin_use(self) -> int:
        """The address of the peer's block 0, mapped until `end_use`; raises TransportError if it is taken back."""
        return self._mapping.begin() + self._offset

    def end_use(self) -> None:
        """Nothing of what began is under way any more."""
        self._mapping.finish()

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
        part_unmapped(source)
        for fd in fds:
            os.close(fd)
        raise


def _say_no_more(peer: socket.socket) -> None:
    """Ends our side of the connection: the consumer unmaps, then closes its own."""
    with suppress(OSError):
        peer.shutdown(socket.SHUT_WR)
