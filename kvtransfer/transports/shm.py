"""Same host: the peer maps our pool read-only and copies from it; we take no part in the copy."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from contextlib import suppress

import msgspec

from kvtransfer.capability_socket import admitted, listening
from kvtransfer.handoff import RequestKey
from kvtransfer.peer_map import PeerMap
from kvtransfer.pool import KVPool
from kvtransfer.pool_memory import KVPoolMemory
from kvtransfer.transport import CAPABILITY_BYTES, OPEN_TIMEOUT_S, PeerPool, ReadGate, TransportError


class _Address(msgspec.Struct, frozen=True):
    socket_name: str
    capability: bytes


class ShmSource:
    """Hands a read-only descriptor of the pool to whoever shows a capability, over an abstract Unix socket.

    The socket has no file and the memory no name: a killed source leaves nothing behind.
    """

    def __init__(self, pool: KVPool, gate: ReadGate, host: str) -> None:
        if not isinstance(pool, KVPoolMemory):
            raise TransportError("shm maps pools in host memory, this one lies on a device")
        self._capabilities: set[bytes] = set()
        # A descriptor opened read-only: the peer cannot map it writable whatever it asks for.
        self._fd = os.open(f"/proc/self/fd/{pool.fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._name, self._listener = listening()
        self._thread = threading.Thread(target=self._serve, name="kv-shm", daemon=True)
        self._thread.start()

    def offer(self) -> tuple[bytes, bytes]:
        capability = secrets.token_bytes(CAPABILITY_BYTES)
        self._capabilities.add(capability)
        return msgspec.msgpack.encode(_Address(self._name, capability)), capability

    def revoke(self, capability: bytes) -> None:
        self._capabilities.discard(capability)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        os.close(self._fd)

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, suppress(OSError):  # a peer that breaks off gets no descriptor and no answer
                if admitted(peer, self._capabilities):
                    socket.send_fds(peer, [b"\1"], [self._fd])


class ShmLink:
    """One mapping of the source's pool."""

    def __init__(self, address: bytes, expected: PeerPool) -> None:
        try:
            where = msgspec.msgpack.decode(address, type=_Address)
            fd = _receive_descriptor(where)
        except (OSError, msgspec.MsgspecError) as error:
            raise TransportError(f"cannot get the source's pool: {error}") from error
        try:
            self._map: PeerMap | None = PeerMap(fd, expected)
        finally:
            os.close(fd)

    def read(self, key: RequestKey, block: int, generation: int, dest: memoryview) -> int:
        mapped = self._map  # held by this frame: a close meanwhile unmaps only after the copy
        if mapped is None:
            raise TransportError("closed")
        return mapped.read(block, generation, dest)

    def close(self) -> None:
        self._map = None


def _receive_descriptor(where: _Address) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as source:
        source.settimeout(OPEN_TIMEOUT_S)
        source.connect("\0" + where.socket_name)
        source.sendall(where.capability)
        _, fds, _, _ = socket.recv_fds(source, 1, 1)
    if len(fds) != 1:
        raise TransportError("the source refused the capability")
    return fds[0]
