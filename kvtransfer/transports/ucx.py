"""Whatever UCX finds best between two workers: RDMA or NVLink with the hardware, shared memory or TCP without.

Requests travel as a stream on the endpoint, blocks and trailers as tagged messages. `tcp` stays among the transports
because UCX detects dead peers through it.
"""

from __future__ import annotations

import secrets
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from ucxx._lib import libucxx
from ucxx._lib.arr import Array

from kvtransfer.handoff import RequestKey
from kvtransfer.pool_memory import KVPoolMemory
from kvtransfer.transport import (
    CAPABILITY_BYTES,
    OPEN_TIMEOUT_S,
    READ_TIMEOUT_S,
    PeerPool,
    ReadGate,
    TransportError,
)

_log = structlog.get_logger(__name__)
_REQUEST = struct.Struct(f"<{CAPABILITY_BYTES}sQQIQQ")
"""capability, tag, request, attempt, block, generation. The block comes under `tag`, the trailer under `tag + 1`."""
_TRAILER = struct.Struct("<QQ")
"""1 if the read was granted, generation after the last byte. A refusal sends an empty block."""
_PROGRESS_MS = 50
_MAX_ENDPOINTS = 256
_GOODBYE_S = 1.0
"""How long a consumer whose channel ended may take to close its endpoint. UCXX leaks an endpoint that is closed with a
receive pending, so the source closes first only when a consumer has frozen."""


class _Address(msgspec.Struct, frozen=True):
    host: str
    port: int
    capability: bytes


def _new_worker() -> Any:
    features = (libucxx.Feature.TAG, libucxx.Feature.STREAM, libucxx.Feature.WAKEUP)
    context = libucxx.UCXContext({"TLS": "all"}, feature_flags=features)
    worker = libucxx.UCXWorker(context, enable_delayed_submission=False, enable_python_future=False)
    worker.init_blocking_progress_mode()
    return worker


class _Consumer:
    """One endpoint at the source: receives a request, sends the block, then the generation, then the next request."""

    def __init__(self, endpoint: Any, pool: KVPoolMemory, gate: ReadGate, is_valid: Callable[[bytes], bool]) -> None:
        self.endpoint = endpoint
        self.capability = b""
        self.close_by_s = float("inf")
        self._pool = pool
        self._gate = gate
        self._is_valid = is_valid
        self._buffer = bytearray(_REQUEST.size)
        self._pinned: RequestKey | None = None
        self._next: Callable[[], None] = self._on_request
        self._pending = endpoint.stream_recv(Array(self._buffer))

    def advance(self) -> bool:
        """Goes as far as completed operations allow; whether anything moved. Raises if the peer is gone."""
        if not self._pending.completed:
            return False
        self._pending.check_error()
        self._next()
        return True

    def drop(self) -> None:
        """Closes the endpoint: nothing of the pool is being sent once this returns."""
        self.endpoint.close_blocking()
        self._unpin()

    def _on_request(self) -> None:
        capability, self._tag, request, attempt, self._block, generation = _REQUEST.unpack(self._buffer)
        if not self._is_valid(capability):
            raise TransportError("a consumer showed a capability that is not valid")
        self.capability = capability
        key = (request, attempt)
        granted = self._gate.begin_read(key, self._block, generation)
        if granted:
            self._pinned = key
            self._pending = self._send(self._pool.block(self._block), self._tag)
        else:
            self._pending = self._send(bytearray(1), self._tag)
        self._next = self._on_block_sent

    def _on_block_sent(self) -> None:
        granted = self._pinned is not None
        generation = self._pool.get(self._block) if granted else 0
        self._unpin()
        self._pending = self._send(bytearray(_TRAILER.pack(granted, generation)), self._tag + 1)
        self._next = self._on_trailer_sent

    def _on_trailer_sent(self) -> None:
        self._pending = self.endpoint.stream_recv(Array(self._buffer))
        self._next = self._on_request

    def _send(self, payload: memoryview | bytearray, tag: int) -> Any:
        self._payload = payload  # must live until the operation completes
        return self.endpoint.tag_send(Array(payload), libucxx.UCXXTag(tag))

    def _unpin(self) -> None:
        if self._pinned is not None:
            self._gate.end_read(self._pinned)
            self._pinned = None


