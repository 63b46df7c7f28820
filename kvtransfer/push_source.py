"""The source's side of pushes: I/O around `push.PushTable`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.device_runtime import DeviceError
from kvtransfer.handoff import RequestKey
from kvtransfer.push import PushGrant, PushTable, PushTarget, SendQuiet
from kvtransfer.transport import PeerPool, TransportError
from kvtransfer.transports.cuda_ipc import CudaIpcLink

_log = structlog.get_logger(__name__)


class PushSource:
    """Maps consumers' pools, each once for as long as its channel lives, and says where rows go besides.

    A consumer's memory stays mapped until what was launched into it is done: then the mapping is closed, which tells a
    consumer whose channel is gone that its blocks are quiet.
    """

    def __init__(self, pool: DevicePoolMemory, send_quiet: Callable[[int, RequestKey], None]) -> None:
        """`send_quiet(consumer, key)` comes on any thread."""
        self._pool = pool
        self._send_quiet = send_quiet
        self._lock = threading.Lock()
        self._table = PushTable()
        self._links: dict[int, CudaIpcLink | None] = {}
        self._launched: dict[RequestKey, list[CudaIpcLink]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-push")

    def __len__(self) -> int:
        """Grants that have not ended, or are not quiet yet."""
        with self._lock:
            return len(self._table)

    def granted(self, consumer: int, key: RequestKey, grant: PushGrant, address: bytes, peer: PeerPool) -> None:
        """Rows may be pushed once the consumer's pool is mapped, which happens on another thread."""
        with self._lock:
            self._tell(self._table.grant(consumer, key, grant))
            if consumer in self._links:
                return
            self._links[consumer] = None
        self._thread.submit(self._open, consumer, address, peer)

    def target(self, key: RequestKey) -> PushTarget | None:
        """For one launch, which `stored` must follow; None: rows stay."""
        with self._lock:
            consumer = self._table.consumer_of(key)
            link = self._links.get(consumer) if consumer is not None else None
            grant = self._table.begin(key) if link is not None else None
            if link is None or grant is None:
                return None
            try:
                address = link.begin_use()
            except TransportError:  # the consumer takes its memory back; its channel will tell the rest
                self._tell(self._table.finish(key))
                return None
            self._launched.setdefault(key, []).append(link)
            return PushTarget(address, grant)

    def stored(self, keys: Sequence[RequestKey], written: int | None) -> None:
        """The launch was made, with the event `written` behind it; None: it was not.

        Where the device does not even take an order to wait, consumers wait for the end of this process.
        """
        if written is None:
            self._finish(keys)
            return
        try:
            mark = self._pool.behind(written)
        except DeviceError as error:
            _log.error("kv push cannot be followed", requests=keys, error=str(error))
            return

        def wait() -> None:
            try:
                mark.wait()
            except DeviceError as error:  # nothing runs on a device that has failed
                _log.error("kv push failed", requests=keys, error=str(error))
            self._finish(keys)

        self._thread.submit(wait)

    def ended(self, key: RequestKey) -> None:
        """The request's lease ended."""
        with self._lock:
            self._tell(self._table.end(key))

    def consumer_lost(self, consumer: int) -> None:
        with self._lock:
            self._table.consumer_lost(consumer)
            link = self._links.pop(consumer, None)
        if link is not None:
            link.close()

    def close(self) -> None:
        """After the last launch was reported; waits for the device."""
        self._thread.shutdown()
        with self._lock:
            links, self._links = self._links, {}
        for link in links.values():
            if link is not None:
                link.close()

    def _open(self, consumer: int, address: bytes, peer: PeerPool) -> None:
        try:
            link = CudaIpcLink(address, peer, self._pool)
        except TransportError as error:
            _log.warning("kv blocks are pulled, not pushed", error=str(error))
            return
        with self._lock:
            if consumer in self._links:
                self._links[consumer] = link
                return
        link.close()  # it left meanwhile

    def _finish(self, keys: Sequence[RequestKey]) -> None:
        links = []
        with self._lock:
            for key in keys:
                launched = self._launched[key]
                links.append(launched.pop(0))
                if not launched:
                    del self._launched[key]
                self._tell(self._table.finish(key))
        for link in links:
            link.end_use()

    def _tell(self, actions: list[SendQuiet]) -> None:
        for action in actions:
            self._send_quiet(action.consumer, action.key)
