"""Peers' device memory mapped here: each allocation once, and not a moment longer than somebody may copy from it."""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

from kvtransfer.device_runtime import DeviceError, DeviceRuntime
from kvtransfer.transport import OPEN_TIMEOUT_S, TransportError

_log = structlog.get_logger(__name__)
UNMAPPED = b"\1"
"""What is said on the connection when the memory is not mapped any more and nothing runs on it."""


class PeerMapping:
    """One allocation of a peer. `ended` is set when its owner dies, takes it back, or the link is closed."""

    def __init__(self, handle: bytes, address: int, connection: socket.socket, keeper: PeerMappings) -> None:
        self.handle = handle
        self.address = address
        self.connection = connection
        self.ended = ""
        """Why no copy may begin any more."""
        self.users = 0
        self._keeper = keeper

    @contextmanager
    def used(self) -> Iterator[int]:
        """The address, mapped until this is left; raises TransportError once `ended`."""
        address = self.begin()
        try:
            yield address
        finally:
            self.finish()

    def begin(self) -> int:
        """As `used`, until `finish`."""
        self._keeper.begin(self)
        return self.address

    def finish(self) -> None:
        self._keeper.finish(self)

    def end(self, why: str) -> None:
        """No copy begins any more; the memory is unmapped, on another thread, when the last one has ended."""
        self._keeper.end(self, why)


class PeerMappings:
    """Opens and closes. A thread watches the connections by which peers gave their handles, and does all closing:

    the driver may wait for the device, which no event loop should. A source keeps its memory until the connection is
    closed, which happens after unmapping, or by the kernel if this process dies.
    """

    def __init__(self, runtime: DeviceRuntime) -> None:
        self._runtime = runtime
        self._changed = threading.Condition()
        self._mappings: dict[bytes, PeerMapping] = {}
        self._opening: set[bytes] = set()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = -1, -1

    def __len__(self) -> int:
        with self._changed:
            return len(self._mappings)

    def open(self, handle: bytes, connection: socket.socket) -> PeerMapping:
        """Maps what `handle` names; `connection` ends with the mapping, either way round, and is ours from now on.

        An earlier mapping of the same allocation is waited for, so that none is opened twice. Raises TransportError.
        """
        try:
            with self._changed:
                free = self._changed.wait_for(lambda: self._closed or self._is_free(handle), OPEN_TIMEOUT_S)
                if self._closed:
                    raise TransportError("the pool is closed")
                if not free:
                    raise TransportError("the peer's memory is still mapped by a link that is being closed")
                self._opening.add(handle)
            mapping = self._opened(handle, connection)
        except BaseException:
            part_unmapped(connection)
            raise
        self._wake()
        return mapping

    def _is_free(self, handle: bytes) -> bool:
        return handle not in self._mappings and handle not in self._opening

    def _opened(self, handle: bytes, connection: socket.socket) -> PeerMapping:
        """Without the lock: a driver takes its time, and the engine's thread asks for other mappings meanwhile."""
        mapping = None
        try:
            mapping = PeerMapping(handle, self._runtime.open_export(handle), connection, self)
        except DeviceError as error:
            raise TransportError(f"cannot map the peer's memory: {error}") from error
        finally:
            with self._changed:
                self._opening.discard(handle)
                if mapping is not None:
                    mapping.ended = "closed" if self._closed else ""
                    self._mappings[handle] = mapping
                    self._start()
                self._changed.notify_all()
        return mapping

    def begin(self, mapping: PeerMapping) -> None:
        with self._changed:
            if mapping.ended:
                raise TransportError(mapping.ended)
            mapping.users += 1

    def finish(self, mapping: PeerMapping) -> None:
        with self._changed:
            mapping.users -= 1
        self._wake()

    def end(self, mapping: PeerMapping, why: str) -> None:
        with self._changed:
            mapping.ended = mapping.ended or why
        self._wake()

    def close(self) -> None:
        """Ends all and returns when nothing is mapped: when the last copy has ended."""
        with self._changed:
            self._closed = True
            for mapping in self._mappings.values():
                mapping.ended = mapping.ended or "closed"
            self._changed.notify_all()
        self._wake()
        with self._changed:
            self._changed.wait_for(lambda: not self._opening)
        if self._thread is None:
            return
        self._wake()
        self._thread.join()
        with self._changed:
            self._thread = None
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1

    # --- the thread ---

    def _start(self) -> None:
        if self._thread is None:
            self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._thread = threading.Thread(target=self._run, name="kv-mappings", daemon=True)
            self._thread.start()

    def _wake(self) -> None:
        with self._changed:
            if self._wake_write >= 0:
                with suppress(BlockingIOError):  # full: it is about to wake anyway
                    os.write(self._wake_write, b"\1")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            watched: set[PeerMapping] = set()
            while True:
                with self._changed:
                    mappings = list(self._mappings.values())
                    over = [mapping for mapping in mappings if mapping.ended and not mapping.users]
                    if self._closed and not mappings and not self._opening:
                        return
                for mapping in over:
                    if mapping in watched:
                        watched.remove(mapping)
                        with suppress(KeyError):  # its end of stream was seen
                            selector.unregister(mapping.connection)
                    self._unmap(mapping)
                if over:
                    continue
                for mapping in mappings:
                    if mapping not in watched and not mapping.ended:
                        watched.add(mapping)
                        selector.register(mapping.connection, selectors.EVENT_READ, mapping)
                for event, _ in selector.select():
                    if event.data is None:
                        os.read(self._wake_read, 4096)
                    else:  # a source says nothing after its answer: this is its end, or the end of our welcome
                        selector.unregister(event.fileobj)
                        with self._changed:
                            event.data.ended = event.data.ended or "the source is gone or took its memory back"

    def _unmap(self, mapping: PeerMapping) -> None:
        try:
            self._runtime.close_export(mapping.address)
            part_unmapped(mapping.connection)
        except DeviceError as error:
            _log.error("kv mapping of a peer's memory cannot be closed", error=str(error))
            mapping.connection.close()
        with self._changed:
            del self._mappings[mapping.handle]
            self._changed.notify_all()


def part_unmapped(connection: socket.socket) -> None:
    """Closes the connection and tells the owner that we map nothing of its."""
    with suppress(OSError):  # the owner is gone
        connection.sendall(UNMAPPED)
    connection.close()
