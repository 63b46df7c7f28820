"""The transports offered for one pair, tried in order, given up in the open."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import structlog

from kvtransfer.pool import KVPool
from kvtransfer.transport import BlockRead, DeviceLink, Link, LinkFactory, PeerPool, TransportError

_log = structlog.get_logger(__name__)


class Links:
    """Reads through the best offer that works. Thread-safe; blocking: for copy threads only."""

    def __init__(
        self,
        source_worker: str,
        offers: Sequence[tuple[str, bytes]],
        expected: PeerPool,
        factories: Mapping[str, LinkFactory],
    ) -> None:
        self.fallbacks = 0
        self._source_worker = source_worker
        self._offers = list(offers)
        self._expected = expected
        self._factories = factories
        self._lock = threading.Lock()
        self._link: Link | DeviceLink | None = None
        self._closed = False
        self._last_error = "none offered"

    @property
    def transport(self) -> str:
        """Name of the transport in use; empty before the first block moved."""
        return self._offers[0][0] if self._offers and self._link is not None else ""

    @property
    def exhausted(self) -> bool:
        """Every offer was given up: nothing can be read any more."""
        return not self._offers

    def read(self, reads: Sequence[BlockRead], pool: KVPool) -> list[int]:
        """Copies into `pool`; the generations seen. Raises TransportError only when no offer is left."""
        while True:
            link = self._current()
            try:
                return _read(link, reads, pool)
            except TransportError as error:
                self._give_up(link, error)

    def warm(self) -> None:
        """Opens the best link now, so that the first block does not wait for it."""
        self._current()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def _current(self) -> Link | DeviceLink:
        with self._lock:
            while self._link is None:
                if self._closed:
                    raise TransportError("the source was lost")
                if not self._offers:
                    raise TransportError(f"no transport left to {self._source_worker}: {self._last_error}")
                name, address = self._offers[0]
                try:
                    if name not in self._factories:
                        raise TransportError(f"this worker knows no transport {name!r}")
                    self._link = self._factories[name](address, self._expected)
                except TransportError as error:
                    self._pass_over(error)
            return self._link

    def _give_up(self, link: Link | DeviceLink, error: TransportError) -> None:
        with self._lock:
            if link is not self._link:
                return  # another copy thread was first, or all is closed
            self._link = None
            self._pass_over(error)
        link.close()

    def _pass_over(self, error: TransportError) -> None:
        name, _ = self._offers.pop(0)
        self.fallbacks += 1
        self._last_error = f"{name}: {error}"
        _log.warning(
            "kv transport passed over",
            transport=name,
            source=self._source_worker,
            error=str(error),
            next=self._offers[0][0] if self._offers else None,
        )


def _read(link: Link | DeviceLink, reads: Sequence[BlockRead], pool: KVPool) -> list[int]:
    if isinstance(link, DeviceLink):
        return link.read_blocks(reads)
    seen = []
    for read in reads:
        with pool.filling(read.dest_block) as dest:
            seen.append(link.read(read.key, read.block, read.generation, dest))
    return seen
