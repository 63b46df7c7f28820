"""Any host, no special hardware: request and answer over TCP, the generation behind the last byte."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from contextlib import suppress

import msgspec
import structlog

from kvtransfer.device_runtime import DeviceError
from kvtransfer.handoff import RequestKey
from kvtransfer.pool import KVPool
from kvtransfer.transport import (
    CAPABILITY_BYTES,
    OPEN_TIMEOUT_S,
    READ_TIMEOUT_S,
    PeerPool,
    ReadGate,
    TransportError,
)

_log = structlog.get_logger(__name__)
_REQUEST = struct.Struct("<QIQQ")
"""request, attempt, block, generation"""
_ANSWER = struct.Struct("<Q")
"""Bytes that follow: one block, or 0 if the read is not granted. Then the same struct again: the generation."""
_MAX_CONNECTIONS = 256
_BUFFER_BYTES = 4 << 20


class _Address(msgspec.Struct, frozen=True):
    host: str
    port: int
    capability: bytes


class TcpSource:
    """One thread per connection; a block stays pinned from the request to its last byte."""

    def __init__(self, pool: KVPool, gate: ReadGate, host: str) -> None:
        self._pool = pool
        self._gate = gate
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, tuple[bytes, threading.Thread]] = {}
        self._capabilities: set[bytes] = set()
        self._listener = socket.create_server((host, 0), backlog=64)
        self._host, self._port = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept, name="kv-tcp", daemon=True)
        self._thread.start()

    def offer(self) -> tuple[bytes, bytes]:
        capability = secrets.token_bytes(CAPABILITY_BYTES)
        with self._lock:
            self._capabilities.add(capability)
        return msgspec.msgpack.encode(_Address(self._host, self._port, capability)), capability

    def revoke(self, capability: bytes) -> None:
        with self._lock:
            self._capabilities.discard(capability)
            used_by = [peer for peer, (shown, _) in self._connections.items() if shown == capability]
        for peer in used_by:
            _hang_up(peer)

    def close(self) -> None:
        _hang_up(self._listener)
        self._thread.join()
        self._listener.close()
        with self._lock:
            left = dict(self._connections)
        for peer in left:
            _hang_up(peer)
        for _, thread in left.values():
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(peer,), name="kv-tcp-peer", daemon=True)
            with self._lock:
                full = len(self._connections) >= _MAX_CONNECTIONS
                if not full:
                    self._connections[peer] = (b"", thread)
            if full:
                peer.close()
            else:
                thread.start()

    def _serve(self, peer: socket.socket) -> None:
        try:
            peer.settimeout(OPEN_TIMEOUT_S)
            capability = bytearray(CAPABILITY_BYTES)
            _receive_into(peer, memoryview(capability))
            with self._lock:
                if bytes(capability) not in self._capabilities:
                    return
                self._connections[peer] = (bytes(capability), threading.current_thread())
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            request = bytearray(_REQUEST.size)
            while True:
                peer.settimeout(None)  # idle between requests for as long as the consumer's channel lives
                _receive_into(peer, memoryview(request))
                peer.settimeout(READ_TIMEOUT_S)
                self._answer(peer, *_REQUEST.unpack(request))
        except OSError:
            return  # the consumer went away or was hung up on; its channel tells the rest
        except DeviceError as error:
            _log.error("kv block cannot be read from the device", error=str(error))
        finally:
            peer.close()  # before it is forgotten: `close` waits for what is not forgotten
            with self._lock:
                self._connections.pop(peer, None)

    def _answer(self, peer: socket.socket, request: int, attempt: int, block: int, generation: int) -> None:
        key = (request, attempt)
        if not self._gate.begin_read(key, block, generation):
            peer.sendall(_ANSWER.pack(0) + _ANSWER.pack(0))
            return
        try:
            with self._pool.lent(block) as payload:
                peer.sendall(_ANSWER.pack(len(payload)))
                peer.sendall(payload)
            peer.sendall(_ANSWER.pack(self._pool.get(block)))
        finally:
            self._gate.end_read(key)


class TcpLink:
    """As many connections as copies run at once; idle ones are used again."""

    def __init__(self, address: bytes, expected: PeerPool) -> None:
        try:
            self._where = msgspec.msgpack.decode(address, type=_Address)
        except msgspec.MsgspecError as error:
            raise TransportError(f"unreadable tcp address: {error}") from error
        self._block_bytes = expected.block_bytes
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._open: set[socket.socket] = set()
        self._closed = False
        self._idle.append(self._connect())

    def read(self, key: RequestKey, block: int, generation: int, dest: memoryview) -> int:
        with self._lock:
            source = self._idle.pop() if self._idle else None
        source = source or self._connect()
        try:
            seen = self._read(source, key, block, generation, dest)
        except OSError as error:
            with self._lock:
                self._open.discard(source)
            source.close()
            raise TransportError(f"tcp read of block {block}: {error}") from error
        with self._lock:
            self._idle.append(source)
        return seen

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, busy = self._idle, self._open - set(self._idle)
            self._idle, self._open = [], busy
        for source in idle:
            source.close()
        for source in busy:
            _hang_up(source)  # its reader sees the end, and closes it

    def _connect(self) -> socket.socket:
        try:
            source = socket.create_connection((self._where.host, self._where.port), OPEN_TIMEOUT_S)
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            source.settimeout(READ_TIMEOUT_S)
            source.sendall(self._where.capability)
        except OSError as error:
            raise TransportError(f"cannot connect to {self._where.host}:{self._where.port}: {error}") from error
        with self._lock:
            if not self._closed:
                self._open.add(source)
                return source
        source.close()
        raise TransportError("closed")

    def _read(self, source: socket.socket, key: RequestKey, block: int, generation: int, dest: memoryview) -> int:
        source.sendall(_REQUEST.pack(*key, block, generation))
        word = memoryview(bytearray(_ANSWER.size))
        _receive_into(source, word)
        (size,) = _ANSWER.unpack(word)
        if size not in (0, self._block_bytes) or len(dest) != self._block_bytes:
            raise ConnectionError(f"the source announces {size} bytes, a block has {self._block_bytes}")
        if size:
            _receive_into(source, dest)
        _receive_into(source, word)
        (seen,) = _ANSWER.unpack(word)
        return int(seen)


def _receive_into(peer: socket.socket, dest: memoryview) -> None:
    while dest:
        count = peer.recv_into(dest)
        if not count:
            raise ConnectionError("the peer closed the connection")
        dest = dest[count:]


def _hang_up(peer: socket.socket) -> None:
    with suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)