class UcxSource:
    """One thread progresses a worker and serves its endpoints."""

    def __init__(self, pool: KVPoolMemory, gate: ReadGate, host: str) -> None:
        self._pool = pool
        self._gate = gate
        self._host = host
        self._capabilities: set[bytes] = set()
        self._revoked: list[bytes] = []
        self._lock = threading.Lock()
        self._closing = False
        self._port = 0
        self._failure: Exception | None = None
        self._consumers: list[_Consumer] = []
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="kv-ucx", daemon=True)
        self._thread.start()
        started.wait()
        if self._failure is not None:
            raise TransportError(f"UCX cannot listen: {self._failure}") from self._failure

    def offer(self) -> tuple[bytes, bytes]:
        capability = secrets.token_bytes(CAPABILITY_BYTES)
        with self._lock:
            self._capabilities.add(capability)
        return msgspec.msgpack.encode(_Address(self._host, self._port, capability)), capability

    def revoke(self, capability: bytes) -> None:
        with self._lock:
            self._capabilities.discard(capability)
            self._revoked.append(capability)

    def close(self) -> None:
        self._closing = True
        self._thread.join()

    def _serve(self, started: threading.Event) -> None:
        try:
            worker = _new_worker()
            # UCX binds every interface; a request without a capability is dropped with its endpoint.
            listener = libucxx.UCXListener.create(worker, 0, self._accept)
            self._listener = listener
            self._port = listener.port
        except Exception as error:  # told by the constructor, in the thread that asked
            self._failure = error
            return
        finally:
            started.set()
        while not self._closing or self._consumers:
            if self._closing:
                for consumer in self._consumers:
                    consumer.close_by_s = min(consumer.close_by_s, time.monotonic() + _GOODBYE_S)
            if not worker.progress_once() and not self._advance():
                worker.progress_worker_event(_PROGRESS_MS)
        del self._listener, listener
        worker.progress()

    def _accept(self, request: int) -> None:
        endpoint = self._listener.create_endpoint_from_conn_request(request, endpoint_error_handling=True)
        if len(self._consumers) >= _MAX_ENDPOINTS:
            endpoint.close_blocking()
            return
        self._consumers.append(_Consumer(endpoint, self._pool, self._gate, self._is_valid))

    def _is_valid(self, capability: bytes) -> bool:
        with self._lock:
            return capability in self._capabilities

    def _advance(self) -> bool:
        with self._lock:
            revoked, self._revoked = self._revoked, []
        moved = False
        for consumer in list(self._consumers):
            try:
                if consumer.capability in revoked:
                    consumer.close_by_s = time.monotonic() + _GOODBYE_S
                if time.monotonic() > consumer.close_by_s:
                    raise TransportError("the consumer's channel ended, its endpoint did not")
                moved |= consumer.advance()
            except (libucxx.UCXError, TransportError) as error:
                _log.info("kv ucx consumer dropped", reason=str(error))
                self._consumers.remove(consumer)
                consumer.drop()
        return moved


class UcxLink:
    """One endpoint; one read at a time."""

    def __init__(self, address: bytes, expected: PeerPool) -> None:
        self._block_bytes = expected.block_bytes
        self._lock = threading.Lock()
        self._closing = False
        self._broken = False
        self._next_tag = 0
        try:
            where = msgspec.msgpack.decode(address, type=_Address)
            self._capability = where.capability
            self._worker = _new_worker()
            self._endpoint = libucxx.UCXEndpoint.create(
                self._worker, where.host, where.port, endpoint_error_handling=True
            )
        except (msgspec.MsgspecError, libucxx.UCXError, RuntimeError) as error:
            raise TransportError(f"UCX cannot connect: {error}") from error

    def read(self, key: RequestKey, block: int, generation: int, dest: memoryview) -> int:
        if len(dest) != self._block_bytes:
            raise TransportError(f"destination of {len(dest)} bytes, a block has {self._block_bytes}")
        with self._lock:
            if self._closing or self._broken:
                raise TransportError("closed")
            try:
                return self._read(key, block, generation, dest)
            except (libucxx.UCXError, TransportError) as error:
                self._broken = True
                self._endpoint.close_blocking()  # cancels the receive: nothing writes to `dest` after this
                raise TransportError(f"ucx read of block {block}: {error}") from error

    def close(self) -> None:
        self._closing = True  # a read under way sees it at its next progress, and closes the endpoint
        with self._lock:
            if not self._broken:
                self._broken = True
                self._endpoint.close_blocking()

    def _read(self, key: RequestKey, block: int, generation: int, dest: memoryview) -> int:
        tag, self._next_tag = self._next_tag, self._next_tag + 2
        request = bytearray(_REQUEST.pack(self._capability, tag, *key, block, generation))
        trailer = bytearray(_TRAILER.size)
        operations = [
            self._endpoint.tag_recv(Array(dest), libucxx.UCXXTag(tag)),
            self._endpoint.tag_recv(Array(trailer), libucxx.UCXXTag(tag + 1)),
            self._endpoint.stream_send(Array(request)),
        ]
        until_s = time.monotonic() + (READ_TIMEOUT_S if tag else OPEN_TIMEOUT_S)
        while not all(operation.completed for operation in operations):
            if self._closing or not self._endpoint.alive:
                raise TransportError("the endpoint was closed")
            if time.monotonic() > until_s:
                raise TransportError("timed out")
            if not self._worker.progress_once():
                self._worker.progress_worker_event(_PROGRESS_MS)
        for operation in operations:
            operation.check_error()
        granted, seen = _TRAILER.unpack(trailer)
        return int(seen) if granted else 0
