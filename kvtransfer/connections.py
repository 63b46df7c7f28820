"""Peers that have shown a capability on a listener, a thread each."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Container
from contextlib import suppress

import structlog

from kvtransfer.device_runtime import DeviceError
from kvtransfer.transport import CAPABILITY_BYTES, TransportError

_log = structlog.get_logger(__name__)


class Connections:
    """Admits, serves until either side ends it, and counts. What `serve` raises ends its connection only."""

    def __init__(
        self,
        name: str,
        listener: socket.socket,
        admit: Callable[[socket.socket, Container[bytes]], bytes],
        serve: Callable[[socket.socket], None],
        most: int,
    ) -> None:
        """`admit(peer, capabilities)` gives the capability shown, empty if it is none; at most `most` are served."""
        self._name = name
        self._listener = listener
        self._admit = admit
        self._serve = serve
        self._most = most
        self._changed = threading.Condition()
        self._capabilities: set[bytes] = set()
        self._peers: dict[socket.socket, bytes] = {}
        self._thread = threading.Thread(target=self._accept, name=f"kv-{name}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Admitted and not ended yet."""
        with self._changed:
            return sum(bool(shown) for shown in self._peers.values())

    def new_capability(self) -> bytes:
        capability = secrets.token_bytes(CAPABILITY_BYTES)
        with self._changed:
            self._capabilities.add(capability)
        return capability

    def revoke(self, capability: bytes) -> None:
        """Admits nobody; connections made with it are hung up on."""
        with self._changed:
            self._capabilities.discard(capability)
            for peer, shown in self._peers.items():
                if shown == capability:
                    hang_up(peer)

    def close(self) -> None:
        """Returns when no thread serves any more."""
        hang_up(self._listener)
        self._thread.join()
        self._listener.close()
        with self._changed:
            self._capabilities.clear()
            for peer in self._peers:
                hang_up(peer)
            self._changed.wait_for(lambda: not self._peers)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                full = len(self._peers) >= self._most
                if not full:
                    self._peers[peer] = b""
            if full:
                peer.close()
            else:
                threading.Thread(target=self._run, args=(peer,), name=f"kv-{self._name}-peer", daemon=True).start()

    def _run(self, peer: socket.socket) -> None:
        try:
            shown = self._admit(peer, self._capabilities)
            with self._changed:
                if shown not in self._capabilities:
                    return
                self._peers[peer] = shown
            self._serve(peer)
        except OSError:
            return  # the consumer went away or was hung up on; its channel tells the rest
        except (DeviceError, TransportError) as error:
            _log.error("kv transport ends a connection", transport=self._name, error=str(error))
        finally:
            with self._changed:  # closed before it is forgotten: `close` waits for what is not forgotten
                peer.close()
                del self._peers[peer]
                self._changed.notify_all()


def received(peer: socket.socket, size: int) -> bytes:
    """Exactly so many; raises OSError, ConnectionError if the peer ends before."""
    whole = bytearray()
    while len(whole) < size:
        part = peer.recv(size - len(whole))
        if not part:
            raise ConnectionError("the peer closed the connection")
        whole += part
    return bytes(whole)


def hang_up(peer: socket.socket) -> None:
    """From any thread: whoever reads from it sees the end."""
    with suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)
